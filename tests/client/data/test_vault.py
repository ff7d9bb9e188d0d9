"""The vault: what is opened is what was sealed, nothing stands on disk in the clear, and any change is noticed."""

import errno
import os
import stat
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from client.data import vault
from client.data.split import PARTS, Parts
from common import sealing
from common.errors import DataError, UsageError
from common.tasks.heart import Heart
from common.tasks.notes import Notes
from common.tasks.pneumonia import Pneumonia

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
NOTES, XRAY, HEART = Notes().build(), Pneumonia().build(), Heart().build()
CANARY = "Zqcanary-金丝雀"


def make(rows=5, seed=1, text=CANARY):
    """Make parts of so many rows each: a text, a number and an image."""
    draw = np.random.default_rng(seed)
    records = {
        part: {
            "text": np.array([f"{text} {part} {row}" for row in range(rows)], object),
            "label": draw.integers(0, 2, rows),
            "value": draw.normal(size=rows),
            "image": draw.integers(0, 256, (rows, 4, 4), np.uint8),
        }
        for part in PARTS
    }
    return Parts(records, {part: np.arange(rows) for part in PARTS}, duplicates=3)


def same(one, other):
    assert one.duplicates == other.duplicates
    for part in PARTS:
        assert one.records[part].keys() == other.records[part].keys()
        for name, values in one.records[part].items():
            assert values.dtype == other.records[part][name].dtype
            assert values.shape == other.records[part][name].shape
            np.testing.assert_array_equal(values, other.records[part][name])
        np.testing.assert_array_equal(one.patients[part], other.patients[part])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data.vault"


arrays = st.one_of(
    hnp.arrays(
        st.sampled_from([np.float64, np.int64, np.uint8, np.float32, np.bool_, ">f8"]), hnp.array_shapes(max_side=4)
    ),
    hnp.arrays(object, st.integers(0, 4), elements=st.text(max_size=5)),
    st.just(np.zeros((0, 28, 28), np.uint8)),
)


class TestSealing:
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
    @given(st.dictionaries(st.text(min_size=1, max_size=5), arrays, min_size=1, max_size=3), st.integers(1, 200))
    def test_unseal_undoes_seal_whatever_the_chunks(self, path, records, chunk):
        parts = Parts(dict.fromkeys(PARTS, records), {part: np.arange(2) for part in PARTS})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sealing, "CHUNK", chunk)
            vault.seal(path, parts, NOTES, KEY, "east")
            opened = vault.unseal(path, NOTES, KEY, "east")
        for part in PARTS:
            assert opened.records[part].keys() == records.keys()
            for name, values in records.items():
                found = opened.records[part][name]
                assert found.shape == values.shape
                np.testing.assert_array_equal(found, values)

    @pytest.mark.parametrize("rows", [0, 1, 20_000])
    def test_any_count_of_rows(self, path, rows):
        parts = make(rows)
        vault.seal(path, parts, NOTES, KEY, "east")
        assert (path.stat().st_size > sealing.CHUNK) == (rows > 1)
        same(vault.unseal(path, NOTES, KEY, "east"), parts)

    def test_the_header_tells_task_site_and_counts_without_the_key(self, path):
        header = vault.seal(path, make(), NOTES, KEY, "east")
        assert vault.header_of(path) == header
        assert (header.task, header.site) == ("notes", "east")
        assert header.counts["train"] == {"rows": 5, "patients": 5}

    def test_two_seals_of_the_same_rows_have_nothing_in_common(self, path):
        vault.seal(path, make(100), NOTES, KEY, "east")
        first = path.read_bytes().split(b"\n", 2)[2]
        vault.seal(path, make(100), NOTES, KEY, "east")
        second = path.read_bytes().split(b"\n", 2)[2]
        equal = sum(one == other for one, other in zip(first, second, strict=True))
        assert equal < len(first) / 100

    def test_a_chunk_is_aes_256_gcm_under_the_derived_key(self, path):
        """The oracle is the format, written down here a second time."""
        import hashlib

        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        header = vault.seal(path, make(), NOTES, KEY, "east")
        magic, line, sealed = path.read_bytes().split(b"\n", 2)
        key = HKDF(SHA256(), 32, bytes.fromhex(header.salt), b"fedward vault 1").derive(KEY)
        bound = hashlib.sha256(magic + b"\n" + line + b"\n").digest()
        plain = AESGCM(key).decrypt(bytes(11) + b"\x01", sealed, bound)
        assert len(plain) == header.size
        assert CANARY.encode() in plain or CANARY.encode("unicode_escape") in plain

    def test_what_comes_out_becomes_a_hospital_that_can_be_written_to(self, path):
        vault.seal(path, make(), NOTES, KEY, "east")
        hospital = vault.unseal(path, NOTES, KEY, "east").hospital("east")
        hospital.train["value"][0] = 1.0
        assert hospital.train["value"].flags.aligned


