"""The Dataset: where public data comes from, under which licence, and how it becomes a Table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.config import Scalar
from common.tasks.task import Array, Records


@dataclass(frozen=True)
class File:
    """One file of a data set, ``size`` bytes long.

    ``checksums`` are those of all bytes that are accepted, as ``sha256:...`` or ``md5:...``: first of what stands behind ``url``, then
    of known copies. Without a ``url`` the file can't be downloaded; the data set's ``note`` says why.
    """

    name: str
    size: int
    checksums: tuple[str, ...]
    url: str = ""


@dataclass(frozen=True)
class Table:
    """A data set that was read: ``n`` rows, duplicates removed.

    ``label`` holds class numbers ``(n,)``, which index ``classes``; ``records`` also hold the label, in the column ``target``.
    ``patient`` ``(n,)`` says whose row it is, so that rows of one patient never part; None where the data do not say, and then every row counts as a patient. ``hospital`` ``(n,)`` names the hospitals that the data really come
    from, ``test`` ``(n,)`` is the published split; both are None where there is none.
    """

    records: Records
    label: NDArray[np.int64]
    classes: tuple[str, ...]
    patient: Array | None = None
    hospital: Array | None = None
    test: NDArray[np.bool_] | None = None
    duplicates_removed: int = 0
    target: str = "label"

    def __len__(self) -> int:
        return len(self.label)

    @property
    def whose(self) -> Array:
        """Return whose each row is, a number of its own where the data do not say."""
        return np.arange(len(self)) if self.patient is None else self.patient


@dataclass(frozen=True)
class Dataset:
    """A public data set.

    ``task`` names the task it serves, ``also`` others that take the same columns, ``task_settings`` are settings of that task that suit it, such as the names of the classes. ``rows`` counts
    what ``read`` returns. ``read`` takes the folder that holds ``files``. A data set without files is in ``shipped`` files of the package, or made by a
    seeded generator (``synthetic``). ``folder`` is its place in the cache and in a mirror.
    """

    name: str
    title: str
    task: str
    origin: str
    licence: str
    citation: str
    rows: int
    read: Callable[[Path], Table]
    folder: str = ""
    files: tuple[File, ...] = ()
    shipped: tuple[File, ...] = ()
    synthetic: bool = False
    task_settings: Mapping[str, Scalar] = field(default_factory=dict)
    note: str = ""
    also: tuple[str, ...] = ()
