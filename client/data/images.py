"""Reading a hospital's images: a folder a class, or a table of file names and labels."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.data import tables
from client.data.report import Draft, Problem
from client.data.schema import DataMapping, Imported, codes_of, fold, label_column
from common.errors import DataError
from common.tasks.task import Array, Column, Task

SUFFIXES = (".png", ".jpg", ".jpeg")
EXPECTED = "expected a whole PNG or JPEG image"


def read(source: Path, task: Task, mapping: DataMapping, draft: Draft) -> Imported:
    """Read a folder of images, or a table whose image column holds file names relative to the table's folder.

    Images come out as bytes ``(n, *shape)``: cut to the task's proportions around the centre, then scaled (bicubic). Only pixels are kept: what cameras and
    scanners write into a file's own fields is left behind. Names burnt into the pixels are not looked for.
    """
    (column,) = (column for column in task.columns if column.kind == "image")
    draft.notes.append("text burnt into the pixels is not looked for")
    if source.is_dir():
        return _folders(source, column, task, mapping, draft)
    sheet = tables.sheet_of(source, mapping, draft)
    places = tables.places_of(sheet, tables.columns_in_file(task, mapping), mapping, draft)
    if column.name not in places:
        return Imported(draft.report(drop=False))
    shown = mapping.shown(column.name)
    images = np.zeros((len(sheet.rows), *column.shape), np.uint8)
    root = source.parent.resolve()
    for position, name in enumerate(sheet.column(places[column.name])):
        try:
            images[position] = load(_inside(root, name), column.shape)
        except DataError as error:
            draft.cell("image", str(error), position, shown)
    return tables.finished(sheet, places, task, mapping, draft, **{column.name: images})


def load(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return one image as bytes of the shape ``(height, width)`` or ``(height, width, 3)``.

    Raises
    ------
    DataError
        When the file is no whole PNG or JPEG image; the message names neither file nor content.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            # An image of absurd size is refused before it is unpacked.
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or 0):
                raise DataError(f"{EXPECTED} of at most {Image.MAX_IMAGE_PIXELS} pixels")
            image.load()
            upright = _eight_bits(ImageOps.exif_transpose(image))
            fitted = _fitted(upright.convert("RGB" if len(shape) == 3 else "L"), shape[1], shape[0])
            return np.asarray(fitted, np.uint8).reshape(shape)
    except (
        OSError,
        ValueError,
        SyntaxError,
        UnidentifiedImageError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ):
        raise DataError(EXPECTED) from None


def _fitted(image: Any, width: int, height: int) -> Any:
    """Cut the largest piece of the right proportions from the centre, then scale it. What is cut off does not bleed in."""
    from PIL import Image

    scale = min(image.width / width, image.height / height)
    wide, high = max(1, round(scale * width)), max(1, round(scale * height))
    left, top = (image.width - wide) // 2, (image.height - high) // 2
    return image.crop((left, top, left + wide, top + high)).resize((width, height), Image.Resampling.BICUBIC)


def _eight_bits(image: Any) -> Any:
    """Scale grey levels of 16 bits to 8, which Pillow would clip instead."""
    from PIL import Image

    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))


def _inside(root: Path, name: str) -> Path:
    try:
        path = (root / name.strip()).resolve()
        if path.is_relative_to(root) and path.is_file():
            return path
    except (OSError, ValueError):
        pass
    raise DataError("expected the name of an image file beside or below the table")


def _folders(source: Path, column: Column, task: Task, mapping: DataMapping, draft: Draft) -> Imported:
    classes = _classes(source, task, mapping)
    files = [(folder, number, path) for folder in classes for number, path in enumerate(_files(folder), 1)]
    if not files:
        raise DataError(f"no PNG or JPEG images in the class folders; expected {', '.join(SUFFIXES)}")
    draft.lines = [number for _, number, _ in files]
    images = np.zeros((len(files), *column.shape), np.uint8)
    for position, (folder, number, path) in enumerate(files):
        try:
            images[position] = load(path, column.shape)
        except DataError as error:
            _take_down(draft, position, Problem("image", str(error), number, column.name, folder.name))
    patients = _patients(files, mapping, draft)
    label = np.array([classes[folder] for folder, _, _ in files])
    return tables.taken({column.name: images, task.label: label}, patients, task, mapping, draft)


def _classes(source: Path, task: Task, mapping: DataMapping) -> dict[Path, float]:
    """Return the class of every folder, in the order of their names. A folder of another name is not shown: it may be a patient's."""
    known = codes_of(task, label_column(task), mapping.of(task.label).codes)
    folders = sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith("."))
    strangers = sum(fold(folder.name) not in known for folder in folders)
    if strangers or not folders:
        raise DataError(
            f"{strangers} of {len(folders)} folders are no class; expected one folder a class, named {', '.join(known)}, or codes in [data.columns.{task.label}]"
        )
    return {folder: known[fold(folder.name)] for folder in folders}


def _files(folder: Path) -> Iterator[Path]:
    yield from sorted(
        path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )


def _patients(files: list[tuple[Path, int, Path]], mapping: DataMapping, draft: Draft) -> Array | None:
    if not mapping.patient_in_file_name:
        draft.notes.append("no patient_in_file_name is set: every image counts as a patient of its own")
        return None
    pattern = re.compile(mapping.patient_in_file_name)
    patients = np.full(len(files), "", object)
    for position, (folder, number, path) in enumerate(files):
        match = pattern.search(path.name)
        if match and match.group(1):
            patients[position] = fold(match.group(1))
        else:
            problem = Problem(
                "no patient number", "expected a patient's number in the file's name", number, "", folder.name
            )
            _take_down(draft, position, problem)
    return patients


def _take_down(draft: Draft, position: int, problem: Problem) -> None:
    draft.bad.add(position)
    draft.problems.append(problem)
