"""Class weights: how much a patient of each class counts in the loss, so that a rare class counts as much in all as a common one.

The coordinator computes them once, from how many training patients of each class the hospitals told it of; they are agreed on before round 1, so they travel
in the preparation and are kept with the model. A hospital reads them from there, and refuses those that are none.
"""

import numpy as np
from numpy.typing import NDArray

from common.config import Range
from common.errors import UpdateRejected
from common.layout import Vector
from common.tasks.task import Preparation, Task

KEY = "class_weights"
"""Where they stand in a preparation; no task may use this key for anything else."""
LIMITS = Range(0.1, 10)
"""A class that is rarer still must not make single patients move the model as they like."""


def weights_of(counts: NDArray[np.integer]) -> list[float]:
    """Return ``n / (K n_k)`` of n patients in K classes, n_k of them in class k, within `LIMITS`; 1 for a class of nobody.

    These are scikit-learn's ``class_weight="balanced"``, but for the limits; without them the weights of all patients add up to n.

    >>> weights_of(np.array([30, 10, 0]))
    [0.4444444444444444, 1.3333333333333333, 1.0]
    """
    shares = counts.sum() / (len(counts) * np.maximum(counts, 1))
    return [float(each) for each in np.where(counts > 0, np.clip(shares, LIMITS.low, LIMITS.high), 1.0)]


def read(task: Task, preparation: Preparation) -> Vector:
    """Return the class weights that came with a preparation, float32 ``(K,)``.

    Raises
    ------
    UpdateRejected
        With the code ``class_weights`` where they are not one for each class within `LIMITS`, or the task does not sort into classes.
    """
    found = preparation.get(KEY)
    each = found if isinstance(found, list) and task.objective.sorts else []
    if len(each) != len(task.classes) or not all(type(one) is float and one in LIMITS for one in each):
        raise UpdateRejected(
            "class_weights", f"expected a class weight {LIMITS} for each of {len(task.classes)} classes to sort into"
        )
    return np.array(each, np.float32)
