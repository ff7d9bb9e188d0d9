"""The limit: a tight TensorFlow loop, written without the product but for its pooling: one compiled function over the whole local epoch, weights in and out.

Usage: limit.py WORK REPEATS THREADS [xla]. Prints the milliseconds of every round, by the clock and of the processor: all hospitals of the cohort one after another, plain SGD, weights
and patients as numpy arrays, and the average of the models.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).parent.parent))

import numpy as np
from work import WORKS, Work

Weights = list[Any]


def initial(work: Work) -> Weights:
    """Draw the first weights."""
    generator = np.random.default_rng(1)
    if len(work.shape) > 1:
        shapes = [(3, 3, 1, 32), (32,), (5408, 64), (64,), (64, 1), (1,)]
    else:
        shapes = [(work.shape[0], 16), (16,), (16, 1), (1,)]
    return [generator.normal(0, 0.05, shape).astype(np.float32) for shape in shapes]


def forward(work: Work, weights: Weights, x: Any) -> Any:
    """Return the logits of a batch."""
    import tensorflow as tf

    from common import layers

    if len(work.shape) > 1:
        x = tf.nn.conv2d(tf.cast(x, tf.float32) / 255.0, weights[0], 1, "VALID") + weights[1]
        # The product's own pooling, and before the rectifier: TensorFlow's gradient of it takes five times as long in half of all traces.
        x = tf.reshape(tf.nn.relu(layers.max_pool(x, 2)), [-1, 5408])
    hidden, bias, output, last = weights[-4:]
    return (tf.nn.relu(x @ hidden + bias) @ output + last)[:, 0]


def compile_epochs(work: Work, *, xla: bool) -> Callable[..., Any]:
    """Return the compiled function ``(x, y, order, *weights) -> weights``; ``order`` holds the row numbers of every step's batch."""
    import tensorflow as tf

    def epochs(x: Any, y: Any, order: Any, *weights: Any) -> Any:
        def step(index: Any, *weights: Any) -> Any:
            rows = order[index]
            with tf.GradientTape() as tape:
                tape.watch(weights)
                logits = forward(work, list(weights), tf.gather(x, rows))
                losses = tf.nn.sigmoid_cross_entropy_with_logits(tf.cast(tf.gather(y, rows), tf.float32), logits)
                loss = tf.reduce_mean(losses)
            gradients = tape.gradient(loss, weights)
            return index + 1, *[w - work.learning_rate * g for w, g in zip(weights, gradients, strict=True)]

        return tf.while_loop(lambda index, *_: index < tf.shape(order)[0], step, (tf.constant(0), *weights))[1:]

    return tf.function(epochs, jit_compile=xla)  # type: ignore[no-any-return]


def draw(work: Work, rows: int, generator: np.random.Generator) -> Any:
    """Draw the batches of the local epochs; the last one is filled up from the start, where ours is padded and masked."""
    size = -(-rows // work.batch_size) * work.batch_size
    orders = [np.resize(generator.permutation(rows), size).reshape(-1, work.batch_size) for _ in range(work.epochs)]
    return np.concatenate(orders).astype(np.int32)


def measure(work: Work, repeats: int, *, xla: bool) -> dict[str, list[float]]:
    """Return the milliseconds of each round, by the clock and of the processor, after two that do not count."""
    epochs, weights = compile_epochs(work, xla=xla), initial(work)
    times: dict[str, list[float]] = {"rounds": [], "cpu": []}
    patients = [work.patients(number) for number in range(work.cohort)]
    generator = np.random.default_rng(1)
    for _ in range(repeats + 2):
        start, cpu = time.perf_counter(), time.process_time()
        total = [np.zeros_like(weight) for weight in weights]
        for x, y in patients:
            for added, weight in zip(total, epochs(x, y, draw(work, len(y), generator), *weights), strict=True):
                np.add(added, weight.numpy(), out=added)
        weights = [added / np.float32(work.cohort) for added in total]
        times["rounds"].append(1000.0 * (time.perf_counter() - start))
        times["cpu"].append(1000.0 * (time.process_time() - cpu))
    return {name: values[2:] for name, values in times.items()}


def main() -> None:
    """Measure what the command line asks for."""
    # By itself TensorFlow uses oneDNN only on processors with AVX-512 VNNI; elsewhere it is two to three times faster too.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    import tensorflow as tf

    work, repeats, threads = WORKS[sys.argv[1]], int(sys.argv[2]), int(sys.argv[3])
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    print(json.dumps(measure(work, repeats, xla=sys.argv[4:] == ["xla"])))


if __name__ == "__main__":
    main()
