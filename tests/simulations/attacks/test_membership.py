"""Membership inference finds what is there to be found, and nothing where there is nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score, roc_curve

from simulations.attacks.membership import auc, caught, lira, rmia


@given(st.integers(0, 2**32 - 1))
def test_auc_and_true_positive_rates_are_those_of_scikit_learn(seed):
    draw = np.random.default_rng(seed)
    scores, members = draw.integers(0, 20, 300).astype(float), draw.random(300) < 0.6
    assert auc(scores, members) == pytest.approx(roc_auc_score(members, scores))
    false, true, _ = roc_curve(members, scores, drop_intermediate=False)
    for rate in (0.01, 0.1, 0.5):
        assert caught(scores, members, rate) == round(true[false <= rate].max() * members.sum())


def models(count, patients, draw, effect=2.0):
    """Make logits of models, each trained on half of the patients, which it knows better; each patient has a difficulty of its own."""
    inside = draw.random((count, patients)) < 0.5
    logits = draw.normal(0, 5, patients) + effect * inside + draw.normal(0, 1, (count, patients))
    return -np.log1p(np.exp(-logits)), inside


class TestShadows:
    def test_lira_sees_through_how_hard_each_patient_is_and_the_loss_does_not(self):
        scores, inside = models(33, 4000, np.random.default_rng(1))
        target, members = scores[0], inside[0]
        found = auc(lira(target, scores[1:], inside[1:]), members)
        # The best there is: a difference of two deviations.
        assert found == pytest.approx(norm.cdf(2 / np.sqrt(2)), abs=0.03)
        assert auc(target, members) < 0.65

    def test_rmia_does_so_with_four_references(self):
        scores, inside = models(5, 4000, np.random.default_rng(2))
        assert auc(rmia(scores[0], scores[1:], inside[1:]), inside[0]) > auc(scores[0], inside[0]) + 0.05

    def test_models_that_remember_nobody_give_nobody_away(self):
        scores, inside = models(17, 4000, np.random.default_rng(3), effect=0.0)
        for attack in (rmia, lira):
            assert auc(attack(scores[0], scores[1:], inside[1:]), inside[0]) == pytest.approx(0.5, abs=0.03)

    def test_a_patient_in_all_shadows_or_in_none_still_has_a_score(self):
        scores, inside = models(4, 50, np.random.default_rng(4))
        inside[:, 0], inside[:, 1] = True, False
        for attack in (rmia, lira):
            found = attack(scores[0], scores, inside)
            assert found.min() <= found[:2].min() <= found[:2].max() <= found.max()
            assert np.ptp(found) > 0
