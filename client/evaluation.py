"""Evaluation: predictions for a hospital's own patients, turned into statistics that add before anything leaves."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common import backend
from common.layout import Vector
from common.network import Network

BATCH = 1024


def compile_predict(network: Network, dtype: Any) -> Callable[..., Any]:
    """Return the compiled function ``(shared, local, x) -> outputs``, all tensors, for any count of rows."""
    import tensorflow as tf

    from client.training import lay_out, with_seeds

    model = network.model

    def predict(shared: Any, local: Any, x: Any) -> Any:
        trainable, fixed = lay_out(network, shared, local)
        states = with_seeds(model, fixed, tf.zeros([2], tf.int32))
        return model.stateless_call(trainable, states, tf.cast(x, model.inputs[0].dtype), training=False)[0]

    signature = [
        tf.TensorSpec([network.shared.size], tf.float32),
        tf.TensorSpec([network.local.size], tf.float32),
        tf.TensorSpec([None, *model.input_shape[1:]], dtype),
    ]
    return backend.callable_of(tf.function(predict, input_signature=signature, autograph=False))


def outputs(predict: Callable[..., Any], shared: Vector, local: Vector, x: Any) -> NDArray[np.float32]:
    """Return the model's outputs, float32 ``(n, K)``, for a tensor of rows, computed in slices so that memory stays flat."""
    import tensorflow as tf

    weights = tf.constant(shared), tf.constant(local)
    slices = [x] if len(x) <= BATCH else [x[start : start + BATCH] for start in range(0, len(x), BATCH)]
    return np.concatenate([predict(*weights, rows).numpy() for rows in slices])
