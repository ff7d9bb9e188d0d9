"""What a running simulation shows: plain lines where the output is no terminal, one JSON document with ``--json``, a live table otherwise."""

import io
import json

import pytest
from rich.console import Console

import fedward
from server.records import Dropped, RoundRecord
from simulations import live
from simulations.scenario import find, read

WORDS = ["simulate", "heart", "--rounds", "1", "--set", "task.model=logistic", "--set", "training.compile=graph"]


@pytest.mark.parametrize(("value", "text"), [(None, "-"), (0.0, "0.000"), (0.12349, "0.123"), (1, "1.000")])
def test_a_number_has_three_digits(value, text):
    assert live.number(value) == text


@pytest.mark.parametrize(
    ("estimate", "sign", "text"),
    [
        (None, "", "-"),
        ([None, None, None], "", "-"),
        ([0.5, 0.25, 0.75], "", "0.500 (0.250 to 0.750)"),
        ([0.5, None, None], "", "0.500 (nan to nan)"),
        ([0.0125, -0.5, 0.5], "+", "+0.013 (-0.500 to +0.500)"),
    ],
)
def test_a_value_stands_before_its_interval(estimate, sign, text):
    assert live.interval(estimate, sign) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1_500_000, "1.5 MB"),
        (2e9, "2.0 GB"),
        (5e12, "5000.0 GB"),
    ],
)
def test_a_size_has_the_unit_that_fits(count, text):
    assert live.size(count) == text


@pytest.fixture
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_elsewhere")
def test_where_the_output_is_no_terminal_it_is_plain_lines_and_a_summary(capsys):
    assert fedward.main(WORDS) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "\x1b" not in out
    stages = [line for line in out.splitlines() if line.endswith(" ...")]
    assert stages == [
        "reading data ...",
        "federated training ...",
        "each hospital alone ...",
        "all patients in one place ...",
        "writing the report ...",
    ]
    summary = out.rpartition(" ...\n")[2]
    for word in ("auroc", "accuracy", "macro_f1", "brier", "federated", "local", "central", "1 rounds,", "SYNTHETIC"):
        assert (word in summary) == (word != "SYNTHETIC"), word
    assert summary.splitlines()[-1] == "report: runs/heart-0001/report.html"


@pytest.mark.usefixtures("_elsewhere")
def test_with_json_there_is_nothing_else_on_the_output(capsys, tmp_path):
    assert fedward.main([*WORDS, "--set", "simulation.comparators=false", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    written = json.loads((tmp_path / "runs" / "heart-0001" / "run.json").read_text(encoding="utf-8"))
    assert json.loads(out) == written
    assert out.count("\n") == 1


class TestTable:
    def shown(self, count):
        """Return what the live table of a round with ``count`` hospitals shows, the first of which was dropped."""
        names = [f"ward-{number:02d}" for number in range(count)]
        record = RoundRecord(
            round=2,
            asked=names,
            answered=names[1:],
            dropped=[Dropped(names[0], "nan", "its update holds NaN")],
            bytes_down=1_000_000,
            bytes_up=500_000,
            seconds=1.0,
            examples=10,
            train_loss=0.25,
            validation_loss=None,
            update_norm=1.0,
            metrics={"auroc": 0.875},
            hospitals={names[-1]: {"auroc": 0.625}},
        )
        shows = live.Live(read(find("heart"), {"rounds": 7}), quiet=True)
        shows.watcher.stage("federated training")
        shows.watcher.round(record)
        console = Console(file=io.StringIO(), width=120)
        console.print(shows._view())
        return console.file.getvalue()

    def test_it_names_the_round_the_hospitals_and_what_they_answered(self):
        text = self.shown(3)
        for word in ("round 2 of 7", "ward-00", "ward-02", "0.625", "0.875", "loss 0.250", "1.5 MB sent"):
            assert word in text, word
        answers = [line.split()[-1] for line in text.splitlines() if line.strip().startswith("ward-")]
        assert answers == ["nan", "ok", "ok"]
        assert "more hospitals" not in text

    def test_it_fits_the_screen_whatever_the_number_of_hospitals(self):
        text = self.shown(live.MOST_ROWS + 30)
        assert text.count("ward-") == live.MOST_ROWS
        assert "and 30 more hospitals" in text
