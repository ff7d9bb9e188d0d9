"""95 % intervals of metrics, from the counts of a table's cells alone.

One idea carries them all. A metric is a function of the counts, and the *influence* of a cell is how much one more patient in
it moves the metric. The variance is the sum over cells of count times influence squared (the infinitesimal jackknife: Efron
1982, chapter 6; for the AUROC it is DeLong's variance), and two metrics on the same patients covary by the product of their
influences, summed in the same way. It takes neither patients nor random numbers.

From variance to interval goes by Wilson's score interval at the effective number of patients, ``value (1 - value) / variance``:
exactly Wilson's for a plain proportion, and never outside 0 to 1. Averages and differences join the limits of their parts by
their correlation (MOVER: Zou 2008, "On the estimation of additive interaction"; for a paired difference of proportions it is
method 10 of Newcombe 1998).
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

Z = 1.959963984540054
"""The 97.5 % point of the normal distribution."""


class Estimate(NamedTuple):
    """A metric with its 95 % interval; nan where undefined."""

    value: float
    low: float
    high: float


UNDEFINED = Estimate(float("nan"), float("nan"), float("nan"))


@dataclass(frozen=True)
class Measure:
    """A metric between 0 and 1 on a table of cells: the average over ``K`` classes, undefined where ``K`` is 0.

    ``values`` are the classes' own, shape ``(K,)``; ``influences`` have shape ``(K, *cells)``. ``counts``, shape ``(K,)``, say how
    many patients bear on each value: the effective number where no spread was seen, as when all are right.
    """

    values: Array
    influences: Array
    counts: Array

    def covariance(self, cells: Array) -> Array:
        """Return the covariance of the classes' values, shape ``(K, K)``."""
        flat = self.influences.reshape(len(self.values), cells.size)
        return np.asarray((flat * cells.ravel()) @ flat.T)

    def limits(self, cells: Array) -> tuple[Array, Array]:
        """Return the classes' lower and upper limits, each of shape ``(K,)``."""
        variances = np.diagonal(self.covariance(cells))
        seen = variances > 0
        counts = np.where(seen, self.values * (1 - self.values) / np.where(seen, variances, 1.0), self.counts)
        return wilson(self.values, counts)


def ratio(cells: Array, above: Array, below: Array, beside: Array | None = None) -> Measure:
    """Return the ratios of two weighted counts of cells; weights have shape (K, *cells). Ratios to nothing are left out, and those to nothing in the cells ``beside`` them."""
    denominators = (below * cells).sum(axis=(1, 2))
    defined = denominators > 0
    if beside is not None:
        defined &= (below * beside).sum(axis=(1, 2)) > 0
    above, below, denominators = above[defined], below[defined], denominators[defined]
    values = (above * cells).sum(axis=(1, 2)) / denominators
    influences = (above - values[:, None, None] * below) / denominators[:, None, None]
    return Measure(values, influences, denominators)


def auroc(histogram: Array) -> Measure:
    """Return the AUROC, ties counting half, with influences whose variance is DeLong's (DeLong et al. 1988)."""
    rest, own = histogram
    others, members = rest.sum(), own.sum()
    if not (others and members):
        return _nothing(histogram)
    placements = np.stack([(members - own.cumsum() + own / 2) / members, (rest.cumsum() - rest / 2) / others])
    value = own @ placements[1] / members
    scale = np.sqrt([others * max(others - 1, 1), members * max(members - 1, 1)])
    influences = (placements - value) / scale[:, None]
    # Nobody varies within a class of one. No variance can pass value (1 - value) / the smaller class: that stands in.
    fewest = min(others, members)
    return Measure(np.array([value]), influences[None] * (fewest > 1), np.array([fewest]))


def auprc(histogram: Array) -> Measure:
    """Return the AUPRC as average precision, the mean over the class's patients of the precision at their score."""
    rest, own = histogram
    members = own.sum()
    if not (rest.any() and members):
        return _nothing(histogram)
    found, alarms = (row[::-1].cumsum()[::-1] for row in (own, rest))
    flagged = np.maximum(found + alarms, 1)
    precision = found / flagged
    value = own @ precision / members
    # One more patient changes the precision at every score below its own.
    gains = precision - value + (own * alarms / flagged**2).cumsum()
    costs = (own * found / flagged**2).cumsum()
    return Measure(np.array([value]), np.stack([-costs, gains])[None] / members, np.array([members]))


def _nothing(cells: Array) -> Measure:
    return Measure(np.zeros(0), np.zeros((0, *cells.shape)), np.zeros(0))


