"""The fault matrix: what each row asks for, which tests show it, and the table of their verdicts.

A test that shows a row is marked ``@pytest.mark.fault(5, passes_when="nothing is counted twice")``. ``python -m pytest -m fault --fault-table docs/faults.md``
runs them all, quick and slow, and writes the table; with ``--fault-row 5`` it runs the tests of that row, and what the page says of the other rows stays.
"""

import re
import time
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Row:
    """A fault, what has to happen, and what of that no test shows."""

    fault: str
    passes_when: str
    missing: str = ""


ROWS = {
    1: Row(
        "a hospital is killed before, during, after training, while uploading",
        "the round ends within 2 s of the loss being known if the quorum holds; the hospital is back in the next round; its ledger is charged once",
    ),
    2: Row(
        "all hospitals but one are killed",
        "no aggregate of one is ever published; the run pauses, and goes on when the quorum is back",
    ),
    3: Row(
        "the coordinator is killed at 20 seeded instants: idle, mid-round, aggregating, writing the checkpoint",
        "restarted within 10 s, the round goes on, the weights are equal bit for bit, no file is torn",
    ),
    4: Row("the tails of files are cut off", "each opens, or is named as damaged; the last whole round is intact"),
    5: Row(
        "the network is cut for 5 s, for 10 rounds",
        "back-off with jitter, back within 5 s of healing, no update counted twice",
    ),
    6: Row("packets vanish on an open connection", "a deadline fires; no thread is left"),
    7: Row(
        "1 Mbit/s and 200 ms, with an update of 60 MB",
        "completes; the others are not held beyond the deadline of stragglers",
    ),
    8: Row("a request is replayed or duplicated", "ignored, and in the audit log"),
    9: Row(
        "corrupt, truncated, wrongly signed bytes",
        "rejected before they are decoded; 10,000 fuzzed cases without a crash or a jump in memory",
    ),
    10: Row(
        "an update with NaN, Inf, 1e9, a wrong shape or type, a missing or extra array, a negative, zero or huge count",
        "that update is rejected with a code; the weights are those of a run without that hospital, bit for bit",
    ),
    11: Row(
        "a hostile coordinator: another architecture, an imprint layer, lowered privacy, code not approved, a stale round",
        "the hospital refuses, nothing is trained, the budget is untouched, the audit log says so",
    ),
    12: Row(
        "a clock 10 minutes off, or jumping",
        "the check before the start warns, then refuses with the skew in the message; durations use a monotonic clock",
    ),
    13: Row(
        "a disk that is full or read-only",
        "a clear error, nothing half written; it works again when there is space",
    ),
    14: Row(
        "a limit of memory",
        "the task dies, the hospital lives and reports it, the round goes on",
        "no test takes a worker's memory away in the middle of a whole federation's round",
    ),
    15: Row("training that hangs", "ended at its deadline; the next run is not delayed"),
    16: Row("a certificate that expired, was revoked, or is of another authority", "refused within 60 s of revocation"),
    17: Row(
        "secure aggregation with 0 to t drop-outs at every stage, and t + 1",
        "the exact sum up to t, an end at t + 1, no mask used twice",
    ),
    18: Row(
        "an empty table, one class, one patient, a drifted schema",
        "refused or handled by policy; no patient's value in any log, message, database or captured byte",
    ),
    19: Row(
        "upgrade and rollback with a run under way",
        "refused or resumed; old records stay readable",
    ),
    20: Row(
        "500 rounds in one process, 60 rounds of real processes",
        "resident memory grows under 1 MB in 100 rounds; descriptors and threads stay as many",
        "no test lets real processes run that long",
    ),
}


def pytest_addoption(parser):
    parser.addoption(
        "--fault-table", metavar="FILE", type=Path, help="with '-m fault' alone: write the fault matrix's verdicts"
    )
    parser.addoption(
        "--fault-row", metavar="N", type=int, choices=ROWS, help="with --fault-table: run this row and keep the others"
    )


def pytest_configure(config):
    path, row = config.getoption("fault_table"), config.getoption("fault_row")
    if row and path is None:
        raise pytest.UsageError("--fault-row: expected --fault-table FILE beside it")
    if path is None or hasattr(config, "workerinput"):
        return
    chosen = config.args_source is not pytest.Config.ArgsSource.TESTPATHS or config.option.keyword
    if chosen or config.option.markexpr != "fault":
        # A row whose tests did not all run would pass for less than it asks.
        raise pytest.UsageError(
            "--fault-table: expected every fault test and no other: python -m pytest -m fault --fault-table FILE"
        )
    config.pluginmanager.register(Table(path, row))


def pytest_collection_modifyitems(config, items):
    """Let a test's reports say what it shows; so they do also where another process runs it."""
    for item in items:
        for mark in item.iter_markers("fault"):
            item.user_properties.append(("fault", _shown(*mark.args, **mark.kwargs)))
    if row := config.getoption("fault_row"):
        others = [item for item in items if row not in [mark.args[0] for mark in item.iter_markers("fault")]]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]


