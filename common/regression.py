"""Metrics of predicted amounts, from sums that add: mean absolute error, root mean squared error and R2, with 95 % intervals.

Per patient ``e`` is prediction minus amount. Of a function of sums the variance follows from every patient's influence on it (Efron 1982, chapter 6), whose
square is itself a sum of products of powers of ``y`` and ``e``: these are what ``summarise`` adds up. Amounts are 0 or more, as days or millimetres of mercury are.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common import intervals
from common.errors import DataError
from common.intervals import UNDEFINED, Array, Estimate
from common.statistics import Statistics

_MOMENTS = 5  # 1, y, y^2, y^3, y^4
UNIT = 100.0
"""Amounts are summed in hundreds: with fourth powers, 10,000 patients with amounts and errors up to 10,000 stay within the 2**40 that a secure sum holds."""
_SCALE = UNIT ** np.array([0, 1, 2, 3, 4, 1, 2, 4, 3, 4])
_PRODUCTS = UNIT ** np.array([2, 4])


def summarise(labels: NDArray[Any], scores: Array) -> dict[str, Array]:
    """Return ``sums`` (10,): of y to the powers 0 to 4, of |e|, e^2 and e^4, and of e^2 times y and y^2, with y and e in `UNIT`; for amounts ``labels`` (n,) from 0 up and predictions ``scores`` (n, 1)."""
    y, error = _errors(labels, scores)
    powers = [*_powers(y), np.abs(error), error**2, error**4, error**2 * y, error**2 * y**2]
    return {"sums": np.array([power.sum() for power in powers]) / _SCALE}


def values(statistics: Statistics) -> dict[str, float | None]:
    """Return the metrics alone; None where they are undefined."""
    return {
        name: None if math.isnan(estimate.value) else estimate.value for name, estimate in compute(statistics).items()
    }


def compute(statistics: Statistics) -> dict[str, Estimate]:
    """Return ``mae`` and ``rmse`` in the unit of the amount, and ``r2`` against the patients' own mean, which is at most 1; nan of nobody, and R2 where all amounts are one."""
    sums = statistics["sums"] * _SCALE
    moments, (absolute, squared, fourth, with_y, with_y2) = sums[:_MOMENTS], sums[_MOMENTS:]
    count = float(moments[0])
    square = intervals.mean(np.array([squared, fourth]), count)
    return {
        "mae": _positive(intervals.mean(np.array([absolute, squared]), count)),
        "rmse": Estimate(*(math.sqrt(max(end, 0.0)) for end in square)) if count else UNDEFINED,
        "r2": _explained(moments, squared, fourth, _about_mean(moments, squared, with_y, with_y2)),
    }


def curves(_statistics: Statistics) -> dict[str, Any]:
    """Return no curves: there are none from these sums."""
    return {}


def compare(labels: NDArray[Any], scores_a: Array, scores_b: Array) -> dict[str, Array]:
    """Return the sums of two models on the same patients: ``one`` and ``other`` as of `summarise`, and ``products`` (2,) of |a||b| and a^2 b^2 in the same unit."""
    y, a = _errors(labels, scores_a)
    _, b = _errors(labels, scores_b)
    return {
        "one": summarise(y, scores_a)["sums"],
        "other": summarise(y, scores_b)["sums"],
        "products": np.array([np.abs(a * b).sum(), (a**2 * b**2).sum()]) / _PRODUCTS,
    }


def differences(statistics: Statistics) -> dict[str, Estimate]:
    """Return the metrics of the first model minus those of the second, paired by patient."""
    first, second = (compute({"sums": statistics[name]}) for name in ("one", "other"))
    one, other = (statistics[name] * _SCALE for name in ("one", "other"))
    if math.isnan(first["mae"].value):
        return dict.fromkeys(first, UNDEFINED)
    count, (absolute, squared) = float(one[0]), statistics["products"] * _PRODUCTS
    spreads = {
        "mae": _spread(one[5:7], other[5:7], (1.0, 1.0), float(absolute), count),
        "rmse": _spread(
            one[6:8], other[6:8], _halves(first["rmse"].value, second["rmse"].value), float(squared), count
        ),
        "r2": _spread_explained(one, other, float(squared)),
    }
    return {name: _around(first[name].value - second[name].value, spreads[name]) for name in first}


