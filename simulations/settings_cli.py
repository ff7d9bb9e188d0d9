"""``fedward settings``: every setting, its default, its meaning and its limits."""

import argparse
import json
from collections.abc import Iterator
from typing import Any

from common import command
from common.config import RunConfig, describe

Row = tuple[str, str, str]
PREFACE = (
    "Settings stand in a scenario file (TOML) or after `--set`, as in `--set training.batch_size=64`. What neither gives, the task's own defaults "
    "give, and then the defaults below. The resolved settings of a run are in its `config.toml`. This page is printed by `fedward settings --markdown`."
)


def add_parsers(subparsers: Any) -> None:
    """Add the command."""
    parser = command.add(
        subparsers,
        run,
        "fedward",
        "list every setting with its default and its limits",
        "settings --markdown > settings.md",
        "List every setting of a scenario file or --set, with its default, its meaning and its limits.",
    )
    parser.add_argument("--markdown", action="store_true", help="print Markdown, as in docs/settings.md")


def sections() -> Iterator[tuple[str, list[Row]]]:
    """Yield a title and rows (key, default, meaning) for every group of settings."""
    from common.tasks import TASKS
    from server.strategies import STRATEGIES
    from simulations.scenario import SimulationConfig

    yield "Every run", describe(RunConfig)
    yield "Simulations", describe(SimulationConfig, "simulation")
    for name, recipe in TASKS.items():
        yield f"Task `{name}`", describe(recipe, "task")
    for name, kind in STRATEGIES.items():
        yield f"Strategy `{name}`", describe(kind, "strategy")


def run(args: argparse.Namespace) -> int:
    """Run ``fedward settings``."""
    if args.json:
        print(
            json.dumps({title: [list(row) for row in rows] for title, rows in sections()}, ensure_ascii=False, indent=1)
        )
    elif args.markdown:
        print(markdown())
    else:
        _show()
    return 0


def markdown() -> str:
    """Return the page docs/settings.md."""
    lines = ["# Settings", "", PREFACE]
    for title, rows in sections():
        lines += ["", f"## {title}", ""]
        if rows:
            lines += ["| setting | default | meaning |", "|---|---|---|"]
            lines += [f"| `{key}` | `{default}` | {meaning} |" for key, default, meaning in rows]
        else:
            lines.append("No settings of its own.")
    return "\n".join(lines)


def _show() -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for title, rows in sections():
        if rows:
            table = Table(
                "setting", "default", "meaning", title=title.replace("`", ""), title_justify="left", box=box.SIMPLE_HEAD
            )
            for row in rows:
                table.add_row(*row)
            console.print(table)
