"""What robust rules share: they hold every update of the round, and count hospitals alike, because a liar also lies about its patients."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from common.errors import QuorumError
from common.layout import Vector
from common.update import Update
from server.strategies.strategy import State

BLOCK = 131_072
"""Numbers sorted at a time: half a mebibyte, which stays in a core's own cache."""

Rule = Callable[[Vector], Vector]
"""From values of shape ``(rows, updates)``, each row sorted, to one value a row."""


def hold(state: State, update: Update) -> None:
    """Keep an update, without a copy, until the round is closed."""
    state[f"update/{sum(map(_is_update, state))}"] = update.delta


def release(state: State, minimum: int) -> list[Vector]:
    """Take the updates out of the state, in the order in which they came.

    Raises
    ------
    QuorumError
        When there are fewer than ``minimum``.
    """
    updates = [state.pop(name) for name in list(filter(_is_update, state))]
    if len(updates) < minimum:
        raise QuorumError(
            f"the strategy needs at least {minimum} updates in a round with these settings, and {len(updates)} came"
        )
    return updates


def by_coordinate(updates: Sequence[Vector], rule: Rule) -> Vector:
    """Apply a rule to each coordinate's sorted values; shape ``(P,)``.

    Blocks are transposed so that a coordinate's values lie side by side, and cores take blocks in turn: no number depends on their count.
    """
    size, rows, cores = len(updates[0]), max(1, BLOCK // len(updates)), os.cpu_count() or 1
    result = np.empty(size, np.float32)

    def fill(core: int) -> None:
        for start in range(core * rows, size, cores * rows):
            part = slice(start, start + rows)
            values = np.stack([update[part] for update in updates], axis=1)
            values.sort(axis=1)
            result[part] = rule(values)

    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(fill, range(cores)))
    return result


def _is_update(name: str) -> bool:
    return name.startswith("update/")
