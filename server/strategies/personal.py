"""FedPer: FedAvg of all but the last layers, of which each hospital trains its own (Arivazhagan et al. 2019, Algorithms 1 and 2)."""

from dataclasses import dataclass

from server.strategies.average import accumulate, begin
from server.strategies.fedavg import finish
from server.strategies.strategy import Client, Strategy


@dataclass(frozen=True)
class Personal:
    """No settings."""

    def build(self) -> Strategy:
        """Return the strategy."""
        return Strategy(begin, accumulate, finish, Client(local_parts=("head",)))