def forms(text):
    """Return the ways in which a text could stand on disk."""
    escaped = text.encode("unicode_escape")
    return [text.encode(coding) for coding in ("utf-8", "utf-16-le", "utf-32-le", "gb18030")] + [escaped]


class TestNothingInTheClear:
    def test_no_byte_on_disk_tells_a_row_at_any_moment(self, tmp_path, monkeypatch):
        """Every write and rename is preceded by a look at all files of the folder, and of the folder for temporary files."""
        temporary = tmp_path / "tmp"
        temporary.mkdir()
        monkeypatch.setenv("TMPDIR", str(temporary))
        seen = []
        begun = set(vault.Path("/dev/shm").iterdir()) if vault.Path("/dev/shm").is_dir() else set()

        def look():
            files = [file for file in tmp_path.rglob("*") if file.is_file()]
            seen.extend((file.name, stat.S_IMODE(file.stat().st_mode), file.read_bytes()) for file in files)

        encrypt, fsync = sealing._nonce, os.fsync
        monkeypatch.setattr(sealing, "_nonce", lambda *given, **named: look() or encrypt(*given, **named))
        monkeypatch.setattr(os, "fsync", lambda descriptor: look() or fsync(descriptor))
        monkeypatch.setattr(sealing, "CHUNK", 256)
        vault.seal(tmp_path / "data.vault", make(50), NOTES, KEY, "east")
        vault.unseal(tmp_path / "data.vault", NOTES, KEY, "east")
        look()
        assert len(seen) > 20
        assert {name for name, _, _ in seen} == {".data.vault.part", "data.vault"}
        assert {mode for _, mode, _ in seen} == {0o600}
        for _, _, content in seen:
            assert not any(form in content for word in (CANARY, "Zqcanary") for form in forms(word))
        assert not list(temporary.iterdir())
        if vault.Path("/dev/shm").is_dir():
            assert not [file for file in set(vault.Path("/dev/shm").iterdir()) - begun if "vault" in file.name]

    def test_the_canary_would_be_seen(self, tmp_path, monkeypatch):
        """Without encryption the grep finds it; so the test above can fail."""

        class Open:
            def __init__(self, _key):
                pass

            def encrypt(self, _nonce, chunk, _bound):
                return chunk + bytes(16)

        monkeypatch.setattr(vault, "AESGCM", Open)
        vault.seal(tmp_path / "data.vault", make(50), NOTES, KEY, "east")
        content = (tmp_path / "data.vault").read_bytes()
        assert b"Zqcanary" in content

    def test_it_is_for_the_owner_alone_whatever_the_umask(self, path):
        before = os.umask(0)
        try:
            vault.seal(path, make(), NOTES, KEY, "east")
        finally:
            os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def test_a_link_laid_in_the_way_is_not_followed(self, path, tmp_path):
        (tmp_path / "elsewhere").write_bytes(b"kept")
        (tmp_path / ".data.vault.part").symlink_to(tmp_path / "elsewhere")
        vault.seal(path, make(), NOTES, KEY, "east")
        assert (tmp_path / "elsewhere").read_bytes() == b"kept"

    def test_errors_and_reprs_hold_no_row(self, path):
        parts = make()
        vault.seal(path, parts, NOTES, KEY, "east")
        with pytest.raises(DataError) as caught:
            vault.unseal(path, HEART, KEY, "east")
        assert "Zqcanary" not in str(caught.value) + repr(parts) + repr(vault.unseal(path, NOTES, KEY, "east"))


