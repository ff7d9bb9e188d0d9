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
