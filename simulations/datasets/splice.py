"""Primate splice junctions, 60 bases of DNA around each (UCI)."""

from pathlib import Path

from common.tasks.splice import KIND
from simulations.datasets.dataset import Dataset, File, Table
from simulations.datasets.tables import read_csv, sequence_table

FILE = "splice.csv"


def read(folder: Path) -> Table:
    """Drop repeated sequences; the first of each counts (one comes with two classes)."""
    cells = read_csv(folder / FILE, ("class", "dna"))
    return sequence_table(cells["dna"], cells["class"], KIND, FILE)


SPLICE = Dataset(
    name="splice",
    title="Splice junctions of primate DNA",
    task="splice",
    origin="UCI Machine Learning Repository, molecular biology (splice-junction gene sequences); doi:10.24432/C5M888",
    licence="CC BY 4.0",
    citation="Noordewier, Towell, Shavlik 1991, Training knowledge-based neural networks to recognize genes in DNA sequences, NIPS 3",
    rows=3005,
    read=read,
    folder="splice-uci",
    files=(File(FILE, 319_019, ("sha256:2bbf9321f3dcc3cf49c591a33fef2abecf7f050d4990baccae1adff1922cd02f",)),),
    note="3,190 rows as published, 3,005 different ones. There are no patient numbers: every sequence counts as a patient.",
)
