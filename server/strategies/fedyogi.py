"""FedYogi: like FedAdam, but the second moment grows slowly where updates become sparse (Reddi et al. 2021, Algorithm 2)."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from common.config import POSITIVE, Range
from common.layout import Vector
from server.strategies.adaptive import adaptive
from server.strategies.strategy import Strategy


@dataclass(frozen=True)
class FedYogi:
    """Settings."""

    server_learning_rate: Annotated[float, POSITIVE, "step size of the server"] = 0.01
    beta_1: Annotated[float, Range(0, 0.9999), "memory of the first moment"] = 0.9
    beta_2: Annotated[float, Range(0, 0.9999), "memory of the second moment"] = 0.99
    tau: Annotated[float, POSITIVE, "smallest scale of a coordinate; larger is closer to FedAvg"] = 1e-3

    def build(self) -> Strategy:
        """Return the strategy."""

        def second_moment(last: Vector, squared: Vector) -> Vector:
            return np.asarray(last - (1 - self.beta_2) * squared * np.sign(last - squared))

        return adaptive(second_moment, self.server_learning_rate, self.tau, self.beta_1)
