"""Metrics from merged statistics are those of the pooled patients, and their intervals hold what they promise."""

import doctest
import json

import numpy as np
import pytest
import sklearn.metrics as oracle
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve

from common import intervals, metrics
from common.errors import DataError
from common.statistics import total

RATIOS = ["recall", "specificity", "precision", "f1", "macro_f1"]
NAMES = ["accuracy", "auroc", "auprc", *RATIOS, "brier", "calibration_error", "log_loss"]


def softmax(outputs):
    shifted = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def patients(seed, n, classes=2, noise=0.0, temperature=1.0):
    """Draw labels and the scores of a model that is right about the odds, but for noise and temperature."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, n).astype(np.int32)
    outputs = 1.3 * (generator.normal(size=(n, classes)) + 1.3 * np.eye(classes)[labels])
    return labels, softmax(temperature * (outputs + noise * generator.normal(size=outputs.shape)))


def two_models(seed, n, classes=2):
    labels, good = patients(seed, n, classes)
    worse = softmax(np.log(good) + 0.8 * np.random.default_rng(seed + 10_000).normal(size=good.shape))
    return labels, good, worse


def one_hot(labels, classes):
    return np.eye(classes)[labels]


def split(arrays, parts=3):
    return zip(*(np.array_split(array, parts) for array in arrays), strict=True)


def rounded(scores):
    """Return each patient's bin, as the histogram sees the score of class 1."""
    return np.searchsorted(metrics.EDGES, scores[:, 1], side="right")


def delong(labels, *scores):
    """Return AUROCs and their covariance patient by patient (DeLong et al. 1988), straight from the definition."""
    placements = []
    for score in scores:
        own, rest = score[labels == 1], score[labels == 0]
        wins = (own[:, None] > rest) + 0.5 * (own[:, None] == rest)
        placements.append((wins.mean(axis=1), wins.mean(axis=0)))
    own, rest = (np.array(side) for side in zip(*placements, strict=True))
    covariance = np.cov(own) / own.shape[1] + np.cov(rest) / rest.shape[1]
    return own.mean(axis=1), np.atleast_2d(covariance)


def spread(estimate):
    """Return the standard error that an interval speaks of."""
    return (estimate.high - estimate.low) / 2 / intervals.Z


# The value: scikit-learn on the pooled patients.


def merged(labels, scores):
    return metrics.compute(total(metrics.summarise(*part) for part in split((labels, scores))))


def test_binary_metrics_of_three_hospitals_are_scikit_learns_on_the_pool():
    labels, scores = patients(1, 700, temperature=2)
    found = merged(labels, scores)
    predicted, score = scores.argmax(axis=1), scores[:, 1]
    expected = {
        "accuracy": oracle.accuracy_score(labels, predicted),
        "recall": oracle.recall_score(labels, predicted),
        "specificity": oracle.recall_score(labels, predicted, pos_label=0),
        "precision": oracle.precision_score(labels, predicted),
        "f1": oracle.f1_score(labels, predicted),
        "macro_f1": oracle.f1_score(labels, predicted, average="macro"),
        "brier": oracle.brier_score_loss(labels, score),
        "log_loss": oracle.log_loss(labels, score),
        "auroc": oracle.roc_auc_score(labels, rounded(scores)),
        "auprc": oracle.average_precision_score(labels, rounded(scores)),
    }
    assert {name: found[name].value for name in expected} == pytest.approx(expected, rel=1e-12)
    assert list(found) == NAMES


