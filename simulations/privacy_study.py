"""A study of privacy: one scenario under several epsilons and ways to add the noise, over seeds; what the models are worth, and what attackers get. Started again, it goes on where it stopped."""

import csv
import io
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from client.worker import Worker
from common import flower
from common.config import merge
from common.errors import DataError, UsageError
from common.intervals import Estimate
from common.tasks.task import rows_of
from server import models, records
from server.plan import Plan
from server.privacy import spent
from server.results import results_of
from simulations import run as runs
from simulations import scenario as scenarios
from simulations.attacks import ATTACKS
from simulations.attacks.attack import Finding, Pair, Target, overhear
from simulations.attacks.canaries import joined
from simulations.hospitals import populate
from simulations.scenario import Scenario

NONE, HOSPITAL, SHARED, MASKED, CENTRAL = "none", "hospital", "shared", "masked", "central"
ARMS = {
    NONE: "no privacy",
    MASKED: "secure aggregation, no noise",
    HOSPITAL: "noise of each hospital",
    SHARED: "noise shared under secure aggregation",
    CENTRAL: "central noise, for whole hospitals",
}
"""Ways to protect, in the order in which they stand in tables."""
CELLS = "cells"
UTILITY = "utility"
ENOUGH = 20
"""Hospitals from which on central noise leaves anything of a model: its share of the mean falls with their count alone, whatever patients they have."""

Begin = Callable[[str], None]
"""Is told of every run before it begins."""
Show = Callable[["Cell", Sequence[Pair]], None]
"""Is given the images of a run that was attacked, each with what was made of its update."""


@dataclass(frozen=True)
class Cell:
    """One run that is attacked: how it is protected, and its settings."""

    arm: str
    epsilon: float
    scenario: Scenario

    @property
    def name(self) -> str:
        """Return the name of its file."""
        return f"noise={self.arm},epsilon={self.epsilon:g},seed={self.scenario.run.seed}"


@dataclass(frozen=True)
class Line:
    """One measured quantity of one way to protect at one epsilon, over seeds."""

    arm: str
    epsilon: float
    attack: str
    view: str
    measure: str
    estimate: Estimate
    seeds: int
    limit: str


# --- which runs ---------------------------------------------------------------------------------------------------------


def planned(base: Mapping[str, Any], private: Mapping[str, Any], epsilons: Sequence[float], seeds: int) -> list[Cell]:
    """Return all runs of a study; each is parsed and checked before the first is trained. ``base`` are the tables of runs without noise of hospitals, ``private`` those of runs with it.

    Central noise is among them where there are `ENOUGH` hospitals.

    Raises
    ------
    ConfigError
        When one of them contradicts itself; the message names the setting.
    """
    cells = []
    noised = (HOSPITAL, SHARED, CENTRAL) if hospitals_of(base) >= ENOUGH else (HOSPITAL, SHARED)
    delta = scenarios.read(private).run.privacy.delta
    for epsilon in epsilons:
        arms = noised if math.isfinite(epsilon) else (NONE, MASKED)
        for arm in arms:
            for seed in range(1, seeds + 1):
                tables = private if arm in (HOSPITAL, SHARED) else base
                cell = Cell(
                    arm, epsilon, scenarios.read(merge(tables, {**_settings(arm, epsilon, delta), "seed": seed}))
                )
                _ = Plan(cell.scenario.run).strategy
                cells.append(cell)
    return cells


def hospitals_of(tables: Mapping[str, Any]) -> int:
    """Return how many hospitals a scenario has."""
    scenario = scenarios.read(tables)
    return scenario.simulation.hospitals or len(populate(scenario).hospitals)


