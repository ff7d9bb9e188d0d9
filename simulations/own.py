"""A user's own task and data: ``fedward simulate ./my_task.py:task --data my.csv``, without touching the package.

A task's file is code of whoever starts the simulation, and is run as he is. Only a simulation reads one: a hospital's tasks are those of its own installation.
"""

import hashlib
import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from client.data import reading, schema, tables
from client.data.report import Draft
from client.data.schema import DataMapping
from common.config import loads
from common.errors import DataError, UsageError
from common.tasks import TASKS, Recipe
from common.tasks.task import Column, Task
from simulations.datasets.dataset import Dataset, File, Table

SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet", ".pq")
HOSPITAL, PATIENT = "hospital", "patient"
"""Columns of the file that say whose row it is, where they are there."""


def is_task(name: str) -> bool:
    """Tell whether a task is named by a file, as ``FILE.py:NAME``.

    >>> is_task("./my_task.py:task"), is_task("heart")
    (True, False)
    """
    return name.rpartition(":")[0].endswith(".py")


def is_data(name: str) -> bool:
    """Tell whether a data set is named by a file or folder.

    >>> is_data("my.csv"), is_data("./pictures/"), is_data("heart")
    (True, True, False)
    """
    return name.endswith(SUFFIXES) or "/" in name or "\\" in name


def add_task(name: str) -> None:
    """Run a task's file and put what it calls by that name among the tasks of this process: a class of settings with ``build``, or a `Task`.

    Raises
    ------
    UsageError
        Where the file is not there, does not run, or holds no such task.
    """
    path, _, word = name.rpartition(":")
    if name in TASKS:
        return
    found = getattr(_module(Path(path)), word, None)
    if isinstance(found, Task):
        found = _fixed(found)
    if not (isinstance(found, type) and hasattr(found, "build")):
        raise UsageError(f"{name}: expected a Task, or a class of settings with build, under the name {word!r}")
    TASKS[name] = cast("type[Recipe]", found)


def dataset_of(name: str) -> Dataset:
    """Return a file or folder as a data set; `table` reads it. Raise `UsageError` where it is not there."""
    path = Path(name)
    if not path.exists():
        raise UsageError(f"{name}: no such file or folder; --data takes a table (.csv, .tsv, .parquet) or a folder")
    files = (File(path.name, path.stat().st_size, (f"sha256:{_sha256(path)}",)),) if path.is_file() else ()
    return Dataset(name, path.name, "", "the user's own file", "the user's", "none", 0, _unread, files=files)


def table(name: str, task: Task) -> Table:
    """Read a file or folder by the task's columns, as a hospital imports its own.

    ``NAME.toml`` beside it may hold a section ``[data]``, as a hospital's ``site.toml``. A column ``patient`` (or the one named there) keeps a patient's rows together,
    a column ``hospital`` deals them to hospitals.

    Raises
    ------
    DataError
        For a file that is refused; the message names row and column, never the value.
    """
    path = Path(name)
    mapping = _mapping(path, task)
    hospital = Column(HOSPITAL, "code", "the hospital")
    try:
        header = _header(path, mapping)
        if not mapping.patient and PATIENT in header:
            mapping = replace(mapping, patient=PATIENT)
        wide = replace(task, columns=(*task.columns, hospital)) if HOSPITAL in header else task
        read = reading.read(path, wide, mapping)
        read.report.check()
    except DataError as error:
        raise error if path.name in str(error) else DataError(f"{path}: {error}") from None
    records = dict(read.records or {})
    hospitals = records.pop(HOSPITAL, None)
    if hospitals is not None and not all(hospitals):
        raise DataError(
            f"{path.name}: row {_first_empty(hospitals)}, column {HOSPITAL!r}: expected the hospital's name"
        )
    named = None if hospitals is None else hospitals.astype(str)
    return Table(
        records, task.classify(records).astype(np.int64), task.classes, read.patients, named, target=task.label
    )


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UsageError(f"{path}: no such file; a task is named as FILE.py:NAME, for example ./my_task.py:task")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's own code may raise anything, and the line it is told in says what
        raise UsageError(f"{path}: does not run: {type(error).__name__}: {error}") from error
    return module


def _fixed(task: Task) -> type:
    """Return a class of no settings that builds this task."""

    @dataclass(frozen=True)
    class Fixed:
        """The user's task, which has no settings."""

        def build(self) -> Task:
            return task

    return Fixed


def _mapping(path: Path, task: Task) -> DataMapping:
    beside = path.with_name(path.name.partition(".")[0] + ".toml")
    if not beside.is_file():
        return DataMapping()
    return schema.mapping_of(loads(beside.read_text(encoding="utf-8"), str(beside)).get("data", {}), task)


def _header(path: Path, mapping: DataMapping) -> list[str]:
    return [] if path.is_dir() else tables.sheet_of(path, mapping, Draft(path.name)).header


def _first_empty(names: Any) -> int:
    return int(np.argmin([bool(name) for name in names])) + 2


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unread(_folder: Path) -> Table:
    raise DataError("a user's own file is read by its task's columns")
