"""Krum: take the one update that lies closest to its neighbours (Blanchard et al. 2017, section 4)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from common.config import Range
from common.layout import Vector
from server.strategies.average import advance, begin
from server.strategies.robust import hold, release
from server.strategies.strategy import State, Strategy

BLOCK = 131_072
"""Numbers turned into float64 at a time, a mebibyte."""


@dataclass(frozen=True)
class Krum:
    """Settings."""

    byzantine: Annotated[int, Range(0, 100_000), "hospitals that may lie; 2 f + 3 updates are needed"] = 1

    def build(self) -> Strategy:
        """Return the strategy."""
        return closest(self.byzantine, keep=1, minimum_updates=2 * self.byzantine + 3)


def closest(byzantine: int, keep: int, minimum_updates: int) -> Strategy:
    """Return the strategy that averages the ``keep`` updates with the lowest scores; of equal scores the first by name wins."""

    def finish(state: State) -> Vector:
        updates = release(state, minimum_updates)
        best = np.argsort(scores(updates, byzantine), kind="stable")[:keep]
        total = updates[best[0]].astype(np.float32)
        for index in best[1:]:
            total += updates[index]
        total /= len(best)
        return advance(state, total)

    return Strategy(begin, hold, finish, single_updates=True, minimum_updates=minimum_updates)


def scores(updates: Sequence[Vector], byzantine: int) -> NDArray[np.float64]:
    """Return, for each of ``n`` updates, the sum of squared distances to its ``n - f - 2`` nearest others."""
    distances = squared_distances(updates)
    np.fill_diagonal(distances, np.inf)
    nearest = np.sort(distances, axis=1)[:, : len(updates) - byzantine - 2]
    return np.asarray(nearest.sum(axis=1))


def squared_distances(updates: Sequence[Vector]) -> NDArray[np.float64]:
    """Return squared L2 distances, shape ``(n, n)``, from inner products in float64.

    Distances do not change when the first update is taken off all; near updates then lose no digits to their common part.
    """
    size, rows = len(updates[0]), max(1, BLOCK // len(updates))
    products = np.zeros((len(updates), len(updates)))
    for start in range(0, size, rows):
        values = np.stack([update[start : start + rows] for update in updates]).astype(np.float64)
        values -= values[0].copy()
        products += values @ values.T
    norms = np.diag(products)
    return np.maximum(norms[:, None] + norms[None, :] - 2 * products, 0.0)
