"""SYNTHETIC chest images: a seeded drawing, no patient. For trying things out where nothing can be downloaded."""

from pathlib import Path

import numpy as np
from numpy.random import Generator

from common.tasks.task import Array
from simulations.datasets.dataset import Dataset, Table
from simulations.datasets.pneumonia import CLASSES

ROWS = 2000
SEED = 28
SIDE = 28
ILL = 0.4


def read(_folder: Path) -> Table:
    """Draw bright bodies with two dark lungs; 'pneumonia' has stronger opacities in them than 'normal', but not always."""
    rng = np.random.default_rng(SEED)
    label = (rng.random(ROWS) < ILL).astype(np.int64)
    chest = _chests(rng) + _opacities(label, rng) + rng.normal(0, 10, (ROWS, SIDE, SIDE))
    images = np.clip(np.round(chest), 0, 255).astype(np.uint8)
    return Table({"image": images, "label": label}, label, CLASSES)


def _chests(rng: Generator) -> Array:
    exposure = rng.normal(165, 18, (ROWS, 1, 1))
    chest = np.broadcast_to(exposure, (ROWS, SIDE, SIDE)).copy()
    for side in (-1, 1):
        centre = np.array([14.0, 14.0 + 6.0 * side]) + rng.normal(0, 0.7, (ROWS, 2))
        chest -= rng.normal(85, 10, (ROWS, 1, 1)) * _bumps(
            centre, np.array([8.0, 4.0]) + rng.normal(0, 0.4, (ROWS, 2)), 4
        )
    return chest


def _opacities(label: Array, rng: Generator) -> Array:
    """Return two blurred spots an image, one a lung; their strength depends on the class, with much overlap."""
    spots = np.zeros((ROWS, SIDE, SIDE))
    for side in (-1, 1):
        centre = np.array([14.0, 14.0 + 6.0 * side]) + rng.normal(0, (4.0, 1.5), (ROWS, 2))
        strength = rng.gamma(2.0, np.where(label == 1, 28.0, 7.0))
        spots += strength[:, None, None] * _bumps(centre, rng.uniform(1.5, 3.5, (ROWS, 1)), 2)
    return spots


def _bumps(centre: Array, radius: Array, power: int) -> Array:
    """Return one bump of height 1 an image: centres ``(n, 2)``, radii ``(n, 1 or 2)`` in pixels, flatter for a higher even power."""
    grid = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij"))
    distance = (grid - centre[:, :, None, None]) / radius[:, :, None, None]
    return np.asarray(np.exp(-0.5 * (distance**power).sum(axis=1)))


PNEUMONIA_SYNTHETIC = Dataset(
    name="pneumonia-synthetic",
    title="SYNTHETIC chest images, 28x28, drawn by a program",
    task="pneumonia",
    origin="generator in this package",
    licence="Apache-2.0",
    citation="none: results on it say nothing about patients",
    rows=ROWS,
    read=read,
    synthetic=True,
)
