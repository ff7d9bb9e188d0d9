"""One simulation, from scenario to run folder."""

import datetime as dt
import logging
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid

from client import private
from common import supervise
from common.config import RunConfig, merge
from common.errors import ConfigError, DataError, FedwardError, QuorumError, UsageError
from common.seeds import seed_for
from common.statistics import Statistics
from common.tasks import task_of
from server import models, privacy, records, rounds
from server.app import make_app
from server.plan import Plan
from server.results import differences_of, results_of
from server.rounds import Outcome
from server.secagg import TOGETHER
from simulations import baselines, cards, engines, report
from simulations import scenario as scenarios
from simulations.engines import ENGINES, Done, Engine
from simulations.hospitals import Population, populate
from simulations.scenario import Scenario

CONFIG = "config.toml"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Watcher:
    """What is told of a running simulation: its stages by name, and every round."""

    stage: Callable[[str], None] = lambda _name: None
    round: rounds.Watch = lambda _record: None


def reopen(folder: Path) -> Scenario:
    """Read the scenario of a run folder, to go on with it."""
    path = folder / CONFIG
    if not path.is_file():
        raise UsageError(f"{folder}: not a run folder ({CONFIG} is missing)")
    return scenarios.read(scenarios.find(str(path)))


def on_grid(grid: Grid, context: Context) -> None:
    """Run the scenario that ``flwr run`` names in its settings, over the nodes of its grid, into the folder it names or a new one."""
    given = str(context.run_config["scenario"])
    scenario = scenarios.read(merge(scenarios.tables_of(given), {"simulation": {"engine": "ray"}}))
    named = str(context.run_config["folder"])
    if scenario.run.secure.aggregation:
        raise UsageError(
            "secure.aggregation: the processes that 'flwr run' starts share no secret; take 'fedward simulate --engine ray'"
        )
    folder = Path(named) if named else records.new_folder(Path("runs"), scenario.run.task.name)
    make_folder(folder)

    def engine(
        _scenario: Scenario, _population: Population, plan: Plan, folder: Path, watch: rounds.Watch, done: Done
    ) -> None:
        engines.check_goes_on(folder, plan, "ray")
        make_app(plan, folder, done, watch)(grid, context)

    simulate(scenario, folder, f"fedward simulate {folder / CONFIG}", engine=engine)


def make_folder(folder: Path) -> None:
    """Make a run's folder where there is none.

    Raises
    ------
    DataError
        When it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot make this folder ({error.strerror}); choose another with --out") from None


def is_finished(folder: Path) -> bool:
    """Tell whether a run's folder holds its record and its report."""
    return (folder / records.RUN).is_file() and (folder / report.PAGE).is_file()


def simulate(
    scenario: Scenario, folder: Path, command: str, watcher: Watcher | None = None, engine: Engine | None = None
) -> dict[str, Any]:
    """Run a scenario into a folder, going on from its checkpoint if it has one; return the record, which is also in ``run.json``.

    Raises
    ------
    FedwardError
        For settings that contradict each other, data that is not here, or too few usable updates. What was finished stays in the folder.
    """
    watcher = watcher or Watcher()
    clock = Clock()
    watcher.stage("reading data")
    population = populate(scenario)
    plan = _planned(scenario, population)
    with supervise.marked(folder, "; wait until it has ended, or stop it"):
        saved = rounds.saved_of(plan, folder)  # refused before the settings of a run that was here are overwritten
        warning = f"# {cards.SYNTHETIC}\n" if population.dataset.synthetic else ""
        models.write(folder / CONFIG, (warning + scenario.text()).encode())
        facts = _trained(scenario, population, plan, folder, watcher, clock, engine)
        outcome: Outcome = facts.pop("outcome")
        before = int(saved.facts["rounds"]) if saved else 0
        clock.add("federated", sum(row.seconds for row in outcome.rounds[:before]))
        facts |= {
            "started": clock.started,
            "continued_after": before,
            "seconds": {**clock.laps, "total": clock.total()},
        }
        record: dict[str, Any] = records.finite(_record(scenario, population, outcome, folder.name, command) | facts)
        watcher.stage("writing the report")
        records.save_model(folder, plan.task, scenario.run.seed, outcome.model)
        records.write_metrics(folder, record)
        records.write_json(folder / records.RUN, record)
        report.write_report(folder)
    return record


def _planned(scenario: Scenario, population: Population) -> Plan:
    """Return the plan of a run; contradictions are refused, before anything is written."""
    config, hospitals = scenario.run, len(population.hospitals)
    noise_key = seed_for(config.seed, "noise").generate_state(8).tobytes()
    plan = Plan(config, expected=hospitals, noise_key=noise_key)
    _ = plan.strategy
    if config.selection.minimum > hospitals:
        raise ConfigError(
            f"selection.minimum: expected at most the {hospitals} hospitals of the scenario, got {config.selection.minimum}"
        )
    if config.privacy.at_hospitals:
        _check_privacy(population, config)
    return plan


