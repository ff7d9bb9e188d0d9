"""What a running simulation shows: a live table of its hospitals while it trains, a summary at its end."""

import contextlib
import logging
import os
import re
import signal
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich import box
from rich.console import Group
from rich.live import Live as RichLive
from rich.table import Table
from rich.text import Text

from common.tasks import task_of
from server.records import RoundRecord
from simulations import cards, words
from simulations.cards import APPROACHES, Record
from simulations.report import PAGE
from simulations.run import Watcher
from simulations.scenario import Scenario

MOST_ROWS = 12
SILENT_SECONDS = 10.0
"""How long an output that is no terminal is told nothing."""
WATCHED = 2
"""Metrics of the live table."""
STOPPING = b"\nstopping at the end of this round; Ctrl-C again stops at once\n"


class Once(logging.Filter):
    """Lets a warning through once, whatever its numbers: what one hospital refuses, others refuse too, and again at every attempt."""

    def __init__(self) -> None:
        super().__init__()
        self._told: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether nothing like it was told before."""
        text = re.sub(r"\d[\d.,e+-]*", "0", record.getMessage())
        fresh = text not in self._told
        self._told.add(text)
        return fresh


class Live:
    """Shows the runs that are begun, their stages and rounds; prints plain lines where the output is no terminal, and nothing when quiet."""

    def __init__(self, *, quiet: bool) -> None:
        self._console = words.console(stderr=quiet)
        self._quiet = quiet
        self._live = RichLive(console=self._console, refresh_per_second=8, transient=True)
        self._shows = self._console.is_terminal and not quiet
        self._first = self._told = time.monotonic()
        self._stage = self._title = ""
        self._total = 0
        self._watched: tuple[str, ...] = ()
        self._rounds: list[RoundRecord] = []
        self._before: Any = None
        self._pressed = self._waits = False
        self._once = Once()

    def __enter__(self) -> Self:
        if logging.lastResort:
            logging.lastResort.addFilter(self._once)
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._press)
        if self._shows:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(RuntimeError):
            self._live.stop()
        if logging.lastResort:
            logging.lastResort.removeFilter(self._once)
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _press(self, _number: int, _frame: object) -> None:
        """Stop a run that trains in this process at the end of its round, any other and at the second time at once.

        An interrupt that falls into TensorFlow looks like a failure of the hospital that it trains, and one that falls into a callback of Python's memory is dropped.
        """
        if self._pressed or not self._waits:
            self._pressed = True
            raise KeyboardInterrupt
        self._pressed = True
        os.write(2, STOPPING)  # print is not for handlers: it may be what was interrupted

    def begin(self, scenario: Scenario, title: str = "") -> Watcher:
        """Forget the run before and return the watcher of this one; ``title`` says which of many it is."""
        self._total, self._rounds, self._title = scenario.run.rounds, [], title
        self._waits = scenario.simulation.engine == "local"
        self._watched = task_of(scenario.run.task).objective.shown[:WATCHED]
        if title and not (self._shows or self._quiet):
            self._print(title)
        return Watcher(self._on_stage, self._on_round)

    def _stop_if_asked(self) -> None:
        if self._pressed:
            raise KeyboardInterrupt

    def _on_stage(self, name: str) -> None:
        self._stop_if_asked()
        self._stage, self._told = name, time.monotonic()
        if self._shows:
            self._live.update(self._view())
        elif not self._quiet:
            self._print(f"{name} ...")

    def _on_round(self, record: RoundRecord) -> None:
        self._stop_if_asked()
        self._rounds.append(record)
        self._first = self._first if len(self._rounds) > 1 else time.monotonic()
        if self._shows:
            self._live.update(self._view())
        elif not self._quiet and time.monotonic() - self._told > SILENT_SECONDS:
            self._told = time.monotonic()
            loss = "" if record.train_loss is None else f", loss {words.number(record.train_loss)}"
            self._print(f"round {record.round} of {self._total}{loss}{self._time_left(', ')}")

    def _print(self, text: str) -> None:
        # Text, because a name may hold what rich takes for markup; the terminal wraps what is too long.
        self._console.print(Text(text), soft_wrap=True)

    def _view(self) -> Group:
        title = [Text(self._title)] if self._title else []
        if not self._rounds:
            return Group(*title, Text(f"{self._stage} ..."))
        last = self._rounds[-1]
        sent = sum(row.bytes_up + row.bytes_down for row in self._rounds)
        more = f"and {len(last.asked) - MOST_ROWS} more hospitals · " if len(last.asked) > MOST_ROWS else ""
        below = Text(f"{more}{words.size(sent)} sent{self._time_left(' · ')} · {self._stage}")
        return Group(*title, self._round_table(last), below)

    def _time_left(self, before: str) -> str:
        """Say how long the rest of the rounds takes at the pace so far; the first one also starts TensorFlow, and tells nothing."""
        if len(self._rounds) < 2:
            return ""
        pace = (time.monotonic() - self._first) / (len(self._rounds) - 1)
        return f"{before}{words.seconds((self._total - self._rounds[-1].round) * pace)} left"

    def _round_table(self, last: RoundRecord) -> Table:
        table = Table(box=box.SIMPLE_HEAD, title=f"round {last.round} of {self._total}", title_justify="left")
        table.add_column("hospital")
        for metric in self._watched:
            table.add_column(words.metric_name(metric), justify="right")
        table.add_column("answer")
        reasons = {row.hospital: row.reason for row in last.dropped}
        good = "ok" if last.hospitals or not last.metrics else "in the sum"
        for name in last.asked[:MOST_ROWS]:
            metrics = last.hospitals.get(name, {})
            told = reasons.get(name, good)
            table.add_row(Text(name), *(words.number(metrics.get(metric)) for metric in self._watched), told)
        table.add_section()
        pooled = (words.number(last.metrics.get(metric)) for metric in self._watched)
        table.add_row("all", *pooled, f"loss {words.number(last.train_loss)}")
        return table

    def summarise(self, record: Record, folder: Path) -> None:
        """Print the pooled metrics of all models and where the report lies."""
        if record["synthetic"]:
            self._console.print(
                Text("SYNTHETIC DATA: these numbers say nothing about patients", "bold"), soft_wrap=True
            )
        self._print(f"{record['title']}: all test patients, with 95 % intervals")
        self._console.print(summary(record))
        for line in remarks(record):
            self._print(line)
        down, up = (words.size(record["bytes"][way]) for way in ("down", "up"))
        spent = words.seconds(record["seconds"]["total"])
        weights = record["weights_sha256"][:16]
        self._print(f"{len(record['rounds'])} rounds, {down} down, {up} up, {spent}, weights {weights}")
        self._print(f"report: {folder / PAGE}")


def summary(record: Record) -> Table:
    """Return the table of a finished run: every way of training, judged on all test patients."""
    kinds = cards.approaches(record)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("", no_wrap=True)
    for kind in kinds:
        table.add_column(APPROACHES[kind], no_wrap=True)
    for metric in record["shown"]:
        values = [words.interval(cards.estimate(record, kind, metric)) for kind in kinds]
        table.add_row(words.metric_name(metric), *values)
    return table


def remarks(record: Record) -> list[str]:
    """Return what is said below that table: the mean of the hospitals, the paired differences, and what a dash means."""
    headline, judged = record["headline"], cards.compared_metric(record)
    means = {kind: cards.mean_of_hospitals(record, kind, headline) for kind in cards.approaches(record)}
    told = ", ".join(f"{APPROACHES[kind]} {words.interval(mean)}" for kind, mean in means.items())
    lines = [f"mean of hospitals, {words.in_text(headline)}: {told}"]
    for other in cards.compared(record):
        gap = words.interval(cards.difference(record, other, judged), signed=True)
        lines.append(f"federated minus {APPROACHES[other]}, {words.in_text(judged)}: {gap}")
    unknown = [metric for metric in record["shown"] if cards.gaps(record, metric, [None])]
    if not all(map(cards.defined, means.values())):
        unknown.insert(0, headline)
    return lines + [f"{words.DASH}: {cards.undefined(record, metric)}" for metric in dict.fromkeys(unknown)]
