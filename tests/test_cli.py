"""The command line used wrongly, and stopped: one line that says what is wrong, the right exit code, and nothing lost."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pytest_socket import SocketConnectBlockedError

import fedward
from common.tasks.task import take
from server import models
from simulations.datasets import DATASETS

CHECKOUT = Path(fedward.__file__).parent
MIRROR = os.environ.get("FEDWARD_DATA_MIRROR")
SHORT = ["--rounds", "1", "--set", "simulation.comparators=false", "--set", "training.compile=graph"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Run in an empty folder, with no data but what is shipped."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDWARD_DATA_MIRROR", raising=False)
    monkeypatch.setenv("FEDWARD_DATA", str(tmp_path / "cache"))


@pytest.fixture
def refused(capsys):
    """Return the way to run a command that is refused: it gives the exit code and the one line on the error stream."""

    def run(*words):
        code = fedward.main(list(words))
        out, err = capsys.readouterr()
        assert err.startswith("fedward: "), err
        assert err.count("\n") == 1, err
        assert err.endswith("\n")
        assert "Traceback" not in out + err
        return code, err

    return run


SETTINGS = {
    "an unknown task or scenario": (["hart"], ["unknown task or scenario 'hart'", "did you mean 'heart'?"]),
    "no scenario": ([], ["which scenario? Known:", "heart"]),
    "a scenario file that is not there": (["nowhere.toml"], ["nowhere.toml", "cannot be read"]),
    "an unknown data set": (
        ["heart", "--set", "simulation.dataset=hart"],
        ["unknown data set 'hart'", "did you mean 'heart'?"],
    ),
    "an unknown key": (["heart", "--set", "round=3"], ["round: unknown key", "did you mean 'rounds'?"]),
    "an unknown key further down": (
        ["heart", "--set", "training.rate=3"],
        ["training.rate: unknown key", "learning_rate"],
    ),
    "no key": (["heart", "--set", "rounds"], ["--set rounds", "key=value"]),
    "no rounds": (["heart", "--rounds", "0"], ["rounds: expected a number from 1", "got 0"]),
    "a seed below 0": (["heart", "--seed", "-1"], ["seed: expected a number from 0", "got -1"]),
    "a fraction of a round": (["heart", "--set", "rounds=1.5"], ["rounds: expected a whole number, got 1.5"]),
    "not a number": (["heart", "--set", "limits.update_norm=nan"], ["limits.update_norm: expected a number, got nan"]),
    "a list": (["heart", "--set", "task.hidden=[1]"], ["task.hidden: expected a number", "[1] (list)"]),
    "an unknown partition": (
        ["heart", "--partition", "irichlet:1"],
        ["simulation.partition: unknown kind 'irichlet'", "did you mean 'dirichlet'?"],
    ),
    "a partition without a number": (
        ["heart", "--hospitals", "3", "--partition", "dirichlet:x"],
        ["dirichlet:x", "expected a number from"],
    ),
    "a partition out of range": (
        ["heart", "--hospitals", "3", "--partition", "dirichlet:-1"],
        ["dirichlet:-1", "expected a number from"],
    ),
    "a partition without a count": (["heart", "--partition", "iid"], ["simulation.hospitals", "--hospitals 10"]),
    "other hospitals than the data's": (["heart", "--hospitals", "7"], ["simulation.hospitals", "4 hospitals, not 7"]),
    "an empty hospital": (
        ["heart", "--hospitals", "900", "--partition", "iid"],
        ["simulation.partition", "900 hospitals", "fewer than 2"],
    ),
    "an unknown engine": (["heart", "--engine", "rey"], ["simulation.engine", "'rey'", "did you mean 'ray'?"]),
    "an unknown strategy": (
        ["heart", "--set", "strategy.name=fedagv"],
        ["unknown strategy 'fedagv'", "did you mean 'fedavg'?"],
    ),
    "an option that is not the strategy's": (
        ["heart", "--set", "strategy.name=fedprox", "--set", "strategy.nu=1"],
        ["strategy.nu: unknown key", "did you mean 'mu'?"],
    ),
    "a part that the model does not have": (
        ["heart", "--set", "strategy.name=fedbn"],
        ["'normalisation'", "its parts: head, intercept"],
    ),
    "data of another task": (
        ["heart", "--set", "simulation.dataset=notes-synthetic"],
        ["simulation.dataset", "serves the task 'notes'"],
    ),
    "stopping early without validation": (
        ["heart", "--set", "stopping.patience=2"],
        ["stopping.patience", "evaluation.validation"],
    ),
    "a file of tasks that is not there": (["./mine.py"], ["./mine.py: there is no such file", "fedward template"]),
    "a folder that is no run": (["--resume", "."], ["not a run folder", "config.toml is missing"]),
    "a folder that is not there": (["--resume", "nowhere"], ["nowhere: not a run folder"]),
    "resuming with settings": (["--resume", ".", "--rounds", "3"], ["--resume", "no settings beside it"]),
    "resuming with a scenario": (["heart", "--resume", "."], ["--resume", "no scenario"]),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_what_is_typed_wrongly_is_refused_with_a_hint(refused, tmp_path, case):
    words, hints = SETTINGS[case]
    code, line = refused("simulate", *words)
    assert code == 2
    assert all(hint in line for hint in hints), line
    trained = [path for path in tmp_path.rglob("*") if path.name == models.NAME]
    assert not trained


@pytest.mark.parametrize(
    "words", [["bogus"], ["simulate", "heart", "--rounds", "many"], ["simulate", "--no-such-option"], []]
)
def test_what_the_parser_refuses_is_said_in_one_line_too(words, refused):
    code, line = refused(*words)
    assert code == 2
    assert "--help' shows what it takes" in line


class TestData:
    PNEUMONIA = ("simulate", "pneumonia", "--set", "simulation.otherwise=")

    def test_absent_data_say_how_to_get_them(self, refused):
        code, line = refused(*self.PNEUMONIA)
        assert code == 1
        assert "fedward data get pneumonia" in line
        assert "FEDWARD_DATA_MIRROR" in line

    @pytest.mark.parametrize(
        "content", [b"", b"PK\x03\x04 cut off", b"\0" * 4_171_077], ids=["empty", "truncated", "wrong checksum"]
    )
    @pytest.mark.parametrize("otherwise", ["", "pneumonia-synthetic"])
    def test_damaged_data_are_named_and_never_passed_over(self, refused, tmp_path, monkeypatch, content, otherwise):
        mirror = tmp_path / "mirror"
        (mirror / "pneumoniamnist").mkdir(parents=True)
        (mirror / "pneumoniamnist" / "pneumoniamnist.npz").write_bytes(content)
        monkeypatch.setenv("FEDWARD_DATA_MIRROR", str(mirror))
        code, line = refused("simulate", "pneumonia", "--set", f"simulation.otherwise={otherwise}")
        assert code == 1
        assert str(mirror / "pneumoniamnist" / "pneumoniamnist.npz") in line
        assert "checksum" in line

    def test_a_real_set_that_was_cut_off_is_named(self, refused, tmp_path, monkeypatch):
        source = Path(MIRROR or ".") / "pneumoniamnist" / "pneumoniamnist.npz"
        if not source.is_file():
            pytest.skip("the pneumonia data are not here: set FEDWARD_DATA_MIRROR")
        whole = source.read_bytes()
        mirror = tmp_path / "mirror" / "pneumoniamnist"
        mirror.mkdir(parents=True)
        (mirror / "pneumoniamnist.npz").write_bytes(whole[:-1000])
        monkeypatch.setenv("FEDWARD_DATA_MIRROR", str(mirror.parent))
        assert refused(*self.PNEUMONIA)[0] == 1


class TestFolders:
    @pytest.mark.parametrize("out", ["file", "file/below"])
    def test_a_place_where_nothing_can_be_written_is_named(self, refused, tmp_path, out):
        (tmp_path / "file").write_text("in the way")
        code, line = refused("simulate", "heart", *SHORT, "--out", out)
        assert code == 1
        assert "cannot make a run folder" in line
        assert "--out" in line

    def test_a_run_whose_checkpoint_is_damaged_is_not_begun_anew(self, refused, tmp_path):
        from simulations.scenario import find, read

        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "config.toml").write_text(read(find("heart"), {"rounds": 1}).text())
        (tmp_path / "run" / models.NAME).write_bytes(b"PK\x03\x04 cut off")
        code, line = refused("simulate", "--resume", "run")
        assert code == 1
        assert "damaged checkpoint" in line
        assert models.NAME in line

    def test_a_run_whose_settings_are_damaged_is_refused_by_name(self, refused, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "config.toml").write_text("rounds = = 3")
        code, line = refused("simulate", "--resume", "run")
        assert code == 2
        assert "config.toml" in line


class TestOneClass:
    def simulate(self, capsys, *words):
        assert fedward.main(["simulate", "heart", *SHORT, "--json", *words]) == 0
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return json.loads(out)

    def test_hospitals_with_one_class_have_no_auroc_and_the_federation_has(self, capsys):
        record = self.simulate(capsys, "--hospitals", "4", "--partition", "pathological:1")
        assert all(0 in hospital["train"]["classes"] for hospital in record["hospitals"])
        results = record["results"]["federated"]
        assert all(metrics["auroc"][0] is None for metrics in results["hospitals"].values())
        assert 0 < results["pooled"]["auroc"][0] < 1

    def test_one_class_in_all_the_data_is_refused(self, refused, monkeypatch):
        heart = DATASETS["heart"]

        def healthy(folder):
            table = heart.read(folder)
            kept = np.flatnonzero(table.label == 0)
            return replace(
                table,
                records=take(table.records, kept),
                label=table.label[kept],
                hospital=table.hospital[kept],
            )

        monkeypatch.setitem(DATASETS, "heart", replace(heart, read=healthy))
        code, line = refused("simulate", "heart", *SHORT)
        assert code == 1
        assert "heart: expected rows of two classes or more, and all 410 are of one, 'no disease'" in line


def test_no_test_reaches_further_than_this_computer():
    with pytest.raises(SocketConnectBlockedError), pytest.warns(UserWarning, match="192.0.2.1"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()


def command(*words):
    return [sys.executable, "-m", "fedward", *words]


def environment(**more):
    return {**os.environ, "PYTHONPATH": str(CHECKOUT), "FEDWARD_DATA": "cache", **more}


def test_a_real_process_ends_with_one_line_and_the_exit_code():
    done = subprocess.run(command("simulate", "hart"), capture_output=True, text=True, timeout=60, env=environment())
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("fedward: unknown task or scenario 'hart'")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_interrupted_from_the_keyboard_it_goes_on_bit_equal(tmp_path):
    words = [
        "simulate",
        "heart",
        "--rounds",
        "100",
        "--set",
        "strategy.name=scaffold",
        "--set",
        "simulation.comparators=false",
    ]

    def finish(*words):
        done = subprocess.run(command(*words, "--json"), capture_output=True, text=True, timeout=250, env=environment())
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    running = subprocess.Popen(
        command(*words, "--out", "stopped"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    folder = tmp_path / "stopped" / "heart-0001"
    end = time.monotonic() + 120
    while not (folder / models.NAME).exists() and running.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 1
    assert err.strip().splitlines()[-1] == (
        "fedward: stopped; what is finished is kept: go on with 'fedward simulate --resume stopped/heart-0001'"
    )
    assert "Traceback" not in err
    finished = models.load(folder / models.NAME).facts["rounds"]
    assert 1 <= finished < 100
    resumed = finish("simulate", "--resume", str(folder))
    whole = finish(*words, "--out", "whole")
    assert resumed["weights_sha256"] == whole["weights_sha256"]
    assert [row["metrics"] for row in resumed["rounds"]] == [row["metrics"] for row in whole["rounds"]]
    assert (resumed["continued_after"], whole["continued_after"]) == (finished, 0)
    assert resumed["seconds"]["federated"] > sum(row["seconds"] for row in resumed["rounds"])
    # Once finished, there is nothing to go on with, and its record stays as it is.
    again = subprocess.run(
        command("simulate", "--resume", str(folder)), capture_output=True, text=True, timeout=60, env=environment()
    )
    assert again.returncode == 2
    assert "this run is finished" in again.stderr


@pytest.mark.parametrize("place", ["simulations.scenario.find", "server.records.new_folder"])
def test_interrupted_before_there_is_a_run_it_ends_in_one_line(refused, monkeypatch, place):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(place, interrupt)
    code, line = refused("simulate", "heart")
    assert (code, line) == (1, "fedward: stopped\n")
