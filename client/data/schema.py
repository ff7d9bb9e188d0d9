"""How the hospital's file maps to the task's columns: the section ``[data]`` of ``site.toml``, checked against the task's schema."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal

import numpy as np

from client.data import units
from client.data.report import Report
from common.config import Table, parse
from common.errors import ConfigError, nearest
from common.tasks.task import Array, Column, Task

MISSING = ("", "na", "n/a", "nan", "null", "none", "nil", "?", "-", "--", ".")
"""Cells that mean 'not measured' unless the hospital says otherwise; case does not count."""


@dataclass(frozen=True)
class ColumnMapping:
    """How the hospital writes one column of the task, or its label."""

    name: Annotated[str, "the column's name in the file; the task's own name where not given"] = ""
    unit: Annotated[str, "the file's unit, converted to the task's"] = ""
    substance: Annotated[str, "what is measured, where mmol/L becomes mg/dL and the name does not say it"] = ""
    decimal: Annotated[str, "the decimal mark of this column: . or ,"] = ""
    date: Annotated[
        str, "the cells are dates of this form, such as %Y-%m-%d; days since the patient's first are taken"
    ] = ""
    absent: Annotated[bool, "the hospital does not measure this; every value is missing"] = False
    codes: Mapping[str, Any] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataMapping:
    """How the hospital writes its file."""

    format: Annotated[Literal["auto", "csv", "parquet", "images"], "auto goes by the name; a folder holds images"] = (
        "auto"
    )
    encoding: Annotated[str, "of a CSV file: utf-8, gb18030, cp1252 ...; auto tries UTF-8, then GB18030"] = "auto"
    delimiter: Annotated[str, "of a CSV file: one character; auto takes the one that parts the header most"] = "auto"
    decimal: Annotated[Literal[".", ","], "decimal mark"] = "."
    patient: Annotated[str, "the file's column with the patient's number; without, every row is a patient"] = ""
    patient_in_file_name: Annotated[
        str, "images: regular expression whose first group is the patient's number in a file's name"
    ] = ""
    on_problem: Annotated[Literal["refuse", "drop"], "what becomes of rows with a problem"] = "refuse"
    columns: Mapping[str, ColumnMapping] = field(default_factory=dict)
    missing: tuple[str, ...] = MISSING
    header: tuple[str, ...] = ()
    row: Annotated[str, "a folder of tables: the column by which long tables name the row that a line belongs to"] = (
        "stay"
    )
    time: Annotated[str, "long tables: the column with the hours since the stay began, as 7.5 or 07:30"] = "time"
    code: Annotated[str, "long tables: the column that says what was measured or done"] = "code"
    value: Annotated[str, "long tables: the column with what was measured"] = "value"

    def of(self, name: str) -> ColumnMapping:
        """Return how the task's column of this name is written."""
        return self.columns.get(name, ColumnMapping())

    def shown(self, name: str) -> str:
        """Return the file's name of a task's column."""
        return self.of(name).name or name


@dataclass(frozen=True, eq=False)
class Imported:
    """Rows of a file in the task's columns and units, with the label in the task's label column; nothing shows them.

    ``records`` hold numbers and categories as float64 with NaN for missing, images as bytes, texts as objects, the label as int64 class numbers.
    ``patients`` ``(n,)`` are the hospital's numbers as text, None where it gives none. ``left_out`` counts cells of columns that were not taken because
    they identify a patient, by (class, column).
    """

    report: Report
    records: Mapping[str, Array] = field(default_factory=dict, repr=False)
    patients: Array | None = field(default=None, repr=False)
    left_out: Mapping[tuple[str, str], int] = field(default_factory=dict)


def mapping_of(table: Table, task: Task, path: str = "data") -> DataMapping:
    """Parse the section ``[data]`` for a task.

    Raises
    ------
    ConfigError
        For an unknown key or column, a wrong type, an unknown unit or encoding, a code that the task does not have; the message names the key.
    """
    if not isinstance(table, Mapping):
        raise ConfigError(f"{path}: expected a table of settings")
    plain = {key: value for key, value in table.items() if key not in ("columns", "missing", "header")}
    mapping = parse(DataMapping, plain, path)
    _check_file(mapping, path)
    return replace(
        mapping,
        columns=_columns(table.get("columns", {}), task, f"{path}.columns"),
        missing=_texts(table.get("missing", MISSING), f"{path}.missing"),
        header=_texts(table.get("header", ()), f"{path}.header"),
    )


def label_column(task: Task) -> Column:
    """Return the label as a category whose codes are the class numbers, or as the number or the codes it is."""
    return task.amount or Column(task.label, "category", "the class", codes=tuple(range(len(task.classes))))


def variables_of(task: Task) -> list[Column]:
    """Return what time series measure; the hospital writes each of these as it writes a column, its code being the name."""
    return [variable for column in task.columns for variable in column.variables]


def codes_of(task: Task, column: Column, codes: Mapping[str, Any]) -> dict[str, float]:
    """Return what the file may hold in a category, folded, and the code each means.

    Without codes of the hospital's these are the task's own numbers, and for the label also the names of the classes.
    """
    names = {name: float(number) for number, name in enumerate(task.classes)} if column.name == task.label else {}
    if not codes:
        return {fold(name): code for name, code in names.items()} | {f"{code:g}": code for code in column.codes}
    return {fold(key): names[code] if isinstance(code, str) else float(code) for key, code in codes.items()}


def fold(text: str) -> str:
    """Return text as it is compared: without case, outer spaces and full-width forms."""
    return unicodedata.normalize("NFKC", text).strip().casefold()


