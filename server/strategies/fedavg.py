"""FedAvg: the mean of the updates, weighted by patients (McMahan et al. 2017, Algorithm 1)."""

from dataclasses import dataclass

from common.layout import Vector
from server.strategies.average import accumulate, advance, begin, mean
from server.strategies.strategy import State, Strategy


@dataclass(frozen=True)
class FedAvg:
    """No settings."""

    def build(self) -> Strategy:
        """Return the strategy."""
        return Strategy(begin, accumulate, finish)


def finish(state: State) -> Vector:
    """Add the weighted mean of the updates to the model."""
    return advance(state, mean(state))
