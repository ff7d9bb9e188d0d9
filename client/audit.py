"""AuditLog: an account of what was asked, allowed and sent, in which no line can be changed, left out or moved unnoticed.

One JSON object a line. ``previous`` is the SHA-256 of the bytes of the line before, and ``sha256``, always the last, that of its own line up to there::

    {"sequence":2,"time":"2026-03-01T08:30:00.120000Z","monotonic":81.52,"event":"refused",
     "fields":{"kind":"train","round":3,"code":"min_records"},"previous":"5f0c...","sha256":"91ab..."}

Whoever can write the file could still rewrite all of it from some line on, or cut off its end. Against the first every so many lines one is a checkpoint, signed
with the site's key; against both every answer carries what `AuditLog.checkpoint` returned, the coordinator keeps it, and `common.chain.verify` compares.

A line never holds a patient's value: `EVENTS` says which fields an event has, and `FIELDS` what each may be. A text that is of another form, as a hostile
coordinator may send, is written as ``?``.
"""

import errno
import fcntl
import json
import math
import os
import re
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common import chain
from common.chain import EVERY, ORIGIN, Break, Line
from common.errors import DataError, FedwardError, UsageError

DAY = 86_400.0
LONGEST = 3600.0
"""Seconds that a training counts with at most when the process died in it: nobody knows how long it was off afterwards."""
MOST_MESSAGES, MOST_RUNS = 100_000, 10_000
"""How many messages, and of how many runs the last round, are remembered, the newest of them, also after a restart."""

