"""Backups: what comes back is what was there, what was altered is found, and nothing that a file says leads out of the folder."""

import io
import os
import sqlite3
import stat
import tarfile
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import archive, sealing
from common.archive import Kind
from common.errors import DataError, FedwardError, UsageError

KIND = Kind(
    "thing",
    "marker",
    left_out=("run",),
    kept=("run/kept", "run/flower.db"),
    readings={"log": archive.whole_lines, "run/flower.db": archive.database},
)
SECRET = "correct horse"
FILES = {
    "marker": b"1",
    "keys/a.key": b"secret" * 10,
    "deep/er/Zürich 1.json": b"",
    "large": os.urandom(sealing.CHUNK + 700),
    "run/kept": b"kept",
}
LEFT_OUT = {"run/x.log": b"transient", "members/.lock": b"", "members/.x.part": b"half", "pid": b"1"}


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "made"
    for name, content in (FILES | LEFT_OUT).items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(content)
    return made


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("passphrase", [None, SECRET])
class TestRoundTrip:
    def test_what_was_there_is_there_again_for_its_owner_alone(self, folder, tmp_path, passphrase):
        assert archive.write(folder, tmp_path / "file", KIND, "St Mary", passphrase) == len(FILES)
        assert archive.restore(tmp_path / "file", tmp_path / "new", KIND, passphrase) == "St Mary"
        assert content(tmp_path / "new") == FILES
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600
        for path in (tmp_path / "new").rglob("*"):
            assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path

    def test_any_byte_turned_is_found_and_nothing_is_left(self, folder, tmp_path, passphrase):
        file = tmp_path / "file"
        archive.write(folder, file, KIND, "St Mary", passphrase)
        whole, step = file.read_bytes(), 9973
        for place in [*range(0, len(whole), step * 11), 1, 100, len(whole) - 1]:
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(FedwardError):
                archive.restore(file, tmp_path / "new", KIND, passphrase)
            assert not (tmp_path / "new").exists()

    def test_one_that_was_cut_off_is_found(self, folder, tmp_path, passphrase):
        file = tmp_path / "file"
        archive.write(folder, file, KIND, "St Mary", passphrase)
        whole = file.read_bytes()
        for size in (0, 10, 600, len(whole) // 2, len(whole) - 512, len(whole) - 1):
            file.write_bytes(whole[:size])
            with pytest.raises(FedwardError):
                archive.restore(file, tmp_path / "new", KIND, passphrase)
            assert not (tmp_path / "new").exists()
        file.write_bytes(whole + b"x")
        with pytest.raises(FedwardError):
            archive.restore(file, tmp_path / "new", KIND, passphrase)

    def test_that_of_something_else_is_refused(self, folder, tmp_path, passphrase):
        archive.write(folder, tmp_path / "file", KIND, "St Mary", passphrase)
        with pytest.raises(UsageError, match="backup of a other, got that of a 'thing'"):
            archive.restore(tmp_path / "file", tmp_path / "new", Kind("other", "marker"), passphrase)
        assert not (tmp_path / "new").exists()


class TestSealed:
    def test_nothing_of_it_can_be_read(self, folder, tmp_path):
        archive.write(folder, tmp_path / "file", KIND, "St Mary", SECRET)
        sealed = (tmp_path / "file").read_bytes()
        for told in (b"St Mary", b"marker", b"secret", FILES["large"][:64]):
            assert told not in sealed
        archive.write(folder, tmp_path / "again", KIND, "St Mary", SECRET)
        assert (tmp_path / "again").read_bytes()[200:] != sealed[200:]

    @pytest.mark.parametrize(
        ("sealed", "given", "said"),
        [
            (SECRET, "wrong", "wrong passphrase"),
            (SECRET, None, "is sealed; set the passphrase"),
            (None, SECRET, "not sealed"),
        ],
    )
    def test_the_passphrase_has_to_fit(self, folder, tmp_path, sealed, given, said):
        archive.write(folder, tmp_path / "file", KIND, "St Mary", sealed)
        with pytest.raises(UsageError, match=said):
            archive.restore(tmp_path / "file", tmp_path / "new", KIND, given)
        assert not (tmp_path / "new").exists()

    def test_an_empty_one_is_none(self, folder, tmp_path):
        with pytest.raises(UsageError, match="empty"):
            archive.write(folder, tmp_path / "file", KIND, "St Mary", "")
        assert [path.name for path in tmp_path.iterdir()] == ["made"]

    def test_chunks_can_not_change_places(self, tmp_path):
        (tmp_path / "made").mkdir()
        (tmp_path / "made" / "marker").write_bytes(os.urandom(4 * sealing.CHUNK))
        file = tmp_path / "file"
        archive.write(tmp_path / "made", file, KIND, "St Mary", SECRET)
        whole = file.read_bytes()
        begin, size = whole.index(b"\n", len(archive.SEALED)) + 1, sealing.CHUNK + sealing.TAG
        one, two = whole[begin : begin + size], whole[begin + size : begin + 2 * size]
        for other in (two + one + whole[begin + 2 * size :], one + whole[begin + 2 * size :], one):
            file.write_bytes(whole[:begin] + other)
            with pytest.raises(UsageError, match="damaged"):
                archive.restore(file, tmp_path / "new", KIND, SECRET)


def forged(path, *members):
    """Write a tar of (name, type, content or link) with a manifest of all that are files."""
    digests, out = {}, io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as made:
        for name, kind, what in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            data = what if kind == tarfile.REGTYPE else b""
            info.size, info.linkname = len(data), "" if kind == tarfile.REGTYPE else what
            made.addfile(info, io.BytesIO(data))
            digests[name] = archive.hashlib.sha256(data).hexdigest()
        manifest = archive.json.dumps({"kind": "thing", "name": "x", "files": digests}).encode()
        info = tarfile.TarInfo(archive.MANIFEST)
        info.size = len(manifest)
        made.addfile(info, io.BytesIO(manifest))
    body = out.getvalue()
    # A tar of Python's ends in more empty blocks than a backup.
    path.write_bytes(body.rstrip(b"\0") + bytes(-len(body.rstrip(b"\0")) % 512 + 1024))


class TestHostile:
    def test_one_that_is_good_passes(self, tmp_path):
        forged(tmp_path / "file", ("marker", tarfile.REGTYPE, b"1"), ("a/b", tarfile.REGTYPE, b"2"))
        archive.restore(tmp_path / "file", tmp_path / "new", KIND)
        assert content(tmp_path / "new") == {"marker": b"1", "a/b": b"2"}

    @pytest.mark.parametrize(
        "name", ["/etc/x", "../x", "a/../../x", "..", ".", "a//b", "./a", "a/", "a/./b", "a\nb", "\x1b[2J", "//x", ""]
    )
    def test_a_name_that_leads_out_or_has_another_spelling(self, tmp_path, name):
        forged(tmp_path / "file", ("marker", tarfile.REGTYPE, b"1"), (name, tarfile.REGTYPE, b"2"))
        before = set(tmp_path.rglob("*"))
        with pytest.raises(FedwardError):
            archive.restore(tmp_path / "file", tmp_path / "new", KIND)
        assert set(tmp_path.rglob("*")) == before

    @pytest.mark.parametrize(
        "kind",
        [
            tarfile.SYMTYPE,
            tarfile.LNKTYPE,
            tarfile.DIRTYPE,
            tarfile.FIFOTYPE,
            tarfile.CHRTYPE,
            tarfile.GNUTYPE_LONGNAME,
        ],
    )
    def test_what_is_no_file(self, tmp_path, kind):
        forged(tmp_path / "file", ("marker", tarfile.REGTYPE, b"1"), ("link", kind, "/etc/passwd"))
        with pytest.raises(FedwardError, match="damaged"):
            archive.restore(tmp_path / "file", tmp_path / "new", KIND)
        assert not (tmp_path / "new").exists()

    @pytest.mark.parametrize("names", [("a", "a"), ("a", "a/b"), ("a/b", "a")])
    def test_two_of_a_name(self, tmp_path, names):
        forged(tmp_path / "file", *((name, tarfile.REGTYPE, b"1") for name in names))
        with pytest.raises(FedwardError):
            archive.restore(tmp_path / "file", tmp_path / "new", KIND)
        assert not (tmp_path / "new").exists()

    def test_a_size_that_is_not_there_takes_no_room(self, tmp_path):
        info = tarfile.TarInfo("marker")
        info.size = 7 << 30
        (tmp_path / "file").write_bytes(info.tobuf(tarfile.USTAR_FORMAT) + b"x" * 1000)
        with pytest.raises(DataError, match="damaged"):
            archive.restore(tmp_path / "file", tmp_path / "new", KIND)

    def test_sealed_parameters_that_would_take_the_machine(self, tmp_path):
        header = {
            "kdf": "argon2id",
            "memory_kib": 2**40,
            "iterations": 3,
            "lanes": 4,
            "salt": "AAAAAAAAAAAAAAAAAAAAAA==",
        }
        (tmp_path / "file").write_bytes(archive.SEALED + archive.json.dumps(header).encode() + b"\n" + bytes(100))
        with pytest.raises(DataError, match="damaged"):
            archive.restore(tmp_path / "file", tmp_path / "new", KIND, SECRET)

    @given(noise=st.binary(max_size=3000))
    def test_noise(self, tmp_path_factory, noise):
        folder = tmp_path_factory.mktemp("noise")
        (folder / "file").write_bytes(noise)
        with pytest.raises(FedwardError):
            archive.restore(folder / "file", folder / "new", KIND)
        assert not (folder / "new").exists()


class TestPlaces:
    def test_a_folder_with_something_in_it_stays_as_it_is(self, folder, tmp_path):
        archive.write(folder, tmp_path / "file", KIND, "x")
        before = content(folder)
        with pytest.raises(UsageError, match="not empty"):
            archive.restore(tmp_path / "file", folder, KIND)
        assert content(folder) == before

    def test_a_file_that_exists_is_not_overwritten(self, folder, tmp_path):
        (tmp_path / "file").write_text("the last backup")
        with pytest.raises(UsageError, match="exists already"):
            archive.write(folder, tmp_path / "file", KIND, "x")
        assert (tmp_path / "file").read_text() == "the last backup"

    @pytest.mark.parametrize("name", ["file", "keys/file"])
    def test_no_backup_lies_in_what_it_keeps(self, folder, name):
        with pytest.raises(UsageError, match="outside"):
            archive.write(folder, folder / name, KIND, "x")

    def test_a_place_that_can_not_be_written(self, folder, tmp_path):
        with pytest.raises(DataError, match="cannot be read or written"):
            archive.write(folder, tmp_path / "nowhere" / "file", KIND, "x")
        with pytest.raises(DataError, match="cannot be read"):
            archive.restore(tmp_path / "nowhere", tmp_path / "new", KIND)

    def test_a_disk_that_is_full_leaves_nothing(self, folder, tmp_path, monkeypatch):
        def full(_):
            raise OSError(28, "No space left on device")

        archive.write(folder, tmp_path / "file", KIND, "x")
        monkeypatch.setattr(archive.os, "fsync", full)
        with pytest.raises(DataError, match="No space left"):
            archive.restore(tmp_path / "file", tmp_path / "new", KIND)
        with pytest.raises(DataError, match="No space left"):
            archive.write(folder, tmp_path / "other", KIND, "x")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "made"]

    @pytest.mark.parametrize("target", ["keys", "marker", "nowhere"])
    def test_links_are_refused(self, folder, tmp_path, target):
        (folder / "linked").symlink_to(folder / target)
        with pytest.raises(UsageError, match="is a link"):
            archive.write(folder, tmp_path / "file", KIND, "x")
        assert not (tmp_path / "file").exists()


