"""How well risks order survival: Harrell's c-index with intervals, from sums that add over hospitals.

Pairs are counted within a hospital: of two patients of different hospitals nobody knows both. Two patients are comparable where one died and the other is known to have lived longer; the
pair is concordant where the first had the higher risk, and half so where risks are equal (Harrell et al. 1996, Stat Med 15:361-387). The merged index is so the stratified one: the share of
concordant pairs among all hospitals' comparable ones.

A patient's influence on the index is how many of his pairs are concordant beyond the index's share of them; the variance is the sum of squared influences (infinitesimal jackknife, as in
`common.intervals`), which the sums of products of the patients' pairs give.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from common import intervals
from common.errors import DataError
from common.intervals import UNDEFINED, Estimate
from common.statistics import Statistics

Array = NDArray[np.float64]
UNIT = 1e6
"""Products of pairs are summed in millions, so that those of 10,000 patients stay within what a secure sum holds."""
_SLICE = 256


def summarise(labels: NDArray[np.float32], scores: Array) -> dict[str, Array]:
    """Return the statistics of one model: ``labels`` are days and whether the patient died then, ``(n, 2)``; ``scores`` logarithms of risks, ``(n, 1)``.

    Shapes: ``pairs`` (2,), concordant and comparable; ``products`` (2, 2), of the patients' own such pairs; ``likelihood`` (2,), the negative logarithm of the partial likelihood, and the deaths.

    Raises
    ------
    DataError
        For a risk that is not finite.
    """
    found = _pairs(labels, [scores])
    return {**_sums(found), "likelihood": _likelihood(labels, scores[:, 0])}


def values(statistics: Statistics) -> dict[str, float | None]:
    """Return ``c_index`` and ``partial_loss``, per death, without intervals; None where undefined."""
    (concordant, comparable), (loss, deaths) = statistics["pairs"], statistics["likelihood"]
    index = float(concordant / comparable) if comparable else None
    return {"c_index": index, "partial_loss": float(loss / deaths) if deaths else None}


def compute(statistics: Statistics) -> dict[str, Estimate]:
    """Return the metrics with 95 % intervals; the loss has none, since the deaths of a hospital share their risk sets."""
    loss = values(statistics)["partial_loss"]
    alone = UNDEFINED if loss is None else Estimate(loss, float("nan"), float("nan"))
    return {"c_index": _index(statistics["pairs"], statistics["products"], 0), "partial_loss": alone}


def compare(labels: NDArray[np.float32], scores_a: Array, scores_b: Array) -> dict[str, Array]:
    """Return the joint statistics of two models on the same patients: ``pairs`` (3,), concordant by a, by b, comparable; ``products`` (3, 3)."""
    return _sums(_pairs(labels, [scores_a, scores_b]))


def differences(statistics: Statistics) -> dict[str, Estimate]:
    """Return a's index minus b's, with its paired 95 % interval."""
    pairs, products = statistics["pairs"], statistics["products"]
    first, second = (_index(pairs, products, model) for model in (0, 1))
    if not pairs[2]:
        return {"c_index": UNDEFINED}
    shares = np.array([[1, 0, -pairs[0] / pairs[2]], [0, 1, -pairs[1] / pairs[2]]])
    covariance = shares @ products @ shares.T
    scale = float(np.sqrt(max(covariance[0, 0] * covariance[1, 1], 0.0)))
    return {"c_index": intervals.difference(first, second, float(covariance[0, 1]) / scale if scale else 0.0)}


def curves(_statistics: Statistics) -> dict[str, Any]:
    """Return nothing: what is drawn of classes has no meaning here."""
    return {}


def _pairs(labels: NDArray[np.float32], models: list[Array]) -> Array:
    """Return every patient's concordant pairs by each model and his comparable ones, ``(models + 1, n)``."""
    if labels.ndim != 2 or labels.shape[1] != 2 or any(scores.shape != (len(labels), 1) for scores in models):
        raise DataError(f"expected labels (n, 2) and scores (n, 1); got {labels.shape} and {models[0].shape}")
    if not all(np.isfinite(scores).all() for scores in models):
        raise DataError("scores: expected finite risks; has the model diverged? Try a smaller learning rate")
    time, died = labels[:, 0], labels[:, 1] > 0
    found = np.zeros((len(models) + 1, len(labels)))
    rows = np.flatnonzero(died)
    for start in range(0, len(rows), _SLICE):
        those = rows[start : start + _SLICE]
        # Who is last seen on the day of another's death outlived that other.
        after = (time > time[those, None]) | ((time == time[those, None]) & ~died)
        concordant = [after * (np.sign(scores[those] - scores[:, 0]) + 1) / 2 for scores in models]
        for kind, table in enumerate([*concordant, after]):
            found[kind] += table.sum(axis=0)
            found[kind, those] += table.sum(axis=1)
    return found


def _sums(found: Array) -> dict[str, Array]:
    return {"pairs": found.sum(axis=1) / 2, "products": found @ found.T / UNIT}


def _index(pairs: Array, products: Array, model: int) -> Estimate:
    """Return a model's index with Wilson's interval at the effective number of patients."""
    comparable = float(pairs[-1])
    if not comparable:
        return UNDEFINED
    value = float(pairs[model]) / comparable
    share = np.zeros(len(pairs))
    share[[model, -1]] = 1, -value
    variance = float(share @ products @ share) * UNIT / comparable**2
    # Where no spread was seen, as when all pairs are concordant, the patients that bear on it: as many as have such products at most.
    fewest = comparable**2 / max(float(products[-1, -1]) * UNIT, 1.0)
    count = value * (1 - value) / variance if variance > 0 and 0 < value < 1 else fewest
    low, high = intervals.wilson(np.array([value]), np.array([count]))
    return Estimate(value, float(low[0]), float(high[0]))


def _likelihood(labels: NDArray[np.float32], scores: Array) -> Array:
    """Return the negative logarithm of Breslow's partial likelihood within the hospital, and the count of deaths."""
    died = labels[:, 1] > 0
    order = np.argsort(-labels[:, 0], kind="stable")
    times = labels[order, 0]
    at_risk = np.logaddexp.accumulate(scores[order]) if len(order) else scores
    # All who share a time are at risk at it.
    last = np.searchsorted(-times, -times, side="right") - 1
    loss = (at_risk[last] - scores[order])[died[order]].sum() if len(order) else 0.0
    return np.array([max(float(loss), 0.0), float(died.sum())])
