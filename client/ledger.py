"""The ledger: what this hospital has spent of its patients' privacy, in all runs, and the say whether it may spend more.

A charge is written down durably before anything is trained, and marked as used afterwards; one that is found unmarked, because the process died, counts as spent. Epsilon is never stored: it
is computed from the events of all charges. Each charge holds the key of its noise, so that the same question asked again, after a crash too, gets the same answer
bit for bit and costs nothing; once a later round of the run is charged, or the run ends, the key is erased, and nobody can take the noise off again. No backup has any.
"""

import hashlib
import math
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from client.policy import refusal
from common.errors import DataError
from common.privacy.accountant import Memory, epsilon
from common.privacy.events import Event, from_text, to_text
from common.privacy.noise import KEY_BYTES

NAME = "ledger.sqlite"
KEY_DAYS = 7
"""How long a key is kept of a run that is not heard of again."""
_TABLE = """CREATE TABLE IF NOT EXISTS charges (number INTEGER PRIMARY KEY AUTOINCREMENT, identity TEXT NOT NULL, run TEXT NOT NULL, round INTEGER NOT NULL, study TEXT NOT NULL,
task TEXT NOT NULL, unit TEXT NOT NULL, event TEXT NOT NULL, key BLOB, used INTEGER NOT NULL DEFAULT 0, over INTEGER NOT NULL DEFAULT 0, time TEXT NOT NULL)"""

_GROUP = "study = ? AND task = ? AND unit = ?"


@dataclass(frozen=True)
class Budget:
    """The most that may ever be spent of one unit's privacy, and the most by one run: epsilon, at a delta."""

    epsilon: float
    delta: float
    run: float = math.inf


@dataclass(frozen=True)
class Question:
    """What is asked of the hospital: the run's settings as they came, its round (0 for statistics), and what the answer is computed from."""

    run: str
    round: int
    asked: bytes
    study: str
    task: str
    unit: str

    @property
    def identity(self) -> str:
        """Return the digest of all of it: equal questions have equal answers."""
        head = f"{self.run}\x1f{self.round}\x1f".encode()
        return hashlib.sha256(head + hashlib.sha256(self.asked).digest()).hexdigest()


@dataclass(frozen=True)
class Spent:
    """What a study's runs of a task have spent; ``unused`` charges were written down, and whether they were used nobody knows."""

    study: str
    task: str
    unit: str
    epsilon: float
    charges: int
    unused: int


