"""The round loop: select, send, receive, check, accumulate, save.

It runs on any Flower ``Grid``. Answers are taken in the order of the hospitals' names, whatever the order in which they arrive, so that sums are
bit-equal; a bad or absent hospital costs its own update and nothing else.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from common import balance, messages
from common import network as networks
from common.config import PrivacyConfig, RunConfig, SecureConfig
from common.errors import ConfigError, QuorumError, UpdateRejected
from common.layout import Vector
from common.messages import Reply, group
from common.privacy import dpsgd
from common.privacy.events import to_text
from common.seeds import seed_for
from common.statistics import Statistics, Total, total
from common.tasks.task import Preparation, Task
from common.update import Update
from server import checks, models, results
from server.plan import Plan
from server.records import Dropped, Member, Model, Part, RoundRecord
from server.secagg import TOGETHER, SecureSums, Step
from server.strategies.strategy import State

K = TypeVar("K")
Watch = Callable[[RoundRecord], None]
ROUNDING = 1e-9
"""What a share of a count may be too large by, as 0.55 of 100 is."""
JUDGE = "judge"
"""The label of the secure sum by which the final model is judged."""
GRACE = 5.0
"""Seconds that a request outlives its deadline; then Flower forgets it, so that a hospital that was cut off does not train for rounds that are over."""
BACK_SECONDS = 30.0
"""How long a run that begins waits for workers that are being started again, and a run that goes on for hospitals that were in it before."""
AGAIN_SECONDS = 3.0
"""How long nobody is asked again after a round's attempts have failed."""
GONE = ("worker", "lost")
"""Codes of hospitals whose programs have ended, and are started again by themselves."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a finished run leaves.

    ``tests`` are each hospital's statistics of its test patients under the final model, which is that after ``trained`` rounds: all, or with early
    stopping those up to the lowest loss. After secure sums they are those of all hospitals together, under the name `server.secagg.TOGETHER`.
    """

    model: Model
    layout_sha256: str
    members: list[Member]
    rounds: list[RoundRecord]
    trained: int
    tests: dict[str, Statistics]
    stopped: str
    coordinator: "Coordinator"


def run(grid: Grid, plan: Plan, folder: Path | None = None, watch: Watch | None = None) -> Outcome:
    """Train over the grid's hospitals and judge the result; with a folder, save after every round and go on from what is saved there.

    ``watch`` is told of a round before it is saved: what it keeps beside the checkpoint is there when the checkpoint is.

    Raises
    ------
    QuorumError
        When too few hospitals answered in a round and in its retries; the last whole round stays saved.
    """
    _ = plan.strategy  # a contradiction is refused before anyone is asked
    saved = saved_of(plan, folder) if folder else None
    fleet = _enrol(grid, plan, int(saved.facts.get("hospitals", 0)) if saved else 0)
    preparation = saved.facts["preparation"] if saved else _agreed(plan, fleet)
    for remark in plan.task.remarks(preparation) if plan.task.remarks else ():
        _log.warning("before training: %s", remark)
    network = networks.build(plan.task, preparation, plan.local_parts, plan.config.seed)
    if plan.config.privacy.at_hospitals:
        dpsgd.check(network.model)
    weights, layout = network.vectors()[0], network.shared
    state = dict(saved.state) if saved else plan.strategy.init(weights, len(fleet.members))
    history = [RoundRecord.from_facts(facts) for facts in models.history(folder, saved)] if folder and saved else []
    sums = SecureSums(plan.config, plan.text, grid.run.run_id, fleet.rows) if plan.config.secure.aggregation else None
    coordinator = Coordinator(grid, plan, fleet, networks.dumps(preparation), layout.digest, sums)
    if not history:
        _keep_best(state, history, plan.config)
    with models.Saver(folder, saved) as saver:
        while not (stopped := _stopped(history, plan.config)):
            coordinator = coordinator.with_late_ones()
            record = coordinator.round(len(history) + 1, state)
            history.append(record)
            _keep_best(state, history, plan.config)
            if watch:
                watch(record)
            facts = {
                "run": plan.text,
                "preparation": preparation,
                "rounds": len(history),
                "hospitals": len(coordinator.fleet.members),
            }
            saver.save(state, facts, asdict(record))
    model = Model(state.get("best", state["weights"]), coordinator.preparation, plan.local_parts)
    trained = len(history) - (_rounds_without_gain(history, plan.config) + 1 if "best" in state else 0)
    fleet = coordinator.fleet
    tests, decided = (
        coordinator.judge_together(sums, model) if sums else coordinator.judge(dict.fromkeys(fleet.nodes, model))
    )
    return Outcome(
        next(iter(decided.values())), layout.digest, fleet.members, history, trained, tests, stopped, coordinator
    )


