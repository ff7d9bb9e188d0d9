"""Thresholds: the score from which on a patient counts as of class 1, chosen on validation patients and never on those of the test.

A threshold is always the edge between two bins of `metrics.summarise`'s histogram, so a histogram tells exactly how many patients of each class lie on either side of it:
hospitals send nothing more, and it works on a sum over hospitals as on one of them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.intervals import Array
from common.metrics import EDGES
from common.statistics import Statistics

HALF = len(EDGES) // 2
"""The place of 0.5 among the edges, which lie symmetrically around it."""


def chosen(histogram: Array, rule: str) -> float | None:
    """Return the edge that is best by a rule of `RULES`, of equals the one nearest to 0.5, and the lower of two as near; None where a class has nobody.

    ``histogram`` (1, 2, bins) is that of two classes by `metrics.summarise`, of validation patients.
    """
    if not histogram.any(axis=2).all():
        return None
    (rest, own), (all_rest, all_own) = _from_each_edge(histogram), histogram[0].sum(axis=1)
    merits = RULES[rule](rest, own, all_rest, all_own)
    best = np.flatnonzero(merits == merits.max())
    return float(EDGES[best[np.abs(best - HALF).argmin()]])


def counted(statistics: Statistics, threshold: float | None) -> Statistics:
    """Return the same statistics of two classes with the ``confusion`` at a threshold that `chosen` gave; None leaves it as it is."""
    if threshold is None:
        return statistics
    histogram = statistics["histogram"]
    above = _from_each_edge(histogram)[:, np.searchsorted(EDGES, threshold)]
    return {**statistics, "confusion": np.stack([histogram[0].sum(axis=1) - above, above], axis=1)}


def joint(labels: NDArray[np.int32], scores: Sequence[Array], thresholds: Sequence[Any]) -> Array:
    """Return the ``predictions`` of `metrics.compare`, (2, 2, 2), for two models' scores (n, 2), each at its own threshold; None stands for the more probable class."""
    table = np.zeros((2, 2, 2))
    first, second = (
        score.argmax(axis=1) if threshold is None else (score[:, 1] >= threshold).astype(np.intp)
        for score, threshold in zip(scores, thresholds, strict=True)
    )
    np.add.at(table, (labels, first, second), 1.0)
    return table


def _from_each_edge(histogram: Array) -> Array:
    """Return how many patients of the rest and of class 1 have a score at or above each edge, (2, edges)."""
    return np.asarray(histogram[0, :, ::-1].cumsum(axis=1)[:, -2::-1])


def _youden(rest: Array, own: Array, all_rest: float, all_own: float) -> Array:
    """Sensitivity + specificity - 1 (Youden 1950), times both counts: whole numbers, so that equals are equal."""
    return own * all_rest - rest * all_own


def _f1(rest: Array, own: Array, _all_rest: float, all_own: float) -> Array:
    """F1 of class 1: the harmonic mean of precision and recall."""
    return 2 * own / (own + rest + all_own)


RULES: dict[str, Callable[[Array, Array, float, float], Array]] = {"youden": _youden, "f1": _f1}
