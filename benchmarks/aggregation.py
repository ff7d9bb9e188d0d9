"""Aggregation against its limit and its peers, in one run: ``python benchmarks/aggregation.py``.

The limit of an average is ``sum += update`` with weights already applied; peers are numpy's multiply-then-add and Flower's FedAvg. The peer of
the robust rules is ``np.median`` over the stacked updates. Ways take turns and the best of each counts, so that a busy machine spoils little.
Updates come from a small pool, so that memory stays low: what is reported is the memory beyond the updates, in models.
"""

import argparse
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
from measure import Row, options, show
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.config import Choice
from common.flower import identity, quiet
from common.update import Update
from server.strategies import strategy_of

Vector = NDArray[np.float32]
POOL = 4
FLOWERS = 8
"""Updates that Flower's way is measured with."""


def main() -> None:
    """Measure and print."""

    def extend(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--updates", type=int, default=100, help="updates in a round")
        parser.add_argument("--parameters", type=int, default=25_000_000, help="length of an update")
        parser.add_argument(
            "--robust-parameters", type=int, default=1_000_000, help="length of an update for the robust rules"
        )

    args = options(__doc__ or "", extend)
    quiet()
    rows = average_rows(args) + robust_rows(args)
    show("aggregation", f"W2: aggregation of {args.updates} updates", rows, args)


def average_rows(args: argparse.Namespace) -> list[Row]:
    """Measure the ways to average."""
    updates = drawn(args.updates, args.parameters)
    few = updates[:FLOWERS]
    limit, ours, by_hand, flower = best(
        args.repeats,
        lambda: plain_sum(updates),
        lambda: aggregated("fedavg", updates),
        lambda: multiply_then_add(updates),
        flowers(few),
    )
    title = f"mean, {args.parameters:,} parameters"
    models = round(peak(lambda: aggregated("fedavg", updates)) / (4 * args.parameters), 3)
    return [
        Row(title, "ms", ours, "times the limit", 1.2, limit=limit),
        Row("  numpy: sum += weight * update", "ms", ours, "times faster than the peer", 1.0, peer=by_hand),
        # Flower holds all updates first; ten gigabytes of them do not fit everywhere.
        Row(
            "  Flower's FedAvg, by its time an update",
            "ms",
            ours,
            "times faster than the peer",
            1.0,
            peer=flower / len(few) * len(updates),
        ),
        Row("  memory beyond the updates", "models", models, "at most", 2.0),
    ]


def robust_rows(args: argparse.Namespace) -> list[Row]:
    """Measure the robust rules."""
    updates = drawn(args.updates, args.robust_parameters, pool=args.updates)
    stacked = np.stack([update.delta for update in updates])
    peer, median, trimmed = best(
        args.repeats,
        lambda: np.median(stacked, axis=0),
        lambda: aggregated("median", updates),
        lambda: aggregated("trimmed_mean", updates),
    )
    title = f"coordinate-wise median, {args.robust_parameters:,} parameters; peer np.median"
    return [
        Row(title, "ms", median, "times faster than the peer", 6.0, peer=peer),
        Row("  trimmed mean; peer np.median", "ms", trimmed, "times faster than the peer", 6.0, peer=peer),
    ]


def best(repeats: int, *ways: Callable[[], object]) -> list[float]:
    """Return each way's shortest time in milliseconds; they take turns."""
    times = [[1000.0 * timed(way) for way in ways] for _ in range(repeats)]
    return [min(each) for each in zip(*times, strict=True)]


def timed(way: Callable[[], object]) -> float:
    """Return the seconds of one call."""
    begun = time.perf_counter()
    way()
    return time.perf_counter() - begun


def peak(way: Callable[[], object]) -> int:
    """Return the most bytes that a way holds at once, beyond what stood before."""
    tracemalloc.start()
    way()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def drawn(count: int, size: int, pool: int = POOL) -> list[Update]:
    """Return updates that share the memory of ``pool`` different ones."""
    generator = np.random.default_rng(0)
    vectors = [generator.standard_normal(size, dtype=np.float32) for _ in range(min(pool, count))]
    return [Update(f"h{i}", vectors[i % len(vectors)], 100 + i) for i in range(count)]


def plain_sum(updates: list[Update]) -> Vector:
    """Add updates as if their weights had been applied."""
    total = np.zeros_like(updates[0].delta)
    for update in updates:
        total += update.delta
    return total


def multiply_then_add(updates: list[Update]) -> Vector:
    """Average as one writes it in numpy."""
    total = np.zeros_like(updates[0].delta)
    for update in updates:
        total += np.float32(update.num_examples) * update.delta
    return total / np.float32(sum(update.num_examples for update in updates))


def aggregated(name: str, updates: list[Update]) -> Vector:
    """Run one round of a strategy; the model itself counts as memory."""
    strategy = strategy_of(Choice(name))
    state = strategy.init(np.zeros_like(updates[0].delta), len(updates))
    for update in updates:
        strategy.accumulate(state, update)
    return strategy.finish(state)


def flowers(updates: list[Update]) -> Callable[[], object]:
    """Return Flower's aggregation of replies that are already there."""
    from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.serverapp.strategy import FedAvg

    with identity(1):
        request = Message(RecordDict(), dst_node_id=1, message_type="train")
    replies = []
    for update in updates:
        arrays = ArrayRecord({"weights": Array(update.delta)})
        metrics = MetricRecord({"num-examples": update.num_examples})
        replies.append(Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=request))
    return lambda: FedAvg().aggregate_train(1, replies)


if __name__ == "__main__":
    main()
