"""From events to epsilon, by Google's dp-accounting, which is imported only when samples are accounted for."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from common.errors import ConfigError
from common.privacy.events import Event

Method = Literal["pld", "rdp"]
BINS = 1e3
"""Into how many parts the expected epsilon is divided to count privacy losses in; they are rounded so that epsilon comes out too large, never too small."""


def epsilon(events: Iterable[Event], delta: float, method: Method = "pld") -> float:
    """Return the epsilon at ``delta`` of all events together, for neighbours that differ by one unit added or removed.

    Guarantee
    ---------
    An upper bound: all events may be chosen adaptively, each after seeing what the others released.

    Edge cases
    ----------
    - No events: 0.
    - Events without sampling are one Gaussian, whose epsilon is known in closed form (Balle and Wang 2018, theorem 8) and holds for either method.
    - A loss so large that the bins end: infinity.

    Raises
    ------
    ConfigError
        When delta is not above 0 and below 1.
    """
    if not 0 < delta < 1:
        raise ConfigError(f"delta {delta:g}: expected above 0 and below 1")
    merged = _merged(events)
    if all(rate == 1.0 for _, rate in merged):
        return gaussian_epsilon(about(merged), delta)
    return float(_composed(merged, method, gaussian_epsilon(about(merged), delta)).get_epsilon(delta))


def delta(events: Iterable[Event], at: float, method: Method = "pld") -> float:
    """Return the delta of all events together at epsilon ``at``."""
    return float(_composed(_merged(events), method, at).get_delta(at))


def about(counts: Mapping[tuple[float, float], int]) -> float:
    """Return the sensitivity, in standard deviations, of the Gaussian that events tend to, counted by multiplier and rate (Bu et al. 2020, equation 5)."""
    parts = (
        count / z**2 if rate == 1.0 else count * rate**2 * math.expm1(min(z**-2, 500.0))
        for (z, rate), count in counts.items()
    )
    return math.sqrt(sum(parts))


def gaussian_delta(at: float, mu: float) -> float:
    """Return the delta at epsilon ``at`` of a Gaussian whose sensitivity is ``mu`` standard deviations (Balle and Wang 2018, theorem 8)."""
    from scipy.special import log_ndtr

    first, second = log_ndtr(mu / 2 - at / mu), at + log_ndtr(-mu / 2 - at / mu)
    return float(math.exp(first) * -math.expm1(min(second - first, 0.0)))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the smallest epsilon at ``delta`` of a Gaussian whose sensitivity is ``mu`` standard deviations, rounded up by at most 1e-9 of it."""
    if mu == 0 or gaussian_delta(0.0, mu) <= delta:
        return 0.0
    high = 1.0
    while gaussian_delta(high, mu) > delta:
        high *= 2
    return bisect(lambda at: gaussian_delta(at, mu) <= delta, 0.0, high, 1e-9)


def bisect(holds: Callable[[float], bool], low: float, high: float, precision: float) -> float:
    """Return a value at which ``holds``, at most ``precision`` of itself above the least such; it holds at ``high`` and everywhere above the least."""
    while high - low > precision * high:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _merged(events: Iterable[Event]) -> dict[tuple[float, float], int]:
    """Add up the counts of events that are alike: a ledger has thousands of them."""
    counts: Counter[tuple[float, float]] = Counter()
    for event in events:
        counts[event.noise_multiplier, event.sampling_rate] += event.count
    return dict(counts)


def _composed(merged: Mapping[tuple[float, float], int], method: Method, expected: float) -> Any:
    """Compose events whose epsilon is about as ``expected``."""
    import dp_accounting as dp

    step = min(max(expected / BINS, 1e-5), 0.1)
    accountant = dp.pld.PLDAccountant(value_discretization_interval=step) if method == "pld" else dp.rdp.RdpAccountant()
    for (multiplier, rate), count in merged.items():
        release: dp.DpEvent = dp.GaussianDpEvent(multiplier)
        accountant.compose(release if rate == 1.0 else dp.PoissonSampledDpEvent(rate, release), count)
    return accountant
