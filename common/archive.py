"""Backups: all of a folder in one file, and back. Whole or not at all in both directions, 0600, and nothing that is read is believed.

A backup is a plain tar (ustar, regular files alone), whose last file is `MANIFEST`: what it is a backup of, and the SHA-256 of every file. Under a passphrase it is sealed: a
line of magic, one line of JSON (parameters and salt of Argon2id), and the tar in the chunks of `common.sealing`, bound to these lines.

*Guarantee.* Sealed, whoever lacks the passphrase learns the length, and can change nothing unseen. Unsealed, damage is found, but not who altered what on purpose.
*Edge cases.* Links are refused both ways. A file cannot be larger than the backup that holds it, since nothing is compressed.
"""

import hashlib
import json
import os
import sqlite3
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol
from urllib.parse import quote

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from common import certificates, keys, sealing
from common.errors import DataError, UsageError
from common.sealing import CHUNK, Sealing

SEALED = b"fedward sealed backup 1\n"
MANIFEST = "fedward-backup.json"
BLOCK = 512
MOST_FILES, LONGEST_MANIFEST = 100_000, 32 << 20
LARGEST_SEALED_HEADER = 1024
PART = "restoring"
"""The folder within the new one in which files lie until all of them are found good."""

Opened = AbstractContextManager[tuple[BinaryIO, int]]
Reading = Callable[[Path], Opened]
"""Opens a file as it is to be kept: its content, and how many bytes of it."""


class _Sink(Protocol):
    def write(self, data: bytes, /) -> object: ...


@dataclass(frozen=True)
class Kind:
    """What is backed up: its ``noun``, the file that makes a folder one, what is left out below which name, and the files that are to be read in a way of their own."""

    noun: str
    marker: str
    left_out: Sequence[str] = ()
    kept: Sequence[str] = ()
    readings: Mapping[str, Reading] | None = None


@contextmanager
def as_it_is(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a file of which there may be more in a moment: as much of it as there is now."""
    with path.open("rb") as file:
        yield file, os.fstat(file.fileno()).st_size


@contextmanager
def whole_lines(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a file up to the end of its last whole line."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(size)
        file.seek(0)
        yield file, content.rfind(b"\n") + 1


@contextmanager
def database(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a copy of an SQLite database as it is at one moment, whoever writes to it."""
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        copy = Path(scratch) / path.name
        try:
            source = sqlite3.connect(f"file:{quote(str(path.resolve()))}?mode=ro", uri=True)
            target = sqlite3.connect(copy)
            try:
                source.backup(target)
            finally:
                source.close()
                target.close()
        except sqlite3.Error as error:
            raise DataError(f"{path}: cannot be copied ({error}); it is damaged, or the disk is full") from None
        with as_it_is(copy) as opened:
            yield opened


def write(folder: Path, file: Path, kind: Kind, name: str, passphrase: str | None = None) -> int:
    """Back a folder up into a new file, sealed where there is a passphrase; return how many files it holds. Whoever works in the folder may go on.

    Raises
    ------
    UsageError
        When the file exists or lies in the folder, or there is a link in the folder.
    DataError
        When something cannot be read or written; no file is left then.
    """
    if file.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"{file}: lies in the folder that is backed up; choose a place outside of it")
    readings = kind.readings or {}
    with _new_file(file) as out:
        sink = out if passphrase is None else _sealing(out, passphrase)
        digests = {}
        for path in _files(folder, kind):
            inside = path.relative_to(folder).as_posix()
            with suppress(FileNotFoundError), readings.get(inside, as_it_is)(path) as (content, size):
                digests[inside] = _append(sink, inside, content, size)
        facts = {"fedward": version("fedward"), "kind": kind.noun, "name": name, "made": certificates.timestamp()}
        manifest = json.dumps({**facts, "files": digests}, ensure_ascii=False, indent=1).encode()
        _append(sink, MANIFEST, BytesIO(manifest), len(manifest))
        sink.write(bytes(2 * BLOCK))
        if isinstance(sink, Sealing):
            sink.close()
    return len(digests)


