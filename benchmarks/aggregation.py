"""Aggregation against its limit and its peers, in one run: ``python benchmarks/aggregation.py --updates 100 --parameters 25000000``.

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
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.config import Choice
from common.flower import identity, quiet
from common.update import Update
from server.strategies import strategy_of

Vector = NDArray[np.float32]
Ways = dict[str, Callable[[], object]]
POOL = 4


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=20, help="updates in a round")
    parser.add_argument("--parameters", type=int, default=2_000_000, help="length of an update")
    parser.add_argument(
        "--flower-updates", type=int, default=8, help="updates for Flower's way, which holds all of them"
    )
    parser.add_argument(
        "--robust-parameters", type=int, default=100_000, help="length of an update for the robust rules"
    )
    parser.add_argument("--repeat", type=int, default=5, help="turns; the best counts")
    asked = parser.parse_args()
    quiet()
    compare_averages(asked.updates, asked.parameters, min(asked.flower_updates, asked.updates), asked.repeat)
    compare_robust(asked.updates, asked.robust_parameters, asked.repeat)


def compare_averages(count: int, size: int, flower_count: int, repeat: int) -> None:
    """Print the ways to average, as ratios of the limit."""
    updates = drawn(count, size)
    ways: Ways = {
        "limit: sum += update": lambda: plain_sum(updates),
        "ours: fedavg": lambda: ours("fedavg", updates),
        "numpy: sum += weight * update": lambda: multiply_then_add(updates),
    }
    print(f"\nmean of {count} updates of {size:,} parameters")
    report(ways, repeat, dict.fromkeys(ways, count), "limit: sum += update", size)
    flower: Ways = {
        "limit: sum += update": lambda: plain_sum(updates[:flower_count]),
        "Flower: FedAvg": flowers(updates[:flower_count]),
    }
    print(f"\nmean of {flower_count} updates (Flower holds all of them first)")
    report(flower, repeat, dict.fromkeys(flower, flower_count), "limit: sum += update", size)


def compare_robust(count: int, size: int, repeat: int) -> None:
    """Print the robust rules, as ratios of ``np.median``."""
    updates = drawn(count, size, pool=count)
    stacked = np.stack([update.delta for update in updates])
    ways: Ways = {
        "numpy: np.median": lambda: np.median(stacked, axis=0),
        "ours: median": lambda: ours("median", updates),
        "ours: trimmed_mean": lambda: ours("trimmed_mean", updates),
    }
    print(f"\ncoordinate-wise, {count} updates of {size:,} parameters")
    report(ways, repeat, dict.fromkeys(ways, count), "numpy: np.median", size)


def report(ways: Ways, repeat: int, counts: dict[str, int], base: str, size: int) -> None:
    """Print time an update, ratio to the base, and peak memory beyond the updates, one way a line."""
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(repeat):
        for name, way in ways.items():
            begun = time.perf_counter()
            way()
            best[name] = min(best[name], time.perf_counter() - begun)
    print(f"{'way':32} {'ms/update':>10} {'ratio':>7} {'speed-up':>9} {'models':>7}")
    for name, way in ways.items():
        ratio = best[name] / best[base]
        print(
            f"{name:32} {1e3 * best[name] / counts[name]:10.3f} {ratio:7.2f} {1 / ratio:9.2f} {peak(way) / (4 * size):7.2f}"
        )


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


def ours(name: str, updates: list[Update]) -> Vector:
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
