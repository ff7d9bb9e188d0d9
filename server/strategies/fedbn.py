"""FedBN: FedAvg of all but the normalisation layers, which stay at each hospital (Li et al. 2021, Algorithm 1)."""

from dataclasses import dataclass

from server.strategies.average import accumulate, begin
from server.strategies.fedavg import finish
from server.strategies.strategy import Client, Strategy


@dataclass(frozen=True)
class FedBN:
    """No settings."""

    def build(self) -> Strategy:
        """Return the strategy."""
        return Strategy(begin, accumulate, finish, Client(local_parts=("normalisation",)))
