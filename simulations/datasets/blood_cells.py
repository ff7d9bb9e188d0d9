"""White blood cells of two laboratories whose stain and camera differ."""

import hashlib
from pathlib import Path

import numpy as np

from client.data.images import load
from common.errors import DataError
from common.tasks.cells import CLASSES
from common.tasks.pictures import SHAPE
from simulations.datasets.dataset import Dataset, File, Table
from simulations.datasets.tables import distinct

LABORATORIES = {"dataset1": "jiangxi", "dataset2": "cellavision"}
SUMS = "SHA256SUMS"


def read(folder: Path) -> Table:
    """Read the images that the list of checksums names, one folder a laboratory and class; bytes ``(n, 224, 224, 3)``."""
    names = sorted(_names(folder))
    images = np.empty((len(names), *SHAPE), np.uint8)
    for place, name in enumerate(names):
        images[place] = load(folder / name, SHAPE)
    label = np.array([CLASSES.index(name.split("/")[1]) for name in names], np.int64)
    hospital = np.array([LABORATORIES[name.split("/")[0]] for name in names])
    kept = distinct([image.tobytes() for image in images])
    return Table(
        {"image": images[kept], "label": label[kept]},
        label[kept],
        CLASSES,
        np.arange(len(kept)),
        hospital=hospital[kept],
        duplicates_removed=len(names) - len(kept),
    )


def _names(folder: Path) -> list[str]:
    """Return the names of all images, each of which is here with its checksum; raise `DataError` if one is not."""
    lines = [line.split() for line in (folder / SUMS).read_text(encoding="utf-8").splitlines()]
    images = {name: checksum for checksum, name in lines if name.endswith(".png")}
    for name, checksum in images.items():
        path = folder / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != checksum:
            raise DataError(
                f"{path}: absent, damaged or another version; copy it again, in the form that 'fedward data show blood-cells' tells"
            )
    return list(images)


BLOOD_CELLS = Dataset(
    name="blood-cells",
    title="White blood cells in colour, two laboratories",
    task="cells",
    origin="github.com/zxaoyou/segmentation_WBC: Jiangxi Tecom (300 images) and the CellaVision blog (100)",
    licence="GPL-3.0; the authors ask for acknowledgement",
    citation="Zheng et al. 2018, Micron 107:55-71",
    rows=399,
    read=read,
    folder="wbc-colour",
    files=(
        File(
            name=SUMS,
            size=37_545,
            checksums=("sha256:8f1162e54b2d24c07533718488d5763f66aea4d202d7d4449b656604ae80c0fd",),
        ),
    ),
    also=("cells-vgg16",),
    note="One PNG an image, made from the published BMP, in a folder a laboratory (dataset1, dataset2) and class; SHA256SUMS lists them. "
    "Some class labels are not checked by experts. There are no patient numbers: every image counts as a patient.",
)
