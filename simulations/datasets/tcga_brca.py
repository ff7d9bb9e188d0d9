"""Breast cancer in six regions, as FLamby filters and splits it (TCGA-BRCA; Ogier du Terrail et al. 2022)."""

from pathlib import Path

import numpy as np

from common.tasks.survival import COLUMNS, TIME
from common.tasks.task import take
from simulations.datasets.dataset import Dataset, File, Table
from simulations.datasets.tables import numbers, read_csv

DATA, CENTRES, SPLIT = "brca.csv", "centers.csv", "train_test_split.csv"


def read(folder: Path) -> Table:
    """Read the rows that the published split names; a patient's region is that of the site whose code is in his number."""
    names = [*(column.name for column in COLUMNS), "E", TIME.name]
    cells = read_csv(folder / DATA, ["pid", *names])
    centres = read_csv(folder / CENTRES, ("TSS Code", "Region"))
    split = read_csv(folder / SPLIT, ("pid", "fold"))
    region = dict(zip(centres["TSS Code"], centres["Region"], strict=True))
    fold = dict(zip(split["pid"], split["fold"], strict=True))
    patients = cells.pop("pid")
    kept = np.array([row for row, patient in enumerate(patients) if patient in fold])
    records = take({name: numbers(cells[name], DATA, name) for name in names}, kept)
    chosen = [patients[row] for row in kept]
    return Table(
        records,
        (records["E"] > 0).astype(np.int64),
        ("alive", "died"),
        np.arange(len(kept)),
        np.array([region[patient.split("-")[1]] for patient in chosen]),
        np.array([fold[patient] == "test" for patient in chosen]),
        target="E",
    )


TCGA_BRCA = Dataset(
    name="tcga-brca",
    title="Breast cancer in six regions, survival",
    task="survival",
    origin="owkin/FLamby at edacf54, flamby/datasets/fed_tcga_brca; from the Genomic Data Commons",
    licence="GDC open access; no attempt to identify patients",
    citation="Liu et al. 2018, Cell 173:400; Andreux et al. 2020, arXiv:2006.08997; Ogier du Terrail et al. 2022, FLamby, NeurIPS Datasets and Benchmarks",
    rows=1088,
    read=read,
    folder="tcga-brca",
    files=(
        File(DATA, 113_184, ("sha256:07cb53423f7d579d33cfdbf2cba57b2aee75318b85866c68ce39a75b1f1ba020",)),
        File(CENTRES, 4_274, ("sha256:d610df2dae0203ea229c9579747ed3eb8d28e137c5378f55acc6fe6b4632bb1d",)),
        File(SPLIT, 28_946, ("sha256:1249c6543a4060ff0fdaf8510fc37017755836db6c9fc5e6af96057c36510990",)),
    ),
    note="1,088 of 1,096 patients; eight of no region are left out, as published. 151 died.",
)