def wilson(values: Array, counts: Array) -> tuple[Array, Array]:
    """Return the limits of proportions ``values`` among ``counts`` patients (Wilson 1927).

    >>> low, high = wilson(np.array([1.0]), np.array([10.0]))
    >>> round(float(low[0]), 4), float(high[0])
    (0.7225, 1.0)
    """
    shrink = 1 + Z**2 / counts
    centre = (values + Z**2 / (2 * counts)) / shrink
    half = Z / shrink * np.sqrt(values * (1 - values) / counts + (Z / (2 * counts)) ** 2)
    # Rounding must not carry a limit past the value, nor past 0 or 1.
    return np.clip(centre - half, 0, values), np.clip(centre + half, values, 1)


def average(measure: Measure, cells: Array) -> Estimate:
    """Return the average over the classes of one table, whose correlations its cells tell."""
    if not len(measure.values):
        return UNDEFINED
    covariance = measure.covariance(cells)
    scale = np.sqrt(np.diagonal(covariance))
    scale = np.where(scale > 0, scale, 1.0)
    correlation = covariance / np.outer(scale, scale)
    np.fill_diagonal(correlation, 1.0)
    low, high = measure.limits(cells)
    value = float(measure.values.mean())
    below, above = (
        float(np.sqrt(max(side @ correlation @ side, 0.0))) / len(side)
        for side in (measure.values - low, high - measure.values)
    )
    return Estimate(value, max(value - below, 0.0), min(value + above, 1.0))


def cautious_average(parts: list[Estimate]) -> Estimate:
    """Return the average of the defined parts, taken as fully correlated because their tables do not tell.

    That is the widest the interval can be: for ``K`` uncorrelated parts, ``sqrt(K)`` times too wide.
    """
    defined = [part for part in parts if not np.isnan(part.value)]
    return Estimate(*(float(np.mean(column)) for column in zip(*defined, strict=True))) if defined else UNDEFINED


def independent_average(parts: list[Estimate]) -> Estimate:
    """Return the average of the defined parts, each on patients of its own; without an interval where one of them has none."""
    defined = [part for part in parts if not np.isnan(part.value)]
    if not defined:
        return UNDEFINED
    value, low, high = np.array(defined).T
    centre = float(value.mean())
    below, above = (float(np.sqrt(np.sum(np.square(side)))) / len(defined) for side in (value - low, high - value))
    return Estimate(centre, centre - below, centre + above)


def mean(sums: Array, count: float) -> Estimate:
    """Return the mean of ``count`` numbers, given their sum and sum of squares; one number has no interval."""
    if not count:
        return UNDEFINED
    value, squares = (float(total) / count for total in sums)
    variance = max(squares - value**2, 0.0) / (count - 1) if count > 1 else float("nan")
    half = Z * float(np.sqrt(variance))
    return Estimate(value, value - half, value + half)


def positive_mean(sums: Array, count: float) -> Estimate:
    """Return the mean of numbers from 0 up; the interval is symmetrical in its logarithm, as losses are skewed."""
    value, _, high = mean(sums, count)
    factor = float(np.exp((high - value) / value)) if value else 1.0
    return Estimate(value, value / factor, value * factor)


def correlate(cells: Array, first: Array, second: Array, grain: float = 0.0) -> float:
    """Return the correlation of two metrics by their influences on the joint cells; 0 where either has no spread.

    ``grain`` is the squared step by which one patient moves a metric. Half a patient each way is allowed for (as Newcombe 1998,
    and Agresti and Min 2005), so that two models which agree on every patient seen still differ by an interval.
    """
    covariance, *variances = (float(np.sum(cells * product)) for product in (first * second, first**2, second**2))
    scale = float(np.sqrt(variances[0] * variances[1]))
    if not scale:
        return 0.0
    correlation = covariance / scale
    return max(correlation - grain / (2 * scale), min(correlation, 0.0))


def difference(first: Estimate, second: Estimate, correlation: float, slack: float = 0.0) -> Estimate:
    """Return first minus second; ``slack`` widens both sides."""
    value = first.value - second.value
    below = _join(first.value - first.low, second.high - second.value, correlation) + slack
    above = _join(first.high - first.value, second.value - second.low, correlation) + slack
    return Estimate(value, value - below, value + above)


def _join(one: float, other: float, correlation: float) -> float:
    return float(np.sqrt(max(one**2 - 2 * correlation * one * other + other**2, 0.0)))