class TestWhileOthersWrite:
    def test_a_log_ends_with_a_whole_line(self, folder, tmp_path):
        (folder / "log").write_bytes(b"one\ntwo\nthr")
        archive.write(folder, tmp_path / "file", KIND, "x")
        archive.restore(tmp_path / "file", tmp_path / "new", KIND)
        assert (tmp_path / "new" / "log").read_bytes() == b"one\ntwo\n"

    def test_a_database_is_that_of_one_moment(self, folder, tmp_path):
        """One row a transaction into each of two tables: a copy in between would have more in one."""
        path = folder / "run" / "flower.db"
        base = sqlite3.connect(path, isolation_level=None)
        base.executescript("PRAGMA journal_mode=WAL; CREATE TABLE a (x); CREATE TABLE b (x);")
        over, written = threading.Event(), threading.Event()

        def write():
            other = sqlite3.connect(path, isolation_level=None)
            while not over.is_set():
                other.execute("BEGIN")
                other.execute("INSERT INTO a VALUES (1)")
                other.execute("INSERT INTO b VALUES (1)")
                other.execute("COMMIT")
                written.set()
            other.close()

        thread = threading.Thread(target=write)
        thread.start()
        try:
            assert written.wait(10)
            for number in range(5):
                archive.write(folder, tmp_path / f"{number}", KIND, "x")
                archive.restore(tmp_path / f"{number}", tmp_path / f"new{number}", KIND)
                copy = sqlite3.connect(tmp_path / f"new{number}" / "run" / "flower.db")
                assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
                (one,), (two,) = (copy.execute(f"SELECT count(*) FROM {name}").fetchone() for name in "ab")
                copy.close()
                assert one == two > 0
        finally:
            over.set()
            thread.join()
            base.close()
        assert not [path for path in (folder / "run").iterdir() if path.is_dir()]

    def test_a_damaged_database_is_said(self, folder, tmp_path):
        (folder / "run" / "flower.db").write_bytes(b"no database" * 1000)
        with pytest.raises(DataError, match=r"flower\.db: cannot be copied"):
            archive.write(folder, tmp_path / "file", KIND, "x")
        assert not (tmp_path / "file").exists()

    def test_a_record_that_is_written_meanwhile_belongs_to_the_next_backup(self, folder, tmp_path, monkeypatch):
        """Else a run would count as finished whose model was not there yet when it was its turn."""
        (folder / "one").mkdir()
        (folder / "one" / "run.json").write_text("{}")
        (folder / "two").mkdir()
        sort = sorted

        def later(paths, **words):
            (folder / "two" / "run.json").write_text("{}")
            return sort([*paths, folder / "two" / "run.json"], **words)

        monkeypatch.setattr(archive, "sorted", later, raising=False)
        archive.write(folder, tmp_path / "file", KIND, "x")
        monkeypatch.undo()
        archive.restore(tmp_path / "file", tmp_path / "new", KIND)
        assert (tmp_path / "new" / "one" / "run.json").exists()
        assert not (tmp_path / "new" / "two").exists()

    def test_what_goes_away_meanwhile_is_left_out(self, folder, tmp_path, monkeypatch):
        monkeypatch.setattr(archive, "_files", lambda *_: [folder / "gone", folder / "marker"])
        assert archive.write(folder, tmp_path / "file", KIND, "x") == 1


@pytest.mark.parametrize(
    ("sealed", "bare", "warned"), [(True, True, False), (False, True, True), (False, False, False)]
)
def test_keys_that_anyone_could_use_are_warned_of(tmp_path, sealed, bare, warned):
    facts, text = archive.told(tmp_path / "file", 3, sealed=sealed, bare_keys=bare)
    assert ("WARNING" in text) == facts["bare_keys"] == warned