def restore(file: Path, folder: Path, kind: Kind, passphrase: str | None = None) -> str:
    """Make a folder, new or empty, of a backup; return the name of what was backed up.

    Raises
    ------
    UsageError
        When there is something in the folder, or the passphrase is wrong, missing, or given for a backup that is not sealed (somebody may have put it there).
    DataError
        When the backup is damaged or of something else; nothing of it is left then.
    """
    try:
        source = file.open("rb")
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from None
    with source, keys.new_folder(folder):
        part = folder / PART
        try:
            part.mkdir(mode=0o700)
            manifest = _unpack(_Source(_pieces(source, passphrase, str(file)), str(file)), part)
            if manifest.get("kind") != kind.noun:
                raise UsageError(
                    f"{file}: expected the backup of a {kind.noun}, got that of a {manifest.get('kind')!r}"
                )
            for path in sorted(part.iterdir(), key=lambda path: path.name == kind.marker):
                path.replace(folder / path.name)  # the marker last: a folder with it counts
            part.rmdir()
        except OSError as error:
            raise DataError(f"{folder}: cannot be written ({error.strerror}); free space or choose another") from None
    return str(manifest.get("name"))


def told(file: Path, count: int, *, sealed: bool, bare_keys: bool) -> tuple[dict[str, Any], str]:
    """Say what was made, as facts and in words, and warn of keys that whoever has the file can read."""
    facts = {"file": str(file), "files": count, "sealed": sealed, "bare_keys": bare_keys and not sealed}
    text = f"{file}: {count} files, {'sealed by the passphrase' if sealed else 'not sealed'}."
    if facts["bare_keys"]:
        text += f"\nWARNING: it holds private keys that anyone can use who can read it. Keep it like them, or set {keys.PASSPHRASE} and make it anew."
    return facts, text


def _files(folder: Path, kind: Kind) -> list[Path]:
    """Return what is backed up, in an order in which what is written later is read earlier."""
    # A run whose record is written meanwhile is kept as the run under way that it was.
    finished = set(folder.rglob("run.json"))
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name not in kind.kept and any(f"{name}/".startswith(f"{out}/") for out in kind.left_out):
            continue
        if path.is_symlink():
            raise UsageError(f"{path}: is a link; a backup holds files alone, so put what it leads to in its place")
        transient = (
            path.name.startswith(".") or path.name == "pid" or (path.name == "run.json" and path not in finished)
        )
        if path.is_file() and not transient:
            found.append(path)
    return found


def _append(sink: _Sink, name: str, content: BinaryIO, size: int) -> str:
    """Write one file of a tar; return its SHA-256."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o600, int(time.time())
    try:
        sink.write(info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict"))
    except ValueError:
        raise DataError(f"{name}: its name is too long for a backup, or it has more than 8 GiB") from None
    digest, left = hashlib.sha256(), size
    while left:
        piece = content.read(min(CHUNK, left))
        if not piece:
            raise DataError(f"{name}: became shorter while it was read; try again")
        digest.update(piece)
        sink.write(piece)
        left -= len(piece)
    sink.write(bytes(-size % BLOCK))
    return digest.hexdigest()


def _unpack(source: "_Source", folder: Path) -> dict[str, Any]:
    """Write the files of a tar into a folder; return its manifest, with which they were compared."""
    digests: dict[str, str] = {}
    while len(digests) <= MOST_FILES:
        info = _header(source)
        if info.name == MANIFEST:
            if info.size > LONGEST_MANIFEST:
                break
            return _checked(source, info.size, digests)
        path = folder / _inside(info.name, source)
        for above in reversed(path.relative_to(folder).parents):
            (folder / above).mkdir(mode=0o700, exist_ok=True)
        digests[info.name] = _store(source, path, info.size)
    raise source.damaged()


def _header(source: "_Source") -> tarfile.TarInfo:
    """Read the head of a file of a tar; other kinds than regular files are no part of a backup."""
    try:
        info = tarfile.TarInfo.frombuf(source.exactly(BLOCK), "utf-8", "strict")
    except (tarfile.TarError, UnicodeDecodeError, ValueError):
        raise source.damaged() from None
    if info.type != tarfile.REGTYPE or info.size < 0:
        raise source.damaged()
    return info


def _inside(name: str, source: "_Source") -> PurePosixPath:
    """Return a name as a path that stays below the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or path.as_posix() != name or name == "." or not name.isprintable():
        raise source.damaged()
    return path


