"""From merged statistics to metrics with intervals, as JSON holds them."""

import math
from collections.abc import Mapping
from typing import Any

from common.statistics import Statistics, total
from common.tasks.task import Task
from server.records import Results
from server.secagg import TOGETHER


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
