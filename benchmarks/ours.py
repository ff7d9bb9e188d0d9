"""Ours: the product's own path (ServerApp, Grid, ClientApp, worker, checkpoints, report) over virtual hospitals that hold the measured work.

Usage::

    ours.py simulate WORK ROUNDS [--set KEY=VALUE]   the whole job, as ``fedward simulate`` does it
    ours.py empty WORK ROUNDS                        rounds whose hospitals change nothing
    ours.py empty-saved WORK ROUNDS                  the same, with the checkpoint that a job saves after every round

``--hospitals`` and ``--rows`` change the federation.

Prints the seconds at which each round ended, by the clock and of this process's processors.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).parent.parent))

import numpy as np
from work import WORKS, Work

from client.hospital import Hospital
from client.worker import State, Worker
from common import flower
from common.config import Choice, assign
from common.messages import STATISTICS, TRAIN, Reply, Request
from common.tasks import heart, task_of
from common.tasks.task import Records, take
from simulations import run, scenario, workers
from simulations.datasets import DATASETS
from simulations.datasets.dataset import Dataset, Table

TESTED = 8  # test patients of a hospital, judged once after the last round


def records(work: Work, hospital: int) -> Records:
    """Draw a hospital's raw rows: those to train on first, then those to test on."""
    generator = np.random.default_rng([8, hospital])
    count = work.rows_of(hospital) + TESTED
    if work.task == "pneumonia":
        pixels = generator.integers(0, 256, (count, *work.shape[:2]), dtype=np.uint8)
        return {"image": pixels, "label": generator.integers(0, 2, count)}
    columns = {
        column.name: generator.choice(column.codes, count)
        if column.codes
        else generator.uniform(column.low, column.high, count)
        for column in heart.COLUMNS
    }
    return columns | {"num": generator.integers(0, 2, count)}


def table(work: Work) -> Table:
    """Lay the rows of all hospitals one after another."""
    parts = [records(work, number) for number in range(work.hospitals)]
    counts = [work.rows_of(number) + TESTED for number in range(work.hospitals)]
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    test = np.concatenate([np.arange(count) >= count - TESTED for count in counts])
    names = np.repeat([f"hospital {number:05d}" for number in range(work.hospitals)], counts)
    label = whole["label" if work.task == "pneumonia" else "num"].astype(np.int64)
    classes = task_of(Choice(work.task)).classes
    return Table(whole, label, classes, hospital=names, test=test)


def dataset(work: Work) -> Dataset:
    """Return the work as a data set of the product."""
    rows = sum(work.rows_of(number) + TESTED for number in range(work.hospitals))
    named = {"origin": "generator", "licence": "none", "citation": "none"}
    return Dataset(
        f"benchmark-{work.name}",
        work.title,
        work.task,
        rows=rows,
        read=lambda _folder: table(work),
        synthetic=True,
        **named,
    )


def settings(work: Work, rounds: int) -> dict[str, Any]:
    """Return the scenario of the work: plain SGD and averaging, no augmentation, judged at the end only, no comparators."""
    training = {
        "optimizer": "sgd",
        "learning_rate": work.learning_rate,
        "weight_decay": 0.0,
        "batch_size": work.batch_size,
        "epochs": work.epochs,
        "augment": False,
    }
    return {
        "rounds": rounds,
        "task": {"name": work.task} | ({"width": work.width} if work.task == "pneumonia" else {}),
        "training": training,
        "selection": {"fraction": work.cohort / work.hospitals},
        "evaluation": {"every": 0},
        "simulation": {"dataset": f"benchmark-{work.name}", "partition": "natural", "comparators": False, "workers": 1},
    }


class Clock:
    """Notes the time at the end of every round."""

    def __init__(self) -> None:
        self.moments: list[float] = []
        self.cpu: list[float] = []

    def note(self, _record: object) -> None:
        """Note now."""
        self.moments.append(time.perf_counter())
        self.cpu.append(time.process_time())


def simulate(work: Work, rounds: int, over: Mapping[str, Any]) -> dict[str, Any]:
    """Run the whole job into a folder that is then thrown away."""
    # Worker processes need the data set too, which is none of the product's.
    workers.COMMAND = [sys.executable, __file__, "work", work.name, "0", "--socket"]
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        record = run.simulate(
            scenario.read(settings(work, rounds), over), Path(folder), "benchmark", run.Watcher(round=clock.note)
        )
    counted = [row["examples"] for row in record["rounds"]]
    return {
        "moments": clock.moments,
        "cpu": clock.cpu,
        "examples": counted,
        "parameters": record["parameters"],
        "seconds": record["seconds"],
        "peak_memory_mb": record["peak_memory_mb"],
    }


class Idle(Worker):
    """A worker that changes nothing: what remains of a round is the machinery."""

    def answer(self, kind: str, hospital: Hospital, request: Request, state: State) -> Reply:
        """Answer a training request with an update of zeros."""
        if kind == STATISTICS:
            return super().answer(kind, hospital, request, state)
        if kind != TRAIN:
            return Reply()
        zeros = np.zeros_like(request.arrays["weights"])
        return Reply({"values": zeros}, {"train/loss": np.zeros(2)}, num_examples=1)


def empty(work: Work, rounds: int, folder: Path | None) -> dict[str, Any]:
    """Run rounds through ServerApp, grid and ClientApp whose hospitals change nothing; with a folder, save a checkpoint every round."""
    from server.app import make_app
    from server.plan import Plan
    from simulations.engines import grid_of
    from simulations.hospitals import context, seat_for

    idle, clock = Idle(), Clock()
    parts = [records(work, number) for number in range(work.hospitals)]
    nobody = take(parts[0], np.zeros(0, np.int64))
    seats = [seat_for(idle, Hospital(f"{number:05d}", part, nobody, nobody)) for number, part in enumerate(parts)]
    plan = Plan(scenario.read(settings(work, rounds)).run)
    grid = grid_of(seats)
    with flower.identity(grid.run.run_id):
        make_app(plan, folder, lambda _outcome: None, clock.note)(grid, context(0, {}))
    return {"moments": clock.moments, "cpu": clock.cpu}


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("simulate", "empty", "empty-saved", "work"))
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("rounds", type=int)
    parser.add_argument("--hospitals", type=int)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--socket", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    flower.quiet()
    work = WORKS[args.work]
    work = replace(work, hospitals=args.hospitals or work.hospitals, rows=(args.rows,) if args.rows else work.rows)
    DATASETS[f"benchmark-{work.name}"] = dataset(work)
    if args.kind == "work":
        with suppress(EOFError, ConnectionError):
            workers.serve(Connection(args.socket))
        return
    if args.kind == "simulate":
        result = simulate(work, args.rounds, assign(args.set))
    else:
        with tempfile.TemporaryDirectory() as folder:
            result = empty(work, args.rounds, Path(folder) if args.kind == "empty-saved" else None)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
