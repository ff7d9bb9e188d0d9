"""Image folders: from files to bytes in the task's size, and on into training, beside `tf.data` from the same folder in one run.

``python benchmarks/images.py``. Pictures are drawn for the measurement: PNG as of a microscope's cut-outs, JPEG as of a camera. Both sides use all processors, cut nothing (the
pictures are square) and scale bicubically; `tf.data` reads, decodes and scales in parallel, and prefetches while the model trains.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measure import Row, options, progress, show
from PIL import Image

from client.data import images
from common import backend

SIDE = 224
BATCH = 16


def main() -> None:
    """Measure and print."""

    def extend(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--images", type=int, default=256, help="pictures in each folder (default: 256)")
        parser.add_argument("--epochs", type=int, default=3, help="passes of the training (default: 3)")

    args = options(__doc__ or "", extend)
    backend.start()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for what, side, suffix in (("PNG of 300 pixels", 300, "png"), ("JPEG of 1,500 pixels", 1500, "jpg")):
            files = drawn(Path(folder) / suffix, args.images, side, suffix)
            rows.append(
                compared(f"{what}, decoded", args, lambda files=files: ours(files), lambda files=files: theirs(files))
            )
        step, epochs = trainer(), args.epochs
        files = sorted((Path(folder) / "png").iterdir())
        what = f"PNG of 300 pixels, decoded and trained on, {epochs} epochs"
        rows.append(
            compared(what, args, lambda: train_ours(files, step, epochs), lambda: train_theirs(files, step, epochs))
        )
    show("images", "Image folders; the peer is tf.data", rows, args)


def compared(what: str, args: argparse.Namespace, mine: Callable[[], object], peer: Callable[[], object]) -> Row:
    """Let both take turns; return the medians in milliseconds a picture."""
    taken: dict[str, list[float]] = {"mine": [], "peer": []}
    for number in range(args.repeats + 1):
        progress(f"{what}: {number + 1} of {args.repeats + 1}")
        for name, call in (("mine", mine), ("peer", peer)):
            begun = time.perf_counter()
            call()
            taken[name].append(1000 * (time.perf_counter() - begun) / args.images)
    # The first turn compiles and fills the file cache.
    medians = {name: statistics.median(times[1:]) for name, times in taken.items()}
    return Row(what, "ms a picture", medians["mine"], "times faster than the peer", 1.0, peer=medians["peer"])


def drawn(folder: Path, count: int, side: int, suffix: str) -> list[Path]:
    """Write pictures with shapes and grain; return their files."""
    folder.mkdir()
    draw = np.random.default_rng(1)
    y, x = np.mgrid[:side, :side] / side
    for number in range(count):
        waves = [np.sin(a * x + b * y) for a, b in draw.uniform(3, 20, (3, 2))]
        pixels = 127 + 80 * np.stack(waves, axis=-1) + draw.normal(0, 6, (side, side, 1))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:04}.{suffix}", quality=90)
    return sorted(folder.iterdir())


def ours(files: list[Path]) -> Any:
    """Decode as an import does."""
    return images.decoded(files, lambda file: file, (SIDE, SIDE, 3))[0]


def pipeline(files: list[Path]) -> Any:
    """Return a `tf.data` pipeline over the files, in batches."""
    import tensorflow as tf

    def one(name: Any) -> Any:
        pixels = tf.io.decode_image(tf.io.read_file(name), channels=3, expand_animations=False)
        scaled = tf.image.resize(pixels, (SIDE, SIDE), "bicubic", antialias=True)
        return tf.cast(tf.clip_by_value(tf.round(scaled), 0, 255), tf.uint8)

    names = tf.data.Dataset.from_tensor_slices([str(file) for file in files])
    return names.map(one, num_parallel_calls=tf.data.AUTOTUNE).batch(BATCH).prefetch(tf.data.AUTOTUNE)


def theirs(files: list[Path]) -> None:
    """Run the pipeline to its end."""
    for _ in pipeline(files):
        pass


def trainer() -> Callable[[Any], Any]:
    """Return one compiled step of a small convolutional network on a batch of bytes."""
    import keras
    import tensorflow as tf

    model = keras.Sequential(
        [
            keras.layers.Conv2D(8, 3, strides=4, activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(1),
        ]
    )
    model.build((None, SIDE, SIDE, 3))

    @tf.function(autograph=False)
    def step(batch: Any) -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model(tf.cast(batch, tf.float32) / 255.0) ** 2)
        for weight, gradient in zip(
            model.trainable_variables, tape.gradient(loss, model.trainable_variables), strict=True
        ):
            weight.value.assign_sub(0.01 * gradient)

    return step


def train_ours(files: list[Path], step: Callable[[Any], Any], epochs: int) -> None:
    """Decode once, keep the bytes, and train."""
    import tensorflow as tf

    pixels = tf.constant(ours(files))
    for _ in range(epochs):
        for begin in range(0, len(files), BATCH):
            step(pixels[begin : begin + BATCH])


def train_theirs(files: list[Path], step: Callable[[Any], Any], epochs: int) -> None:
    """Decode in parallel with training, anew in every epoch, but for what the pipeline's cache keeps."""
    batches = pipeline(files).cache()
    for _ in range(epochs):
        for batch in batches:
            step(batch)


if __name__ == "__main__":
    main()
