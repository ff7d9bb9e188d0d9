"""Reading a hospital's table, CSV or Parquet, by the task's schema.

A row's number is the line on which it starts, the header being line 1, so that a quoted line break does not shift the numbers after it.
"""

import codecs
import csv
import difflib
import gzip
import io
import re
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from client.data import cells, sequences, text
from client.data.deidentify import days_from_first
from client.data.report import Draft
from client.data.schema import DataMapping, Imported, fold, label_column
from common.errors import DataError
from common.tasks.task import Array, Column, Task, take

DELIMITERS = (",", ";", "\t", "|")


@dataclass(frozen=True, repr=False)
class Sheet:
    """A file's cells as text, and the line on which each row starts."""

    header: list[str]
    rows: list[list[str]]
    lines: list[int]

    def column(self, place: int) -> list[str]:
        """Return one column's cells."""
        return [row[place] for row in self.rows]


def read(source: Path, task: Task, mapping: DataMapping, draft: Draft) -> Imported:
    """Read a table of measurements or texts."""
    sheet = sheet_of(source, mapping, draft)
    return finished(sheet, places_of(sheet, columns_in_file(task, mapping), mapping, draft), task, mapping, draft)


def sheet_of(source: Path, mapping: DataMapping, draft: Draft) -> Sheet:
    """Read a file's cells; raise `DataError` for what spoils the whole file."""
    parquet = mapping.format == "parquet" or (mapping.format == "auto" and source.suffix.lower() in (".parquet", ".pq"))
    if Path(source.name.removesuffix(".gz")).suffix.lower() in sequences.SUFFIXES:
        sheet = Sheet(sequences.HEADER, *sequences.records(_decode(_bytes(source), mapping.encoding, draft)))
    else:
        sheet = _parquet(source, mapping) if parquet else _csv(source, mapping, draft)
    if not sheet.rows:
        raise DataError("the file holds no rows; expected a header and one row a patient or visit")
    draft.lines = sheet.lines
    return sheet


def columns_in_file(task: Task, mapping: DataMapping) -> list[Column]:
    """Return the columns that the file must have: the task's, without those that the hospital does not measure, and the label."""
    return [column for column in (*task.columns, label_column(task)) if not mapping.of(column.name).absent]


def places_of(sheet: Sheet, columns: Sequence[Column], mapping: DataMapping, draft: Draft) -> dict[str, int]:
    """Return where in the file each of the columns stands, by the task's name, and take down what is missing or double.

    The patient's number stands under the empty name.
    """
    wanted = {column.name: mapping.shown(column.name) for column in columns}
    wanted |= {"": mapping.patient} if mapping.patient else {}
    header = [_plain(name) for name in sheet.header]
    found = {
        name: [place for place, known in enumerate(header) if known == _plain(shown)] for name, shown in wanted.items()
    }
    if not any(found.values()):
        names = ", ".join(wanted.values())
        # What stands in row 1 may be a patient: it is not shown.
        draft.whole("missing column", f"none of {names} is in row 1; is it a header? Set columns or header in [data]")
        return {}
    for name, places in found.items():
        if len(places) != 1:
            _take_down(wanted[name], len(places), sheet.header, draft)
    _note_others(sheet.header, [place for places in found.values() for place in places], draft)
    return {name: places[0] for name, places in found.items() if places}


def finished(
    sheet: Sheet, places: dict[str, int], task: Task, mapping: DataMapping, draft: Draft, **given: Array
) -> Imported:
    """Turn a sheet's cells into the task's values; ``given`` are columns that were read elsewhere, such as images."""
    left_out = _identifiers(sheet, set(places.values()))
    if draft.problems and any(not problem.row for problem in draft.problems):
        return Imported(draft.report(drop=False), left_out=left_out)
    patients = _patients(sheet, places, mapping, draft)
    records: dict[str, Array] = {}
    for column in (*task.columns, label_column(task)):
        records[column.name] = (
            given[column.name] if column.name in given else _values(column, sheet, places, task, mapping, draft)
        )
    _intervals(records, patients, task, mapping, draft)
    return taken(records, patients, task, mapping, draft, left_out)


def taken(
    records: dict[str, Array],
    patients: Array | None,
    task: Task,
    mapping: DataMapping,
    draft: Draft,
    left_out: dict[tuple[str, str], int] | None = None,
) -> Imported:
    """Return the good rows with the finished report, or the report alone where the file is refused."""
    _note_empty(records, task, mapping, draft)
    report = draft.report(drop=mapping.on_problem == "drop")
    if report.refused:
        return Imported(report, left_out=left_out or {})
    good = np.array([position for position in range(report.rows) if position not in draft.bad], np.int64)
    records = take(records, good)
    kind = label_column(task).kind
    records[task.label] = records[task.label].astype({"category": np.int64, "number": np.float64}.get(kind, object))
    return Imported(report, records, None if patients is None else patients[good], left_out or {})


