"""From events to epsilon, by Google's dp-accounting, which is imported only when samples are accounted for."""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from common.errors import ConfigError
from common.privacy.events import Event

Method = Literal["pld", "rdp"]
BINS = 1e3
"""Into how many parts the expected epsilon is divided to count privacy losses in; they are rounded so that epsilon comes out too large, never too small."""
REMEMBERED = 8
"""Distributions that a memory holds; each is some megabytes at most."""

Part = tuple[tuple[float, float], int]
"""Noise multiplier and sampling rate of events, and how many there are."""


class Memory:
    """What was composed last, for a history that grows at its end: what is old in it is not composed anew, and the result is the same to the last bit. Not for several threads at a time."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[float, tuple[Part, ...]], Any] = OrderedDict()

    def composed(self, parts: tuple[Part, ...], step: float) -> Any:
        """Return the distribution of the privacy loss of all parts, counted in steps of this size."""
        known = next((count for count in range(len(parts), 0, -1) if (step, parts[:count]) in self._kept), 0)
        total = self._kept.get((step, parts[:known]))
        if known:
            self._kept.move_to_end((step, parts[:known]))
        for count in range(known + 1, len(parts) + 1):
            part = _distribution(parts[count - 1], step)
            total = part if total is None else total.compose(part)
            if count >= len(parts) - 1:  # all but the part that will have grown when it is asked again, and all
                self._keep((step, parts[:count]), total)
        return total

    def _keep(self, key: tuple[float, tuple[Part, ...]], total: Any) -> None:
        self._kept[key] = total
        while len(self._kept) > REMEMBERED:
            self._kept.popitem(last=False)


def epsilon(events: Iterable[Event], delta: float, method: Method = "pld", memory: Memory | None = None) -> float:
    """Return the epsilon at ``delta`` of all events together, for neighbours that differ by one unit added or removed.

    Guarantee
    ---------
    An upper bound: all events may be chosen adaptively, each after seeing what the others released.

    Edge cases
    ----------
    - No events: 0.
    - Events without sampling are one Gaussian, whose epsilon is known in closed form (Balle and Wang 2018, theorem 8) and holds for either method.
    - A loss so large that the bins end: infinity.
    - A ``memory`` saves time and changes nothing.

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
    if method == "rdp":
        return float(_renyi(merged).get_epsilon(delta))
    step = _step(gaussian_epsilon(about(merged), delta))
    return float((memory or Memory()).composed(tuple(merged.items()), step).get_epsilon_for_delta(delta))


def delta(events: Iterable[Event], at: float, method: Method = "pld") -> float:
    """Return the delta of all events together at epsilon ``at``."""
    merged = _merged(events)
    if method == "rdp":
        return float(_renyi(merged).get_delta(at))
    return float(Memory().composed(tuple(merged.items()), _step(at)).get_delta_for_epsilon(at))


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
    """Add up the counts of events that are alike: a ledger has thousands of them. What came last stands last, so that what stands before it changes seldom."""
    counts: dict[tuple[float, float], int] = {}
    for event in events:
        key = event.noise_multiplier, event.sampling_rate
        counts[key] = counts.pop(key, 0) + event.count
    return counts


def _step(expected: float) -> float:
    """Return the size of the bins where epsilon is about as ``expected``: a power of two, so that it stays while a history grows a little."""
    return float(2.0 ** round(math.log2(min(max(expected / BINS, 1e-5), 0.1))))


def _distribution(part: Part, step: float) -> Any:
    """Return the distribution of the privacy loss of events that are alike."""
    from dp_accounting.pld import privacy_loss_distribution as pld

    (multiplier, rate), count = part
    if rate == 1.0:
        return pld.from_gaussian_mechanism(multiplier / math.sqrt(count), value_discretization_interval=step)
    one = pld.from_gaussian_mechanism(multiplier, value_discretization_interval=step, sampling_prob=rate)
    return one.self_compose(count)


def _renyi(merged: Mapping[tuple[float, float], int]) -> Any:
    import dp_accounting as dp

    accountant = dp.rdp.RdpAccountant()
    for (multiplier, rate), count in merged.items():
        release: dp.DpEvent = dp.GaussianDpEvent(multiplier)
        accountant.compose(release if rate == 1.0 else dp.PoissonSampledDpEvent(rate, release), count)
    return accountant