def _errors(labels: NDArray[Any], scores: Array) -> tuple[Array, Array]:
    if labels.shape != scores.shape[:1] or scores.shape[1:] != (1,):
        raise DataError(f"expected one prediction a patient, got {scores.shape} for {labels.shape} amounts")
    y, predicted = labels.astype(np.float64), scores[:, 0].astype(np.float64)
    if not (np.isfinite(y).all() and np.isfinite(predicted).all() and (y >= 0).all()):
        raise DataError("expected finite predictions of finite amounts from 0 up")
    return y, predicted - y


def _powers(y: Array) -> list[Array]:
    return [y**power for power in range(_MOMENTS)]


def _positive(estimate: Estimate) -> Estimate:
    return Estimate(estimate.value, max(estimate.low, 0.0), estimate.high)


def _about_mean(moments: Array, squared: float, with_y: float, with_y2: float) -> tuple[float, float, float]:
    """Return the sums of d^2, d^4 and e^2 d^2, where d is an amount's distance from their mean."""
    count, first, second, third, fourth = (float(moment) for moment in moments)
    mean = first / count if count else 0.0
    around = second - count * mean**2
    quartic = fourth - 4 * mean * third + 6 * mean**2 * second - 3 * count * mean**4
    return max(around, 0.0), max(quartic, 0.0), with_y2 - 2 * mean * with_y + mean**2 * squared


def _explained(moments: Array, squared: float, fourth: float, about: tuple[float, float, float]) -> Estimate:
    """Return 1 - A/B for A the sum of e^2 and B that of d^2; a patient's influence is (A/B d^2 - e^2) / B."""
    around, quartic, mixed = about
    if around <= 1e-12 * max(float(moments[2]), 1e-300):
        return UNDEFINED
    ratio = float(squared) / around
    variance = max(float(fourth) - 2 * ratio * mixed + ratio**2 * quartic, 0.0) / around**2
    half = intervals.Z * math.sqrt(variance)
    return Estimate(1 - ratio, 1 - ratio - half, min(1 - ratio + half, 1.0))


def _halves(one: float, other: float) -> tuple[float, float]:
    """Return how much each root moves with its mean square."""
    return tuple(1 / (2 * root) if root else 0.0 for root in (one, other))  # type: ignore[return-value]


def _spread(one: Array, other: Array, weights: tuple[float, float], product: float, count: float) -> float:
    """Return the standard error of the difference of two weighted means, given sums, sums of squares and the sum of products."""
    mean = weights[0] * float(one[0]) - weights[1] * float(other[0])
    square = weights[0] ** 2 * float(one[1]) + weights[1] ** 2 * float(other[1]) - 2 * weights[0] * weights[1] * product
    return math.sqrt(max(square - mean**2 / count, 0.0)) / count


def _spread_explained(one: Array, other: Array, product: float) -> float:
    """Return the standard error of the difference of two R2; a patient's influence is (b^2 - a^2 - difference d^2) / B."""
    around, quartic, mixed = _about_mean(one[:_MOMENTS], *(float(one[place]) for place in (6, 8, 9)))
    _, _, mixed_other = _about_mean(other[:_MOMENTS], *(float(other[place]) for place in (6, 8, 9)))
    if not around:
        return 0.0
    gap = float(other[6] - one[6]) / around
    square = float(one[7] + other[7]) - 2 * product - 2 * gap * (mixed_other - mixed) + gap**2 * quartic
    return math.sqrt(max(square, 0.0)) / around


def _around(value: float, spread: float) -> Estimate:
    return Estimate(value, value - intervals.Z * spread, value + intervals.Z * spread)
