"""Who masks with whom: everybody with everybody, or each with ``k`` others (Bell et al. 2020, section 3)."""

import hashlib
from functools import lru_cache


@lru_cache(maxsize=4096)
def neighbours(name: str, names: tuple[str, ...], count: int, seed: bytes) -> tuple[str, ...]:
    """Return with whom ``name`` shares masks, in the order of the names; ``count`` 0 stands for all others.

    Names are put on a ring in an order that follows from ``seed``, and each is joined to ``count // 2`` on either side. So being neighbours is mutual, and
    the graph stays connected until ``count // 2`` in a row are gone at two places.

    *Edge cases*: where no more than ``count`` others are there, all are neighbours. Who can choose ``seed`` or ``names`` can choose neighbours: the first follows from all
    hospitals' keys, for the second see ``docs/privacy.md``.

    >>> neighbours("b", tuple("abcd"), 0, b""), len(neighbours("b", tuple("abcdefgh"), 4, b""))
    (('a', 'c', 'd'), 4)
    """
    ring = _ring(names, seed)
    if not count or count >= len(ring) - 1:
        return tuple(sorted(set(ring) - {name}))
    place = ring.index(name)
    steps = range(1, count // 2 + 1)
    return tuple(sorted(ring[(place + step * way) % len(ring)] for step in steps for way in (1, -1)))


@lru_cache(maxsize=16)
def _ring(names: tuple[str, ...], seed: bytes) -> list[str]:
    return sorted(names, key=lambda each: hashlib.sha256(seed + each.encode()).digest())
