"""The command ``fedward compare``."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import command

if TYPE_CHECKING:
    from rich.table import Table

    from simulations.compare import Comparison

GAP = 3
"""Columns between two of a table's."""


def add_parsers(subparsers: Any) -> None:
    """Add the sub-command to the command line."""
    parser = command.add(
        subparsers,
        run,
        "fedward",
        "put runs side by side: mean and standard deviation over seeds",
        "compare runs/heart-* --metric accuracy --latex table.tex",
        "Put runs of one task and data set side by side, grouped by the settings in which they differ other than the seed.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, such as runs/heart-0001")
    parser.add_argument(
        "--metric", default="", help="what to compare, such as accuracy (default: the task's headline metric)"
    )
    parser.add_argument(
        "--latex", type=Path, metavar="FILE", help="also write the table for LaTeX (needs the package booktabs)"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write the table as CSV, with numbers in full")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="also draw the table as a PNG picture")


def run(args: argparse.Namespace) -> int:
    """Compare the runs named, write the files asked for, and print the table."""
    from server import models
    from simulations import compare

    comparison = compare.compare(_finished(args.runs), args.metric)
    if args.latex:
        models.write(args.latex, compare.as_latex(comparison).encode())
    if args.csv:
        models.write(args.csv, compare.as_csv(comparison).encode())
    if args.figure:
        compare.save_figure(comparison, args.figure)
    show(comparison, as_json=args.json)
    return 0


def _finished(folders: Sequence[Path]) -> Sequence[Path]:
    """Return the folders without those of runs that are not finished, which are named, unless there are no others."""
    from server import records
    from simulations.run import CONFIG

    unfinished = [each for each in folders if (each / CONFIG).exists() and not (each / records.RUN).exists()]
    if len(unfinished) == len(folders):
        return folders
    for each in unfinished:
        print(
            f"fedward: {each} is left out: this run is not finished; go on with it: fedward simulate --resume {each}",
            file=sys.stderr,
        )
    return [each for each in folders if each not in unfinished]


def show(comparison: "Comparison", *, as_json: bool) -> None:
    """Print a comparison as a table, or as JSON for machines."""
    from simulations import compare

    if as_json:
        print(json.dumps(compare.as_json(comparison), indent=2))
    else:
        _show(comparison)


def _show(comparison: "Comparison") -> None:
    from rich.text import Text

    from simulations import compare, words

    console = words.console()
    tables = [(name, *compare.table(comparison, [view])) for view, name in compare.VIEWS.items()]
    settings = max(len(comparison.groups[0].settings), 1)
    key = []
    if any(_width(heads, rows) > console.width for _, heads, rows in tables):
        key = [
            f"{place}: {', '.join(f'{name}={value}' for name, value in group.settings)}"
            for place, group in enumerate(comparison.groups, 1)
        ]
        tables = [(name, *_numbered(heads, rows, settings)) for name, heads, rows in tables]
    # Lines of text are left to the terminal to wrap, and are Text, because a setting may hold what rich takes for markup.
    console.print(Text(f"{comparison.title}: mean ± standard deviation over n seeds"), soft_wrap=True)
    for name, heads, rows in tables:
        console.print(Text(f"\n{name}"))
        console.print(_table(heads, rows, 1 if key else settings))
    for line in (*([""] if key else []), *key, *(f"Note: {note}." for note in comparison.notes)):
        console.print(Text(line), soft_wrap=True)


def _numbered(heads: list[str], rows: list[list[str]], settings: int) -> tuple[list[str], list[list[str]]]:
    """Return a table with a number for each row in the place of its settings."""
    return ["", *heads[settings:]], [[str(place), *row[settings:]] for place, row in enumerate(rows, 1)]


def _table(heads: list[str], rows: list[list[str]], settings: int) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for place, head in enumerate(heads):
        table.add_column(Text(head), justify="left" if place < settings else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _width(heads: list[str], rows: list[list[str]]) -> int:
    """Return the columns that a table needs on the screen."""
    from rich.cells import cell_len

    wide = [max(map(cell_len, column)) for column in zip(heads, *rows, strict=True)]
    return sum(wide) + GAP * (len(wide) - 1)
