"""Coordinate-wise median (Yin et al. 2018, Definition 1): stands while fewer than half of the hospitals lie."""

from dataclasses import dataclass

import numpy as np

from common.layout import Vector
from server.strategies.average import advance, begin
from server.strategies.robust import by_coordinate, hold, release
from server.strategies.strategy import State, Strategy


@dataclass(frozen=True)
class Median:
    """No settings."""

    def build(self) -> Strategy:
        """Return the strategy."""
        return Strategy(begin, hold, finish, single_updates=True)


def finish(state: State) -> Vector:
    """Add the median of the updates to the model."""
    return advance(state, by_coordinate(release(state, 1), middle))


def middle(values: Vector) -> Vector:
    """Return the median of each sorted row; of an even count, the mean of the two in the middle."""
    count = values.shape[1]
    return (values[:, (count - 1) // 2] + values[:, count // 2]) * np.float32(0.5)
