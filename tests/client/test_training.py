"""Local training against oracles: numpy in float64, and a plain loop over Keras's own layers and optimisers."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.training import Method, compile_fit, method_of, plan, widened
from common.config import TrainingConfig
from common.network import Network, build
from common.tasks.heart import Heart
from common.tasks.objective import MULTICLASS

ROWS, FEATURES, BATCH = 21, 4, 8  # two full batches and one of five rows
PLAIN = Method("sgd", 0.9, 0.0, augment=False, proximal=False, controls=False, xla=False)
RATE = 0.1


def layers(*named):
    """Return a task whose model is these layers, from a function of `keras.layers` each."""

    def network(_preparation):
        import keras

        inputs = hidden = keras.Input((FEATURES,))
        for make in named:
            hidden = make(keras.layers)(hidden)
        return keras.Model(inputs, hidden)

    return replace(Heart().build(), build=network, parts={"head": ("output",), "normalisation": ("norm",)})


HIDDEN = lambda layer: layer.Dense(5, activation="tanh", name="hidden")  # noqa: E731
OUTPUT = lambda layer: layer.Dense(1, name="output")  # noqa: E731
THREE = lambda layer: layer.Dense(3, name="output")  # noqa: E731
NORM = lambda layer: layer.BatchNormalization(name="norm", momentum=0.5)  # noqa: E731
DROPOUT = lambda layer: layer.Dropout(0.5, name="dropout")  # noqa: E731
WORDS = lambda layer: layer.Embedding(6, 3, name="words")  # noqa: E731
POOL = lambda layer: layer.GlobalAveragePooling1D(name="pool")  # noqa: E731
LOGISTIC, MLP = layers(OUTPUT), layers(HIDDEN, OUTPUT)


@dataclass
class Case:
    """One training, with everything that goes into the compiled function."""

    task: object
    method: Method
    network: Network
    shared: np.ndarray
    local: np.ndarray
    x: np.ndarray
    y: np.ndarray
    rows: np.ndarray
    seed: tuple[int, int] = (1, 2)
    rate: float = RATE
    proximal: float = 0.0
    correction: np.ndarray | None = None
    balance: np.ndarray | None = None
    steps: int | None = None

    def train(self, fit=None):
        import tensorflow as tf

        fit = fit or compile_fit(self.network, self.task, self.method, self.x.dtype)
        nothing = np.zeros(0, np.float32)
        terms = (nothing if given is None else given for given in (self.correction, self.balance))
        draw = np.array([*self.seed, len(self.rows) if self.steps is None else self.steps], np.int32)
        pace = np.array([self.rate, self.proximal], np.float32)
        given = (self.shared, self.local, self.x, self.y, self.rows, draw, pace, *terms)
        shared, local, loss = fit(*map(tf.constant, given))
        return shared.numpy(), local.numpy(), float(loss)


def case(task=MLP, parts=(), rows=ROWS, epochs=2, x=None, classes=2, **method):
    draw = np.random.default_rng(3)
    network = build(task, {}, parts, 1)
    shared, local = network.vectors()
    x = draw.standard_normal((rows, FEATURES)).astype(np.float32) if x is None else x
    y = draw.integers(0, classes, rows).astype(np.int32)
    return Case(task, replace(PLAIN, **method), network, shared, local, x, y, plan(rows, BATCH, epochs, draw))


def keras_loop(given, optimizer):
    """Train as a plain loop does: layers called batch by batch, short batches short, Keras's own optimiser."""
    import tensorflow as tf

    model, method = given.network.model, given.method
    given.network.assign(given.shared, given.local)
    start = [tf.identity(weight) for weight in model.trainable_weights]
    if given.correction is None:
        pulls = [0.0] * len(start)
    else:
        nothing = [np.zeros(entry.shape, np.float32) for entry in given.network.local.entries]
        pulls = given.network.interleave(given.network.shared.split(given.correction), nothing)
        trainable = {id(weight) for weight in model.trainable_weights}
        pulls = [pull for pull, weight in zip(pulls, model.weights, strict=True) if id(weight) in trainable]
    losses = 0.0
    for chosen in given.rows:
        chosen = chosen[chosen >= 0]
        with tf.GradientTape() as tape:
            outputs = model(given.x[chosen], training=True)
            loss = tf.reduce_mean(given.task.objective.loss(given.y[chosen], outputs))
        gradients = [tf.convert_to_tensor(g) for g in tape.gradient(loss, model.trainable_weights)]
        for index, (weight, anchor, pull) in enumerate(zip(model.trainable_weights, start, pulls, strict=True)):
            decay = method.weight_decay if len(weight.shape) > 1 else 0.0
            gradients[index] += decay * weight + given.proximal * (weight - anchor) + pull
        optimizer.apply(gradients, model.trainable_weights)
        losses += float(loss)
    return *given.network.vectors(), losses


