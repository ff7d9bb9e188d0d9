"""The Learner: a model that is fitted by sums over patients instead of by local epochs.

In a round every hospital returns one vector that adds over its patients (a histogram, a gradient with its Hessian), and the coordinator turns the sum of these vectors into
the next weights. So hospitals together get the model that one hospital with all their patients gets, and a secure sum is all the coordinator needs. What the sums of a single
hospital tell of few patients, each model says for itself (`Forest`, `Cox`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from common.layout import Vector

if TYPE_CHECKING:  # the task holds its learner
    from common.tasks.task import Examples

Sums = NDArray[np.float64]


@dataclass(frozen=True)
class Learner:
    """How sums become weights; weights are laid out as those of the model that the task's ``build`` makes, and start as its own.

    ``contribute(weights, examples, seed)`` is a hospital's vector, ``size(weights)`` its length, which may change from round to round. ``advance(weights, sums, seed)``
    returns the next weights, a new array. ``seed`` is the run's. Contributions are rounded to multiples of ``1 / levels``, 1 for whole counts: on that
    grid sums are exact, so that neither the order of the hospitals nor a mask changes a bit. A hospital's values stay below ``2**24 / levels``, and all hospitals' sums below ``2**30 / levels`` where they are masked.
    """

    size: Callable[[Vector], int]
    contribute: Callable[[Vector, "Examples", int], NDArray[np.floating]]
    advance: Callable[[Vector, Sums, int], Vector]
    levels: float = 1.0

    def contribution(self, weights: Vector, examples: "Examples", seed: int) -> Vector:
        """Return a hospital's vector on the grid, as it is sent."""
        whole = np.rint(self.contribute(weights, examples, seed) * self.levels)
        return np.asarray(whole / self.levels, np.float32)
