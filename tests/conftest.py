"""What all tests share: no network but loopback, a quiet TensorFlow, and a tiny federation in memory."""

import os
import signal

from common import flower

# All count only before the first import of what they keep quiet.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# As `backend.start` has it, for test modules that import Keras before that is called: with more threads, the order of sums depends on who else uses the machine.
os.environ |= {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "TF_ENABLE_ONEDNN_OPTS": "1"}
flower.quiet()
# A shell's background jobs ignore Ctrl-C, and so would the programs that tests start and stop by it.
signal.signal(signal.SIGINT, signal.default_int_handler)

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from flwr.app import Message
from pytest_socket import socket_allow_hosts

import fedward
from client.app import Answer, Seat, plainly
from client.hospital import Hospital
from client.worker import Worker
from common.config import RunConfig, merge
from common.tasks import read_run
from common.tasks.heart import COLUMNS
from common.tasks.task import Records
from server.plan import Plan

# How long an example takes says more about who else is using the machine than about the code.
hypothesis.settings.register_profile("shared machine", deadline=None)
hypothesis.settings.load_profile("shared machine")

NAMES = ("east", "north", "south", "west")


@pytest.fixture(autouse=True)
def _no_network() -> None:
    """Let no test reach further than this computer."""
    socket_allow_hosts(["127.0.0.1", "::1"], allow_unix_socket=True)


def patients(rows: int, seed: int) -> Records:
    """Make up patients in the heart data's columns, a tenth of the cells missing, ill when exercise and vessels say so."""
    draw = np.random.default_rng(seed)
    records = {}
    for column in COLUMNS:
        low, high = max(column.low, -1e3), min(column.high, 1e3)
        values = draw.choice(column.codes, rows) if column.codes else draw.uniform(low, high, rows).round(1)
        records[column.name] = np.where(draw.random(rows) < 0.1, np.nan, values)
    score = np.nan_to_num(records["exang"]) + np.nan_to_num(records["ca"]) - 1.5 + draw.normal(0, 0.5, rows)
    records["num"] = np.where(score > 0, draw.integers(1, 5, rows), 0).astype(np.float64)
    return records


Script = Callable[[Message, Answer], Message]
"""From a request and the way to its honest answer to the answer that is sent."""


@dataclass(frozen=True)
class Federation:
    """Four tiny hospitals with heart patients, on one worker; ``run`` plays a whole run over them."""

    worker: Worker
    hospitals: Sequence[Hospital]
    base: dict[str, Any] = field(
        default_factory=lambda: {
            "task": {"name": "heart", "hidden": 4},
            "rounds": 3,
            "training": {"batch_size": 8, "epochs": 1, "compile": "graph"},
            "limits": {"deadline_seconds": 30, "quorum": 0.25, "retries": 0},
        }
    )

    def config(self, settings: dict[str, Any] | None = None) -> RunConfig:
        return read_run(merge(self.base, settings or {}))

    def seats(self, scripts: dict[str, Script] | None = None) -> list[Seat]:
        from simulations import secagg

        scripts = scripts or {}
        shields = secagg.shields([hospital.name for hospital in self.hospitals], bytes(32))
        return [
            Seat(self.worker, hospital, scripts.get(hospital.name, plainly), shield)
            for hospital, shield in zip(self.hospitals, shields, strict=True)
        ]

    def grid(self, scripts: dict[str, Script] | None = None) -> Any:
        from simulations.engines import grid_of

        return grid_of(self.seats(scripts))

    def run(
        self,
        settings: dict[str, Any] | None = None,
        scripts: dict[str, Script] | None = None,
        *,
        grid: Any = None,
        folder: Path | None = None,
        watch: Any = None,
    ) -> Any:
        from server import rounds

        grid = grid or self.grid(scripts)
        with flower.identity(grid.run.run_id):
            return rounds.run(grid, Plan(self.config(settings)), folder, watch)

    def without(self, *names: str) -> "Federation":
        return replace(self, hospitals=[hospital for hospital in self.hospitals if hospital.name not in names])


def make_hospital(name: str, rows: int, seed: int) -> Hospital:
    return Hospital(name, patients(rows, seed), patients(8, seed + 100), patients(12, seed + 200))


@pytest.fixture(scope="session")
def federation() -> Federation:
    """A federation whose worker, with all that it has compiled, serves the whole session."""
    hospitals = [
        make_hospital(name, rows, seed) for seed, (name, rows) in enumerate(zip(NAMES, (21, 9, 40, 16), strict=True))
    ]
    return Federation(Worker(), hospitals)


@pytest.fixture(scope="session")
def make_patients() -> Callable[[int, int], Records]:
    return patients


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that works; return what it printed."""

    def ran(*words: object) -> str:
        code = fedward.main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert (code, err) == (0, "")
        return out

    return ran


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run a command that is refused; return the exit code and the one line."""

    def ran(*words: object) -> tuple[int, str]:
        code = fedward.main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("fedward: "), err
        assert err.count("\n") == 1, err
        assert "Traceback" not in err
        return code, err

    return ran
