"""Shamir's secret sharing of 32 bytes over the integers modulo a prime (Shamir 1979)."""

import os
from collections.abc import Callable, Mapping
from functools import lru_cache

PRIME = 2**256 + 297
"""The smallest prime above every secret of 32 bytes."""
SECRET, SHARE = 32, 33
"""Bytes of a secret and of a share."""
NONE = b"\xff" * SHARE
"""Stands for a share that its holder does not have; no share is so large."""

Draw = Callable[[int], bytes]
"""Gives so many random bytes."""


def split(secret: bytes, holders: int, needed: int, draw: Draw = os.urandom) -> list[bytes]:
    """Return a share for each of ``holders``; any ``needed`` of them give the secret.

    *Guarantee*: fewer than ``needed`` shares tell nothing about the secret, whatever its holder can compute.

    *Edge cases*: ``needed`` 1 gives everybody the secret itself. Coefficients are drawn with 64 bits to spare, so that they are uniform to 2**-64.

    >>> combine(dict(enumerate(split(bytes(range(32)), 5, 3)[2:], 3))) == bytes(range(32))
    True
    """
    polynomial = [int.from_bytes(secret), *(int.from_bytes(draw(SECRET + 8)) % PRIME for _ in range(needed - 1))]
    return [_at(polynomial, place).to_bytes(SHARE) for place in range(1, holders + 1)]


def combine(shares: Mapping[int, bytes]) -> bytes:
    """Return the secret that belongs to exactly as many shares as are needed, by their holders' places, counted from 1.

    Raises
    ------
    ValueError
        When they do not belong to one secret of 32 bytes. Shares may belong to another secret than was meant: who knows something of it has to compare.
    """
    total = sum(
        weight * int.from_bytes(share) for weight, share in zip(_weights(tuple(shares)), shares.values(), strict=True)
    )
    return _fitting(total % PRIME)


def is_share(data: bytes) -> bool:
    """Tell whether these bytes can be a share."""
    return len(data) == SHARE and int.from_bytes(data) < PRIME


def _at(polynomial: list[int], place: int) -> int:
    value = 0
    for coefficient in reversed(polynomial):
        value = value * place + coefficient  # places are small: one division at the end is cheaper than one a step
    return value % PRIME


@lru_cache(maxsize=1024)
def _weights(places: tuple[int, ...]) -> tuple[int, ...]:
    """Return Lagrange's weights for the value at 0; every secret of a complete graph is shared among the same places."""
    weights = []
    for place in places:
        above = below = 1
        for other in places:
            if other != place:
                above = above * other % PRIME
                below = below * (other - place) % PRIME
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    return tuple(weights)


def _fitting(value: int) -> bytes:
    if value >= 2 ** (8 * SECRET):
        raise ValueError("the shares belong to no secret of 32 bytes")
    return value.to_bytes(SECRET)
