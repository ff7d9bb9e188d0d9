"""Shares: any so many give the secret, fewer tell nothing, wrong ones are not taken for it."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.secagg import shares
from common.secagg.shares import PRIME, SHARE, combine, is_share, split

secrets = st.binary(min_size=32, max_size=32)


@given(secrets, st.integers(1, 7), st.data())
def test_any_so_many_of_them_give_the_secret(secret, holders, data):
    needed = data.draw(st.integers(1, holders))
    parts = split(secret, holders, needed)
    for places in itertools.combinations(range(1, holders + 1), needed):
        assert combine({place: parts[place - 1] for place in places}) == secret


def test_the_largest_secret_and_the_smallest_come_back():
    for secret in (bytes(32), b"\xff" * 32):
        assert combine(dict(enumerate(split(secret, 3, 2)[1:], 2))) == secret


@given(secrets, secrets)
def test_fewer_fit_every_other_secret_just_as_well(secret, other):
    """For two shares of three needed, there is a polynomial with any secret whatever: all are equally likely."""
    first, second, _ = split(secret, 3, 3)
    points = {0: int.from_bytes(other), 1: int.from_bytes(first), 2: int.from_bytes(second)}
    third = (
        sum(value * weight for value, weight in zip(points.values(), shares_at(3, tuple(points)), strict=True)) % PRIME
    )
    assert combine({1: first, 2: second, 3: third.to_bytes(SHARE)}) == other


def shares_at(place, places):
    """Return Lagrange's weights for the value at ``place``, by the textbook."""
    weights = []
    for one in places:
        weight = 1
        for other in places:
            if other != one:
                weight = weight * (place - other) * pow(one - other, -1, PRIME) % PRIME
        weights.append(weight)
    return weights


def test_every_split_is_another():
    secret = bytes(range(32))
    assert len({part for _ in range(50) for part in split(secret, 3, 2)}) == 150


def test_what_is_no_share_is_known_for_it():
    assert is_share((PRIME - 1).to_bytes(SHARE))
    assert not any(map(is_share, (PRIME.to_bytes(SHARE), shares.NONE, b"", bytes(32))))


def test_shares_of_nothing_are_refused():
    with pytest.raises(ValueError, match="no secret"):
        combine({1: (PRIME - 1).to_bytes(SHARE), 2: (PRIME - 1).to_bytes(SHARE)})
