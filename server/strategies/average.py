"""Streaming averages: one running sum of weighted updates, whatever their number.

The sum is weighted first and divided once at the end, so that a round needs two models in memory (weights and sum) beside the update at
hand. It is made by the round's first update and gone after the round, so that a checkpoint holds nothing of it.
"""

import numpy as np

from common.errors import QuorumError
from common.layout import Vector
from common.update import Update
from server.strategies.strategy import State

EVEN = 32 * 20_160
"""OpenBLAS splits a long ``saxpy`` over its threads and rounds twice instead of once where a part is no multiple of its inner loop (32). A
multiple of this length splits evenly over 1 to 10, 12, 14, 16, 24, 28, 32, 48 or 64 threads, so that sums do not depend on their count."""
SHORT = 9_984
"""The largest multiple of 32 below 10,000, up to where OpenBLAS takes one thread: for what is left over."""


def begin(weights: Vector, population: int) -> State:
    """Return the state that every strategy starts from; ``weights`` are held, not copied."""
    return {"weights": weights, "population": np.array(population, np.int64)}


def accumulate(state: State, update: Update) -> None:
    """Add an update to the running sum, weighted by its patients."""
    add(state, "delta", update.delta, update.num_examples)


def add(state: State, name: str, vector: Vector, weight: float) -> None:
    """Add ``weight`` times ``vector`` to the running sum called ``name``.

    One pass over the sum at the speed of ``sum += vector``; ``benchmarks/aggregation.py`` measures it.
    """
    if f"{name}/sum" in state:
        _add_scaled(state[f"{name}/sum"], vector, weight)
        state[f"{name}/weight"] += weight
    else:
        state[f"{name}/sum"] = np.multiply(vector, np.float32(weight), dtype=np.float32)
        state[f"{name}/weight"] = np.array(weight, np.float64)


def mean(state: State, name: str = "delta", share: float = 1.0) -> Vector:
    """Take the running sum out of the state and return ``share`` times its weighted mean, an array that is the caller's own.

    Raises
    ------
    QuorumError
        When nothing was added in this round, or only updates of weight 0.
    """
    weight = float(state.pop(f"{name}/weight", np.float64(0.0)))
    if not weight:
        raise QuorumError(
            "no update came in this round, or none that was trained on a patient; nothing can be averaged"
        )
    total = state.pop(f"{name}/sum")
    total *= share / weight
    return total


def advance(state: State, step: Vector) -> Vector:
    """Move the model by ``step``, whose memory becomes the new weights, and return them."""
    step += state["weights"]
    state["weights"] = step
    return step


def _add_scaled(total: Vector, vector: Vector, weight: float) -> None:
    from scipy.linalg.blas import saxpy

    even = len(total) - len(total) % EVEN
    if even:
        saxpy(vector, total, even, weight)
    for start in range(even, len(total), SHORT):
        saxpy(vector, total, min(SHORT, len(total) - start), weight, start, 1, start, 1)
