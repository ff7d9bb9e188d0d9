"""What a running simulation shows: a live table of its hospitals while it trains, a summary at its end."""

import contextlib
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich import box
from rich.console import Console, Group
from rich.live import Live as RichLive
from rich.table import Table
from rich.text import Text

from server.records import RoundRecord
from simulations.run import Watcher
from simulations.scenario import Scenario

MOST_ROWS = 12


class Live:
    """Shows stages and rounds as they come; prints plain lines where the output is no terminal, and nothing when quiet."""

    def __init__(self, scenario: Scenario, *, quiet: bool) -> None:
        self._scenario = scenario
        self._console = Console(stderr=quiet)
        self._quiet = quiet
        self._live = RichLive(console=self._console, refresh_per_second=8, transient=True)
        self._shows = self._console.is_terminal and not quiet
        self._begun = time.monotonic()
        self._stage = ""
        self._rounds: list[RoundRecord] = []
        self.watcher = Watcher(self._on_stage, self._on_round)

    def __enter__(self) -> Self:
        if self._shows:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(RuntimeError):
            self._live.stop()

    def _on_stage(self, name: str) -> None:
        self._stage, self._begun = name, time.monotonic()
        if self._shows:
            self._live.update(self._view())
        elif not self._quiet:
            self._console.print(f"{name} ...")

    def _on_round(self, record: RoundRecord) -> None:
        self._rounds.append(record)
        if self._shows:
            self._live.update(self._view())

    def _view(self) -> Group:
        if not self._rounds:
            return Group(Text(f"{self._stage} ..."))
        last, total = self._rounds[-1], self._scenario.run.rounds
        left = (total - last.round) * (time.monotonic() - self._begun) / max(len(self._rounds), 1)
        table = Table(box=box.SIMPLE_HEAD, title=f"round {last.round} of {total}", title_justify="left")
        for name in ("hospital", "AUROC", "accuracy", "answer"):
            table.add_column(name, justify="left" if name in ("hospital", "answer") else "right")
        reasons = {row.hospital: row.reason for row in last.dropped}
        for name in last.asked[:MOST_ROWS]:
            metrics = last.hospitals.get(name, {})
            table.add_row(name, number(metrics.get("auroc")), number(metrics.get("accuracy")), reasons.get(name, "ok"))
        table.add_section()
        table.add_row(
            "all",
            number(last.metrics.get("auroc")),
            number(last.metrics.get("accuracy")),
            f"loss {number(last.train_loss)}",
        )
        sent = sum(row.bytes_up + row.bytes_down for row in self._rounds)
        more = f"and {len(last.asked) - MOST_ROWS} more hospitals · " if len(last.asked) > MOST_ROWS else ""
        return Group(table, Text(f"{more}{size(sent)} sent · {left:.0f} s left · {self._stage}"))

    def summarise(self, record: dict[str, Any], folder: Path) -> None:
        """Print the pooled metrics of all models and where the report lies."""
        if record["synthetic"]:
            self._console.print("[bold]SYNTHETIC DATA: these numbers say nothing about patients[/]")
        table = Table(
            box=box.SIMPLE_HEAD,
            title=f"{record['title']}: all test patients, with 95 % intervals",
            title_justify="left",
        )
        models = list(record["results"])
        for name in ("metric", *models):
            table.add_column(name)
        for metric in ("auroc", "accuracy", "macro_f1", "brier"):
            table.add_row(metric, *(interval(record["results"][model]["pooled"].get(metric)) for model in models))
        hospitals = record["results"]
        means = (mean_of([h.get("auroc") for h in hospitals[model]["hospitals"].values()]) for model in models)
        table.add_row("auroc, mean of hospitals", *means)
        self._console.print(table)
        for other, differences in record["differences"].items():
            self._console.print(
                f"federated minus {other}, AUROC: {interval(differences['pooled'].get('auroc'), sign='+')}"
            )
        down, up = size(record["bytes"]["down"]), size(record["bytes"]["up"])
        self._console.print(
            f"{len(record['rounds'])} rounds, {down} down, {up} up, {record['seconds']['total']:.1f} s, weights {record['weights_sha256'][:16]}"
        )
        self._console.print(f"report: {folder / 'report.html'}", soft_wrap=True)


def mean_of(estimates: list[list[float | None] | None]) -> str:
    """Write the plain mean of the hospitals' values, over those that have one."""
    values = [estimate[0] for estimate in estimates if estimate and estimate[0] is not None]
    return number(sum(values) / len(values)) if values else "-"


def number(value: float | None) -> str:
    """Write a number with three digits; a dash for none."""
    return "-" if value is None else f"{value:.3f}"


def interval(estimate: list[float | None] | None, sign: str = "") -> str:
    """Write a value with its interval; a dash for none."""
    if estimate is None or estimate[0] is None:
        return "-"
    value, low, high = (float("nan") if end is None else end for end in estimate)
    return f"{value:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def size(count: float) -> str:
    """Write a count of bytes.

    >>> size(1_500_000)
    '1.5 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return ""