def test_metrics_of_many_classes_are_scikit_learns_on_the_pool():
    labels, scores = patients(2, 900, classes=5)
    found = merged(labels, scores)
    predicted = scores.argmax(axis=1)
    expected = {
        "accuracy": oracle.accuracy_score(labels, predicted),
        "recall": oracle.recall_score(labels, predicted, average="macro"),
        "specificity": np.mean([oracle.recall_score(labels != k, predicted != k) for k in range(5)]),
        "precision": oracle.precision_score(labels, predicted, average="macro"),
        "f1": oracle.f1_score(labels, predicted, average="macro"),
        "macro_f1": oracle.f1_score(labels, predicted, average="macro"),
        "brier": np.mean(((scores - np.eye(5)[labels]) ** 2).sum(axis=1)),
        "log_loss": oracle.log_loss(labels, scores),
    }
    assert {name: found[name].value for name in expected} == pytest.approx(expected, rel=1e-12)
    assert found["auroc"].value == pytest.approx(oracle.roc_auc_score(labels, scores, multi_class="ovr"), abs=5e-4)
    assert found["auprc"].value == pytest.approx(oracle.average_precision_score(np.eye(5)[labels], scores), abs=2e-3)
    assert list(found) == NAMES


@pytest.mark.parametrize("temperature", [0.02, 1, 5])
def test_auroc_is_off_by_at_most_half_the_share_of_pairs_in_one_bin(temperature):
    labels, scores = patients(3, 500, temperature=temperature)
    statistics = metrics.summarise(labels, scores)
    rest, own = statistics["histogram"][0]
    limit = 0.5 * (rest @ own) / rest.sum() / own.sum()
    error = metrics.compute(statistics)["auroc"].value - oracle.roc_auc_score(labels, scores[:, 1])
    assert 0 < limit < 0.05
    assert abs(error) <= limit


def test_scores_near_zero_and_one_keep_their_order():
    labels, scores = patients(4, 400)
    rare = np.where(np.arange(400) % 2, scores[:, 1] * 1e-3, 1 - scores[:, 1] * 1e-3)
    found = metrics.compute(metrics.summarise(labels, np.stack([1 - rare, rare], axis=1)))["auroc"].value
    assert found == pytest.approx(oracle.roc_auc_score(labels, rare), abs=0.01)


def test_calibration_error_is_its_definition():
    labels, scores = patients(5, 600, classes=4, temperature=3)
    bins = np.floor(scores.max(axis=1) * 10).clip(max=9)
    gap = (labels == scores.argmax(axis=1)) - scores.max(axis=1)
    expected = sum(abs(gap[bins == k].sum()) for k in range(10)) / 600
    assert merged(labels, scores)["calibration_error"].value == pytest.approx(expected, rel=1e-12)


def test_a_class_that_never_occurs_is_left_out_of_averages():
    labels, scores = patients(6, 200, classes=4)
    labels = np.where(labels == 3, 0, labels).astype(np.int32)
    scores[:, 3] = 0
    found = metrics.compute(metrics.summarise(labels, scores))
    predicted = scores.argmax(axis=1)
    assert found["macro_f1"].value == pytest.approx(oracle.f1_score(labels, predicted, average="macro"))
    assert found["recall"].value == pytest.approx(oracle.recall_score(labels, predicted, average="macro"))
    assert np.isfinite(found["auroc"]).all()


# The law: statistics add.


@st.composite
def judged(draw):
    classes, n = draw(st.sampled_from([2, 3, 6])), draw(st.integers(0, 20))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    models = [softmax(generator.normal(0, draw(st.sampled_from([0, 1, 50])), (n, classes))) for _ in range(2)]
    return generator.integers(0, classes, n).astype(np.int32), *models, draw(st.integers(0, n))


