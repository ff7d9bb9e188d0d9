import numpy as np
import pytest

from common import backend

backend.start()

import keras
import tensorflow as tf

from common.layers import MaxPool, plain


def images(height, width, seed=1):
    """Few different values, so that most squares hold their largest more than once."""
    return np.random.default_rng(seed).integers(-2, 3, (5, height, width, 3)).astype(np.float32)


def gradient(layer, x, *, compiled):
    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
            loss = tf.reduce_sum(y * tf.reshape(tf.range(tf.size(y), dtype=tf.float32), tf.shape(y)))
        return y, tape.gradient(loss, x)

    run = tf.function(run, input_signature=[tf.TensorSpec([None, *x.shape[1:]])]) if compiled else run
    return [part.numpy() for part in run(tf.constant(x))]


@pytest.mark.parametrize(("height", "width", "side"), [(6, 8, 2), (7, 5, 2), (9, 6, 3), (4, 11, 3), (2, 2, 2)])
@pytest.mark.parametrize("compiled", [False, True])
def test_values_and_gradients_are_the_librarys_own_bit_for_bit(height, width, side, compiled):
    x = images(height, width)
    ours, theirs = (gradient(layer, x, compiled=compiled) for layer in (MaxPool(side), keras.layers.MaxPooling2D(side)))
    for mine, yours in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine, yours)


def test_the_plain_twin_of_a_model_needs_keras_alone_and_says_the_same(tmp_path):
    inputs = keras.Input((6, 6, 3))
    scores = keras.layers.Dense(2, name="output")(MaxPool(3, name="pool")(inputs))
    model = keras.Model(inputs, scores)
    plain(model).save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert type(again.get_layer("pool")) is keras.layers.MaxPooling2D
    assert again.get_layer("pool").pool_size == (3, 3)
    assert [weight.path for weight in again.weights] == [weight.path for weight in model.weights]
    np.testing.assert_array_equal(again(images(6, 6)), model(images(6, 6)))
