"""A random forest that is grown from summed histograms (Breiman 2001, Machine Learning 45:5-32): hospitals together grow the trees that their pooled rows would.

All trees of a batch grow side by side, a level a round. A hospital counts, for every node that is to be split, how many of its rows have which bin and class in each of a few columns drawn for
the node; the coordinator chooses splits from the sums. A forest is one table of rows ``feature, bin, left, counts of the classes``, a row a node:

- a row of the data whose bin in ``feature`` is at most ``bin`` goes to the node ``left``, any other to the next one;
- ``left`` is 0 for a leaf, and below 0 for a node that is still to be split: ``-1 - depth``;
- ``bin`` is -1 for a node that was counted and had no row.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import UpdateRejected
from common.layout import Vector
from common.seeds import seed_for
from common.tasks.learner import Learner, Sums
from common.tasks.task import Examples

FEATURE, BIN, LEFT, COUNTS = range(4)
SLICE = 2048
"""Nodes whose splits are chosen at a time, so that memory stays flat."""
_POISSON = np.cumsum(np.exp(-1.0) / np.array([1, 1, 2, 6, 24, 120, 720, 5040.0]))
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_STEP = np.uint64(0x9E3779B97F4A7C15)

Table = NDArray[np.float32]


@dataclass(frozen=True)
class Forest:
    """What is fixed before a forest grows: rows of ``columns`` bins, each from 0 to ``bins - 1``, of ``classes`` classes.

    ``batch`` trees grow side by side, no deeper than ``depth`` and no larger than ``nodes``; ``tried`` columns are drawn for every node, and a split leaves ``least`` rows or more on
    either side.

    Guarantee
    ---------
    Only counts leave a hospital, and what they decide is a bin's edge, which the preparation fixed: no threshold is a patient's value. The forest is bit for bit the
    one that grows from the pooled rows in one place.

    Edge cases
    ----------
    - How often a tree draws a row follows from the row's content and the run's seed, so that it does not depend on who holds it. Equal rows are drawn equally often.
    - Counts are exact, and deep nodes hold few rows: without secure aggregation the coordinator sees each hospital's counts, down to a single patient's bins in the columns that were drawn.
    - A hospital that misses a round is missing from that level's counts alone; a node that nobody counted keeps what was known of it, and is a leaf.
    """

    columns: int
    bins: int
    classes: int
    trees: int = 100
    depth: int = 10
    nodes: int = 2047
    tried: int = 0
    least: int = 1
    batch: int = 100

    @property
    def capacity(self) -> int:
        """Return how many nodes a tree has room for."""
        return min(self.nodes, (2 << self.depth) - 1)

    @property
    def rounds(self) -> int:
        """Return how many rounds the forest takes at most."""
        return self.depth * -(-self.trees // self.batch)

    @property
    def drawn(self) -> int:
        """Return how many columns are drawn for a node; where none is set, the square root of all."""
        return min(self.tried or max(1, round(self.columns**0.5)), self.columns)

    def learner(self) -> Learner:
        """Return the rule from sums to trees."""
        return Learner(self.size, self.contribute, self.advance)

    def table(self, weights: Vector) -> Table:
        """Return the weights as ``(trees, capacity, 3 + classes)``."""
        return weights.reshape(self.trees, self.capacity, COUNTS + self.classes)

    def size(self, weights: Vector) -> int:
        """Return how many counts a hospital sends next."""
        return len(frontier(self.table(weights), self.batch)[0]) * self.drawn * self.bins * self.classes

    def contribute(self, weights: Vector, examples: Examples, seed: int) -> NDArray[np.float64]:
        """Count ``(nodes, drawn columns, bins, classes)``, flat; raise `UpdateRejected` for weights that are no forest."""
        table = self.table(weights)
        self._check(table)
        trees, nodes = frontier(table, self.batch)
        x, y = np.asarray(examples.x), np.asarray(examples.y, np.int64)
        chosen, keys = self.draw(trees, nodes, seed), row_keys(x, y, seed)
        # Of all nodes, since a list has to hold one part at least.
        parts = [np.zeros(0)]
        for tree, slots, at in _by_tree(trees, nodes):
            parts.append(self._count(table[tree], at, chosen[slots], x, y, drawn_times(keys, tree)))
        return np.concatenate(parts)

    def _check(self, table: Table) -> None:
        """Refuse a table in which a row would walk in a circle, or out of it: it came from outside."""
        parts, left = table[:, :, :COUNTS], table[:, :, LEFT]
        sound = (
            np.isfinite(table).all()
            and (parts == np.rint(parts)).all()
            and ((left <= 0) | ((left > np.arange(self.capacity)) & (left + 1 < self.capacity))).all()
            and ((table[:, :, FEATURE] >= 0) & (table[:, :, FEATURE] < self.columns)).all()
        )
        if not sound:
            raise UpdateRejected("layout", "the weights sent are no forest: a node leads to one before it, or beyond")

    def _count(
        self,
        tree: Table,
        at: NDArray[np.int64],
        chosen: NDArray[np.int64],
        x: NDArray[Any],
        y: NDArray[np.int64],
        times: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """Count the rows of one tree's nodes ``at``, each as often as it was drawn."""
        place = np.full(self.capacity, -1)
        place[at] = np.arange(len(at))
        rows = np.flatnonzero(times)
        slot = place[_walk(tree, x, rows)]
        rows, slot = rows[slot >= 0], slot[slot >= 0]
        columns = chosen[slot]
        cells = (slot[:, None] * self.drawn + np.arange(self.drawn)) * self.bins + x[rows[:, None], columns]
        cells = cells * self.classes + y[rows, None]
        weights = np.repeat(times[rows].astype(np.float64), self.drawn)
        size = len(at) * self.drawn * self.bins * self.classes
        return np.asarray(np.bincount(cells.ravel(), weights, size), np.float64)

    def draw(self, trees: NDArray[np.int64], nodes: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
        """Return the columns drawn for every node, ``(nodes, drawn)``, the same at every hospital."""
        key = (int(trees[0]), int(nodes[0])) if len(trees) else (0, 0)
        generator = np.random.default_rng(seed_for(seed, "columns", *key))
        lots = generator.random((len(trees), self.columns), np.float32)
        return np.sort(np.argpartition(lots, self.drawn - 1, axis=1)[:, : self.drawn], axis=1)

    def advance(self, weights: Vector, sums: Sums, seed: int) -> Vector:
        """Split the nodes that were counted, where a split makes their classes purer (Gini); return the new weights."""
        table = self.table(weights.copy())
        trees, nodes = frontier(table, self.batch)
        if not len(trees):
            return weights
        chosen = self.draw(trees, nodes, seed)
        counts = np.rint(sums).reshape(len(trees), self.drawn, self.bins, self.classes)
        level = -1 - int(min(table[trees[0], nodes[0], LEFT], -1))
        summed = counts[:, 0].sum(axis=1)
        counted = summed.any(axis=1)
        table[trees[counted], nodes[counted], COUNTS:] = summed[counted]
        table[trees[~counted], nodes[~counted], BIN] = -1
        table[trees, nodes, LEFT] = 0
        splits = [self._best(counts[at : at + SLICE]) for at in range(0, len(trees), SLICE)]
        split, column, edge, lefts, rights = (np.concatenate(parts) for parts in zip(*splits, strict=True))
        last = table[:, :, LEFT].max(axis=1).astype(np.int64)
        left = np.where(last > 0, last + 2, 1)[trees] + 2 * _rank(trees, split)
        split &= left + 1 < self.capacity
        parents = trees[split], nodes[split]
        table[(*parents, FEATURE)] = np.take_along_axis(chosen, column[:, None], axis=1)[split, 0]
        table[(*parents, BIN)] = edge[split]
        table[(*parents, LEFT)] = left[split]
        for side, found in enumerate((lefts[split], rights[split])):
            child = parents[0], left[split] + side
            table[(*child, slice(COUNTS, None))] = found
            table[(*child, LEFT)] = np.where(self._grows(found, level + 1), -2 - level, 0)
        return table.reshape(-1)

    def _grows(self, counts: NDArray[np.float64], level: int) -> NDArray[np.bool_]:
        """Tell which nodes of these class counts may be split."""
        rows = counts.sum(axis=1)
        grows: NDArray[np.bool_] = (rows > counts.max(axis=1)) & (rows >= 2 * self.least) & (level < self.depth)
        return grows

    def _best(self, counts: NDArray[np.float64]) -> tuple[NDArray[Any], ...]:
        """Return for every node whether it is split, at which of its columns and bins, and the class counts on either side."""
        left = counts.cumsum(axis=2)
        total = left[:, :, -1:]
        left = left[:, :, :-1]
        right = total - left
        rows = left.sum(axis=3), right.sum(axis=3)
        pure = sum((side**2).sum(axis=3) / np.maximum(n, 1) for side, n in zip((left, right), rows, strict=True))
        pure = np.where((rows[0] >= self.least) & (rows[1] >= self.least), pure, -1.0).reshape(len(counts), -1)
        best = pure.argmax(axis=1)
        column, edge = np.divmod(best, self.bins - 1)
        every, whole = np.arange(len(counts)), total[:, 0, 0]
        before = (whole**2).sum(axis=1) / np.maximum(whole.sum(axis=1), 1)
        # As an impurity this is a share of 1e-9: beyond what rounding makes of two equal ones.
        gains = pure[every, best] > before * (1 + 1e-9)
        return gains, column, edge, left[every, column, edge], right[every, column, edge]

    def network(self, inputs: Any, name: str) -> Any:
        """Return the Keras model from bins ``(n, columns)`` to the logarithms of the classes' probabilities.

        It is made of Keras's own operations alone: the table is the one weight, of an embedding, and every step down is a look-up.
        """
        import keras
        from keras import ops

        table = keras.layers.Embedding(
            self.trees * self.capacity, COUNTS + self.classes, "zeros", trainable=False, name="trees"
        )
        root = ops.expand_dims(ops.arange(self.trees, dtype="int32") * self.capacity, 0)
        start = ops.cast(ops.zeros_like(inputs[:, :1]), "int32") + root
        place = start
        for _ in range(self.depth):
            node = table(place)
            value = ops.take_along_axis(inputs, ops.cast(node[:, :, FEATURE], "int32"), axis=1)
            beyond = ops.cast(value > node[:, :, BIN], "int32")
            left = ops.cast(node[:, :, LEFT], "int32")
            place = ops.where(left > 0, start + left + beyond, place)
        counts = table(place)[:, :, COUNTS:]
        shares = counts / ops.maximum(ops.sum(counts, axis=2, keepdims=True), 1.0)
        # One tree more that knows nothing keeps the logarithm finite.
        votes = ops.sum(shares, axis=1) + 1.0 / self.classes
        return keras.Model(inputs, ops.log(votes / ops.sum(votes, axis=1, keepdims=True)), name=name)


def frontier(table: Table, batch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return tree and place of every node that is to be split next: those of the batch that grows, or the roots of the next one."""
    trees, nodes = np.nonzero(table[:, :, LEFT] < 0)
    if not len(trees):
        trees = np.flatnonzero((table[:, 0, COUNTS:].sum(axis=1) == 0) & (table[:, 0, BIN] == 0))[:batch]
        nodes = np.zeros_like(trees)
    return trees, nodes


def row_keys(x: NDArray[Any], y: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """Return a number of 64 bits for every row that follows from its content and the seed alone."""
    keys = np.full(len(x), seed_for(seed, "rows").generate_state(1, np.uint64)[0])
    for column in (*x.T, y):
        keys = _mixed(keys ^ column.astype(np.uint64))
    return keys


def drawn_times(keys: NDArray[np.uint64], tree: int) -> NDArray[np.int64]:
    """Return how often a tree draws every row: Poisson of mean 1, as a bootstrap sample of many rows has it (Oza and Russell 2001)."""
    with np.errstate(over="ignore"):
        lots = _mixed(keys + _STEP * np.uint64(tree + 1))
    return np.searchsorted(_POISSON, (lots >> np.uint64(11)) * 2.0**-53, side="right")


def _mixed(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix the bits of numbers (Steele, Lea and Flood 2014, SplitMix64)."""
    keys = keys + _STEP
    keys = (keys ^ (keys >> np.uint64(30))) * _MIX[0]
    keys = (keys ^ (keys >> np.uint64(27))) * _MIX[1]
    return keys ^ (keys >> np.uint64(31))


def _by_tree(trees: NDArray[np.int64], nodes: NDArray[np.int64]) -> Iterator[tuple[int, slice, NDArray[np.int64]]]:
    """Yield every tree, where its nodes lie in the list of all, and which they are."""
    starts = np.flatnonzero(np.diff(trees, prepend=-1))
    for start, end in zip(starts, np.append(starts, len(trees))[1:], strict=True):
        yield int(trees[start]), slice(start, end), nodes[start:end]


def _walk(tree: Table, x: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the node of a tree at which each of the rows is now."""
    feature, edge, left = (tree[:, part].astype(np.int64) for part in (FEATURE, BIN, LEFT))
    place = np.zeros(len(rows), np.int64)
    moving = np.arange(len(rows)) if left[0] > 0 else np.zeros(0, np.int64)
    while len(moving):
        at = place[moving]
        place[moving] = left[at] + (x[rows[moving], feature[at]] > edge[at])
        moving = moving[left[place[moving]] > 0]
    return place


def _rank(trees: NDArray[np.int64], split: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return for every node how many before it in its tree are split."""
    before: NDArray[np.int64] = np.cumsum(split) - split
    first = np.flatnonzero(np.diff(trees, prepend=-1))
    return before - np.repeat(before[first], np.diff(np.append(first, len(trees))))