def _trained(
    scenario: Scenario,
    population: Population,
    plan: Plan,
    folder: Path,
    watcher: Watcher,
    clock: "Clock",
    engine: Engine | None,
) -> dict[str, Any]:
    """Train and compare; return the facts of the record that come of it, and the ``outcome``."""
    watcher.stage("federated training")
    facts: dict[str, Any] = {}

    def done(outcome: Outcome) -> None:
        clock.lap("federated")
        facts.update(_compared(scenario, population, outcome, watcher))
        clock.lap("comparators")
        facts["outcome"] = outcome

    engine = engine or ENGINES[scenario.simulation.engine]
    try:
        engine(scenario, population, plan, folder, watcher.round, done)
    except UsageError:
        if not (folder / models.NAME).exists():
            (folder / CONFIG).unlink()  # a run that was refused leaves nothing to go on with
        raise
    if "outcome" not in facts:
        raise FedwardError(
            f"the engine ended without a model; its log above says why. What is finished is kept in {folder}"
        )
    return facts


def _check_privacy(population: Population, config: RunConfig) -> None:
    """Refuse what a hospital would refuse, before anything is written; the message names the hospital."""
    for hospital in population.hospitals:
        try:
            private.terms(hospital, config, task_of(config.task))
        except ConfigError as error:
            raise ConfigError(f"{hospital.name}: {error}") from None


class Clock:
    """Seconds of the parts of a run."""

    def __init__(self) -> None:
        self._begun = self._last = time.perf_counter()
        self.started = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """Name the time since the last lap."""
        now = time.perf_counter()
        self.laps[name], self._last = round(now - self._last, 3), now

    def add(self, name: str, seconds: float) -> None:
        """Count what a part took before, in a run that is gone on with."""
        self.laps[name] = round(self.laps[name] + seconds, 3)
        self._begun -= seconds

    def total(self) -> float:
        """Return the time since the start, and what was added."""
        return round(time.perf_counter() - self._begun, 3)


def _compared(scenario: Scenario, population: Population, federated: Outcome, watcher: Watcher) -> dict[str, Any]:
    """Train the comparators and judge all models on the same test patients."""
    task = federated.coordinator.plan.task
    coordinator = federated.coordinator.in_clear()  # comparators are the harness's own, which holds all patients
    tests: dict[str, dict[str, Statistics]] = {"federated": federated.tests}
    thresholds: dict[str, dict[str, float | None]] = {"federated": {TOGETHER: federated.model.threshold}}
    differences: dict[str, dict[str, Statistics]] = {}
    for name, comparator in baselines.COMPARATORS.items() if scenario.simulation.comparators else ():
        watcher.stage(comparator.stage)
        judged: dict[str, Statistics] = {}
        joint: dict[str, Statistics] = {}
        at: dict[str, float | None] = {}
        try:
            for trained in comparator.train(population, scenario.run, federated):
                found, decided = coordinator.judge(trained)
                judged |= found
                joint |= coordinator.compare(federated.model, decided)
                at |= {hospital: model.threshold for hospital, model in decided.items()}
        except QuorumError as error:
            _log.warning("no comparison with %s training, which failed: %s", name, error)
            continue
        tests[name], differences[name], thresholds[name] = judged, joint, at
    results = {name: results_of(task, parts) for name, parts in tests.items()}
    return {
        "results": {name: {"pooled": result.pooled, "hospitals": result.hospitals} for name, result in results.items()},
        "curves": {name: result.curves for name, result in results.items()},
        "thresholds": thresholds,
        "differences": {
            # Beside a hospital's own figures, which this harness knows, its difference would tell those that a secure sum hides.
            name: differences_of(task, parts) | ({"hospitals": {}} if scenario.run.secure.aggregation else {})
            for name, parts in differences.items()
        },
    }


def _record(scenario: Scenario, population: Population, outcome: Outcome, name: str, command: str) -> dict[str, Any]:
    task, dataset, table = outcome.coordinator.plan.task, population.dataset, population.table
    return {
        "schema": 1,
        "name": name,
        "task": task.name,
        "title": task.title,
        "synthetic": dataset.synthetic,
        "headline": task.objective.headline,
        "shown": list(task.objective.shown),
        "command": command,
        "seed": scenario.run.seed,
        "engine": scenario.simulation.engine,
        "parameters": int(outcome.model.weights.size),
        "local_parts": list(outcome.model.local_parts),
        "control_variates": outcome.coordinator.plan.strategy.client.controls,
        "statistics": task.summary,
        "weights_sha256": records.sha256(outcome.model.weights),
        "base": outcome.model.base,
        "class_weights": outcome.model.class_weights,
        "layout_sha256": outcome.layout_sha256,
        "stopped": outcome.stopped,
        "trained": outcome.trained,
        "bytes": {way: sum(getattr(row, f"bytes_{way}") for row in outcome.rounds) for way in ("down", "up")},
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        // (1024 * (1024 if sys.platform == "darwin" else 1)),
        "config": scenario.table(),
        "versions": {"python": platform.python_version()}
        | {p: metadata.version(p) for p in ("fedward", "flwr", "tensorflow", "keras", "numpy")},
        "machine": {"system": platform.system(), "processor": platform.machine()},
        "data": {
            **{key: getattr(dataset, key) for key in ("name", "title", "origin", "licence", "citation")},
            "sha256": {file.name: list(file.checksums) for file in (*dataset.files, *dataset.shipped)},
            "rows": len(table),
            "duplicates_removed": table.duplicates_removed,
            "public": bool(dataset.task),
        },
        "classes": list(task.classes),
        "hospitals": [asdict(member) for member in outcome.members],
        "rounds": [asdict(row) for row in outcome.rounds],
        "privacy": privacy.spent(scenario.run, outcome.rounds, outcome.members),
    }
