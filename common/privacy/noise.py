"""Noise that protects people: normals, samples and discrete Gaussians from the keystream of a 256-bit cipher."""

import math
import os
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from common.layout import Vector

KEY_BYTES = 32
_PIECE = 2**14  # pairs of normals at a time: they stay in the processor's cache
_RARE = np.uint32(2**12)


@dataclass(frozen=True)
class Noise:
    """Gaussian noise of ``multiplier`` times a sensitivity, for statistics."""

    source: "Source"
    multiplier: float

    def __call__(self, values: NDArray[np.float64], sensitivity: float) -> NDArray[np.float64]:
        """Return values of which one unit moves all together by ``sensitivity`` in L2, noised."""
        normals = self.source.normals(values.size).reshape(values.shape)
        return np.asarray(values + normals * (self.multiplier * sensitivity), np.float64)


class Source:
    """Random bits: the keystream of AES-256 in counter mode (NIST SP 800-38A) under a key of 32 bytes, the operating system's own unless one is given.

    The same key gives the same bits, so a key is used for one purpose and kept secret for as long as what it hid. Tests and simulations give one.
    """

    def __init__(self, key: bytes | None = None) -> None:
        key = os.urandom(KEY_BYTES) if key is None else key
        self._stream = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()

    def words(self, count: int, dtype: type[np.unsignedinteger] = np.uint64) -> NDArray[np.unsignedinteger]:
        """Return so many even words of bits."""
        return np.frombuffer(self._stream.update(bytes(count * np.dtype(dtype).itemsize)), dtype)

    def normals(self, count: int) -> Vector:
        """Return so many independent standard normals, float32, by the transform of Box and Muller (1958).

        Edge cases
        ----------
        - Radii come from 32 bits, and from 64 where those are nearly 0, so the tails reach 9.4 standard deviations; a tail that ends at 6.7, as 32 bits alone leave it,
          would show in a sum over a billion values.
        - Floating point: a value has the 24 bits of a float32. Whoever sees a single noised number with all its bits may tell which sums it cannot have come from (Mironov
          2012). What a hospital sends is a sum of many, rounded; where that is not enough, `discrete_gaussian` on whole numbers has no such bits.
        """
        pairs = -(-count // 2)
        values = np.empty(2 * pairs, np.float32)
        for start in range(0, pairs, _PIECE):
            size = min(_PIECE, pairs - start)
            self._box_muller(values[2 * start : 2 * (start + size)], size)
        return values[:count]

    def _box_muller(self, out: Vector, size: int) -> None:
        bits = self.words(2 * size, np.uint32)
        first = bits[:size]
        uniform = first.astype(np.float32)
        uniform += np.float32(0.5)
        rare = np.flatnonzero(first < _RARE)
        if rare.size:
            uniform[rare] = first[rare] + (self.words(rare.size, np.uint32) + 0.5) * 2.0**-32
        uniform *= np.float32(2.0**-32)
        radius = np.log(uniform, out=uniform)
        radius *= np.float32(-2)
        np.sqrt(radius, out=radius)
        angle = bits[size:].astype(np.float32)
        angle *= np.float32(2 * math.pi / 2**32)
        np.multiply(radius, np.cos(angle), out=out[:size])
        np.multiply(radius, np.sin(angle, out=angle), out=out[size:])

    def chosen(self, count: int, chance: float) -> NDArray[np.bool_]:
        """Return for each of ``count`` whether it is drawn, each on its own with this chance, exact to 2**-64."""
        if chance >= 1:
            return np.ones(count, np.bool_)
        return np.asarray(self.words(count) < np.uint64(int(chance * 2.0**64)))

    def discrete_gaussian(self, count: int, sigma: float) -> NDArray[np.int64]:
        """Return so many whole numbers, each with chance proportional to ``exp(-x**2 / (2 sigma**2))`` (Canonne, Kamath and Steinke 2020, algorithm 3).

        A discrete Laplace is proposed and kept with its chance. Chances are compared as 53-bit fractions, so each value is within 2**-50 of the distribution.
        """
        spread = math.floor(sigma) + 1
        found = np.empty(0, np.int64)
        while found.size < count:
            tries = 2 * (count - found.size) + 16
            # The difference of two geometric variables is a discrete Laplace.
            steps = [np.floor(-spread * np.log(self._fractions(tries))) for _ in range(2)]
            proposed = steps[0] - steps[1]
            keep = self._fractions(tries) <= np.exp(-((np.abs(proposed) - sigma**2 / spread) ** 2) / (2 * sigma**2))
            found = np.concatenate([found, proposed[keep].astype(np.int64)])
        return found[:count]

    def _fractions(self, count: int) -> NDArray[np.float64]:
        """Return even fractions above 0 up to 1."""
        return np.asarray(((self.words(count) >> np.uint64(11)) + np.uint64(1)) * 2.0**-53, np.float64)
