"""The graph of who masks with whom."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.secagg.graph import neighbours

counts = st.integers(0, 10).map(lambda half: 2 * half)


def graph(names, count, seed=b"seed"):
    return {name: set(neighbours(name, names, count, seed)) for name in names}


def reached(edges, left):
    seen, ahead = set(), [next(iter(left))]
    while ahead:
        name = ahead.pop()
        seen.add(name)
        ahead += (edges[name] & left) - seen
    return seen


@given(st.integers(3, 40), counts, st.binary(max_size=8))
def test_neighbours_are_mutual_as_many_as_asked_and_never_oneself(size, count, seed):
    names = tuple(f"{number:02}" for number in range(size))
    edges = graph(names, count, seed)
    degree = count if 0 < count < size - 1 else size - 1
    for name, others in edges.items():
        assert len(others) == degree
        assert name not in others
        assert all(name in edges[other] for other in others)


@pytest.mark.parametrize("gone", range(40))
def test_it_holds_together_with_hospitals_missing(gone):
    names = tuple(f"{number:02}" for number in range(40))
    edges = graph(names, 8)
    left = set(names) - {names[gone], names[(gone * 7 + 1) % 40], names[(gone * 3 + 2) % 40]}
    assert reached(edges, left) == left


def test_another_seed_is_another_graph():
    names = tuple(f"{number:02}" for number in range(40))
    assert len({str(sorted(graph(names, 4, bytes([seed])).items())) for seed in range(20)}) == 20
