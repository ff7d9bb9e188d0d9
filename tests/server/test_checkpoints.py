"""Checkpoints: a run that was stopped anywhere goes on as if it had not been, and a damaged file is named."""

import errno
import os
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common.errors import ConfigError, DataError
from server import models
from server.models import NAME, Checkpoint
from server.records import sha256
from simulations.engines import Shelf

ROUNDS = 3
METHODS = {
    "fedavg": {},
    "decay": {"training": {"learning_rate_decay": 0.5, "optimizer": "adam"}, "selection": {"fraction": 0.5}},
    "fedadam": {"strategy": "fedadam"},
    "scaffold": {"strategy": "scaffold"},
    "personal": {"strategy": "personal"},
    "intercept": {"task": {"site_intercept": True}},
    "int8": {"update": {"codec": "int8"}},
    "balanced": {"training": {"class_weights": "balanced"}},
    "topk": {"update": {"codec": "topk", "keep": 0.1}, "strategy": "scaffold"},
}


def play(federation, settings, folder=None, stop_after=None):
    """Run as the local engine does, hospitals' states kept beside the checkpoint; perhaps stop after a round, before it is saved."""
    grid = federation.grid()
    watch = None
    if folder:
        shelf = Shelf(folder, grid.contexts)
        shelf.load()

        def watch(record):
            shelf.save(record.round)
            if record.round == stop_after:
                raise KeyboardInterrupt

    return federation.run(settings, grid=grid, folder=folder, watch=watch)


def facts_of(outcome):
    return [{**asdict(record), "seconds": 0.0} for record in outcome.rounds]


@pytest.fixture(scope="module")
def uninterrupted(federation):
    """Return the outcome of a method's whole run, played once."""
    played = {}

    def outcome(name):
        if name not in played:
            played[name] = play(federation, METHODS[name])
        return played[name]

    return outcome


