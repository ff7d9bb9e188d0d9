"""The round loop: select, send, receive, check, accumulate, save.

It runs on any Flower ``Grid``. Answers are taken in the order of the hospitals' names, whatever the order in which they arrive, so that sums are
bit-equal; a bad or absent hospital costs its own update and nothing else.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from common import messages, wire
from common import network as networks
from common.config import RunConfig
from common.errors import ConfigError, QuorumError, UpdateRejected
from common.layout import Vector
from common.messages import Reply, group
from common.network import seed_for
from common.statistics import Statistics, total
from common.tasks import task_of
from common.tasks.task import Records, Task
from common.update import Update
from server import models
from server.records import Dropped, Member, Model, Part, Results, RoundRecord
from server.strategies import strategy_of
from server.strategies.strategy import State, Strategy

Watch = Callable[[RoundRecord], None]

MOST = 1e15
"""Largest sum over its patients that a hospital may report: far beyond any real one, and far below where sums of them overflow."""
DTYPES = {"number": np.float64, "category": np.float64, "image": np.uint8, "text": np.object_}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a finished run leaves. ``tests`` are each hospital's statistics of its test patients under the final model."""

    model: Model
    layout_sha256: str
    members: list[Member]
    rounds: list[RoundRecord]
    tests: dict[str, Statistics]
    stopped: str
    coordinator: "Coordinator"


@dataclass(frozen=True)
class Plan:
    """What is fixed before round 1. ``personal`` is false for comparators: then no part of the model stays at a hospital."""

    config: RunConfig
    personal: bool = True

    @cached_property
    def task(self) -> Task:
        """Return the task."""
        return task_of(self.config.task)

    @cached_property
    def strategy(self) -> Strategy:
        """Return the strategy.

        Raises
        ------
        ConfigError
            When the strategy keeps a part at the hospital that the task's model does not have.
        """
        strategy = strategy_of(self.config.strategy)
        for part in strategy.client.local_parts:
            if not self.task.parts.get(part):
                raise ConfigError(
                    f"strategy.name: {self.config.strategy.name!r} keeps the part {part!r} of the model at each hospital, "
                    f"and this task's model has none; its parts: {', '.join(self.task.parts) or 'none'}"
                )
        return strategy

    @cached_property
    def local_parts(self) -> tuple[str, ...]:
        """Return the parts that stay at the hospital."""
        return (*self.task.local, *self.strategy.client.local_parts) if self.personal else ()

    @cached_property
    def text(self) -> str:
        """Return the settings as they travel."""
        return messages.run_text(self.config)


def run(grid: Grid, plan: Plan, folder: Path | None = None, watch: Watch | None = None) -> Outcome:
    """Train over the grid's hospitals and judge the result; with a folder, save after every round and go on from what is saved there.

    ``watch`` is told of a round before it is saved: what it keeps beside the checkpoint is there when the checkpoint is.

    Raises
    ------
    QuorumError
        When too few hospitals answered in a round and in its retries; the last whole round stays saved.
    """
    _ = plan.strategy  # a contradiction is refused before anyone is asked
    fleet = _enrol(grid, plan)
    saved = models.load(folder / models.NAME) if folder else None
    preparation = saved.facts["preparation"] if saved else plan.task.fit(fleet.statistics)
    weights, layout = networks.initial(plan.task, preparation, plan.local_parts, plan.config.seed)
    state = dict(saved.state) if saved else plan.strategy.init(weights, len(fleet.members))
    history = [RoundRecord.from_facts(facts) for facts in saved.facts["rounds"]] if saved else []
    coordinator = Coordinator(grid, plan, fleet, networks.dumps(preparation))
    if not history:
        _keep_best(state, history, plan.config)
    with models.Saver(folder / models.NAME if folder else None, [asdict(row) for row in history]) as saver:
        while not (stopped := _stopped(history, plan.config)):
            record = coordinator.round(len(history) + 1, state)
            history.append(record)
            _keep_best(state, history, plan.config)
            if watch:
                watch(record)
            saver.save(state, {"preparation": preparation}, asdict(record))
    final = state.get("best", state["weights"]) if stopped == "patience" else state["weights"]
    model = Model(final, coordinator.preparation, plan.local_parts)
    return Outcome(model, layout.digest, fleet.members, history, coordinator.judge(model), stopped, coordinator)


