"""Multi-Krum: average the updates that lie closest to their neighbours (Blanchard et al. 2017, section 4).

The mean counts the kept hospitals alike, as in the paper; Flower's weighs them by the patients they claim. At most ``n - f - 2`` of ``n`` may be
kept, the bound under which Multi-Krum is proven (Damaskinos et al. 2019, AggregaThor).
"""

from dataclasses import dataclass
from typing import Annotated

from common.config import Range
from server.strategies.krum import closest
from server.strategies.strategy import Strategy


@dataclass(frozen=True)
class MultiKrum:
    """Settings."""

    byzantine: Annotated[int, Range(0, 100_000), "hospitals that may lie, f; 2 f + 3 updates are needed"] = 1
    keep: Annotated[int, Range(1, 100_000), "updates that are averaged; keep + f + 2 are needed"] = 2

    def build(self) -> Strategy:
        """Return the strategy."""
        return closest(self.byzantine, self.keep, max(2 * self.byzantine + 3, self.keep + self.byzantine + 2))
