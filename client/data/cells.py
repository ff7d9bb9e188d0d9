"""From a column's cells, as text, to its values by the task's schema; every bad cell is taken down without what it holds."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from client.data import units
from client.data.report import Draft
from client.data.schema import ColumnMapping, DataMapping, codes_of, fold
from common.tasks.task import Array, Column, Task

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?", re.ASCII)


@dataclass(frozen=True)
class Place:
    """A column of the task and how the hospital's file writes it: under which name, with which decimal mark and marks for 'missing'."""

    column: Column
    how: ColumnMapping
    shown: str
    decimal: str
    missing: frozenset[str]


def place_of(column: Column, mapping: DataMapping) -> Place:
    """Return where and how the file writes a column of the task."""
    how = mapping.of(column.name)
    marks = frozenset(fold(mark) for mark in (*mapping.missing, *how.missing))
    return Place(column, how, mapping.shown(column.name), how.decimal or mapping.decimal, marks)


def number(cell: str, decimal: str = ".") -> float | None:
    """Return the number in a cell, None where there is none. Digit groups, infinities and the other decimal mark are no numbers.

    >>> number(" 1,5 ", ","), number("1,5"), number("１２"), number("1e400")
    (1.5, None, 12.0, None)
    """
    plain = unicodedata.normalize("NFKC", cell).strip().replace("\N{MINUS SIGN}", "-")
    if decimal == ",":
        plain = "x" if "." in plain else plain.replace(",", ".")
    if not _NUMBER.fullmatch(plain):
        return None
    value = float(plain)
    return value if np.isfinite(value) else None


def numbers(cells: Sequence[str], place: Place, draft: Draft) -> NDArray[np.float64]:
    """Return a number column in the task's unit; missing and bad cells are NaN."""
    values = np.full(len(cells), np.nan)
    mark = "" if place.decimal == "." else " with a decimal comma"
    for position, cell in enumerate(cells):
        if fold(cell) in place.missing:
            continue
        value = number(cell, place.decimal)
        if value is None:
            draft.cell("not a number", f"expected a number{mark}, or nothing", position, place.shown)
        else:
            values[position] = value
    # 'Not measured' is written in the file's own unit.
    values[np.isin(values, place.column.missing)] = np.nan
    raw = values
    values = units.convert(raw, place.column, place.how.unit, place.how.substance)
    return in_range(values, raw, place, draft)


def in_range(values: NDArray[np.float64], raw: NDArray[np.float64], place: Place, draft: Draft) -> NDArray[np.float64]:
    """Take down values outside the task's range and put NaN for them; where most are, say which unit would fit."""
    column = place.column
    # A conversion may move a value by its last bit.
    slack = 1e-9 * np.maximum(np.abs(values), 1.0)
    outside = (values < column.low - slack) | (values > column.high + slack)
    converted = f" (converted from {place.how.unit})" if place.how.unit else ""
    expected = f"expected {column.low:g} to {column.high:g} {column.unit}{converted}"
    for position in np.flatnonzero(outside).tolist():
        draft.cell("out of range", expected, position, place.shown)
    known = ~np.isnan(values)
    if outside.sum() * 2 > known.sum() and not place.how.date:
        fitting = " or ".join(units.fitting(raw[known], column, place.how.substance))
        hint = f"; in {fitting} they would fit: set unit of [data.columns.{column.name}]" if fitting else ""
        draft.notes.append(f"column {place.shown!r}: most values are out of range{hint}")
    return np.where(outside, np.nan, values)


def categories(cells: Sequence[str], place: Place, task: Task, draft: Draft) -> NDArray[np.float64]:
    """Return a category column, or the label, as the task's codes; missing and bad cells are NaN. A missing label is a problem."""
    known = codes_of(task, place.column, place.how.codes)
    by_number = {value: code for key, code in known.items() if (value := number(key)) is not None}
    required = place.column.name == task.label
    expected = f"expected one of {', '.join(known)}{'' if required else ', or nothing'}"
    values = np.full(len(cells), np.nan)
    for position, cell in enumerate(cells):
        folded = fold(cell)
        value = number(folded, place.decimal)
        if folded in known:
            values[position] = known[folded]
        elif folded in place.missing:
            if required:
                draft.cell("missing label", expected, position, place.shown)
        elif value in by_number:
            values[position] = by_number[value]
        else:
            draft.cell("unknown code", expected, position, place.shown)
    return values


def texts(cells: Sequence[str], place: Place, draft: Draft) -> Array:
    """Return a text column, outer spaces stripped; an empty text is a problem."""
    values = np.full(len(cells), "", object)
    for position, cell in enumerate(cells):
        if fold(cell) in place.missing:
            draft.cell("no text", "expected a text", position, place.shown)
        else:
            values[position] = cell.strip()
    return values


def sequences(cells: Sequence[str], place: Place, draft: Draft) -> Array:
    """Return a column of sequences in capitals; an empty one is a problem, and so is a letter that the task's alphabet does not have, named by its position."""
    values = texts(cells, place, draft)
    allowed = frozenset(place.column.letters)
    for position, sequence in enumerate(values):
        values[position] = sequence.upper()
        wrong = next((at for at, letter in enumerate(values[position], 1) if letter not in allowed), 0)
        if wrong:
            expected = f"expected letters of {place.column.letters}, and another stands at position {wrong}"
            draft.cell("wrong letter", expected, position, place.shown)
    return values


def codes(cells: Sequence[str], place: Place) -> Array:
    """Return a column of codes as they stand, outer spaces stripped; a missing one is empty. Any text may be a code."""
    values = np.full(len(cells), "", object)
    values[:] = ["" if fold(cell) in place.missing else cell.strip() for cell in cells]
    return values


def several(cells: Sequence[str], place: Place, task: Task, draft: Draft) -> Array:
    """Return a column of cells that have one code a line, in order, without empty lines; a label without any is a problem."""
    values = np.full(len(cells), "", object)
    for position, cell in enumerate(cells):
        found = [line.strip() for line in cell.splitlines() if fold(line) not in place.missing]
        values[position] = "\n".join(found)
        if not found and place.column.name == task.label:
            draft.cell("missing label", "expected codes, one a line", position, place.shown)
    return values


def dates(cells: Sequence[str], place: Place, draft: Draft) -> NDArray[np.float64]:
    """Return a column of dates as days since 31 December of the year 0; missing and bad cells are NaN."""
    values = np.full(len(cells), np.nan)
    for position, cell in enumerate(cells):
        if fold(cell) in place.missing:
            continue
        try:
            # Only the day counts, so no time zone is asked for.
            values[position] = datetime.strptime(cell.strip(), place.how.date).toordinal()  # noqa: DTZ007
        except ValueError:
            draft.cell("not a date", f"expected a date of the form {place.how.date}, or nothing", position, place.shown)
    return values
