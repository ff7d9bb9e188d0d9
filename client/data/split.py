"""Train, validation and test: by patient, and the same for a patient whatever rows come later."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from client.data.deidentify import Deidentified, check_key, keyed, row_bytes
from client.hospital import Hospital
from common.errors import DataError, UsageError
from common.tasks.task import Array, Records, Task, rows_of, take

PARTS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Parts:
    """A hospital's rows by part: ``records[part]`` and, for every row, ``patients[part]``, numbers from 0 that name a patient within the part."""

    records: Mapping[str, Records] = field(repr=False)
    patients: Mapping[str, Array] = field(repr=False)
    duplicates: int = 0

    def hospital(self, name: str) -> Hospital:
        """Return the hospital that the worker trains at."""
        train, validation, test = (self.records[part] for part in PARTS)
        return Hospital(name, train, validation, test, self.patients["train"])

    def counts(self) -> dict[str, dict[str, int]]:
        """Return rows and patients of each part."""
        return {
            part: {"rows": rows_of(self.records[part]), "patients": len(np.unique(self.patients[part]))}
            for part in PARTS
        }


def split(clean: Deidentified, task: Task, key: bytes, validation: float = 0.0, test: float = 0.2) -> Parts:
    """Deal rows to the parts by patient: no patient is in two.

    A patient's part follows from the keyed hash of his number alone. So rows that are added later move nobody, the shares are met on average only (in a
    small hospital a part may be empty), and whoever lacks the key can't tell who is in the test. Repeated rows are removed first.

    Raises
    ------
    UsageError
        For shares that leave nothing for training.
    DataError
        When no patient is left for training.
    """
    check_key(key)
    if min(validation, test) < 0 or validation + test >= 1:
        raise UsageError(
            f"shares of validation and test: expected 0 or more, together below 1; got {validation:g} and {test:g}"
        )
    kept = distinct(clean, task)
    place = np.array([_place(patient, key) for patient in clean.patients[kept]])
    part = np.where(place < test, 2, np.where(place < test + validation, 1, 0))
    rows = {name: kept[part == number] for number, name in enumerate(PARTS)}
    if not len(rows["train"]):
        raise DataError(
            f"{len(kept)} rows: no patient is left for training; add patients or lower the shares of validation and test"
        )
    return Parts(
        {name: take(clean.records, of_part) for name, of_part in rows.items()},
        {name: _numbered(clean.patients[of_part]) for name, of_part in rows.items()},
        len(clean.patients) - len(kept),
    )


def distinct(clean: Deidentified, task: Task) -> Array:
    """Return the rows that repeat none before them.

    An image, text or sequence that comes twice is one, whatever its label and patient: else it could stand on two sides. A row of measurements repeats another
    only of the same patient, where patients are numbered.
    """
    contents = tuple(column.name for column in task.columns if column.kind in ("image", "text", "sequence"))
    first: dict[bytes, int] = {}
    for row in range(len(clean.patients)):
        if contents:
            first.setdefault(row_bytes(clean.records, row, contents), row)
        else:
            first.setdefault(clean.patients[row] + row_bytes(clean.records, row), row)
    return np.fromiter(first.values(), np.int64, len(first))


def _place(patient: bytes, key: bytes) -> float:
    """Return the patient's place between 0 and 1."""
    return int.from_bytes(keyed(key, "split", patient)[:8], "big") / 2**64


def _numbered(patients: Array) -> Array:
    """Return numbers from 0 in the order of first appearance."""
    numbers: dict[bytes, int] = {}
    return np.array([numbers.setdefault(patient, len(numbers)) for patient in patients], np.int64)
