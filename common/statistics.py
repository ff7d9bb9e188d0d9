"""Statistics: named arrays that add.

Everything that the coordinator learns about patients, apart from the update itself, is a sum of such arrays: moments,
counts, histograms. Metrics are computed from the sum, never from single rows.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

Statistics = Mapping[str, NDArray[np.float64]]


def total(parts: Iterable[Statistics]) -> dict[str, NDArray[np.float64]]:
    """Add statistics name by name, in the order given.

    >>> total([{"n": np.array([1.0])}, {"n": np.array([2.0])}])
    {'n': array([3.])}
    """
    merged: dict[str, NDArray[np.float64]] = {}
    for part in parts:
        for name, value in part.items():
            merged[name] = merged[name] + value if name in merged else np.array(value, np.float64)
    return merged


class Total:
    """A running sum whose bits do not depend on the order in which its parts come.

    Whole numbers below 2**53 add exactly, so they are added as they come and need no memory; all others wait, and are added in the order of their keys.
    """

    def __init__(self) -> None:
        self._exact: dict[str, NDArray[np.float64]] = {}
        self._waiting: dict[str, dict[str, NDArray[np.float64]]] = {}

    def add(self, key: str, part: Statistics) -> None:
        """Add a part; keys are different."""
        for name, value in part.items():
            if np.array_equal(value, np.rint(value)):
                self._exact[name] = self._exact.get(name, 0.0) + value
            else:
                self._waiting.setdefault(key, {})[name] = value

    def result(self) -> dict[str, NDArray[np.float64]]:
        """Return the sum so far."""
        return total([self._exact, *(part for _, part in sorted(self._waiting.items()))])
