"""What a hospital keeps of a run between rounds: parts of the model that stay there, its control variate, what lossy codecs have not yet sent.

A real hospital `Sealed` keeps it in files of its own, encrypted; a virtual one in the context of its node, `InContext`, so that any process of a simulation may answer for it.
"""

import hashlib
import os
import threading
import time
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from cryptography.exceptions import InvalidTag
from flwr.app import ArrayRecord, Context

from client.data import vault
from client.worker import State
from common import sealing, wire
from common.errors import DataError
from common.messages import TRAIN, Request
from common.secagg.keys import joined

FOLDER = "kept"
MAGIC = b"fedward kept 1\n"
MOST_RUNS = 8
"""Runs of which anything is kept, those trained in last."""
DAYS = 30
"""How long it is kept of a run that is not trained in again."""
SALT = 32


class Keeping(Protocol):
    """Where a hospital keeps what must last between messages."""

    def load(self, kind: str, request: Request, context: Context) -> State:
        """Return what an answer to a message of this kind starts from; the caller may change it."""

    def keep(self, kind: str, request: Request, context: Context, state: State) -> None:
        """Keep what the answer left."""


class InContext:
    """A virtual hospital's: in Flower's context of its node."""

    def load(self, _kind: str, _request: Request, context: Context) -> State:
        """Return what was left last."""
        record = context.state.get("hospital")
        return wire.from_record(record) if isinstance(record, ArrayRecord) else {}

    def keep(self, _kind: str, _request: Request, context: Context, state: State) -> None:
        """Keep it for the next message."""
        if state:
            context.state["hospital"] = wire.to_record(state)


@dataclass(frozen=True)
class Sealed:
    """A real hospital's: one encrypted file a run in ``folder``, by the run's settings as they came, so that a run that is resumed, which is another to Flower, goes on with it.

    A round that is asked again starts from what there was before it. So after a round two states are kept, that one and the one it started from; a round before both starts as a
    hospital does that has not trained yet. What only judges starts from the newest.

    Guarantee
    ---------
    Nothing of it leaves the worker but through its answers: Flower's context, which passes through the stub and Flower's node, stays empty. On disk each file is under AES-256-GCM with a
    key of its own, made from ``key`` and a random salt, and bound to its run and ``site``: whoever lacks the key learns its length and can change nothing unseen. It is written whole or
    not at all, and before the answer leaves.

    Edge cases
    ----------
    - An older file of the same run, put back whole, is not noticed.
    - Erased is the file; what a disk or a backup remembers of it stays encrypted.

    Raises
    ------
    DataError
        When a file cannot be written or is not this hospital's; it is named.
    """

    folder: Path
    key: bytes = field(repr=False)
    site: str
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def load(self, kind: str, request: Request, _context: Context) -> State:
        """Return what was kept after the newest round; to train, after the newest before the one asked for."""
        with self._lock:
            states = _before(kind, request, self._read(request.run))
        return states[max(states)] if states else {}

    def keep(self, kind: str, request: Request, _context: Context, state: State) -> None:
        """Keep what a round left, and what it started from; drop what is older, and runs that are too many."""
        if kind != TRAIN or not state:
            return
        with self._lock:
            before = _before(kind, request, self._read(request.run))
            states = {number: before[number] for number in sorted(before)[-1:]} | {_round(request): state}
            self._write(request.run, states)
            for path in self._files()[MOST_RUNS:]:
                path.unlink(missing_ok=True)

    def forget(self) -> None:
        """Erase what is kept of runs that were not trained in for `DAYS`."""
        with self._lock:
            for path in self._files():
                if path.stat().st_mtime < time.time() - DAYS * 86_400:
                    path.unlink()

    def _files(self) -> list[Path]:
        """Return the files, the newest first."""
        return sorted(self.folder.glob("*.sealed"), key=lambda path: path.stat().st_mtime, reverse=True)

    def _read(self, run: str) -> dict[int, State]:
        path = self._path(run)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); mend the folder's rights") from None
        start = len(MAGIC) + SALT
        cipher = vault.cipher_of(self.key, content[len(MAGIC) : start], MAGIC)
        try:
            opened = b"".join(sealing.opened(BytesIO(content[start:]), cipher, self._bound(run)))
        except InvalidTag:
            raise DataError(
                f"{path}: damaged, or not sealed by this hospital for this run; restore it from a backup, or delete it to go on without what it held"
            ) from None
        return _unpacked(opened)

    def _write(self, run: str, states: dict[int, State]) -> None:
        salt = os.urandom(SALT)

        def fill(file: BinaryIO) -> None:
            file.write(MAGIC + salt)
            sealed = sealing.Sealing(file, vault.cipher_of(self.key, salt, MAGIC), self._bound(run))
            sealed.write(_packed(states))
            sealed.close()

        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise DataError(f"{self.folder}: cannot be made ({error.strerror}); mend the rights of the site") from None
        vault.write(self._path(run), fill)

    def _path(self, run: str) -> Path:
        return self.folder / f"{hashlib.sha256(run.encode()).hexdigest()}.sealed"

    def _bound(self, run: str) -> bytes:
        return joined(MAGIC, self.site, run)


def _round(request: Request) -> int:
    return int(request.options["server-round"])


def _before(kind: str, request: Request, states: dict[int, State]) -> dict[int, State]:
    return {number: state for number, state in states.items() if kind != TRAIN or number < _round(request)}


def _packed(states: dict[int, State]) -> bytes:
    out = BytesIO()
    arrays = {f"{number}:{name}": array for number, state in states.items() for name, array in state.items()}
    np.savez(out, **arrays)  # type: ignore[arg-type]
    return out.getvalue()


def _unpacked(opened: bytes) -> dict[int, State]:
    states: dict[int, State] = {}
    with np.load(BytesIO(opened), allow_pickle=False) as file:
        for entry in file.files:
            number, _, name = entry.partition(":")
            states.setdefault(int(number), {})[name] = file[entry]
    return states