@dataclass(frozen=True)
class Fleet:
    """The hospitals that answered the first question, by name, with the sum of their statistics."""

    nodes: Mapping[str, int]
    members: list[Member]
    statistics: Statistics


def _enrol(grid: Grid, plan: Plan) -> Fleet:
    """Ask every node for its name, counts and the task's statistics; statistics are added in the order of the names."""
    config = plan.config
    content = messages.pack_request(plan.text, {}, {})
    nodes = _wait_for_nodes(grid, config)
    requests = {str(node): Message(content, dst_node_id=node, message_type=messages.STATISTICS) for node in nodes}
    replies: dict[str, tuple[int, Reply]] = {}
    refused: set[str] = set()
    for node, message in exchange(grid, requests, config.limits.deadline_seconds):
        try:
            reply = _content_of(message, config)
            _check_enrolment(reply, plan.task)
        except UpdateRejected as error:
            _log.warning("node %s is left out of the run: %s (%s)", node, error.code, error)
            refused.add(error.code)
            continue
        replies.setdefault(reply.texts["hospital"], (int(node), reply))
    ordered = [(name, *replies[name]) for name in sorted(replies)]
    if len(ordered) < config.selection.minimum:
        raise QuorumError(
            f"{len(ordered)} hospitals are here, and selection.minimum asks for {config.selection.minimum}"
            + (f"; others were left out for {', '.join(sorted(refused))}" if refused else "")
        )
    members = [_member(name, group("count", reply.statistics)) for name, _, reply in ordered]
    statistics = total(group("task", reply.statistics) for *_, reply in ordered)
    return Fleet({name: node for name, node, _ in ordered}, members, statistics)


def _wait_for_nodes(grid: Grid, config: RunConfig) -> list[int]:
    end = time.monotonic() + config.limits.deadline_seconds
    while len(nodes := sorted(grid.get_node_ids())) < config.selection.minimum and time.monotonic() < end:
        time.sleep(0.1)
    return nodes


def _member(name: str, counts: Statistics) -> Member:
    parts = {part: [int(count) for count in counts[part]] for part in ("train", "validation", "test")}
    return Member(name, **{part: Part(sum(classes), classes) for part, classes in parts.items()})


def exchange(grid: Grid, requests: Mapping[str, Message], seconds: float) -> Iterator[tuple[str, Message | None]]:
    """Send requests and yield each answer under its key, in the order of ``requests``; None for what has not come after ``seconds``.

    An answer that arrives early stays with the grid until its turn, so that only one is ever held here.
    """
    end = time.monotonic() + seconds
    identities = list(grid.push_messages(list(requests.values())))
    for key, identity in zip(requests, identities, strict=True):
        yield key, _await(grid, identity, end)


def _await(grid: Grid, identity: str, end: float) -> Message | None:
    pause = 0.02
    while True:
        for message in grid.pull_messages([identity]):
            return message
        left = end - time.monotonic()
        if left <= 0:
            return None
        time.sleep(min(pause, left))
        pause = min(pause * 1.5, 1.0)