def digest(task: Task) -> str:
    """Return the SHA-256 of what the task says about its data: columns, units, ranges, codes, label and classes."""
    columns = [[str(getattr(column, item.name)) for item in fields(column)] for column in task.columns]
    text = json.dumps([task.name, columns, task.label, task.classes], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def commented(task: Task) -> str:
    """Return a section ``[data]`` with every setting commented out, for a new ``site.toml``."""
    lines = ["[data]"]
    for item in fields(DataMapping):
        words = [word for word in getattr(item.type, "__metadata__", ()) if isinstance(word, str)]
        lines += [f'# {item.name} = "{item.default}"  # {words[0]}'] if words else []
    lines += [
        '# missing = ["", "NA", "?"]  # cells that mean: not measured',
        "# header = []  # names, where the file has none",
    ]
    for column in (*task.columns, *variables_of(task), label_column(task)):
        lines += ["", f"# {_described(column, task)}", f"[data.columns.{column.name}]", f'name = "{column.name}"']
        lines += [f'# unit = "{column.unit}"'] if column.unit else []
        lines += ["# codes = { " + _example_codes(column) + " }"] if column.kind == "category" else []
    return "\n".join(lines) + "\n"


def _described(column: Column, task: Task) -> str:
    if column.name == task.label and not task.amount:
        return f"the label: {', '.join(f'{number} {name}' for number, name in enumerate(task.classes))}"
    return f"{column.meaning}; {column.kind}" + (
        f" from {column.low:g} to {column.high:g} {column.unit}" if column.unit else ""
    )


def _example_codes(column: Column) -> str:
    return ", ".join(f'"{code:g}" = {code:g}' for code in column.codes)


def _check_file(mapping: DataMapping, path: str) -> None:
    if mapping.encoding != "auto":
        try:
            # Codecs that are no text encodings (zip, hex) are found too, but refuse to decode.
            b" ".decode(mapping.encoding)
        except UnicodeError:
            pass
        except LookupError:
            raise ConfigError(
                f"{path}.encoding: unknown encoding {mapping.encoding!r}; try utf-8, gb18030 or cp1252"
            ) from None
    if mapping.delimiter != "auto" and (len(mapping.delimiter) != 1 or mapping.delimiter in '"\r\n'):
        raise ConfigError(f"{path}.delimiter: expected one character or auto, got {mapping.delimiter!r}")
    if mapping.patient_in_file_name:
        try:
            groups = re.compile(mapping.patient_in_file_name).groups
        except re.error as error:
            raise ConfigError(f"{path}.patient_in_file_name: not a regular expression: {error}") from None
        if not groups:
            raise ConfigError(f"{path}.patient_in_file_name: expected a group in parentheses, such as ^(P[0-9]+)_")


def _columns(table: Any, task: Task, path: str) -> dict[str, ColumnMapping]:
    known = {column.name: column for column in (*variables_of(task), *task.columns, label_column(task))}
    if not isinstance(table, Mapping):
        raise ConfigError(f"{path}: expected a table with the task's columns, such as [{path}.{task.label}]")
    for name in table:
        if name not in known:
            raise ConfigError(f"{path}.{name}: the task {task.name} has no such column; {nearest(name, known)}")
    return {name: _column(value, known[name], task, f"{path}.{name}") for name, value in table.items()}


def _column(value: Any, column: Column, task: Task, path: str) -> ColumnMapping:
    table = {"name": value} if isinstance(value, str) else value
    if not isinstance(table, Mapping):
        raise ConfigError(f"{path}: expected the file's name of the column, or a table of settings")
    plain = {key: item for key, item in table.items() if key not in ("codes", "missing")}
    how = parse(ColumnMapping, plain, path)
    codes: Any = table.get("codes", {})
    how = replace(how, codes=codes, missing=_texts(table.get("missing", ()), f"{path}.missing"))
    _check_codes(how, column, task, path)
    _check_kind(how, column, task, path)
    return how


def _check_codes(how: ColumnMapping, column: Column, task: Task, path: str) -> None:
    if not isinstance(how.codes, Mapping):
        raise ConfigError(f"{path}.codes: expected a table from the file's words to codes, such as {{ m = 1, f = 0 }}")
    names = task.classes if column.name == task.label else ()
    for key, code in how.codes.items():
        if isinstance(code, bool) or (code not in column.codes and code not in names):
            expected = ", ".join([*(f"{known:g}" for known in column.codes), *names])
            raise ConfigError(
                f"{path}.codes.{key}: expected one of {expected or 'no codes: the column is no category'}"
            )


def _check_kind(how: ColumnMapping, column: Column, task: Task, path: str) -> None:
    if how.decimal not in ("", ".", ","):
        raise ConfigError(f"{path}.decimal: expected . or ,")
    if column.kind != "number" and (how.unit or how.date):
        raise ConfigError(f"{path}: unit and date are for numbers; this column is a {column.kind}")
    if how.date and (units.canonical(column.unit) != "days" or "%" not in how.date):
        raise ConfigError(f"{path}.date: expected a form such as %Y-%m-%d, and a column of the task in days")
    if how.absent and (column.name == task.label or column.kind not in ("number", "category", "code", "name")):
        raise ConfigError(f"{path}.absent: the label, images, texts and sequences can't be absent")
    try:
        units.convert(np.zeros(1), column, how.unit, how.substance)
    except ConfigError as error:
        raise ConfigError(f"{path}.unit: {error}") from None


def _texts(value: Any, path: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise ConfigError(f"{path}: expected a list of texts")
    return tuple(value)
