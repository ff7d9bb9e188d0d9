"""Shadow models: federations like the target's, with the patients of every hospital dealt anew; on a process for each core where that pays."""

import logging
import queue
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection

import numpy as np
from flwr.app import Context, Message
from numpy.typing import NDArray

from client.app import Node
from client.hospital import Hospital
from client.ledger import Ledger
from client.worker import Worker
from common import flower
from common.config import RunConfig
from common.errors import FedwardError
from common.layout import Vector
from common.messages import STATISTICS
from common.seeds import seed_for
from common.tasks.task import Records, rows_of, take
from simulations import scenario as scenarios
from simulations import workers
from simulations.attacks import attack
from simulations.attacks.attack import Target
from simulations.hospitals import noise_key, population_of, seats_of

Flags = NDArray[np.bool_]
Shadow = tuple[Vector, Flags]
"""The final weights of a federation, and who was trained on: all patients of the first hospital, then of the next."""
_log = logging.getLogger(__name__)
COMMAND = [sys.executable, "-c", "import sys; from simulations.attacks import shadows; shadows.main(int(sys.argv[1]))"]


def dealable(hospitals: Sequence[Hospital]) -> bool:
    """Tell whether rows can be dealt anew as patients: where some have several rows, those would stand on both sides, and say so in a warning."""
    alone = all(each.patients is None or len(np.unique(each.patients)) == len(each.patients) for each in hospitals)
    if not alone:
        _log.warning(
            "shadow models are not trained: some patients have several rows, and whose those of testing are is not known here"
        )
    return alone


def shadows(target: Target) -> Iterator[Shadow]:
    """Yield as many shadows as the target says, in their order; which process trains one changes none of its bits."""
    begun, scenario, population = time.monotonic(), target.scenario, target.population
    for number in range(target.shadows):
        yield _shadow(scenario.run, population.hospitals, target.worker, population.secret, number)
        rest = range(number + 1, target.shadows)
        left = (time.monotonic() - begun) / (number + 1) * len(rest)
        if workers.cores() > 1 and left > workers.WORTH_SECONDS:
            yield from _elsewhere(scenario.text(), population.secret, rest)
            return


def _shadow(run: RunConfig, originals: Sequence[Hospital], worker: Worker, secret: bytes, number: int) -> Shadow:
    """Train one shadow, by the functions that the worker has compiled."""
    dealt = [_dealt(hospital, run.seed, number) for hospital in originals]
    hospitals = [hospital for hospital, _ in dealt]
    first, again = (seats_of(each, worker, secret) for each in (originals, hospitals))
    nodes = [partial(_prepared, original, seat) for original, seat in zip(first, again, strict=True)]
    weights = attack.train(run, nodes).model.weights
    for hospital in hospitals:
        worker.forget(hospital)
    return weights, np.concatenate([inside for _, inside in dealt])


def _prepared(original: Node, shadow: Node, message: Message, context: Context) -> Message:
    """Prepare the data as the target's are, which everybody knows: so the models are the same to the compiler."""
    return (original if message.metadata.message_type == STATISTICS else shadow)(message, context)


def _dealt(hospital: Hospital, seed: int, number: int) -> tuple[Hospital, Flags]:
    """Draw anew which of a hospital's patients are trained on, as many as before."""
    name, rows, count = hospital.name, joined([hospital.train, hospital.test]), rows_of(hospital.train)
    order = np.random.default_rng(seed_for(seed, "shadow", number, name)).permutation(size_of(hospital))
    inside = np.zeros(size_of(hospital), np.bool_)
    inside[order[:count]] = True
    train, test = (take(rows, np.flatnonzero(part)) for part in (inside, ~inside))
    ledger = Ledger(key=lambda question: noise_key(seed, f"{name} in shadow {number}", question))
    return replace(hospital, train=train, test=test, patients=np.arange(count), ledger=ledger), inside


def size_of(hospital: Hospital) -> int:
    """Return how many patients a hospital has, trained on or not."""
    return rows_of(hospital.train) + rows_of(hospital.test)


def joined(parts: list[Records]) -> Records:
    """Return the rows of several tables as one."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


# --- on several processes -----------------------------------------------------------------------------------------------


def _elsewhere(scenario: str, secret: bytes, numbers: Sequence[int]) -> Iterator[Shadow]:
    count = min(workers.cores(), len(numbers))
    with ThreadPoolExecutor(count) as threads, _processes(count, scenario, secret) as idle:
        yield from threads.map(partial(_asked, idle), numbers)


@contextmanager
def _processes(count: int, scenario: str, secret: bytes) -> Iterator["queue.SimpleQueue[Connection]"]:
    """Start processes; what is given holds the ways to those that are idle."""
    idle: queue.SimpleQueue[Connection] = queue.SimpleQueue()
    started: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            process, connection = workers.start(COMMAND, scenario, secret)
            started.append(process)
            idle.put(connection)
        yield idle
    finally:
        for process in started:
            process.kill()
            process.wait()


def _asked(idle: "queue.SimpleQueue[Connection]", number: int) -> Shadow:
    connection = idle.get()
    try:
        connection.send_bytes(number.to_bytes(8, "big"))
        return np.frombuffer(connection.recv_bytes(), np.float32), np.frombuffer(connection.recv_bytes(), np.bool_)
    except (EOFError, OSError):
        raise FedwardError(workers.ENDED) from None
    finally:
        idle.put(connection)


def serve(connection: Connection) -> None:
    """Train the shadows that are asked for, until the other end closes."""
    scenario, secret = connection.recv_bytes().decode(), connection.recv_bytes()
    population = population_of(scenario, secret)
    run = scenarios.read(scenarios.tables_of(scenario)).run
    while True:
        weights, inside = _shadow(
            run, population.hospitals, population.worker, secret, int.from_bytes(connection.recv_bytes(), "big")
        )
        connection.send_bytes(weights.tobytes())
        connection.send_bytes(inside.tobytes())


def main(descriptor: int) -> None:
    """Serve in a process of its own, over the socket of this number."""
    flower.quiet()
    with suppress(EOFError, KeyboardInterrupt, ConnectionError):
        serve(Connection(descriptor))