def _agreed(plan: Plan, fleet: "Fleet") -> Preparation:
    """Return what the hospitals' sums tell before round 1: the task's preparation, and with it the class weights where the run has any."""
    fitted = plan.task.fit(fleet.statistics)
    if plan.config.training.class_weights == "none":
        return fitted
    counts = np.array([member.train.classes for member in fleet.members])
    return {**fitted, balance.KEY: balance.weights_of(counts.sum(axis=0))}


def saved_of(plan: Plan, folder: Path) -> models.Checkpoint | None:
    """Return what was saved of a run in a folder; None where nothing was.

    Raises
    ------
    ConfigError
        When it is of a run with other settings.
    """
    saved = models.load(folder / models.NAME)
    # Read, since an earlier release knew fewer settings; one that it did not write has its default.
    if saved and messages.run_config(str(saved.facts.get("run"))) != plan.config:
        raise ConfigError(f"{folder}: its checkpoint is of a run with other settings; choose another folder")
    return saved


@dataclass(frozen=True)
class Fleet:
    """The hospitals that answered the first question, by name, with the sum of their statistics. ``asked`` are the nodes that were asked it, ``refused`` the codes of those that are left out."""

    nodes: Mapping[str, int] = field(default_factory=dict)
    members: list[Member] = field(default_factory=list)
    statistics: Statistics = field(default_factory=dict)
    asked: frozenset[int] = frozenset()
    refused: frozenset[str] = frozenset()

    @cached_property
    def rows(self) -> dict[str, int]:
        """Return each hospital's count of training patients, which no update of it may exceed."""
        return {member.name: member.train.rows for member in self.members}

    def joined(self, grid: Grid, plan: Plan, nodes: list[int]) -> "Fleet":
        """Ask nodes for their names, counts and the task's statistics, and return the fleet with them. Statistics are added in the order of the names."""
        nodes_of, members, refused, statistics = dict(self.nodes), list(self.members), set(self.refused), Total()
        for node, reply in _introduced(grid, plan, nodes, _company(plan, len(self.nodes) + len(nodes))):
            if isinstance(reply, UpdateRejected):
                _log.warning("node %s is left out of the run: %s (%s)", node, reply.code, reply)
                refused.add(reply.code)
                continue
            name = reply.texts["hospital"]
            if name in nodes_of:
                _log.warning("node %s is left out of the run: another one calls itself %r too", node, name)
                refused.add("name")
                continue
            nodes_of[name] = node
            hidden = plan.config.privacy.at_hospitals
            members.append(_member(name, group("count", reply.statistics), sorted_out=not hidden))
            statistics.add(name, group("task", reply.statistics))
        members.sort(key=lambda member: member.name)
        in_order = {member.name: nodes_of[member.name] for member in members}
        return Fleet(
            in_order, members, self.statistics or statistics.result(), self.asked.union(nodes), frozenset(refused)
        )


def _enrol(grid: Grid, plan: Plan, before: int) -> Fleet:
    """Ask every node for what it says of itself; refuse a run for which too few are here."""
    config, fleet = plan.config, Fleet().joined(grid, plan, _wait_for_nodes(grid, plan, before))
    wanted = max(config.selection.minimum, min(2, len(plan.cohort)))
    if len(fleet.members) < wanted:
        asks = "selection.minimum asks for" if wanted == config.selection.minimum else "a federation of several takes"
        raise QuorumError(
            f"{len(fleet.members)} hospitals are here, and {asks} {wanted}"
            + (f"; others were left out for {', '.join(sorted(fleet.refused))}" if fleet.refused else "")
        )
    drawn = drawn_of(len(fleet.members), config)
    if drawn < plan.fewest:
        raise ConfigError(
            f"strategy.name: {config.strategy.name!r} needs {plan.fewest} updates a round, and {drawn} hospitals are drawn; "
            "take more hospitals, a larger selection.fraction, or another strategy"
        )
    return fleet


