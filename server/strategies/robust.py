"""What robust rules share: they hold every update of the round, and count hospitals alike, because a liar also lies about its patients."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from common.errors import QuorumError
from common.layout import Vector
from common.update import Update
from server.strategies.strategy import State

BLOCK = 1_048_576
"""Numbers that a core sorts at a time, 4 MiB: smaller blocks cost more in calls than they gain in the cache (benchmarks/aggregation.py)."""

Rule = Callable[[Vector], Vector]
"""From values of shape ``(rows, updates)``, each row sorted, to one value a row."""


def hold(state: State, update: Update) -> None:
    """Keep an update, without a copy, until the round is closed."""
    number = int(state.get("updates", 0))
    state["updates"] = np.array(number + 1)
    state[f"update/{number}"] = update.delta


def release(state: State, minimum: int) -> list[Vector]:
    """Take the updates out of the state, in the order in which they came.

    Raises
    ------
    QuorumError
        When there are fewer than ``minimum``.
    """
    updates = [state.pop(f"update/{number}") for number in range(int(state.pop("updates", 0)))]
    if len(updates) < minimum:
        raise QuorumError(
            f"the strategy needs at least {minimum} updates in a round with these settings, and {len(updates)} came"
        )
    return updates


def by_coordinate(updates: Sequence[Vector], rule: Rule) -> Vector:
    """Apply a rule to each coordinate's sorted values; shape ``(P,)``.

    Blocks are transposed so that a coordinate's values lie side by side, and cores take blocks in turn: no number depends on their count.
    """
    size, cores = len(updates[0]), os.cpu_count() or 1
    rows = min(max(1, BLOCK // len(updates)), -(-size // cores))
    result = np.empty(size, np.float32)

    def fill(core: int) -> None:
        block = np.empty((rows, len(updates)), np.float32)
        for start in range(core * rows, size, cores * rows):
            part = slice(start, start + rows)
            values = block[: len(result[part])]
            for place, update in enumerate(updates):
                values[:, place] = update[part]
            values.sort(axis=1)
            result[part] = rule(values)

    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(fill, range(cores)))
    return result
