"""The command ``fedward compare``."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simulations.compare import Comparison


def add_parsers(subparsers: Any) -> None:
    """Add the sub-command to the command line."""
    parser = subparsers.add_parser(
        "compare",
        help="put runs side by side: mean and standard deviation over seeds",
        description="Put runs of one task and data set side by side, grouped by the settings in which they differ other than the seed.",
        epilog="example: fedward compare runs/heart-* --metric accuracy --latex table.tex",
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
    parser.add_argument("--json", action="store_true", help="print JSON for machines instead of the table")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compare the runs named, write the files asked for, and print the table."""
    from server import models
    from simulations import compare

    comparison = compare.compare(args.runs, args.metric)
    if args.latex:
        models.write(args.latex, compare.as_latex(comparison).encode())
    if args.csv:
        models.write(args.csv, compare.as_csv(comparison).encode())
    if args.figure:
        compare.save_figure(comparison, args.figure)
    show(comparison, as_json=args.json)
    return 0


def show(comparison: "Comparison", *, as_json: bool) -> None:
    """Print a comparison as a table, or as JSON for machines."""
    from simulations import compare

    if as_json:
        print(json.dumps(compare.as_json(comparison), indent=2))
    else:
        _show(comparison)


def _show(comparison: "Comparison") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from simulations import compare

    heads, rows = compare.table(comparison)
    words = max(len(comparison.groups[0].settings), 1)
    shown = Table(title=f"{comparison.title}: mean ± standard deviation over n seeds", title_justify="left")
    for place, head in enumerate(heads):
        shown.add_column(Text(head), justify="left" if place < words else "right")
    for row in rows:
        # Text, because a setting may hold what rich takes for markup.
        shown.add_row(*(Text(cell) for cell in row))
    console = Console()
    console.print(shown)
    for note in comparison.notes:
        console.print(Text(f"Note: {note}."))
