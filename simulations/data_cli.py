"""``fedward data``: which data sets there are, getting them, what is in them, and writing them out as hospitals' own files."""

import argparse
import csv
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common import command
from common.errors import DataError, UsageError

if TYPE_CHECKING:
    from common.tasks.task import Array, Column
    from simulations.datasets.dataset import Dataset, Table


def add_parsers(subparsers: Any) -> None:
    """Add the command and its sub-commands."""
    parser = subparsers.add_parser(
        "data",
        help="list, download and describe data sets",
        description="List, download and describe the data sets that simulations use. Nothing but 'data get' ever downloads.",
        epilog="example: fedward data list",
    )
    below = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add(below, list_all, "list all data sets", "list --json")
    _add(below, get, "download a data set, with its checksum", "get pneumonia")
    _add(below, show, "show origin, licence, classes and hospitals of a data set", "show heart")
    export_ = _add(
        below,
        export,
        "write one CSV file a hospital, or a folder of them, as for 'hospital init'",
        "export heart ./csv",
    )
    export_.add_argument("folder", metavar="FOLDER", type=Path, help="where the files go; it is made if need be")


def _add(below: Any, act: Callable[[argparse.Namespace], int], meaning: str, example: str) -> argparse.ArgumentParser:
    parser = command.add(below, act, "fedward data", meaning, example)
    if act is not list_all:
        parser.add_argument("name", metavar="NAME", help="name of the data set, as in 'fedward data list'")
    return parser


def list_all(args: argparse.Namespace) -> int:
    """Run ``fedward data list``."""
    from simulations.datasets import DATASETS

    found = [summary(dataset) for dataset in DATASETS.values()]
    if args.json:
        _print_json(found)
    else:
        _print_list(found)
    return 0


def get(args: argparse.Namespace) -> int:
    """Run ``fedward data get NAME``: download what is not here, or say that it is."""
    from simulations.datasets import dataset_of
    from simulations.datasets.fetch import fetch, is_intact

    dataset = dataset_of(args.name)
    already = is_intact(dataset)
    folder = fetch(dataset)
    if args.json:
        _print_json({"name": dataset.name, "folder": str(folder), "downloaded": not already})
    elif not dataset.files:
        made = "is SYNTHETIC and made by this package" if dataset.synthetic else "comes with this package"
        print(f"{dataset.name} {made}; there is nothing to download")
    else:
        print(f"{dataset.name} {'was already here' if already else 'is here now'}: {folder}")
    return 0


def show(args: argparse.Namespace) -> int:
    """Run ``fedward data show NAME``; of a data set that is not here, what is known without its files."""
    from simulations.datasets import dataset_of
    from simulations.datasets.fetch import absence, is_here, load

    dataset = dataset_of(args.name)
    facts = summary(dataset) | {"origin": dataset.origin, "citation": dataset.citation, "note": dataset.note}
    if is_here(dataset):
        facts |= contents(load(dataset))
    else:
        print(f"fedward: {absence(dataset)}", file=sys.stderr)
    if args.json:
        _print_json(facts)
    else:
        _print_facts(facts)
    return 0


def export(args: argparse.Namespace) -> int:
    """Run ``fedward data export NAME FOLDER``."""
    from client.data import long
    from common.config import Choice
    from common.tasks import task_of
    from simulations.datasets import dataset_of
    from simulations.datasets.fetch import load

    dataset = dataset_of(args.name)
    table, task = load(dataset), task_of(Choice(dataset.task, tuple(dataset.task_settings.items())))
    if table.hospital is None or any(column.kind in ("image", "text", "sequence") for column in task.columns):
        raise UsageError(
            f"data set {dataset.name}: only tables of numbers and codes from named hospitals can be exported, as heart"
        )
    written = [
        file
        for name in np.unique(table.hospital).tolist()
        for file in _write(args.folder, name, table, task.columns, long.columns_of(task))
    ]
    if args.json:
        _print_json([{"file": str(path), "rows": rows} for path, rows in written])
    else:
        print("\n".join(f"{path}: {rows} rows" for path, rows in written))
    return 0


