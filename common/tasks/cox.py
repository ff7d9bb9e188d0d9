"""Cox regression fitted by sums: Newton's method on the partial likelihood, stratified by hospital (Cox 1972; Breslow's ties).

A patient's risk is compared with those of the same hospital alone, so that a hospital needs nobody else's patients: gradient and Hessian of the stratified likelihood are sums over
hospitals, and the coefficients those of a stratified fit on the pooled rows, but for the grid on which sums travel.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.layout import Vector
from common.tasks.learner import Learner, Sums
from common.tasks.task import Examples

LEVELS = 256.0
"""Levels a unit: what they cost in precision is far below a coefficient's standard error."""
LARGEST = 2.0
"""Largest step of a coefficient, so that a first step from far away does not overshoot."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Cox:
    """``columns`` coefficients of standardised features, with the penalty ``ridge / 2`` times their squares.

    Guarantee
    ---------
    A hospital sends a gradient and a Hessian, ``columns * (columns + 3) / 2`` sums over its deaths.

    Edge cases
    ----------
    - A hospital without a death sends zeros.
    - The sums are exact: where very few died at a hospital they may tell much of these, unless secure aggregation hides each hospital's.
    """

    columns: int
    ridge: float

    def learner(self) -> Learner:
        """Return the rule from sums to coefficients."""
        return Learner(self.size, self.contribute, self.advance, LEVELS)

    def size(self, _weights: Vector) -> int:
        """Return the count of sums."""
        return self.columns * (self.columns + 3) // 2

    def contribute(self, weights: Vector, examples: Examples, _seed: int) -> Floats:
        """Return gradient and upper triangle of the Hessian of the negative logarithm of the partial likelihood, end to end."""
        gradient, hessian = derivatives(np.asarray(examples.x, np.float64), examples.y, weights.astype(np.float64))
        return np.concatenate([gradient, hessian[np.triu_indices(self.columns)]])

    def advance(self, weights: Vector, sums: Sums, _seed: int) -> Vector:
        """Take one step of Newton's method."""
        hessian = np.zeros((self.columns, self.columns))
        hessian[np.triu_indices(self.columns)] = sums[self.columns :]
        hessian += np.triu(hessian, 1).T
        gradient = sums[: self.columns] + self.ridge * weights
        step = np.linalg.solve(hessian + self.ridge * np.eye(self.columns), gradient)
        step *= min(1.0, LARGEST / max(float(np.abs(step).max(initial=0.0)), 1e-12))
        return (weights - step).astype(np.float32)


def derivatives(x: Floats, y: NDArray[np.float32], weights: Floats) -> tuple[Floats, Floats]:
    """Return gradient ``(columns,)`` and Hessian ``(columns, columns)``; ``y`` are days and whether the patient died then, ``(n, 2)``.

    Patients join the risk set from the last day to the first, so that memory is that of one Hessian.
    """
    columns = x.shape[1]
    gradient, hessian = np.zeros(columns), np.zeros((columns, columns))
    scores = x @ weights
    risks = np.exp(scores - scores.max(initial=-np.inf)) if len(x) else scores
    total, first, second = 0.0, np.zeros(columns), np.zeros((columns, columns))
    order = np.argsort(-y[:, 0], kind="stable")
    died = y[order, 1] > 0
    days = -y[order, 0]
    joined = 0
    for day in np.unique(days[died]):
        end = int(np.searchsorted(days, day, side="right"))
        rows = order[joined:end]
        weighted = x[rows] * risks[rows, None]
        total, first, second = total + risks[rows].sum(), first + weighted.sum(axis=0), second + weighted.T @ x[rows]
        joined = end
        dead = order[(days == day) & died]
        mean = first / total
        gradient += len(dead) * mean - x[dead].sum(axis=0)
        hessian += len(dead) * (second / total - np.outer(mean, mean))
    return gradient, hessian
