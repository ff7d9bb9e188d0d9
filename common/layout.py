"""The parameter layout: how a model's variables lie in one flat float32 vector.

Clipping, noise, masking, compression and averaging are each one pass over that vector, and two sides that agree on the
layout's digest agree on what every number in it means.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Entry:
    """One variable: its path in the model, its shape, and whether gradients move it."""

    path: str
    shape: tuple[int, ...]
    trainable: bool

    @property
    def size(self) -> int:
        """Return the count of numbers in it."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """Variables in the order in which they lie in the vector."""

    entries: tuple[Entry, ...]

    @cached_property
    def size(self) -> int:
        """Return the length of the vector."""
        return sum(entry.size for entry in self.entries)

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256, in hex, of paths, shapes and order."""
        rows = [[entry.path, list(entry.shape), entry.trainable] for entry in self.entries]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def flatten(self, arrays: Sequence[NDArray[np.float32]]) -> Vector:
        """Lay arrays, one an entry and in the entries' order, end to end."""
        parts = [np.asarray(array, np.float32).reshape(-1) for array in arrays]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def split(self, vector: Vector) -> list[NDArray[np.float32]]:
        """Return views into the vector, one an entry, in the entries' shapes."""
        arrays, start = [], 0
        for entry in self.entries:
            arrays.append(vector[start : start + entry.size].reshape(entry.shape))
            start += entry.size
        return arrays
