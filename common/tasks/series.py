"""Irregular time series: from single measurements to an hourly grid, its federated moments, and what a recurrent layer reads."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from common.statistics import Statistics
from common.tasks.task import Column, Preparation

Floats = NDArray[np.floating]
"""Values ``(n, steps, variables)``; NaN where nothing was measured."""


def grid(
    row: NDArray[np.int64], hour: Floats, variable: NDArray[np.int64], value: Floats, shape: tuple[int, int, int]
) -> NDArray[np.float32]:
    """Return the mean of every row's values by whole hour and variable: float32 of the ``shape`` ``(rows, hours, variables)``, NaN where there are none.

    The four arrays describe one measurement an entry; ``hour`` counts from the start of the stay. What is measured at the very end belongs to
    the last hour; what is measured before the start or after the end is left out, and so is a NaN.

    >>> grid(np.array([0, 0]), np.array([0.5, 0.9]), np.array([0, 0]), np.array([80.0, 90.0]), (1, 2, 1))[0, :, 0].tolist()
    [85.0, nan]
    """
    inside = (hour >= 0) & (hour <= shape[1]) & ~np.isnan(value)
    step = np.minimum(hour[inside].astype(np.int64), shape[1] - 1)
    cell = np.ravel_multi_index((row[inside], step, variable[inside]), shape)
    size = int(np.prod(shape))
    count, total = np.bincount(cell, minlength=size), np.bincount(cell, value[inside], size)
    means = np.divide(total, count, out=np.full(size, np.nan), where=count > 0)
    return np.asarray(means.reshape(shape), np.float32)


def scaled(values: Floats, variables: Sequence[Column], logarithmic: frozenset[str]) -> Floats:
    """Return values with those of the ``logarithmic`` variables as log(1 + x); a value outside its variable's range is an artefact, and NaN."""
    low, high = (np.array([getattr(variable, end) for variable in variables], values.dtype) for end in ("low", "high"))
    kept = np.where((values >= low) & (values <= high), values, values.dtype.type(np.nan))
    skewed = [number for number, variable in enumerate(variables) if variable.name in logarithmic]
    kept[..., skewed] = np.log1p(kept[..., skewed])
    return kept


def moments(values: Floats) -> Statistics:
    """Return, by variable, the count of rows in which it was measured, and the sums of their means and mean squares over time.

    So every patient counts once, however often he was measured: the sickest, who are, do not set the scale for all.
    """
    seen = ~np.isnan(values)
    known, times = np.where(seen, values, 0.0), seen.sum(axis=1)
    means, squares = (
        np.divide(power.sum(axis=1, dtype=np.float64), times, out=np.zeros(times.shape), where=times > 0)
        for power in (known, known.astype(np.float64) ** 2)
    )
    return {
        "count": (times > 0).sum(axis=0).astype(np.float64),
        "sum": means.sum(axis=0),
        "squares": squares.sum(axis=0),
    }


def scales(statistics: Statistics, low: Floats, high: Floats) -> Preparation:
    """Turn summed `moments` into mean and deviation; a variable that nobody tells of is scaled by its range, one that never varies gets deviation 1."""
    told = statistics["count"] > 0
    count = np.maximum(statistics["count"], 1.0)
    mean = statistics["sum"] / count
    variance = np.maximum(statistics["squares"] / count - mean**2, 0.0)
    scale = np.where(variance > 1e-12, np.sqrt(np.maximum(variance, 1e-12)), 1.0)
    return {
        "mean": np.where(told, mean, (low + high) / 2).tolist(),
        "scale": np.where(told, scale, (high - low) / 4).tolist(),
    }


def steps(standard: Floats, hours: int) -> Floats:
    """Return the means of each run of so many hours; the last run may be shorter. NaN where none of them has a value."""
    starts = np.arange(0, standard.shape[1], hours)
    count = np.add.reduceat(~np.isnan(standard), starts, axis=1, dtype=np.int64)
    total = np.add.reduceat(np.nan_to_num(standard, nan=0.0), starts, axis=1)
    return np.divide(total, count, out=np.full(total.shape, np.nan, total.dtype), where=count > 0)


def carried(standard: Floats) -> tuple[Floats, NDArray[np.bool_], Floats]:
    """Return standardised values with the last one carried forward, 0 before the first; which were measured; and the time since, as a share of all.

    Before its first measurement the time since a variable's last one is all of it (as in GRU-D, Che et al. 2018, section 2.1, but for the scale).
    """
    seen = ~np.isnan(standard)
    length = standard.shape[1]
    step = np.arange(length)[None, :, None]
    last = np.maximum.accumulate(np.where(seen, step, -1), axis=1)
    values = np.take_along_axis(standard, np.maximum(last, 0), axis=1)
    return np.where(last < 0, 0.0, values), seen, np.where(last < 0, 1.0, (step - last) / length)