def keras_optimizer(name, rate=RATE):
    import keras

    return {
        "sgd": lambda: keras.optimizers.SGD(rate),
        "momentum": lambda: keras.optimizers.SGD(rate, momentum=0.9),
        "adam": lambda: keras.optimizers.Adam(rate),
    }[name]()


def assert_as_the_loop(given, tolerance=1e-5):
    ours = given.train()
    theirs = keras_loop(given, keras_optimizer(given.method.optimizer))
    assert np.abs(ours[0] - given.shared).max() > 1e-3, "nothing was learnt, so nothing was compared"
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=tolerance, rtol=tolerance)


class TestOracle:
    def test_logistic_regression_is_that_of_numpy_in_float64(self):
        given = case(LOGISTIC, weight_decay=0.1, proximal=True)
        given.proximal = 0.3
        kernel, bias = (array.astype(np.float64) for array in given.network.shared.split(given.shared))
        anchor_kernel, anchor_bias, losses = kernel, bias, 0.0
        for chosen in given.rows:
            x, y = given.x[chosen[chosen >= 0]].astype(np.float64), given.y[chosen[chosen >= 0]]
            logits = (x @ kernel + bias)[:, 0]
            losses += np.mean(np.logaddexp(0, logits) - y * logits)
            error = (1 / (1 + np.exp(-logits)) - y)[:, None] / len(y)
            down = x.T @ error + 0.1 * kernel + 0.3 * (kernel - anchor_kernel)
            kernel, bias = kernel - RATE * down, bias - RATE * (error.sum(0) + 0.3 * (bias - anchor_bias))
        shared, _, loss = given.train()
        np.testing.assert_allclose(shared, np.concatenate([kernel[:, 0], bias]), atol=1e-6)
        assert loss == pytest.approx(losses, abs=1e-5)

    @pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
    def test_every_optimiser_is_kerass(self, optimizer):
        assert_as_the_loop(case(optimizer=optimizer))

    def test_weight_decay_the_proximal_term_and_the_correction_are_gradient_terms(self):
        given = case(weight_decay=0.2, proximal=True, controls=True)
        given.proximal = 0.5
        given.correction = np.random.default_rng(5).standard_normal(given.shared.size).astype(np.float32)
        assert_as_the_loop(given)

    @pytest.mark.parametrize("term", ["weight_decay", "proximal", "correction"])
    def test_each_term_matters(self, term):
        given = case(weight_decay=0.2, proximal=True, controls=True)
        given.proximal, given.correction = 0.5, np.ones_like(given.shared)
        whole = given.train()[0]
        if term == "weight_decay":
            given.method = replace(given.method, weight_decay=0.0)
        elif term == "proximal":
            given.proximal = 0.0
        else:
            given.correction = np.zeros_like(given.shared)
        assert np.abs(whole - given.train()[0]).max() > 1e-3

    def test_a_part_that_stays_here_learns_too_and_has_no_correction(self):
        given = case(parts=("head",), controls=True)
        given.correction = np.ones_like(given.shared)
        assert_as_the_loop(given)
        assert np.abs(given.train()[1] - given.local).max() > 1e-3

    @pytest.mark.parametrize(("task", "classes"), [(MLP, 2), (replace(layers(HIDDEN, THREE), objective=MULTICLASS), 3)])
    def test_class_weights_are_kerass(self, task, classes):
        import keras

        given = case(task, rows=BATCH, epochs=1, classes=classes, weighted=True)
        given.balance = np.array([0.2, 5.0, 1.5][:classes], np.float32)
        shared, _, loss = given.train()
        kinds = {2: keras.losses.BinaryCrossentropy, 3: keras.losses.SparseCategoricalCrossentropy}
        given.network.model.compile(keras.optimizers.SGD(RATE), kinds[classes](from_logits=True))
        weights = dict(enumerate(given.balance.tolist()))
        theirs = given.network.model.train_on_batch(given.x, given.y, class_weight=weights)
        np.testing.assert_allclose(shared, given.network.vectors()[0], atol=1e-6)
        assert loss == pytest.approx(float(theirs), abs=1e-5)
        assert np.abs(shared - replace(given, method=PLAIN).train()[0]).max() > 1e-3

    def test_class_weights_of_a_short_batch_leave_its_mean_over_rows(self):
        given = case(rows=5, epochs=1, weighted=True)
        given.balance = np.array([0.5, 2.0], np.float32)
        padded = given.train()
        given.rows = given.rows[given.rows >= 0][None]
        for one, other in zip(padded, given.train(), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-7)

    @pytest.mark.parametrize("xla", [False, True])
    def test_class_weights_of_one_change_no_bit(self, xla):
        given = case(xla=xla)
        plain = given.train()
        given.method, given.balance = replace(given.method, weighted=True), np.ones(2, np.float32)
        for one, other in zip(given.train(), plain, strict=True):
            np.testing.assert_array_equal(one, other)

    def test_words_have_sparse_gradients(self):
        words = np.random.default_rng(1).integers(0, 6, (ROWS, FEATURES)).astype(np.int32)
        three = replace(layers(WORDS, POOL, THREE), objective=MULTICLASS)
        assert_as_the_loop(case(three, x=words, classes=3, optimizer="adam", weight_decay=0.01))

    def test_normalisation_by_batch_and_its_moving_statistics(self):
        # Full batches: what stands in for the rows that a short one lacks is our own choice.
        given = case(layers(HIDDEN, NORM, OUTPUT), rows=3 * BATCH)
        assert_as_the_loop(given)
        before = given.network.shared.split(given.shared)
        after = given.network.shared.split(given.train()[0])
        fixed = [place for place, entry in enumerate(given.network.shared.entries) if not entry.trainable]
        assert len(fixed) == 2
        assert all(np.abs(after[place] - before[place]).max() > 1e-2 for place in fixed)

    def test_a_part_with_moving_statistics_stays_here_whole(self):
        given = case(layers(HIDDEN, NORM, OUTPUT), rows=3 * BATCH, parts=("normalisation",))
        assert given.local.size == 4 * 5
        assert_as_the_loop(given)


