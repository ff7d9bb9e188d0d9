"""Checkpoints: all that a run needs to go on after any end, written so that a torn file never stands under its name."""

import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError

NAME = "checkpoint.npz"


@dataclass(frozen=True)
class Checkpoint:
    """State after a whole round: named arrays, and ``facts`` as JSON (round number, preparation, history)."""

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

    Used as a context: at its end, also by an error or Ctrl-C, the last round handed over is on disk.
    """

    def __init__(self, path: Path | None, rounds: Sequence[Mapping[str, Any]] = ()) -> None:
        self._path = path
        self._rounds = list(rounds)
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
        self._rounds.append(record)
        if self._path:
            checkpoint = Checkpoint(dict(state), {**facts, "rounds": list(self._rounds)})
            self._writing = self._thread.submit(save, self._path, checkpoint)

    def _finish(self) -> None:
        writing, self._writing = self._writing, None
        if writing:
            writing.result()


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
        temporary.unlink(missing_ok=True)
        raise DataError(
            f"{path}: cannot be written ({error.strerror}); free space or choose another folder with --out, then resume"
        ) from None
