"""Cox regression on FLamby's rows and split of TCGA-BRCA: the c-index over all test patients, as FLamby counts pairs across regions, and the mean of the regions.

``python benchmarks/survival_flamby.py``; with ``--choose`` the penalty's five-fold cross-validation within the training patients, from which the default was taken.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parent.parent))

import numpy as np

from common import metrics_survival as metrics
from common.layout import Vector
from common.tasks import survival
from common.tasks.cox import Cox
from common.tasks.task import Array, Examples, Preparation, take
from simulations.datasets import dataset_of
from simulations.datasets.dataset import Table
from simulations.datasets.fetch import load

ROUNDS = 8


def encoded(table: Table, rows: Array, preparation: Preparation) -> list[Examples]:
    """Return the rows of each region, in the order of their names."""
    regions = np.asarray(table.hospital)[rows]
    return [
        survival.encode(take(table.records, rows[regions == name]), preparation) for name in np.unique(table.hospital)
    ]


def fitted(table: Table, rows: Array, ridge: float) -> tuple[Vector, Preparation]:
    """Fit over the regions, as a run does."""
    preparation = survival.fit(survival.summarise(take(table.records, rows)))
    learner, weights = Cox(len(survival.COLUMNS), ridge).learner(), np.zeros(len(survival.COLUMNS), np.float32)
    for _ in range(ROUNDS):
        sums = [learner.contribution(weights, one, 0) for one in encoded(table, rows, preparation)]
        weights = learner.advance(weights, np.sum(sums, axis=0, dtype=np.float64), 0)
    return weights, preparation


def judged(table: Table, rows: Array, weights: Vector, preparation: Preparation) -> tuple[float, float]:
    """Return the c-index over all pairs of patients, and the mean of the regions that have one."""
    regions = encoded(table, rows, preparation)
    pool = Examples(*(np.concatenate([getattr(one, part) for one in regions]) for part in ("x", "y")))
    found = [
        metrics.values(metrics.summarise(one.y, (one.x @ weights)[:, None].astype(float)))["c_index"]
        for one in (pool, *regions)
    ]
    return float(found[0] or 0), float(np.mean([value for value in found[1:] if value is not None]))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--choose", action="store_true", help="cross-validate the penalty within the training patients")
    args = parser.parse_args()
    table = load(dataset_of("tcga-brca"))
    test = np.asarray(table.test)
    train = np.flatnonzero(~test)
    if args.choose:
        for ridge in (1.0, 3.0, 6.0, 10.0, 20.0):
            scores = []
            for seed in range(4):
                folds = np.random.default_rng(seed).integers(0, 5, len(train))
                for fold in range(5):
                    model = fitted(table, train[folds != fold], ridge)
                    scores.append(judged(table, train[folds == fold], *model))
            print(f"ridge {ridge:g}: pooled, mean of regions", np.round(np.mean(scores, axis=0), 4))
        return
    pooled, regions = judged(table, np.flatnonzero(test), *fitted(table, train, survival.Survival().ridge))
    print(f"c-index: pooled test {pooled:.3f}, mean of regions {regions:.3f}")


if __name__ == "__main__":
    main()
