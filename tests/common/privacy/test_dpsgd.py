"""Per-example gradients by layers are those of a plain loop, for every kind of layer, and no row moves the sum further than its bound."""

import numpy as np
import pytest

from common import backend

backend.start()

import keras
import tensorflow as tf

from common.errors import ConfigError
from common.privacy import dpsgd

ROWS, BOUND = 6, 0.5


def mean(x):
    return keras.layers.GlobalAveragePooling1D()(x)


def mlp():
    inputs = keras.Input((5,))
    hidden = keras.layers.Dense(7, activation="tanh")(inputs)
    return keras.Model(inputs, keras.layers.Dense(2, use_bias=False)(hidden))


def cnn(**named):
    inputs = keras.Input((13, 12, 3))
    x = keras.layers.Conv2D(4, 3, activation="relu", **named)(inputs)
    x = keras.layers.Conv2D(6, (2, 3), use_bias=False)(keras.layers.MaxPooling2D(2)(x))
    return keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(x)))


def words(layer):
    def build():
        inputs = keras.Input((12,), dtype="int32")
        x = keras.layers.Embedding(5, 4)(inputs)  # few words, so that each stands in several places
        return keras.Model(inputs, keras.layers.Dense(2)(layer(x)))

    return build


def attention(x):
    both = keras.layers.MultiHeadAttention(2, 3, dropout=0.0)(x, x)
    x = keras.layers.LayerNormalization()(keras.layers.Add()([x, both]))
    return mean(keras.layers.Dense(6, activation="gelu")(x))


def nested(x):
    inner = keras.Sequential([keras.Input((12, 4)), keras.layers.Dense(3, activation="relu"), keras.layers.Dense(3)])
    return mean(inner(x))


def bidirectional(x):
    return keras.layers.Bidirectional(keras.layers.LSTM(3, unroll=True))(x)


def shared(x):
    layer = keras.layers.Dense(4, activation="tanh")
    return mean(layer(layer(x)))


def narrow(x):
    return mean(keras.layers.Dense(64)(keras.layers.Dense(64)(x)))  # wide enough that Gram matrices are the shorter way


BY_LAYERS = {
    "dense": mlp,
    "convolution": cnn,
    "convolution, strides": lambda: cnn(strides=2, padding="same"),
    "convolution, dilated": lambda: cnn(dilation_rate=2),
    "embedding": words(mean),
    "lstm": words(keras.layers.LSTM(3)),
    "lstm, all steps": words(lambda x: mean(keras.layers.LSTM(3, return_sequences=True, use_bias=False)(x))),
    "gru": words(keras.layers.GRU(3)),
    "gru, all steps": words(lambda x: mean(keras.layers.GRU(3, return_sequences=True, use_bias=False)(x))),
    "attention": words(attention),
    "nested": words(nested),
    "gram": words(narrow),
    "normalisation over two axes": words(lambda x: mean(keras.layers.LayerNormalization(axis=[1, 2])(x))),
}
OTHERWISE = {
    "bidirectional": words(bidirectional),
    "shared": words(shared),
    "gru, reset before": words(keras.layers.GRU(3, reset_after=False, unroll=True)),
    "depthwise": lambda: keras.Sequential(
        [keras.Input((6, 6, 3)), keras.layers.DepthwiseConv2D(3), keras.layers.Flatten(), keras.layers.Dense(2)]
    ),
}


def inputs_of(model, seed=0):
    draw = np.random.default_rng(seed)
    shape = (ROWS, *model.input_shape[1:])
    if model.inputs[0].dtype == "int32":
        return tf.constant(draw.integers(0, 5, shape), tf.int32)
    return tf.constant(draw.standard_normal(shape), tf.float32)


def loss(labels, outputs):
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, outputs)


class Summed:
    """The clipped sum as it is compiled in training, traced once."""

    def __init__(self, model, bound=BOUND):
        self.model, self.bound = model, bound
        self.fixed = [tf.convert_to_tensor(v) for v in model.non_trainable_variables]
        self.run = tf.function(self.graph, autograph=False)

    def graph(self, moving, x, y, mask):
        found, losses = dpsgd.clipped_gradients(self.model, moving, self.fixed, (x, y, mask), loss, self.bound, 1)
        return found.parts, losses, tf.constant(found.sensitivity)

    def __call__(self, x, mask=None):
        y = tf.constant(np.arange(ROWS) % 2, tf.int32)
        mask = tf.ones(ROWS) if mask is None else tf.constant(mask, tf.float32)
        moving = [tf.convert_to_tensor(v) for v in self.model.trainable_variables]
        parts, _, self.sensitivity = self.run(moving, x, y, mask)
        return np.concatenate([part.numpy().ravel() for part in parts])