def _introduced(
    grid: Grid, plan: Plan, nodes: list[int], company: Mapping[str, bool | int | float | str]
) -> Iterator[tuple[int, Reply | UpdateRejected]]:
    """Yield what each node says of itself; those whose programs are being started again are asked again for a while."""
    end, config = time.monotonic() + BACK_SECONDS, plan.config
    content, life = messages.pack_request(plan.text, {}, company), _life(config)
    while nodes:
        requests = {
            node: Message(content, dst_node_id=node, message_type=messages.STATISTICS, ttl=life) for node in nodes
        }
        nodes = []
        for node, message in exchange(grid, requests, config.limits.deadline_seconds):
            try:
                reply = checks.reply_of(message, config)
                checks.check_enrolment(reply, plan.task)
            except UpdateRejected as error:
                if error.code in GONE and time.monotonic() < end:
                    nodes.append(node)
                else:
                    yield node, error
            else:
                yield node, reply
        time.sleep(AGAIN_SECONDS if nodes else 0)


def _life(config: RunConfig) -> float:
    return config.limits.deadline_seconds + GRACE


def _company(plan: Plan, hospitals: int) -> dict[str, bool | int | float | str]:
    """Say in whose company a hospital is asked: how many there are, and their names where the plan has them."""
    return {"hospitals": hospitals, "cohort": "\n".join(plan.cohort)}


def _wait_for_nodes(grid: Grid, plan: Plan, before: int) -> list[int]:
    """Return the nodes that are there, when they are as many as are wanted, and as were there ``before``; or too much time has gone by."""
    deadline = plan.config.limits.deadline_seconds
    wanted = max(plan.config.selection.minimum, plan.expected)
    for count, seconds in ((wanted, deadline), (before, min(BACK_SECONDS, deadline))):
        end = time.monotonic() + seconds
        while len(list(grid.get_node_ids())) < count and time.monotonic() < end:
            time.sleep(0.1)
    return sorted(grid.get_node_ids())


def _member(name: str, counts: Statistics, *, sorted_out: bool) -> Member:
    """Return a hospital's counts; by class only where they are ``sorted_out``: under differential privacy the shares of the classes are made up."""
    parts = {part: [int(count) for count in counts[part]] for part in ("train", "validation", "test")}
    told = {part: Part(sum(classes), classes if sorted_out else []) for part, classes in parts.items()}
    return Member(name, **told)


def exchange(grid: Grid, requests: Mapping[K, Message], seconds: float) -> Iterator[tuple[K, Message | None]]:
    """Send requests and yield each answer under its key, in the order of ``requests``; None for what has not come after ``seconds``.

    An answer that arrives early stays with the grid until its turn, so that only one is ever held here.
    """
    end = time.monotonic() + seconds
    if hasattr(grid, "give_up_at"):  # a grid over a network, where an answer can come in part
        grid.give_up_at = end
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
        pause = min(pause * 1.5, 0.25)


