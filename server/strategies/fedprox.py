"""FedProx: FedAvg whose hospitals pay ``mu / 2 * |w - w_global|^2`` for moving away (Li et al. 2020, Algorithm 2)."""

from dataclasses import dataclass
from typing import Annotated

from common.config import Range
from server.strategies.average import accumulate, begin
from server.strategies.fedavg import finish
from server.strategies.strategy import Client, Strategy


@dataclass(frozen=True)
class FedProx:
    """Settings."""

    mu: Annotated[
        float, Range(0, 1e6), "pull towards the global model in the hospitals' training; 0 makes it FedAvg"
    ] = 0.01

    def build(self) -> Strategy:
        """Return the strategy."""
        return Strategy(begin, accumulate, finish, Client(proximal=self.mu))
