"""Thresholds are where scikit-learn finds the rule best on pooled predictions, and what is counted at them is exact."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score

from common import metrics, thresholds
from common.metrics import EDGES
from common.statistics import total

ORACLES = {"youden": balanced_accuracy_score, "f1": f1_score}


def patients(seed, rows=120, ill=0.2):
    """Draw labels and scores of two classes; some scores are edges themselves."""
    draw = np.random.default_rng(seed)
    labels = np.concatenate([[0, 1], draw.random(rows - 2) < ill]).astype(np.int32)
    scores = 1 / (1 + np.exp(-draw.normal(3 * labels - 3, 2)))
    scores = np.where(draw.random(rows) < 0.3, draw.choice(EDGES, rows), scores)
    return labels, np.stack([1 - scores, scores], axis=1)


def histogram(**counts):
    """Return a histogram by hand: of ``rest`` and ``own`` a count at each score."""
    bins = np.zeros((1, 2, len(EDGES) + 1))
    for row, kind in enumerate(("rest", "own")):
        for score, count in counts[kind].items():
            bins[0, row, np.searchsorted(EDGES, score, side="right")] += count
    return bins


@pytest.mark.parametrize("rule", thresholds.RULES)
@settings(max_examples=5)
@given(st.integers(0, 10_000))
def test_no_edge_is_better_by_scikit_learns_word(rule, seed):
    labels, scores = patients(seed)
    found = thresholds.chosen(metrics.summarise(labels, scores)["histogram"], rule)
    worth = lambda edge: ORACLES[rule](labels, scores[:, 1] >= edge)  # noqa: E731
    assert worth(found) >= max(map(worth, EDGES[::9])) - 1e-12


@given(st.integers(0, 10_000), st.integers(0, len(EDGES) - 1))
def test_counts_over_hospitals_at_an_edge_are_those_of_the_pool(seed, place):
    labels, scores = patients(seed)
    parts = [metrics.summarise(labels[rows], scores[rows]) for rows in np.array_split(np.arange(len(labels)), 3)]
    found = thresholds.counted(total(parts), EDGES[place])
    np.testing.assert_array_equal(found["confusion"], confusion_matrix(labels, scores[:, 1] >= EDGES[place]))
    assert metrics.values(found)["auroc"] == metrics.values(total(parts))["auroc"]
    assert thresholds.counted(parts[0], None) is parts[0]


@given(st.integers(0, 10_000), st.integers(0, len(EDGES) - 1), st.integers(0, len(EDGES) - 1))
def test_two_models_predictions_are_counted_each_at_its_own(seed, one, other):
    (labels, first), (_, second) = patients(seed), patients(seed + 1)
    table = thresholds.joint(labels, (first, second), (EDGES[one], EDGES[other]))
    for scores, edge, axis in ((first, one, 2), (second, other, 1)):
        alone = thresholds.counted(metrics.summarise(labels, scores), EDGES[edge])
        np.testing.assert_array_equal(table.sum(axis=axis), alone["confusion"])
    np.testing.assert_array_equal(
        thresholds.joint(labels, (first, second), (None, None)), metrics.compare(labels, first, second)["predictions"]
    )


@pytest.mark.parametrize(
    ("rest", "own", "youden", "f1"),
    [
        # All are told apart by any edge from 0.3 to 0.7; half is nearest to half.
        ({0.25: 5}, {0.7: 5}, 0.5, 0.5),
        ({0.75: 5}, {0.8: 5}, 0.751, 0.751),
        ({0.1: 5}, {0.2: 5}, 0.2, 0.2),
        # A rare class: losing one of two ill weighs more than nine false alarms among a hundred, and F1 thinks otherwise.
        ({0.1: 91, 0.4: 9}, {0.35: 1, 0.9: 1}, 0.35, 0.5),
        # As good at 0.499 as at 0.501: of two as near, the lower.
        ({0.2: 1, 0.5: 1}, {0.499: 1, 0.9: 1}, 0.499, 0.499),
    ],
)
def test_the_rules_on_histograms_by_hand(rest, own, youden, f1):
    by_hand = histogram(rest=rest, own=own)
    assert (thresholds.chosen(by_hand, "youden"), thresholds.chosen(by_hand, "f1")) == (youden, f1)


@pytest.mark.parametrize("rule", thresholds.RULES)
@pytest.mark.parametrize(("rest", "own"), [({}, {}), ({0.2: 3}, {}), ({}, {0.2: 3})])
def test_one_class_alone_chooses_nothing(rule, rest, own):
    assert thresholds.chosen(histogram(rest=rest, own=own), rule) is None