@dataclass(frozen=True)
class Coordinator:
    """One run's side of the conversation; what changes from round to round is the strategy's state, which each round is given."""

    grid: Grid
    plan: Plan
    fleet: Fleet
    preparation: str
    layout: str
    sums: SecureSums | None = None

    @property
    def config(self) -> RunConfig:
        """Return the run's settings."""
        return self.plan.config

    def with_late_ones(self) -> "Coordinator":
        """Return the coordinator with hospitals that came after the run had begun, from this round on; what they are prepared by stays as it is.

        Secure sums, SCAFFOLD's control variates and privacy's arithmetic are over those who were there at the start: then nobody joins.
        """
        privacy = self.config.privacy
        bound = self.sums or self.plan.strategy.client.controls or privacy.at_hospitals or privacy.at_coordinator
        late = [] if bound else sorted(set(self.grid.get_node_ids()) - self.fleet.asked)
        return replace(self, fleet=self.fleet.joined(self.grid, self.plan, late)) if late else self

    def round(self, number: int, state: State) -> RoundRecord:
        """Run one round, which changes ``state``; hospitals that failed are asked again until the quorum is there.

        Raises
        ------
        QuorumError
            When it is still not there after ``limits.retries`` further attempts, and those of the following ``limits.wait_seconds``.
        """
        begun = time.perf_counter()
        asked = self.select(number)
        need = max(math.ceil(self.config.limits.quorum * len(asked) - ROUNDING), self.plan.fewest)
        tally = Tally(self.plan.task)
        waiting, attempt, end = asked, 0, 0.0
        while True:
            if self.sums:
                self._sum(self.sums, f"{number}.{attempt}", asked, need, state, tally)
            else:
                self._attempt(number, attempt, waiting, state, tally)
            answered = {*tally.answered}
            waiting = [name for name in asked if name not in answered]
            missing = need - len(tally.answered)
            if missing <= 0:
                break
            if attempt == self.config.limits.retries:
                end = time.monotonic() + self.config.limits.wait_seconds
            if attempt >= self.config.limits.retries and not self._are_back(number, waiting, missing, end):
                raise QuorumError(
                    f"round {number}: {len(tally.answered)} of {len(asked)} hospitals sent a usable update, {need} are needed; {_explained(tally.dropped)}"
                )
            attempt += 1
        before = state["weights"]
        weights = self.plan.strategy.finish(state)
        norm = float(np.linalg.norm(weights - before))
        return replace(tally.record(number, asked), seconds=time.perf_counter() - begun, update_norm=norm)

    def _are_back(self, number: int, names: list[str], count: int, end: float) -> bool:
        """Wait until so many of the hospitals named are connected; tell whether they are, before the time is over."""
        nodes = {self.fleet.nodes[name] for name in names}
        while (left := end - time.monotonic()) > 0:
            _log.warning("round %d waits for %d of %s, for %.0f s more", number, count, ", ".join(names), left)
            time.sleep(min(AGAIN_SECONDS, left))
            if len(nodes.intersection(self.grid.get_node_ids())) >= count:
                return True
        return False

    def select(self, number: int) -> list[str]:
        """Draw the hospitals of a round, in the order of their names; the draw follows from seed and round number alone."""
        names = list(self.fleet.nodes)
        if self.config.privacy.at_coordinator:
            return self.plan.hospital_privacy.sample(names, number)
        count = drawn_of(len(names), self.config)
        if count == len(names):
            return names
        generator = np.random.default_rng(seed_for(self.config.seed, "select", number))
        return [names[index] for index in sorted(generator.choice(len(names), count, replace=False))]

    def _sum(self, sums: SecureSums, label: str, names: list[str], need: int, state: State, tally: "Tally") -> None:
        """Take one secure sum for all updates; where it fails, nothing of it is known, and a further attempt takes new masks."""
        number, attempt = map(int, label.split("."))
        last = number == self.config.rounds
        upcoming, members = (JUDGE, list(self.fleet.nodes)) if last else (f"{number + 1}.0", self.select(number + 1))
        step = Step(label, names, *self._asked(number, attempt, state), need, upcoming, members)
        try:
            update, survivors = sums.train(Channel(self, tally), step)
        except QuorumError as error:
            tally.dropped.append(Dropped(TOGETHER, "secure", str(error)))
            return
        self.plan.strategy.accumulate(state, update)
        tally.add(update)
        tally.answered = survivors

    def _asked(self, number: int, attempt: int, state: State) -> tuple[dict[str, Vector], dict[str, bool | int | str]]:
        """Return arrays and options of a request to train."""
        every = self.config.evaluation.every
        options: dict[str, bool | int | str] = {
            "server-round": number,
            "attempt": attempt,
            "evaluate": bool(every) and (number - 1) % every == 0,
            "layout": self.layout,
        }
        arrays = {"weights": state["weights"]} | (
            {"control": state["control"]} if self.plan.strategy.client.controls else {}
        )
        return arrays, options

    def _attempt(self, number: int, attempt: int, names: list[str], state: State, tally: "Tally") -> None:
        content = self.content(*self._asked(number, attempt, state))
        down = messages.bytes_of(content)
        size = self.plan.size_of(state["weights"])
        requests = {name: self._message(name, content, messages.TRAIN, f"{number}.{attempt}") for name in names}
        for name, message in exchange(self.grid, requests, self.config.limits.deadline_seconds):
            tally.bytes_down += down
            tally.bytes_up += messages.bytes_of(message.content) if message is not None and message.has_content() else 0
            try:
                most = min(self.fleet.rows[name], self.config.limits.examples)
                update = checks.update_of(name, message, size, self.plan, most)
            except UpdateRejected as error:
                tally.dropped.append(Dropped(name, error.code, str(error)))
                continue
            self.plan.strategy.accumulate(state, update)
            tally.add(update)

    def judge(self, judged: Mapping[str, Model]) -> tuple[dict[str, Statistics], dict[str, Model]]:
        """Have hospitals judge a model each, most often the same; return the statistics of their test patients by hospital, and the models with the thresholds that these are counted at."""
        contents = {id(model): self.content({"weights": model.weights}, _described(model)) for model in judged.values()}
        requests = {
            name: self._message(name, contents[id(model)], messages.EVALUATE, "judge") for name, model in judged.items()
        }
        rule = self.config.evaluation.threshold
        answers = self._gather(requests, "test", *(["validation"] if rule != "half" else []))
        return results.judged(judged, answers, rule)

    def judge_together(self, sums: SecureSums, model: Model) -> tuple[dict[str, Statistics], dict[str, Model]]:
        """Have all hospitals judge a model in one secure sum; return as `judge` does, under the name `TOGETHER`, and no statistics where it failed."""
        tally, names = Tally(self.plan.task), list(self.fleet.nodes)
        for attempt in range(self.config.limits.retries + 1):
            label = f"{JUDGE}.{attempt}" if attempt else JUDGE
            step = Step(label, names, {"weights": model.weights}, _described(model), self.plan.fewest)
            try:
                statistics = sums.judge(Channel(self, tally), step)
            except QuorumError as error:
                _log.warning("the final model is not judged yet: %s", error)
            else:
                parts = {part: group(part, statistics) for part in ("test", "validation")}
                return results.judged({TOGETHER: model}, {TOGETHER: parts}, self.config.evaluation.threshold)
        return {}, {TOGETHER: model}

    def in_clear(self) -> "Coordinator":
        """Return the coordinator of the same hospitals without secure sums and noise, for a harness that holds their patients anyway."""
        config = replace(self.config, secure=SecureConfig(), privacy=PrivacyConfig())
        return replace(self, plan=replace(self.plan, config=config), sums=None)

    def compare(self, model: Model, others: Mapping[str, Model]) -> dict[str, Statistics]:
        """Have hospitals judge ``model`` beside another one, which may differ by hospital, each at its threshold; return joint statistics by hospital."""
        requests = {}
        for name, other in others.items():
            described = {**_described(model), "other-preparation": other.preparation} | _thresholds(model, other)
            content = self.content({"weights": model.weights, "other": other.weights}, described)
            requests[name] = self._message(name, content, messages.COMPARE, "compare")
        return {name: parts["compare"] for name, parts in self._gather(requests, "compare").items() if parts["compare"]}

    def _gather(self, requests: Mapping[str, Message], *parts: str) -> dict[str, dict[str, Statistics]]:
        """Return groups of each answer's statistics, empty where a hospital has no patients for them; hospitals without a usable answer are left out."""
        found: dict[str, dict[str, Statistics]] = {}
        for name, message in exchange(self.grid, requests, self.config.limits.deadline_seconds):
            try:
                statistics = checks.reply_of(message, self.config).statistics
                groups: dict[str, Statistics] = {part: group(part, statistics) for part in parts}
                for part, sums in groups.items():
                    if sums:
                        shapes = checks.judged(self.plan.task.objective, len(self.plan.task.classes), part)
                        checks.check_sums(sums, shapes, -checks.MOST if part == "compare" else 0.0)
            except UpdateRejected as error:
                _log.warning("%s: statistics left out: %s (%s)", name, error.code, error)
                continue
            found[name] = groups
        return found

    def exchange(
        self, contents: Mapping[str, RecordDict], kind: str, label: str, seconds: float
    ) -> Iterator[tuple[str, Message | None]]:
        """Send hospitals each their content, and yield the answers as `exchange` does."""
        requests = {name: self._message(name, content, kind, label) for name, content in contents.items()}
        return exchange(self.grid, requests, seconds)

    def content(self, arrays: messages.Arrays, options: Mapping[str, bool | int | float | str]) -> RecordDict:
        """Lay out a request to train, judge or compare, which any number of messages can share."""
        common: dict[str, bool | int | float | str] = {
            "preparation": self.preparation,
            "local-parts": ",".join(self.plan.local_parts),
            "proximal": self.plan.strategy.client.proximal,
            **_company(self.plan, len(self.fleet.nodes)),
        }
        return messages.pack_request(self.plan.text, arrays, common | dict(options))

    def _message(self, name: str, content: RecordDict, kind: str, label: str) -> Message:
        node, life = self.fleet.nodes[name], _life(self.config)
        return Message(content, dst_node_id=node, message_type=kind, ttl=life, group_id=label)


