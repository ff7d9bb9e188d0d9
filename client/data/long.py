"""A folder of tables: ``rows.csv``, one row a stay as any table has, and for a column of a series or of codes a long table of its name, such as ``events.csv``.

A line of a long table is one measurement (``stay,time,code,value``) or one code (``stay,time,code``; without ``time`` in the order of the file). Other suffixes that `client.data.tables`
reads do as well. All of a table is in memory while it is read: some 650 bytes a line.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.data import cells, tables, text
from client.data.report import Draft, Problem
from client.data.schema import DataMapping, Imported, fold, label_column
from common.errors import DataError
from common.tasks import series
from common.tasks.task import Array, Column, Task

ROWS = "rows"
SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet", ".pq")


@dataclass(frozen=True)
class Lines:
    """The lines of a long table that belong to a row: which row, from 0, where in the file, at which hour, and the cells with code and value."""

    file: str
    row: NDArray[np.int64]
    line: NDArray[np.int64]
    hour: NDArray[np.float64]
    code: Array
    value: Array

    def only(self, places: Array) -> "Lines":
        """Return some of them."""
        row, line, hour = self.row[places], self.line[places], self.hour[places]
        return Lines(self.file, row, line, hour, self.code[places], self.value[places])


def columns_of(task: Task) -> list[Column]:
    """Return the columns of the task, or its label, that may have a long table."""
    return [column for column in (*task.columns, label_column(task)) if column.kind in ("series", "codes")]


def read(source: Path, task: Task, mapping: DataMapping, draft: Draft) -> Imported:
    """Read a folder of tables; a list of codes may also stand in ``rows.csv``, in cells of one code a line.

    A bad line spoils the row that it belongs to. Measurements out of range are artefacts, which are left out and counted.
    """
    files = {column.name: path for column in columns_of(task) if (path := _found(source, column.name))}
    absent = [column.name for column in task.columns if column.kind == "series" and column.name not in files]
    rows = _found(source, ROWS)
    if rows is None or absent:
        wanted = ", ".join(f"{name}.csv" for name in (ROWS, *absent))
        raise DataError(f"expected a folder with {wanted}; docs/tasks.md shows the form")
    sheet = tables.sheet_of(rows, mapping, draft)
    known = tables.columns_in_file(task, mapping)
    key = next(
        (column for column in known if mapping.shown(column.name) == mapping.row), Column(mapping.row, "name", "")
    )
    inside = {column.name: column for column in [key, *known] if column.name not in files}
    places = tables.places_of(sheet, list(inside.values()), mapping, draft)
    given: dict[str, Array] = {}
    if not any(not problem.row for problem in draft.problems):
        numbers = _numbers(sheet.column(places[key.name]), mapping, draft)
        for column in (each for each in known if each.name in files):
            lines = _lines(files[column.name], column, numbers, mapping, draft)
            make = _series if column.kind == "series" else _codes
            given[column.name] = make(column, lines, len(sheet.rows), task, mapping, draft)
    return tables.finished(sheet, places, task, mapping, draft, **given)


def _found(folder: Path, name: str) -> Path | None:
    return next((path for suffix in SUFFIXES if (path := folder / f"{name}{suffix}").is_file()), None)


def _numbers(names: list[str], mapping: DataMapping, draft: Draft) -> dict[str, int]:
    """Return the row of each name."""
    numbers: dict[str, int] = {}
    missing = {fold(mark) for mark in mapping.missing}
    for position, name in enumerate(map(fold, names)):
        if name in missing:
            draft.cell("no name", "expected the name of the row", position, mapping.row)
        elif numbers.setdefault(name, position) != position:
            draft.cell("repeated name", "the name of a row before it stands here again", position, mapping.row)
    return numbers


def _lines(path: Path, column: Column, numbers: Mapping[str, int], mapping: DataMapping, draft: Draft) -> Lines:
    own = Draft(path.name)
    sheet = tables.sheet_of(path, mapping, own)
    header = {" ".join(name.split()).casefold() for name in sheet.header}
    names = [mapping.row, mapping.code, *([mapping.value] if column.kind == "series" else [])]
    names += [mapping.time] if column.kind == "series" or mapping.time.casefold() in header else []
    wanted = [Column(name, "code", "") for name in names]
    places = tables.places_of(sheet, wanted, replace(mapping, patient="", columns={}), own)
    for problem in own.problems:
        raise DataError(f"{path.name}: {problem}")
    row = np.array([numbers.get(fold(name), -1) for name in sheet.column(places[mapping.row])], np.int64)
    code = _texts(sheet.column(places[mapping.code]))
    if text.class_of_cells(code.tolist()) in ("CN-ID", "PHONE"):
        draft.whole("identifier", "holds identity or telephone numbers, not codes", f"{path.name} {mapping.code}")
    value = _texts(sheet.column(places[mapping.value])) if column.kind == "series" else code
    hours = (
        [_hour(cell, mapping) for cell in sheet.column(places[mapping.time])]
        if mapping.time in places
        else np.arange(len(row))
    )
    every = Lines(path.name, row, np.array(sheet.lines, np.int64), np.asarray(hours, np.float64), code, value)
    return _taken(every, len(numbers), mapping, draft)


def _taken(every: Lines, count: int, mapping: DataMapping, draft: Draft) -> Lines:
    """Leave out lines of rows that there are not, and take down those whose time cannot be read."""
    ours = every.row >= 0
    if not ours.any():
        draft.whole("no row", f"{every.file}: column {mapping.row!r} names no row of {ROWS}; are they written alike?")
    if not ours.all():
        draft.notes.append(f"{every.file}: {int((~ours).sum())} lines belong to no row of {ROWS}, and are left out")
    empty = count - len(np.unique(every.row[ours]))
    if empty:
        draft.notes.append(f"{every.file}: {empty} rows have no line")
    lines = every.only(ours)
    for place in np.flatnonzero(np.isnan(lines.hour)).tolist():
        _note(lines, place, mapping.time, "not a time", "expected hours since the stay began, as 7.5 or 07:30", draft)
    return lines


def _series(
    column: Column, lines: Lines, rows: int, _task: Task, mapping: DataMapping, draft: Draft
) -> NDArray[np.float32]:
    """Return the hourly grid of all variables."""
    shown = {fold(mapping.shown(variable.name)): place for place, variable in enumerate(column.variables)}
    variable = np.array([shown.get(fold(code), -1) for code in lines.code], np.int64)
    if others := int((variable < 0).sum()):
        draft.notes.append(f"{lines.file}: {others} lines measure what the task does not use, and are left out")
    values = np.full(len(variable), np.nan)
    for place, measured in enumerate(column.variables):
        at = np.flatnonzero(variable == place)
        values[at] = _measured(lines.only(at), measured, mapping, draft)
    used, (hours, width) = variable >= 0, column.shape
    return series.grid(lines.row[used], lines.hour[used], variable[used], values[used], (rows, hours, width))


def _measured(lines: Lines, variable: Column, mapping: DataMapping, draft: Draft) -> NDArray[np.float64]:
    """Return one variable's values in the task's unit."""
    own = Draft(lines.file, lines.line.tolist())
    values = cells.numbers(lines.value.tolist(), cells.place_of(variable, mapping), own)
    bad = [problem for problem in own.problems if problem.kind != "out of range"]
    for problem in bad:
        place = int(np.searchsorted(lines.line, problem.row))
        _note(lines, place, mapping.value, problem.kind, problem.expected, draft)
    if outside := len(own.problems) - len(bad):
        wanted = f"{variable.low:g} to {variable.high:g} {variable.unit}"
        draft.notes.append(
            f"{lines.file}: {outside} values of {variable.name!r} are not within {wanted}, and are left out"
        )
    draft.notes += own.notes
    return values


def _codes(column: Column, lines: Lines, rows: int, task: Task, mapping: DataMapping, draft: Draft) -> Array:
    """Return every row's codes in order of time, one a line; of equal times in the order of the file."""
    found: list[list[str]] = [[] for _ in range(rows)]
    for place in np.argsort(lines.hour, kind="stable").tolist():
        found[lines.row[place]].append(" ".join(lines.code[place].split()))
    joined = ["\n".join(each) for each in found]
    return cells.several(joined, cells.place_of(column, mapping), task, draft)


def _note(lines: Lines, place: int, column: str, kind: str, expected: str, draft: Draft) -> None:
    draft.line(Problem(kind, expected, int(lines.line[place]), f"{lines.file} {column}"), int(lines.row[place]))


def _texts(values: list[str]) -> Array:
    texts = np.empty(len(values), object)
    texts[:] = values
    return texts


def _hour(cell: str, mapping: DataMapping) -> float:
    """Return hours from a number of them or from ``hh:mm``; NaN where it is neither."""
    whole, colon, minutes = cell.strip().partition(":")
    if colon:
        return int(whole) + int(minutes) / 60 if whole.isdecimal() and minutes.isdecimal() else np.nan
    value = cells.number(cell, mapping.decimal)
    return np.nan if value is None else value
