"""Keys at rest: only their owner may read them, a passphrase seals them, and nothing is half written."""

import errno
import json
import os
import ssl
import stat
import threading
from argparse import Namespace
from importlib import import_module
from unicodedata import normalize

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from common import certificates, keys
from common.errors import DataError, FedwardError, UsageError

COST, CHEAP = keys.COST, {"memory_kib": 64, "iterations": 1, "lanes": 1}
KINDS = ("tls", "node", "audit")
passphrases = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    monkeypatch.setattr(keys, "COST", CHEAP)


@pytest.fixture(scope="module")
def some_keys():
    return {kind: keys.generate(kind) for kind in KINDS}


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class TestKinds:
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_key_is_read_back_as_it_was_written(self, some_keys, kind):
        key = some_keys[kind]
        again = keys.load_private(keys.private_bytes(key), kind, "key")
        assert keys.public_line(again) == keys.public_line(key) == keys.public_line(key.public_key())
        assert keys.public_line(keys.load_public(keys.public_line(key), kind, "key")) == keys.public_line(key)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("other", KINDS)
    def test_a_key_of_another_kind_is_refused(self, some_keys, kind, other):
        if kind != other:
            with pytest.raises(DataError, match="audit.key: damaged, or of another kind"):
                keys.load_private(keys.private_bytes(some_keys[other]), kind, "audit.key")
            with pytest.raises(DataError, match="of another kind"):
                keys.load_public(keys.public_line(some_keys[other]), kind, "key")

    def test_flower_reads_the_node_key(self, some_keys, tmp_path):
        from flwr.supercore.primitives.asymmetric import uses_nist_ec_curve

        flower_supernode = import_module("flwr.supernode.cli.flower_supernode")
        keys.write(tmp_path / "node.key", keys.private_bytes(some_keys["node"]))
        args = Namespace(auth_supernode_private_key=str(tmp_path / "node.key"), auth_supernode_public_key=None)
        private, public = flower_supernode._try_setup_client_authentication(args)
        assert uses_nist_ec_curve(public)
        assert keys.public_line(private) == keys.public_line(some_keys["node"])

    @given(st.binary(max_size=200))
    def test_other_bytes_are_no_key(self, data):
        for kind in KINDS:
            with pytest.raises(DataError):
                keys.load_private(data, kind, "key")

    @given(st.text(max_size=200))
    def test_other_text_is_no_public_key(self, text):
        for kind in KINDS:
            with pytest.raises(DataError):
                keys.load_public(text, kind, "key")

    @pytest.mark.parametrize("spelling", ["{} comment", " {}", "{}\n", "{} "])
    def test_one_public_key_has_one_spelling(self, some_keys, spelling):
        with pytest.raises(DataError):
            keys.load_public(spelling.format(keys.public_line(some_keys["node"])), "node", "key")

    def test_rsa_is_none_of_ours(self):
        key = rsa.generate_private_key(65537, 2048)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        with pytest.raises(DataError):
            keys.load_private(pem, "tls", "key")