class TestTampering:
    @pytest.mark.fault(9, passes_when="a bit of the sealed patients turned is refused")
    def test_a_bit_turned_in_any_byte_is_refused(self, path):
        vault.seal(path, make(2), NOTES, KEY, "east")
        whole = path.read_bytes()
        draw = np.random.default_rng(7)
        start = whole.index(b"\n", len(vault.MAGIC)) + 1
        # Every byte of the header, and a sample of the chunks, their ends among them.
        places = [
            *range(start + 2),
            *draw.choice(range(start, len(whole)), 400).tolist(),
            *range(len(whole) - 20, len(whole)),
        ]
        for place in places:
            flip = 1 << int(draw.integers(8))
            path.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
            with pytest.raises(DataError) as caught:
                vault.unseal(path, NOTES, KEY, "east")
            assert str(path) in str(caught.value)
            assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("chunk", [64, 1 << 20])
    @pytest.mark.fault(4, passes_when="the sealed patients, cut, are refused")
    def test_a_file_cut_off_or_lengthened_is_refused(self, path, monkeypatch, chunk):
        monkeypatch.setattr(sealing, "CHUNK", chunk)
        vault.seal(path, make(3), NOTES, KEY, "east")
        whole = path.read_bytes()
        places = np.random.default_rng(3).choice(len(whole), 150).tolist()
        for length in [0, 1, len(vault.MAGIC), len(whole) - 1, len(whole) - 16, len(whole) - chunk - 16, *places]:
            path.write_bytes(whole[: max(length, 0)])
            with pytest.raises(DataError):
                vault.unseal(path, NOTES, KEY, "east")
        path.write_bytes(whole + b"x")
        with pytest.raises(DataError, match="damaged or changed"):
            vault.unseal(path, NOTES, KEY, "east")

    def test_chunks_changed_about_or_left_out_are_refused(self, path, monkeypatch):
        monkeypatch.setattr(sealing, "CHUNK", 64)
        header = vault.seal(path, make(3), NOTES, KEY, "east")
        whole = path.read_bytes()
        start = len(whole) - sealing.sealed_size(header.size)
        chunks = [whole[begin : begin + 80] for begin in range(start, len(whole), 80)]
        assert len(chunks) > 10
        mixtures = [
            [chunks[1], chunks[0], *chunks[2:]],
            chunks[1:],
            chunks[:-1],
            [*chunks[:3], *chunks[4:]],
            [chunks[0], *chunks],
        ]
        for mixture in mixtures:
            path.write_bytes(whole[:start] + b"".join(mixture))
            with pytest.raises(DataError, match="damaged or changed"):
                vault.unseal(path, NOTES, KEY, "east")

    def test_a_shorter_header_does_not_make_a_shorter_file_whole(self, path, monkeypatch):
        """Cutting at a chunk's end and mending the size in the header is noticed too."""
        monkeypatch.setattr(sealing, "CHUNK", 64)
        header = vault.seal(path, make(3), NOTES, KEY, "east")
        magic, line, sealed = path.read_bytes().split(b"\n", 2)
        shorter = line.replace(b'"size": %d' % header.size, b'"size": 64')
        assert shorter != line
        path.write_bytes(b"\n".join([magic, shorter, sealed[:80]]))
        with pytest.raises(DataError, match="damaged or changed"):
            vault.unseal(path, NOTES, KEY, "east")

    def test_the_rows_of_another_vault_under_this_header_are_refused(self, path, tmp_path):
        vault.seal(path, make(3, seed=1), NOTES, KEY, "east")
        vault.seal(tmp_path / "other.vault", make(3, seed=2), NOTES, KEY, "east")
        magic, line, _ = path.read_bytes().split(b"\n", 2)
        sealed = (tmp_path / "other.vault").read_bytes().split(b"\n", 2)[2]
        path.write_bytes(b"\n".join([magic, line, sealed]))
        with pytest.raises(DataError, match="damaged or changed"):
            vault.unseal(path, NOTES, KEY, "east")

    def test_another_key_is_told_from_damage(self, path):
        vault.seal(path, make(), NOTES, KEY, "east")
        with pytest.raises(DataError, match="sealed with another key"):
            vault.unseal(path, NOTES, OTHER, "east")

    def test_a_forged_key_name_does_not_help(self, path):
        vault.seal(path, make(), NOTES, KEY, "east")
        whole = path.read_bytes()
        path.write_bytes(whole.replace(vault._name_of(KEY).encode(), vault._name_of(OTHER).encode()))
        with pytest.raises(DataError, match="damaged or changed"):
            vault.unseal(path, NOTES, OTHER, "east")

    def test_another_site_task_or_schema_is_refused(self, path):
        vault.seal(path, make(), NOTES, KEY, "east")
        with pytest.raises(DataError, match="expected the data of site 'west', this is of 'east'"):
            vault.unseal(path, NOTES, KEY, "west")
        with pytest.raises(DataError, match="expected data for the task 'pneumonia', this is for task 'notes'"):
            vault.unseal(path, XRAY, KEY, "east")
        wider = replace(NOTES, columns=(replace(NOTES.columns[0], unit="words"),))
        with pytest.raises(DataError, match="with other columns"):
            vault.unseal(path, wider, KEY, "east")

    @pytest.mark.parametrize(
        "content", [b"", b"x", vault.MAGIC, vault.MAGIC + b"{}\n", vault.MAGIC + b"[1]\n", vault.MAGIC + b"\xff\xff\n"]
    )
    def test_what_is_no_vault_is_said(self, path, content):
        path.write_bytes(content)
        with pytest.raises(DataError, match="not a vault|damaged"):
            vault.unseal(path, NOTES, KEY, "east")

    def test_a_header_that_claims_a_huge_size_takes_no_memory(self, path):
        header = vault.seal(path, make(), NOTES, KEY, "east")
        whole = path.read_bytes()
        path.write_bytes(whole.replace(b'"size": %d' % header.size, b'"size": 99999999999999'))
        with pytest.raises(DataError, match="damaged"):
            vault.unseal(path, NOTES, KEY, "east")

    def test_there_may_be_no_vault(self, path):
        with pytest.raises(DataError, match="there is no vault; import the data"):
            vault.unseal(path, NOTES, KEY, "east")

    def test_a_short_key_is_refused(self, path):
        with pytest.raises(UsageError, match="32 bytes"):
            vault.seal(path, make(), NOTES, b"short", "east")
        assert not path.exists()


class TestFullDisk:
    def test_the_vault_of_before_stays_and_nothing_else(self, path, monkeypatch):
        vault.seal(path, make(seed=1), NOTES, KEY, "east")

        def full(_descriptor):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(DataError, match=r"cannot be written \(No space left on device\)"):
                vault.seal(path, make(seed=2), NOTES, KEY, "east")
        assert [file.name for file in path.parent.iterdir()] == [path.name]
        same(vault.unseal(path, NOTES, KEY, "east"), make(seed=1))

    def test_what_a_killed_process_left_is_no_hindrance(self, path):
        path.with_name(".data.vault.part").write_bytes(b"half")
        vault.seal(path, make(), NOTES, KEY, "east")
        assert [file.name for file in path.parent.iterdir()] == [path.name]

    def test_a_folder_that_is_gone_is_said(self, tmp_path):
        with pytest.raises(DataError, match="No such file"):
            vault.seal(tmp_path / "gone" / "data.vault", make(), NOTES, KEY, "east")
