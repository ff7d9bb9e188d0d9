"""Streaming averages: one running sum of weighted updates, whatever their number.

The sum is weighted first and divided once at the end, so that a round needs two models in memory (weights and sum) beside the update at
hand. It is made by the round's first update and gone after the round, so that a checkpoint holds nothing of it.
"""

import numpy as np

from common.errors import QuorumError
from common.layout import Vector
from common.update import Update
from server.strategies.strategy import State

BLOCK = 9_984
"""Numbers a call of ``saxpy``: the largest multiple of its inner loop (32) below 10,000, from where OpenBLAS may split a call over
threads. A split moves the places where it rounds once instead of twice, and sums would depend on the machine's count of cores."""


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

    for start in range(0, len(total), BLOCK):
        saxpy(vector, total, min(BLOCK, len(total) - start), weight, start, 1, start, 1)