class TestFiles:
    def test_only_the_owner_may_read_a_key_and_its_folder_whatever_the_umask(self, tmp_path):
        before = os.umask(0)
        try:
            keys.write(tmp_path / "keys" / "tls.key", b"secret")
        finally:
            os.umask(before)
        assert mode(tmp_path / "keys" / "tls.key") == 0o600
        assert mode(tmp_path / "keys") == 0o700

    def test_a_key_is_private_from_its_first_byte_on(self, tmp_path, monkeypatch):
        seen = []
        fsync = os.fsync
        monkeypatch.setattr(os, "fsync", lambda fd: seen.append(stat.S_IMODE(os.fstat(fd).st_mode)) or fsync(fd))
        opened = []
        real = os.open
        monkeypatch.setattr(
            os, "open", lambda path, flags, mode=0o777, **more: opened.append((flags, mode)) or real(path, flags, mode)
        )
        keys.write(tmp_path / "tls.key", b"secret")
        assert opened[0][0] & os.O_EXCL
        assert opened[0][1] == 0o600
        assert seen[0] == 0o600

    def test_a_key_is_never_overwritten(self, tmp_path):
        keys.write(tmp_path / "tls.key", b"first")
        with pytest.raises(DataError, match="File exists"):
            keys.write(tmp_path / "tls.key", b"second")
        assert keys.read(tmp_path / "tls.key") == b"first"

    def test_a_link_put_in_its_place_is_not_followed(self, tmp_path):
        (tmp_path / "tls.key").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(DataError):
            keys.write(tmp_path / "tls.key", b"secret")
        assert not (tmp_path / "elsewhere").exists()

    @pytest.mark.parametrize("bits", [0o640, 0o604, 0o660, 0o666, 0o610])
    def test_a_key_that_others_may_read_is_refused_with_the_cure(self, tmp_path, bits):
        path = tmp_path / "tls.key"
        keys.write(path, b"secret")
        path.chmod(bits)
        with pytest.raises(DataError, match=f"has mode {bits:o}; mend it with: chmod 600 .*tls.key"):
            keys.read(path)
        path.chmod(0o400)
        assert keys.read(path) == b"secret"

    @pytest.mark.parametrize("content", [b"", b"x" * (keys.LARGEST + 1)])
    def test_a_file_that_cannot_be_a_key_is_refused(self, tmp_path, content):
        keys.write(tmp_path / "tls.key", content)
        with pytest.raises(DataError, match="expected a key of 1 to"):
            keys.read(tmp_path / "tls.key")

    def test_an_absent_key_is_named(self, tmp_path):
        with pytest.raises(DataError, match=r"tls.key: cannot be read \(No such file"):
            keys.read(tmp_path / "tls.key")

    def test_nothing_is_left_when_the_disk_is_full(self, tmp_path, monkeypatch):
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(DataError, match="No space left on device"):
            keys.write(tmp_path / "tls.key", b"secret")
        assert not list(tmp_path.iterdir())

    def test_on_a_full_disk_none_of_the_files_is_replaced(self, tmp_path, monkeypatch):
        one, two = tmp_path / "one", tmp_path / "two"
        keys.replace({one: b"1", two: b"1"})
        fsync, calls = os.fsync, []
        monkeypatch.setattr(os, "fsync", lambda fd: calls.append(fd) or (full() if len(calls) == 2 else fsync(fd)))
        with pytest.raises(DataError, match="two: cannot be written"):
            keys.replace({one: b"2", two: b"2"})
        assert (one.read_bytes(), two.read_bytes()) == (b"1", b"1")
        assert sorted(tmp_path.iterdir()) == [one, two]
        monkeypatch.setattr(os, "fsync", fsync)
        keys.replace({one: b"2", two: b"2"})
        assert (one.read_bytes(), two.read_bytes(), mode(one)) == (b"2", b"2", 0o600)

    @pytest.mark.parametrize("at", [1, 2, 3])
    def test_a_crash_between_two_names_leaves_the_last_as_it_was_and_each_whole(self, tmp_path, monkeypatch, at):
        paths, rename, calls = [tmp_path / name for name in ("one", "two", "marker")], os.replace, []
        keys.replace(dict.fromkeys(paths, b"1"))

        def crash(part, path):
            calls.append(path)
            if len(calls) == at:
                raise KeyboardInterrupt
            rename(part, path)

        monkeypatch.setattr(os, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            keys.replace(dict.fromkeys(paths, b"2"))
        assert [path.read_bytes() for path in paths] == [b"2"] * (at - 1) + [b"1"] * (4 - at)
        monkeypatch.setattr(os, "replace", rename)
        keys.replace(dict.fromkeys(paths, b"2"))
        assert sorted(tmp_path.iterdir()) == sorted(paths)
        assert [path.read_bytes() for path in paths] == [b"2"] * 3

    def test_what_a_crash_left_does_not_hinder_and_does_not_lend_its_mode(self, tmp_path):
        left = tmp_path / ".one.part"
        left.write_bytes(b"half")
        left.chmod(0o666)
        keys.replace({tmp_path / "one": b"whole"})
        assert (tmp_path / "one").read_bytes() == b"whole"
        assert mode(tmp_path / "one") == 0o600


class TestComplete:
    @pytest.mark.parametrize("left", [{}, {"secret": b"old"}, {"port": b"7"}, {"secret": b"", "port": b"7"}])
    def test_what_is_missing_or_empty_is_made_and_the_rest_stays(self, tmp_path, left):
        for name, content in left.items():
            (tmp_path / name).write_bytes(content)
        keys.complete(tmp_path, {"secret": lambda: b"new", "port": lambda: b"8"})
        there = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        assert there == {"secret": b"new", "port": b"8"} | {name: text for name, text in left.items() if text}

    def test_on_a_full_disk_it_is_one_line_and_made_later(self, tmp_path, monkeypatch):
        contents = {"secret": lambda: b"1", "port": lambda: b"2"}
        fsync, calls = os.fsync, []
        monkeypatch.setattr(os, "fsync", lambda fd: calls.append(fd) or (full() if len(calls) == 3 else fsync(fd)))
        with pytest.raises(DataError, match="port: cannot be written"):
            keys.complete(tmp_path, contents)
        monkeypatch.setattr(os, "fsync", fsync)
        keys.complete(tmp_path, contents)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"secret": b"1", "port": b"2"}

    def test_of_many_at_once_one_makes_them_and_all_find_the_same(self, tmp_path):
        begin, found = threading.Barrier(8), []

        def ask():
            begin.wait()
            keys.complete(tmp_path, {name: lambda: os.urandom(8) for name in ("secret", "port")})
            found.append(((tmp_path / "secret").read_bytes(), (tmp_path / "port").read_bytes()))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 8
        assert len(set(found)) == 1


