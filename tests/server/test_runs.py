"""Runs over real hospitals: their folders, what they leave, and going on after an end that nobody wanted.

The hospitals are reached by the local engine here; over Flower they are reached in tests/federation.
"""

import json
import stat
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from common import flower, joining, keys
from common.config import as_table, dumps
from common.errors import ConfigError, DataError, RunEnded, Unreachable, UsageError
from common.tasks import read_run
from server import coordinator, models, provision, records, runs

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # where Flower builds a bundle


def request(name):
    tls, node, audit = (keys.generate(kind) for kind in ("tls", "node", "audit"))
    return joining.make_request(name, "heart", tls, keys.public_line(node), keys.public_line(audit))


def held(folder):
    """Have a run under way until this process is killed."""

    def grid(*_):
        print("begun", flush=True)
        time.sleep(60)

    coordinator.grid = grid
    federation = provision.open_federation(Path(folder))
    runs.run(federation, read_run({"task": "heart"}), records.new_folder(federation.folder / "runs", "heart"), print)


@pytest.fixture
def study(tmp_path):
    """Make a federation with four hospitals, one of them revoked."""
    made = provision.create(tmp_path / "federation", "Heart Study")
    for name in ("east", "north", "south", "west"):
        made.admit(request(name))
    made.revoke("west")
    return made


@pytest.fixture
def plans(monkeypatch, federation):
    """Reach the hospitals within this process; give the plans of the runs."""
    seen = []

    @contextmanager
    def grid(place, plan):
        seen.append(plan)
        opened = federation.grid()
        with flower.identity(opened.run.run_id):
            yield opened

    monkeypatch.setattr(coordinator, "grid", grid)
    return seen


@pytest.fixture
def play(study, plans):
    def played(config, folder=None, watch=lambda _: None):
        folder = folder or records.new_folder(study.folder / "runs", "heart")
        return folder, runs.run(study, config, folder, watch)

    return played


def stopping_after(number):
    """Return a watcher that stops the run as Ctrl-C does; it is told of a round before that is saved."""

    def watch(record):
        if record.round == number:
            raise KeyboardInterrupt

    return watch


class TestFolders:
    def test_they_are_numbered_after_the_highest(self, tmp_path):
        parent = tmp_path / "runs"
        assert [records.new_folder(parent, "heart").name for _ in range(2)] == ["heart-0001", "heart-0002"]
        (parent / "heart-0041").mkdir()
        (parent / "heart-notes").mkdir()
        (parent / "pneumonia-0099").mkdir()
        assert records.new_folder(parent, "heart").name == "heart-0042"
        assert records.new_folder(parent, "pneumonia").name == "pneumonia-0100"

    def test_only_their_owner_can_look_into_them(self, tmp_path):
        folder = records.new_folder(tmp_path / "runs", "heart", mode=0o700)
        assert {stat.S_IMODE(path.stat().st_mode) for path in (folder, folder.parent)} == {0o700}


class TestRun:
    def test_it_leaves_its_settings_its_model_and_its_record(self, play, federation):
        config = federation.config()
        folder, record = play(config)
        assert {path.name for path in folder.iterdir()} >= {"config.toml", "run.json", models.NAME, "rounds.jsonl"}
        kept = json.loads((folder / "run.json").read_text())
        assert kept == json.loads(json.dumps(record))
        assert kept["federation"] == "Heart Study"
        assert kept["engine"] == "deploy"
        assert len(kept["rounds"]) == 3
        assert kept["weights_sha256"] == records.sha256(models.load(folder / models.NAME).state["weights"])

    def test_the_cohort_is_of_those_who_are_admitted(self, play, plans, federation):
        play(federation.config({"rounds": 1}))
        assert plans[0].cohort == ("east", "north", "south")

    def test_it_is_told_in_a_few_lines(self, play, federation):
        lines = []
        _, record = play(federation.config(), watch=lambda row: lines.append(runs.line(row)))
        assert [line.split()[:6] for line in lines] == [
            ["round", str(number), "4", "of", "4", "hospitals"] for number in (1, 2, 3)
        ]
        assert runs.summary(record).startswith("Heart disease from 13 clinical features: 3 rounds, ")
        assert record["weights_sha256"][:16] in runs.summary(record)

    def test_without_metrics_it_is_told_too(self, play, federation):
        _, record = play(federation.config({"rounds": 1}))
        record["results"]["federated"]["pooled"] = {}
        assert "no metrics came" in runs.summary(record)


class TestEnded:
    """Flower ends a run that it hears nothing of, as when a clock jumps or a machine is too busy."""

    def test_another_goes_on_by_itself_and_ends_as_if_nothing_had_been(self, play, plans, federation):
        config, ends = federation.config(), [2, 3]
        _, whole = play(config)

        def watch(record):
            if record.round in ends:
                ends.remove(record.round)
                raise RunEnded("Flower has ended this run")

        begun = len(plans)
        _, record = play(config, watch=watch)
        assert (ends, len(plans) - begun) == ([], 3)
        assert record["weights_sha256"] == whole["weights_sha256"]
        assert [row["round"] for row in record["rounds"]] == [1, 2, 3]

    def test_one_of_which_no_round_comes_is_over(self, play, plans, federation):
        def watch(record):
            if record.round == 2:
                raise RunEnded("Flower has ended this run")

        with pytest.raises(RunEnded):
            play(federation.config(), watch=watch)
        assert len(plans) == 2


