"""SYNTHETIC blood cells: a seeded drawing, no patient. For trying things out where nothing can be downloaded."""

from pathlib import Path

import numpy as np
from numpy.random import Generator

from common.tasks.cells import CLASSES
from common.tasks.pictures import SIDE, scaled
from common.tasks.task import Array
from simulations.datasets.dataset import Dataset, Table

ROWS = 240
SEED = 224
DRAWN = 56
"""Pixels of a side as drawn, then scaled up."""
LOBES = (4, 1, 2, 2, 1)
"""Lobes of the nucleus by class; after them the colour of the body tells the classes apart."""
BODIES = ((215, 195, 215), (190, 200, 235), (195, 195, 215), (235, 165, 165), (150, 130, 190))
STAINS = {"east": ((235, 225, 210), (1.0, 1.0, 1.0)), "west": ((200, 215, 235), (0.8, 0.95, 1.1))}
"""Background by laboratory, and by what its camera multiplies each colour."""


def read(_folder: Path) -> Table:
    """Draw a nucleus of lobes in a coloured body, as each of two laboratories would see it."""
    rng = np.random.default_rng(SEED)
    label = rng.choice(len(CLASSES), ROWS, p=(0.4, 0.25, 0.15, 0.12, 0.08))
    hospital = np.where(np.arange(ROWS) < ROWS * 2 // 3, "east", "west")
    cells = np.stack([_cell(number, str(name), rng) for number, name in zip(label, hospital, strict=True)])
    images = scaled(np.clip(np.round(cells), 0, 255).astype(np.uint8), SIDE)
    return Table({"image": images, "label": label}, label, CLASSES, np.arange(ROWS), hospital=hospital)


def _cell(number: int, laboratory: str, rng: Generator) -> Array:
    background, gains = STAINS[laboratory]
    cell = np.broadcast_to(np.array(background, float), (DRAWN, DRAWN, 3))
    centre = DRAWN / 2 + rng.normal(0, 2, 2)
    cell = _painted(cell, centre, rng.uniform(17, 21), BODIES[number])
    turn = rng.uniform(0, 2 * np.pi)
    for lobe in range(LOBES[number]):
        angle = turn + 2 * np.pi * lobe / LOBES[number] + rng.normal(0, 0.2)
        away = 0.0 if LOBES[number] == 1 else 8.0
        place = centre + away * np.array([np.cos(angle), np.sin(angle)]) + rng.normal(0, 0.7, 2)
        cell = _painted(cell, place, rng.uniform(5.5, 7.5) * (1.8 if LOBES[number] == 1 else 1.0), (95, 60, 140))
    return np.asarray((cell + rng.normal(0, 12, cell.shape)) * gains * rng.normal(1, 0.05))


def _painted(image: Array, centre: Array, radius: float, colour: tuple[int, ...]) -> Array:
    """Paint a disc with a soft edge of about two pixels over an image."""
    grid = np.stack(np.meshgrid(np.arange(DRAWN), np.arange(DRAWN), indexing="ij"), axis=-1)
    distance = np.linalg.norm(grid - centre, axis=-1)
    cover = (1.0 / (1.0 + np.exp(2.0 * (distance - radius))))[..., None]
    return np.asarray(image * (1.0 - cover) + cover * np.array(colour, float))


BLOOD_CELLS_SYNTHETIC = Dataset(
    name="blood-cells-synthetic",
    title="SYNTHETIC blood cells in colour, drawn by a program",
    task="cells",
    origin="generator in this package",
    licence="Apache-2.0",
    citation="none: results on it say nothing about patients",
    rows=ROWS,
    read=read,
    synthetic=True,
    also=("cells-vgg16",),
)