@dataclass(frozen=True)
class Channel:
    """The way of secure sums to the hospitals, which keeps a round's tally."""

    coordinator: Coordinator
    tally: "Tally"

    def lay(self, arrays: messages.Arrays, options: Mapping[str, bool | int | float | str]) -> RecordDict:
        """Lay out a request to train or to judge."""
        return self.coordinator.content(arrays, options)

    def brief(self, arrays: messages.Arrays, options: Mapping[str, bool | int | float | str]) -> RecordDict:
        """Lay out a request of the protocol's own."""
        plan = self.coordinator.plan
        return messages.pack_request(
            plan.text, arrays, _company(plan, len(self.coordinator.fleet.nodes)) | dict(options)
        )

    def ask(
        self, contents: Mapping[str, RecordDict], kind: str, label: str, seconds: float
    ) -> Iterator[tuple[str, Reply | UpdateRejected]]:
        """Send each hospital its content; yield every answer, or why there is none."""
        if not contents:
            return
        for name, message in self.coordinator.exchange(contents, kind, label, seconds):
            self.tally.bytes_down += messages.bytes_of(contents[name])
            self.tally.bytes_up += messages.bytes_of(message.content) if message and message.has_content() else 0
            try:
                yield name, checks.reply_of(message, self.coordinator.config)
            except UpdateRejected as error:
                yield name, error

    def account(self, name: str, reply: Reply) -> None:
        """Note what a hospital says that it released, under differential privacy."""
        event = checks.event_of(reply, self.coordinator.config)
        self.tally.events.update({name: to_text(event)} if event else {})

    def drop(self, name: str, error: UpdateRejected) -> None:
        """Note that a hospital's part is not in the sum."""
        self.tally.dropped.append(Dropped(name, error.code, str(error)))