def _write(
    folder: Path, name: str, table: "Table", columns: Sequence["Column"], apart: Sequence["Column"]
) -> list[tuple[Path, int]]:
    """Write one hospital's rows; with columns ``apart``, which have long tables, a folder of tables in which rows have names, patients numbers, and artefacts are empty cells."""
    rows = np.flatnonzero(table.hospital == name)
    plain = {**table.records, table.target: table.records[table.target] if apart else table.label}
    if not apart:
        return [write_csv(folder / f"{name}.csv", {key: values[rows] for key, values in plain.items()})]
    inside = {key: values[rows] for key, values in plain.items() if key not in {column.name for column in apart}}
    for column in (each for each in columns if each.kind == "number"):
        values = inside[column.name]
        inside[column.name] = np.where((values >= column.low) & (values <= column.high), values, np.nan)
    named = {"stay": np.array([f"{row}" for row in rows], object), "patient": table.whose[rows]} | inside
    tables = {"rows": named} | {
        column.name: _lines(column, table.records[column.name][rows], named["stay"]) for column in apart
    }
    return [write_csv(folder / name / f"{key}.csv", columns) for key, columns in tables.items()]


def _lines(column: "Column", values: "Array", stay: "Array") -> dict[str, "Array"]:
    """Return a column as a long table: of a series every value that is known, of codes all in their order."""
    if column.kind == "series":
        row, hour, variable = np.nonzero(~np.isnan(values))
        measured = np.array([each.name for each in column.variables], object)[variable]
        return {"stay": stay[row], "time": hour, "code": measured, "value": values[row, hour, variable]}
    from common.tasks.codes import codes_of

    found = [
        (name, time, code) for name, cell in zip(stay, values, strict=True) for time, code in enumerate(codes_of(cell))
    ]
    names, times, codes = (np.array(each, object) for each in zip(*found, strict=True))
    return {"stay": names, "time": times, "code": codes}


def write_csv(path: Path, columns: Mapping[str, "Array"]) -> tuple[Path, int]:
    """Write columns, and return the file and its rows; an empty cell is a missing value."""
    cells = [[_cell(value) for value in values.tolist()] for values in columns.values()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*cells, strict=True))
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); choose another folder") from None
    return path, len(cells[0])


def _cell(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return "" if np.isnan(value) else f"{value:.15g}"


def summary(dataset: "Dataset") -> dict[str, Any]:
    """Return what is known of a data set without its rows; ``bytes`` are those of its files, 0 for none."""
    from simulations.datasets.fetch import is_here, is_intact

    return {
        "name": dataset.name,
        "title": dataset.title,
        "task": dataset.task,
        "rows": dataset.rows,
        "bytes": sum(file.size for file in dataset.files),
        "licence": dataset.licence,
        "here": is_here(dataset),
        "intact": is_intact(dataset),
        "synthetic": dataset.synthetic,
    }


def contents(table: "Table") -> dict[str, Any]:
    """Count the rows of a table that was read: by class, by hospital and by the published split, where there are any."""
    facts: dict[str, Any] = {
        "rows": len(table),
        "duplicates_removed": table.duplicates_removed,
        "classes": dict(
            zip(table.classes, np.bincount(table.label, minlength=len(table.classes)).tolist(), strict=True)
        ),
        "hospitals": None,
        "split": None,
    }
    if table.hospital is not None:
        names, counts = np.unique(table.hospital, return_counts=True)
        facts["hospitals"] = dict(zip(names.tolist(), counts.tolist(), strict=True))
    if table.test is not None:
        facts["split"] = {"training": int((~table.test).sum()), "test": int(table.test.sum())}
    return facts


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2))


def _print_list(found: list[dict[str, Any]]) -> None:
    wide = max(len(facts["name"]) for facts in found)
    for facts in found:
        print(
            f"{facts['name']:{wide}}  {facts['rows']:>5} rows  {_size(facts):>7}  {_where(facts):9}  {facts['licence'].partition(';')[0]}"
        )
        print(f"    {facts['title']}")


def _print_facts(facts: dict[str, Any]) -> None:
    words = {**facts, "size": _size(facts), "where": _where(facts)}
    for name in ("title", "task", "where", "size", "rows", "duplicates_removed", "classes", "hospitals", "split"):
        if name in words:
            print(f"{name.replace('_', ' ')}: {_in_words(words[name])}")
    for name in ("origin", "licence", "citation", "note"):
        if words[name]:
            print(f"{name}: {words[name]}")


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {count}" for name, count in value.items())
    return "none published" if value is None else str(value)


def _size(facts: dict[str, Any]) -> str:
    return f"{facts['bytes'] / 1e6:.1f} MB" if facts["bytes"] else "-"


def _where(facts: dict[str, Any]) -> str:
    if facts["synthetic"]:
        return "SYNTHETIC"
    return "not here" if not facts["here"] else "here" if facts["intact"] else "damaged"
