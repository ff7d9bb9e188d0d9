"""Virtual hospitals: a data set dealt out by a partition, with the faults that a scenario declares."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial

import numpy as np
from flwr.app import Context, Error, Message, RecordDict

from client import private
from client.app import FAILED, Answer, Seat
from client.hospital import Hospital
from client.ledger import Ledger, Question
from client.secagg import Shield
from client.worker import Worker
from common import messages, wire
from common.errors import ConfigError, DataError
from common.seeds import seed_for
from common.tasks import task_of
from common.tasks.task import Array, rows_of, take
from simulations import own, partition, secagg
from simulations import scenario as scenarios
from simulations.datasets.dataset import Dataset, Table
from simulations.datasets.fetch import load
from simulations.scenario import FaultsConfig, Scenario

INTACT = FaultsConfig()
SCALE = -10.0
"""By what a hospital multiplies its updates that poisons the model (Bagdasaryan et al. 2020 scale theirs up alike)."""


def seat_for(
    worker: Worker, hospital: Hospital, faults: FaultsConfig = INTACT, seed: int = 0, shield: Shield | None = None
) -> Seat:
    """Return the seat of a virtual hospital, which fails as ``faults`` declare, with ``scaled_updates`` for this one; what happens follows from seed, hospital, round and attempt."""
    if faults == INTACT:
        return Seat(worker, hospital, shield=shield)

    def around(message: Message, answer: Answer) -> Message:
        if message.metadata.message_type != messages.TRAIN:
            return answer()
        config = message.content.config_records["config"]
        chance = np.random.default_rng(
            seed_for(seed, "faults", hospital.name, config["server-round"], config["attempt"])
        ).random(3)
        if chance[0] < faults.dropouts:
            return Message(Error(FAILED, "dropout"), reply_to=message)
        reply = answer()
        if chance[1] < faults.stragglers:
            return Message(Error(FAILED, "late"), reply_to=message)  # it has trained, and its own state has moved on
        if not reply.has_content():
            return reply
        if faults.scaled_updates:
            _change(reply, _scaled)
        if chance[2] < faults.nan_updates:
            _change(reply, _with_nan)
        return reply

    return Seat(worker, hospital, around, shield)


@dataclass(frozen=True)
class Population:
    """The virtual hospitals of a scenario, in the order of their names, all served by one worker. Under ``secret`` they agree on keys with each other."""

    dataset: Dataset
    table: Table
    hospitals: Sequence[Hospital]
    seats: Sequence[Seat]
    worker: Worker
    secret: bytes = field(repr=False)

    @property
    def names(self) -> list[str]:
        """Return the hospitals' names."""
        return [hospital.name for hospital in self.hospitals]


def populate(scenario: Scenario, secret: bytes | None = None) -> Population:
    """Read the data set and deal its patients to hospitals; without a ``secret`` a new one is drawn.

    Raises
    ------
    ConfigError
        When the data set serves another task or has other classes, or the partition leaves a hospital empty.
    DataError
        When the data set is not here, damaged, or has rows of one class alone.
    """
    settings, seed = scenario.simulation, scenario.run.seed
    task, dataset = task_of(scenario.run.task), scenarios.dataset_of(settings.dataset)
    if dataset.task and task.name not in (dataset.task, *dataset.also):
        raise ConfigError(
            f"simulation.dataset: {dataset.name!r} serves the task {dataset.task!r}, and the run learns {task.name!r}"
        )
    table = load(dataset) if dataset.task else own.table(settings.dataset, task)
    if table.classes != task.classes and len(task.classes) > 1:
        raise ConfigError(
            f"task.classes: {dataset.name!r} has the classes {','.join(table.classes)}, and the run learns {','.join(task.classes)}"
        )
    if len(task.classes) > 1 and len(np.unique(table.label)) < 2:
        only = table.classes[table.label[0]] if len(table) else "none"
        raise DataError(
            f"{dataset.name}: expected rows of two classes or more, and all {len(table)} are of one, {only!r}; there is nothing to tell apart"
        )
    dealt = partition.deal(
        table, settings.partition, settings.hospitals, np.random.default_rng(seed_for(seed, "partition"))
    )
    flipped = _some(dealt, settings.faults.label_flips, seed, "label flips")
    hospitals = [_hospital(name, dealt[name], table, scenario, flip=name in flipped) for name in sorted(dealt)]
    if not any(rows_of(hospital.test) for hospital in hospitals):
        raise ConfigError("simulation.test: no hospital has a test patient; take a larger share, or fewer hospitals")
    worker, secret = Worker(), secret or os.urandom(32)
    seats = seats_of(hospitals, worker, secret, settings.faults, seed)
    return Population(dataset, table, hospitals, seats, worker, secret)


