"""Flower's own strategies: ``adapt`` makes one of them ours, and ``strategy.which`` names one on the command line.

Only its aggregation is used: hospitals are drawn, asked and checked by our round loop. What a strategy assigns to its own attributes in a
round (momentum, moments), or changes in them, is put into our state and given back in the next, so that a run resumes; the object passed in is never changed.
"""

import copy
import inspect
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import numpy as np

from common.config import Scalar, assign
from common.errors import ConfigError, FedwardError, QuorumError, nearest
from common.flower import identity
from common.layout import Vector
from common.update import Update
from server.strategies.average import begin
from server.strategies.strategy import Client, State, Strategy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flwr.app import Message
    from flwr.serverapp import Grid
    from flwr.serverapp import strategy as flower_strategies

Which = Literal[
    "Bulyan", "FedAdagrad", "FedAdam", "FedAvg", "FedAvgM", "FedMedian", "FedTrimmedAvg", "FedYogi", "Krum", "MultiKrum"
]
REFUSED = {
    "DifferentialPrivacy": "differential privacy is Fedward's own, see [privacy]",
    "FedXgb": "it exchanges trees, not weights",
    "QFedAvg": "it needs each hospital's training loss, which is not sent",
}
"""Starts of the names of Flower's strategies whose promise an adapter could not keep, and why."""


@dataclass(frozen=True)
class Flower:
    """Settings."""

    which: Annotated[Which, "the strategy's name in flwr.serverapp.strategy"] = "FedAvg"
    arguments: Annotated[str, "numbers for it, by Flower's names, for example 'eta=0.01 beta_1=0.8'"] = ""

    def build(self) -> Strategy:
        """Return the strategy; raise `ConfigError` for an argument it does not take."""
        from flwr.serverapp import strategy as flower_strategies

        kind = getattr(flower_strategies, self.which)
        try:
            return adapt(kind(**_arguments(kind, self.arguments)))
        except ValueError as error:
            raise ConfigError(f"strategy.arguments: {error}") from None


def adapt(strategy: "flower_strategies.Strategy") -> Strategy:
    """Turn a Flower strategy object into one of ours. It sees models, not deltas, in one record with the one array ``weights``.

    Raises
    ------
    ConfigError
        For a strategy that is more than a rule for weights.
    """
    for kind in type(strategy).__mro__:
        for start, reason in REFUSED.items():
            if kind.__name__.startswith(start):
                raise ConfigError(f"strategy: Flower's {kind.__name__} cannot be used here: {reason}")

    def finish(state: State) -> Vector:
        used = copy.deepcopy(strategy)
        _restore(used, state)
        state["round"] = np.array(state["round"] + 1)
        with identity(1):
            state["weights"] = _aggregate(used, state)
        state.update(_memory(used, strategy))
        return state["weights"]

    client = Client(proximal=float(getattr(strategy, "proximal_mu", 0.0)))
    return Strategy(init, hold, finish, client, single_updates=True)


def init(weights: Vector, population: int) -> State:
    """Start before round 1."""
    return begin(weights, population) | {"round": np.array(0, np.int64)}


def hold(state: State, update: Update) -> None:
    """Keep the hospital's model and its count of patients until the round is closed."""
    number = int(state.get("models", 0))
    state["models"] = np.array(number + 1)
    state[f"model/{number}"] = state["weights"] + update.delta
    state[f"examples/{number}"] = np.array(update.num_examples, np.int64)


def _aggregate(strategy: "flower_strategies.Strategy", state: State) -> Vector:
    """Take the held models out of the state and return what the strategy makes of them."""
    from flwr.app import ArrayRecord, ConfigRecord

    replies, number = list(_replies(state)), int(state["round"])
    waits_for = max(int(getattr(strategy, name, 0)) for name in ("min_train_nodes", "min_available_nodes"))
    grid = cast("Grid", _Nodes(max(len(replies), waits_for)))
    # Flower's server optimisers learn the current model when they write the instructions, which are of no other use here. Their draw of
    # nodes must not move the process's random numbers.
    before = random.getstate()
    list(strategy.configure_train(number, ArrayRecord({"weights": _array(state["weights"])}), ConfigRecord(), grid))
    random.setstate(before)
    arrays, _ = strategy.aggregate_train(number, replies)
    if arrays is None:
        raise QuorumError(
            f"Flower's {type(strategy).__name__} made no model of {len(replies)} updates: too few for its settings"
        )
    return np.asarray(arrays["weights"].numpy(), np.float32)