def loop(model, x, bound=BOUND):
    """Return each row's clipped gradient, one after another."""

    @tf.function(autograph=False)
    def gradient(x, y):
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(loss(y, model(x, training=True)))
        gradients = tape.gradient(value, model.trainable_variables)
        return tf.concat([tf.reshape(tf.convert_to_tensor(g), [-1]) for g in gradients], 0)

    rows = [gradient(x[row : row + 1], tf.constant([row % 2])).numpy() for row in range(ROWS)]
    return np.array([row * min(1.0, bound / np.linalg.norm(row)) for row in rows])


def overflowing(model, x, size):
    """Make the third row so large that its gradient is no number: its inputs, or the word that it alone holds. Return the inputs and the weights as they were."""
    weights, place = model.get_weights(), np.arange(ROWS).reshape(-1, *[1] * (len(x.shape) - 1)) == 2
    if not x.dtype.is_integer:
        return tf.where(place, tf.constant(size, tf.float32), x), weights
    table = next(v for v in model.trainable_variables if v.shape[0] == 5)
    table.assign(np.where(np.arange(5)[:, None] == 4, size, table.numpy()))
    return tf.where(place, 4, tf.minimum(x, 3)), weights


SLOW = ("bidirectional", "gru, reset before", "gru, all steps", "lstm, all steps", "nested", "convolution, dilated")
KINDS = [pytest.param(kind, marks=[pytest.mark.slow] * (kind in SLOW)) for kind in BY_LAYERS | OTHERWISE]


@pytest.mark.parametrize("kind", KINDS)
def test_the_sum_is_that_of_a_plain_loop_for_every_kind_of_layer(kind):
    keras.utils.set_random_seed(3)
    model = (BY_LAYERS | OTHERWISE)[kind]()
    assert dpsgd._has_rules(model) == (kind in BY_LAYERS)  # the short way is taken where there is one
    x, mask, summed = inputs_of(model), np.arange(ROWS) != 2, Summed(model)
    before, rows = model(x).numpy(), loop(model, x)
    np.testing.assert_allclose(summed(x), rows.sum(0), atol=1e-5)
    np.testing.assert_allclose(summed(x, mask), rows[mask].sum(0), atol=1e-5)
    assert float(summed.sensitivity) == BOUND
    for size in (1e15, 1e25, 3e38):
        spoilt, weights = overflowing(model, x, size)
        assert np.linalg.norm(summed(spoilt) - summed(spoilt, mask)) <= BOUND * (1 + 1e-4), size
        model.set_weights(weights)
    # The layers are left as they were.
    assert not any("call" in layer.__dict__ for layer in model._flatten_layers())
    np.testing.assert_array_equal(model(x).numpy(), before)


@pytest.fixture(scope="module")
def summed():
    keras.utils.set_random_seed(3)
    return Summed(mlp())


class TestBounds:
    @pytest.mark.parametrize("size", [1.0, 1e3, 1e6])
    def test_no_row_moves_the_sum_further_than_the_bound(self, summed, size):
        x = inputs_of(summed.model) * size
        with_all = summed(x)
        for row in range(ROWS):
            mask = np.ones(ROWS)
            mask[row] = 0
            assert np.linalg.norm(with_all - summed(x, mask)) <= BOUND * (1 + 1e-4)

    def test_dropout_is_drawn_for_each_row(self):
        keras.utils.set_random_seed(3)
        inputs = keras.Input((5,))
        model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Dropout(0.5)(keras.layers.Dense(64)(inputs))))
        assert np.isfinite(Summed(model)(inputs_of(model))).all()

    @pytest.mark.parametrize("kind", ["BatchNormalization", "SpectralNormalization"])
    def test_what_mixes_rows_is_refused_by_name(self, kind):
        inputs = keras.Input((5,))
        layer = {
            "BatchNormalization": lambda: keras.layers.BatchNormalization(name="norm"),
            "SpectralNormalization": lambda: keras.layers.SpectralNormalization(keras.layers.Dense(3), name="norm"),
        }[kind]()
        model = keras.Model(inputs, keras.layers.Dense(2)(layer(inputs)))
        with pytest.raises(ConfigError, match=rf"'norm' \({kind}\) mixes the patients of a batch"):
            dpsgd.check(model)