class TestShortBatches:
    def test_what_fills_a_short_batch_has_no_weight(self):
        """The same rows in one padded batch or in one that fits: bit for bit nearly the same weights."""
        given = case(rows=5, epochs=1)
        assert (given.rows < 0).sum() == 3
        padded = given.train()
        given.rows = given.rows[given.rows >= 0][None]
        np.testing.assert_allclose(padded[0], given.train()[0], atol=1e-7)

    def test_padding_rows_of_the_data_are_never_looked_at(self):
        given = case()
        expected = given.train()
        given.x = np.concatenate([given.x, np.full((11, FEATURES), np.nan, np.float32)])
        given.y = np.concatenate([given.y, np.full(11, 7, np.int32)])
        for one, other in zip(given.train(), expected, strict=True):
            np.testing.assert_array_equal(one, other)

    def test_batch_statistics_of_a_short_batch_are_those_of_a_whole_one(self):
        """A last batch of one row, filled with copies of one row, would have next to no variance."""
        given = case(layers(NORM, OUTPUT), rows=BATCH + 1, epochs=1)
        place = next(
            i for i, entry in enumerate(given.network.shared.entries) if entry.path.endswith("moving_variance")
        )
        variance = given.network.shared.split(given.shared)[place]
        for batch in given.rows:
            variance = 0.5 * variance + 0.5 * given.x[np.where(batch < 0, -1 - batch, batch)].var(axis=0)
        after = given.network.shared.split(given.train()[0])[place]
        np.testing.assert_allclose(after, variance, atol=1e-5)
        assert len(set(given.rows[1])) == BATCH


