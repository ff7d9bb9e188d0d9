"""Class weights against scikit-learn's, and what is none."""

import doctest
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from common import balance
from common.balance import KEY, LIMITS
from common.errors import UpdateRejected
from common.tasks.heart import Heart
from common.tasks.objective import REGRESSION

HEART = Heart().build()


@given(st.lists(st.integers(1, 10_000), min_size=2, max_size=6))
def test_they_are_scikit_learns_within_their_limits(counts):
    classes = np.arange(len(counts))
    theirs = compute_class_weight("balanced", classes=classes, y=np.repeat(classes, counts))
    np.testing.assert_allclose(balance.weights_of(np.array(counts)), np.clip(theirs, LIMITS.low, LIMITS.high))


def test_a_class_of_nobody_weighs_as_if_there_were_no_weights():
    assert balance.weights_of(np.array([5, 0, 5])) == pytest.approx([2 / 3, 1, 2 / 3])
    assert balance.weights_of(np.array([0, 0])) == [1, 1]


def test_what_was_computed_is_read_back():
    counts = np.array([999, 1])
    np.testing.assert_array_equal(balance.read(HEART, {KEY: balance.weights_of(counts)}), np.float32([1 / 1.998, 10]))


@pytest.mark.parametrize(
    "found",
    [None, [1.0], [1.0, 1.0, 1.0], [1.0, 10.1], [0.0, 1.0], [math.nan, 1.0], [True, 1.0], ["1", 1.0], {"0": 1.0}],
)
def test_what_is_no_weight_for_each_class_is_refused(found):
    with pytest.raises(UpdateRejected, match=r"a class weight from 0\.1 to 10 for each of 2 classes") as caught:
        balance.read(HEART, {KEY: found})
    assert caught.value.code == "class_weights"


def test_a_task_that_does_not_sort_into_classes_has_none():
    with pytest.raises(UpdateRejected, match="to sort into"):
        balance.read(replace(HEART, objective=REGRESSION), {KEY: [1.0, 1.0]})


def test_the_example_in_the_documentation_is_true():
    assert doctest.testmod(balance).failed == 0
