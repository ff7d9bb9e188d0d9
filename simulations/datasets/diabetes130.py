"""Stays of diabetic patients in 130 hospitals of the United States, 1999 to 2008 (UCI). The file names no hospitals."""

import zipfile
from pathlib import Path

import numpy as np

from common.errors import DataError
from common.tasks.readmission import BEFORE, STAY, WORDS
from common.tasks.task import Array, Column
from simulations.datasets.dataset import Dataset, File, Table
from simulations.datasets.tables import numbers, read_csv

FILE = "dataset_diabetes.zip"
MEMBER = "dataset_diabetes/diabetic_data.csv"
AGES = {f"[{start}-{start + 10})": f"{start + 5}" for start in range(0, 100, 10)}
TARGET = "readmitted"


def read(folder: Path) -> Table:
    """Read all stays; the patients, not the stays, are what a split keeps together."""
    columns = BEFORE + STAY
    path = zipfile.Path(folder / FILE, MEMBER) if zipfile.is_zipfile(folder / FILE) else None
    if path is None:
        raise DataError(f"{FILE}: not a zip archive; get it again")
    cells = read_csv(path, ("patient_nbr", *(column.name for column in columns), TARGET))
    label = np.array([cell == "<30" for cell in cells[TARGET]], np.int64)
    records = {column.name: values(cells[column.name], column) for column in columns} | {TARGET: label}
    return Table(records, label, ("no", "within 30 days"), np.array(cells["patient_nbr"]), target=TARGET)


def values(cells: list[str], column: Column) -> Array:
    """Turn a column's cells into the task's values: numbers, codes of known words, or the words of an open list, of an ICD-9 code its first three figures."""
    if column.name == "age":
        return numbers([AGES.get(cell, cell) for cell in cells], FILE, "age")
    if column.kind == "number":
        return numbers(cells, FILE, column.name)
    if column.kind == "category":
        codes = {word: float(code) for code, word in enumerate(WORDS[column.name])}
        return np.array([codes.get(cell, np.nan) for cell in cells])
    whole = {cell: "" if cell == "?" else cell.split(".")[0] for cell in set(cells)}
    return np.array([whole[cell] for cell in cells], object)


DIABETES130 = Dataset(
    name="diabetes130",
    title="Stays of diabetic patients, readmission within 30 days",
    task="readmission",
    origin="UCI Machine Learning Repository, Diabetes 130-US Hospitals for Years 1999-2008; doi:10.24432/C5230J",
    licence="CC BY 4.0",
    citation="Strack et al. 2014, Impact of HbA1c measurement on hospital readmission rates, BioMed Res Int 2014:781670",
    rows=101_766,
    read=read,
    folder="diabetes130",
    files=(File(FILE, 3_347_213, ("sha256:3a17a3b55b6dd4a1926703185c0ad8e2ed30bc8e2f9b927cdd1000b733d1de8e",)),),
    note="71,518 patients; the published file does not say which of the 130 hospitals a stay was in, so virtual hospitals are dealt by a partition.",
)
