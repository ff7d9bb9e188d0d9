"""The hospital: one holder of patients. A real one is opened from its files, a virtual one is made from arrays; the class is the same."""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from client.ledger import Ledger
from common.tasks.task import Array, Records


@dataclass(frozen=True, eq=False)
class Hospital:
    """A hospital's raw rows. Compared by identity. No patient is in two of the three parts; ``validation`` is empty unless the run stops early.

    ``patients`` numbers the patient of every training row, None where nobody knows. ``ledger`` is where privacy that is spent is written down. ``least`` is the
    fewest rows that a step without differential privacy may be made from.
    """

    name: str
    train: Records = field(repr=False)
    validation: Records = field(repr=False)
    test: Records = field(repr=False)
    patients: Array | None = field(default=None, repr=False)
    ledger: Ledger = field(default_factory=Ledger, repr=False)
    least: int = 1

    @cached_property
    def fingerprint(self) -> bytes:
        """Return the digest of all training rows; for this process alone, since small data could be guessed from it."""
        digest = hashlib.sha256()
        columns = dict(self.train) | ({} if self.patients is None else {"": self.patients})
        for name in sorted(columns):
            column = np.asarray(columns[name])
            values = "\x1f".join(map(str, column)).encode() if column.dtype.hasobject else column.tobytes()
            digest.update(f"{name}\x1f{column.dtype}{column.shape}\x1f".encode() + values)
        return digest.digest()
