"""Classification metrics from statistics that add.

``summarise`` turns a hospital's labels and class probabilities into counts and sums; ``compute`` turns their total, over any
number of hospitals, into metrics with 95 % intervals, as if all patients had been in one place. ``compare`` and ``differences``
do the same for two models judged on the same patients.

Exact on the total: accuracy, recall, specificity, precision, F1, Brier score, log loss, calibration error. AUROC, AUPRC and
ROC are exact for scores rounded to one of 1160 bins: 0.001 wide, and 20 a decade below 0.001 and above 0.999, where scores
of rare diseases and of confident networks lie. Scores in one bin count as tied, which moves the AUROC by at most half the
share of the pairs (a patient of each class) that share a bin.
"""

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common import intervals
from common.errors import DataError
from common.intervals import UNDEFINED, Array, Estimate, Measure
from common.statistics import Statistics

__all__ = ["Estimate", "calibrated", "compare", "compute", "curves", "differences", "lost", "summarise", "values"]

_TAIL = np.geomspace(1e-7, 1e-3, 80, endpoint=False)
EDGES = np.concatenate([_TAIL, np.arange(1, 1000) / 1000, 1 - _TAIL[::-1]])
"""Between the bins of scores; a score that is an edge lies in the bin above."""
_BINS = len(EDGES) + 1
_CENTRES = (np.concatenate([[0.0], EDGES]) + np.concatenate([EDGES, [1.0]])) / 2
_COARSE = 40
"""Bins of a joint histogram of two models' scores: each is 29 of the fine ones."""
_CALIBRATION_BINS = 10
_REPLICATES = 1000
_POINTS = 200


def summarise(labels: NDArray[np.int32], scores: Array) -> dict[str, Array]:
    """Return the statistics of class probabilities ``scores`` (n, C) beside ``labels`` (n,) in 0..C-1; n may be 0.

    With two classes, class 1 is the positive one and K = 1; with more, each of K = C stands against the rest. The predicted
    class is the most probable, the first of equals. Shapes: ``confusion`` (C, C), label by prediction; ``histogram`` (K, 2, bins),
    the rest's and the class's patients by score; ``calibration`` (3, 10), patients, hits and sum of scores by score; ``losses``
    (2, 2), sum and sum of squares of Brier score and log loss.

    Raises
    ------
    DataError
        Shapes do not fit, a label is no class, or scores are not finite probabilities.
    """
    _check(labels, scores)
    classes = scores.shape[1]
    predicted = _predicted(scores)
    return {
        "confusion": _count((labels, predicted), (classes, classes)),
        "histogram": _histogram(labels, scores),
        "calibration": _calibration(labels, predicted, scores),
        "losses": _sums(_losses(labels, scores)),
    }


def compute(statistics: Statistics) -> dict[str, Estimate]:
    """Return every metric with its 95 % interval; nan where it is undefined, as AUROC with one class.

    With more than two classes recall, specificity, precision, F1, AUROC and AUPRC are averages over the classes for which they
    are defined. ``brier`` goes from 0 to 1 for two classes and to 2 for more; ``log_loss`` is in nats; ``calibration_error`` is the
    expected calibration error over ten bins, of the positive class or of the predicted one.

    Intervals: Wilson's at the effective number of patients (for AUROC by DeLong's variance); symmetrical in the logarithm for the
    losses; bootstrap for the calibration error. Those of a macro AUROC and AUPRC are cautious: `intervals.cautious_average`.
    """
    confusion = statistics["confusion"]
    ratios = {name: intervals.average(ratio, confusion) for name, ratio in _ratios(confusion).items()}
    ranks = [_ranks(histogram) for histogram in statistics["histogram"]]
    brier, log_loss = (intervals.positive_mean(row, float(confusion.sum())) for row in statistics["losses"])
    return {
        "accuracy": ratios.pop("accuracy"),
        "auroc": intervals.cautious_average([rank["auroc"] for rank in ranks]),
        "auprc": intervals.cautious_average([rank["auprc"] for rank in ranks]),
        **ratios,
        "brier": brier,
        "calibration_error": _calibration_error(statistics["calibration"]),
        "log_loss": log_loss,
    }


