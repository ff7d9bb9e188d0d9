"""Objectives: the loss a model is trained on and the statistics it is judged by."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common import metrics, regression
from common.metrics import Estimate
from common.statistics import Statistics

Labels = NDArray[Any]
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Objective:
    """How outputs become a loss, predictions and metrics.

    ``loss`` maps labels ``(n, ...)`` and outputs ``(n, K)``, both tensors, to losses ``(n,)``. ``predict`` maps outputs to the scores that ``summarise`` takes
    beside the labels; ``values`` are the metrics alone, ``compute`` the same with intervals. ``compare`` gives the statistics of two models on the same patients, in that order.
    ``label_shape`` is the shape of one patient's label (None where the preparation decides), ``width`` the columns of the scores where they are not the task's classes. ``headline`` is the metric that
    reports lead with, ``shown`` those that summaries show, ``criterion`` the one that early stopping lowers on validation patients.
    ``coupled`` says that a patient's loss depends on the others of the batch, so that no clipping of single losses bounds what one patient does.
    """

    loss: Callable[[Any, Any], Any]
    predict: Callable[[NDArray[np.float32]], Scores]
    summarise: Callable[[Labels, Scores], Statistics]
    values: Callable[[Statistics], dict[str, float | None]]
    compute: Callable[[Statistics], Mapping[str, Estimate]]
    curves: Callable[[Statistics], dict[str, Any]]
    compare: Callable[[Labels, Scores, Scores], Statistics]
    differences: Callable[[Statistics], Mapping[str, Estimate]]
    headline: str = "auroc"
    shown: tuple[str, ...] = ("auroc", "accuracy", "macro_f1", "brier")
    criterion: str = "log_loss"
    label_dtype: str = "int32"
    label_shape: tuple[int | None, ...] = ()
    width: int = 0
    coupled: bool = False

    @property
    def sorts(self) -> bool:
        """Whether it sorts each patient into one of the task's classes."""
        return not self.width and not self.label_shape

    def nobody(self, classes: int) -> tuple[Labels, Scores]:
        """Return the labels and scores of no patients, for a task of so many classes."""
        shape = [size or 0 for size in self.label_shape]
        return np.zeros((0, *shape), self.label_dtype), np.zeros((0, self.width or classes))


def _binary_loss(labels: Any, outputs: Any) -> Any:
    import tensorflow as tf

    return tf.nn.sigmoid_cross_entropy_with_logits(tf.cast(labels, outputs.dtype), outputs[:, 0])


def _class_loss(labels: Any, outputs: Any) -> Any:
    import tensorflow as tf

    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, outputs)


def _sigmoid(outputs: NDArray[np.float32]) -> Scores:
    positive = 1.0 / (1.0 + np.exp(-np.clip(outputs[:, 0].astype(np.float64), -500, 500)))
    return np.stack([1.0 - positive, positive], axis=1)


def _softmax(outputs: NDArray[np.float32]) -> Scores:
    shifted = np.exp(outputs.astype(np.float64) - outputs.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def squared_hinge(labels: Any, outputs: Any) -> Any:
    """Return the squared hinge loss of every class against all others, ``(n,)``: an SVM's, in its primal form (Chapelle 2007, section 2)."""
    import tensorflow as tf

    signs = 2.0 * tf.one_hot(labels, tf.shape(outputs)[1], dtype=outputs.dtype) - 1.0
    return tf.reduce_sum(tf.square(tf.nn.relu(1.0 - signs * outputs)), axis=1)


def squared_margins(outputs: NDArray[np.float32]) -> Scores:
    """Return scores that sum to 1 and order the classes as their margins do."""
    return _softmax(2.0 * outputs)


def _squared_loss(labels: Any, outputs: Any) -> Any:
    import tensorflow as tf

    return tf.square(outputs[:, 0] - labels)


def _amounts(outputs: NDArray[np.float32]) -> Scores:
    return outputs[:, :1].astype(np.float64)


_METRICS: dict[str, Any] = {
    "summarise": metrics.summarise,
    "values": metrics.values,
    "compute": metrics.compute,
    "curves": metrics.curves,
    "compare": metrics.compare,
    "differences": metrics.differences,
}
BINARY = Objective(_binary_loss, _sigmoid, **_METRICS)
"""Two classes, one output: the logit of class 1."""
MULTICLASS = Objective(
    _class_loss, _softmax, **_METRICS, headline="macro_f1", shown=("macro_f1", "auroc", "accuracy", "brier")
)
"""Two or more classes, one output each: logits."""
REGRESSION = Objective(
    _squared_loss,
    _amounts,
    regression.summarise,
    regression.values,
    regression.compute,
    regression.curves,
    regression.compare,
    regression.differences,
    headline="mae",
    shown=("mae", "rmse", "r2"),
    criterion="rmse",
    label_dtype="float32",
    width=1,
)
"""An amount from 0 up, one output: the amount itself."""