class TestFolders:
    def test_a_new_one_is_the_owners_alone(self, tmp_path):
        with keys.new_folder(tmp_path / "a" / "b"):
            pass
        assert mode(tmp_path / "a" / "b") == 0o700

    def test_one_with_anything_in_it_is_refused_and_untouched(self, tmp_path):
        (tmp_path / "file").write_bytes(b"x")
        with pytest.raises(UsageError, match="exists and is not empty"), keys.new_folder(tmp_path):
            pass
        assert (tmp_path / "file").read_bytes() == b"x"
        with pytest.raises(UsageError, match="cannot be made a folder"), keys.new_folder(tmp_path / "file"):
            pass

    @pytest.mark.parametrize("existed", [False, True])
    def test_an_error_leaves_it_as_it_was(self, tmp_path, existed):
        folder = tmp_path / "site"
        if existed:
            folder.mkdir()

        def fail():
            with keys.new_folder(folder):
                keys.write(folder / "keys" / "tls.key", b"secret")
                (folder / "file").write_bytes(b"x")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fail()
        assert folder.exists() is existed
        assert not existed or not list(folder.iterdir())


class TestPassphrase:
    @settings(max_examples=40)
    @given(st.binary(max_size=300), passphrases)
    def test_what_was_sealed_is_opened_by_the_same_passphrase(self, secret, passphrase):
        sealed = keys.seal(secret, passphrase)
        assert keys.unseal(sealed, passphrase, "key") == secret
        assert keys.seal(secret, passphrase) != sealed
        ciphertext = keys.from_text(json.loads(sealed.removeprefix(keys.SEALED))["sealed"])
        assert len(secret) < 8 or secret not in ciphertext

    @settings(max_examples=40)
    @given(passphrases, passphrases)
    def test_no_other_passphrase_opens_it(self, one, other):
        if normalize("NFC", one) != normalize("NFC", other):
            with pytest.raises(UsageError, match="node.key: wrong passphrase"):
                keys.unseal(keys.seal(b"secret", one), other, "node.key")

    def test_two_ways_to_type_one_word_are_one_passphrase(self):
        assert keys.unseal(keys.seal(b"secret", "Spitäler"), "Spitäler", "key") == b"secret"

    @settings(max_examples=200)
    @given(st.data())
    def test_no_altered_byte_goes_unnoticed(self, data):
        original = keys.seal(b"secret", "a passphrase")
        sealed = bytearray(original)
        at = data.draw(st.integers(len(keys.SEALED), len(sealed) - 2))
        sealed[at] ^= data.draw(st.integers(1, 127))
        try:
            assert keys.unseal(bytes(sealed), "a passphrase", "key") == b"secret"
        except FedwardError as error:
            assert str(error).startswith("key: ")
        else:
            # Another blank between the same words is the same document; nothing else may pass.
            same, first = (json.loads(bytes(text).removeprefix(keys.SEALED)) for text in (sealed, original))
            assert same == first

    @pytest.mark.parametrize(
        "change",
        [
            {"memory_kib": 2**31},
            {"iterations": 10**9},
            {"lanes": True},
            {"memory_kib": "64"},
            {"salt": "AA=="},
            {"nonce": "AA=="},
            {"sealed": 5},
            {"salt": None},
        ],
        ids=str,
    )
    def test_a_header_that_asks_for_too_much_or_is_damaged_is_one_error(self, change):
        header = json.loads(keys.seal(b"secret", "pass").removeprefix(keys.SEALED))
        with pytest.raises(DataError, match="key: damaged"):
            keys.unseal(keys.SEALED + json.dumps(header | change).encode(), "pass", "key")

    @pytest.mark.parametrize("rest", [b"", b"[]", b"{}", b"\xff", b"[" * 30_000])
    def test_a_damaged_file_is_one_error(self, rest):
        with pytest.raises(DataError, match="key: damaged"):
            keys.unseal(keys.SEALED + rest, "pass", "key")

    def test_files_say_whether_they_need_one(self, tmp_path):
        plain, sealed = tmp_path / "plain", tmp_path / "sealed"
        keys.write(plain, b"secret")
        keys.write(sealed, b"secret", "pass")
        assert (keys.is_sealed(plain), keys.is_sealed(sealed)) == (False, True)
        assert keys.read(sealed, "pass") == keys.read(plain) == b"secret"
        assert b"secret" not in sealed.read_bytes()
        assert mode(sealed) == 0o600
        with pytest.raises(UsageError, match="sealed by a passphrase, and none was given"):
            keys.read(sealed)
        with pytest.raises(UsageError, match="not sealed by any"):
            keys.read(plain, "pass")
        with pytest.raises(UsageError, match="the passphrase is empty"):
            keys.write(tmp_path / "empty", b"secret", "")
        assert not (tmp_path / "empty").exists()

    def test_guessing_is_made_costly(self, monkeypatch):
        """RFC 9106, section 4: the second recommended choice, for where memory is scarce."""
        monkeypatch.setattr(keys, "COST", COST)
        header = json.loads(keys.seal(b"secret", "pass").removeprefix(keys.SEALED))
        assert keys.unseal(keys.seal(b"secret", "pass"), "pass", "key") == b"secret"
        assert {name: header[name] for name in CHEAP} == {"memory_kib": 65536, "iterations": 3, "lanes": 4}


def test_a_key_reaches_a_tls_context_without_lying_in_the_clear(some_keys, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    written = []
    real = keys.write
    monkeypatch.setattr(keys, "write", lambda path, content: written.append(content) or real(path, content))
    pem = certificates.make_authority("Federation", some_keys["tls"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    keys.load_chain(context, pem, some_keys["tls"])
    assert not list(tmp_path.iterdir())
    assert b"BEGIN ENCRYPTED PRIVATE KEY" in written[0]
    assert b"BEGIN PRIVATE KEY" not in written[0]
    with pytest.raises(DataError, match="not for this key"):
        keys.load_chain(context, pem, keys.generate("tls"))


def test_kinds_are_the_curves_that_were_agreed(some_keys):
    assert isinstance(some_keys["tls"].curve, ec.SECP256R1)
    assert isinstance(some_keys["node"].curve, ec.SECP384R1)
    assert isinstance(some_keys["audit"], ed25519.Ed25519PrivateKey)
    assert keys.private_bytes(some_keys["node"]).startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----")
