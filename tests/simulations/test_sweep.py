"""A sweep runs every combination once, whatever comes between, and finds mistakes before the first run."""

import json

import pytest

import fedward
from common.errors import FedwardError, UsageError
from simulations.run import Watcher
from simulations.sweep import combinations, sweep

BASE = {
    "task": {"name": "heart", "model": "logistic"},
    "rounds": 1,
    "training": {"compile": "graph"},
    "simulation": {"dataset": "heart", "comparators": False},
}
GRID = ["strategy.name=fedavg,fedavgm"]
FOLDERS = ["strategy.name=fedavg,seed=1", "strategy.name=fedavgm,seed=1"]


class TestCombinations:
    def test_every_value_meets_every_other_and_every_seed(self):
        found = list(combinations(["a=1,2", "b.c=x,y,z"], 2))
        assert len(found) == len(set(found)) == 2 * 3 * 2
        assert found[0] == ("a=1", "b.c=x", "seed=1")
        assert found[-1] == ("a=2", "b.c=z", "seed=2")
        assert {words[0] for words in found} == {"a=1", "a=2"}

    def test_without_a_grid_there_are_the_seeds(self):
        assert list(combinations([], 3)) == [("seed=1",), ("seed=2",), ("seed=3",)]

    @pytest.mark.parametrize("word", ["rounds", "rounds=", "=1,2", "rounds=1,,2", "rounds=1,", ""])
    def test_what_is_no_list_of_values_is_refused_by_its_word(self, word):
        with pytest.raises(UsageError, match=rf"--grid {word}: expected key=value,value"):
            list(combinations(["seed=1", word], 1))


def play(out, grid=GRID, base=BASE, watcher=None, begun=None):
    def begin(scenario, title):
        if begun is not None:
            begun.append((title, scenario.run.strategy.name))
        return watcher or Watcher()

    return sweep(base, grid, 1, out, "fedward sweep", begin)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Return the folder of a sweep that was stopped in its second run, and when the record of its first one was written."""
    out, told = tmp_path_factory.mktemp("sweep"), []

    def stop(record):
        told.append(record.round)
        if len(told) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play(out, watcher=Watcher(round=stop))
    assert sorted(path.name for path in out.iterdir()) == FOLDERS
    assert [(out / name / "run.json").exists() for name in FOLDERS] == [True, False]
    return out, (out / FOLDERS[0] / "run.json").stat().st_mtime_ns


@pytest.fixture(scope="module")
def finished(stopped):
    """Return the folder of that sweep after it went on, and the rounds that were trained then."""
    out, _ = stopped
    trained = []
    assert [folder.name for folder in play(out, watcher=Watcher(round=trained.append))] == FOLDERS
    return out, trained


class TestGoingOn:
    def test_only_what_was_missing_is_run(self, stopped, finished):
        out, trained = finished
        assert len(trained) == 1
        assert (out / FOLDERS[0] / "run.json").stat().st_mtime_ns == stopped[1]

    def test_each_folder_holds_its_own_settings(self, finished):
        records = [json.loads((finished[0] / name / "run.json").read_text(encoding="utf-8")) for name in FOLDERS]
        assert [record["config"]["strategy"]["name"] for record in records] == ["fedavg", "fedavgm"]
        assert {record["seed"] for record in records} == {1}

    def test_what_is_finished_is_left_as_it_is(self, finished):
        out, trained, begun = finished[0], [], []
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
        play(out, watcher=Watcher(round=trained.append), begun=begun)
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
        assert trained == []
        assert begun == [(f"1 of 2: {FOLDERS[0]}", "fedavg"), (f"2 of 2: {FOLDERS[1]}", "fedavgm")]

    def test_a_run_of_other_settings_is_not_taken_for_this_one(self, finished):
        out = finished[0]
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
        with pytest.raises(UsageError, match=r"strategy\.name=fedavg,seed=1: holds a run of other settings.*--out"):
            play(out, base=BASE | {"rounds": 2})
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


@pytest.mark.parametrize(
    ("grid", "names"),
    [
        (["strategy.name=fedavg,fedagv"], "fedagv"),
        (["training.learning_rate=0.1,-1"], "training.learning_rate"),
        (["rounds=1,many"], "rounds"),
        (["strategy.name=fedavg", "trainig.epochs=1"], "trainig"),
    ],
)
def test_a_mistake_in_the_last_combination_is_found_before_the_first_run(tmp_path, grid, names):
    begun = []
    with pytest.raises(FedwardError, match=names):
        play(tmp_path / "out", grid, begun=begun)
    assert begun == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--grid", "rounds"], "--grid rounds: expected key=value,value"),
        (["--grid", "round=1,2"], "round: unknown key"),
        (["--seeds", "0"], "--seeds 0"),
    ],
)
def test_a_bad_command_is_refused_in_one_line(tmp_path, monkeypatch, capsys, words, hint):
    monkeypatch.chdir(tmp_path)
    assert fedward.main(["sweep", "heart", *words]) == 2
    err = capsys.readouterr().err
    assert hint in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
