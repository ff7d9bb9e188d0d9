"""DATASETS: the one place where a name becomes a data set."""

from common.errors import UsageError, nearest
from simulations.datasets.dataset import Dataset
from simulations.datasets.eicu import EICU_MATCH, EICU_NEXT
from simulations.datasets.heart import HEART
from simulations.datasets.heart_flamby import HEART_FLAMBY
from simulations.datasets.mtsamples import MTSAMPLES
from simulations.datasets.notes_synthetic import NOTES_SYNTHETIC
from simulations.datasets.physionet2012 import PHYSIONET2012
from simulations.datasets.pneumonia import PNEUMONIA
from simulations.datasets.pneumonia_synthetic import PNEUMONIA_SYNTHETIC
from simulations.datasets.questions_zh import QUESTIONS_ZH

DATASETS: dict[str, Dataset] = {
    "eicu-match": EICU_MATCH,
    "eicu-next": EICU_NEXT,
    "heart": HEART,
    "heart-flamby": HEART_FLAMBY,
    "mtsamples": MTSAMPLES,
    "notes-synthetic": NOTES_SYNTHETIC,
    "physionet2012": PHYSIONET2012,
    "pneumonia": PNEUMONIA,
    "pneumonia-synthetic": PNEUMONIA_SYNTHETIC,
    "questions-zh": QUESTIONS_ZH,
}


def dataset_of(name: str) -> Dataset:
    """Return the data set of that name; raise `UsageError` with the nearest name if there is none."""
    if name not in DATASETS:
        raise UsageError(f"unknown data set {name!r}; {nearest(name, DATASETS)}")
    return DATASETS[name]
