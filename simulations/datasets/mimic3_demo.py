"""The MIMIC-III demo: 100 patients with the tables and columns of the whole database."""

from pathlib import Path

import numpy as np

from client.data import mimic
from common.tasks.mimic import COLUMNS, DAYS
from simulations.datasets.dataset import Dataset, File, Table

TARGET = "hospital_expire_flag"
FILES = (
    File("ADMISSIONS.csv.gz", 7_041, ("sha256:211c7b3151d1b5a88c5ecb82e2918ec53f37206f2c8d187e5e598a2e41d1eb17",)),
    File("ICUSTAYS.csv.gz", 5_061, ("sha256:c34ee6bc8c0fc4bb5a2dd86b17b66ee68f4dd0d8434cfcad35825cb511d6b5ed",)),
    File("LABEVENTS.csv.gz", 789_774, ("sha256:802323bcefd90244bcf1c0819fdf7dc2de8996b5c3d6066dcda8c3d4ec9a6818",)),
    File("PATIENTS.csv.gz", 1_917, ("sha256:5b094d5bc577a1ffb7134929efa4e6e5278d16d96dc0feaaa094262d33cabbea",)),
    File("PRESCRIPTIONS.csv.gz", 198_042, ("sha256:f5cc9840b14cfdfe68760cc3c2af8c606acb65ac92a081f090a0fbeee24f8c09",)),
    File("SERVICES.csv.gz", 2_951, ("sha256:27fb1fb78a2958e73ae44bdc785473e5e0b0be813c86023b94f74079ea389399",)),
)


def read(folder: Path) -> Table:
    """Join the tables to one row an admission of a day or more."""
    rows = mimic.join(folder)
    records = {
        column.name: rows[column.name].fillna("").to_numpy(object)
        if column.kind == "code"
        else rows[column.name].to_numpy(np.float64)
        for column in (*COLUMNS, DAYS)
    }
    label = rows[TARGET].to_numpy(np.int64)
    return Table(records | {TARGET: label}, label, ("discharged", "died"), rows["subject_id"].to_numpy(), target=TARGET)


MIMIC3_DEMO = Dataset(
    name="mimic3-demo",
    title="Admissions of 100 patients of MIMIC-III",
    task="mimic",
    origin="MIMIC-III Clinical Database Demo 1.4 (PhysioNet); doi:10.13026/C2HM2Q",
    licence="ODbL 1.0",
    citation="Johnson et al. 2016, MIMIC-III, a freely accessible critical care database, Sci Data 3:160035",
    rows=119,
    read=read,
    folder="mimic3-demo",
    files=FILES,
    note="All hundred patients died in the end, so its figures say nothing of hospitals at large. The whole database is joined by the same code.",
)