class TestResume:
    @pytest.mark.parametrize("stop_after", range(1, ROUNDS + 1))
    @pytest.mark.parametrize("name", METHODS)
    def test_stopped_in_any_round_it_goes_on_bit_equal(self, federation, uninterrupted, tmp_path, name, stop_after):
        with pytest.raises(KeyboardInterrupt):
            play(federation, METHODS[name], tmp_path, stop_after)
        resumed = play(federation, METHODS[name], tmp_path)
        expected = uninterrupted(name)
        assert sha256(resumed.model.weights) == sha256(expected.model.weights)
        assert facts_of(resumed) == facts_of(expected)
        assert resumed.tests.keys() == expected.tests.keys()
        for hospital, parts in resumed.tests.items():
            for key, value in parts.items():
                np.testing.assert_array_equal(value, expected.tests[hospital][key])

    def test_what_hospitals_keep_matters(self, federation, uninterrupted, tmp_path):
        """Without the shelf, each of these methods would end elsewhere; so the tests above can fail."""
        for name in ("scaffold", "personal", "intercept", "int8"):
            folder = tmp_path / name
            folder.mkdir()
            with pytest.raises(KeyboardInterrupt):
                play(federation, METHODS[name], folder, ROUNDS)
            for file in folder.glob("hospitals-*"):
                file.unlink()
            resumed = play(federation, METHODS[name], folder)
            different = sha256(resumed.model.weights) != sha256(uninterrupted(name).model.weights)
            assert (
                different
                or resumed.tests["east"]["losses"].tolist() != uninterrupted(name).tests["east"]["losses"].tolist()
            )

    def test_stopped_again_and_again(self, federation, uninterrupted, tmp_path):
        for stop_after in (2, 2, 3, 3):
            with pytest.raises(KeyboardInterrupt):
                play(federation, METHODS["scaffold"], tmp_path, stop_after)
        resumed = play(federation, METHODS["scaffold"], tmp_path)
        assert sha256(resumed.model.weights) == sha256(uninterrupted("scaffold").model.weights)

    def test_a_finished_run_trains_nothing_more(self, federation, uninterrupted, tmp_path):
        play(federation, METHODS["fedavg"], tmp_path)
        before = (tmp_path / NAME).read_bytes()
        again = play(federation, METHODS["fedavg"], tmp_path)
        assert (tmp_path / NAME).read_bytes() == before
        assert facts_of(again) == facts_of(uninterrupted("fedavg"))

    def test_hospitals_states_of_three_rounds_stay(self, federation, tmp_path):
        play(federation, {**METHODS["scaffold"], "rounds": 5}, tmp_path)
        kept = sorted(path.name for path in tmp_path.glob("hospitals-*"))
        assert kept == [f"hospitals-0000{number}.npz" for number in (3, 4, 5)]

    def test_a_checkpoint_that_is_written_late_still_finds_its_hospitals_states(
        self, federation, uninterrupted, tmp_path, monkeypatch
    ):
        """A checkpoint is written while the next round runs, so that of round 1 may be the last one when round 3 is over."""
        write, checkpoints = models.write, []

        def fail_from_the_second_on(path, content):
            checkpoints.extend([path] if path.name == NAME else [])
            if path.name == NAME and len(checkpoints) > 1:
                raise DataError(f"{path}: cannot be written")
            write(path, content)

        monkeypatch.setattr(models, "write", fail_from_the_second_on)
        with pytest.raises(DataError, match="cannot be written"):
            play(federation, METHODS["scaffold"], tmp_path)
        monkeypatch.undo()
        assert models.load(tmp_path / NAME).facts["rounds"] == 1
        resumed = play(federation, METHODS["scaffold"], tmp_path)
        assert sha256(resumed.model.weights) == sha256(uninterrupted("scaffold").model.weights)

    @pytest.mark.fault(4, passes_when="a round's record without its checkpoint does not count; the run ends bit-equal")
    def test_a_record_that_was_written_without_its_checkpoint_does_not_count(self, federation, uninterrupted, tmp_path):
        with pytest.raises(KeyboardInterrupt):
            play(federation, METHODS["fedavg"], tmp_path, ROUNDS)
        with (tmp_path / models.HISTORY).open("ab") as file:
            file.write(b'{"round": 3, "ask')
        resumed = play(federation, METHODS["fedavg"], tmp_path)
        assert facts_of(resumed) == facts_of(uninterrupted("fedavg"))
        assert len((tmp_path / models.HISTORY).read_bytes().splitlines()) == ROUNDS

    @pytest.mark.parametrize("damage", [lambda text: text[:-5], lambda text: b"{" + text[:-1], lambda _: None])
    @pytest.mark.fault(4, passes_when="rounds.jsonl, cut or gone, is named")
    def test_records_that_are_gone_are_missed(self, federation, tmp_path, damage):
        with pytest.raises(KeyboardInterrupt):
            play(federation, METHODS["fedavg"], tmp_path, ROUNDS)
        path = tmp_path / models.HISTORY
        left = damage(path.read_bytes())
        path.unlink()
        if left is not None:
            path.write_bytes(left)
        with pytest.raises(DataError, match=r"rounds.jsonl: damaged, or not the one that belongs to checkpoint.npz"):
            play(federation, METHODS["fedavg"], tmp_path)

    def test_hospitals_states_that_are_gone_are_missed(self, federation, tmp_path):
        with pytest.raises(KeyboardInterrupt):
            play(federation, METHODS["scaffold"], tmp_path, ROUNDS)
        (tmp_path / f"hospitals-0000{ROUNDS - 1}.npz").unlink()
        with pytest.raises(DataError, match=f"hospitals-0000{ROUNDS - 1}.npz: missing"):
            play(federation, METHODS["scaffold"], tmp_path)

    def test_hospitals_that_keep_nothing_leave_no_file(self, federation, tmp_path):
        play(federation, METHODS["fedavg"], tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == [NAME, models.HISTORY]


states = st.dictionaries(
    st.text("abc/_", min_size=1, max_size=8),
    hnp.arrays(st.sampled_from([np.float32, np.int64, np.float64]), hnp.array_shapes(min_dims=0, max_side=4)),
    max_size=4,
)
facts = st.dictionaries(
    st.text(max_size=5), st.integers() | st.floats(allow_nan=False) | st.text(max_size=5), max_size=3
)


class TestFiles:
    @given(states, facts)
    def test_load_undoes_save(self, tmp_path_factory, state, facts):
        path = tmp_path_factory.mktemp("checkpoint") / NAME
        models.save(path, Checkpoint(state, facts))
        loaded = models.load(path)
        assert loaded.facts == facts
        assert set(loaded.state) == set(state)
        for name, array in state.items():
            assert loaded.state[name].dtype == array.dtype
            assert loaded.state[name].tobytes() == array.tobytes()

    def test_no_file_is_no_checkpoint(self, tmp_path):
        assert models.load(tmp_path / NAME) is None

    @pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
    @pytest.mark.fault(4, passes_when="a checkpoint, cut, is named")
    def test_a_file_cut_off_is_named(self, tmp_path, share):
        path = tmp_path / NAME
        models.save(path, Checkpoint({"weights": np.ones(1000, np.float32)}, {"rounds": []}))
        data = path.read_bytes()
        path.write_bytes(data[: int(share * len(data))])
        with pytest.raises(DataError, match="damaged checkpoint") as caught:
            models.load(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.fault(9, passes_when="a byte of a checkpoint turned is found, or harmless")
    def test_a_byte_turned_anywhere_is_found_or_harmless(self, tmp_path):
        path = tmp_path / NAME
        weights = np.arange(50, dtype=np.float32)
        models.save(path, Checkpoint({"weights": weights}, {"rounds": [1, 2]}))
        data = path.read_bytes()
        found = 0
        for place in range(len(data)):
            path.write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
            try:
                loaded = models.load(path)
            except DataError as error:
                assert str(path) in str(error)
                found += 1
                continue
            np.testing.assert_array_equal(loaded.state["weights"], weights)
        assert found > len(data) / 2

    def test_pickled_content_is_never_read(self, tmp_path):
        path = tmp_path / NAME
        with path.open("wb") as file:
            np.savez(file, facts=np.array([{}], object))
        with pytest.raises(DataError, match="damaged"):
            models.load(path)

    def test_a_run_of_other_settings_is_refused_before_those_of_the_one_that_is_here_are_overwritten(
        self, federation, tmp_path
    ):
        from simulations import run, scenario

        over = {"rounds": 1, "simulation": {"comparators": False}}
        run.simulate(scenario.read(scenario.find("heart"), over), tmp_path, "")
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
        with pytest.raises(ConfigError, match="of a run with other settings; choose another folder"):
            run.simulate(scenario.read(scenario.find("heart"), {**over, "seed": 9}), tmp_path, "")
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before

    @pytest.mark.fault(4, passes_when="a run does not go on from a damaged checkpoint, and keeps it")
    def test_a_damaged_checkpoint_stops_the_resumed_run_and_is_kept(self, federation, tmp_path):
        play(federation, {**METHODS["fedavg"], "rounds": 1}, tmp_path)
        path = tmp_path / NAME
        path.write_bytes(path.read_bytes()[:200])
        with pytest.raises(DataError, match="damaged checkpoint"):
            play(federation, METHODS["fedavg"], tmp_path)
        assert path.stat().st_size == 200


class Full:
    """A file on a disk that is full after so many bytes."""

    def __init__(self, file):
        self._file = file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def write(self, content):
        self._file.write(bytes(content[:100]))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class TestFullDisk:
    def fill(self, patch):
        opened = models.Path.open
        patch.setattr(
            models.Path,
            "open",
            lambda path, mode="r": Full(opened(path, mode)) if "w" in mode or "+" in mode else opened(path, mode),
        )

    def test_it_is_said_and_the_last_checkpoint_stays(self, tmp_path, monkeypatch):
        path = tmp_path / NAME
        models.save(path, Checkpoint({"weights": np.ones(3)}, {"rounds": [1]}))
        self.fill(monkeypatch)
        with pytest.raises(DataError, match=r"cannot be written \(No space left on device\)") as caught:
            models.save(path, Checkpoint({"weights": np.zeros(3)}, {"rounds": [1, 2]}))
        assert str(path) in str(caught.value)
        monkeypatch.undo()
        assert models.load(path).facts == {"rounds": [1]}
        assert [file.name for file in tmp_path.iterdir()] == [NAME]

    def test_the_run_goes_on_when_there_is_space_again(self, federation, uninterrupted, tmp_path, monkeypatch):
        with pytest.raises(KeyboardInterrupt):
            play(federation, METHODS["scaffold"], tmp_path, 2)
        self.fill(monkeypatch)
        with pytest.raises(DataError, match="No space left"):
            play(federation, METHODS["scaffold"], tmp_path)
        monkeypatch.undo()
        assert not list(tmp_path.glob(".*"))
        resumed = play(federation, METHODS["scaffold"], tmp_path)
        assert sha256(resumed.model.weights) == sha256(uninterrupted("scaffold").model.weights)

    def test_a_rename_that_fails_leaves_no_part_file(self, tmp_path, monkeypatch):
        path = tmp_path / NAME
        models.write(path, b"old")

        def refuse(*_):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        monkeypatch.setattr(models.Path, "replace", refuse)
        with pytest.raises(DataError, match="Read-only file system"):
            models.write(path, b"new")
        assert path.read_bytes() == b"old"
        assert [file.name for file in tmp_path.iterdir()] == [NAME]

    def test_a_folder_that_is_gone_is_said(self, tmp_path):
        with pytest.raises(DataError, match="No such file"):
            models.write(tmp_path / "gone" / NAME, b"x")

    def test_it_is_flushed_to_disk_before_it_gets_its_name(self, tmp_path, monkeypatch):
        order = []
        fsync, rename = os.fsync, models.Path.replace
        monkeypatch.setattr(os, "fsync", lambda descriptor: order.append("fsync") or fsync(descriptor))
        monkeypatch.setattr(models.Path, "replace", lambda *paths: order.append("rename") or rename(*paths))
        models.write(tmp_path / NAME, b"x")
        assert order[:2] == ["fsync", "rename"]
