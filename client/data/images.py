"""Reading a hospital's images: a folder a class, or a table of file names and labels."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.data import dicom, tables
from client.data.report import Draft, Problem
from client.data.schema import DataMapping, Imported, codes_of, fold, label_column
from common.errors import DataError
from common.tasks.task import Array, Column, Task

SUFFIXES = (".png", ".jpg", ".jpeg", *dicom.SUFFIXES)
EXPECTED = "expected a whole PNG or JPEG image"
SHARPER = 2
"""How many times larger than the task's a JPEG is unpacked at least, before it is scaled: a photograph of twenty megapixels is never unpacked in full."""


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
    root = source.parent.resolve()
    names = sheet.column(places[column.name])
    images, wrong = decoded(names, lambda name: _inside(root, name), column.shape)
    for position, expected in wrong.items():
        draft.cell("image", expected, position, shown)
    return tables.finished(sheet, places, task, mapping, draft, **{column.name: images})


def decoded(
    items: Sequence[Any], place_of: Callable[[Any], Path], shape: tuple[int, ...]
) -> tuple[NDArray[np.uint8], dict[int, str]]:
    """Return the images of all items, bytes ``(n, *shape)``, and by position what was expected of those that are none, which are 0. All processors decode: Pillow lets others run meanwhile."""
    images = np.zeros((len(items), *shape), np.uint8)

    def one(position: int) -> str:
        try:
            images[position] = load(place_of(items[position]), shape)
        except DataError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        told = list(pool.map(one, range(len(items))))
    return images, {position: expected for position, expected in enumerate(told) if expected}


def load(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return one image as bytes of the shape ``(height, width)`` or ``(height, width, 3)``.

    Raises
    ------
    DataError
        When the file is no whole PNG or JPEG image, or no DICOM file of one image; the message names neither file nor content.
    """
    if path.suffix.lower() in dicom.SUFFIXES:
        return _shaped(dicom.load(path), shape)
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            # An image of absurd size is refused before it is unpacked.
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or 0):
                raise DataError(f"{EXPECTED} of at most {Image.MAX_IMAGE_PIXELS} pixels")
            surplus = min(image.size) / (SHARPER * max(shape[:2]))
            if surplus > 1:
                image.draft(None, (int(image.width / surplus), int(image.height / surplus)))
            image.load()
            return _shaped(_eight_bits(ImageOps.exif_transpose(image)), shape)
    except (
        OSError,
        ValueError,
        SyntaxError,
        UnidentifiedImageError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ):
        raise DataError(EXPECTED) from None


def _shaped(image: Any, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    fitted = _fitted(image.convert("RGB" if len(shape) == 3 else "L"), shape[1], shape[0])
    return np.asarray(fitted, np.uint8).reshape(shape)


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
    missing = [name for number, name in enumerate(task.classes) if number not in classes.values()]
    draft.notes += [f"no folder for the class {name!r}: it will have no images" for name in missing]
    files = [(folder, number, path) for folder in classes for number, path in enumerate(_files(folder), 1)]
    if not files:
        raise DataError(f"no PNG or JPEG images in the class folders; expected {', '.join(SUFFIXES)}")
    draft.lines = [number for _, number, _ in files]
    images, wrong = decoded(files, lambda file: file[2], column.shape)
    for position, expected in wrong.items():
        folder, number, _ = files[position]
        _take_down(draft, position, Problem("image", expected, number, column.name, folder.name))
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