class _Nodes:
    """The one question that a Flower strategy asks its grid when it writes instructions."""

    def __init__(self, count: int) -> None:
        self._count = count

    def get_node_ids(self) -> list[int]:
        """Return as many nodes as answered, or as the strategy would wait for."""
        return list(range(1, self._count + 1))


def _replies(state: State) -> "Iterator[Message]":
    from flwr.app import ArrayRecord, Message, MessageType, MetricRecord, RecordDict

    for number in range(int(state.pop("models", 0))):
        arrays = ArrayRecord({"weights": _array(state.pop(f"model/{number}"))})
        metrics = MetricRecord({"num-examples": int(state.pop(f"examples/{number}"))})
        request = Message(RecordDict(), dst_node_id=number + 1, message_type=MessageType.TRAIN)
        yield Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=request)


def _array(vector: Vector) -> Any:
    from flwr.app import Array

    return Array(vector)


def _memory(used: object, pristine: object) -> State:
    """Return, as named arrays, what the strategy keeps in its attributes that it did not start with: arrays, collections of them, or numbers."""
    memory: State = {}
    for name, value in vars(used).items():
        if not _same(value, getattr(pristine, name, None)):
            kind, items = _pack(name, value)
            memory |= {f"flower/{name}/{kind}/{key}": np.asarray(item) for key, item in items.items()}
    return memory


def _same(value: Any, other: Any) -> bool:
    """Tell whether an attribute is what it was."""
    if type(value) is not type(other):
        return False
    try:
        (_, mine), (_, yours) = _pack("", value), _pack("", other)
    except FedwardError:
        if callable(value) or not hasattr(value, "__dict__"):
            return bool(value == other)
        mine, yours = vars(value), vars(other)
        return mine.keys() == yours.keys() and all(_same(mine[key], yours[key]) for key in mine)
    return mine.keys() == yours.keys() and all(np.array_equal(mine[key], yours[key]) for key in mine)


def _pack(name: str, value: object) -> tuple[str, dict[str, Any]]:
    from flwr.app import ArrayRecord

    if isinstance(value, bool | int | float):
        return "number", {"": value}
    if isinstance(value, ArrayRecord):
        return "record", {key: array.numpy() for key, array in value.items()}
    if isinstance(value, dict) and all(isinstance(item, np.ndarray) for item in value.values()):
        return "dict", value
    if isinstance(value, list) and all(isinstance(item, np.ndarray) for item in value):
        return "list", {str(index): item for index, item in enumerate(value)}
    if isinstance(value, np.ndarray):
        return "array", {"": value}
    raise FedwardError(
        f"strategy: the Flower strategy keeps {name!r} between rounds, which a checkpoint cannot hold: use arrays or numbers"
    )


def _restore(used: object, state: State) -> None:
    """Take what `_memory` returned out of the state and give it back to the strategy."""
    from flwr.app import ArrayRecord

    packed: dict[tuple[str, str], dict[str, Any]] = {}
    for path in [path for path in state if path.startswith("flower/")]:
        _, name, kind, key = path.split("/", 3)
        packed.setdefault((name, kind), {})[key] = state.pop(path)
    for (name, kind), items in packed.items():
        if kind == "record":
            value: Any = ArrayRecord({key: _array(item) for key, item in items.items()})
        elif kind == "dict":
            value = items
        elif kind == "list":
            value = list(items.values())
        else:
            value = items[""].item() if kind == "number" else items[""]
        setattr(used, name, value)


def _arguments(kind: type, text: str) -> dict[str, Scalar]:
    """Read ``name=value`` words by the types of the strategy's own defaults; how hospitals are drawn is no part of it."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(kind).parameters.items()}
    known = {
        name: type(default)
        for name, default in defaults.items()
        if isinstance(default, int | float) and not name.startswith(("fraction_", "min_"))
    }
    arguments = assign(text.split())
    for name, value in arguments.items():
        if name not in known:
            raise ConfigError(f"strategy.arguments: Flower's {kind.__name__} takes no {name!r}; {nearest(name, known)}")
        if not isinstance(value, (int, float) if known[name] is float else known[name]) or isinstance(value, bool):
            raise ConfigError(f"strategy.arguments: {name} must be a number like {defaults[name]!r}, got {value!r}")
    return arguments