def values(statistics: Statistics) -> dict[str, float | None]:
    """Return accuracy, AUROC, macro F1, Brier score and log loss alone, which is fifty times faster; None where undefined."""
    confusion = statistics["confusion"]
    ratios = _ratios(confusion)
    measures = {
        "accuracy": ratios["accuracy"].values,
        "auroc": np.concatenate([intervals.auroc(histogram).values for histogram in statistics["histogram"]]),
        "macro_f1": ratios["macro_f1"].values,
    }
    found = {name: float(each.mean()) if len(each) else None for name, each in measures.items()}
    brier, log_loss = (float(row[0] / confusion.sum()) if confusion.sum() else None for row in statistics["losses"])
    return {**found, "brier": brier, "log_loss": log_loss}


def compare(labels: NDArray[np.int32], scores_a: Array, scores_b: Array) -> dict[str, Array]:
    """Return the joint statistics of two models on the same patients; arguments and errors as of `summarise`.

    Shapes: ``predictions`` (C, C, C), label by the prediction of a by that of b; ``losses`` (2, 2), sum and sum of squares of a's
    minus b's. With two classes also ``histograms`` (2, 2, bins), a's and b's, and ``scores`` (2, 40, 40), label by score by score.
    """
    _check(labels, scores_a)
    _check(labels, scores_b)
    classes = scores_a.shape[1]
    if classes != scores_b.shape[1]:
        raise DataError(f"expected two models of the same classes, got {classes} and {scores_b.shape[1]}")
    predicted = _predicted(scores_a), _predicted(scores_b)
    statistics = {
        "predictions": _count((labels, *predicted), (classes,) * 3),
        "losses": _sums(_losses(labels, scores_a) - _losses(labels, scores_b)),
    }
    if classes == 2:
        coarse = [_bin(scores[:, 1]) * _COARSE // _BINS for scores in (scores_a, scores_b)]
        statistics["histograms"] = np.concatenate([_histogram(labels, scores) for scores in (scores_a, scores_b)])
        statistics["scores"] = _count((labels, *coarse), (2, _COARSE, _COARSE))
    return statistics


def differences(statistics: Statistics) -> dict[str, Estimate]:
    """Return a's metrics minus b's with paired 95 % intervals, named and ordered as by `compute`, from what `compare` gave.

    There is no calibration error, and with more than two classes no AUROC and AUPRC. An average over classes of which one is defined for one model alone, as the precision of a class that only one of them names, is no difference either.
    """
    joint = statistics["predictions"]
    result = _ratio_differences(joint)
    if "scores" in statistics:
        ranks = _rank_differences(statistics["histograms"], statistics["scores"])
        result = {"accuracy": result.pop("accuracy"), **ranks, **result}
    brier, log_loss = (intervals.mean(row, float(joint.sum())) for row in statistics["losses"])
    return {**result, "brier": brier, "log_loss": log_loss}


def lost(histogram: Array) -> Array:
    """Return the ``losses`` that a histogram of `summarise` tells by itself, every score taken at the centre of its bin; a score below 1e-7 counts as 5e-8.

    With more than two classes a histogram does not tell whose scores are one patient's: the squares of the Brier score are then the largest that they can be.
    """
    rest, own = histogram[:, 0], histogram[:, 1]
    misses, surprises = (1 - _CENTRES) ** 2, -np.log(_CENTRES)
    brier = (own @ misses + rest @ _CENTRES**2).sum()
    if len(histogram) == 1:
        squares = own @ misses**2 + rest @ _CENTRES**4
        log_loss = own @ surprises + rest @ surprises[::-1], own @ surprises**2 + rest @ surprises[::-1] ** 2
    else:
        # What a patient's other classes have is at most what is missing at the own one, so the score is at most twice the square of that.
        squares = np.maximum((own @ (2 * misses) ** 2).sum(), brier**2 / max(own.sum(), 1))
        log_loss = own @ surprises, own @ surprises**2
    return np.array([[brier, squares.sum()], [part.sum() for part in log_loss]])


def calibrated(histogram: Array, calibration: Array) -> Array:
    """Return a ``calibration`` whose scores stand at the centres of bins: of two classes that of the ``histogram``, of more that of the counts of ``calibration``."""
    if len(histogram) > 1:
        centres = (np.arange(_CALIBRATION_BINS) + 0.5) / _CALIBRATION_BINS
        return np.stack([*calibration[:2], calibration[0] * centres])
    rest, own = histogram[0]
    bins = (_CENTRES * _CALIBRATION_BINS).astype(np.intp)
    rows = (rest + own, own, (rest + own) * _CENTRES)
    return np.stack([np.bincount(bins, row, _CALIBRATION_BINS) for row in rows])


def curves(statistics: Statistics) -> dict[str, Any]:
    """Return what a report draws, as lists that JSON can hold, from what `summarise` gave.

    ``roc``: at most 200 points from (0, 0) to (1, 1), micro-averaged with more than two classes, empty where undefined.
    ``calibration``: mean score, fraction of hits and number of patients of every bin that has any. ``confusion``: label by
    prediction.
    """
    count, hits, scores = statistics["calibration"][:, statistics["calibration"][0] > 0]
    return {
        "roc": _roc(statistics["histogram"].sum(axis=0)),
        "calibration": {
            "score": (scores / count).tolist(),
            "fraction": (hits / count).tolist(),
            "count": count.tolist(),
        },
        "confusion": statistics["confusion"].tolist(),
    }


def _check(labels: NDArray[np.int32], scores: Array) -> None:
    if scores.ndim != 2 or scores.shape[1] < 2 or labels.shape != scores.shape[:1]:
        raise DataError(f"expected labels (n,) and scores (n, C), C from 2; got {labels.shape} and {scores.shape}")
    classes = scores.shape[1]
    if labels.min(initial=0) < 0 or labels.max(initial=0) >= classes:
        raise DataError(f"labels: expected 0 to {classes - 1}, one for each column of the scores; another was found")
    # Written so that nan fails too.
    if not (scores.min(initial=0) >= -1e-6 and scores.max(initial=0) <= 1 + 1e-6):
        raise DataError(
            "scores: expected finite probabilities from 0 to 1; has the model diverged? Try a smaller learning rate"
        )


def _columns(labels: NDArray[np.int32], scores: Array) -> tuple[NDArray[np.bool_], Array]:
    """Return who belongs to, and the scores of, the K classes that are judged, each (n, K)."""
    first = 1 if scores.shape[1] == 2 else 0
    return labels[:, None] == np.arange(first, scores.shape[1]), scores[:, first:]


def _predicted(scores: Array) -> NDArray[np.intp]:
    return np.asarray(scores.argmax(axis=1))


def _bin(scores: Array) -> NDArray[np.intp]:
    return np.searchsorted(EDGES, scores, side="right")


def _count(indices: tuple[NDArray[Any], ...], shape: tuple[int, ...]) -> Array:
    flat = np.ravel_multi_index(indices, shape)
    return np.bincount(flat.ravel(), minlength=int(np.prod(shape))).reshape(shape).astype(np.float64)


def _histogram(labels: NDArray[np.int32], scores: Array) -> Array:
    truth, columns = _columns(labels, scores)
    kind = np.broadcast_to(np.arange(columns.shape[1]), columns.shape)
    return _count((kind, truth.astype(np.intp), _bin(columns)), (columns.shape[1], 2, _BINS))


def _calibration(labels: NDArray[np.int32], predicted: NDArray[np.intp], scores: Array) -> Array:
    binary = scores.shape[1] == 2
    score = scores[:, 1] if binary else scores.max(axis=1)
    hit = labels == (1 if binary else predicted)
    bins = np.clip((score * _CALIBRATION_BINS).astype(np.intp), 0, _CALIBRATION_BINS - 1)
    rows = [np.bincount(bins, weight, _CALIBRATION_BINS) for weight in (np.ones_like(score), hit, score)]
    # Of nobody, numpy makes whole numbers.
    return np.stack(rows).astype(np.float64, copy=False)


def _losses(labels: NDArray[np.int32], scores: Array) -> Array:
    """Return every patient's Brier score and log loss, (2, n)."""
    truth, columns = _columns(labels, scores)
    likelihood = scores[np.arange(len(labels)), labels]
    # The clip is scikit-learn's: a score of 0 for what happened costs 36 nats, not infinity.
    return np.stack([((columns - truth) ** 2).sum(axis=1), -np.log(np.clip(likelihood, np.finfo(np.float64).eps, 1))])


def _sums(losses: Array) -> Array:
    return np.stack([losses.sum(axis=1), (losses**2).sum(axis=1)], axis=1)


def _ratios(confusion: Array, beside: Array | None = None) -> dict[str, Measure]:
    """Return the metrics that are ratios of counts, or averages of such, on the cells of the confusion matrix; over the classes that are defined in the one ``beside`` it too."""
    classes = len(confusion)
    label = np.repeat(np.eye(classes)[:, :, None], classes, axis=2)
    predicted = label.transpose(0, 2, 1)
    hit = label * predicted
    judged = slice(1 if classes == 2 else 0, None)
    f1 = 2 * hit, label + predicted
    ratio = partial(intervals.ratio, confusion, beside=beside)
    return {
        "accuracy": ratio(hit.sum(axis=0, keepdims=True), np.ones((1, classes, classes))),
        "recall": ratio(hit[judged], label[judged]),
        "specificity": ratio(((1 - label) * (1 - predicted))[judged], (1 - label)[judged]),
        "precision": ratio(hit[judged], predicted[judged]),
        "f1": ratio(f1[0][judged], f1[1][judged]),
        "macro_f1": ratio(*f1),
    }


def _ratio_differences(joint: Array) -> dict[str, Estimate]:
    tables = joint.sum(axis=2), joint.sum(axis=1)
    first, second, shared = _ratios(tables[0]), _ratios(tables[1]), _ratios(*tables)
    result = {}
    for name, a in first.items():
        b = second[name]
        parts = intervals.average(a, tables[0]), intervals.average(b, tables[1])
        if not len(a.values) == len(b.values) == len(shared[name].values) > 0:
            result[name] = UNDEFINED
            continue
        influences = a.influences.mean(axis=0)[:, :, None], b.influences.mean(axis=0)[:, None, :]
        grain = float(np.sqrt(np.mean(a.counts**-2.0) * np.mean(b.counts**-2.0) / len(a.counts) / len(b.counts)))
        result[name] = intervals.difference(*parts, intervals.correlate(joint, *influences, grain))
    return result


def _ranks(histogram: Array) -> dict[str, Estimate]:
    return {
        "auroc": intervals.average(intervals.auroc(histogram), histogram),
        "auprc": intervals.average(intervals.auprc(histogram), histogram),
    }


def _rank_differences(histograms: Array, joint: Array) -> dict[str, Estimate]:
    """Return differences from the fine histograms; how the two are correlated comes from the coarser joint one.

    What the coarse bins make of a difference is added to its interval, so that nothing finer than they see looks certain.
    """
    tables = joint.sum(axis=2), joint.sum(axis=1)
    result = {}
    for name, measure in {"auroc": intervals.auroc, "auprc": intervals.auprc}.items():
        fine = [intervals.average(measure(table), table) for table in histograms]
        a, b = (measure(table) for table in tables)
        if not len(a.values):
            result[name] = UNDEFINED
            continue
        correlation = intervals.correlate(joint, a.influences[0][:, :, None], b.influences[0][:, None, :])
        slack = abs(fine[0].value - fine[1].value - float(a.values[0] - b.values[0]))
        result[name] = intervals.difference(fine[0], fine[1], correlation, slack)
    return result


def _calibration_error(calibration: Array) -> Estimate:
    """Return the expected calibration error with a bootstrap interval.

    Chance alone gives few patients a large error, and resampling adds as much again. The basic interval takes that off, and
    its lower end is 0 where a model whose scores are right would show as large an error one time in forty.
    """
    count, hits, scores = calibration
    patients = count.sum()
    if not patients:
        return UNDEFINED
    generator = np.random.default_rng(0)
    mean_score = scores / np.maximum(count, 1)
    # What a hospital reports may contradict itself; no share is then below 0 or above 1.
    certain = np.clip(hits, 0, count)
    cells = np.concatenate([certain, count - certain]) / patients
    drawn = generator.multinomial(round(patients), cells, _REPLICATES).reshape(_REPLICATES, 2, -1)
    resampled = np.abs(drawn[:, 0] - drawn.sum(axis=1) * mean_score).sum(axis=1) / patients
    by_chance = generator.binomial(
        np.rint(count).astype(np.int64), np.clip(mean_score, 0, 1), (_REPLICATES, len(count))
    )
    chance = np.quantile(np.abs(by_chance - scores).sum(axis=1) / patients, 0.975)
    value = float(np.abs(hits - scores).sum() / patients)
    high, low = 2 * value - np.quantile(resampled, [0.025, 0.975])
    return Estimate(value, 0.0 if value <= chance else float(np.clip(low, 0, value)), max(min(float(high), 1.0), value))


def _roc(histogram: Array) -> dict[str, list[float]]:
    if not histogram.any(axis=1).all():
        return {"fpr": [], "tpr": []}
    counts = np.concatenate([np.zeros((2, 1)), histogram[:, ::-1].cumsum(axis=1)], axis=1)
    fpr, tpr = counts / counts[:, -1:]
    # Points at even steps along the curve, each the first that gets there.
    steps = np.linspace(0, 2, _POINTS)
    keep = np.unique(np.clip(np.searchsorted(fpr + tpr, steps), 0, _BINS))
    return {"fpr": fpr[keep].tolist(), "tpr": tpr[keep].tolist()}