Value = str | int | float
QUESTIONS = ("query.statistics", "evaluate", "query.compare")
"""Kinds of message that are answered from patients and train nothing; as `common.messages` names them, which takes Flower to import."""
_HEX = re.compile(r"[0-9a-f]{64}")
FIELDS: Mapping[str, re.Pattern[str] | type] = {
    "kind": re.compile(r"(query\.)?(statistics|train|evaluate|compare|keys|shares)"),
    "run": re.compile(r"[0-9a-f-]{1,36}"),
    "message": re.compile(r"[0-9a-f-]{1,64}"),
    "task": re.compile(r"[a-z][a-z0-9_-]{0,23}"),
    "code": re.compile(r"[A-Za-z_]{1,32}"),
    "version": re.compile(r"[0-9][0-9a-z.+]{0,23}"),
    "coordinator": _HEX,
    "bundle": _HEX,
    "policy": _HEX,
    "settings": _HEX,
    "weights": _HEX,
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
_MODELS = ("train", "evaluate")
"""Kinds of message whose answers secure aggregation sums."""
EVENTS: Mapping[str, tuple[str, ...]] = {
    "started": ("version", "policy"),
    "stopped": ("code",),
    "asked": (*_REQUEST, "task", "hospitals", "parameters", "coordinator", "bundle", "settings", "weights", "policy"),
    "allowed": _REQUEST,
    "refused": (*_REQUEST, "code"),
    "failed": (*_REQUEST, "code"),
    "replay": _REQUEST,
    "trained": (*_REQUEST, "rounds", "seconds"),
    "spent": (*_REQUEST, "epsilon", "delta"),
    "opened": _REQUEST,
    "sent": (*_REQUEST, "sha256", "bytes", "norm"),
    "checkpoint": ("sequence", "sha256", "signature"),
    "torn": ("sha256", "bytes"),
}
"""What is written down, and with which fields; none of them is required."""


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
        self._memory = _Memory()
        self._file = _open(path)
        try:
            self._read()
        except BaseException:  # whatever ends it, Ctrl-C too, the lock may not outlast it
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

    def seen(self, message: str) -> bool:
        """Tell whether a message of this name came before; one whose name is none counts as every other of that kind."""
        return _short("message", message) in self._memory.messages

    def last_round(self, run: str) -> int:
        """Return the newest round of a run that training was allowed for; 0 for none."""
        return self._memory.rounds.get(run, 0)

    def covered(self, run: str) -> dict[str, Value]:
        """Return kind and round of the newest question of a run that a secure sum may be made for."""
        kind, number = self._memory.covered.get(run, ("?", 0))
        return {"kind": kind, "round": number}

    def opened(self, run: str, kind: str, number: int) -> bool:
        """Tell whether this hospital has helped to open the sum of a question of a run."""
        return (run, kind, number) in self._memory.opened

    def trained(self, seconds: float = DAY) -> tuple[int, float]:
        """Return how many rounds were trained in the last so many seconds, of all runs, and for how many seconds.

        Training that failed counts, and so does one during which the process died. Events of the future count too, so that a clock that is set back frees nothing.
        """
        since = time.time() - seconds
        recent = [entry for entry in self._memory.spent() if entry[0] >= since]
        return sum(rounds for _, rounds, _ in recent), sum(lasted for _, _, lasted in recent)

    def questions(self, seconds: float = DAY) -> int:
        """Return how many questions that train nothing were allowed in the last so many seconds, of all runs; whatever became of them, and as of `trained`."""
        since = time.time() - seconds
        return sum(when >= since for when in self._memory.questions)

    def _read(self) -> None:
        """Follow the file to its end; repair a torn tail."""
        torn = False
        with self._path.open("rb") as file:
            for line in chain.follow(file):
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

    def _accept(self, line: Line) -> None:
        self._sequence, self._digest, self._size = line.number, line.digest, line.end
        self._memory.note(line.content)

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
        self.append("torn", {"bytes": len(rest), "sha256": chain.sha256(rest)})

    def _write(self, event: str, fields: Mapping[str, Value | None]) -> None:
        content = {
            "sequence": self._sequence + 1,
            "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "monotonic": round(time.monotonic(), 6),
            "event": event,
            "fields": fields,
            "previous": self._digest,
        }
        line = chain.sealed(json.dumps(content, separators=(",", ":"), allow_nan=False).encode()[:-1])
        self._store(line + b"\n")
        self._accept(Line(self._sequence + 1, chain.sha256(line), self._size + len(line) + 1, content))

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
        signature = self._key.sign(chain.statement(self._sequence, self._digest)).hex()
        return {"sequence": self._sequence, "sha256": self._digest, "signature": signature}


class _Memory:
    """What the lines so far tell of messages, runs and training; lines that were read at the start and those written since count alike."""

    def __init__(self) -> None:
        self.messages: dict[str, None] = {}
        self.rounds: dict[str, int] = {}
        self.covered: dict[str, tuple[str, int]] = {}
        self.opened: dict[tuple[str, str, int], None] = {}
        self.questions: list[float] = []
        self._spent: list[tuple[float, int, float]] = []
        self._begun: Mapping[str, Any] | None = None

    def spent(self) -> list[tuple[float, int, float]]:
        """Return when, for how many rounds and how many seconds there was training, with one that is under way."""
        return self._spent if self._begun is None else [*self._spent, (_when(self._begun), 1, 0.0)]

    def note(self, content: Mapping[str, Any]) -> None:
        """Take in one line."""
        event, fields = content["event"], content["fields"]
        if "message" in fields:
            _remember(self.messages, fields["message"], None, MOST_MESSAGES)
        if event in ("allowed", "opened"):
            self._note_sum(event, fields.get("run", "?"), fields.get("kind", "?"), fields.get("round") or 0)
        if event == "allowed" and fields.get("kind") == "train":
            self._end(0.0)  # the end of the one before could not be written
            self._begun = content
            _remember(self.rounds, fields.get("run", "?"), fields.get("round") or 0, MOST_RUNS)
        elif event == "allowed" and fields.get("kind") in QUESTIONS:
            self.questions = [*_recent(self.questions, time.time() - DAY), _when(content)]
        elif event == "trained":
            self._begun = None
            self._spend(_when(content), fields.get("rounds", 1) or 0, fields.get("seconds") or 0.0)
        elif event == "refused":
            self._begun = None  # by the worker, before it trained
        elif event == "failed" and self._begun:
            self._end(content["monotonic"] - self._begun["monotonic"])
        elif event == "started" and self._begun:
            self._end(min(max(_when(content) - _when(self._begun), 0.0), LONGEST))

    def _note_sum(self, event: str, run: str, kind: str, number: int) -> None:
        if event == "opened":
            _remember(self.opened, (run, kind, number), None, MOST_MESSAGES)
        elif kind in _MODELS:
            _remember(self.covered, run, (kind, number), MOST_RUNS)

    def _end(self, seconds: float) -> None:
        """Count a training that came to no good end."""
        if self._begun:
            self._spend(_when(self._begun), 1, seconds)
            self._begun = None

    def _spend(self, when: float, rounds: int, seconds: float) -> None:
        since = time.time() - DAY
        self._spent = [*(entry for entry in self._spent if entry[0] >= since), (when, rounds, seconds)]


def _recent(times: list[float], since: float) -> list[float]:
    return [when for when in times if when >= since]


def _when(content: Mapping[str, Any]) -> float:
    return datetime.fromisoformat(content["time"]).timestamp()


def _remember(memory: dict[Any, Any], name: object, value: object, most: int) -> None:
    """Note something as the newest of at most so many."""
    memory.pop(name, None)
    memory[name] = value
    if len(memory) > most:
        del memory[next(iter(memory))]


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
