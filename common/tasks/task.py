"""The Task: what is learnt, as a frozen dataclass of functions.

A task is described without TensorFlow; only ``build``, ``augment`` and the objective's ``loss`` import it, when they are called.
The walk of a record: ``summarise`` (at each hospital) -> sum -> ``fit`` (at the coordinator) -> ``encode`` (at each hospital) -> the model
that ``build`` makes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from common.privacy.noise import Noise
from common.statistics import Statistics
from common.tasks.learner import Learner
from common.tasks.objective import Objective

Array = NDArray[Any]
Records = Mapping[str, Array]
"""Raw rows by column: one array a column, all of the same length. Missing numbers are NaN."""
Preparation = Mapping[str, Any]
"""What the federation agreed on before round 1 (moments, vocabulary), as JSON values; kept with the model."""


@dataclass(frozen=True)
class Column:
    """One column of the raw data. ``codes`` are the allowed values of a category; a ``code`` is a text of a list that nobody knows beforehand, empty where missing, and a cell of the kind ``codes`` has one a line; a ``name`` is how the hospital itself names the row, which is kept as a keyed hash; ``missing`` are numbers that mean 'not measured'; ``letters`` those that a sequence may have; of a ``required`` number none may be missing."""

    name: str
    kind: Literal["number", "category", "code", "codes", "image", "name", "series", "sequence", "text"]
    meaning: str
    unit: str = ""
    low: float = float("-inf")
    high: float = float("inf")
    codes: tuple[float, ...] = ()
    missing: tuple[float, ...] = ()
    shape: tuple[int, ...] = ()
    letters: str = ""
    variables: tuple["Column", ...] = ()
    required: bool = False


@dataclass(frozen=True)
class Examples:
    """Encoded rows: ``x`` of shape ``(n, ...)``; labels ``y`` as the task's objective takes them, class numbers ``(n,)`` from 0 where it sorts into classes."""

    x: Array
    y: Array

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, eq=False)
class Task:
    """What is learnt: schema, federated preprocessing, encoding, model and metrics.

    ``parts`` names groups of variables by the start of their path (``head``, ``normalisation``, ``intercept``), so that a strategy can keep
    one at the hospital. ``local`` are the parts that the task itself keeps there, ``rates`` factors on the step size of parts, which do not move at all in the first ``resting`` rounds. ``defaults`` are run settings that suit the task,
    laid under what the user sets. ``classify`` gives the class numbers of rows, from 0, by which patients are counted and split; a task without classes names one that holds all. ``xla`` says that the compiled local epoch is faster under XLA (measured by ``benchmarks/compilers.py``).
    ``noised`` gives the statistics with enough `Noise` for one row, and may drop what drowns in it; a task without it tells nothing of a hospital under differential privacy,
    and ``fit`` has to do with zeros. ``amount`` describes the label where it is no class: a number, or codes. ``united`` makes one row of all rows of a patient, by whose they are, for sums that count patients. ``remarks`` says, before training, what of the preparation somebody should look at. ``summary`` says in words what ``summarise`` tells of a hospital's patients, for the privacy statement of a run.
    ``learner`` fits the model by sums over patients instead of by gradients at each hospital.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    label: str
    classes: tuple[str, ...]
    objective: Objective
    summarise: Callable[[Records], Statistics]
    fit: Callable[[Statistics], Preparation]
    encode: Callable[[Records, Preparation], Examples]
    classify: Callable[[Records], NDArray[np.int32]]
    build: Callable[[Preparation], Any]
    augment: Callable[[Any, Any], Any] | None = None
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    local: tuple[str, ...] = ()
    rates: Mapping[str, float] = field(default_factory=dict)
    resting: int = 0
    defaults: Mapping[str, Any] = field(default_factory=dict)
    xla: bool = False
    noised: Callable[[Statistics, Noise], Statistics] | None = None
    remarks: Callable[[Preparation], list[str]] | None = None
    united: Callable[[Records, Array], Records] | None = None
    amount: Column | None = None
    summary: str = "count, sum and sum of squares of every feature"
    learner: Learner | None = None

    def sums_of(self, records: Records, patients: Array | None) -> Statistics:
        """Return what `summarise` gives of a hospital's rows, those of one patient united where the task wants that and ``patients`` ``(n,)`` says whose they are."""
        if self.united is None or patients is None:
            return self.summarise(records)
        return self.summarise(self.united(records, patients))

    def prefixes(self, parts: tuple[str, ...]) -> tuple[str, ...]:
        """Return the path prefixes of the variables in the parts named."""
        return tuple(prefix for part in dict.fromkeys(parts) for prefix in self.parts.get(part, ()))


def rows_of(records: Records) -> int:
    """Return the count of rows."""
    return len(next(iter(records.values())))


def take(records: Records, rows: Array) -> dict[str, Array]:
    """Return the named rows of every column, in that order."""
    return {name: column[rows] for name, column in records.items()}


def told(records: Records, column: str) -> Array:
    """Return a column, or zeros where the records do not have it: what is predicted is not known yet of every row."""
    return np.asarray(records.get(column, np.zeros(rows_of(records))))


def one_class(records: Records) -> NDArray[np.int32]:
    """Return 0 for every row: all are in one class."""
    return np.zeros(rows_of(records), np.int32)