def settings_of(tables: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the tables of a scenario's runs without noise of hospitals, and of those with it.

    A scenario without ``[privacy]`` takes for the latter what the scenario ``TASK-private`` has, or one step a round on all rows; one with it takes for the former what the scenario of its task
    has, over its own hospitals.
    """
    scenarios.read(tables)  # says what is wrong with them
    name = tables["task"] if isinstance(tables["task"], str) else tables["task"]["name"]
    if "privacy" in tables:
        plain = scenarios.find(name) if name in scenarios.names() else {}
        return merge(plain, {key: tables[key] for key in ("seed", "task", "simulation") if key in tables}), dict(tables)
    own = f"{name}-private"
    found = scenarios.find(own) if own in scenarios.names() else {"privacy": {"method": "full"}}
    chosen = {key: found[key] for key in ("rounds", "privacy", "training") if key in found}
    return dict(tables), merge(tables, merge({"training": {"optimizer": "sgd"}}, chosen))


def _settings(arm: str, epsilon: float, delta: float) -> dict[str, Any]:
    noise = {"epsilon": epsilon, "noise": "shared" if arm == SHARED else "hospital"}
    noise |= {"unit": "hospital", "delta": delta} if arm == CENTRAL else {}
    return {"privacy": noise, "secure": {"aggregation": arm in (SHARED, MASKED)}}


def study(
    cells: Sequence[Cell], audits: Sequence[str], shadows: int, out: Path, begin: Begin, show: Show = lambda *_: None
) -> list[dict[str, Any]]:
    """Run what is not finished and attack it; return what is known of all runs, in their order.

    Raises
    ------
    UsageError
        When the folder holds a run of other settings.
    """
    runs.make_folder(out / CELLS)
    worker, found = Worker(), []
    for number, cell in enumerate(cells, start=1):
        path = out / CELLS / f"{cell.name}.json"
        facts = _finished(path, cell, shadows)
        left = [name for name in audits if name not in facts.get("attacked", ())]
        if not facts or left:
            begin(f"{number} of {len(cells)}: {cell.name}")
            facts = _played(cell, left, shadows, worker, facts, show)
            records.write_json(path, facts)
        found.append(facts)
    return found


def _finished(path: Path, cell: Cell, shadows: int) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        same = (facts["scenario"], facts["shadows"]) == (cell.scenario.text(), shadows)
    except (OSError, ValueError, KeyError):
        raise DataError(f"{path}: damaged; delete it, and the same command makes it anew") from None
    if not same:
        raise UsageError(f"{path}: holds a run of other settings; choose another folder with --out")
    return facts


def _played(
    cell: Cell, audits: Sequence[str], shadows: int, worker: Worker, before: dict[str, Any], show: Show
) -> dict[str, Any]:
    """Train, judge and attack."""
    run = cell.scenario.run
    population = populate(cell.scenario)
    outcome, heard = overhear(run, population.hospitals, worker, population.secret)
    pairs: list[Pair] = []
    target = Target(cell.scenario, population, outcome, heard, worker, shadows, pairs.append)
    findings = [finding for name in audits for finding in ATTACKS[name].run(target)]
    if pairs:
        show(cell, pairs)
    for hospital in population.hospitals:
        worker.forget(hospital)
    facts: dict[str, Any] = records.finite(
        {
            "arm": cell.arm,
            "epsilon": str(cell.epsilon),
            "scenario": cell.scenario.text(),
            "shadows": shadows,
            "synthetic": population.dataset.synthetic,
            "hospitals": len(population.hospitals),
            "patients": sum(rows_of(hospital.train) for hospital in population.hospitals),
            "attacked": [*before.get("attacked", ()), *audits],
            "findings": [*before.get("findings", ()), *map(asdict, findings)],
            "utility": _utility(target),
            "privacy": spent(run, outcome.rounds, outcome.members),
        }
    )
    return facts


def _utility(target: Target) -> dict[str, Any]:
    """Judge the final model at every hospital; the harness does so in clear, whatever the run hides from its coordinator."""
    coordinator, model = target.outcome.coordinator.in_clear(), target.outcome.model
    task = coordinator.plan.task
    with flower.identity(coordinator.grid.run.run_id):
        results = results_of(task, coordinator.judge(dict.fromkeys(target.population.names, model))[0])
    metric = task.objective.headline
    each = [row[metric][0] for row in results.hospitals.values()]
    known = [value for value in each if value is not None]
    return {
        "metric": metric,
        "mean of hospitals": statistics.fmean(known) if known else None,
        "pooled": results.pooled[metric][0],
    }


# --- what they say together ---------------------------------------------------------------------------------------------


def lines_of(found: Sequence[Mapping[str, Any]], delta: float) -> list[Line]:
    """Put the seeds together: intervals of 95 %, of Student's t for means, Clopper and Pearson's for shares of trials."""
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for facts in found:
        groups.setdefault((facts["arm"], float(facts["epsilon"])), []).append(facts)
    order = list(ARMS)
    lines = []
    for (arm, epsilon), members in sorted(groups.items(), key=lambda item: (order.index(item[0][0]), item[0][1])):
        for view in ("mean of hospitals", "pooled"):
            values = [facts["utility"][view] for facts in members if facts["utility"][view] is not None]
            metric = members[0]["utility"]["metric"]
            lines.append(
                Line(
                    arm,
                    epsilon,
                    UTILITY,
                    view,
                    metric,
                    mean(values),
                    len(values),
                    "utility" if view == "pooled" else "",
                )
            )
        findings: dict[tuple[str, str, str], list[Finding]] = {}
        for facts in members:
            for row in facts["findings"]:
                findings.setdefault((row["attack"], row["view"], row["measure"]), []).append(_finding(row))
        for key, group in findings.items():
            lines.append(Line(arm, epsilon, *key, _joined(group, delta), len(group), group[0].limit))
    return lines


def _finding(row: Mapping[str, Any]) -> Finding:
    return Finding(**{item.name: row[item.name] for item in fields(Finding)})


def _joined(group: Sequence[Finding], delta: float) -> Estimate:
    if group[0].kind == "share":
        return share(sum(each.hits for each in group), sum(each.trials for each in group))
    if group[0].kind == "bound":
        value = joined(group, delta)
        return Estimate(value, value, math.nan)
    return mean([each.value for each in group])


def mean(values: Sequence[float]) -> Estimate:
    """Return the mean over seeds and its interval (Student 1908); one seed has none.

    >>> [round(part, 3) for part in mean([0.7, 0.8, 0.9])]
    [0.8, 0.552, 1.048]
    """
    from scipy.stats import t

    if not values:
        return Estimate(math.nan, math.nan, math.nan)
    value = statistics.fmean(values)
    half = (
        float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
        if len(values) > 1
        else math.nan
    )
    return Estimate(value, value - half, value + half)


def share(hits: int, trials: int) -> Estimate:
    """Return a share and its exact interval (Clopper and Pearson 1934).

    >>> [round(part, 4) for part in share(0, 100)]
    [0.0, 0.0, 0.0362]
    """
    from scipy.stats import beta

    low = float(beta.ppf(0.025, hits, trials - hits + 1)) if hits else 0.0
    high = float(beta.ppf(0.975, hits + 1, trials - hits)) if hits < trials else 1.0
    return Estimate(hits / trials, low, high)


# --- the gate -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """Whether models of one way to protect, at one epsilon, may be released; ``reasons`` say why not, and ``refuted`` that canaries measured more than is claimed."""

    arm: str
    epsilon: float
    reasons: tuple[str, ...]
    refuted: bool = False


LIMITS = {
    "epsilon": "epsilon that is claimed, at most",
    "bound": "lower bound of epsilon that canaries measure, at most",
    "tpr": "true positive rate of membership inference at 1 % false positives, upper end of the interval, at most",
    "auc": "AUC of membership inference, at most",
    "psnr": "PSNR in dB of what gradient inversion recovers, at most",
    "utility": "metric over all test patients, at least",
}
"""What a release can be held to."""


def verdicts(lines: Sequence[Line], limits: Mapping[str, float]) -> list[Verdict]:
    """Hold every way to protect to the limits. What was not measured is not inside a limit; a measured bound above the claimed epsilon is never released."""
    groups = dict.fromkeys((line.arm, line.epsilon) for line in lines)
    found = []
    for arm, epsilon in groups:
        members = [line for line in lines if (line.arm, line.epsilon) == (arm, epsilon)]
        reasons = [reason for name, limit in limits.items() for reason in _beyond(name, limit, epsilon, members)]
        refuting = [
            f"canaries measured an epsilon of at least {line.estimate.value:.3g}, above the {epsilon:g} that is claimed: the noise is not what it should be"
            for line in members
            if line.limit == "bound" and line.estimate.value > epsilon
        ]
        found.append(Verdict(arm, epsilon, (*reasons, *refuting), bool(refuting)))
    return found


def _beyond(name: str, limit: float, epsilon: float, members: Sequence[Line]) -> list[str]:
    if name == "epsilon" and members[0].arm == CENTRAL:
        return [f"its epsilon is of whole hospitals, which the limit of {limit:g} is not about"]
    if name == "epsilon":
        return [] if epsilon <= limit else [f"epsilon {epsilon:g} is above {limit:g}"]
    lines = [line for line in members if line.limit == name and not line.view.startswith("no update")]
    if not lines:
        return [f"{name} was not measured, and its limit is {limit:g}"]
    if name == "utility":
        return [
            f"{line.measure} {line.estimate.value:.3f} is below {limit:g}"
            for line in lines
            if not line.estimate.value >= limit
        ]
    return [
        f"{line.measure} of {line.attack} ({line.view}) may be {top:.3g}, above {limit:g}"
        for line in lines
        if not (top := _top(line)) <= limit
    ]


def _top(line: Line) -> float:
    """Return the upper end of the interval, or the value where there is none."""
    return line.estimate.value if math.isnan(line.estimate.high) else line.estimate.high


# --- tables -------------------------------------------------------------------------------------------------------------


def as_csv(lines: Sequence[Line], *, synthetic: bool) -> str:
    """Return all lines as CSV, numbers in full; empty where there is none."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["noise", "epsilon", "attack", "view", "measure", "value", "low", "high", "seeds", "data"])
    for line in lines:
        numbers = ["" if math.isnan(part) else part for part in line.estimate]
        row = [line.arm, f"{line.epsilon:g}", line.attack, line.view, line.measure, *numbers, line.seeds]
        table.writerow([*row, "SYNTHETIC" if synthetic else "real"])
    return text.getvalue()


def write(out: Path, name: str, text: str) -> None:
    """Write a file of the study, whole or not at all."""
    models.write(out / name, text.encode())
