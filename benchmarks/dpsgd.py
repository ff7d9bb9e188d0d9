"""W5: a step of DP-SGD beside the plain step of the same model, batch and compiler: clipping alone, and with its noise.

``python benchmarks/dpsgd.py``. The limit is the product's own plain epoch, the peers' figures stand in docs/performance.md. Each turn of a work runs all three, so that a machine
whose speed drifts treats all alike; one thread.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from measure import Row, options, progress, show

from client import private, training
from common import backend
from common import network as networks
from common.config import Choice, TrainingConfig
from common.privacy.noise import Source
from common.tasks import task_of
from common.tasks.heart import COLUMNS

TURNS = 9
WORDS = 2000


@dataclass(frozen=True)
class Work:
    """A model, its preparation, and rows to train on for one epoch."""

    title: str
    task: Choice
    preparation: dict[str, Any]
    rows: int
    batch: int
    draw: Callable[[np.random.Generator, int], np.ndarray]
    clipped: float
    noised: float | None


FEATURES = {"mean": [0.0] * 22, "scale": [1.0] * 22}
WORKS = (
    Work(
        "MLP 35-16-1, batch 16",
        Choice("heart"),
        FEATURES,
        1600,
        16,
        lambda draw, n: draw.standard_normal((n, 22 + len(COLUMNS))).astype(np.float32),
        2.0,
        3.5,
    ),
    Work(
        "CNN 28x28x1, 346,561 parameters, batch 32",
        Choice("pneumonia"),
        {"mean": 128.0, "scale": 64.0},
        1280,
        32,
        lambda draw, n: draw.integers(0, 256, (n, 28, 28, 1), dtype=np.uint8),
        2.0,
        3.5,
    ),
    Work(
        f"LSTM over 50 words of {WORDS}, batch 32",
        Choice("notes", (("model", "lstm"),)),
        {"buckets": list(range(WORDS - 2))},
        640,
        32,
        lambda draw, n: draw.integers(0, WORDS, (n, 50)).astype(np.int32),
        4.0,
        None,
    ),
)


def milliseconds(work: Work) -> tuple[float, float, float]:
    """Return the median milliseconds of a step: plain, clipped, clipped and noised by fresh noise."""
    calls = _calls(work)
    steps = work.rows // work.batch
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(TURNS):
        for call, found in zip(calls, times, strict=True):
            begun = time.perf_counter()
            call()[0].numpy()
            found.append(1000 * (time.perf_counter() - begun) / steps)
    plain, clipped, noised = (statistics.median(found[1:]) for found in times)
    return plain, clipped, noised


def _calls(work: Work) -> tuple[Callable[[], Any], ...]:
    """Compile the three; each call is one epoch over the same batches."""
    import tensorflow as tf

    draw, task = np.random.default_rng(0), task_of(work.task)
    network = networks.build(task, work.preparation, (), 1)
    config = TrainingConfig(batch_size=work.batch, augment=False)
    method = training.method_of(task, config, proximal=False, controls=False)
    x, y = tf.constant(work.draw(draw, work.rows)), tf.constant(draw.integers(0, 2, work.rows), tf.int32)
    rows = training.plan(work.rows, work.batch, 1, draw)
    begin = tf.constant(network.vectors()[0]), backend.nothing(), x, y, tf.constant(rows)
    seeds = tf.constant([1, 2, len(rows)], tf.int32)
    plain = training.compile_fit(network, task, method, x.dtype)
    bounded = private.compile_fit(network, task, method, private.Bounds(1.0, 1), x.dtype)
    source, ends = Source(), tf.ones(len(rows), tf.bool)
    size, pace = private.numbers(network, len(rows)), tf.constant([0.1, 0.0, 1.0, float(work.batch)])

    def fresh() -> Any:
        return tf.constant(source.normals(size).reshape(len(rows), -1))

    old = fresh()
    return (
        lambda: plain(*begin, seeds, tf.constant([0.1, 0.0]), backend.nothing(), backend.nothing()),
        lambda: bounded(*begin, ends, old, seeds, pace, backend.nothing()),
        lambda: bounded(*begin, ends, fresh(), seeds, pace, backend.nothing()),
    )


def rows_of(work: Work) -> list[Row]:
    """Measure one work."""
    progress(work.title)
    plain, clipped, noised = milliseconds(work)
    rows = [Row(f"{work.title}: clipping", "ms a step", clipped, "times the limit", work.clipped, limit=plain)]
    if work.noised:
        rows.append(Row("  with its noise", "ms a step", noised, "times the limit", work.noised, limit=plain))
    return rows


def main() -> None:
    """Measure and print."""
    args = options(__doc__ or "")
    backend.start()
    show(
        "dpsgd",
        "W5: a step of DP-SGD; the limit is the plain step",
        [row for work in WORKS for row in rows_of(work)],
        args,
    )


if __name__ == "__main__":
    main()
