"""What a federated model is measured against: each hospital alone, and all patients in one place.

Both are federations of one hospital, run by the same code: same model, same training settings, and as many passes over the patients as the federated
run took. A hospital alone takes exactly the steps that it took in the federation; all patients together take as many as all hospitals did, but for
what fewer short batches save. Where the federated run stops early, each stops early by its own validation patients, within the same passes.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from client.app import Seat
from client.hospital import Hospital
from common.config import (
    Choice,
    EvaluationConfig,
    LimitsConfig,
    PrivacyConfig,
    RunConfig,
    SecureConfig,
    SelectionConfig,
    UpdateConfig,
)
from common.tasks.task import Records, rows_of
from server import rounds
from server.plan import Plan
from server.records import Model
from server.rounds import Outcome
from simulations.engines import grid_of
from simulations.hospitals import Population


def local_only(population: Population, config: RunConfig, federated: Outcome) -> Iterator[dict[str, Model]]:
    """Train every hospital alone, for as many rounds as its updates went into the federated model, and one if they never did."""
    took_part = dict.fromkeys(population.names, 0)
    for record in federated.rounds:
        for name in record.answered:
            took_part[name] += 1
    for hospital in population.hospitals:
        yield {hospital.name: _alone(population, hospital, config, max(took_part[hospital.name], 1))}


def centralised(population: Population, config: RunConfig, federated: Outcome) -> Iterator[dict[str, Model]]:
    """Train on all patients in one place, until they have been seen as often as in the federated run."""
    parts = ("train", "validation", "test")
    train, validation, test = (_pool([getattr(h, part) for h in population.hospitals]) for part in parts)
    pooled = Hospital("all", train, validation, test)
    seen = sum(record.examples for record in federated.rounds)
    model = _alone(population, pooled, config, max(1, round(seen / rows_of(pooled.train))))
    yield dict.fromkeys(population.names, model)


def _alone(population: Population, hospital: Hospital, config: RunConfig, number: int) -> Model:
    """Run a federation of one. Nothing is lost by sending, kept back, drawn or noised; a limit on updates has no one to guard against."""
    settings = replace(
        config,
        rounds=number,
        strategy=Choice("fedavg"),
        selection=SelectionConfig(),
        limits=LimitsConfig(),
        update=UpdateConfig(),
        evaluation=config.evaluation if config.stopping.patience else EvaluationConfig(every=0),
        privacy=PrivacyConfig(),
        secure=SecureConfig(),
    )
    return rounds.run(grid_of([Seat(population.worker, hospital)]), Plan(settings, personal=False)).model


def _pool(parts: list[Records]) -> Mapping[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@dataclass(frozen=True)
class Comparator:
    """A way to train without a federation: what it is called while it runs, and the models that it gives the hospitals.

    They come one after another, as some hospitals' each time, so that ten thousand are never held at once.
    """

    stage: str
    train: Callable[[Population, RunConfig, Outcome], Iterator[Mapping[str, Model]]]


COMPARATORS = {
    "local": Comparator("each hospital alone", local_only),
    "central": Comparator("all patients in one place", centralised),
}
