"""Bins of numbers: edges that follow from merged histograms over public ranges, never from a single patient's value."""

import numpy as np
from numpy.typing import NDArray

FINE = 256
"""Bins of equal width by which a hospital counts its values; an edge is one of theirs."""

Floats = NDArray[np.float64]


def histogram(values: Floats, low: Floats, high: Floats) -> Floats:
    """Count the values ``(n, columns)`` of every column in `FINE` bins of equal width over its range; what is beyond counts at the end, NaN nowhere.

    >>> histogram(np.array([[0.0], [9.99], [np.nan]]), np.array([0.0]), np.array([10.0])).nonzero()[1].tolist()
    [0, 255]
    """
    share = (values - low) / (high - low)
    known = ~np.isnan(share)
    cells = np.clip(np.where(known, share, 0.0) * FINE, 0, FINE - 1).astype(np.int64)
    cells += FINE * np.arange(values.shape[1])
    counts = np.bincount(cells[known], minlength=FINE * values.shape[1])
    return counts.reshape(-1, FINE).astype(np.float64)


def edges(counts: Floats, low: Floats, high: Floats, bins: int) -> Floats:
    """Return ``bins - 1`` rising edges a column that part the values counted about evenly; where nobody has any, even ones."""
    counts = np.where(counts.sum(axis=1, keepdims=True) > 0, counts, 1.0)
    below = counts.cumsum(axis=1) / counts.sum(axis=1, keepdims=True)
    wanted = np.arange(1, bins) / bins
    places = np.array([np.searchsorted(column, wanted) + 1 for column in below])
    found: Floats = low[:, None] + (high - low)[:, None] * places / FINE
    return found


def moments(counts: Floats, low: Floats, high: Floats) -> tuple[Floats, Floats]:
    """Return mean and deviation of every column as far as bins tell; the deviation is 1 where nothing varies."""
    middle = low[:, None] + (high - low)[:, None] * (np.arange(FINE) + 0.5) / FINE
    rows = np.maximum(counts.sum(axis=1), 1.0)
    mean = (counts * middle).sum(axis=1) / rows
    deviation = np.sqrt((counts * (middle - mean[:, None]) ** 2).sum(axis=1) / rows)
    return mean, np.where(deviation > 0, deviation, 1.0)


def binned(values: Floats, cuts: Floats) -> NDArray[np.uint8]:
    """Return the number of every value's bin, ``(n, columns)``: how many of its column's edges it reaches; 0 for NaN."""
    columns = (np.searchsorted(cut, column, side="right") for cut, column in zip(cuts, values.T, strict=True))
    found = np.stack([np.asarray(column) for column in columns], axis=1)
    return np.where(np.isnan(values), 0, found).astype(np.uint8)