@settings(deadline=None, max_examples=60)
@given(judged())
def test_statistics_of_parts_add_to_those_of_the_whole(case):
    *arrays, cut = case
    for judge, rows in ((metrics.summarise, arrays[:2]), (metrics.compare, arrays)):
        whole = judge(*rows)
        parts = total([judge(*(row[:cut] for row in rows)), judge(*(row[cut:] for row in rows))])
        assert list(parts) == list(whole)
        for name, value in whole.items():
            assert value.dtype == np.float64
            np.testing.assert_allclose(parts[name], value, rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(judged())
def test_every_value_lies_in_its_interval_and_differences_are_of_values(case):
    labels, first, second, _ = case
    a, b = (metrics.compute(metrics.summarise(labels, scores)) for scores in (first, second))
    gaps = metrics.differences(metrics.compare(labels, first, second))
    for name, estimate in a.items():
        undefined = np.isnan(estimate.value)
        assert undefined == np.isnan(estimate.low) or len(labels) == 1
        assert np.isnan(estimate.low) or estimate.low <= estimate.value <= estimate.high
        assert np.isnan(estimate.low) or name in {"brier", "log_loss"} or 0 <= estimate.low <= estimate.high <= 1
    for name, gap in gaps.items():
        told = np.isnan(gap.value) and name in {"precision", "f1", "macro_f1"}  # of other classes, see below
        assert told or gap.value == pytest.approx(a[name].value - b[name].value, abs=1e-12, nan_ok=True)
        assert np.isnan(gap.low) or gap.low <= gap.value <= gap.high


# The intervals.


def test_plain_proportions_have_wilsons_interval():
    labels, scores = patients(7, 150)
    found = metrics.compute(metrics.summarise(labels, scores))
    right = labels == scores.argmax(axis=1)
    for name, who in {"accuracy": labels >= 0, "recall": labels == 1, "precision": scores[:, 1] > 0.5}.items():
        expected = binomtest(int(right[who].sum()), int(who.sum())).proportion_ci(method="wilson")
        assert found[name][1:] == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_auroc_variance_is_delongs():
    labels, scores = patients(8, 130)
    histogram = metrics.summarise(labels, scores)["histogram"][0]
    measure = intervals.auroc(histogram)
    (value,), variance = delong(labels, rounded(scores))
    assert measure.values[0] == pytest.approx(value, rel=1e-12)
    assert measure.covariance(histogram) == pytest.approx(variance, rel=1e-9)


def macro_f1(labels, predicted, classes):
    counts = np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)
    return np.mean(2 * np.diag(counts) / (counts.sum(axis=0) + counts.sum(axis=1)))


def average_precision(labels, score):
    own = labels[np.argsort(-score, kind="stable")]
    return np.mean((own.cumsum() / np.arange(1, len(own) + 1))[own == 1])


def test_variance_of_auprc_and_macro_f1_is_the_bootstraps():
    labels, scores = patients(9, 400)
    found = metrics.compute(metrics.summarise(labels, scores))
    generator = np.random.default_rng(1)
    drawn = [generator.integers(0, 400, 400) for _ in range(1000)]
    predicted = scores.argmax(axis=1)
    assert spread(found["auprc"]) == pytest.approx(
        np.std([average_precision(labels[i], scores[i, 1]) for i in drawn]), rel=0.1
    )
    assert spread(found["macro_f1"]) == pytest.approx(
        np.std([macro_f1(labels[i], predicted[i], 2) for i in drawn]), rel=0.1
    )


def test_paired_auroc_difference_is_delongs():
    labels, good, worse = two_models(10, 600)
    found = metrics.differences(metrics.compare(labels, good, worse))["auroc"]
    values, covariance = delong(labels, good[:, 1], worse[:, 1])
    contrast = np.array([1, -1])
    assert found.value == pytest.approx(values @ contrast, abs=1e-3)
    # Up to a tenth wider: the joint histogram is coarse, and the interval allows for it.
    assert 0.95 < spread(found) / np.sqrt(contrast @ covariance @ contrast) < 1.15


@pytest.mark.parametrize("classes", [2, 4])
def test_paired_differences_are_the_paired_bootstraps(classes):
    labels, *models = two_models(11, 500, classes)
    found = metrics.differences(metrics.compare(labels, *models))
    drawn = np.random.default_rng(2).integers(0, 500, (1000, 500))
    predicted = [scores.argmax(axis=1) for scores in models]
    right = [labels == row for row in predicted]
    brier = [((scores - one_hot(labels, classes)) ** 2).sum(axis=1) / (2 if classes == 2 else 1) for scores in models]
    surprise = [-np.log(scores[np.arange(500), labels]) for scores in models]
    for name, (a, b) in {"accuracy": right, "brier": brier, "log_loss": surprise}.items():
        assert spread(found[name]) == pytest.approx(np.std((a * 1.0 - b)[drawn].mean(axis=1)), rel=0.1), name
    f1 = [np.subtract(*(macro_f1(labels[i], row[i], classes) for row in predicted)) for i in drawn]
    assert spread(found["macro_f1"]) == pytest.approx(np.std(f1), rel=0.1)


