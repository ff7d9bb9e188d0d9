"""Membership inference: was this patient trained on? Against the final model, and against single updates as they travel.

Thresholds are chosen with the scores of patients who were not trained on, so that so many of those are named wrongly; what counts is how many of the others are then found (Carlini et al.
2022). Shadow models are whole federations of the same settings, trained by the same code with the patients of every hospital dealt anew, and with noise of their own.
"""

import json
from collections.abc import Callable

import numpy as np

from client import evaluation
from common import network as networks
from common.layout import Vector
from common.tasks.task import Records, rows_of
from simulations.attacks.attack import Attack, Finding, Scores, Target
from simulations.attacks.shadows import Flags, dealable, joined, shadows, size_of

Judge = Callable[[Vector], Scores]
"""From weights to each patient's logarithm of the chance that the model gives its true class, shape ``(n,)``."""

FALSE_ALARMS = {"tpr": 0.01, "tpr0.1": 0.001}
"""False positive rates, by the name of the limit on the true positive rate there."""
REFERENCES = 4
"""How many reference models RMIA takes: it is the attack of those who have few."""
OFFLINE = 0.3
"""RMIA's correction where references were not trained on the patient (Zarifzadeh et al. 2024, appendix B.2.2)."""
LEAST = 1e-7


# --- scores: the larger, the more likely trained on ---------------------------------------------------------------------


def rmia(target: Scores, references: Scores, inside: Flags) -> Scores:
    """Return the likelihood ratio of RMIA (Zarifzadeh et al. 2024, equation 2): how much likelier the target makes a patient than models without the patient do.

    ``target (n,)`` and ``references (K, n)`` are logarithms of chances; ``inside (K, n)`` tells whose model was trained on whom. The comparison with other patients that follows in the paper
    keeps the order of these ratios, and so every true positive rate, and is left out.
    """
    without = _mean(np.exp(references), ~inside)
    return np.asarray(target - np.log(((1 + OFFLINE) * without + (1 - OFFLINE)) / 2))


def lira(target: Scores, shadows: Scores, inside: Flags) -> Scores:
    """Return the logarithm of LiRA's likelihood ratio (Carlini et al. 2022, algorithm 1): a normal of the models with the patient against one of those without, with one variance for all patients."""
    target, shadows = _logit(target), _logit(shadows)
    found = []
    for members in (inside, ~inside):
        means = _mean(shadows, members)
        variance = float(np.mean((shadows - means)[members] ** 2)) + 1e-12
        found.append(-((target - means) ** 2) / (2 * variance) - np.log(variance) / 2)
    return np.asarray(found[0] - found[1])


def _mean(values: Scores, chosen: Flags) -> Scores:
    """Average the chosen of each column; a column without any takes the average of all that are chosen."""
    counts = chosen.sum(axis=0)
    means = np.where(chosen, values, 0.0).sum(axis=0) / np.maximum(counts, 1)
    rest = values[chosen].mean() if chosen.any() else values.mean()
    return np.asarray(np.where(counts > 0, means, rest))


def _logit(logarithms: Scores) -> Scores:
    return np.asarray(logarithms - np.log(-np.expm1(np.minimum(logarithms, -LEAST))))


# --- success ------------------------------------------------------------------------------------------------------------


def caught(scores: Scores, members: Flags, rate: float) -> int:
    """Return how many members score above all others but a share of at most ``rate`` of them.

    >>> caught(np.array([3.0, 1.0, 2.0, 0.0]), np.array([True, True, False, False]), 0.01)
    1
    """
    others = np.sort(scores[~members])[::-1]
    return int(np.sum(scores[members] > others[int(rate * others.size)]))


def auc(scores: Scores, members: Flags) -> float:
    """Return the chance that a member scores above another one, ties counting half; 0.5 is guessing.

    >>> auc(np.array([2.0, 1.0, 1.0]), np.array([True, True, False]))
    0.75
    """
    from scipy.stats import rankdata

    count, rest = int(members.sum()), int((~members).sum())
    return float((rankdata(scores)[members].sum() - count * (count + 1) / 2) / (count * rest))


def findings(view: str, scores: Scores, members: Flags) -> list[Finding]:
    """Return the AUC and the true positive rates."""
    count = int(members.sum())
    found = [Finding("membership", view, "AUC", auc(scores, members), limit="auc")]
    for limit, rate in FALSE_ALARMS.items():
        hits = caught(scores, members, rate)
        measure = f"TPR at {100 * rate:g} % FPR"
        found.append(Finding("membership", view, measure, hits / count, "share", hits, count, limit=limit))
    return found


# --- the attack ---------------------------------------------------------------------------------------------------------


def run(target: Target) -> list[Finding]:
    """Attack the final model and the updates of a run."""
    hospitals = target.population.hospitals
    everyone = joined([joined([h.train, h.test]) for h in hospitals])
    members = np.concatenate([np.arange(size_of(h)) < rows_of(h.train) for h in hospitals])
    judge = judge_of(target, everyone)
    final = judge(target.outcome.model.weights)
    found = findings("loss, final model", final, members)
    if target.heard:
        found += findings("loss, single update", _moved(target, judge), members)
    if target.shadows and dealable(hospitals):
        parts = [(judge(weights), inside) for weights, inside in shadows(target)]
        scores, inside = (np.array(column) for column in zip(*parts, strict=True))
        few = slice(REFERENCES)
        found += findings("RMIA, final model", rmia(final, scores[few], inside[few]), members)
        found += findings("LiRA, final model", lira(final, scores, inside), members)
    return found


def judge_of(target: Target, records: Records) -> Judge:
    """Return how models of the run are asked about patients."""
    import tensorflow as tf

    model, run = target.outcome.model, target.scenario.run
    task, preparation = target.outcome.coordinator.plan.task, json.loads(model.preparation)
    network = networks.build(task, preparation, model.local_parts, run.seed)
    examples = task.encode(records, preparation)
    predict, x = evaluation.compile_predict(network, examples.x.dtype), tf.constant(examples.x)
    local = network.vectors()[1]

    def judge(weights: Vector) -> Scores:
        chances = task.objective.predict(evaluation.outputs(predict, weights, local, x))
        return np.asarray(np.log(np.clip(chances[np.arange(len(examples)), examples.y], LEAST, 1 - LEAST)))

    return judge


def _moved(target: Target, judge: Judge) -> Scores:
    """Return how much a step along the update of a patient's own hospital makes the patient likelier: the slope of the loss along the update, which needs no gradient of single patients."""
    scores, start = [], 0
    updates = {heard.hospital: heard for heard in target.heard}
    for hospital in target.population.hospitals:
        own = slice(start, start + size_of(hospital))
        start = own.stop
        if (heard := updates.get(hospital.name)) is None:
            scores.append(np.zeros(size_of(hospital)))
            continue
        step = heard.update / max(float(np.linalg.norm(heard.update)), 1.0)
        scores.append((judge(heard.weights + step) - judge(heard.weights))[own])
    return np.concatenate(scores)


MEMBERSHIP = Attack("membership", "membership inference", run)