def _note_empty(records: dict[str, Array], task: Task, mapping: DataMapping, draft: Draft) -> None:
    bad = {problem.column for problem in draft.problems}
    for column in task.columns:
        shown = mapping.shown(column.name)
        measured = column.kind in ("number", "category") and not mapping.of(column.name).absent
        if measured and shown not in bad and np.isnan(records[column.name]).all():
            draft.notes.append(f"column {shown!r}: every value is missing")


def _csv(source: Path, mapping: DataMapping, draft: Draft) -> Sheet:
    content = _decode(_bytes(source), mapping.encoding, draft)
    delimiter = _delimiter(source, content, mapping)
    lines, rows, end = [], [], 0
    # Strict, so that a stray quote is an error and not a cell that swallows the rows after it.
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if row:
                lines.append(end + 1)
                rows.append(row)
            end = reader.line_num
    except csv.Error:
        raise DataError(
            f"row {end + 1}: not CSV with the delimiter {delimiter!r}: a quote that is not closed or not doubled, or a cell above 131,072 characters"
        ) from None
    if not rows:
        raise DataError("the file is empty; expected a header and one row a patient or visit")
    header = list(mapping.header) or rows.pop(0)
    lines = lines if mapping.header else lines[1:]
    ragged = [line for line, row in zip(lines, rows, strict=True) if len(row) != len(header)]
    if ragged:
        more = f" (and {len(ragged) - 1} more rows)" if len(ragged) > 1 else ""
        cut = ragged == lines[-1:] and not content.endswith("\n")
        hint = "the file ends within that row; copy it again" if cut else f"is the delimiter {delimiter!r} right?"
        raise DataError(f"row {ragged[0]}{more}: expected {len(header)} cells, as in the header; {hint}")
    return Sheet([name.strip() for name in header], rows, lines)


def _bytes(source: Path) -> bytes:
    try:
        content = source.read_bytes()
        return gzip.decompress(content) if source.suffix.lower() == ".gz" else content
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise DataError("damaged or cut off gzip file; copy it again") from None
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})") from None


def _decode(content: bytes, encoding: str, draft: Draft) -> str:
    """Turn bytes into text; where the encoding is guessed, say so."""
    if encoding == "auto":
        encoding = _guess(content)
        if encoding == "gb18030":
            draft.notes.append("read as GB18030, since it is not UTF-8; set encoding in [data] if that is wrong")
    elif codecs.lookup(encoding).name == "utf-8":
        encoding = "utf-8-sig"
    try:
        decoded = content.decode(encoding)
    except UnicodeDecodeError as error:
        row = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"row {row}: not text in {encoding}; set encoding in [data], such as utf-8, gb18030 or cp1252"
        ) from None
    if "\0" in decoded:
        row = decoded[: decoded.index("\0")].count("\n") + 1
        raise DataError(f"row {row}: holds a NUL byte; the file is damaged, or not text")
    return decoded


def _guess(content: bytes) -> str:
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    for encoding in ("utf-8-sig", "gb18030"):
        try:
            content.decode(encoding)
        except UnicodeDecodeError:
            continue
        return encoding
    raise DataError("neither UTF-8 nor GB18030; set encoding in [data], for example cp1252")


def _delimiter(source: Path, content: str, mapping: DataMapping) -> str:
    if mapping.delimiter != "auto":
        return mapping.delimiter
    if Path(source.name.removesuffix(".gz")).suffix.lower() == ".tsv":
        return "\t"
    # Quoted names may hold any sign, so they don't count. Of equals the first: a file of one column has a comma as its delimiter.
    first = re.sub(r'"[^"]*"', "", content.lstrip().split("\n", 1)[0])
    return max(DELIMITERS, key=first.count)


def _parquet(source: Path, mapping: DataMapping) -> Sheet:
    try:
        parquet, arrow = import_module("pyarrow.parquet"), import_module("pyarrow")
    except ImportError:
        raise DataError(
            "Parquet files need an extra: pip install 'fedward[parquet]'; or write the table as CSV"
        ) from None
    try:
        table = parquet.read_table(source)
    except (OSError, arrow.ArrowException) as error:
        raise DataError(f"cannot be read as Parquet ({type(error).__name__})") from None
    header = list(mapping.header) or [str(name).strip() for name in table.column_names]
    if len(header) != table.num_columns:
        raise DataError(f"header in [data] has {len(header)} names, the file {table.num_columns} columns")
    marks: list[str] = [mapping.decimal] * table.num_columns
    for name, how in mapping.columns.items():
        marks = [
            how.decimal or mark if shown == mapping.shown(name) else mark
            for shown, mark in zip(header, marks, strict=True)
        ]
    columns = [
        [_as_text(value, mark) for value in column.to_pylist()]
        for column, mark in zip(table.columns, marks, strict=True)
    ]
    return Sheet(header, [list(row) for row in zip(*columns, strict=True)], list(range(2, table.num_rows + 2)))


def _as_text(value: Any, decimal: str) -> str:
    """Return a typed cell as the text that a CSV file would hold."""
    if value is None or value != value:  # noqa: PLR0124 - only nan differs from itself
        return ""
    return str(value).replace(".", decimal) if isinstance(value, float) else str(value)