@pytest.mark.parametrize(("classes", "n", "temperature"), [(2, 120, 1), (2, 120, 2.5), (4, 250, 1)])
def test_intervals_hold_the_truth_19_times_in_20(classes, n, temperature):
    truth = metrics.compute(metrics.summarise(*patients(12, 200_000, classes, temperature=temperature)))
    held = dict.fromkeys(truth, 0)
    for seed in range(120):
        found = metrics.compute(metrics.summarise(*patients(100 + seed, n, classes, temperature=temperature)))
        for name, estimate in found.items():
            # A right model's error is 0 but for the size of the sample that the truth comes from.
            target = truth[name].value if truth[name].value > 0.005 else 0.0
            held[name] += estimate.low <= target <= estimate.high
    least = {name: 0.90 if name != "calibration_error" else 0.88 for name in held}
    assert not {name: times for name, times in held.items() if times / 120 < least[name]}
    assert held["accuracy"] / 120 < 0.99


def test_intervals_of_differences_hold_the_truth_19_times_in_20():
    truth = metrics.differences(metrics.compare(*two_models(13, 200_000)))
    held = dict.fromkeys(truth, 0)
    for seed in range(120):
        for name, gap in metrics.differences(metrics.compare(*two_models(20_000 + seed, 150))).items():
            held[name] += gap.low <= truth[name].value <= gap.high
    assert min(held.values()) / 120 > 0.90
    assert held["brier"] / 120 < 0.99


def newcombe(both, only_a, only_b, neither):
    """Return the interval of a paired difference of proportions (Newcombe 1998, method 10), from the paper's formulas."""
    n = both + only_a + only_b + neither
    a, b = (binomtest(both + only, n) for only in (only_a, only_b))
    (a_low, a_high), (b_low, b_high) = (part.proportion_ci(method="wilson") for part in (a, b))
    product = both * neither - only_a * only_b
    corrected = max(product - n / 2, 0) if product > 0 else product
    phi = corrected / np.sqrt((both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither))
    down, up = (a.statistic - a_low, b_high - b.statistic), (a_high - a.statistic, b.statistic - b_low)
    below, above = (np.sqrt(x**2 - 2 * phi * x * y + y**2) for x, y in (down, up))
    return a.statistic - b.statistic, a.statistic - b.statistic - below, a.statistic - b.statistic + above


@pytest.mark.parametrize("counts", [(36, 12, 2, 7), (15, 0, 0, 15), (3, 20, 9, 2), (50, 1, 0, 9)])
def test_paired_difference_of_accuracies_is_newcombes(counts):
    right_a, right_b = np.repeat([[1, 1], [1, 0], [0, 1], [0, 0]], counts, axis=0).T
    joint = metrics.compare(np.ones(sum(counts), np.int32), one_hot(right_a, 2), one_hot(right_b, 2))
    assert metrics.differences(joint)["accuracy"] == pytest.approx(newcombe(*counts), abs=1e-12)


def test_equal_models_do_not_differ():
    labels, scores = patients(14, 60)
    found = metrics.differences(metrics.compare(labels, scores, scores))
    assert list(found) == [name for name in NAMES if name != "calibration_error"]
    assert {gap.value for gap in found.values()} == {0.0}


def test_what_the_joint_histogram_cannot_see_is_no_certain_difference():
    labels, scores = patients(14, 2000)
    # Better, but only within the coarse bins of the joint histogram.
    edges = metrics.EDGES[28::29]
    place = np.digitize(scores[:, 1], edges)
    low, high = np.concatenate([[0], edges])[place], np.concatenate([edges, [1]])[place]
    score = np.where(labels == 1, low + 0.9 * (high - low), low + 0.1 * (high - low))
    found = metrics.differences(metrics.compare(labels, np.stack([1 - score, score], axis=1), scores))["auroc"]
    assert 1e-4 < found.value < 0.05
    assert found.low <= 1e-12


