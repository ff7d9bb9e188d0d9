"""From a privacy target to noise: each hospital does this for itself, from its own count of rows."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from common.config import PrivacyConfig, TrainingConfig
from common.errors import ConfigError
from common.privacy.accountant import about, bisect, epsilon, gaussian_delta
from common.privacy.events import Event

PRECISION = 1e-3
LEAST, MOST = 0.05, 1e6
"""The noise multipliers that are looked at. Below the least, epsilon is in the thousands; above the most, nothing but noise is left."""


@dataclass(frozen=True)
class Terms:
    """What one hospital's training is done under.

    ``event`` is what one round releases, ``per_unit`` the most rows that a unit has, ``units`` how many there are.
    """

    event: Event
    delta: float
    clip_norm: float
    per_unit: int
    units: int

    @property
    def row_bound(self) -> float:
        """Return the largest norm of one row's gradient: all rows of a unit together then move a sum by ``clip_norm`` at most."""
        return self.clip_norm / self.per_unit

    @property
    def sample(self) -> float:
        """Return how many units a step has on average; the sum of a step is divided by this, never by the count that was drawn."""
        return self.event.sampling_rate * self.units


def statistics_event(privacy: PrivacyConfig) -> Event | None:
    """Return what the sums that prepare the data release, where the run asks for any."""
    if not privacy.statistics:
        return None
    return Event(noise_multiplier(privacy.epsilon * privacy.statistics, privacy.delta, 1.0, 1))


def terms_of(
    privacy: PrivacyConfig, training: TrainingConfig, rounds: int, units: int, before: tuple[Event, ...] = ()
) -> Terms:
    """Return the terms of a hospital with so many units, for a whole run.

    Guarantee
    ---------
    What the hospital releases by ``before`` and in ``rounds`` rounds of training is together (epsilon, delta)-differentially private for one unit added or removed.

    Edge cases
    ----------
    - A hospital that is drawn in some rounds only has spent less than the target.
    - A batch that is as large as the hospital is no sample: the rate is 1.

    Raises
    ------
    ConfigError
        When delta is not below 1 over the count of units, or no amount of noise that is looked at meets the target.
    """
    if privacy.delta * units >= 1:
        raise ConfigError(
            f"privacy.delta: {privacy.delta:g} is not below 1/{units} = {1 / units:.3g}: publishing one of {units} {privacy.unit}s whole would meet it;"
            f" take 1e-5, or at most {0.1 / units:.1g}"
        )
    if privacy.method == "full":
        rate, steps = 1.0, 1
    else:
        rate = min(1.0, training.batch_size / units)
        steps = training.epochs * -(-units // training.batch_size)
    multiplier = noise_multiplier(privacy.epsilon, privacy.delta, rate, steps * rounds, before)
    per_unit = privacy.rows_per_patient if privacy.unit == "patient" else 1
    return Terms(Event(multiplier, rate, steps), privacy.delta, privacy.clip_norm, per_unit, units)


@lru_cache(maxsize=4096)
def noise_multiplier(target: float, delta: float, rate: float, count: int, before: tuple[Event, ...] = ()) -> float:
    """Return the least noise multiplier, to a thousandth, at which ``count`` releases after the events ``before`` stay within epsilon ``target`` at ``delta``.

    Raises
    ------
    ConfigError
        When the target is not above 0, ``before`` has spent it, or more noise than `MOST` would be needed; the message has the arithmetic.
    """
    if not 0 < target < math.inf:
        raise ConfigError(f"privacy.epsilon: {target:g}: expected above 0 and finite to set noise by it")
    spent = epsilon(before, delta)
    if spent >= target:
        raise ConfigError(f"privacy.epsilon: {spent:.3g} of {target:g} is spent before training; nothing is left")

    def excess(multiplier: float) -> float:
        """Return how far above the target epsilon is, as a logarithm."""
        found = epsilon([*before, Event(multiplier, rate, count)], delta)
        return math.log(max(found, 1e-12) / target)

    guess = _guess(target, delta, rate, count)
    low, high = max(guess / 1.05, LEAST), max(guess * 1.05, LEAST)
    while (above := excess(high)) > 0:
        low, high = high, high * 1.5
        if high > MOST:
            raise ConfigError(
                f"privacy.epsilon: {target:g} at delta {delta:g} over {count} releases would need noise of more than {MOST:g} times what one unit can change;"
                " take a larger epsilon or fewer rounds"
            )
    while low > LEAST and (below := excess(low)) <= 0:
        high, above, low = low, below, max(low / 1.5, LEAST)
    return _root(excess, low, high, above)


def _root(excess: Callable[[float], float], low: float, high: float, above: float) -> float:
    """Return a noise multiplier from ``low`` to ``high`` with which epsilon is below the target by a thousandth at most, or that is within a thousandth of the least such.

    ``excess`` falls, and is ``above``, 0 or less, at ``high``. The way is regula falsi in turns with halving: each step costs a whole composition.
    """
    below = excess(low)
    if below <= 0:
        return low
    while above < -PRECISION and high - low > PRECISION * high:
        share = below / (below - above)
        # A little more than the straight line says: a guess that is just not enough helps little.
        middle = low + (high - low) * min(max(share * 1.02, 0.05), 0.95)
        value = excess(middle)
        if value > 0:
            low, below = middle, value
        else:
            high, above = middle, value
    return high


def _guess(target: float, delta: float, rate: float, count: int) -> float:
    """Return about the noise multiplier, without any composition."""
    return bisect(
        lambda multiplier: gaussian_delta(target, about({(multiplier, rate): count})) <= delta, LEAST, MOST, PRECISION
    )