class TestInterrupted:
    @pytest.mark.parametrize("number", [2, 3])
    def test_it_goes_on_and_ends_as_if_nothing_had_been(self, study, play, federation, number):
        config = federation.config()
        _, whole = play(config)
        folder = records.new_folder(study.folder / "runs", "heart")
        with pytest.raises(KeyboardInterrupt):
            play(config, folder, stopping_after(number))
        assert not (folder / "run.json").exists()
        again = runs.reopen(folder)
        assert again == config
        _, record = play(again, folder)
        assert record["weights_sha256"] == whole["weights_sha256"]
        assert [row["round"] for row in record["rounds"]] == [1, 2, 3]

    def test_its_state_is_listed(self, play, federation):
        folder, _ = play(federation.config())
        with pytest.raises(KeyboardInterrupt):
            play(federation.config(), watch=stopping_after(2))
        assert runs.listed(folder.parent) == [
            {"name": "heart-0001", "state": "finished", "rounds": 3, "of": 3},
            {"name": "heart-0002", "state": "interrupted", "rounds": 1, "of": 3},
        ]

    def test_a_damaged_checkpoint_is_listed_all_the_same(self, play, federation):
        folder, _ = play(federation.config({"rounds": 1}))
        (folder / models.NAME).write_bytes(b"PK no more")
        assert runs.listed(folder.parent)[0]["rounds"] == 0

    def test_without_runs_there_is_nothing_to_list(self, tmp_path):
        assert runs.listed(tmp_path / "runs") == []


class TestNothingLeft:
    """Where no round was finished there is nothing to go on with, and no folder that would be listed."""

    def check(self, study, config, error):
        folder = records.new_folder(study.folder / "runs", "heart")
        before = runs.listed(folder.parent)
        with pytest.raises(error):
            runs.run(study, config, folder, lambda _: None)
        assert not folder.exists()
        assert runs.listed(folder.parent) == before

    def test_when_the_federation_is_not_running(self, study, federation):
        self.check(study, federation.config(), Unreachable)

    def test_when_another_process_has_a_run_under_way(self, study, plans, play, federation):
        script = "import sys; from tests.server.test_runs import held; held(*sys.argv[1:])"
        words = [sys.executable, "-c", script, str(study.folder)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as other:
            assert other.stdout.readline() == "begun\n"
            self.check(study, federation.config(), UsageError)
            assert plans == []
            other.kill()
        play(federation.config({"rounds": 1}))

    def test_when_the_settings_contradict_each_other(self, study, plans, federation):
        config = federation.config({"strategy": "scaffold", "training": {"optimizer": "adam"}})
        self.check(study, config, ConfigError)
        assert plans == []

    def test_when_a_hospitals_file_is_damaged(self, study, plans, federation):
        next((study.folder / "members").glob("*.json")).write_text("{")
        self.check(study, federation.config(), DataError)

    def test_when_it_is_stopped_before(self, study, monkeypatch, federation):
        def grid(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(coordinator, "grid", grid)
        self.check(study, federation.config(), KeyboardInterrupt)

    def test_but_what_somebody_put_there_stays(self, study, federation):
        folder = records.new_folder(study.folder / "runs", "heart")
        (folder / "notes.txt").write_text("of the study")
        with pytest.raises(Unreachable):
            runs.run(study, federation.config(), folder, lambda _: None)
        assert (folder / "notes.txt").exists()


class TestReopen:
    def test_one_that_is_finished_is_refused(self, play, federation):
        folder, _ = play(federation.config({"rounds": 1}))
        with pytest.raises(UsageError, match="this run is finished"):
            runs.reopen(folder)

    @pytest.mark.parametrize("name", ["heart-0009", "../runs/x"])
    def test_one_that_does_not_exist_names_those_that_do(self, play, federation, name):
        folder, _ = play(federation.config({"rounds": 1}))
        with pytest.raises(UsageError, match="there are: heart-0001"):
            runs.reopen(folder.parent / name)

    def test_where_there_is_none_that_is_said(self, tmp_path):
        with pytest.raises(UsageError, match="there are: none"):
            runs.reopen(tmp_path / "runs" / "heart-0001")

    @pytest.mark.parametrize("content", [b"rounds = ", b"\xff\xfe", b"rounds = 3\nrounds = 4"])
    def test_damaged_settings_are_said(self, tmp_path, content):
        (tmp_path / "config.toml").write_bytes(content)
        with pytest.raises(DataError, match=r"config\.toml: damaged"):
            runs.reopen(tmp_path)

    def test_settings_that_do_not_exist_are_named(self, tmp_path):
        (tmp_path / "config.toml").write_text('round = 3\n[task]\nname = "heart"\n')
        with pytest.raises(ConfigError, match="round: unknown key"):
            runs.reopen(tmp_path)

    def test_settings_are_read_as_they_were_written(self, tmp_path, federation):
        config = federation.config({"strategy": "fedprox", "rounds": 7})
        (tmp_path / "config.toml").write_text(dumps(as_table(config)))
        assert runs.reopen(tmp_path) == config
