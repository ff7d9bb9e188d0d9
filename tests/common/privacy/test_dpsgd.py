"""Per-example gradients by layers are those of a plain loop, for every kind of layer, and no row moves the sum further than its bound."""

import keras
import numpy as np
import pytest
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
    inputs = keras.Input((9, 8, 3))
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


def clipped(model, x, mask=None, bound=BOUND):
    """Return the clipped sum as it is compiled in training."""
    y = tf.constant(np.arange(ROWS) % 2, tf.int32)
    mask = tf.ones(ROWS) if mask is None else tf.constant(mask, tf.float32)
    fixed = [tf.convert_to_tensor(v) for v in model.non_trainable_variables]

    @tf.function(autograph=False)
    def run(moving):
        found, losses = dpsgd.clipped_gradients(model, moving, fixed, (x, y, mask), loss, bound, 1)
        return found.parts, losses, tf.constant(found.sensitivity)

    parts, losses, sensitivity = run([tf.convert_to_tensor(v) for v in model.trainable_variables])
    return np.concatenate([part.numpy().ravel() for part in parts]), float(losses), float(sensitivity)


def loop(model, x, bound=BOUND):
    """Return each row's clipped gradient, one after another."""
    rows = []
    for row in range(ROWS):
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(loss([row % 2], model(x[row : row + 1], training=True)))
        gradients = tape.gradient(value, model.trainable_variables)
        flat = np.concatenate([tf.convert_to_tensor(g).numpy().ravel() for g in gradients])
        rows.append(flat * min(1.0, bound / np.linalg.norm(flat)))
    return np.array(rows)


@pytest.fixture(scope="module", params=list(BY_LAYERS | OTHERWISE))
def model(request):
    keras.utils.set_random_seed(3)
    built = (BY_LAYERS | OTHERWISE)[request.param]()
    built.kind = request.param
    return built


class TestEveryLayer:
    def test_the_sum_is_that_of_a_plain_loop(self, model):
        x = inputs_of(model)
        found, _, sensitivity = clipped(model, x)
        assert sensitivity == BOUND
        np.testing.assert_allclose(found, loop(model, x).sum(0), atol=1e-5)

    def test_the_short_way_is_taken_where_there_is_one(self, model):
        assert dpsgd._has_rules(model) == (model.kind in BY_LAYERS)

    def test_a_masked_row_adds_nothing(self, model):
        x, mask = inputs_of(model), np.ones(ROWS)
        mask[2] = 0
        np.testing.assert_allclose(clipped(model, x, mask)[0], loop(model, x)[mask > 0].sum(0), atol=1e-5)

    def test_the_layers_are_left_as_they_were(self, model):
        before = model(inputs_of(model)).numpy()
        clipped(model, inputs_of(model))
        assert not any("call" in layer.__dict__ for layer in model._flatten_layers())
        np.testing.assert_array_equal(model(inputs_of(model)).numpy(), before)


class TestBounds:
    @pytest.mark.parametrize("size", [1.0, 1e3, 1e6])
    def test_no_row_moves_the_sum_further_than_the_bound(self, size):
        keras.utils.set_random_seed(3)
        model = mlp()
        x = inputs_of(model) * size
        with_all = clipped(model, x)[0]
        for row in range(ROWS):
            mask = np.ones(ROWS)
            mask[row] = 0
            assert np.linalg.norm(with_all - clipped(model, x, mask)[0]) <= BOUND * (1 + 1e-4)

    def test_a_row_that_is_not_finite_is_left_out(self):
        keras.utils.set_random_seed(3)
        model = mlp()
        x = inputs_of(model).numpy()
        whole = loop(model, tf.constant(x))
        x[1] = np.inf
        np.testing.assert_allclose(clipped(model, tf.constant(x))[0], np.delete(whole, 1, 0).sum(0), atol=1e-5)

    def test_dropout_is_drawn_for_each_row(self):
        keras.utils.set_random_seed(3)
        inputs = keras.Input((5,))
        model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Dropout(0.5)(keras.layers.Dense(64)(inputs))))
        assert np.isfinite(clipped(model, inputs_of(model))[0]).all()

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
