"""The forest from summed histograms over ten hospitals, beside scikit-learn's own fit of the pooled rows, in one run: 100,000 rows x 40 columns, 100 trees of depth 10.

``python benchmarks/forest.py``. Both take one thread, and seconds are the processor's. Ours bins the rows first, by edges from merged histograms, and counts every hospital's part one after another, as one processor has to
that stands for ten; what a hospital alone would wait for is a tenth of it. Vectors go from the one side to the other as they are; neither wire nor round loop is in it.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parent.parent))

import numpy as np
from measure import Row, options, progress, show

from common.tasks import bins
from common.tasks.forest import COUNTS, LEFT, Forest, Table
from common.tasks.task import Array, Examples

BINS = 32


def drawn(rows: int, columns: int) -> tuple[Array, Array]:
    """Draw rows, and classes that follow from a few columns and chance."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(rows, columns))
    signal = x[:, 0] * x[:, 1] + np.sin(2 * x[:, 2]) + x[:, 3]
    return x, (signal + generator.normal(size=rows) > 0).astype(np.int32)


def ours(forest: Forest, x: Array, y: Array, hospitals: int) -> tuple[Table, Array, float]:
    """Return the forest's weights, the edges of its bins, and the megabytes that a hospital sent."""
    low, high = np.full(x.shape[1], -5.0), np.full(x.shape[1], 5.0)
    parts = [slice(number, None, hospitals) for number in range(hospitals)]
    cuts = bins.edges(sum(bins.histogram(x[part], low, high) for part in parts), low, high, BINS)
    held = [Examples(bins.binned(x[part], cuts), y[part]) for part in parts]
    weights, sent = np.zeros(forest.trees * forest.capacity * (COUNTS + 2), np.float32), 0
    learner = forest.learner()
    for _ in range(forest.rounds):
        total = np.zeros(learner.size(weights))
        for examples in held:
            total += learner.contribution(weights, examples, 1)
        sent += 4 * total.size
        weights = learner.advance(weights, total, 1)
    return weights, cuts, sent / 1e6


def predicted(forest: Forest, weights: Table, x: Array) -> Array:
    """Return the classes that a forest predicts for binned rows."""
    votes = np.zeros((len(x), 2))
    for tree in forest.table(weights):
        place = np.zeros(len(x), np.int64)
        for _ in range(forest.depth):
            left, column = tree[place, LEFT].astype(np.int64), tree[place, 0].astype(np.int64)
            place = np.where(left > 0, left + (x[np.arange(len(x)), column] > tree[place, 1]), place)
        votes += tree[place, COUNTS:] / tree[place, COUNTS:].sum(axis=1, keepdims=True)
    return votes.argmax(axis=1)


def main() -> None:
    """Measure and print."""

    def extend(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--rows", type=int, default=100_000, help="rows of all hospitals together")
        parser.add_argument("--hospitals", type=int, default=10, help="count of hospitals")
        parser.add_argument("--batch", type=int, default=25, help="trees that grow side by side")

    args = options(__doc__ or "", extend)
    from sklearn.ensemble import RandomForestClassifier

    x, y = drawn(args.rows + 20_000, 40)
    train, test = slice(0, args.rows), slice(args.rows, None)
    progress("scikit-learn, pooled rows")
    begun = time.process_time()
    peer = RandomForestClassifier(100, max_depth=10, random_state=0).fit(x[train], y[train])
    theirs = time.process_time() - begun
    progress("ours, summed histograms")
    forest = Forest(columns=40, bins=BINS, classes=2, trees=100, depth=10, batch=args.batch)
    begun = time.process_time()
    weights, cuts, sent = ours(forest, x[train], y[train], args.hospitals)
    seconds = time.process_time() - begun
    accuracy = float((predicted(forest, weights, bins.binned(x[test], cuts)) == y[test]).mean())
    error, limit = 1 - accuracy, 1 - float(peer.score(x[test], y[test]))
    rows = [
        Row("all hospitals in turn (limit: scikit-learn)", "s", seconds, "times the limit", 5.0, limit=theirs),
        Row("error on 20,000 further rows (limit: scikit-learn)", "share", error, "times the limit", 1.1, limit=limit),
        Row("sent by a hospital in all rounds", "MB", sent, "at most", 250.0),
    ]
    show("forest", f"Random forest, {args.rows:,} rows x 40, {args.hospitals} hospitals", rows, args)


if __name__ == "__main__":
    main()
