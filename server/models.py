"""Checkpoints: all that a run needs to go on after any end, written so that a torn file never stands under its name."""

import io
import json
import os
import zipfile
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError

NAME, HISTORY = "checkpoint.npz", "rounds.jsonl"


@dataclass(frozen=True)
class Checkpoint:
    """State after a whole round: named arrays, and ``facts`` as JSON."""

    state: Mapping[str, NDArray[Any]]
    facts: Mapping[str, Any] = field(default_factory=dict)


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; after it returns, this one is on disk, and before it returns, the one before is."""
    buffer = io.BytesIO()
    facts = np.frombuffer(json.dumps([checkpoint.facts, list(checkpoint.state)]).encode(), np.uint8)
    np.savez(
        buffer, allow_pickle=False, facts=facts, **{f"state/{name}": array for name, array in checkpoint.state.items()}
    )
    write(path, buffer.getbuffer())


class Saver:
    """Writes a run's checkpoints, one a round, each while the next round runs; the one before is on disk before the next is begun.

    The records of the rounds are lines of a file of their own that only grows, so that a round costs the same however many went before it; the
    checkpoint says how many of its bytes belong to it. Used as a context: at its end, also by an error or Ctrl-C, the last round handed over is on disk.
    """

    def __init__(self, folder: Path | None, saved: Checkpoint | None = None) -> None:
        self._folder = folder
        self._size = int(saved.facts["history"]) if saved else 0
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()
        self._finish()

    def save(self, state: Mapping[str, NDArray[Any]], facts: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        """Hand over the state after a round and its record. A strategy never writes into arrays of a finished round, so they need no copy.

        Raises
        ------
        DataError
            When the checkpoint of the round before could not be written.
        """
        self._finish()
        if self._folder:
            line = json.dumps(record).encode() + b"\n"
            begin, self._size = self._size, self._size + len(line)
            checkpoint = Checkpoint(dict(state), {**facts, "history": self._size})
            self._writing = self._thread.submit(self._save, self._folder, begin, line, checkpoint)

    @staticmethod
    def _save(folder: Path, begin: int, line: bytes, checkpoint: Checkpoint) -> None:
        append(folder / HISTORY, begin, line)
        save(folder / NAME, checkpoint)

    def _finish(self) -> None:
        writing, self._writing = self._writing, None
        if writing:
            writing.result()


def history(folder: Path, checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Read the records of a checkpoint's rounds; what was written after it does not count.

    Raises
    ------
    DataError
        When some of them are missing.
    """
    path, size = folder / HISTORY, int(checkpoint.facts["history"])
    try:
        text = path.read_bytes()[:size]
        if len(text) == size:
            return [json.loads(line) for line in text.splitlines()]
    except (OSError, ValueError):
        pass
    raise DataError(f"{path}: damaged, or not the one that belongs to {NAME}; delete both to start the run anew")


def load(path: Path) -> Checkpoint | None:
    """Read a checkpoint; None where there is none.

    Raises
    ------
    DataError
        When the file is damaged; the message names it.
    """
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
            facts, names = json.loads(arrays.pop("facts").tobytes())
            return Checkpoint({name: arrays[f"state/{name}"] for name in names}, facts)
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: damaged checkpoint ({type(error).__name__}); delete it to start the run anew"
        ) from None


def append(path: Path, begin: int, content: bytes) -> None:
    """Write content from byte ``begin`` of a file on, which ends there; what an interrupted run wrote beyond is gone.

    Raises
    ------
    DataError
        When it cannot be written.
    """
    try:
        with path.open("r+b" if path.exists() else "x+b", buffering=0) as file:
            file.truncate(begin)
            file.seek(begin)
            try:
                rest = memoryview(content)
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(begin)
                raise
    except OSError as error:
        raise _unwritten(path, error) from None


def write(path: Path, content: bytes | memoryview) -> None:
    """Write a whole file or nothing: a temporary file beside it, flushed to disk, then renamed over it.

    Raises
    ------
    DataError
        When it cannot be written, for example on a full disk; what stood there before still does.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):  # on a disk that is read-only not even that
            temporary.unlink(missing_ok=True)
        raise _unwritten(path, error) from None


def _unwritten(path: Path, error: OSError) -> DataError:
    return DataError(
        f"{path}: cannot be written ({error.strerror}); free space, or choose another place, and try again"
    )
