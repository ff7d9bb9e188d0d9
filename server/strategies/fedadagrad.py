"""FedAdagrad: every coordinate scaled by all its past updates (Reddi et al. 2021, Algorithm 2, with beta_1 = 0 as in its experiments)."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from common.config import POSITIVE
from server.strategies.adaptive import adaptive
from server.strategies.strategy import Strategy


@dataclass(frozen=True)
class FedAdagrad:
    """Settings."""

    server_learning_rate: Annotated[float, POSITIVE, "step size of the server"] = 0.1
    tau: Annotated[float, POSITIVE, "smallest scale of a coordinate; larger is closer to FedAvg"] = 1e-3

    def build(self) -> Strategy:
        """Return the strategy."""
        return adaptive(np.add, self.server_learning_rate, self.tau, beta_1=0.0)
