"""Fixed point: how an update becomes whole numbers modulo 2**32 whose sum can be read back, and how all that is summed lies in one vector.

::

    [ statistics, three words a value | update | change of the control variate ]

A value of the update is multiplied by `scale_of` and rounded; sums of all hospitals' values stay within a quarter of the ring, which leaves room for the noise that hospitals may
add. A statistic is split into three words of 20 bits, so that whole numbers up to 2**40 add exactly, and fractions to 1e-6.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from common.config import RunConfig, SecureConfig
from common.errors import UpdateRejected
from common.layout import Vector
from common.messages import EVALUATE
from common.secagg.masks import Words
from common.statistics import Statistics
from common.tasks import task_of

ROOM = 2**30
"""Largest magnitude that the sum of all hospitals' values may have in the ring of 2**32."""
BITS, WORDS = 20, 3
MOST = 2.0**40
"""A statistic stays below it."""
HOSPITALS = 2048
"""How many hospitals a sum may have: words of 20 bits of so many stay below 2**32."""

EXAMPLES, WEIGHT = "examples", "weight"
"""Names of two statistics: how many patients hospitals trained on, and how many of these count in the mean."""

Noise = Callable[[int, float], NDArray[np.int64]]
"""Given a count of values and their scale, levels a unit, returns whole numbers of shape ``(count,)`` in levels, which are added to a hospital's values before they are masked."""


def scale_of(settings: SecureConfig, hospitals: int) -> float:
    """Return how many levels a unit has in a sum of so many hospitals."""
    return ROOM / (settings.magnitude * hospitals)


def most_of(config: RunConfig, largest: int) -> int:
    """Return the count of patients that weighs 1, where ``largest`` is that of the largest hospital. Noise that is shared out takes one that the coordinator cannot tell each another of."""
    return config.secure.examples if config.privacy.shared else min(largest, config.secure.examples)


@dataclass(frozen=True)
class Frame:
    """Where everything lies: statistics by name and shape, and ``parts`` vectors of ``size`` values, in a sum of ``hospitals``."""

    settings: SecureConfig
    hospitals: int
    shapes: Mapping[str, tuple[int, ...]]
    size: int
    parts: int

    @cached_property
    def counted(self) -> int:
        """Return how many single values the statistics have."""
        return sum(int(np.prod(shape)) for shape in self.shapes.values())

    @property
    def length(self) -> int:
        """Return how many words the vector has."""
        return WORDS * self.counted + self.parts * self.size

    def write(self, statistics: Statistics, parts: list[Vector], weight: float, noise: Noise | None = None) -> Words:
        """Lay statistics (0 where one is missing) and ``weight`` times the vectors into one vector, for one mask.

        Raises
        ------
        UpdateRejected
            ``fixed_point`` for a value that is not finite or beyond the range.
        """
        words = np.empty(self.length, np.uint32)
        values = [np.ravel(statistics.get(name, np.zeros(shape))) for name, shape in self.shapes.items()]
        _split(np.concatenate([*values, np.zeros(0)]), words[: WORDS * self.counted])
        for number, part in enumerate(parts):
            start = WORDS * self.counted + number * self.size
            self._round(part, weight, noise, words[start : start + self.size])
        return words

    def read(self, total: Words) -> tuple[dict[str, NDArray[np.float64]], list[NDArray[np.float64]]]:
        """Return the sums of the statistics and of the vectors."""
        scale, begin = scale_of(self.settings, self.hospitals), WORDS * self.counted
        sums, found, start = _joined(total[:begin]), {}, 0
        for name, shape in self.shapes.items():
            size = int(np.prod(shape))
            found[name] = sums[start : start + size].reshape(shape)
            start += size
        vectors = total[begin:].view(np.int32).reshape(self.parts, self.size)
        return found, [vector / scale for vector in vectors]

    def _round(self, part: Vector, weight: float, noise: Noise | None, out: Words) -> None:
        settings = self.settings
        scale = scale_of(settings, self.hospitals)
        if noise:  # a refusal would tell, without noise, whether a value is beyond the range
            part = np.clip(np.nan_to_num(part, nan=0.0), -settings.magnitude / weight, settings.magnitude / weight)
        peak = max(float(part.max(initial=0.0)), -float(part.min(initial=0.0)))
        if not peak * weight <= settings.magnitude:  # NaN too
            raise UpdateRejected(
                "fixed_point",
                f"the update holds a value beyond {settings.magnitude:g} (secure.magnitude) after its weight of {weight:.3g}: it would not fit its share of "
                f"{ROOM // self.hospitals:,} levels among {self.hospitals} hospitals; take a larger secure.magnitude, or smaller steps",
            )
        levels = part * np.float32(weight * scale)
        np.rint(levels, out=levels)
        whole = levels.astype(np.int32)
        out[:] = whole.view(np.uint32)
        if noise:
            out += noise(self.size, scale).astype(np.uint32)


def _split(values: NDArray[np.float64], out: Words) -> None:
    if values.size and not (values.min() >= 0 and values.max() < MOST):
        raise UpdateRejected(
            "fixed_point", f"a statistic is not between 0 and {MOST:g}, the most that a secure sum holds"
        )
    whole = np.rint(values * 2.0**BITS).astype(np.uint64)
    for place in range(WORDS):
        out[place::WORDS] = (whole >> np.uint64(BITS * place)) & np.uint64(2**BITS - 1)


def _joined(words: Words) -> NDArray[np.float64]:
    places = words.reshape(-1, WORDS).astype(np.float64)
    return places @ (2.0 ** (BITS * np.arange(-1.0, WORDS - 1)))


def frame_of(config: RunConfig, kind: str, hospitals: int, size: int, *, controls: bool, judged: bool) -> Frame:
    """Return how answers of a kind lie in a sum of so many hospitals; both sides find the same. ``judged`` tells whether training also judges the incoming model."""
    task = task_of(config.task)
    nobody = task.objective.summarise(*task.objective.nobody(len(task.classes)))
    shapes = {name: value.shape for name, value in nobody.items()}
    parts = ["test"] if judged else []
    parts += ["validation"] if judged and config.evaluation.validation else []
    of_parts = {f"{part}/{name}": shape for part in parts for name, shape in shapes.items()}
    if kind == EVALUATE:
        return Frame(config.secure, hospitals, of_parts, 0, 0)
    whole = {EXAMPLES: (), WEIGHT: (), "train/loss": (2,)}
    return Frame(config.secure, hospitals, whole | of_parts, size, 2 if controls else 1)