def test_intervals_of_losses_are_symmetrical_in_the_logarithm():
    found = metrics.compute(metrics.summarise(*patients(21, 12, temperature=6)))
    for name in ("brier", "log_loss"):
        value, low, high = found[name]
        assert 0 < low < value
        assert low * high == pytest.approx(value**2)


def test_a_model_that_never_names_a_class_is_not_the_more_precise_for_it():
    """One of them has no precision there, so the averages are over other classes, and their difference would be of nothing."""
    labels = np.repeat(np.arange(3, dtype=np.int32), 20)
    every = one_hot(np.where(np.arange(60) % 4, labels, (labels + 1) % 3), 3)
    never = one_hot(np.where(labels == 2, 0, labels), 3)
    gaps = metrics.differences(metrics.compare(labels, never, every))
    assert np.isnan(gaps["precision"].value)
    assert gaps["recall"].value == pytest.approx(2 / 3 - 3 / 4)
    assert gaps["macro_f1"].value == pytest.approx((2 / 3 + 1) / 3 - 3 / 4)


def test_differences_of_many_classes_have_no_ranks():
    found = metrics.differences(metrics.compare(*two_models(15, 60, classes=3)))
    assert list(found) == [name for name in NAMES if name not in {"auroc", "auprc", "calibration_error"}]


# The edges.


@pytest.mark.parametrize("classes", [2, 3])
def test_perfect_separation_leaves_doubt(classes):
    labels = np.arange(30, dtype=np.int32) % classes
    found = metrics.compute(metrics.summarise(labels, one_hot(labels, classes)))
    for name in NAMES[:8]:
        assert found[name].value == found[name].high == 1
        assert 0.6 < found[name].low < 1
    assert [found[name].value for name in NAMES[8:]] == pytest.approx([0, 0, 0], abs=1e-12)


@pytest.mark.parametrize("classes", [2, 3, 11])
def test_no_patients_have_no_metrics(classes):
    nobody = np.zeros(0, np.int32), np.zeros((0, classes))
    statistics = metrics.summarise(*nobody)
    assert np.isnan(list(metrics.compute(statistics).values())).all()
    assert np.isnan(list(metrics.differences(metrics.compare(*nobody, nobody[1])).values())).all()
    assert metrics.curves(statistics)["roc"] == {"fpr": [], "tpr": []}
    some = metrics.summarise(*patients(1, 5, classes))
    assert {k: v.shape for k, v in statistics.items()} == {k: v.shape for k, v in some.items()}


def test_one_class_has_no_auroc_but_an_accuracy():
    labels, scores = np.zeros(20, np.int32), patients(16, 20)[1]
    found = metrics.compute(metrics.summarise(labels, scores))
    for name in ("auroc", "auprc", "recall"):
        assert np.isnan(found[name]).all()
    assert found["accuracy"].value == found["specificity"].value == (scores.argmax(axis=1) == 0).mean()
    assert np.isnan(metrics.differences(metrics.compare(labels, scores, scores))["auroc"]).all()


@pytest.mark.parametrize("rest", [np.linspace(0, 1, 41), np.full(41, 0.5)])
def test_one_patient_of_a_class_leaves_a_wide_auroc(rest):
    labels = (np.arange(41) == 20).astype(np.int32)
    found = metrics.compute(metrics.summarise(labels, np.stack([1 - rest, rest], axis=1)))["auroc"]
    assert found.value == 0.5
    assert found.high - found.low > 0.8


def test_a_certain_mistake_costs_36_nats_not_infinity():
    found = metrics.compute(metrics.summarise(np.array([0, 1], np.int32), np.array([[0.0, 1.0], [0.0, 1.0]])))
    assert found["log_loss"].value == pytest.approx(36.04 / 2, abs=0.01)


