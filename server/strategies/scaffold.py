"""SCAFFOLD: control variates that take each hospital's drift out of its steps (Karimireddy et al. 2020, Algorithm 1, option II).

``x = x + rate * mean(delta)`` and ``c = c + |S| / N * mean(change of control)`` over the round's ``S`` of the ``N`` hospitals. As in the
paper every hospital counts the same, whatever its patients: so ``c`` stays the mean of all hospitals' controls also when each round draws
others, which weights by patients of the round would break.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from common.config import POSITIVE
from common.errors import UpdateRejected
from common.layout import Vector
from common.update import Update
from server.strategies.average import add, advance, begin, mean
from server.strategies.strategy import Client, State, Strategy


@dataclass(frozen=True)
class Scaffold:
    """Settings."""

    server_learning_rate: Annotated[float, POSITIVE, "factor on the mean update"] = 1.0

    def build(self) -> Strategy:
        """Return the strategy."""

        def finish(state: State) -> Vector:
            share = float(state.get("control/weight", np.float64(0.0)) / state["population"])
            step = mean(state, share=self.server_learning_rate)
            state["control"] = mean(state, "control", share) + state["control"]
            return advance(state, step)

        return Strategy(init, accumulate, finish, Client(controls=True))


def init(weights: Vector, population: int) -> State:
    """Start without a correction: the mean of the hospitals' controls is 0."""
    return begin(weights, population) | {"control": np.zeros_like(weights)}


def accumulate(state: State, update: Update) -> None:
    """Add an update and the change of its control; raise `UpdateRejected` for an update that has none."""
    if update.control is None:
        raise UpdateRejected("control-missing", "the update holds no control variate, which SCAFFOLD needs")
    add(state, "delta", update.delta, update.hospitals)
    add(state, "control", update.control, update.hospitals)