def _plain(name: str) -> str:
    return " ".join(name.split()).casefold()


def _take_down(shown: str, count: int, header: Sequence[str], draft: Draft) -> None:
    if count:
        draft.whole("duplicate header", f"column {shown!r} stands {count} times in the header; expected once")
        return
    close = difflib.get_close_matches(shown, _safe(header), n=3, cutoff=0.5)
    hint = f"; the nearest are {', '.join(map(repr, close))}" if close else ""
    draft.whole(
        "missing column",
        f"column {shown!r} is not in the header{hint}; name it in [data.columns], or set absent = true",
    )


def _safe(names: Sequence[str]) -> list[str]:
    """Return the names that may be shown: none that could be a cell, such as a number, a date or a telephone number."""
    return [
        name
        for name in names
        if name and len(name) <= 40 and not name[0].isdigit() and not text.scrub(name)[1] and "\n" not in name
    ]


def _note_others(header: Sequence[str], used: Sequence[int], draft: Draft) -> None:
    others = [name for place, name in enumerate(header) if place not in used]
    names = _safe(others)
    if others:
        hidden = f" and {len(others) - len(names)} without a plain name" if len(names) < len(others) else ""
        draft.notes.append(
            f"columns that the task does not use are left out: {', '.join(map(repr, names)) or 'none'}{hidden}"
        )
    for name, count in Counter(names).items():
        if count > 1:
            draft.notes.append(f"column {name!r} stands {count} times in the header; the task does not use it")


def _identifiers(sheet: Sheet, used: set[int]) -> dict[tuple[str, str], int]:
    """Count the filled cells of columns that are not taken because they identify a patient."""
    found: dict[tuple[str, str], int] = {}
    for place, name in enumerate(sheet.header):
        if place not in used:
            values = sheet.column(place)
            kind = text.class_of_name(name) or text.class_of_cells(values)
            shown = name if _safe([name]) else f"column {place + 1}"
            found |= {(kind, shown): sum(bool(value.strip()) for value in values)} if kind else {}
    return found


def _patients(sheet: Sheet, places: dict[str, int], mapping: DataMapping, draft: Draft) -> Array | None:
    if "" not in places:
        draft.notes.append("no patient column is set: every row counts as a patient of its own")
        return None
    numbers = [fold(cell) for cell in sheet.column(places[""])]
    missing = {fold(mark) for mark in mapping.missing}
    for position, number in enumerate(numbers):
        if number in missing:
            draft.cell("no patient number", "expected the patient's number", position, mapping.patient)
    return np.array(numbers, object)


def _values(
    column: Column, sheet: Sheet, places: dict[str, int], task: Task, mapping: DataMapping, draft: Draft
) -> Array:
    place = cells.place_of(column, mapping)
    if place.how.absent:
        text_kind = column.kind in ("code", "name")
        return np.full(len(sheet.rows), "" if text_kind else np.nan, object if text_kind else float)
    values = sheet.column(places[column.name])
    if place.how.date:
        return cells.dates(values, place, draft)
    if column.kind in ("number", "code", "codes") and text.class_of_cells(values) in ("CN-ID", "PHONE"):
        draft.whole(
            "identifier", "holds identity or telephone numbers, not measurements; name another column", place.shown
        )
        return np.full(len(values), np.nan)
    return _READINGS[column.kind](values, place, task, draft)


def _amounts(values: list[str], place: cells.Place, task: Task, draft: Draft) -> Array:
    """Return a column of numbers; of the label and of what is required none may be missing."""
    amounts = cells.numbers(values, place, draft)
    needed = place.column.required or place.column.name == task.label
    for position in np.flatnonzero(np.isnan(amounts)).tolist() if needed else ():
        if position not in draft.bad:
            what = "missing label" if place.column.name == task.label else "missing value"
            draft.cell(what, f"expected a number of {place.column.unit}", position, place.shown)
    return amounts


_READINGS: Mapping[str, Callable[[list[str], cells.Place, Task, Draft], Array]] = {
    "number": _amounts,
    "category": cells.categories,
    "code": lambda values, place, _task, _draft: cells.codes(values, place),
    "name": lambda values, place, _task, _draft: cells.codes(values, place),
    "codes": cells.several,
    "text": lambda values, place, _task, draft: cells.texts(values, place, draft),
    "sequence": lambda values, place, _task, draft: cells.sequences(values, place, draft),
}


def _intervals(
    records: dict[str, Array], patients: Array | None, task: Task, mapping: DataMapping, draft: Draft
) -> None:
    """Turn days of the calendar into days since the patient's first, so that no date goes further than this."""
    dated = [column for column in task.columns if mapping.of(column.name).date]
    if not dated:
        return
    days = days_from_first(np.stack([records[column.name] for column in dated], axis=1), patients)
    for number, column in enumerate(dated):
        records[column.name] = cells.in_range(days[:, number], days[:, number], cells.place_of(column, mapping), draft)
