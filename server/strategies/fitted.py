"""The rule for models that are fitted by sums (`common.tasks.learner`): add what hospitals send, and let the learner turn the sum into the next weights.

Sums are of float64, and hospitals' values lie on the learner's grid, so that no order of the hospitals changes a bit.
"""

import numpy as np

from common.errors import QuorumError
from common.layout import Vector
from common.tasks.learner import Learner
from common.update import Update
from server.strategies.average import begin
from server.strategies.strategy import State, Strategy


def by_sums(learner: Learner, seed: int) -> Strategy:
    """Return the rule, for a run of this seed."""

    def accumulate(state: State, update: Update) -> None:
        state["sum"] = state["sum"] + update.delta if "sum" in state else update.delta.astype(np.float64)

    def finish(state: State) -> Vector:
        if "sum" not in state:
            raise QuorumError("no hospital sent its sums; the model cannot be fitted")
        state["weights"] = learner.advance(state["weights"], state.pop("sum"), seed)
        return state["weights"]

    return Strategy(begin, accumulate, finish)