@pytest.mark.parametrize(
    ("labels", "scores"),
    [
        ([0, 1], [[0.5, 0.5]]),
        ([0], [[1.0]]),
        ([2], [[0.5, 0.5]]),
        ([-1], [[0.5, 0.5]]),
        ([0], [[np.nan, np.nan]]),
        ([0], [[-3.0, 4.0]]),
    ],
)
def test_what_is_no_prediction_is_refused(labels, scores):
    with pytest.raises(DataError, match="expected"):
        metrics.summarise(np.array(labels, np.int32), np.array(scores))


def test_models_of_other_classes_are_not_compared():
    with pytest.raises(DataError, match="same classes"):
        metrics.compare(np.array([0], np.int32), np.array([[1.0, 0]]), np.array([[1.0, 0, 0]]))


def test_same_statistics_give_the_same_bits():
    labels, good, worse = two_models(17, 90)
    statistics, joint = metrics.summarise(labels, good), metrics.compare(labels, good, worse)
    assert metrics.compute(statistics) == metrics.compute(statistics)
    assert metrics.differences(joint) == metrics.differences(joint)


# The curves.


def test_curves_are_short_and_are_scikit_learns():
    labels, scores = patients(18, 3000)
    statistics = metrics.summarise(labels, scores)
    drawn = json.loads(json.dumps(metrics.curves(statistics), allow_nan=False))
    fpr, tpr = drawn["roc"]["fpr"], drawn["roc"]["tpr"]
    assert len(fpr) == len(tpr) <= 200
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert oracle.auc(fpr, tpr) == pytest.approx(oracle.roc_auc_score(labels, scores[:, 1]), abs=2e-3)
    fraction, score = calibration_curve(labels, scores[:, 1], n_bins=10)
    assert drawn["calibration"]["fraction"] == pytest.approx(fraction.tolist())
    assert drawn["calibration"]["score"] == pytest.approx(score.tolist())
    assert drawn["confusion"] == oracle.confusion_matrix(labels, scores.argmax(axis=1)).tolist()


def test_curves_of_many_classes_are_micro_averages():
    labels, scores = patients(19, 800, classes=4)
    drawn = metrics.curves(metrics.summarise(labels, scores))
    expected = oracle.roc_auc_score(one_hot(labels, 4), scores, average="micro")
    assert oracle.auc(drawn["roc"]["fpr"], drawn["roc"]["tpr"]) == pytest.approx(expected, abs=2e-3)
    assert sum(drawn["calibration"]["count"]) == 800


def test_examples_in_the_documentation_are_true():
    assert doctest.testmod(intervals).attempted > 0
    assert doctest.testmod(intervals).failed == 0


@given(st.lists(st.tuples(st.integers(20, 400), st.floats(0.3, 0.9)), min_size=2, max_size=6), st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_the_mean_of_hospitals_lies_in_its_interval_as_often_as_promised(hospitals, seed):
    generator, repeats, held = np.random.default_rng(seed), 600, 0
    truth = np.mean([share for _, share in hospitals])
    sizes = np.array([size for size, _ in hospitals], float)
    for _ in range(repeats):
        right = np.array([generator.binomial(size, share) / size for size, share in hospitals])
        low, high = intervals.wilson(right, sizes)
        mean = intervals.independent_average([intervals.Estimate(*each) for each in zip(right, low, high, strict=True)])
        held += mean.low <= truth <= mean.high
    assert binomtest(held, repeats, 0.95).pvalue > 1e-5


def test_the_mean_of_hospitals_leaves_out_those_where_nothing_is_defined():
    known = intervals.Estimate(0.8, 0.7, 0.9)
    assert intervals.independent_average([known, intervals.UNDEFINED]) == pytest.approx(known)
    assert np.isnan(intervals.independent_average([intervals.UNDEFINED]).value)
    open_ended = intervals.Estimate(0.8, float("nan"), float("nan"))
    assert np.isnan(intervals.independent_average([known, open_ended]).low)