@dataclass(frozen=True)
class Coordinator:
    """One run's side of the conversation; what changes from round to round is the strategy's state, which each round is given."""

    grid: Grid
    plan: Plan
    fleet: Fleet
    preparation: str

    @property
    def config(self) -> RunConfig:
        """Return the run's settings."""
        return self.plan.config

    def round(self, number: int, state: State) -> RoundRecord:
        """Run one round, which changes ``state``; hospitals that failed are asked again until the quorum is there.

        Raises
        ------
        QuorumError
            When it is still not there after ``limits.retries`` further attempts.
        """
        begun = time.perf_counter()
        asked = self.select(number)
        need = max(math.ceil(self.config.limits.quorum * len(asked)), self.plan.strategy.minimum_updates)
        tally = Tally(self.plan.task, [member.name for member in self.fleet.members])
        waiting, attempt = asked, 0
        while True:
            self._attempt(number, attempt, waiting, state, tally)
            waiting = [name for name in asked if name not in tally.answered]
            if len(tally.answered) >= need:
                break
            if attempt == self.config.limits.retries:
                reasons = ", ".join(f"{row.hospital}: {row.reason}" for row in tally.dropped[-5:])
                raise QuorumError(
                    f"round {number}: {len(tally.answered)} of {len(asked)} hospitals sent a usable update, {need} are needed ({reasons})"
                )
            attempt += 1
        before = state["weights"]
        weights = self.plan.strategy.finish(state)
        norm = float(np.linalg.norm(weights - before))
        return replace(tally.record(number, asked), seconds=time.perf_counter() - begun, update_norm=norm)

    def select(self, number: int) -> list[str]:
        """Draw the hospitals of a round, in the order of their names; the draw follows from seed and round number alone."""
        names, selection = list(self.fleet.nodes), self.config.selection
        count = min(max(round(selection.fraction * len(names)), selection.minimum), len(names))
        if count == len(names):
            return names
        generator = np.random.default_rng(seed_for(self.config.seed, "select", number))
        return [names[index] for index in sorted(generator.choice(len(names), count, replace=False))]

    def _attempt(self, number: int, attempt: int, names: list[str], state: State, tally: "Tally") -> None:
        every = self.config.evaluation.every
        options = {"server-round": number, "attempt": attempt, "evaluate": bool(every) and (number - 1) % every == 0}
        arrays = {"weights": state["weights"]} | (
            {"control": state["control"]} if self.plan.strategy.client.controls else {}
        )
        content = self._content(arrays, options)
        down = messages.bytes_of(content)
        size = len(state["weights"])
        requests = {name: self._message(name, content, messages.TRAIN, f"{number}.{attempt}") for name in names}
        for name, message in exchange(self.grid, requests, self.config.limits.deadline_seconds):
            tally.bytes_down += down
            try:
                update = check(name, message, size, self.plan, tally)
            except UpdateRejected as error:
                tally.dropped.append(Dropped(name, error.code, str(error)))
                continue
            self.plan.strategy.accumulate(state, update)
            tally.add(update)

    def judge(self, model: Model) -> dict[str, Statistics]:
        """Have every hospital judge a model on its test patients; return their statistics by hospital."""
        content = self._content({"weights": model.weights}, _described(model))
        requests = {name: self._message(name, content, messages.EVALUATE, "judge") for name in self.fleet.nodes}
        return self._gather(requests, "test")

    def compare(self, model: Model, others: Mapping[str, Model]) -> dict[str, Statistics]:
        """Have hospitals judge ``model`` beside another one, which may differ by hospital; return joint statistics by hospital."""
        requests = {}
        for name, other in others.items():
            described = {**_described(model), "other-preparation": other.preparation}
            content = self._content({"weights": model.weights, "other": other.weights}, described)
            requests[name] = self._message(name, content, messages.COMPARE, "compare")
        return self._gather(requests, "compare")

    def _gather(self, requests: Mapping[str, Message], part: str) -> dict[str, Statistics]:
        """Return one group of each answer's statistics; hospitals without a usable answer, or without patients for it, are left out."""
        found: dict[str, Statistics] = {}
        for name, message in exchange(self.grid, requests, self.config.limits.deadline_seconds):
            try:
                statistics = group(part, _content_of(message, self.config).statistics)
                if statistics:
                    _check_sums(statistics, _judged(self.plan.task, part), -MOST if part == "compare" else 0.0)
            except UpdateRejected as error:
                _log.warning("%s: statistics left out: %s (%s)", name, error.code, error)
                continue
            found.update({name: statistics} if statistics else {})
        return found

    def _content(self, arrays: Mapping[str, Vector], options: Mapping[str, bool | int | float | str]) -> RecordDict:
        common: dict[str, bool | int | float | str] = {
            "preparation": self.preparation,
            "local-parts": ",".join(self.plan.local_parts),
            "proximal": self.plan.strategy.client.proximal,
        }
        return messages.pack_request(self.plan.text, arrays, common | dict(options))

    def _message(self, name: str, content: RecordDict, kind: str, label: str) -> Message:
        return Message(content, dst_node_id=self.fleet.nodes[name], message_type=kind, group_id=label)


