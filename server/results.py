"""From merged statistics to metrics with intervals, as JSON holds them."""

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from common import thresholds
from common.statistics import Statistics, total
from common.tasks.task import Task
from server.records import Model, Results
from server.secagg import TOGETHER

Answers = Mapping[str, Mapping[str, Statistics]]
"""What hospitals say of a model: by hospital, the statistics of ``test`` and of ``validation`` patients, which one without any leaves out."""

_log = logging.getLogger(__name__)


def judged(models: Mapping[str, Model], answers: Answers, rule: str) -> tuple[dict[str, Statistics], dict[str, Model]]:
    """Choose each model's threshold on the validation patients of all hospitals that judged it; return the statistics of test patients at it, and the models with it.

    With the rule ``half``, and where validation patients lack a class, a model says the more probable class.
    """
    tests = {name: parts["test"] for name, parts in answers.items() if parts.get("test")}
    if rule == "half":
        return tests, dict(models)
    decided: dict[str, Model] = {}
    for model in {id(model): model for model in models.values()}.values():
        whose = [name for name, each in models.items() if each is model]
        seen = total(answers[name].get("validation", {}) for name in whose if name in answers)
        threshold = thresholds.chosen(seen["histogram"], rule) if seen else None
        if threshold is None:
            _log.warning(
                "%s: no threshold is chosen, for want of validation patients of both classes", ", ".join(whose)
            )
        decided |= dict.fromkeys(whose, replace(model, threshold=threshold))
    return {name: thresholds.counted(parts, decided[name].threshold) for name, parts in tests.items()}, decided


def results_of(task: Task, statistics: Mapping[str, Statistics]) -> Results:
    """Compute metrics with intervals by hospital and over all test patients."""
    merged = total(statistics.values())
    alone = {name: parts for name, parts in statistics.items() if name != TOGETHER}
    hospitals = {name: _intervals(task.objective.compute(parts)) for name, parts in alone.items()}
    return Results(_intervals(task.objective.compute(merged)), hospitals, task.objective.curves(merged))


def gathered(statistics: Mapping[str, Statistics]) -> dict[str, int]:
    """Return the hospitals that gathered small counts before these left, each with its smallest.

    The bins of scores are so fine that somebody is alone in one, unless that was done.
    """
    least = {
        name: int(parts["histogram"][parts["histogram"] > 0].min(initial=math.inf))
        for name, parts in statistics.items()
        if "histogram" in parts and parts["histogram"].any()
    }
    return {name: count for name, count in least.items() if count > 1}


def differences_of(task: Task, statistics: Mapping[str, Statistics]) -> dict[str, Any]:
    """Compute paired differences with intervals by hospital and over all test patients."""
    differences = task.objective.differences
    return {
        "pooled": _intervals(differences(total(statistics.values()))),
        "hospitals": {name: _intervals(differences(parts)) for name, parts in statistics.items()},
    }


def _intervals(estimates: Mapping[str, Any]) -> dict[str, list[float | None]]:
    return {
        name: [float(number) if math.isfinite(number) else None for number in estimate]
        for name, estimate in estimates.items()
    }
