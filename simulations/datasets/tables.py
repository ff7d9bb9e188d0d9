"""Reading CSV files and dropping duplicates: what several data sets share."""

import csv
import gzip
import zipfile
import zlib
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from common.tasks.sequences import Kind
from simulations.datasets.dataset import Table

if TYPE_CHECKING:
    import pandas as pd


def read_csv(path: Path | zipfile.Path, columns: Sequence[str], named: Sequence[str] = ()) -> dict[str, list[str]]:
    """Read the named columns of a UTF-8 CSV file, gzipped or not, as text; ``named`` are all of its columns where its first row does not tell them.

    Raises
    ------
    DataError
        For a file that is no such text, an absent column or a row of another length; the message names file and column or row.
    """
    try:
        with _opened(path) as file:
            header, *rows = csv.reader(file)
            header = list(named) or header
    except (OSError, EOFError, ValueError, csv.Error, zlib.error) as error:
        raise DataError(
            f"{path.name}: cannot be read as CSV text ({type(error).__name__}); delete it and get it again"
        ) from None
    for column in columns:
        if column not in header:
            raise DataError(f"{path.name}: column {column!r} is missing; the header has {', '.join(header)}")
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise DataError(f"{path.name}: row {number} has {len(row)} cells, the header has {len(header)}")
    return {column: [row[header.index(column)] for row in rows] for column in columns}


def _opened(path: Path | zipfile.Path) -> IO[str]:
    if isinstance(path, Path) and path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="")
    return cast("IO[str]", path.open("r", encoding="utf-8", newline=""))


def read_frame(path: Path, columns: Mapping[str, Any]) -> "pd.DataFrame":
    """Read the named columns of a large UTF-8 CSV file, gzipped or not, as the types they map to; ten times as fast as `read_csv`.

    Raises
    ------
    DataError
        For a file that is no such text, an absent column, or a cell of another type; the message names the file.
    """
    import pandas as pd

    try:
        return pd.read_csv(path, usecols=list(columns), dtype=dict(columns), encoding="utf-8")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(
            f"{path.name}: cannot be read as CSV text with the columns {', '.join(columns)} ({type(error).__name__}); "
            "delete it and get it again"
        ) from None


def numbers(cells: Sequence[str], file: str, column: str) -> NDArray[np.float64]:
    """Turn cells into numbers, an empty cell into NaN; a `DataError` names file, row and column.

    >>> numbers(["1", "", "2.5"], "heart.csv", "age")
    array([1. , nan, 2.5])
    """
    values = np.full(len(cells), np.nan)
    for row, cell in enumerate(cells):
        try:
            values[row] = float(cell or "nan")
        except ValueError:
            raise DataError(f"{file}: row {row + 1}, column {column!r}: expected a number or nothing") from None
    return values


def distinct(keys: Sequence[Hashable]) -> NDArray[np.int64]:
    """Return the first position of every key, in order.

    >>> distinct(["a", "b", "a"])
    array([0, 1])
    """
    first: dict[Hashable, int] = {}
    for position, key in enumerate(keys):
        first.setdefault(key, position)
    return np.fromiter(first.values(), np.int64, len(first))


def sequence_table(sequences: Sequence[str], labels: Sequence[str], kind: Kind, file: str) -> Table:
    """Drop repeated sequences, and check the letters of the others. Every sequence counts as a patient.

    Raises
    ------
    DataError
        For a letter that the alphabet does not have; the message names file, row of the data and position.
    """
    texts = [sequence.strip().upper() for sequence in sequences]
    try:
        kind.alphabet.encode(texts, 1)
    except DataError as error:
        raise DataError(f"{file}: {error}") from None
    kept = distinct(texts)
    label = np.array([kind.classes.index(labels[row]) for row in kept], np.int64)
    records = {"sequence": np.array([texts[row] for row in kept], object), "label": label}
    return Table(records, label, kind.classes, np.arange(len(kept)), duplicates_removed=len(texts) - len(kept))


def text_table(texts: Sequence[str], labels: Sequence[str], classes: Sequence[str]) -> Table:
    """Drop repeated texts, then those of other classes. Every text counts as a patient.

    >>> table = text_table(["fever", "cough", "fever", "rash"], ["a", "b", "b", "c"], ("a", "b"))
    >>> table.records["text"].tolist(), table.label.tolist(), table.duplicates_removed
    (['fever', 'cough'], [0, 1], 1)
    """
    kept = distinct(texts)
    rows = [row for row in kept.tolist() if labels[row] in classes]
    label = np.array([classes.index(labels[row]) for row in rows], np.int64)
    records = {"text": np.array([texts[row] for row in rows], object), "label": label}
    return Table(records, label, tuple(classes), duplicates_removed=len(texts) - len(kept))
