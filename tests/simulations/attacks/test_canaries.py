"""The audit is a bug detector: it stays below what is claimed, and finds noise that is half of what it should be."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from client.worker import Worker
from common import tasks
from common.errors import ConfigError
from common.privacy.clip import Clipped
from common.privacy.noise import Source
from simulations.attacks import canaries
from simulations.attacks.canaries import audit, bound, hits

FULL = {"epsilon": 2.0, "delta": 1e-5, "method": "full", "clip_norm": 0.7}
SGD = {"epsilon": 2.0, "delta": 1e-5}
SHARED = {
    "privacy": FULL | {"noise": "shared"},
    "secure": {"aggregation": True},
    "training": {"optimizer": "sgd", "compile": "graph"},
}


WORKER = Worker()


def audited(federation, settings, seed=1, rows=0, worker=WORKER):
    return audit(federation.config({"rounds": 2, **settings}), worker, seed=seed, rows=rows)


def over(federation, settings, seeds):
    """Return the bound that the audits of so many seeds give together: one alone is at times too small a sample."""
    worker = Worker()
    found = [audited(federation, settings, seed, worker=worker) for seed in range(seeds)]
    counts = ((one.epsilon, "bound", one.right, one.guesses, one.canaries) for one in found)
    findings = [canaries.Finding("canaries", "", "", *each) for each in counts]
    return canaries.joined(findings, settings["privacy"]["delta"])


class TestBound:
    def test_without_delta_it_is_where_the_binomial_tail_meets_the_confidence(self):
        epsilon = bound(1000, 200, 180, 0.0)
        assert binom.sf(179, 200, 1 / (1 + np.exp(-epsilon))) == pytest.approx(0.05, abs=1e-4)

    @given(st.integers(2, 300), st.floats(0, 1), st.sampled_from([0.0, 1e-6, 1e-4]))
    def test_more_right_guesses_never_lower_it_and_delta_never_raises_it(self, guesses, share, delta):
        right = int(share * guesses)
        value = bound(1000, guesses, right, delta)
        assert value <= bound(1000, guesses, min(right + 1, guesses), delta)
        assert value <= bound(1000, guesses, right, 0.0)

    def test_guessing_blindly_proves_nothing(self):
        assert bound(1000, 500, 250, 1e-5) == 0.0

    def test_true_randomised_response_exceeds_its_epsilon_in_no_more_than_one_of_twenty(self):
        draw, claimed = np.random.default_rng(1), 1.0
        right = draw.binomial(500, 1 / (1 + np.exp(-claimed)), 400)
        above = np.mean([bound(500, 500, int(count), 0.0) > claimed for count in right])
        assert 0.01 < above < 0.08

    def test_guesses_are_the_two_ends_of_the_scores(self):
        scores, inside = np.array([3.0, 2.0, 1.0, 0.0]), np.array([True, True, False, False])
        assert hits(scores, inside, 4) == 4
        assert hits(-scores, inside, 4) == 0
        assert hits(scores, ~inside, 2) == 0


@pytest.mark.parametrize("settings", [{"privacy": FULL}, {"privacy": SGD}, SHARED], ids=["full", "sgd", "shared"])
def test_the_right_noise_stays_below_what_is_claimed_and_is_seen_at_all(federation, settings):
    found = audited(federation, settings, rows=40 if settings.get("privacy") is SGD else 0)
    assert 0.1 < found.epsilon < 2.0


@pytest.mark.parametrize("privacy", [FULL | {"epsilon": 1.0}, FULL, FULL | {"epsilon": 3.0}], ids=["1", "2", "3"])
def test_noise_that_is_half_of_what_it_should_be_is_found(federation, monkeypatch, privacy):
    noised = Clipped.noised
    monkeypatch.setattr(Clipped, "noised", lambda self, normals, multiplier: noised(self, normals, multiplier / 2))
    assert over(federation, {"privacy": privacy}, seeds=8) > privacy["epsilon"]


def test_parts_of_shared_noise_that_are_too_small_are_found(federation, monkeypatch):
    """An eighth: the parts make up for a hospital that drops out, and for rounding, so that half of them is hardly too little where all stay."""
    drawn = Source.discrete_gaussian
    monkeypatch.setattr(Source, "discrete_gaussian", lambda self, count, sigma: drawn(self, count, sigma / 8))
    assert audited(federation, SHARED).epsilon > 3.0


def test_clipping_that_is_forgotten_is_found(federation, monkeypatch):
    """Claims hold for what the clipping lets through alone."""
    monkeypatch.setattr("common.privacy.dpsgd._factors", lambda squared, _bound: 0 * squared + 0.01)
    assert audited(federation, {"privacy": FULL}, worker=Worker()).epsilon > 2.0


def test_the_task_is_known_while_the_audit_lasts_and_never_else(federation):
    before = dict(tasks.TASKS)
    audited(federation, {"privacy": FULL})
    assert before == tasks.TASKS


def test_audits_of_several_seeds_are_one_with_all_their_canaries(federation):
    alone = [audited(federation, {"privacy": FULL}, seed).epsilon for seed in (1, 2)]
    assert min(alone) - 0.05 < over(federation, {"privacy": FULL}, seeds=2) < 2.0


def test_a_run_that_claims_nothing_is_not_audited(federation):
    with pytest.raises(ConfigError, match="nothing is claimed"):
        audited(federation, {})


def test_many_hospitals_worth_of_rows_keep_the_chance_of_a_sample(federation):
    config = federation.config({"privacy": SGD})
    settings = canaries._settings(config, 1000, 500, 40)
    assert settings.training.batch_size == 100
    assert replace(settings.privacy) == config.privacy
