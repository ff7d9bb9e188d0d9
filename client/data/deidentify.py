"""De-identification on import: what identifies a patient is dropped, hashed, turned into an interval, capped or masked."""

import hashlib
import hmac
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.data import text
from client.data.schema import Imported
from common.errors import UsageError
from common.tasks.task import Array, Column, Records, Task, rows_of

OLDEST = 90
"""Ages from here on are one class (45 CFR 164.514(b)(2)(i)(C))."""
KEY_BYTES = 32


@dataclass(frozen=True)
class Found:
    """Counts of identifiers by (class, column): never what they were. ``left_out`` are cells not taken, ``masked`` places in texts, ``capped`` ages."""

    left_out: Mapping[tuple[str, str], int] = field(default_factory=dict)
    masked: Mapping[tuple[str, str], int] = field(default_factory=dict)
    capped: Mapping[str, int] = field(default_factory=dict)
    hashed: int = 0

    def text(self) -> str:
        """Return the account for the terminal."""
        lines = [f"patient numbers replaced by a keyed hash: {self.hashed}"]
        for title, counts in (("left out, cells", self.left_out), ("masked in texts", self.masked)):
            lines += [
                f"{title}: {kind} in column {column!r}: {count}" for (kind, column), count in sorted(counts.items())
            ]
        lines += [
            f"ages capped at {OLDEST} in column {column!r}: {count}" for column, count in sorted(self.capped.items())
        ]
        if self.masked:
            lines.append("rules find no name without a title or label: let a person read a sample of the texts")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Deidentified:
    """Rows without direct identifiers; ``patients`` ``(n,)`` are keyed hashes, 32 bytes each, also where the file has no patient column."""

    records: Records = field(repr=False)
    patients: Array = field(repr=False)
    numbered: bool
    found: Found


def deidentify(imported: Imported, task: Task, key: bytes) -> Deidentified:
    """Return an import's rows without what identifies a patient, and an account of what was found.

    ``key`` is the site's own, 32 bytes or more. The hash of a patient's number is HMAC-SHA-256 (RFC 2104): who lacks the key can't try numbers, and two
    sites' hashes of one number differ.

    Raises
    ------
    DataError
        When the import was refused.
    UsageError
        For a key that is too short.
    """
    imported.report.check()
    check_key(key)
    records = {name: np.array(values) for name, values in imported.records.items()}
    masked: Counter[tuple[str, str]] = Counter()
    capped: dict[str, int] = {}
    for column in task.columns:
        if column.kind == "text":
            records[column.name] = _scrubbed(records[column.name], column.name, masked)
        elif is_age(column):
            old = records[column.name] > OLDEST
            records[column.name] = np.where(old, float(OLDEST), records[column.name])
            capped |= {column.name: int(old.sum())} if old.any() else {}
        elif column.kind == "name":
            records[column.name] = _renamed(records[column.name], key)
    numbered = imported.patients is not None
    patients = _hashed(records, imported.patients, key)
    hashed = len(set(patients.tolist())) if numbered else 0
    return Deidentified(records, patients, numbered, Found(imported.left_out, dict(masked), capped, hashed))


def days_from_first(days: NDArray[np.float64], patients: Array | None) -> NDArray[np.float64]:
    """Turn days of the calendar ``(n, columns)`` into days since the first of all the patient's; without patients, since the row's first.

    >>> days_from_first(np.array([[700.0, 710.0], [690.0, np.nan]]), np.array(["a", "a"])).tolist()
    [[10.0, 20.0], [0.0, nan]]
    """
    groups = np.arange(len(days)) if patients is None else np.unique(patients.astype(str), return_inverse=True)[1]
    first = np.full(groups.max(initial=-1) + 1, np.inf)
    np.minimum.at(first, groups, np.where(np.isnan(days), np.inf, days).min(axis=1, initial=np.inf))
    return np.where(np.isnan(days), np.nan, days - np.where(np.isfinite(first), first, 0.0)[groups][:, None])


def is_age(column: Column) -> bool:
    """Return whether a column of the task is an age."""
    return column.unit == "years" and bool(re.search(r"\bage\b", f"{column.name} {column.meaning}".casefold()))


def keyed(key: bytes, purpose: str, content: bytes) -> bytes:
    """Return HMAC-SHA-256 of content, of its own kind for every purpose."""
    return hmac.digest(key, b"fedward " + purpose.encode() + b"\0" + content, hashlib.sha256)


def check_key(key: bytes) -> None:
    """Raise `UsageError` for a key that is no key."""
    if len(key) < KEY_BYTES:
        raise UsageError(f"the site's data key: expected {KEY_BYTES} bytes or more, got {len(key)}; make it anew")


def row_bytes(records: Records, row: int, columns: tuple[str, ...] | None = None) -> bytes:
    """Return a row's content, the same for the same values on every computer."""
    parts = []
    for name in sorted(records) if columns is None else columns:
        value: Any = records[name][row]
        content = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else _plain(value)
        parts.append(b"%d:%b=%d:%b" % (len(name), name.encode(), len(content), content))
    return b"".join(parts)


def _plain(value: Any) -> bytes:
    array = np.asarray(value)
    # All NaN are one, and minus zero is zero.
    return (np.where(np.isnan(array), np.nan, array + 0.0) if array.dtype.kind == "f" else array).tobytes()


def _scrubbed(texts: Array, column: str, masked: Counter[tuple[str, str]]) -> Array:
    clean = np.full(len(texts), "", object)
    for row, content in enumerate(texts):
        clean[row], found = text.scrub(content)
        for kind, count in found.items():
            masked[kind, column] += count
    return clean


def _renamed(names: Array, key: bytes) -> Array:
    """Return the hex of a keyed hash for every name; where there is none, none."""
    hashes = np.full(len(names), "", object)
    hashes[:] = [name and keyed(key, "name", name.encode("utf-8", "surrogatepass")).hex() for name in names]
    return hashes


def _hashed(records: Records, patients: Array | None, key: bytes) -> Array:
    """Return one keyed hash a row: of the patient's number, or of the row itself, so that rows added later change none."""
    hashes = np.full(rows_of(records), b"", object)
    for row in range(len(hashes)):
        hashes[row] = (
            keyed(key, "row", row_bytes(records, row))
            if patients is None
            else keyed(key, "patient", patients[row].encode("utf-8", "surrogatepass"))
        )
    return hashes
