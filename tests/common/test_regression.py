"""Errors of predicted amounts: equal to scikit-learn's on the pool, however hospitals share the patients; intervals that cover."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from common import regression
from common.errors import DataError
from common.statistics import total


def draw(count, seed):
    generator = np.random.default_rng(seed)
    y = generator.gamma(2.0, 3.0, count)
    signal = np.log1p(y) + generator.normal(0, 0.5, count)
    return y, np.stack([signal * 3, signal * 2 + generator.normal(0, 1, count)])


@given(st.integers(2, 60), st.integers(0, 2**16), st.integers(0, 60))
def test_sums_of_hospitals_give_the_pool_what_scikit_learn_gives_it(count, seed, cut):
    y, (predicted, _) = draw(count, seed)
    parts = [regression.summarise(y[part], predicted[part, None]) for part in (slice(0, cut), slice(cut, None))]
    found = regression.values(total(parts))
    assert found["mae"] == pytest.approx(mean_absolute_error(y, predicted))
    assert found["rmse"] == pytest.approx(root_mean_squared_error(y, predicted))
    assert found["r2"] == pytest.approx(r2_score(y, predicted), rel=1e-6, abs=1e-6)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    y, (predicted, other) = draw(200_000, 0)
    truth = regression.compute(regression.summarise(y, predicted[:, None]))
    gap = regression.differences(regression.compare(y, predicted[:, None], other[:, None]))
    hits = {**dict.fromkeys(truth, 0), **{f"{name} difference": 0 for name in gap}}
    runs = 200
    for seed in range(1, runs + 1):
        y, (predicted, other) = draw(1000, seed)
        for name, estimate in regression.compute(regression.summarise(y, predicted[:, None])).items():
            hits[name] += estimate.low <= truth[name].value <= estimate.high
        pairs = regression.compare(y, predicted[:, None], other[:, None])
        for name, estimate in regression.differences(pairs).items():
            hits[f"{name} difference"] += estimate.low <= gap[name].value <= estimate.high
    assert all(0.90 * runs <= hit for hit in hits.values()), hits


def test_a_model_does_not_differ_from_itself():
    y, (predicted, _) = draw(50, 3)
    for estimate in regression.differences(regression.compare(y, predicted[:, None], predicted[:, None])).values():
        assert estimate.value == 0
        assert estimate.high - estimate.low < 1e-5


def test_of_nobody_and_of_equal_amounts_what_is_not_defined_is_none():
    nobody = regression.summarise(np.zeros(0), np.zeros((0, 1)))
    assert regression.values(nobody) == {"mae": None, "rmse": None, "r2": None}
    equal = regression.values(regression.summarise(np.full(3, 2.0), np.array([[1.0], [2.0], [3.0]])))
    assert equal["r2"] is None
    assert equal["mae"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(("labels", "scores"), [([1.0], [[np.nan]]), ([-1.0], [[1.0]]), ([1.0], [[1.0, 2.0]])])
def test_predictions_of_another_form_are_refused(labels, scores):
    with pytest.raises(DataError):
        regression.summarise(np.array(labels), np.array(scores))


def test_ten_thousand_large_amounts_stay_within_a_secure_sum_and_keep_their_metrics():
    y, scores = np.full(10_000, 10_000.0), np.zeros((10_000, 1))
    y[::2] = 9_000.0
    found = {**regression.summarise(y, scores), "products": regression.compare(y, scores, scores)["products"]}
    assert max(np.abs(value).max() for value in found.values()) <= 2**40
    assert regression.compute(regression.summarise(y, scores))["mae"].value == pytest.approx(9_500)
