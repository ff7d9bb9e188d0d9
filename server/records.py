"""What is kept of a run: who took part, what every round brought, and what the model is worth."""

import csv
import hashlib
import io
import json
import math
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common import balance
from common import network as networks
from common.errors import DataError
from common.layout import Vector
from common.tasks.task import Task
from server import models

RUN, MODEL, METRICS = "run.json", "model.keras", "metrics.csv"

Interval = list[float | None]
"""A value and the ends of its 95 % interval; None where it is undefined."""


def new_folder(parent: Path, task: str, mode: int = 0o777) -> Path:
    """Make and return the next free run folder, ``<task>-0001`` and so on; two runs that start at once get two.

    Raises
    ------
    DataError
        When it cannot be made.
    """
    try:
        parent.mkdir(mode=mode, parents=True, exist_ok=True)
        numbers = (path.name.rpartition("-")[2] for path in parent.glob(f"{task}-[0-9]*"))
        number = max((int(each) for each in numbers if each.isdigit()), default=0) + 1
        while True:
            folder = parent / f"{task}-{number:04d}"
            try:
                folder.mkdir(mode=mode)
            except FileExistsError:
                number += 1
                continue
            return folder
    except OSError as error:
        raise DataError(
            f"{parent}: cannot make a run folder ({error.strerror}); mend that, or choose another place, as simulate does with --out"
        ) from None


@dataclass(frozen=True)
class Model:
    """A trained model as it travels: shared weights, the preparation as text, and which parts each hospital has of its own.

    ``threshold`` is the score from which on it says class 1, of two; None where it says the more probable class.
    """

    weights: Vector
    preparation: str
    local_parts: tuple[str, ...] = ()
    threshold: float | None = None

    @property
    def base(self) -> dict[str, str] | None:
        """Return which file the frozen layers come from, its SHA-256 and what it was trained on; None where the task has none."""
        found: dict[str, str] | None = json.loads(self.preparation).get("base")
        return found

    @property
    def class_weights(self) -> list[float] | None:
        """Return how much a patient of each class counted in training; None where all counted alike."""
        found: list[float] | None = json.loads(self.preparation).get(balance.KEY)
        return found


@dataclass(frozen=True)
class Part:
    """One part of a hospital's patients: their count, in all and by class; ``classes`` is empty where that is not told."""

    rows: int
    classes: list[int]


@dataclass(frozen=True)
class Member:
    """A hospital of the federation and its counts."""

    name: str
    train: Part
    validation: Part
    test: Part


@dataclass(frozen=True)
class Dropped:
    """An update that was not used, and why: a short code, and a sentence."""

    hospital: str
    reason: str
    message: str


@dataclass(frozen=True)
class RoundRecord:
    """What one round brought. ``metrics`` judge the model that the round started from, over the test patients of the hospitals that answered; bytes count arrays.

    ``events`` are what hospitals released under differential privacy, as `common.privacy.events.to_text` writes it.
    """

    round: int
    asked: list[str]
    answered: list[str]
    dropped: list[Dropped]
    bytes_down: int
    bytes_up: int
    seconds: float
    examples: int
    train_loss: float | None
    validation_loss: float | None
    update_norm: float
    metrics: dict[str, float | None] = field(default_factory=dict)
    hospitals: dict[str, dict[str, float | None]] = field(default_factory=dict)
    events: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> "RoundRecord":
        """Read a record back from JSON."""
        return cls(**{**facts, "dropped": [Dropped(**row) for row in facts["dropped"]]})


@dataclass(frozen=True)
class Results:
    """Metrics of one model with intervals, over all test patients and by hospital, and what its curves need."""

    pooled: dict[str, Interval]
    hospitals: dict[str, dict[str, Interval]]
    curves: dict[str, Any]


def sha256(weights: Vector) -> str:
    """Return the SHA-256, in hex, of the weights as little-endian float32."""
    return hashlib.sha256(np.ascontiguousarray(weights, "<f4").tobytes()).hexdigest()


def finite(facts: Any) -> Any:
    """Return the same facts with None for every number that is not finite, for which JSON has no word."""
    if isinstance(facts, Mapping):
        return {key: finite(value) for key, value in facts.items()}
    if isinstance(facts, list | tuple):
        return [finite(value) for value in facts]
    return None if isinstance(facts, float) and not math.isfinite(facts) else facts


def write_json(path: Path, facts: dict[str, Any]) -> None:
    """Write facts as JSON, whole or not at all; a number that is not finite has no place in it."""
    models.write(path, json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False).encode())


def write_metrics(folder: Path, record: dict[str, Any]) -> None:
    """Write ``metrics.csv``: one row a round, hospital and metric; the hospital ``*`` is all together that answered in that round.

    Every row says in its last column whether the data are ``real`` or ``SYNTHETIC``. A column, because a comment above the table would be
    taken for its head by most readers, and because it stays with a row that is copied into another table.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["round", "hospital", "metric", "value", "data"])
    data = "SYNTHETIC" if record["synthetic"] else "real"
    for row in record["rounds"]:
        whole = {name: row[name] for name in ("train_loss", "validation_loss", "update_norm")} | row["metrics"]
        for hospital, metrics in {"*": whole, **row["hospitals"]}.items():
            known = ((name, value) for name, value in metrics.items() if value is not None)
            table.writerows([row["round"], hospital, name, value, data] for name, value in known)
    models.write(folder / METRICS, text.getvalue().encode())


def save_model(folder: Path, task: Task, seed: int, model: Model) -> None:
    """Write ``model.keras``, which needs Keras alone; what the federation agreed on before round 1 lies inside it as ``preparation.json``.

    Parts that stay at the hospitals are those of the first round, since nobody else has seen any other.
    """
    preparation = json.loads(model.preparation)
    network = networks.build(task, preparation, model.local_parts, seed)
    from common import layers  # it needs TensorFlow, which has started now

    network.assign(model.weights, network.vectors()[1])
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / MODEL
        layers.plain(network.model).save(path)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("preparation.json", model.preparation)
        models.write(folder / MODEL, path.read_bytes())