class Tally:
    """What has come in during a round."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self.answered: list[str] = []
        self.dropped: list[Dropped] = []
        self.bytes_down = 0
        self.bytes_up = 0
        self.examples = 0
        self.statistics: dict[str, Statistics] = {}
        self.events: dict[str, str] = {}

    def add(self, update: Update) -> None:
        """Count a usable update."""
        self.answered.append(update.hospital)
        self.examples += update.num_examples
        self.statistics[update.hospital] = update.statistics
        self.events.update({update.hospital: to_text(update.event)} if update.event else {})

    def record(self, number: int, asked: list[str]) -> RoundRecord:
        """Return the record of the round, its duration left open."""
        values = self._task.objective.values
        tests = {name: group("test", parts) for name, parts in self.statistics.items()}
        tests = {name: parts for name, parts in tests.items() if parts}
        validation = [parts for parts in (group("validation", each) for each in self.statistics.values()) if parts]
        losses = ({"loss": each["train/loss"]} for each in self.statistics.values())
        loss, steps = total([{"loss": np.zeros(2)}, *losses])["loss"]
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
            validation_loss=values(total(validation))[self._task.objective.criterion] if validation else None,
            update_norm=0.0,
            metrics=values(total(tests.values())) if tests else {},
            hospitals={name: values(parts) for name, parts in tests.items() if name != TOGETHER},
            events=self.events,
        )


DIVERGED = ("nan", "inf", "norm")
"""Codes of updates that training with too large a step leaves."""


def _explained(dropped: list[Dropped]) -> str:
    """Say of each hospital why its last update was not used, in full of one of them, and what to do where that is known."""
    last = {row.hospital: row for row in dropped}
    codes = ", ".join(f"{name}: {row.reason}" for name, row in list(last.items())[:5])
    more = f", and {len(last) - 5} more" if len(last) > 5 else ""
    said = next(reversed(last.values())) if last else None
    cure = "; take a smaller training.learning_rate" if {row.reason for row in last.values()} <= {*DIVERGED} else ""
    return f"{codes}{more} ({said.hospital}: {said.message}{cure})" if said else "nobody answered"


def drawn_of(hospitals: int, config: RunConfig) -> int:
    """Return how many of so many hospitals a round draws; on average, where each is drawn on its own."""
    return min(max(round(config.selection.fraction * hospitals), config.selection.minimum), hospitals)


def _described(model: Model) -> dict[str, str]:
    return {"preparation": model.preparation, "local-parts": ",".join(model.local_parts)}


def _thresholds(model: Model, other: Model) -> dict[str, float]:
    found = {"threshold": model.threshold, "other-threshold": other.threshold}
    return {name: threshold for name, threshold in found.items() if threshold is not None}


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
