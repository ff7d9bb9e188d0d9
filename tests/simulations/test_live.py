"""What a running simulation shows: plain lines where the output is no terminal, one JSON document with ``--json``, a live table otherwise."""

import io
import json
import signal

import pytest
from rich.console import Console

import fedward
from server.records import Dropped, RoundRecord
from simulations import cards, live, words
from simulations.scenario import find, read
from tests.simulations.test_report import fake_record, nulls

WORDS = ["simulate", "heart", "--rounds", "1", "--set", "task.model=logistic", "--set", "training.compile=graph"]


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
    told = ("AUROC", "Accuracy", "Macro F1", "Brier score", "federated", "local only", "centralised", "1 rounds,")
    for word in (*told, "mean of hospitals, AUROC: local only 0.", "federated minus local only, AUROC: "):
        assert word in summary, word
    assert "SYNTHETIC" not in summary
    assert summary.splitlines()[-1] == "report: runs/heart-0001/report.html"


@pytest.mark.usefixtures("_elsewhere")
def test_with_json_there_is_nothing_else_on_the_output(capsys, tmp_path):
    assert fedward.main([*WORDS, "--set", "simulation.comparators=false", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    written = json.loads((tmp_path / "runs" / "heart-0001" / "run.json").read_text(encoding="utf-8"))
    assert json.loads(out) == written
    assert out.count("\n") == 1


class TestSummary:
    def test_it_fits_a_screen_of_80_columns(self):
        record = fake_record()
        console = Console(file=io.StringIO(), width=80)
        console.print(live.summary(record))
        shown = console.file.getvalue()
        for kind in record["results"]:
            assert words.interval(cards.estimate(record, kind, "auroc")) in shown
        assert "…" not in shown
        assert len(shown.splitlines()) == 2 + len(record["shown"])

    def test_without_a_paired_auroc_the_difference_is_told_in_accuracy(self):
        record = fake_record(classes=("a", "b", "c"))
        for other in record["differences"].values():
            other["pooled"]["auroc"] = [None, None, None]
        gap = words.interval(cards.difference(record, "local", "accuracy"), signed=True)
        assert f"federated minus local only, accuracy: {gap}" in live.remarks(record)
        assert not any(line.startswith(words.DASH) for line in live.remarks(record))

    def test_what_is_not_defined_is_explained(self):
        record = nulls(fake_record(hospitals=1))
        lines = live.remarks(record)
        assert lines[0] == "mean of hospitals, AUROC: local only –, federated –, centralised –"
        assert lines.count(f"–: {words.undefined('auroc')}") == 1


def round_record(count, number=2):
    """Return the record of a round with ``count`` hospitals, the first of which was dropped."""
    names = [f"ward-{place:02d}" for place in range(count)]
    return RoundRecord(
        round=number,
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


def view_of(shows):
    console = Console(file=io.StringIO(), width=80)
    console.print(shows._view())
    return console.file.getvalue()


def test_a_second_run_starts_from_nothing():
    shows = live.Live(quiet=True)
    for rounds, title in ((7, "1 of 2: a=[red]"), (3, "2 of 2: b")):
        watcher = shows.begin(read(find("heart"), {"rounds": rounds}), title)
        watcher.stage("federated training")
        assert "round" not in view_of(shows)
        for number in (1, 2):
            watcher.round(round_record(3, number))
        assert f"round 2 of {rounds}" in view_of(shows)
        assert "3 MB sent" in view_of(shows)
        assert title in view_of(shows)


class TestTable:
    def shown(self, count):
        """Return what the live table of a round with ``count`` hospitals shows."""
        shows = live.Live(quiet=True)
        watcher = shows.begin(read(find("heart"), {"rounds": 7}))
        watcher.stage("federated training")
        watcher.round(round_record(count))
        return view_of(shows)

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


@pytest.mark.parametrize("step", ["stage", "round"])
def test_ctrl_c_stops_a_run_of_this_process_at_the_end_of_its_round_and_at_the_second_time_at_once(step, capfd):
    before = signal.getsignal(signal.SIGINT)
    with live.Live(quiet=True) as shown:
        watcher = shown.begin(read(find("heart")))
        signal.raise_signal(signal.SIGINT)
        assert capfd.readouterr().err.encode() == live.STOPPING
        with pytest.raises(KeyboardInterrupt):
            getattr(watcher, step)(None)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_where_others_train_and_before_a_run_begins_ctrl_c_stops_at_once():
    with live.Live(quiet=True) as shown, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    with live.Live(quiet=True) as shown:
        shown.begin(read(find("heart"), {"simulation": {"engine": "deploy"}}))
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
