"""Lists of codes that a federation agrees on: hashed, counted at every hospital, kept where enough of them have a code.

A column of kind ``codes`` holds, in every cell, one code a line, in the order in which they were charted: ``diagnosis cardiovascular|shock``. A code is counted
by its bucket (`common.tasks.text`), so that none travels that few of a hospital's records hold.
"""

import math
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from common.privacy.noise import Noise
from common.statistics import Statistics
from common.tasks.task import Array
from common.tasks.text import BUCKETS, bucket

ABOVE = 4.75
"""Standard deviations of its noise that a count stands above: of all buckets that no record has, one in four hospitals then keeps one."""
WINDOW = 512
"""Codes of a cell that are counted, from its end."""


def buckets(cells: Iterable[object]) -> list[list[int]]:
    r"""Return the buckets of every cell's codes, in order; anything but text has none.

    >>> [len(found) for found in buckets(["a\nb", "", None])]
    [2, 0, 0]
    """
    known: dict[str, int] = {}
    return [
        [known[code] if code in known else known.setdefault(code, bucket(code)) for code in codes_of(cell)]
        for cell in cells
    ]


def codes_of(cell: object) -> list[str]:
    """Return the codes of a cell: its lines, stripped, without empty ones."""
    return [code for line in cell.splitlines() if (code := line.strip())] if isinstance(cell, str) else []


def counted(columns: Iterable[Iterable[object]], minimum: int) -> Statistics:
    """Count for each column and bucket the records that hold it, from ``minimum`` on; and mark those buckets, and this hospital."""
    counts = np.stack([_counts(cells) for cells in columns])
    counts[counts < minimum] = 0
    return _statistics(counts)


def united(columns: Mapping[str, Array], patients: Array) -> dict[str, Array]:
    """Return columns of codes with one row a patient, which holds each code that one of the patient's rows holds, once; ``patients`` ``(n,)`` says whose each row is."""
    names, whose = np.unique(patients.astype(str), return_inverse=True)
    joined = {}
    for column, cells in columns.items():
        held: list[dict[str, None]] = [{} for _ in names]
        for patient, cell in zip(whose, cells, strict=True):
            held[patient] |= dict.fromkeys(codes_of(cell))
        joined[column] = np.array(["\n".join(each) for each in held], object)
    return joined


def noised(statistics: Statistics, noise: Noise, minimum: int) -> Statistics:
    """Noise the counts and keep those that stand out of the noise.

    One record moves at most `WINDOW` counts of each column, each by 1, or by ``minimum`` where it brings it over the minimum.
    """
    sensitivity = minimum * math.sqrt(WINDOW * len(statistics["records"]))
    counts = np.rint(noise(statistics["records"], sensitivity))
    counts[counts < max(minimum, ABOVE * noise.multiplier * sensitivity)] = 0
    return _statistics(counts)


def kept(statistics: Statistics, hospitals: int, sizes: tuple[int, ...]) -> list[list[int]]:
    """Return of each column the buckets that so many ``hospitals`` reported, or all where there are fewer: at most its size, the most frequent first, of equally frequent ones the lower number."""
    enough = max(min(hospitals, int(statistics["hospitals"][0])), 1)
    shared = np.where(statistics["present"] >= enough, statistics["records"], 0.0)
    orders = [np.argsort(-row, kind="stable")[:size] for row, size in zip(shared, sizes, strict=True)]
    return [order[row[order] > 0].tolist() for row, order in zip(shared, orders, strict=True)]


def places(found: list[list[int]], listed: list[int], start: int = 0) -> list[list[int]]:
    """Return, for every cell, the numbers of its codes in a list, from ``start`` on; codes that are not in it are left out."""
    number = {each: place for place, each in enumerate(listed, start)}
    return [[number[each] for each in cell if each in number] for cell in found]


def marked(numbers: list[list[int]], width: int) -> NDArray[np.float32]:
    """Return 1 where a row names a number, float32 ``(n, width)``."""
    marks = np.zeros((len(numbers), width), np.float32)
    for row, named in zip(marks, numbers, strict=True):
        row[named] = 1.0
    return marks


def _counts(cells: Iterable[object]) -> NDArray[np.float64]:
    counts = np.zeros(BUCKETS)
    for found in buckets(cells):
        counts[list(set(found[-WINDOW:]))] += 1
    return counts


def _statistics(counts: NDArray[np.float64]) -> Statistics:
    return {"records": counts, "present": (counts > 0).astype(np.float64), "hospitals": np.ones(1)}
