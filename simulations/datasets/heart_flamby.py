"""The heart data as FLamby filters and splits them, to compare with published numbers (Ogier du Terrail et al. 2022, section 4.2)."""

from pathlib import Path

import numpy as np

from common.tasks.task import Array, take
from simulations.datasets.dataset import Dataset, Table
from simulations.datasets.heart import CLASSES, FEATURES, label_of, read_all

ABSENT = ("slope", "ca", "thal")


def read(folder: Path) -> Table:
    """Drop three columns, then rows with a missing cell; split as published. Repeated rows stay, as they do in FLamby."""
    records, hospital = read_all(folder)
    used = np.stack([records[name] for name in FEATURES if name not in ABSENT])
    kept = np.flatnonzero(~np.isnan(used).any(axis=0))
    records = take(records, kept) | {name: np.full(len(kept), np.nan) for name in ABSENT}
    label = label_of(records)
    test = published_split(label, hospital[kept])
    return Table(records, label, CLASSES, hospital=hospital[kept], test=test, target="num")


def published_split(label: Array, hospital: Array) -> Array:
    """Return where FLamby's test rows are: 34 % of each hospital, drawn by scikit-learn from seed 43.

    Stratified by label where each class has three rows or more; Switzerland has a single healthy patient left.
    """
    from sklearn.model_selection import train_test_split

    test = np.zeros(len(label), bool)
    for name in np.unique(hospital):
        rows = np.flatnonzero(hospital == name)
        strata = label[rows] if (np.bincount(label[rows], minlength=2) > 2).all() else None
        _, held_out = train_test_split(rows, train_size=0.66, random_state=43, stratify=strata)
        test[held_out] = True
    return test


HEART_FLAMBY = Dataset(
    name="heart-flamby",
    title="Heart disease, FLamby's rows and split",
    task="heart",
    origin="the data set heart; rule of FLamby, fed_heart_disease",
    licence="CC BY 4.0",
    citation="Detrano et al. 1989, Am J Cardiol 64:304-310; Ogier du Terrail et al. 2022, FLamby, NeurIPS Datasets and Benchmarks",
    rows=740,
    read=read,
    note="Without slope, ca and thal; complete rows only; repeated rows are kept, because the published filter keeps them.",
)
