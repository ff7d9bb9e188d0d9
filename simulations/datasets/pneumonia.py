"""Chest X-rays of children, normal or pneumonia (PneumoniaMNIST)."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from common.errors import DataError
from common.tasks.task import Array
from simulations.datasets.dataset import Dataset, File, Table
from simulations.datasets.tables import distinct

FILE = "pneumoniamnist.npz"
CLASSES = ("normal", "pneumonia")
PARTS = ("train", "val", "test")


def read(folder: Path) -> Table:
    """Join the published train and validation images; the published test images stay the test.

    Rows are put in the order of their bytes, so that the published file and copies in another order give the same table.
    """
    arrays = _arrays(folder / FILE)
    images = np.concatenate([arrays[f"{part}_images"] for part in PARTS])
    label = np.concatenate([arrays[f"{part}_labels"].reshape(-1) for part in PARTS]).astype(np.int64)
    test = np.arange(len(images)) >= len(images) - len(arrays["test_images"])
    order = sorted(range(len(images)), key=lambda row: (not test[row], images[row].tobytes(), label[row]))
    # Test images come first, so that an image on both sides would stay in the test and leave the training images.
    kept = np.array(order)[distinct([images[row].tobytes() for row in order])]
    records = {"image": images[kept], "label": label[kept]}
    return Table(records, label[kept], CLASSES, test=test[kept], duplicates_removed=len(images) - len(kept))


def _arrays(path: Path) -> dict[str, Array]:
    """Read the six arrays, never as pickles, and check their forms."""
    names = [f"{part}_{kind}" for part in PARTS for kind in ("images", "labels")]
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path.name}: not a whole .npz file; delete it and run 'fedward data get pneumonia'")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: np.asarray(archive[name]) for name in names}
    except KeyError as error:
        raise DataError(f"{path.name}: {error.args[0]}; expected the arrays {', '.join(names)}") from None
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path.name}: cannot be read ({type(error).__name__}); delete it and run 'fedward data get pneumonia'"
        ) from None
    for part in PARTS:
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        if images.dtype != np.uint8 or images.shape[1:] != (28, 28):
            raise DataError(
                f"{path.name}: array '{part}_images': expected bytes of shape (n, 28, 28), got {images.dtype} {images.shape}"
            )
        if labels.size != len(images) or not np.isin(labels, (0, 1)).all():
            raise DataError(f"{path.name}: array '{part}_labels': expected 0 or 1 for each of {len(images)} images")
    return arrays


PNEUMONIA = Dataset(
    name="pneumonia",
    title="Pneumonia on chest X-rays, 28x28 (PneumoniaMNIST)",
    task="pneumonia",
    origin="MedMNIST v2, from Kermany et al. 2018 (one centre, Guangzhou); doi:10.5281/zenodo.10519652",
    licence="CC BY 4.0",
    citation="Yang et al. 2023, MedMNIST v2, Sci Data 10:41; Kermany et al. 2018, Cell 172:1122-1131",
    rows=5827,
    read=read,
    folder="pneumoniamnist",
    files=(
        File(
            name=FILE,
            size=4_171_077,
            checksums=(
                # MedMNIST publishes an MD5 only. The second is a copy with the same images in another order.
                "md5:28209eda62fecd6e6a2d98b1501bb15f",
                "sha256:ce8250bf5debc3c389b89affcc1d9feac579b26e875a848301e9f937bb0c2eee",
            ),
            url="https://zenodo.org/records/10519652/files/pneumoniamnist.npz?download=1",
        ),
    ),
    note="5,856 images as published. There are no patient numbers: every image counts as a patient.",
)
