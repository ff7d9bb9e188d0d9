"""Keras layers that are exactly the library's own and faster where it counts. Import it where a model is built: it loads TensorFlow."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


class MaxPool(keras.layers.MaxPooling2D):  # type: ignore[misc]
    """Maximum over squares of ``side`` x ``side`` of ``(n, height, width, channels)``, side by side; what is left at the edge is dropped.

    Values and gradients are those of ``MaxPooling2D(side)``, bit for bit: of equal values the first gets the gradient. TensorFlow's own gradient is
    rewritten to oneDNN in about half of all traced functions and takes five times as long in the others, more than all else in a small network.
    """

    def __init__(self, side: int = 2, **named: Any) -> None:
        super().__init__(side, **named)

    def call(self, inputs: Any) -> Any:
        """Return the maxima; the tensor's height, width and channels are known while tracing."""
        return max_pool(inputs, self.pool_size[0])


def plain(model: Any) -> Any:
    """Return the same model made of Keras's own layers alone, so that it can be loaded where only Keras is installed."""
    twin = keras.models.clone_model(model, clone_function=_plain)
    twin.set_weights(model.get_weights())
    return twin


def _plain(layer: Any) -> Any:
    kind = keras.layers.MaxPooling2D if isinstance(layer, MaxPool) else type(layer)
    return kind.from_config(layer.get_config())


def max_pool(x: Any, side: int) -> Any:
    """Return the maxima of ``side`` x ``side`` squares of a tensor ``(n, height, width, channels)``, with the gradient of `MaxPool`."""

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def pool(x: Any) -> tuple[Any, Callable[[Any], Any]]:
        y = tf.nn.max_pool2d(x, side, side, "VALID")
        return y, lambda upstream: _gradient(x, y, upstream, side)

    return pool(x)


def _gradient(x: Any, y: Any, upstream: Any, side: int) -> Any:
    """Send each square's gradient to the first of its largest values; XLA makes one loop of it."""

    @tf.function(jit_compile=True, autograph=False)  # type: ignore[untyped-decorator]
    def route(x: Any, y: Any, upstream: Any) -> Any:
        height, width, channels = x.shape[1:]
        rows, columns = height // side, width // side
        squares = tf.reshape(x[:, : rows * side, : columns * side], [-1, rows, side, columns, side, channels])
        largest = y[:, :, None, :, None, :]
        place = tf.reshape(tf.range(side * side), [1, 1, side, 1, side, 1])
        taken = tf.zeros_like(place, tf.bool)
        for number in range(side * side - 1):
            row, column = divmod(number, side)
            value = squares[:, :, row : row + 1, :, column : column + 1]
            taken |= tf.equal(value, largest) & (place > number)
        sent = tf.where(tf.equal(squares, largest) & ~taken, upstream[:, :, None, :, None, :], 0.0)
        sent = tf.reshape(sent, [-1, rows * side, columns * side, channels])
        return tf.pad(sent, [[0, 0], [0, height - rows * side], [0, width - columns * side], [0, 0]])

    return route(x, y, upstream)
