"""Colour pictures: what tasks share that learn from them. Their size, their moments, and random changes to them that a compiled step makes."""

import math
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from common.config import FRACTION, Range
from common.errors import DataError
from common.privacy.noise import Noise
from common.statistics import Statistics
from common.tasks.task import Preparation, Records

SIDE = 224
"""Pixels of a side as hospitals keep their pictures; a run with a smaller side scales them down."""
SHAPE = (SIDE, SIDE, 3)
_MOMENTS = ("count", "sum", "squares")


@dataclass(frozen=True)
class Changes:
    """Settings of the random changes. Each picture has its own draws; a field of 0 (or false) changes nothing."""

    flip: Annotated[bool, "augmentation: mirror left and right, and up and down, each for half of the images"] = True
    rotation: Annotated[float, Range(0, 180), "augmentation: largest rotation, in degrees"] = 180.0
    zoom: Annotated[float, Range(0, 0.9), "augmentation: largest change of size, as a share"] = 0.1
    brightness: Annotated[float, FRACTION, "augmentation: largest change of brightness, as a share of white"] = 0.1
    colour: Annotated[
        float,
        FRACTION,
        "augmentation: largest change of each colour by itself, as a share, as stains and cameras differ",
    ] = 0.1

    def augment(self, images: Any, seed: Any) -> Any:
        """Turn, scale, mirror and colour every image, each by its own draw.

        ``images`` are bytes ``(n, side, side, 3)`` and stay so, ``seed`` is int32 ``(2,)``. Between pixels values are interpolated; beyond the edge the image is mirrored.
        """
        import tensorflow as tf

        draws = tf.random.stateless_uniform([tf.shape(images)[0], 8], seed, -1.0, 1.0)
        moved = tf.cast(images, tf.float32)
        if self.flip or self.rotation or self.zoom:
            moved = tf.raw_ops.ImageProjectiveTransformV3(
                images=moved,
                transforms=self.transforms(draws[:, :4], images.shape[1]),
                output_shape=list(images.shape[1:3]),
                fill_value=0.0,
                interpolation="BILINEAR",
                fill_mode="REFLECT",
            )
        gains = 1.0 + self.colour * draws[:, None, None, 4:7]
        lit = moved * gains + 255.0 * self.brightness * draws[:, None, None, 7:]
        return tf.cast(tf.clip_by_value(tf.round(lit), 0.0, 255.0), images.dtype)

    def transforms(self, draws: Any, side: int) -> Any:
        """Return, from draws ``(n, 4)`` between -1 and 1, where each pixel of a result comes from: ``(n, 8)``, as TensorFlow's projective transforms, around the centre."""
        import tensorflow as tf

        angle, size, across, along = tf.unstack(draws, axis=1)
        angle, scale = angle * math.radians(self.rotation), 1.0 / (1.0 + self.zoom * size)
        mirrors = [tf.where(draw < 0.0, -1.0, 1.0) if self.flip else tf.ones_like(draw) for draw in (across, along)]
        a, b = tf.cos(angle) * scale * mirrors[0], -tf.sin(angle) * scale * mirrors[1]
        c, d = tf.sin(angle) * scale * mirrors[0], tf.cos(angle) * scale * mirrors[1]
        centre, nothing = (side - 1) / 2, tf.zeros_like(angle)
        rows = [a, b, centre * (1 - a - b), c, d, centre * (1 - c - d), nothing, nothing]
        return tf.stack(rows, axis=1)


def images_of(records: Records) -> NDArray[np.uint8]:
    """Return the images, bytes ``(n, 224, 224, 3)``; raise `DataError` for another type or size."""
    images = np.asarray(records["image"])
    if images.dtype != np.uint8 or images.shape[1:] != SHAPE:
        raise DataError(
            f"image: expected bytes of shape (n, {SIDE}, {SIDE}, 3), got {images.dtype} of shape {images.shape}"
        )
    return images


def scaled(images: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return images ``(n, height, width, 3)`` in another size (bicubic), bytes ``(n, side, side, 3)``; as they are where they have it."""
    if images.shape[1] == side == images.shape[2]:
        return images
    from PIL import Image

    result = np.empty((len(images), side, side, 3), np.uint8)
    for place, image in enumerate(images):
        result[place] = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))
    return result


def summarise(records: Records) -> Statistics:
    """Return, by colour, the count of pixels, their sum and sum of squares, as shares of white: from histograms, whatever the number of images.

    As shares, twenty million images stay below the most that a secure sum holds.
    """
    levels = np.zeros((3, 256), np.int64)
    for image in images_of(records):
        levels += [np.bincount(image[..., colour].reshape(-1), minlength=256) for colour in range(3)]
    share = np.arange(256) / 255
    return {"count": levels.sum(axis=1).astype(np.float64), "sum": levels @ share, "squares": levels @ share**2}


def noised(statistics: Statistics, noise: Noise) -> Statistics:
    """Noise the nine sums; one image adds at most the count of its pixels to each, whatever it shows."""
    values = np.stack([statistics[name] for name in _MOMENTS]) / SIDE**2
    return dict(zip(_MOMENTS, noise(values, math.sqrt(values.size)) * SIDE**2, strict=True))


def fit(statistics: Statistics) -> Preparation:
    """Turn summed moments into mean and deviation of the levels (0 to 255) by colour; what nobody tells of, or noise made impossible, is taken from the range of a byte."""
    count = statistics["count"]
    mean = statistics["sum"] / np.where(count > 0, count, -1.0)
    if not ((count > 0) & (mean >= 0) & (mean <= 1)).all():
        return {"mean": [128.0] * 3, "scale": [64.0] * 3}
    variance = statistics["squares"] / count - mean**2
    deviation = np.where(variance > 1e-10, np.sqrt(np.maximum(variance, 1e-10)), 1 / 255)
    return {"mean": (255 * mean).tolist(), "scale": (255 * deviation).tolist()}
