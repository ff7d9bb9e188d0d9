"""Pneumonia on chest X-rays of 28x28 grey pixels (PneumoniaMNIST; Yang et al. 2023, Sci Data 10:41)."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from common.config import FRACTION, Range
from common.errors import DataError
from common.privacy.noise import Noise
from common.statistics import Statistics
from common.tasks.objective import BINARY
from common.tasks.task import Column, Examples, Preparation, Records, Task, told

SIDE = 28
COLUMNS = (Column("image", "image", "frontal chest X-ray", "grey level", 0, 255, shape=(SIDE, SIDE)),)


@dataclass(frozen=True)
class Pneumonia:
    """Settings of the task: a small convolutional network, 346,561 variables at width 32 without normalisation."""

    width: Annotated[int, Range(1, 4096), "filters of the convolution"] = 32
    normalisation: Annotated[Literal["none", "batch"], "batch normalisation after the convolution"] = "none"
    shift: Annotated[int, Range(0, SIDE - 1), "augmentation: largest shift, in pixels"] = 2
    brightness: Annotated[float, FRACTION, "augmentation: largest change of brightness, as a share of white"] = 0.1

    def build(self) -> Task:
        """Return the task."""
        return Task(
            name="pneumonia",
            title="Pneumonia on chest X-rays of 28x28 pixels",
            columns=COLUMNS,
            label="label",
            classes=("normal", "pneumonia"),
            objective=BINARY,
            summarise=summarise,
            fit=fit,
            encode=encode,
            classify=classify,
            build=self.network,
            augment=self.augment,
            noised=noised,
            summary="count, sum and sum of squares of all grey levels",
            parts={"head": ("output",)} | ({"normalisation": ("norm",)} if self.normalisation == "batch" else {}),
            # Chosen on the published validation images, 10 hospitals, labels by Dirichlet 0.3: momentum belongs at the server, because
            # at a hospital that has one class alone it only carries further astray.
            defaults={
                "rounds": 80,
                "strategy": {"name": "fedavgm", "momentum": 0.9},
                "training": {
                    "optimizer": "sgd",
                    "learning_rate": 0.06,
                    "learning_rate_decay": 0.98,
                    "batch_size": 32,
                    "epochs": 1,
                },
            },
        )

    def network(self, preparation: Preparation) -> Any:
        """Return the Keras model: raw grey levels in, one logit out.

        Scaling is the first layer, so that rows stay bytes in memory and a saved model reads pixels as they are. Its two numbers
        are constants of the layer, not variables, so that no strategy averages them.
        """
        import keras

        from common.layers import MaxPool

        inputs = keras.Input((SIDE, SIDE, 1), name="image")
        scale = preparation["scale"]
        scaled = keras.layers.Rescaling(1.0 / scale, -preparation["mean"] / scale, name="scaling")(inputs)
        features = keras.layers.Conv2D(self.width, 3, name="convolution")(scaled)
        if self.normalisation == "batch":
            features = keras.layers.BatchNormalization(name="norm")(features)
        # The maximum of rectified values is the rectified maximum, of a quarter as many.
        features = keras.layers.Activation("relu", name="relu")(MaxPool(2, name="pool")(features))
        hidden = keras.layers.Dense(64, activation="relu", name="hidden")(keras.layers.Flatten(name="flat")(features))
        return keras.Model(inputs, keras.layers.Dense(1, name="output")(hidden), name="pneumonia")

    def augment(self, images: Any, seed: Any) -> Any:
        """Shift every image and change its brightness, each by its own draw; no flips, because the heart has its side.

        ``images`` are bytes ``(n, 28, 28, 1)`` and stay so, ``seed`` is int32 ``(2,)``. What a shift uncovers repeats the nearest edge.
        """
        import tensorflow as tf

        count = tf.shape(images)[0]
        along, across, light = tf.unstack(tf.random.split(seed, 3))
        for axis, drawn in ((1, along), (2, across)):
            offsets = tf.random.stateless_uniform([count, 1], drawn, -self.shift, self.shift + 1, tf.int32)
            places = tf.clip_by_value(tf.range(SIDE)[None, :] + offsets, 0, SIDE - 1)
            images = tf.gather(images, places, axis=axis, batch_dims=1)
        change = tf.random.stateless_uniform([count, 1, 1, 1], light, -255.0 * self.brightness, 255.0 * self.brightness)
        return tf.cast(tf.clip_by_value(tf.round(tf.cast(images, tf.float32) + change), 0.0, 255.0), images.dtype)


def summarise(records: Records) -> Statistics:
    """Return count, sum and sum of squares of all pixels."""
    pixels = images_of(records).astype(np.float64)
    return {
        "count": np.array([float(pixels.size)]),
        "sum": np.array([pixels.sum()]),
        "squares": np.array([(pixels**2).sum()]),
    }


def noised(statistics: Statistics, noise: Noise) -> Statistics:
    """Noise the three sums; one image adds at most all its pixels at the brightest to each, whatever it shows."""
    names, largest = ("count", "sum", "squares"), np.array([SIDE**2 * 255.0**power for power in range(3)])
    values = np.concatenate([statistics[name] for name in names]) / largest
    private = noise(values, math.sqrt(3.0)) * largest
    return {name: private[place : place + 1] for place, name in enumerate(names)}


def fit(statistics: Statistics) -> Preparation:
    """Turn summed moments into one mean and deviation of the grey levels; what nobody tells of, or noise made impossible, is taken from the range of a byte."""
    count = float(statistics["count"][0])
    mean = float(statistics["sum"][0]) / count if count > 0 else -1.0
    if not 0 <= mean <= 255:
        return {"mean": 128.0, "scale": 64.0}
    variance = float(statistics["squares"][0]) / count - mean**2
    return {"mean": mean, "scale": variance**0.5 if variance > 1e-6 else 1.0}


def encode(records: Records, _preparation: Preparation) -> Examples:
    """Return the pixels as they are, bytes ``(n, 28, 28, 1)``: a quarter of the memory of floats. The model scales them."""
    return Examples(images_of(records)[..., None], classify(records))


def classify(records: Records) -> NDArray[np.int32]:
    """Return 1 where pneumonia is present (``label`` 1); without that column, 0."""
    return (told(records, "label") > 0).astype(np.int32)


def images_of(records: Records) -> NDArray[np.uint8]:
    """Return the images, bytes ``(n, 28, 28)``; raise `DataError` for another type or size."""
    images = np.asarray(records["image"])
    if images.dtype != np.uint8 or images.shape[1:] != (SIDE, SIDE):
        raise DataError(
            f"image: expected bytes of shape (n, {SIDE}, {SIDE}), got {images.dtype} of shape {images.shape}"
        )
    return images
