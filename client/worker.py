"""The resident worker: keeps TensorFlow, the encoded patients and the compiled functions between messages, and does what is asked.

It knows nothing of Flower's apps; `client.app` hands it requests. One worker serves one real hospital, or any number of virtual ones, which then share
every compiled function.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client import evaluation, private, training
from client.hospital import Hospital
from client.ledger import Question
from common import backend, balance, thresholds, wire
from common import network as networks
from common.config import Choice, RunConfig
from common.errors import UpdateRejected
from common.layout import Vector
from common.messages import COMPARE, EVALUATE, STATISTICS, TRAIN, Reply, Request, prefixed
from common.network import Network
from common.privacy.events import to_text
from common.privacy.noise import Source
from common.seeds import seed_for
from common.statistics import Statistics
from common.tasks import task_of
from common.tasks.task import Examples, Preparation, Records, Task, rows_of

State = dict[str, NDArray[Any]]
"""What a hospital keeps between rounds: its local weights, its control variate, what lossy codecs have not yet sent."""


MOST_MODELS = 8
"""Models that a worker holds at a time, each with its compiled functions."""


@dataclass(frozen=True)
class Prepared:
    """A task with its preparation: the network, and the functions compiled for it so far (filled as they are needed)."""

    task: Task
    preparation: Preparation
    network: Network
    local: Vector
    functions: dict[Any, Callable[..., Any]]


@dataclass(frozen=True)
class Held:
    """Encoded rows as tensors, and their labels also as an array. Rows beyond ``rows`` are padding that no plan names."""

    rows: int
    x: Any
    y: Any
    labels: NDArray[Any]


class Worker:
    """Answers requests for the hospitals of this process. Caches only; what must last is in the state that comes and goes with each request."""

    def __init__(self) -> None:
        self._prepared: dict[tuple[Choice, str, str, int], Prepared] = {}
        self._functions: dict[str, dict[Any, Callable[..., Any]]] = {}
        self._held: dict[tuple[Hospital, str], tuple[str, Held]] = {}
        self._answers: dict[str, Callable[[Hospital, Request, State], Reply]] = {
            STATISTICS: self._statistics,
            TRAIN: self._train,
            EVALUATE: self._evaluate,
            COMPARE: self._compare,
        }

    def answer(self, kind: str, hospital: Hospital, request: Request, state: State) -> Reply:
        """Do what a message of this kind asks; ``state`` is changed in place."""
        return self._answers[kind](hospital, request, state)

    def forget(self, hospital: Hospital) -> None:
        """Let go of a hospital's encoded rows, where many virtual ones come one after another."""
        self._held = {key: held for key, held in self._held.items() if key[0] is not hospital}

    def _statistics(self, hospital: Hospital, request: Request, _state: State) -> Reply:
        task, config = task_of(request.config.task), request.config
        counts = {part: _count_classes(task, records) for part, records in _parts(hospital).items()}
        if config.privacy.at_hospitals:
            summed = self._summed_privately(hospital, task, request)
            # How many training patients there are counts as known; how many of which class does not, and none is told.
            share, rest = divmod(rows_of(hospital.train), len(task.classes))
            counts["train"] = (share + (np.arange(len(task.classes)) < rest)).astype(np.float64)
        else:
            summed = task.sums_of(hospital.train, hospital.patients)
        statistics = prefixed("task", summed) | prefixed("count", counts)
        return Reply(statistics=statistics, num_examples=rows_of(hospital.train), texts={"hospital": hospital.name})

    def _summed_privately(self, hospital: Hospital, task: Task, request: Request) -> Statistics:
        """Return the task's sums with their noise, charged; what the whole run would spend is looked at before anything is told."""
        config = request.config
        hospital.ledger.check(private.whole_run(hospital, config, task), request.run)
        event = private.first_event(config, task)
        if event is None:
            return private.statistics(hospital, config, task, None)
        question = _question(hospital, request, {})
        source = Source(hospital.ledger.reserve(question, event))
        summed = private.statistics(hospital, config, task, source)
        hospital.ledger.commit(question)
        return summed

    def _train(self, hospital: Hospital, request: Request, state: State) -> Reply:
        config = request.config
        prepared = self._prepare(config, request)
        weights = request.arrays["weights"]
        statistics = self._judge(hospital, prepared, request, state) if request.options["evaluate"] else {}
        held = self._hold(hospital, "train", prepared.task, request)
        told: dict[str, str] = {}
        if config.privacy.at_hospitals and (prepared.task.learner or prepared.task.objective.coupled):
            raise UpdateRejected("privacy", "no noise covers sums over patients, or losses that compare them")
        if learner := prepared.task.learner:
            vector = learner.contribution(weights, Examples(held.x.numpy(), held.labels), config.seed)
            return Reply(
                dict(_encoded("", vector, config, state)), {**statistics, "train/loss": np.zeros(2)}, held.rows
            )
        if config.privacy.at_hospitals:
            trained, told = self._fit_privately(hospital, prepared, held, request, state)
        else:
            trained = self._fit(hospital, prepared, held, request, state)
        vector = trained.shared - weights
        parts = {"": vector}
        if "control" in request.arrays:
            rate = training.learning_rate(config, int(request.options["server-round"]))
            parts["control"] = _new_control(state, request.arrays["control"], vector, trained.steps * rate)
        state.update({"local": trained.local} if trained.local.size else {})
        arrays = {
            name: array for part, values in parts.items() for name, array in _encoded(part, values, config, state)
        }
        # Of private training no loss is told: it is over the training patients as they are.
        statistics["train/loss"] = np.zeros(2) if told else np.array([trained.loss, trained.steps], np.float64)
        return Reply(arrays, statistics, num_examples=held.rows, texts=told)

    def _fit(
        self, hospital: Hospital, prepared: Prepared, held: Held, request: Request, state: State
    ) -> training.Trained:
        config, begin = request.config, _begin(prepared, request, state)
        method = _method(prepared, request)
        generator = np.random.default_rng(_seed(hospital, request))
        width = training.width(prepared.task, config.training.batch_size, held.rows)
        rows = training.plan(held.rows, width, config.training.epochs, generator, hospital.least)
        draw = np.array([*generator.integers(2**31, size=2), len(rows)], np.int32)
        pace = np.array(_pace(request), np.float32)
        plan = training.widened(rows) if method.xla else rows
        fit = self._compiled(prepared, method, held)
        shared, local, loss = fit(
            *begin,
            held.x,
            held.y,
            *_tensors(plan, draw, pace),
            _correction(method, request, state),
            _balance(method, prepared),
        )
        return training.Trained(shared.numpy(), local.numpy(), float(loss), len(rows))

    def _fit_privately(
        self, hospital: Hospital, prepared: Prepared, held: Held, request: Request, state: State
    ) -> tuple[training.Trained, dict[str, str]]:
        """Train under differential privacy, and say what is released; it is charged before anything is drawn. The loss over training patients stays here, since no noise covers it."""
        terms, method = private.terms(hospital, request.config, prepared.task), _method(prepared, request)
        _check_range(request.arrays)
        event, correction = terms.event, _correction(method, request, state)
        bounds, size = private.Bounds(terms.row_bound, terms.per_unit), private.numbers(prepared.network, event.count)
        fit = self._compiled(prepared, method, held, bounds)
        question = _question(hospital, request, state)
        source = Source(hospital.ledger.reserve(question, event))
        drawn = private.samples(private.units_of(hospital, request.config), terms, source)
        # Noise that is shared out is added in whole levels, when the update is masked.
        shared_out = request.config.privacy.shared
        normals = (
            np.zeros((event.count, size // event.count), np.float32)
            if shared_out
            else source.normals(size).reshape(event.count, -1)
        )
        # From the secret source: who knew them would know whose row was dropped out or shifted how, and one row more moves all others'.
        seeds = source.words(2, np.uint32) >> np.uint32(1)
        draw = np.array([*seeds, len(drawn.rows)], np.int32)
        pace = np.array([*_pace(request), terms.event.noise_multiplier, terms.sample], np.float32)
        arrays = private.widened(drawn, normals) if method.xla else (drawn.rows, drawn.ends, normals)
        begin = _begin(prepared, request, state)
        shared, local = fit(*begin, held.x, held.y, *_tensors(*arrays, draw, pace), correction)
        hospital.ledger.commit(question)
        told = {"event": to_text(event)} | ({private.CHARGE: question.identity} if shared_out else {})
        return training.Trained(shared.numpy(), local.numpy(), 0.0, event.count), told

    def _evaluate(self, hospital: Hospital, request: Request, state: State) -> Reply:
        prepared = self._prepare(request.config, request)
        return Reply(
            statistics=self._judge(hospital, prepared, request, state),
            num_examples=rows_of(hospital.test),
        )

    def _compare(self, hospital: Hospital, request: Request, state: State) -> Reply:
        """Judge two models on the same test patients; each comes with its own preparation, and perhaps its own threshold."""
        prepared = self._prepare(request.config, request)
        if not rows_of(hospital.test):
            return Reply()
        ours, labels = self._predict(hospital, "test", prepared, request, state)
        other = Request(request.run, {"weights": request.arrays["other"]}, _other_options(request.options))
        theirs, _ = self._predict(hospital, "test", self._prepare(request.config, other), other, {})
        compared = prepared.task.objective.compare(labels, ours, theirs)
        at = [request.options.get(name) for name in ("threshold", "other-threshold")]
        if any(each is not None for each in at):
            compared = {**compared, "predictions": thresholds.joint(labels, (ours, theirs), at)}
        return Reply(statistics=prefixed("compare", compared))

    def _judge(self, hospital: Hospital, prepared: Prepared, request: Request, state: State) -> dict[str, NDArray[Any]]:
        statistics: dict[str, NDArray[Any]] = {}
        for part in ("test", "validation"):
            if rows_of(_parts(hospital)[part]):
                predictions, labels = self._predict(hospital, part, prepared, request, state)
                statistics |= prefixed(part, prepared.task.objective.summarise(labels, predictions))
        return statistics

    def _predict(
        self, hospital: Hospital, part: str, prepared: Prepared, request: Request, state: State
    ) -> tuple[NDArray[np.float64], NDArray[Any]]:
        held = self._hold(hospital, part, prepared.task, request)
        key = ("predict", held.x.dtype)
        if key not in prepared.functions:
            prepared.functions[key] = evaluation.compile_predict(prepared.network, held.x.dtype)
        outputs = evaluation.outputs(
            prepared.functions[key], request.arrays["weights"], state.get("local", prepared.local), held.x
        )
        return prepared.task.objective.predict(outputs), held.labels

    def _prepare(self, config: RunConfig, request: Request) -> Prepared:
        preparation, local_parts = str(request.options["preparation"]), str(request.options["local-parts"])
        key = (config.task, preparation, local_parts, config.seed)
        if key not in self._prepared:
            _forget(self._prepared)
            _forget(self._functions)
            backend.start()
            task, agreed = task_of(config.task), json.loads(preparation)
            network = networks.build(task, agreed, tuple(filter(None, local_parts.split(","))), config.seed)
            # Preparations of one task that lead to the same model share its compiled functions; another task may augment otherwise.
            functions = self._functions.setdefault(
                f"{config.task} {network.shared.digest} {network.model.to_json()}", {}
            )
            self._prepared[key] = Prepared(task, agreed, network, network.vectors()[1], functions)
        prepared = self._prepared[key]
        size = len(request.arrays["weights"])
        if size != prepared.network.shared.size:
            raise UpdateRejected(
                "layout", f"the model sent has {size} shared weights; the task's has {prepared.network.shared.size}"
            )
        claimed = request.options.get("layout", prepared.network.shared.digest)
        if claimed != prepared.network.shared.digest:
            raise UpdateRejected("layout", "the model sent is laid out in another way than the one that was built here")
        return prepared

    def _compiled(
        self, prepared: Prepared, method: training.Method, held: Held, bounds: private.Bounds | None = None
    ) -> Callable[..., Any]:
        """Return the compiled round, under differential privacy where there are bounds."""
        key = (method, bounds, held.x.dtype)
        if key not in prepared.functions:
            parts = (prepared.network, prepared.task, method)
            prepared.functions[key] = (
                private.compile_fit(*parts, bounds, held.x.dtype)
                if bounds
                else training.compile_fit(*parts, held.x.dtype)
            )
        return prepared.functions[key]

    def _hold(self, hospital: Hospital, part: str, task: Task, request: Request) -> Held:
        """Encode a part of the hospital's rows, once for a preparation."""
        preparation = str(request.options["preparation"])
        known, held = self._held.get((hospital, part), ("", None))
        if held is None or known != preparation:
            examples = task.encode(_parts(hospital)[part], json.loads(preparation))
            held = _held(examples, padded=part == "train" and task.xla)
            self._held[hospital, part] = (preparation, held)
        return held


def _parts(hospital: Hospital) -> dict[str, Records]:
    return {"train": hospital.train, "validation": hospital.validation, "test": hospital.test}


def _count_classes(task: Task, records: Records) -> NDArray[np.float64]:
    labels = task.classify(records)
    return np.bincount(labels, minlength=len(task.classes)).astype(np.float64)


def _check_range(arrays: Mapping[str, NDArray[Any]]) -> None:
    """Refuse weights so large that a row could make a gradient overflow: that is a bit which no noise covers. Depends on no patient."""
    for array in arrays.values():
        if array.dtype.kind == "f" and not np.abs(array).max(initial=0.0) <= private.LARGEST:
            raise UpdateRejected("range", f"the model sent holds a weight that is not within {private.LARGEST:g} of 0")


def _pace(request: Request) -> list[float]:
    number = int(request.options["server-round"])
    return [training.learning_rate(request.config, number), float(request.options.get("proximal", 0.0))]


def _seed(hospital: Hospital, request: Request) -> np.random.SeedSequence:
    return seed_for(request.config.seed, "train", int(request.options["server-round"]), hospital.name)


def _method(prepared: Prepared, request: Request) -> training.Method:
    proximal = float(request.options.get("proximal", 0.0)) > 0
    number = int(request.options["server-round"])
    return training.method_of(
        prepared.task, request.config.training, number, proximal=proximal, controls="control" in request.arrays
    )


def _begin(prepared: Prepared, request: Request, state: State) -> tuple[Any, Any]:
    """Return the two weight vectors that training starts from."""
    kept = state.get("local", prepared.local)
    (shared,) = _tensors(request.arrays["weights"])
    return shared, _tensors(kept)[0] if kept.size else backend.nothing()


def _correction(method: training.Method, request: Request, state: State) -> Any:
    if not method.controls:
        return backend.nothing()
    control = request.arrays["control"]
    return _tensors(control - state.setdefault("control", np.zeros_like(control)))[0]


def _balance(method: training.Method, prepared: Prepared) -> Any:
    """Return the weight of each class, where the run's settings ask for any: those alone decide, and a hospital's policy can hold them to a value."""
    return _tensors(balance.read(prepared.task, prepared.preparation))[0] if method.weighted else backend.nothing()


def _tensors(*arrays: NDArray[Any]) -> list[Any]:
    import tensorflow as tf

    return [tf.constant(array) for array in arrays]


def _question(hospital: Hospital, request: Request, state: State) -> Question:
    """Say what a private answer is computed from, all of it: one noise must never cover two different sums."""
    config, options = request.config, request.options
    digest = hashlib.sha256(version("fedward").encode() + hospital.fingerprint)
    # Noise that is shared out is of one sum; what is private by itself is the same in whichever sum it is.
    outside = set() if config.privacy.shared else {"sum", "present", "most", "packages"}
    for name in sorted(set(options) - {"server-round", "attempt", "evaluate", "cohort", "hospitals"} - outside):
        digest.update(f"{name}\x1f{options[name]}\x1f".encode())
    for arrays in (request.arrays, state):
        for name in sorted(set(arrays) - outside):
            digest.update(name.encode() + np.ascontiguousarray(arrays[name]).tobytes())
    number, study = int(options.get("server-round", 0)), config.privacy.study
    return Question(request.run, number, digest.digest(), study, config.task.name, config.privacy.unit)


def _encoded(part: str, values: Vector, config: RunConfig, state: State) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the arrays of one part of an update by name; each is encoded apart, because one may be much larger than the other."""
    prefix = f"{part}/" if part else ""
    arrays, left = wire.encode_with_feedback(config.update, values, state.get(f"{prefix}residual"))
    state.update({} if left is None else {f"{prefix}residual": left})
    for name, array in arrays.items():
        yield prefix + name, array


def _new_control(state: State, control: Vector, delta: Vector, travelled: float) -> Vector:
    """Set the hospital's control variate by option II of SCAFFOLD (Karimireddy et al. 2020, algorithm 1, line 12); return its change."""
    change = -control - delta / np.float32(travelled)
    state["control"] = state["control"] + change
    return change


def _held(examples: Examples, *, padded: bool) -> Held:
    """Turn encoded rows into tensors, padded to a power of two of rows where XLA may compile for their shape."""
    import tensorflow as tf

    more = (1 << max(len(examples) - 1, 1).bit_length()) - len(examples) if padded else 0
    x, y = (
        np.concatenate([array, np.zeros((more, *array.shape[1:]), array.dtype)]) if more else array
        for array in (examples.x, examples.y)
    )
    return Held(len(examples), tf.constant(x), tf.constant(y), examples.y)


def _forget(cache: dict[Any, Any]) -> None:
    """Drop the oldest entry of a full cache: comparators train one model a hospital, which no one asks about again."""
    while len(cache) >= MOST_MODELS:
        del cache[next(iter(cache))]


def _other_options(options: Mapping[str, bool | int | float | str]) -> dict[str, bool | int | float | str]:
    return {**options, "preparation": options["other-preparation"], "local-parts": ""}