def seats_of(
    hospitals: Sequence[Hospital], worker: Worker, secret: bytes, faults: FaultsConfig = INTACT, seed: int = 0
) -> list[Seat]:
    """Return the seats of virtual hospitals that share a worker and, under ``secret``, agree on keys with each other."""
    names = [hospital.name for hospital in hospitals]
    shields, scaled = secagg.shields(names, secret), _some(names, faults.scaled_updates, seed, "scaled updates")
    return [
        seat_for(
            worker,
            hospital,
            replace(faults, scaled_updates=float(hospital.name in scaled)),
            seed,
            replace(shield, noise=partial(private.shared_noise, hospital)),
        )
        for hospital, shield in zip(hospitals, shields, strict=True)
    ]


def _hospital(name: str, rows: Array, table: Table, scenario: Scenario, *, flip: bool) -> Hospital:
    """Split one hospital's patients into training, validation and test."""
    seed = scenario.run.seed
    test = (
        table.test[rows]
        if table.test is not None
        else _drawn(table, rows, scenario.simulation.test, seed_for(seed, "test", name))
    )
    rest, tested = rows[~test], rows[test]
    validation = _drawn(table, rest, scenario.run.evaluation.validation, seed_for(seed, "validation", name))
    label = task_of(scenario.run.task).label
    train = take(table.records, rest[~validation])
    if flip:
        train[label] = _turned(table, rest[~validation], label)
    trained, ledger = rest[~validation], Ledger(key=lambda question: noise_key(seed, name, question))
    parts = train, take(table.records, rest[validation]), take(table.records, tested)
    return Hospital(name, *parts, None if table.patient is None else table.patient[trained], ledger)


def noise_key(seed: int, name: str, question: Question) -> bytes:
    """Make the key of a virtual hospital's noise: it follows from the seed, so that a run can be repeated, and protects nobody."""
    return seed_for(seed, "noise", name, question.identity).generate_state(8).tobytes()


def _drawn(table: Table, rows: Array, share: float, seed: np.random.SeedSequence) -> Array:
    if not share:
        return np.zeros(len(rows), bool)
    drawn: Array = partition.split(table.label[rows], table.whose[rows], share, np.random.default_rng(seed))
    return drawn


def _some(names: Iterable[str], share: float, seed: int, fault: str) -> set[str]:
    generator, ordered = np.random.default_rng(seed_for(seed, fault)), sorted(names)
    return set(generator.permutation(ordered)[: round(share * len(ordered))])


def _turned(table: Table, rows: Array, label: str) -> Array:
    """Return labels with the order of the classes turned round, in the data's own coding."""
    column = np.asarray(table.records[label])
    first = np.array([column[np.argmax(table.label == number)] for number in range(len(table.classes))])
    turned: Array = first[len(table.classes) - 1 - table.label[rows]]
    return turned


def _change(reply: Message, change: Callable[[messages.Arrays], messages.Arrays]) -> None:
    reply.content["arrays"] = wire.to_record(change(wire.from_record(reply.content.array_records["arrays"])))


def _with_nan(arrays: messages.Arrays) -> messages.Arrays:
    name, values = next((name, values) for name, values in arrays.items() if values.dtype.kind == "f")
    broken = values.copy()
    broken[0] = np.nan
    return {**arrays, name: broken}


def _scaled(arrays: messages.Arrays) -> messages.Arrays:
    """Turn an update round, as float arrays hold it; a masked one holds none, and is sent as it is."""
    return {
        name: values * values.dtype.type(SCALE) if values.dtype.kind == "f" else values
        for name, values in arrays.items()
    }


def context(node: int, node_config: Mapping[str, int]) -> Context:
    """Return a Flower context as Flower's own simulation makes them."""
    return Context(run_id=1, node_id=node, node_config=dict(node_config), state=RecordDict(), run_config={})


def contexts(count: int) -> dict[int, Context]:
    """Return the contexts of ``count`` nodes, by node number from 1."""
    return {
        number + 1: context(number + 1, {"partition-id": number, "num-partitions": count}) for number in range(count)
    }


def seat_of(text: str, context: Context, secret: bytes | None = None) -> Seat:
    """Find the seat of a node that Flower's simulation runtime started, in whatever process; a process reads the data once. ``secret`` is the run's, where its processes share one.

    Raises
    ------
    ConfigError
        When the federation has fewer nodes than the scenario ``text`` has hospitals, or this node is one too many.
    """
    seats = population_of(text, secret).seats
    node, nodes = (int(context.node_config[key]) for key in ("partition-id", "num-partitions"))
    if nodes < len(seats) or node >= len(seats):
        raise ConfigError(f"node {node} of {nodes} has no part in a scenario of {len(seats)} hospitals")
    return seats[node]


@lru_cache(maxsize=2)
def population_of(text: str, secret: bytes | None = None) -> Population:
    """Return the population of a scenario given as text or by name, the same one for the same text and secret."""
    return populate(scenarios.read(scenarios.tables_of(text)), secret)
