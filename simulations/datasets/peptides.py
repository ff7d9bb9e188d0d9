"""Antimicrobial peptides against other short proteins (modlAMP)."""

from pathlib import Path

from common.tasks.peptides import KIND
from simulations.datasets.dataset import Dataset, File, Table
from simulations.datasets.tables import read_csv, sequence_table

FILE = "AMPvsUniProt.csv"


def read(folder: Path) -> Table:
    """Drop repeated sequences; the first of each counts (22 come with both classes: they stand among the peptides first)."""
    # The first row counts rows and columns, and names the classes.
    cells = read_csv(folder / FILE, ("sequence", "label"), ("sequence", "label"))
    return sequence_table(cells["sequence"], [KIND.classes[int(cell)] for cell in cells["label"]], KIND, FILE)


PEPTIDES = Dataset(
    name="peptides",
    title="Antimicrobial peptides and other short proteins",
    task="peptides",
    origin="the package modlamp 4.3.3, modlamp/data/AMPvsUniProt.csv; from CAMP, APD and UniProt",
    licence="BSD-3-Clause; that of the package",
    citation="Mueller, Gabernet, Hiss, Schneider 2017, modlAMP: Python for antimicrobial peptides, Bioinformatics 33:2753",
    rows=4642,
    read=read,
    folder="modlamp-peptides",
    files=(File(FILE, 191_952, ("sha256:e1db3dd659179118dcfca63723385f2f0c95c49d27060a90f7a9d5848250eb48",)),),
    note="5,200 rows as published, 4,642 different ones. Antimicrobial ones are of databases of such peptides, others of UniProt; every sequence counts as a patient.",
)
