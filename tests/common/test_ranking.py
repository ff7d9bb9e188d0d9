"""Ranking: measures against scikit-learn and by hand, sums that add, and intervals that hold what they claim."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from common import ranking
from common.errors import DataError
from common.statistics import total


def draw(rows, width=12, seed=0):
    generator = np.random.default_rng(seed)
    labels = (generator.random((rows, width)) < 0.2).astype(np.float32)
    scores = generator.normal(size=(rows, width))
    return labels, scores


@given(st.integers(0, 2**16), st.integers(1, 12))
def test_ndcg_is_that_of_scikit_learn(seed, k):
    labels, scores = draw(20, seed=seed)
    judged = labels.any(axis=1)
    found = ranking.values(ranking.summarise(labels, scores, k))["ndcg"]
    if judged.any():
        assert found == pytest.approx(ndcg_score(labels[judged], scores[judged], k=k))


def test_recall_coverage_and_loss_by_hand():
    labels = np.array([[1, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]], np.float32)
    scores = np.array([[3.0, 2.0, 1.0, -np.inf], [3.0, 2.0, 1.0, -np.inf], [9.0, 9.0, 9.0, 9.0]])
    values = ranking.values(ranking.summarise(labels, scores, 2))
    share = np.exp(scores[0, :3]) / np.exp(scores[0, :3]).sum()
    # One of two found, then none of one; what nobody was offered is not on the list, and a row without an answer is no question.
    assert values["recall"] == 0.25
    assert values["coverage"] == pytest.approx(2 / 3)
    assert values["log_loss"] == pytest.approx((-np.log(share[[0, 2]]).mean() - np.log(share[2])) / 2)


@given(st.integers(0, 2**16))
def test_statistics_of_two_hospitals_add_up_to_those_of_the_pool(seed):
    labels, scores = draw(30, seed=seed)
    parts = [ranking.summarise(labels[rows], scores[rows], 3) for rows in (slice(11), slice(11, 30))]
    for name, sums in ranking.summarise(labels, scores, 3).items():
        np.testing.assert_allclose(total(parts)[name], sums)


@given(st.integers(0, 2**16))
def test_what_is_closed_is_never_recommended(seed):
    labels, scores = draw(20, seed=seed)
    closed = np.random.default_rng(seed + 1).random(12) < 0.7
    scores[:, closed] = -np.inf
    statistics = ranking.summarise(labels, scores, 5)
    assert not statistics["recommended"][closed].any()
    assert not statistics["open"][closed].any()


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    labels, scores = draw(20_000, seed=7)
    scores += labels  # better than chance
    truth = ranking.values(ranking.summarise(labels, scores, 3))
    hits = dict.fromkeys(ranking.NAMES, 0)
    for part in range(200):
        rows = slice(100 * part, 100 * part + 100)
        for name, estimate in ranking.compute(ranking.summarise(labels[rows], scores[rows], 3)).items():
            if name in hits:
                hits[name] += estimate.low <= truth[name] <= estimate.high
    assert all(180 <= count <= 199 for count in hits.values()), hits


def test_the_difference_of_a_model_from_itself_is_nought_and_from_a_worse_one_is_not():
    labels, scores = draw(200, seed=3)
    good = scores + 3 * labels
    same = ranking.differences(ranking.compare(labels, good, good, 3))
    better = ranking.differences(ranking.compare(labels, good, scores, 3))
    assert {tuple(estimate) for estimate in same.values()} == {(0.0, 0.0, 0.0)}
    assert better["recall"].low > 0
    assert better["log_loss"].high < 0
    values = [ranking.values(ranking.summarise(labels, each, 3))["recall"] for each in (good, scores)]
    assert better["recall"].value == pytest.approx(values[0] - values[1])


def test_nobody_has_no_measures():
    none = ranking.summarise(*(part[:0] for part in draw(3)), k=3)
    assert set(ranking.values(none).values()) == {None}
    assert np.isnan([estimate.value for estimate in ranking.compute(none).values()]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_no_numbers_are_refused(bad):
    labels, scores = draw(3)
    scores[1, 1] = bad
    with pytest.raises(DataError, match="scores: expected numbers; has the model diverged"):
        ranking.summarise(labels, scores, 3)
