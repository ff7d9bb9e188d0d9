"""FedAvgM: FedAvg with momentum at the server (Hsu et al. 2019, section 4.3): ``v = beta v + mean``, ``w = w + rate v``."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from common.config import POSITIVE, Range
from common.layout import Vector
from server.strategies.average import accumulate, advance, begin, mean
from server.strategies.strategy import State, Strategy


@dataclass(frozen=True)
class FedAvgM:
    """Settings."""

    momentum: Annotated[float, Range(0, 0.9999), "share of the last step that goes on"] = 0.9
    server_learning_rate: Annotated[float, POSITIVE, "factor on the server's step"] = 1.0

    def build(self) -> Strategy:
        """Return the strategy."""

        def finish(state: State) -> Vector:
            velocity = mean(state)
            velocity += self.momentum * state["momentum"]
            state["momentum"] = velocity
            return advance(state, self.server_learning_rate * velocity)

        return Strategy(init, accumulate, finish)


def init(weights: Vector, population: int) -> State:
    """Start at rest."""
    return begin(weights, population) | {"momentum": np.zeros_like(weights)}