class Ledger:
    """The charges of one site, in a file, or in memory where there is none. Threads may share it.

    ``budget`` is asked at every charge, so that a change of the policy counts at once; None is no limit. ``key`` makes the key of a new charge's noise from the
    question; simulations give one that follows from their seed.

    Raises
    ------
    DataError
        When the file is none, or cannot be written.
    """

    def __init__(
        self,
        path: Path | None = None,
        budget: Callable[[], Budget | None] = lambda: None,
        key: Callable[[Question], bytes] = lambda _: os.urandom(KEY_BYTES),
    ) -> None:
        self._path, self._budget, self._key = path, budget, key
        self._lock, self._memory = threading.Lock(), Memory()
        if path:
            _ = self._file  # one that cannot be opened is said at once

    @cached_property
    def _file(self) -> sqlite3.Connection:
        try:
            if self._path and not self._path.exists():
                os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o600))
            file = sqlite3.connect(self._path or ":memory:", isolation_level=None, check_same_thread=False, timeout=30)
            # A charge is on disk, its folder's entry too, when the call returns.
            for word in ("PRAGMA synchronous = EXTRA", "PRAGMA secure_delete = ON", _TABLE):
                file.execute(word)
        except (OSError, sqlite3.Error) as error:
            raise self._broken(error) from None
        return file

    def reserve(self, question: Question, event: Event) -> bytes:
        """Write a charge down, and return the key of its noise; for a question that was charged before, the key that it had.

        Raises
        ------
        PolicyRefused
            With the code ``budget``, when the charge would exceed the budget, or what one run may spend of it; nothing is written then.
        DataError
            When it cannot be written.
        """
        with self._changing():
            known = self._rows("SELECT key FROM charges WHERE identity = ? AND key IS NOT NULL", question.identity)
            if known:
                return bytes(known[0][0])
            self._check([event], question.run, going_on=True)
            self._rows(
                "UPDATE charges SET key = NULL WHERE run = ? AND round < ?", _short(question.run), question.round
            )
            key = self._key(question)
            values = (
                question.identity,
                _short(question.run),
                question.round,
                question.study,
                question.task,
                question.unit,
            )
            self._rows(
                "INSERT INTO charges (identity, run, round, study, task, unit, event, key, time) VALUES (?,?,?,?,?,?,?,?,?)",
                *values, to_text(event), key, _days_ago(0),
            )  # fmt: skip
            return key

    def finish(self, run: str) -> None:
        """Erase the keys of a run that has ended; what is asked of it again is charged again, beside what it spent."""
        with self._changing():
            self._rows("UPDATE charges SET key = NULL, over = 1 WHERE run = ?", _short(run))

    def forget(self) -> None:
        """Erase the keys of charges that are older than `KEY_DAYS`; what is asked again of them is charged again."""
        with self._changing():
            self._rows("UPDATE charges SET key = NULL WHERE key IS NOT NULL AND time < ?", _days_ago(KEY_DAYS))

    def key(self, identity: str) -> bytes:
        """Return the key of the noise of a charge, by the `Question.identity` it was made for.

        Raises
        ------
        DataError
            When there is none, or it was erased.
        """
        with self._changing():
            known = self._rows("SELECT key FROM charges WHERE identity = ? AND key IS NOT NULL", identity)
        if not known:
            raise DataError(f"{self._path}: the privacy ledger has no key for this charge")
        return bytes(known[0][0])

    def commit(self, question: Question) -> None:
        """Mark a charge as used."""
        with self._changing():
            self._rows("UPDATE charges SET used = 1 WHERE identity = ?", question.identity)

    def check(self, events: Iterable[Event], run: str) -> None:
        """Refuse a whole run that the budget does not have, without writing anything; raises as `reserve`. What the run has spent already, as before it was interrupted, is among ``events``."""
        with self._changing():
            self._check(events, run)

    def spent(self, delta: float) -> float:
        """Return the epsilon, at ``delta``, of all charges together."""
        with self._changing():
            return epsilon(self._events(), delta, memory=self._memory)

    def table(self, delta: float) -> list[Spent]:
        """Return what was spent by study, task and unit. Their epsilons do not add up to that of all: composed together they cost less."""
        with self._changing():
            groups = self._rows(
                "SELECT study, task, unit, count(*), sum(1 - used) FROM charges GROUP BY study, task, unit ORDER BY study, task, unit"
            )
            return [
                Spent(study, task, unit, epsilon(self._events(_GROUP, study, task, unit), delta), charges, unused)
                for study, task, unit, charges, unused in groups
            ]

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _check(self, events: Iterable[Event], run: str, *, going_on: bool = False) -> None:
        """Refuse what would exceed the budget, or the most of one run; ``events`` are all that the run asks for, or where it is ``going_on`` what comes on top of its charges. What it spent before it ended comes on top in any case."""
        budget = self._budget()
        if budget is None:
            return
        own, events = ("run = ?" if going_on else "run = ? AND over"), list(events)
        others, asked = self._events("run <> ?", _short(run)), [*self._events(own, _short(run)), *events]
        for before, most, than, setting in (
            ([], budget.run, "one run may spend", "privacy.epsilon"),
            (others, budget.epsilon, "is left", "privacy.budget"),
        ):
            if math.isinf(most):
                continue
            after = epsilon([*before, *asked], budget.delta, memory=self._memory)
            if after > most:
                spent = epsilon([*before, *asked[: len(asked) - len(events)]], budget.delta)
                objection = (
                    f"the run asks for more of the patients' privacy than {than}: spent {spent:.3g} of epsilon {most:g} at delta {budget.delta:g}, "
                    f"and with what is asked {after:.3g}"
                )
                raise refusal("budget", objection, setting)

    def _events(self, where: str = "1", *values: str) -> list[Event]:
        rows = self._rows(f"SELECT event FROM charges WHERE {where} ORDER BY number", *values)  # noqa: S608 - a text of this file
        return [from_text(text) for (text,) in rows]

    def _rows(self, words: str, *values: Any) -> list[Any]:
        return self._file.execute(words, values).fetchall()

    def _changing(self) -> "_Transaction":
        return _Transaction(self._file, self._lock, self._broken)

    def _broken(self, error: Exception) -> DataError:
        return DataError(
            f"{self._path}: the privacy ledger cannot be read or written ({error}); without it nothing is trained under differential privacy. Restore it from a backup"
        )


@dataclass(frozen=True)
class _Transaction:
    """All of what is done within is on disk, or none; other processes and threads wait."""

    file: sqlite3.Connection
    lock: Any
    broken: Callable[[Exception], DataError]

    def __enter__(self) -> None:
        self.lock.acquire()
        try:
            self.file.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            self.lock.release()
            raise self.broken(error) from None

    def __exit__(self, kind: object, error: object, _trace: object) -> None:
        try:
            self.file.execute("ROLLBACK" if kind else "COMMIT")
        except sqlite3.Error as failed:
            with suppress(sqlite3.Error):
                self.file.execute("ROLLBACK")
            raise self.broken(failed) from None
        finally:
            self.lock.release()
        if isinstance(error, sqlite3.Error):
            raise self.broken(error) from None


def _short(run: str) -> str:
    return hashlib.sha256(run.encode()).hexdigest()


def _days_ago(days: int) -> str:
    return (datetime.now(UTC) - timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")


@contextmanager
def read(path: Path) -> Iterator[Ledger]:
    """Open a ledger to look at; where there is none yet, an empty one, and no file is made."""
    opened = Ledger(path if path.exists() else None)
    try:
        yield opened
    finally:
        opened.close()


@contextmanager
def whole(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a ledger as of its last whole charge, for a backup that is made while the hospital runs; the keys of noise are left out.

    Raises
    ------
    DataError
        When it is no ledger.
    """
    try:
        with closing(sqlite3.connect(path, timeout=30)) as file, closing(sqlite3.connect(":memory:")) as copy:
            file.backup(copy)
            copy.execute("UPDATE charges SET key = NULL")
            copy.commit()
            copy.execute("VACUUM")  # what was overwritten is in no free page either
            content = copy.serialize()
    except sqlite3.Error as error:
        raise DataError(f"{path}: the privacy ledger cannot be read ({error}); mend it before a backup") from None
    yield BytesIO(content), len(content)
