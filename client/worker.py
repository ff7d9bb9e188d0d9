"""The resident worker: keeps TensorFlow, the encoded patients and the compiled functions between messages, and does what is asked.

It knows nothing of Flower's apps; `client.app` hands it requests. One worker serves one real hospital, or any number of virtual ones, which then share
every compiled function.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client import evaluation, training
from client.hospital import Hospital
from common import backend, wire
from common import network as networks
from common.config import Choice, RunConfig
from common.errors import UpdateRejected
from common.layout import Vector
from common.messages import COMPARE, EVALUATE, STATISTICS, TRAIN, Reply, Request, prefixed
from common.network import Network, seed_for
from common.tasks import task_of
from common.tasks.task import Examples, Records, Task, rows_of

State = dict[str, NDArray[Any]]
"""What a hospital keeps between rounds: its local weights, its control variate, what lossy codecs have not yet sent."""


MOST_MODELS = 8
"""Models that a worker holds at a time, each with its compiled functions."""


@dataclass(frozen=True)
class Prepared:
    """A task with its preparation: the network, and the functions compiled for it so far (filled as they are needed)."""

    task: Task
    network: Network
    local: Vector
    functions: dict[Any, Callable[..., Any]]


@dataclass(frozen=True)
class Held:
    """Encoded rows as tensors, and their labels also as an array. Rows beyond ``rows`` are padding that no plan names."""

    rows: int
    x: Any
    y: Any
    labels: NDArray[np.int32]


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

    def _statistics(self, hospital: Hospital, request: Request, _state: State) -> Reply:
        task = task_of(request.config.task)
        counts = {part: _count_classes(task, records) for part, records in _parts(hospital).items()}
        statistics = prefixed("task", task.summarise(hospital.train)) | prefixed("count", counts)
        return Reply(statistics=statistics, num_examples=rows_of(hospital.train), texts={"hospital": hospital.name})

    def _train(self, hospital: Hospital, request: Request, state: State) -> Reply:
        config = request.config
        prepared = self._prepare(config, request)
        weights = request.arrays["weights"]
        statistics = self._judge(hospital, prepared, request, state) if request.options["evaluate"] else {}
        held = self._hold(hospital, "train", prepared.task, request)
        trained = self._fit(hospital, prepared, held, request, state)
        vector = trained.shared - weights
        parts = {"": vector}
        if "control" in request.arrays:
            rate = _rate(config, int(request.options["server-round"]))
            parts["control"] = _new_control(state, request.arrays["control"], vector, trained.steps * rate)
        state.update({"local": trained.local} if trained.local.size else {})
        arrays = {
            name: array for part, values in parts.items() for name, array in _encoded(part, values, config, state)
        }
        statistics["train/loss"] = np.array([trained.loss, trained.steps], np.float64)
        return Reply(arrays, statistics, num_examples=held.rows)

    def _fit(
        self, hospital: Hospital, prepared: Prepared, held: Held, request: Request, state: State
    ) -> training.Trained:
        import tensorflow as tf

        config, number = request.config, int(request.options["server-round"])
        proximal = float(request.options.get("proximal", 0.0))
        method = training.method_of(
            prepared.task, config.training, proximal=proximal > 0, controls="control" in request.arrays
        )
        generator = np.random.default_rng(seed_for(config.seed, "train", number, hospital.name))
        rows = training.plan(held.rows, config.training.batch_size, config.training.epochs, generator)
        draw = np.array([*generator.integers(2**31, size=2), len(rows)], np.int32)
        pace = np.array([_rate(config, number), proximal], np.float32)
        correction = backend.nothing()
        if method.controls:
            control = request.arrays["control"]
            correction = tf.constant(control - state.setdefault("control", np.zeros_like(control)))
        kept = state.get("local", prepared.local)
        begin = tf.constant(request.arrays["weights"]), tf.constant(kept) if kept.size else backend.nothing()
        plan = training.widened(rows) if method.xla else rows
        fit = self._compiled(prepared, method, held)
        shared, local, loss = fit(*begin, held.x, held.y, *map(tf.constant, (plan, draw, pace)), correction)
        return training.Trained(shared.numpy(), local.numpy(), float(loss), len(rows))

    def _evaluate(self, hospital: Hospital, request: Request, state: State) -> Reply:
        prepared = self._prepare(request.config, request)
        return Reply(
            statistics=self._judge(hospital, prepared, request, state),
            num_examples=rows_of(hospital.test),
        )

    def _compare(self, hospital: Hospital, request: Request, state: State) -> Reply:
        """Judge two models on the same test patients; each comes with its own preparation."""
        prepared = self._prepare(request.config, request)
        if not rows_of(hospital.test):
            return Reply()
        ours, labels = self._predict(hospital, "test", prepared, request, state)
        other = Request(request.run, {"weights": request.arrays["other"]}, _other_options(request.options))
        theirs, _ = self._predict(hospital, "test", self._prepare(request.config, other), other, {})
        return Reply(statistics=prefixed("compare", prepared.task.objective.compare(labels, ours, theirs)))

    def _judge(self, hospital: Hospital, prepared: Prepared, request: Request, state: State) -> dict[str, NDArray[Any]]:
        statistics: dict[str, NDArray[Any]] = {}
        for part in ("test", "validation"):
            if rows_of(_parts(hospital)[part]):
                predictions, labels = self._predict(hospital, part, prepared, request, state)
                statistics |= prefixed(part, prepared.task.objective.summarise(labels, predictions))
        return statistics

    def _predict(
        self, hospital: Hospital, part: str, prepared: Prepared, request: Request, state: State
    ) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
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
            task = task_of(config.task)
            network = networks.build(
                task, json.loads(preparation), tuple(filter(None, local_parts.split(","))), config.seed
            )
            # Preparations of one task that lead to the same model share its compiled functions; another task may augment otherwise.
            functions = self._functions.setdefault(
                f"{config.task} {network.shared.digest} {network.model.to_json()}", {}
            )
            self._prepared[key] = Prepared(task, network, network.vectors()[1], functions)
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

    def _compiled(self, prepared: Prepared, method: training.Method, held: Held) -> Callable[..., Any]:
        key = (method, held.x.dtype)
        if key not in prepared.functions:
            prepared.functions[key] = training.compile_fit(prepared.network, prepared.task, method, held.x.dtype)
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


def _rate(config: RunConfig, number: int) -> float:
    return config.training.learning_rate * config.training.learning_rate_decay ** (number - 1)


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
    x = np.concatenate([examples.x, np.zeros((more, *examples.x.shape[1:]), examples.x.dtype)]) if more else examples.x
    labels = np.concatenate([examples.y, np.zeros(more, np.int32)]) if more else examples.y
    return Held(len(examples), tf.constant(x), tf.constant(labels, tf.int32), examples.y)


def _forget(cache: dict[Any, Any]) -> None:
    """Drop the oldest entry of a full cache: comparators train one model a hospital, which no one asks about again."""
    while len(cache) >= MOST_MODELS:
        del cache[next(iter(cache))]


def _other_options(options: Mapping[str, bool | int | float | str]) -> dict[str, bool | int | float | str]:
    return {**options, "preparation": options["other-preparation"], "local-parts": ""}
