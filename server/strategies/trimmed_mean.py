"""Coordinate-wise trimmed mean (Yin et al. 2018, Definition 2): drop the largest and the smallest values, average the rest.

Of ``n`` updates ``floor(trim * n)`` are dropped at each end, as in scipy and Flower. The round needs enough updates to drop one.
"""

import math
from dataclasses import dataclass
from typing import Annotated

from common.config import Range
from common.layout import Vector
from server.strategies.average import advance, begin
from server.strategies.robust import by_coordinate, hold, release
from server.strategies.strategy import State, Strategy

ROUNDING = 1e-9
"""0.29 * 100 is a little below 29 in binary, and is meant to drop 29."""


@dataclass(frozen=True)
class TrimmedMean:
    """Settings."""

    trim: Annotated[float, Range(0, 0.49, open_low=True), "share of the updates dropped at each end"] = 0.2

    def build(self) -> Strategy:
        """Return the strategy."""
        minimum = math.ceil(1 / self.trim - ROUNDING)

        def finish(state: State) -> Vector:
            updates = release(state, minimum)
            count = len(updates)
            drop = math.floor(self.trim * count + ROUNDING)
            return advance(state, by_coordinate(updates, lambda values: values[:, drop : count - drop].mean(axis=1)))

        return Strategy(begin, hold, finish, single_updates=True, minimum_updates=minimum)