def _shown(row, passes_when=""):
    if row not in ROWS:
        raise pytest.UsageError(f"fault: expected a row from 1 to {max(ROWS)}, got {row!r}")
    return [row, passes_when]


@dataclass
class Shown:
    """What became of a test that shows a row, all of its parameters together, and on which day."""

    words: str
    cases: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    day: str = ""

    @property
    def verdict(self) -> str:
        if self.failed:
            return "failed"
        return "skipped" if self.skipped else "passed"


class Table:
    """Collects what tests report, and writes it when all have run. With a ``row``, only that one is new, and the page has told of the others before."""

    def __init__(self, path: Path, row: int = 0):
        self._path, self._only, self._day = path, row, time.strftime("%Y-%m-%d", time.gmtime())
        self._tests: dict[tuple[int, str], Shown] = {}
        if row and path.exists():
            self._tests = {key: shown for key, shown in told(path.read_text(encoding="utf-8")) if key[0] != row}

    def pytest_runtest_logreport(self, report):
        for name, value in report.user_properties:
            if name == "fault" and self._only in {0, value[0]}:
                self._add(report, *value)

    def _add(self, report, row, words):
        file, *_, test = report.nodeid.partition("[")[0].split("::")
        shown = self._tests.setdefault((row, f"`{file}::{test}`"), Shown(words or ROWS[row].passes_when, day=self._day))
        shown.cases += report.when == "setup"
        shown.failed += report.failed or hasattr(report, "wasxfail")
        shown.skipped += report.skipped
        shown.seconds += report.duration

    def pytest_sessionfinish(self, session, exitstatus):
        if exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED} and not session.shouldfail:
            self._path.write_text(self.text(), encoding="utf-8")

    def text(self) -> str:
        """Return the page."""
        lines = [*HEAD, *(self._row(number) for number in ROWS), *NOT_SHOWN]
        lines += [f"- {number}, {row.fault}: {row.missing}." for number, row in ROWS.items() if row.missing]
        lines += TESTS
        for (number, test), shown in sorted(self._tests.items()):
            figures = f"{shown.cases} | {shown.verdict} | {shown.seconds:.1f} | {shown.day}"
            lines.append(f"| {number} | {shown.words} | {test} | {figures} |")
        return "\n".join(lines) + "\n"

    def _row(self, number: int) -> str:
        row, tests = ROWS[number], [shown for (each, _), shown in self._tests.items() if each == number]
        cases, seconds = sum(shown.cases for shown in tests), sum(shown.seconds for shown in tests)
        verdict = _verdict(row, {shown.verdict for shown in tests})
        return f"| {number} | {row.fault} | {row.passes_when} | {verdict} | {cases} | {seconds:.1f} |"


MOST_STRETCHED = 3
"""By how much a test's limit in seconds is stretched at most where others use the machine."""

LINE = re.compile(r"\| (\d+) \| (.+) \| (`.+`) \| (\d+) \| (\w+) \| ([\d.]+) \| ([\d-]+) \|")


def told(page):
    """Yield what a page says of each test, by row and test."""
    for line in page.splitlines():
        if match := LINE.fullmatch(line):
            row, words, test, cases, verdict, seconds, day = match.groups()
            shown = Shown(words, int(cases), verdict == "failed", verdict == "skipped", float(seconds), day)
            if int(row) in ROWS:
                yield (int(row), test), shown


def _verdict(row: Row, verdicts: set[str]) -> str:
    if "failed" in verdicts:
        return "**failed**"
    if not verdicts or verdicts == {"skipped"}:
        return "not covered"
    return "passed in part" if row.missing or "skipped" in verdicts else "passed"


HEAD = (
    "# The fault matrix",
    "",
    "What goes wrong, what has to happen then, and whether it did. A row has passed when all of its tests have. Written on one machine by",
    "",
    "```sh",
    "python -m pytest -m fault -n 0 --fault-table docs/faults.md",
    "```",
    "",
    "or row by row (`--fault-row 5` beside it), which keeps what the page says of the others; each test has the day on which it ran. Seconds include what a test starts and stops.",
    "",
    f"Limits in seconds are those of a machine that nobody else uses: where more programs want to run than it has cores, a test stretches them by as much, to {MOST_STRETCHED} times what the row says at most.",
    "",
    "| # | fault | passes when | verdict | cases | seconds |",
    "|---|---|---|---|---|---|",
)
NOT_SHOWN = ("", "## What no test shows", "")
TESTS = (
    "",
    "## The tests",
    "",
    "| # | shows | test | cases | verdict | seconds | on |",
    "|---|---|---|---|---|---|---|",
)