class TestCompilers:
    def test_xla_and_graph_agree(self):
        given = case(layers(HIDDEN, NORM, OUTPUT), rows=2 * BATCH, optimizer="adam", weight_decay=0.1)
        graph = given.train()
        given.method = replace(given.method, xla=True)
        for one, other in zip(given.train(), graph, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("xla", [False, True])
    def test_batches_added_to_a_plan_are_never_run(self, xla):
        given = case(epochs=3, xla=xla, optimizer="adam")
        expected = given.train()
        given.steps, given.rows = len(given.rows), widened(given.rows)
        assert len(given.rows) == 16
        for one, other in zip(given.train(), expected, strict=True):
            np.testing.assert_array_equal(one, other)

    def test_one_function_serves_hospitals_of_every_size(self):
        given = case()
        fit = compile_fit(given.network, given.task, given.method, given.x.dtype)
        for rows, batch, epochs in ((5, 8, 1), (100, 8, 3), (7, 3, 1)):
            other = case(rows=rows)
            other.rows = plan(rows, batch, epochs, np.random.default_rng(rows))
            for one, same in zip(other.train(fit), other.train(), strict=True):
                np.testing.assert_array_equal(one, same)

    def test_auto_is_the_tasks_choice_and_augmentation_needs_a_task_that_has_any(self):
        choose = lambda task, **settings: method_of(task, TrainingConfig(**settings), proximal=False, controls=False)  # noqa: E731
        for xla in (True, False):
            assert choose(replace(MLP, xla=xla)).xla is xla
        assert choose(MLP, compile="xla").xla is True
        assert choose(MLP, compile="graph").xla is False
        assert choose(MLP).augment is False
        shifting = replace(MLP, augment=lambda x, _seed: x)
        assert choose(shifting).augment is True
        assert choose(shifting, augment=False).augment is False


class TestRandomness:
    @pytest.mark.parametrize("kind", ["dropout", "augment"])
    def test_the_same_seed_gives_the_same_bits_and_another_seed_others(self, kind):
        import tensorflow as tf

        noisy = replace(MLP, augment=lambda x, seed: x + tf.random.stateless_normal(tf.shape(x), seed))
        given = case(layers(HIDDEN, DROPOUT, OUTPUT)) if kind == "dropout" else case(noisy, augment=True)
        fit = compile_fit(given.network, given.task, given.method, given.x.dtype)
        first = given.train(fit)[0]
        given.train(fit)
        np.testing.assert_array_equal(given.train(fit)[0], first)
        given.seed = (2, 2)
        assert np.abs(given.train(fit)[0] - first).max() > 1e-3

    def test_every_step_draws_anew(self):
        import tensorflow as tf

        drawn = replace(layers(OUTPUT), augment=lambda x, seed: x * 0 + tf.random.stateless_normal([1, FEATURES], seed))
        given = case(drawn, augment=True, rows=BATCH, epochs=1)
        given.y[:] = 1
        one = given.train()[0] - given.shared
        given.rows = np.concatenate([given.rows, given.rows])
        two = given.train()[0] - given.shared
        assert np.linalg.norm(one) > 1e-3
        # The same draw twice would move along the same line.
        cosine = one[:FEATURES] @ two[:FEATURES] / np.linalg.norm(one[:FEATURES]) / np.linalg.norm(two[:FEATURES])
        assert abs(cosine) < 0.999


class TestPlan:
    @given(st.integers(1, 5000))
    def test_plans_have_few_lengths(self, steps):
        """XLA compiles anew for every length: there are at most 13 up to 4096 batches."""
        length = len(widened(np.zeros((steps, 2), np.int32)))
        assert steps <= length < 2 * steps or length == steps == 1
        assert length & (length - 1) == 0

    @given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 4), st.integers(0, 2**32))
    def test_every_row_once_an_epoch_and_no_batch_empty(self, rows, batch, epochs, seed):
        drawn = plan(rows, batch, epochs, np.random.default_rng(seed))
        steps = -(-rows // batch)
        assert drawn.shape == (epochs * steps, batch)
        assert drawn.dtype == np.int32
        for epoch in drawn.reshape(epochs, -1):
            np.testing.assert_array_equal(np.sort(epoch[epoch >= 0]), np.arange(rows))
        assert (drawn[:, 0] >= 0).all()
        # What fills the last batch are as many different rows as there are.
        filling = drawn[steps - 1][drawn[steps - 1] < 0]
        assert set(filling) <= set(range(-rows, 0))
        assert len(set(filling)) == min(len(filling), rows)

    @given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 4), st.integers(1, 40), st.integers(0, 2**32))
    def test_no_batch_is_shorter_than_the_hospital_allows_and_the_others_stay_as_they_are(
        self, rows, batch, epochs, least, seed
    ):
        drawn = plan(rows, batch, epochs, np.random.default_rng(seed), least)
        whole = plan(rows, batch, epochs, np.random.default_rng(seed))
        assert ((drawn >= 0).sum(axis=1) >= min(least, rows, batch)).all()
        every = whole.reshape(epochs, -1, batch)
        if least > rows % batch > 0 and rows > batch:
            every = every[:, :-1]
        np.testing.assert_array_equal(drawn, every.reshape(-1, batch))

    def test_the_order_is_drawn_anew_every_epoch_and_follows_from_the_generator(self):
        one, other = (plan(50, 10, 2, np.random.default_rng(1)) for _ in range(2))
        np.testing.assert_array_equal(one, other)
        assert (one[:5] != one[5:]).any()
