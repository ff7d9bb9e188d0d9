"""Privacy events: what was released, as frozen values. Epsilon is always computed from them and never stored in their place."""

import json
import math
from dataclasses import astuple, dataclass

from common.errors import ConfigError

RELATION = "add or remove one"
"""The neighbouring relation of everything here: two data sets are neighbours when one has one unit more. How many units a hospital has counts as known."""


@dataclass(frozen=True)
class Event:
    """``count`` releases of a bounded sum with Gaussian noise, each over a Poisson sample of the units.

    ``noise_multiplier`` is the noise's standard deviation over the sum's sensitivity (the most that one unit moves it, L2), above 0; ``sampling_rate`` each unit's
    chance of being in a sample, drawn on its own, above 0 to 1, where 1 is no sampling; ``count`` at least 1.

    Raises
    ------
    ConfigError
        For a value out of range.
    """

    noise_multiplier: float
    sampling_rate: float = 1.0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.noise_multiplier < math.inf:
            raise ConfigError(
                f"noise multiplier {self.noise_multiplier:g}: expected above 0; a sum without noise has no finite epsilon"
            )
        if not 0 < self.sampling_rate <= 1:
            raise ConfigError(f"sampling rate {self.sampling_rate:g}: expected above 0 to 1")
        if self.count < 1:
            raise ConfigError(f"count of releases {self.count}: expected 1 or more")


def to_text(event: Event) -> str:
    """Write an event as it is stored and sent.

    >>> to_text(Event(1.5, 0.25, 4))
    '[1.5, 0.25, 4]'
    """
    return json.dumps(astuple(event))


def from_text(text: str) -> Event:
    """Undo `to_text`; the text may come from anyone.

    Raises
    ------
    ConfigError
        When it is not the text of an event.
    """
    try:
        multiplier, rate, count = json.loads(text)
        if type(count) is int and type(multiplier) in (int, float) and type(rate) in (int, float):
            return Event(float(multiplier), float(rate), count)
    except (ValueError, TypeError, RecursionError, OverflowError):
        pass
    raise ConfigError("a privacy event: expected noise multiplier, sampling rate and count")