class Tally:
    """What has come in during a round."""

    def __init__(self, task: Task, names: list[str]) -> None:
        self._task = task
        self._names = names
        self.answered: list[str] = []
        self.dropped: list[Dropped] = []
        self.bytes_down = 0
        self.bytes_up = 0
        self.examples = 0
        self.statistics: dict[str, Statistics] = {}

    def add(self, update: Update) -> None:
        """Count a usable update."""
        self.answered.append(update.hospital)
        self.examples += update.num_examples
        self.statistics[update.hospital] = update.statistics

    def record(self, number: int, asked: list[str]) -> RoundRecord:
        """Return the record of the round, its duration left open."""
        values = self._task.objective.values
        tests = {name: group("test", parts) for name, parts in self.statistics.items()}
        tests = {name: parts for name, parts in tests.items() if parts}
        validation = [parts for parts in (group("validation", each) for each in self.statistics.values()) if parts]
        loss, steps = total([{"loss": each["train/loss"]} for each in self.statistics.values()])["loss"]
        return RoundRecord(
            round=number,
            asked=asked,
            answered=sorted(self.answered),
            dropped=self.dropped,
            bytes_down=self.bytes_down,
            bytes_up=self.bytes_up,
            seconds=0.0,
            examples=self.examples,
            train_loss=float(loss / steps) if steps else None,
            validation_loss=values(total(validation))["log_loss"] if validation else None,
            update_norm=0.0,
            metrics=values(total(tests.values())) if tests else {},
            hospitals={name: values(parts) for name, parts in tests.items()},
        )


def check(name: str, message: Message | None, size: int, plan: Plan, tally: Tally) -> Update:
    """Turn an answer that may come from anyone into an update, or say why not.

    Raises
    ------
    UpdateRejected
        With the code ``late``, the hospital's own code, ``missing``, ``extra``, ``shape``, ``dtype``, ``range``, ``count``, ``nan``, ``inf`` or ``norm``.
    """
    if message is not None and message.has_content():
        tally.bytes_up += messages.bytes_of(message.content)
    reply = _content_of(message, plan.config)
    if not 0 < reply.num_examples <= plan.config.limits.examples:
        raise UpdateRejected("count", f"num-examples: expected 1 to {plan.config.limits.examples}")
    controls = plan.strategy.client.controls
    vector = wire.CODECS[plan.config.update.codec].decode(reply.arrays, size * (2 if controls else 1))
    _check_values(vector, plan.config.limits.update_norm)
    _check_statistics(reply.statistics, plan.task)
    return Update(name, vector[:size], reply.num_examples, vector[size:] if controls else None, reply.statistics)


def _content_of(message: Message | None, config: RunConfig) -> Reply:
    if message is None:
        raise UpdateRejected("late", f"no answer within {config.limits.deadline_seconds:g} s")
    if not message.has_content():
        raise UpdateRejected(_code(message.error.reason), "the hospital answered with an error")
    return messages.unpack_reply(message.content)


def _check_values(vector: Vector, cap: float) -> None:
    with np.errstate(all="ignore"):
        norm = math.sqrt(float(np.dot(vector, vector)))
    # One pass decides in the usual case: a finite norm means that every value is finite.
    if not math.isfinite(norm):
        if np.isnan(vector).any():
            raise UpdateRejected("nan", "the update holds NaN")
        if np.isinf(vector).any():
            raise UpdateRejected("inf", "the update holds Inf")
        raise UpdateRejected(
            "norm", "the update's norm is beyond float32; times its count of patients, it would be Inf in the sum"
        )
    if cap and norm > cap:
        raise UpdateRejected("norm", f"the update's norm {norm:.3g} is above limits.update_norm {cap:g}")


