"""The Strategy: the rule from updates to the next global model, as a frozen dataclass of functions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from common.layout import Vector
from common.update import Update

State = dict[str, NDArray[Any]]
"""What a strategy keeps between rounds and while one streams, as named arrays, so that a checkpoint can hold it."""


@dataclass(frozen=True)
class Client:
    """What the strategy asks of a hospital's training: FedProx's ``mu``, SCAFFOLD's control variates, the parts of the model it keeps."""

    proximal: float = 0.0
    controls: bool = False
    local_parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Strategy:
    """From updates to the next model.

    ``init(weights, population)`` makes the state, which holds the model as ``state["weights"]``; ``population`` counts the hospitals of the
    federation, drawn or not. ``accumulate(state, update)`` takes updates one by one, in the order of the hospitals' names.
    ``finish(state)`` closes the round and returns the next weights; it raises `QuorumError` for fewer updates than ``minimum_updates``, the
    fewest the rule is defined for. ``single_updates`` marks rules that must see each update, so that secure aggregation can't be combined
    with them.

    What lies in the state after ``init`` or ``finish`` is never written into again, only exchanged for a new array. So the weights that
    ``finish`` returns are ``state["weights"]`` itself and need no copy; whoever holds them must not write into them either.
    """

    init: Callable[[Vector, int], State]
    accumulate: Callable[[State, Update], None]
    finish: Callable[[State], Vector]
    client: Client = Client()
    single_updates: bool = False
    minimum_updates: int = 1
