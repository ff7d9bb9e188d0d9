"""What a federated model is measured against: each hospital alone, and all patients in one place.

Both are federations of one hospital, run by the same code: same model, same training settings, and as many gradient steps on each patient as the
federated run took.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from client.app import Seat
from client.hospital import Hospital
from common.config import (
    Choice,
    EvaluationConfig,
    LimitsConfig,
    RunConfig,
    SelectionConfig,
    StoppingConfig,
    UpdateConfig,
)
from common.tasks.task import Records, rows_of
from server import rounds
from server.rounds import Outcome, Plan
from simulations.engines import grid_of
from simulations.hospitals import Population


def local_only(population: Population, config: RunConfig, federated: Outcome) -> dict[str, Outcome]:
    """Train every hospital alone, for as many rounds as its updates were used."""
    took_part = dict.fromkeys(population.names, 0)
    for record in federated.rounds:
        for name in record.answered:
            took_part[name] += 1
    return {
        hospital.name: _alone(population, hospital, config, took_part[hospital.name])
        for hospital in population.hospitals
        if took_part[hospital.name]
    }


def centralised(population: Population, config: RunConfig, federated: Outcome) -> Outcome:
    """Train on all patients in one place, until they have been seen as often as in the federated run."""
    pooled = Hospital(
        "all", *(_pool([getattr(h, part) for h in population.hospitals]) for part in ("train", "validation", "test"))
    )
    seen = sum(record.examples for record in federated.rounds)
    return _alone(population, pooled, config, max(1, round(seen / rows_of(pooled.train))))


def _alone(population: Population, hospital: Hospital, config: RunConfig, number: int) -> Outcome:
    """Run a federation of one. Nothing is lost by sending, kept back or drawn; a limit on updates has no one to guard against."""
    settings = replace(
        config,
        rounds=number,
        strategy=Choice("fedavg"),
        selection=SelectionConfig(),
        limits=LimitsConfig(),
        update=UpdateConfig(),
        evaluation=EvaluationConfig(every=0),
        stopping=StoppingConfig(),
    )
    return rounds.run(grid_of([Seat(population.worker, hospital)]), Plan(settings, personal=False))


def _pool(parts: list[Records]) -> Mapping[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
