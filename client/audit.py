"""AuditLog: an account of what was asked, allowed and sent, in which no line can be changed, left out or moved unnoticed.

One JSON object a line. ``previous`` is the SHA-256 of the bytes of the line before, and ``sha256``, always the last, that of its own line up to there::

    {"sequence":2,"time":"2026-03-01T08:30:00.120000Z","monotonic":81.52,"event":"refused",
     "fields":{"kind":"train","round":3,"code":"min_records"},"previous":"5f0c...","sha256":"91ab..."}

Whoever can write the file could still rewrite all of it from some line on, or cut off its end. Against the first every so many lines one is a checkpoint, signed
with the site's key; against both the coordinator keeps what `AuditLog.checkpoint` returned, and `verify` compares.

A line never holds a patient's value: `EVENTS` says which fields an event has, and `FIELDS` what each may be. A text that is of another form, as a hostile
coordinator may send, is written as ``?``.
"""

import errno
import fcntl
import hashlib
import json
import math
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from common.errors import DataError, FedwardError, UsageError

EVERY = 1000
"""Each line with a number that this divides is a signed checkpoint."""
DAY = 86_400.0
ORIGIN = "0" * 64
"""What the first line has for the line before it."""

Value = str | int | float
_HEX = re.compile(r"[0-9a-f]{64}")
FIELDS: Mapping[str, re.Pattern[str] | type] = {
    "kind": re.compile(r"(query\.)?(statistics|train|evaluate|compare)"),
    "run": re.compile(r"[0-9a-f-]{1,36}"),
    "message": re.compile(r"[0-9a-f-]{1,64}"),
    "task": re.compile(r"[a-z][a-z0-9_-]{0,23}"),
    "code": re.compile(r"[A-Za-z_]{1,32}"),
    "version": re.compile(r"[0-9][0-9a-z.+]{0,23}"),
    "coordinator": _HEX,
    "bundle": _HEX,
    "policy": _HEX,
    "sha256": _HEX,
    "signature": re.compile(r"[0-9a-f]{128}"),
    "round": int,
    "attempt": int,
    "hospitals": int,
    "parameters": int,
    "rounds": int,
    "bytes": int,
    "sequence": int,
    "norm": float,
    "seconds": float,
    "epsilon": float,
    "delta": float,
}
"""What a field may be: a text of this form, or a number."""
_REQUEST = ("message", "run", "kind", "round", "attempt")
EVENTS: Mapping[str, tuple[str, ...]] = {
    "started": ("version", "policy"),
    "stopped": ("code",),
    "asked": (*_REQUEST, "task", "hospitals", "parameters", "coordinator", "bundle"),
    "allowed": _REQUEST,
    "refused": (*_REQUEST, "code"),
    "failed": (*_REQUEST, "code"),
    "replay": _REQUEST,
    "trained": (*_REQUEST, "rounds", "seconds"),
    "spent": (*_REQUEST, "epsilon", "delta"),
    "sent": (*_REQUEST, "sha256", "bytes", "norm"),
    "checkpoint": ("sequence", "sha256", "signature"),
    "torn": ("sha256", "bytes"),
}
"""What is written down, and with which fields; none of them is required."""

How = Literal["altered", "missing", "out of order", "torn tail"]


@dataclass(frozen=True)
class Break:
    """The first line that is not as it was written: its number from 1, how it is broken, and in words."""

    line: int
    how: How
    text: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.how}: {self.text}"


@dataclass(frozen=True)
class _Line:
    """A line that fits those before it, and where it ends in the file."""

    number: int
    digest: str
    end: int
    content: Mapping[str, Any] = field(repr=False)


