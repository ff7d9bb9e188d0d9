"""STRATEGIES: the one place where a name becomes a strategy."""

from typing import Protocol

from common.config import Choice
from server.strategies.fedadagrad import FedAdagrad
from server.strategies.fedadam import FedAdam
from server.strategies.fedavg import FedAvg
from server.strategies.fedavgm import FedAvgM
from server.strategies.fedbn import FedBN
from server.strategies.fedprox import FedProx
from server.strategies.fedyogi import FedYogi
from server.strategies.flower import Flower
from server.strategies.krum import Krum
from server.strategies.median import Median
from server.strategies.multi_krum import MultiKrum
from server.strategies.personal import Personal
from server.strategies.scaffold import Scaffold
from server.strategies.strategy import Strategy
from server.strategies.trimmed_mean import TrimmedMean


class Recipe(Protocol):
    """A frozen dataclass of settings that builds a strategy."""

    def build(self) -> Strategy:
        """Return the strategy; raise `ConfigError` when settings contradict each other."""


STRATEGIES: dict[str, type[Recipe]] = {
    "fedavg": FedAvg,
    "fedavgm": FedAvgM,
    "fedprox": FedProx,
    "scaffold": Scaffold,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "fedadagrad": FedAdagrad,
    "fedbn": FedBN,
    "personal": Personal,
    "median": Median,
    "trimmed_mean": TrimmedMean,
    "krum": Krum,
    "multi_krum": MultiKrum,
    "flower": Flower,
}


def strategy_of(choice: Choice) -> Strategy:
    """Return the strategy that a run names, with the run's settings for it."""
    return choice.resolve(STRATEGIES, "strategy").build()
