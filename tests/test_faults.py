"""The fault matrix's table says what became of its tests, and nothing better."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.faults import HEAD, MOST_STRETCHED, ROWS, Table
from tests.federation.processes import at_most

ROOT = Path(__file__).parent.parent
SHOWN = 5
"""A row of which nothing is missing."""


def report(outcome, row=SHOWN, test="test_it", when="call"):
    return SimpleNamespace(
        nodeid=f"tests/test_x.py::TestX::{test}[a-1]",
        user_properties=[("fault", [row, "it goes on"])],
        when=when,
        duration=0.5,
        passed=outcome == "passed",
        failed=outcome == "failed",
        skipped=outcome == "skipped",
    )


def verdict(*reports, row=SHOWN):
    table = Table(Path())
    for each in reports:
        table.pytest_runtest_logreport(each)
    (line,) = (line for line in table.text().splitlines() if line.startswith(f"| {row} | {ROWS[row].fault}"))
    return line.split(" | ")[3]


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ((), "not covered"),
        (("passed",), "passed"),
        (("passed", "failed"), "**failed**"),
        (("skipped",), "not covered"),
        (("passed", "skipped"), "passed in part"),
    ],
)
def test_a_row_is_as_good_as_its_worst_test(outcomes, expected):
    reports = [report(outcome, test=f"test_{place}") for place, outcome in enumerate(outcomes)]
    assert verdict(*reports) == expected


@pytest.mark.parametrize(("load", "times"), [(0.0, 1.0), (1.0, 1.0), (2.0, 2.0), (500.0, MOST_STRETCHED)])
def test_a_limit_is_stretched_by_the_load_up_to_what_the_page_says(monkeypatch, load, times):
    monkeypatch.setattr(os, "getloadavg", lambda: (load * os.cpu_count(), 0.0, 0.0))
    assert at_most(10) == 10 * times
    assert any(f"to {MOST_STRETCHED} times what the row says" in line for line in HEAD)


def test_the_page_begins_as_the_command_writes_it():
    assert (ROOT / "docs" / "faults.md").read_text(encoding="utf-8").startswith("\n".join(HEAD) + "\n")


def test_a_setup_that_fails_counts():
    assert verdict(report("failed", when="setup"), report("passed", test="test_other")) == "**failed**"


@pytest.mark.parametrize("row", [number for number, row in ROWS.items() if row.missing])
def test_a_row_of_which_something_is_missing_never_passes_whole(row):
    assert verdict(report("passed", row), row=row) == "passed in part"


def test_every_test_stands_in_it_once_with_its_cases():
    table = Table(Path())
    for when in ("setup", "call", "teardown"):
        for _ in range(3):
            table.pytest_runtest_logreport(report("passed", when=when))
    assert "| 5 | it goes on | `tests/test_x.py::test_it` | 3 | passed | 4.5 | 20" in table.text()


def test_a_row_that_is_run_anew_replaces_what_was_said_of_it_and_of_no_other(tmp_path):
    path, before = tmp_path / "faults.md", Table(Path())
    for each in (report("failed", 5), report("passed", 6), report("skipped", 6, "test_other"), report("failed", 8)):
        before.pytest_runtest_logreport(each)
    path.write_text(before.text())
    table = Table(path, 5)
    table.pytest_runtest_logreport(report("passed", 5, "test_new"))
    table.pytest_runtest_logreport(report("failed", 6))  # a test that shows two rows
    lines = set(table.text().splitlines()) ^ set(before.text().splitlines())
    assert {line.split(" | ")[0] for line in lines} == {"| 5"}
    assert sum("test_new" in line for line in lines) == 1
    assert Table(path, 7).text() == before.text()


@pytest.mark.parametrize("words", [["-m", "slow"], ["-m", "fault", "-k", "x"], ["-m", "fault", "tests/test_docs.py"]])
def test_a_part_of_the_tests_writes_no_table(words, tmp_path):
    path = tmp_path / "faults.md"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", *words, "--fault-table", path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "python -m pytest -m fault --fault-table FILE" in done.stderr
    assert not path.exists()
