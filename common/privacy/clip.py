"""Bounded sums: a sum of clipped vectors carries its own sensitivity, so that the noise cannot drift from what was clipped."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Clipped:
    """A sum in parts (arrays or tensors) and ``sensitivity``: how far, in L2 over all parts, one unit added or removed can move it."""

    parts: Sequence[Any]
    sensitivity: Any

    def __add__(self, other: "Clipped") -> "Clipped":
        """Add the sum over other rows. One unit's rows may be in both, which the bound of a single row accounts for, so the sensitivity stays."""
        return Clipped([a + b for a, b in zip(self.parts, other.parts, strict=True)], self.sensitivity)

    def noised(self, normals: Sequence[Any], noise_multiplier: Any) -> list[Any]:
        """Return the parts with Gaussian noise of ``noise_multiplier * sensitivity``, made of standard ``normals`` of the same shapes."""
        scale = noise_multiplier * self.sensitivity
        return [part + scale * normal for part, normal in zip(self.parts, normals, strict=True)]


def factors(norms: Any, bound: Any) -> Any:
    """Return what to multiply vectors of these norms by so that none is longer than ``bound``: ``min(1, bound / norm)``, and 1 for a norm of 0.

    >>> factors(np.array([0.0, 1.0, 4.0]), 2.0)
    array([1. , 1. , 0.5])
    """
    return bound / np.maximum(norms, bound)


def clipped_sum(vectors: NDArray[Any], bound: float, per_unit: int = 1) -> Clipped:
    """Return the sum of the rows of ``vectors``, shape ``(n, P)``, each clipped to L2 norm ``bound``, where a unit has at most ``per_unit`` of the rows."""
    scale = factors(np.linalg.norm(vectors, axis=1), bound)
    return Clipped([scale @ vectors], bound * per_unit)