def _check_enrolment(reply: Reply, task: Task) -> None:
    if not reply.texts.get("hospital"):
        raise UpdateRejected("missing", "the hospital's name is missing")
    nobody: Records = {column.name: np.zeros((0, *column.shape), DTYPES[column.kind]) for column in task.columns}
    moments = {name: value.shape for name, value in task.summarise(nobody).items()}
    counts = dict.fromkeys(("train", "validation", "test"), (len(task.classes),))
    _check_sums(group("task", reply.statistics), moments, -MOST)
    _check_sums(group("count", reply.statistics), counts)


def _check_statistics(statistics: Statistics, task: Task) -> None:
    shapes: dict[str, tuple[int, ...]] = {"train/loss": (2,)}
    for part in ("test", "validation"):
        if group(part, statistics):
            shapes |= {f"{part}/{name}": shape for name, shape in _judged(task, part).items()}
    _check_sums(statistics, shapes)


def _judged(task: Task, part: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the statistics that a model is judged by, or two by comparison."""
    labels, scores = np.zeros(0, np.int32), np.zeros((0, len(task.classes)))
    objective = task.objective
    empty = objective.compare(labels, scores, scores) if part == "compare" else objective.summarise(labels, scores)
    return {name: value.shape for name, value in empty.items()}


def _check_sums(statistics: Statistics, shapes: Mapping[str, tuple[int, ...]], least: float = 0.0) -> None:
    """Refuse statistics that are not exactly those expected; their names are the sender's own words and stay out of the message."""
    for name, shape in shapes.items():
        if name not in statistics:
            raise UpdateRejected("missing", f"statistic {name!r} is missing")
        value = statistics[name]
        if value.shape != shape:
            raise UpdateRejected("shape", f"statistic {name!r}: expected shape {shape}, got {value.shape}")
        if value.dtype != np.float64 or not np.isfinite(value).all():
            raise UpdateRejected("dtype", f"statistic {name!r}: expected finite float64")
        if value.size and not least <= value.min() <= value.max() <= MOST:
            raise UpdateRejected("range", f"statistic {name!r}: expected sums from {least:g} to {MOST:g}")
    if len(statistics) > len(shapes):
        raise UpdateRejected("extra", f"a statistic came that is not expected; expected: {', '.join(shapes)}")


def _described(model: Model) -> dict[str, str]:
    return {"preparation": model.preparation, "local-parts": ",".join(model.local_parts)}


def _code(reason: str | None) -> str:
    """Keep a hospital's error code only where it is one: a short word, never a sentence."""
    return reason if reason and reason.isidentifier() and len(reason) <= 32 else "error"


def results_of(task: Task, statistics: Mapping[str, Statistics]) -> Results:
    """Compute metrics with intervals by hospital and over all test patients."""
    merged = total(statistics.values())
    hospitals = {name: _intervals(task.objective.compute(parts)) for name, parts in statistics.items()}
    return Results(_intervals(task.objective.compute(merged)), hospitals, task.objective.curves(merged))


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


def _keep_best(state: State, history: list[RoundRecord], config: RunConfig) -> None:
    """Keep the model with the lowest loss so far; a round's loss judges the model that it started from, so the state before it is what counts."""
    if not config.stopping.patience:
        return
    if history and _rounds_without_gain(history, config) == 0:
        state["best"] = state["candidate"]
    state["candidate"] = state["weights"]


def _rounds_without_gain(history: list[RoundRecord], config: RunConfig) -> int:
    best, since = math.inf, 0
    for record in history:
        loss = record.validation_loss
        gained = loss is not None and loss < best - config.stopping.min_delta
        best, since = (loss, 0) if gained and loss is not None else (best, since + 1)
    return since


def _stopped(history: list[RoundRecord], config: RunConfig) -> str:
    """Return why the run is over: ``rounds``, ``patience``, or nothing while it is not."""
    if len(history) >= config.rounds:
        return "rounds"
    patience = config.stopping.patience
    # Only a round that judged a model can tell that it brought no gain.
    judged = bool(history) and history[-1].validation_loss is not None
    return "patience" if patience and judged and _rounds_without_gain(history, config) >= patience else ""