def _store(source: "_Source", path: Path, size: int) -> str:
    digest, left = hashlib.sha256(), size
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise source.damaged() from None
    with os.fdopen(descriptor, "wb") as file:
        while left:
            piece = source.exactly(min(CHUNK, left))
            digest.update(piece)
            file.write(piece)
            left -= len(piece)
        file.flush()
        os.fsync(file.fileno())
    if any(source.exactly(-size % BLOCK)):
        raise source.damaged()
    return digest.hexdigest()


def _checked(source: "_Source", size: int, digests: Mapping[str, str]) -> dict[str, Any]:
    try:
        manifest = json.loads(source.exactly(size))
        rest = source.exactly(-size % BLOCK + 2 * BLOCK)
        whole = isinstance(manifest, dict) and manifest["files"] == digests and not any(rest)
    except (ValueError, KeyError, RecursionError):
        whole = False
    if not whole or source.read(1):
        raise source.damaged()
    return dict(manifest)


class _Source:
    """What is read of a backup, as long as there is something."""

    def __init__(self, pieces: Iterator[bytes], what: str) -> None:
        self._pieces, self._what, self._rest = pieces, what, b""

    def read(self, size: int) -> bytes:
        """Return at most so many bytes; none at the end."""
        self._rest = self._rest or next(self._pieces, b"")
        given, self._rest = self._rest[:size], self._rest[size:]
        return given

    def exactly(self, size: int) -> bytes:
        """Return so many bytes."""
        found = bytearray()
        while len(found) < size:
            piece = self.read(size - len(found))
            if not piece:
                raise self.damaged()
            found += piece
        return bytes(found)

    def damaged(self) -> DataError:
        """Return the error of a backup that is not as it was written."""
        return DataError(f"{self._what}: damaged, or no backup of Fedward's; take another one")


def _sealing(out: BinaryIO, passphrase: str) -> Sealing:
    """Begin a sealed backup."""
    if not passphrase:
        raise UsageError("the passphrase is empty; type one, or leave it out to keep the backup unsealed")
    salt = os.urandom(16)
    header = {"kdf": "argon2id", **keys.COST, "cipher": "aes-256-gcm", "salt": keys.to_text(salt)}
    start = SEALED + json.dumps(header).encode() + b"\n"
    out.write(start)
    return Sealing(out, AESGCM(keys.derive(passphrase, salt, keys.COST)), start)


def _pieces(file: BinaryIO, passphrase: str | None, what: str) -> Iterator[bytes]:
    """Yield the tar of a backup; what was sealed, only once it is found to be as it was written."""
    if file.read(len(SEALED)) != SEALED:
        if passphrase is not None:
            raise UsageError(
                f"{what}: a passphrase was given, but this backup is not sealed by any; restore it without"
            )
        file.seek(0)
        yield from iter(partial(file.read, CHUNK), b"")
        return
    if passphrase is None:
        raise UsageError(f"{what}: this backup is sealed; set the passphrase in {keys.PASSPHRASE}")
    line = file.readline(LARGEST_SEALED_HEADER)
    try:
        header = json.loads(line)
        cipher = AESGCM(keys.derive(passphrase, keys.from_text(header["salt"]), keys.cost_of(header)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(f"{what}: damaged, or no backup of Fedward's; take another one") from None
    try:
        yield from sealing.opened(file, cipher, SEALED + line)
    except InvalidTag:
        raise UsageError(f"{what}: wrong passphrase, or the file is damaged; type it again") from None


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """Within, write a new file of mode 0600, which gets its name at the end."""
    if path.exists():
        raise UsageError(f"{path}: exists already; choose another name, so that no backup is overwritten")
    part = path.with_name(f".{path.name}.part")
    try:
        part.unlink(missing_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise DataError(
            f"{error.filename or path}: cannot be read or written ({error.strerror}); free space, mend its rights, or choose another place"
        ) from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
