"""The parameter layout: one vector, cut and joined without loss, and a digest that tells layouts apart."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.layout import Entry, Layout

entries = st.lists(
    st.builds(
        Entry,
        st.text("abc/", min_size=1, max_size=6),
        st.lists(st.integers(0, 4), max_size=3).map(tuple),
        st.booleans(),
    ),
    max_size=5,
)
layouts = st.builds(Layout, entries.map(tuple))
TWO = Layout((Entry("dense/kernel", (2, 3), True), Entry("dense/bias", (3,), True)))


@given(layouts)
def test_flatten_undoes_split_and_split_undoes_flatten(layout):
    vector = np.arange(layout.size, dtype=np.float32)
    arrays = layout.split(vector)
    assert [array.shape for array in arrays] == [entry.shape for entry in layout.entries]
    np.testing.assert_array_equal(layout.flatten(arrays), vector)
    for one, other in zip(layout.split(layout.flatten(arrays)), arrays, strict=True):
        np.testing.assert_array_equal(one, other)


def test_arrays_lie_end_to_end_in_row_order():
    vector = TWO.flatten([np.array([[1, 2, 3], [4, 5, 6]]), np.array([7, 8, 9])])
    assert vector.dtype == np.float32
    np.testing.assert_array_equal(vector, np.arange(1, 10))
    # A matrix that lies in memory column by column is still written row by row.
    np.testing.assert_array_equal(TWO.flatten([np.asfortranarray([[1, 2, 3], [4, 5, 6]]), np.array([7, 8, 9])]), vector)


def test_split_gives_views_and_copies_nothing():
    vector = np.zeros(TWO.size, np.float32)
    assert all(np.shares_memory(array, vector) for array in TWO.split(vector))


def test_an_empty_layout_is_an_empty_vector():
    assert Layout(()).size == 0
    assert Layout(()).flatten([]).shape == (0,)
    assert Layout(()).split(np.zeros(0, np.float32)) == []


@pytest.mark.parametrize(
    "other",
    [
        Layout(TWO.entries[::-1]),
        Layout(TWO.entries[:1]),
        Layout((Entry("dense/kernel", (3, 2), True), TWO.entries[1])),
        Layout((Entry("dense_1/kernel", (2, 3), True), TWO.entries[1])),
        Layout((Entry("dense/kernel", (2, 3), False), TWO.entries[1])),
    ],
    ids=["order", "one fewer", "shape", "path", "trainable"],
)
def test_the_digest_changes_with_whatever_the_numbers_mean(other):
    assert other.digest != TWO.digest
    assert Layout(tuple(TWO.entries)).digest == TWO.digest


@given(layouts, layouts)
def test_equal_digests_are_equal_layouts(one, other):
    assert (one.digest == other.digest) == (one == other)
