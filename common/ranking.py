"""How good a ranking is, from statistics that add: recall, NDCG and coverage of the first ``k`` of a fixed list of things that can be recommended.

A row is one question: which of the things, of those still open to it, come next? Labels ``(n, width)`` are 1 for those that did; scores ``(n, width)`` rank, the highest first, of equals the
first in the list, and minus infinity is never recommended. A row for which nothing came next is not judged.

- ``recall``: the share of what came next among the first ``k``, of at most ``k`` that could be there.
- ``ndcg``: the same, weighted by 1 / log2(1 + place), as a share of the best order's (Järvelin and Kekäläinen 2002, ACM TOIS 20:422-446).
- ``coverage``: the share of the list, of what was open to anyone, that was recommended to anyone.
- ``log_loss``: minus the mean logarithm of the share that a softmax over the scores gives to what came next, in nats.

Intervals take rows as independent. Where a patient has several, they are somewhat too narrow.
"""

import numpy as np
from numpy.typing import NDArray

from common import intervals
from common.errors import DataError
from common.intervals import Array, Estimate, Z
from common.statistics import Statistics

NAMES = ("recall", "ndcg", "log_loss")
SMALLEST = 1e-9
"""A share below this counts as this: what was never thought possible and came costs 21 nats, not infinity."""


def summarise(labels: NDArray[np.float32], scores: Array, k: int) -> dict[str, Array]:
    """Return the statistics of a ranking: ``rows`` (1,) judged, ``sums`` (3, 2) of recall, NDCG and log loss and of their squares, ``open`` and ``recommended`` (width,) rows by thing.

    Raises
    ------
    DataError
        Shapes do not fit, or a score is not a number.
    """
    _check(labels, scores)
    judged = labels.any(axis=1)
    labels, scores = labels[judged], scores[judged]
    chosen = first(scores, k)
    recommended = np.zeros(labels.shape)
    np.put_along_axis(recommended, chosen, 1.0, axis=1)
    recommended *= np.isfinite(scores)
    return {
        "rows": np.array([float(len(labels))]),
        "sums": _sums(_measures(labels, scores, chosen)),
        "open": np.isfinite(scores).sum(axis=0).astype(np.float64),
        "recommended": recommended.sum(axis=0),
    }


def values(statistics: Statistics) -> dict[str, float | None]:
    """Return the measures alone; None where nobody was judged."""
    rows, offered = float(statistics["rows"][0]), int((statistics["open"] > 0).sum())
    found = {
        name: float(total) / rows if rows else None for name, total in zip(NAMES, statistics["sums"][:, 0], strict=True)
    }
    return found | {"coverage": float((statistics["recommended"] > 0).sum()) / offered if offered else None}


def compute(statistics: Statistics) -> dict[str, Estimate]:
    """Return every measure with its 95 % interval; nan where nobody was judged."""
    rows = float(statistics["rows"][0])
    recall, ndcg = (_share(intervals.mean(sums, rows)) for sums in statistics["sums"][:2])
    return {
        "recall": recall,
        "ndcg": ndcg,
        "coverage": _coverage(statistics["recommended"], statistics["open"] > 0),
        "log_loss": intervals.positive_mean(statistics["sums"][2], rows),
    }


def compare(labels: NDArray[np.float32], scores_a: Array, scores_b: Array, k: int) -> dict[str, Array]:
    """Return the sums (3, 2) of a's measures minus b's over the same rows, and of their squares, and how many ``rows`` (1,)."""
    for scores in (scores_a, scores_b):
        _check(labels, scores)
    judged = labels.any(axis=1)
    ours, theirs = (
        _measures(labels[judged], scores[judged], first(scores[judged], k)) for scores in (scores_a, scores_b)
    )
    return {"rows": np.array([float(judged.sum())]), "sums": _sums(ours - theirs)}


def differences(statistics: Statistics) -> dict[str, Estimate]:
    """Return a's measures minus b's with paired 95 % intervals, from what `compare` gave; there is none of the coverage."""
    rows = float(statistics["rows"][0])
    return {name: intervals.mean(sums, rows) for name, sums in zip(NAMES, statistics["sums"], strict=True)}


def curves(statistics: Statistics) -> dict[str, list[float]]:
    """Return in how many rows each thing of the list was recommended."""
    return {"recommended": statistics["recommended"].tolist()}


def first(scores: Array, k: int) -> NDArray[np.intp]:
    """Return the places of the ``k`` highest scores of every row, the highest first, of equals the first in the list.

    >>> first(np.array([[0.1, 0.5, 0.5, -np.inf]]), 2).tolist()
    [[1, 2]]
    """
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def _check(labels: NDArray[np.float32], scores: Array) -> None:
    if scores.ndim != 2 or labels.shape != scores.shape:
        raise DataError(f"expected labels and scores of one shape (n, width), got {labels.shape} and {scores.shape}")
    if np.isnan(scores).any() or (scores == np.inf).any():
        raise DataError("scores: expected numbers; has the model diverged? Try a smaller learning rate")


def _measures(labels: NDArray[np.float32], scores: Array, chosen: NDArray[np.intp]) -> Array:
    """Return recall, NDCG and log loss of every row, (3, n)."""
    hits = np.take_along_axis(labels, chosen, axis=1) * np.isfinite(np.take_along_axis(scores, chosen, axis=1))
    k = chosen.shape[1]
    relevant = labels.sum(axis=1)
    discount = 1.0 / np.log2(np.arange(2, k + 2))
    best = np.concatenate([[0.0], discount.cumsum()])[np.minimum(relevant, k).astype(np.intp)]
    top = scores.max(axis=1, keepdims=True, initial=-1e30)
    share = np.exp(scores - top)
    share /= np.maximum(share.sum(axis=1, keepdims=True), SMALLEST)
    surprise = -(labels * np.log(np.maximum(share, SMALLEST))).sum(axis=1) / relevant
    return np.stack([hits.sum(axis=1) / np.minimum(relevant, k), hits @ discount / best, surprise])


def _sums(measures: Array) -> Array:
    return np.stack([measures.sum(axis=1), (measures**2).sum(axis=1)], axis=1)


def _share(estimate: Estimate) -> Estimate:
    """Return the interval of a mean of shares, which none of its limits leaves."""
    return Estimate(estimate.value, *(float(np.clip(end, 0.0, 1.0)) for end in estimate[1:]))


def _coverage(recommended: Array, offered: NDArray[np.bool_]) -> Estimate:
    """Return the share of the list that was recommended, with the interval of other patients drawn alike.

    How often a thing is recommended varies as Poisson's; one seen ``c`` times is seen again with chance ``1 - exp(-c)``, and each is a draw of its own.
    """
    if not offered.any():
        return intervals.UNDEFINED
    again = 1.0 - np.exp(-recommended[offered])
    half = Z * float(np.sqrt((again * (1 - again)).sum())) / len(again)
    return _share(Estimate(value := float((recommended[offered] > 0).mean()), value - half, value + half))