class AuditLog:
    """The log of a running site: the only writer of its file while it is open. Used as a context, or closed.

    Threads may share it. A torn last line, as a crash leaves, is moved to ``<name>.torn`` and that is written down.

    Raises
    ------
    UsageError
        When another process has the log open.
    DataError
        When a line is broken, or the file can not be written.
    """

    def __init__(self, path: Path, key: Ed25519PrivateKey, every: int = EVERY) -> None:
        self._path, self._key, self._every = path, key, every
        self._lock = threading.Lock()
        self._sequence, self._digest, self._size = 0, ORIGIN, 0
        self._trained: list[tuple[float, int, float]] = []
        self._file = _open(path)
        try:
            self._read()
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another process write."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1

    def append(self, event: str, fields: Mapping[str, Value] | None = None) -> int:
        """Write one line and return its number; when this returns, the line is on disk.

        Raises
        ------
        UsageError
            For an event or field that a log does not have.
        DataError
            When the line can not be written, or another program changed the file; nothing of it is written then.
        """
        checked = _checked(event, fields or {})
        with self._lock:
            if (self._sequence + 1) % self._every == 0:
                self._write("checkpoint", self._signed())
            self._write(event, checked)
            return self._sequence

    def checkpoint(self) -> dict[str, Value]:
        """Return number and digest of the last line, signed with the site's key, for the coordinator to keep."""
        with self._lock:
            return self._signed()

    def trained(self, seconds: float = DAY) -> tuple[int, float]:
        """Return how many rounds were trained in the last so many seconds, of all runs, and for how many seconds.

        Events of the future count too, so that a clock that is set back frees nothing.
        """
        since = time.time() - seconds
        recent = [entry for entry in list(self._trained) if entry[0] >= since]
        return sum(rounds for _, rounds, _ in recent), sum(lasted for _, _, lasted in recent)

    def _read(self) -> None:
        """Follow the file to its end; repair a torn tail."""
        torn = False
        with self._path.open("rb") as file:
            for line in _follow(file):
                if isinstance(line, Break):
                    torn = line.how == "torn tail"
                    if not torn:
                        raise DataError(
                            f"{self._path}: {line}; move the file to a safe place as evidence, then start again"
                        )
                else:
                    self._accept(line)
        if torn:
            self._repair()

    def _accept(self, line: _Line) -> None:
        self._sequence, self._digest, self._size = line.number, line.digest, line.end
        fields = line.content["fields"]
        if line.content["event"] == "trained":
            when = datetime.fromisoformat(line.content["time"]).timestamp()
            self._trained.append((when, fields.get("rounds", 1) or 0, fields.get("seconds") or 0.0))
            self._trained = [entry for entry in self._trained if entry[0] >= time.time() - DAY]

    def _repair(self) -> None:
        """Keep the bytes of a torn line in a file of their own before they are cut off here."""
        aside = self._path.with_name(self._path.name + ".torn")
        with self._path.open("rb") as file:
            file.seek(self._size)
            rest = file.read()
        try:
            descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(rest + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.ftruncate(self._file, self._size)
        except OSError as error:
            raise _unwritten(self._path, error) from None
        self.append("torn", {"bytes": len(rest), "sha256": hashlib.sha256(rest).hexdigest()})

    def _write(self, event: str, fields: Mapping[str, Value | None]) -> None:
        content = {
            "sequence": self._sequence + 1,
            "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "monotonic": round(time.monotonic(), 6),
            "event": event,
            "fields": fields,
            "previous": self._digest,
        }
        line = _sealed(json.dumps(content, separators=(",", ":"), allow_nan=False).encode()[:-1])
        self._store(line + b"\n")
        self._accept(_Line(self._sequence + 1, _sha256(line), self._size + len(line) + 1, content))

    def _store(self, data: bytes) -> None:
        try:
            there = self._path.stat()
            if (there.st_ino, there.st_size) != (os.fstat(self._file).st_ino, self._size):
                raise DataError(
                    f"{self._path}: changed or moved by another program while the log was open; start again to see where"
                )
            _write_whole(self._file, data)
        except OSError as error:
            # Half a line would be taken for damage by whoever reads it next.
            with suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise _unwritten(self._path, error) from None

    def _signed(self) -> dict[str, Value]:
        signature = self._key.sign(_statement(self._sequence, self._digest)).hex()
        return {"sequence": self._sequence, "sha256": self._digest, "signature": signature}


def verify(
    path: Path, public_key: Ed25519PublicKey, known: Iterable[Mapping[str, Any]] = (), every: int = EVERY
) -> Break | None:
    """Return the first broken line of a log, or None. ``known`` are checkpoints that the coordinator holds.

    Lines after the last checkpoint, within the file or held by the coordinator, are as good as whoever could write the file: they may have been rewritten together, or
    cut off. Where a checkpoint does not fit, some line since the one before it was altered, and the first of those is named.

    Raises
    ------
    DataError
        When the file can not be read, or a checkpoint in ``known`` was not signed by this site.
    """
    held = _held(known, public_key)
    last = told = signed = 0
    try:
        with path.open("rb") as file:
            for line in _follow(file):
                if isinstance(line, Break):
                    return (
                        line
                        if line.how != "torn tail" or line.line > max(held, default=0)
                        else _cut_off(line.line, held)
                    )
                last = line.number
                if held.get(last, {line.digest}) != {line.digest}:
                    return _rewritten(told + 1, last, "that the coordinator holds a checkpoint of")
                if not _signed_where_due(line, public_key, every):
                    return _rewritten(max(told, signed) + 1, last, "that the site's key signed")
                told = last if last in held else told
                # What it signs; the rest of its own line is as good as the next checkpoint.
                signed = last - 1 if last % every == 0 else signed
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    return _cut_off(last + 1, held) if last < max(held, default=0) else None


def is_signed(checkpoint: Mapping[str, Any], public_key: Ed25519PublicKey) -> bool:
    """Tell whether a checkpoint, which may come from anyone, was signed by the site with this key."""
    try:
        number, digest = checkpoint["sequence"], checkpoint["sha256"]
        public_key.verify(bytes.fromhex(checkpoint["signature"]), _statement(number, digest))
    except (KeyError, TypeError, ValueError, InvalidSignature):
        return False
    return type(number) is int and number >= 0 and isinstance(digest, str)


def _held(known: Iterable[Mapping[str, Any]], public_key: Ed25519PublicKey) -> dict[int, set[str]]:
    held: dict[int, set[str]] = {}
    for number, checkpoint in enumerate(known, 1):
        if not is_signed(checkpoint, public_key):
            raise DataError(f"checkpoint {number} of those given was not signed with this site's key")
        held.setdefault(checkpoint["sequence"], set()).add(checkpoint["sha256"])
    held.pop(0, None)
    return held


def _signed_where_due(line: _Line, public_key: Ed25519PublicKey, every: int) -> bool:
    """Tell whether a line is a checkpoint of the line before it if, and only if, one is due."""
    event, fields = line.content["event"], line.content["fields"]
    if event != "checkpoint" or line.number % every:
        return event != "checkpoint" and line.number % every != 0
    about = (fields.get("sequence"), fields.get("sha256"))
    return about == (line.number - 1, line.content["previous"]) and is_signed(fields, public_key)


def _rewritten(first: int, last: int, which: str) -> Break:
    lines = f"lines {first} to {last}" if first < last else f"line {first}"
    return Break(first, "altered", f"{lines} as they stand are not those {which}")


def _cut_off(line: int, held: Mapping[int, set[str]]) -> Break:
    return Break(line, "missing", f"the log ends before it, and the coordinator holds a checkpoint of line {max(held)}")


def _follow(file: BinaryIO) -> Iterator[_Line | Break]:
    """Yield every line up to the first broken one, and that one as a `Break`."""
    previous, end = ORIGIN, 0
    for number, raw in enumerate(file, 1):
        if not raw.endswith(b"\n"):
            yield Break(number, "torn tail", f"{len(raw)} bytes of a line that was not written to its end")
            return
        line = raw[:-1]
        content = _parsed(line)
        if content is None:
            yield Break(number, "altered", "its bytes are not those that were written")
            return
        if content["sequence"] != number:
            yield _displaced(file, number, content["sequence"])
            return
        if content["previous"] != previous:
            # Its own bytes are whole, so it is the line before that was written anew.
            before = max(number - 1, 1)
            yield Break(before, "altered", f"line {number} was written after another line {number - 1}")
            return
        previous, end = _sha256(line), end + len(raw)
        yield _Line(number, previous, end, content)


def _displaced(file: BinaryIO, expected: int, found: int) -> Break:
    """Tell a line that was moved or repeated from one that was taken out, by looking for it in the rest."""
    later = (_parsed(raw.rstrip(b"\n")) for raw in file)
    if found < expected or any(content and content["sequence"] == expected for content in later):
        return Break(expected, "out of order", f"line {found} stands in its place")
    return Break(expected, "missing", f"line {found} follows line {expected - 1}")


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Read a line whose bytes are those that were written, else None."""
    body, mark, _ = line.rpartition(b',"sha256":"')
    if not mark or _sealed(body) != line:
        return None
    try:
        content = json.loads(line)
        fits = (
            type(content["sequence"]) is int
            and isinstance(content["previous"], str)
            and isinstance(content["event"], str)
            and isinstance(content["fields"], dict)
            and datetime.fromisoformat(content["time"]).tzinfo is not None
        )
    except (ValueError, KeyError, TypeError):
        return None
    return content if fits else None


def _sealed(body: bytes) -> bytes:
    """Close a line with the digest of what stands before it."""
    return body + b',"sha256":"' + _sha256(body).encode() + b'"}'


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _statement(sequence: int, digest: str) -> bytes:
    return f"fedward audit checkpoint 1\n{sequence} {digest}".encode()


def _checked(event: str, fields: Mapping[str, Value]) -> dict[str, Value | None]:
    if event not in EVENTS:
        raise UsageError(f"the audit log has no event of this name; known: {', '.join(EVENTS)}")
    for name in fields:
        if name not in EVENTS[event]:
            raise UsageError(
                f"the audit log's event {event!r} has no field of this name; known: {', '.join(EVENTS[event])}"
            )
    return {name: _short(name, value) for name, value in fields.items()}


def _short(name: str, value: Value) -> Value | None:
    """Return a value in the form of its field; what is not of that form stays out of the log."""
    kind = FIELDS[name]
    if isinstance(kind, re.Pattern):
        if not isinstance(value, str):
            raise UsageError(f"the audit log's field {name!r}: expected text")
        return value if kind.fullmatch(value) else "?"
    if isinstance(value, bool | str) or (kind is int and not isinstance(value, int)):
        raise UsageError(f"the audit log's field {name!r}: expected a number")
    if kind is int:
        return int(value) if abs(value) < 2**63 else None
    return float(value) if math.isfinite(value) else None


def _open(path: Path) -> int:
    """Open a log for appending, alone; a new one belongs to this user only."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise _unwritten(path, error) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    except BlockingIOError:
        os.close(file)
        raise UsageError(
            f"{path}: another process writes this log; is 'fedward hospital start' running already?"
        ) from None
    except OSError as error:
        os.close(file)
        raise _unwritten(path, error) from None
    return file


def _write_whole(file: int, data: bytes) -> None:
    if os.write(file, data) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(file)


def _unwritten(path: Path, error: OSError) -> FedwardError:
    return DataError(
        f"{path}: cannot be written ({error.strerror}); free space or mend the folder's rights, then start again"
    )
