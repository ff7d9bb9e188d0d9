"""DATASETS: the one place where a name becomes a data set."""

from common.errors import UsageError, nearest
from simulations.datasets.blood_cells import BLOOD_CELLS
from simulations.datasets.blood_cells_synthetic import BLOOD_CELLS_SYNTHETIC
from simulations.datasets.dataset import Dataset
from simulations.datasets.diabetes130 import DIABETES130
from simulations.datasets.eicu import EICU_MATCH, EICU_NEXT
from simulations.datasets.heart import HEART
from simulations.datasets.heart_flamby import HEART_FLAMBY
from simulations.datasets.mimic3_demo import MIMIC3_DEMO
from simulations.datasets.mtsamples import MTSAMPLES
from simulations.datasets.notes_synthetic import NOTES_SYNTHETIC
from simulations.datasets.peptides import PEPTIDES
from simulations.datasets.physionet2012 import PHYSIONET2012
from simulations.datasets.pneumonia import PNEUMONIA
from simulations.datasets.pneumonia_synthetic import PNEUMONIA_SYNTHETIC
from simulations.datasets.questions_zh import QUESTIONS_ZH
from simulations.datasets.splice import SPLICE
from simulations.datasets.tcga_brca import TCGA_BRCA

DATASETS: dict[str, Dataset] = {
    "blood-cells": BLOOD_CELLS,
    "blood-cells-synthetic": BLOOD_CELLS_SYNTHETIC,
    "diabetes130": DIABETES130,
    "eicu-match": EICU_MATCH,
    "eicu-next": EICU_NEXT,
    "heart": HEART,
    "heart-flamby": HEART_FLAMBY,
    "mimic3-demo": MIMIC3_DEMO,
    "mtsamples": MTSAMPLES,
    "notes-synthetic": NOTES_SYNTHETIC,
    "peptides": PEPTIDES,
    "physionet2012": PHYSIONET2012,
    "pneumonia": PNEUMONIA,
    "pneumonia-synthetic": PNEUMONIA_SYNTHETIC,
    "questions-zh": QUESTIONS_ZH,
    "splice": SPLICE,
    "tcga-brca": TCGA_BRCA,
}


def dataset_of(name: str) -> Dataset:
    """Return the data set of that name; raise `UsageError` with the nearest name if there is none."""
    if name not in DATASETS:
        raise UsageError(f"unknown data set {name!r}; {nearest(name, DATASETS)}")
    return DATASETS[name]
