"""Runs over real hospitals: their folders, and what they leave."""

import json
import logging
import platform
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from common import supervise
from common.config import RunConfig, as_table, dumps
from common.errors import DataError, RunEnded, UsageError
from common.tasks import read_run
from server import coordinator, models, privacy, records, rounds
from server.plan import Plan
from server.provision import Federation
from server.records import RoundRecord
from server.results import gathered, results_of
from server.rounds import Outcome
from server.secagg import TOGETHER

CONFIG = "config.toml"

_log = logging.getLogger(__name__)


def reopen(folder: Path) -> RunConfig:
    """Read the settings of a run that is to go on.

    Raises
    ------
    UsageError
        When there is no such run, or it is finished.
    DataError
        When its settings are damaged.
    """
    if (folder / records.RUN).exists():
        raise UsageError(f"{folder}: this run is finished")
    try:
        import tomllib

        return read_run(tomllib.loads((folder / CONFIG).read_text(encoding="utf-8")))
    except OSError:
        names = ", ".join(row["name"] for row in listed(folder.parent)) or "none"
        raise UsageError(f"{folder}: no such run; there are: {names}") from None
    except ValueError:
        raise DataError(f"{folder / CONFIG}: damaged; restore it from a backup, or start the run anew") from None


def run(
    federation: Federation, config: RunConfig, folder: Path, watch: Callable[[RoundRecord], None]
) -> dict[str, Any]:
    """Train with the hospitals that are connected, going on from the folder's checkpoint; return the record, which is also in ``run.json``.

    Raises
    ------
    FedwardError
        When the federation is not running, has another run under way, or too few hospitals answered. What was finished stays in the folder.
    """
    with _alone_in(folder), _alone_in_federation(coordinator.place_of(federation)) as place:
        plan = Plan(config, cohort=tuple(member.name for member in federation.members() if not member.revoked))
        _ = plan.strategy  # a contradiction is refused before anything is written
        models.write(folder / CONFIG, dumps(as_table(config)).encode())
        outcome = _through(place, plan, folder, watch)
        record: dict[str, Any] = records.finite(_record(federation, plan, outcome, folder.name))
        records.save_model(folder, plan.task, config.seed, outcome.model)
        records.write_metrics(folder, record)
        records.write_json(folder / records.RUN, record)
        return record


def _through(place: coordinator.Place, plan: Plan, folder: Path, watch: rounds.Watch) -> Outcome:
    """Run; where Flower ends its run, as when a clock jumps or the machine was too busy to tell it anything, another one goes on, unless not one round came of it."""
    before = -1
    while True:
        try:
            with coordinator.grid(place, plan) as grid:
                return rounds.run(grid, plan, folder, watch)
        except RunEnded as error:
            saved = rounds.saved_of(plan, folder)
            done = int(saved.facts["rounds"]) if saved else 0
            if done == before:
                raise
            before = done
            _log.warning("%s; another goes on after round %d", error, done)


@contextmanager
def _alone_in_federation(place: coordinator.Place) -> Iterator[coordinator.Place]:
    """Within, no other process runs any run of a federation: its hospitals answer one at a time, and each other's deadlines would pass."""
    training = place.folder / "training"
    training.mkdir(mode=0o700, exist_ok=True)
    with supervise.marked(training, "; a federation has one run at a time, so wait for it or stop it"):
        yield place


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Within, no other process runs this run. One of which no round was finished leaves nothing to go on with, and its folder goes."""
    kept = True
    try:
        with supervise.marked(folder):
            try:
                yield
            finally:
                kept = (folder / models.NAME).exists()
    finally:
        if not kept:
            (folder / CONFIG).unlink(missing_ok=True)
            with suppress(OSError):
                folder.rmdir()


def _record(federation: Federation, plan: Plan, outcome: Outcome, name: str) -> dict[str, Any]:
    result = results_of(plan.task, outcome.tests) if outcome.tests else None
    return {
        "schema": 1,
        "name": name,
        "federation": federation.name,
        "task": plan.task.name,
        "synthetic": False,
        "title": plan.task.title,
        "headline": plan.task.objective.headline,
        "shown": list(plan.task.objective.shown),
        "seed": plan.config.seed,
        "engine": "deploy",
        "parameters": int(outcome.model.weights.size),
        "weights_sha256": records.sha256(outcome.model.weights),
        "base": outcome.model.base,
        "class_weights": outcome.model.class_weights,
        "layout_sha256": outcome.layout_sha256,
        "stopped": outcome.stopped,
        "trained": outcome.trained,
        "versions": {"python": platform.python_version()}
        | {package: metadata.version(package) for package in ("fedward", "flwr", "tensorflow", "numpy")},
        "hospitals": [asdict(member) for member in outcome.members],
        "rounds": [asdict(row) for row in outcome.rounds],
        "privacy": privacy.spent(plan.config, outcome.rounds, outcome.members),
        "gathered": gathered(outcome.tests),
        "thresholds": {"federated": {TOGETHER: outcome.model.threshold}},
        "results": {"federated": {"pooled": result.pooled, "hospitals": result.hospitals} if result else {}},
    }


def listed(parent: Path) -> list[dict[str, Any]]:
    """Return name, state and progress of all runs."""
    return [_progress(path.parent) for path in sorted(parent.glob(f"*/{CONFIG}"))]


def _progress(folder: Path) -> dict[str, Any]:
    try:
        saved = models.load(folder / models.NAME)
        done = int(saved.facts["rounds"]) if saved else 0
    except DataError:
        done = 0
    of = re.search(r"^rounds = (\d+)", (folder / CONFIG).read_text(encoding="utf-8"), re.MULTILINE)
    under_way = "interrupted" if supervise.running(folder) is None else "running"
    state = "finished" if (folder / records.RUN).exists() else under_way
    return {"name": folder.name, "state": state, "rounds": done, "of": int(of[1]) if of else None}


def line(record: RoundRecord) -> str:
    """Describe a round in one line."""
    loss = "-" if record.train_loss is None else f"{record.train_loss:.4f}"
    dropped = "".join(f"; {row.hospital}: {row.reason}" for row in record.dropped)
    return f"round {record.round:4}  {len(record.answered)} of {len(record.asked)} hospitals  loss {loss}  {record.seconds:.1f} s{dropped}"


def summary(record: dict[str, Any]) -> str:
    """Describe a run's result in a few lines."""
    pooled = record["results"]["federated"].get("pooled", {})
    value = pooled.get(record["headline"])
    told = (
        f"{record['headline']} {value[0]:.3f} ({value[1]:.3f} to {value[2]:.3f})"
        if value and None not in value
        else "no metrics came"
    )
    return f"{record['title']}: {len(record['rounds'])} rounds, {told}\n{_blurred(record)}weights {json.dumps(record['weights_sha256'][:16])}"


def _blurred(record: dict[str, Any]) -> str:
    """Say whose figures are less exact than their intervals; nothing where none are."""
    whose = ", ".join(f"{_whose(name)} ({least})" for name, least in record.get("gathered", {}).items())
    told = f"small counts were gathered at {whose}: these figures are off by more than their intervals say\n"
    return told if whose else ""


def _whose(name: str) -> str:
    return "some of the hospitals" if name == TOGETHER else name
