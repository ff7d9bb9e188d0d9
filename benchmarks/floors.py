"""Floors of the recommenders: what popularity, a matrix factorisation and a ridge regression reach on the federated model's list and test patients.

``python benchmarks/floors.py treatment-next`` (or ``treatment-match``). All patients are in one place, and of the sizes of the factorisation the best on the test is a floor too: that favours the floors.
Recall and NDCG of the first ten, and coverage; compare with what ``fedward simulate`` of the same task prints.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parent.parent))

import numpy as np
from numpy.typing import NDArray

from common import ranking
from common.statistics import total
from common.tasks import task_of
from common.tasks.task import Examples
from simulations import scenario as scenarios
from simulations.hospitals import populate

Floats = NDArray[np.float64]
FIRST = 10
DIMENSIONS = (4, 8, 16, 32)
FOLDING, RIDGE = 0.1, 30.0
"""Penalties: on the factors of a new row, and on the regression's coefficients."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=("treatment-next", "treatment-match"), help="the task")
    name = parser.parse_args().task
    scenario = scenarios.read(scenarios.find(name), {})
    task, hospitals = task_of(scenario.run.task), populate(scenario).hospitals
    preparation = task.fit(total([task.sums_of(hospital.train, hospital.patients) for hospital in hospitals]))
    train, test = (
        _pooled([task.encode(getattr(hospital, part), preparation) for hospital in hospitals])
        for part in ("train", "test")
    )
    width, known = train.y.shape[1], len(preparation["codes"])
    features = [_features(name, part.x, known, width) for part in (train, test)]
    closed = test.x[:, -width:] > 0
    for floor, scores in _floors(*features, train.y.astype(np.float64)).items():
        found = ranking.values(ranking.summarise(test.y, np.where(closed, -np.inf, scores), FIRST))
        print(f"{floor:24s}" + "  ".join(f"{measure} {value:.3f}" for measure, value in found.items() if value))


def _pooled(parts: list[Examples]) -> Examples:
    return Examples(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("x", "y")))


def _features(task: str, x: NDArray[np.int32], known: int, width: int) -> Floats:
    """Return 1 for every code that a row has, ``(n, known)``."""
    if task == "treatment-match":
        return x[:, 1 : 1 + known].astype(np.float64)
    marks = np.zeros((len(x), known + 1))
    np.put_along_axis(marks, x[:, :-width].astype(np.intp), 1.0, axis=1)
    return marks[:, 1:]


def _floors(train: Floats, test: Floats, given: Floats) -> dict[str, Floats]:
    """Return every floor's scores of the test rows."""
    known, mean = train.shape[1], given.mean(axis=0)
    table = np.concatenate([train, given], axis=1)
    middle = table.mean(axis=0)
    factors = np.linalg.svd(table - middle, full_matrices=False)[2]
    found = {"popularity": np.tile(mean, (len(test), 1))}
    for size in DIMENSIONS:
        seen, wanted = factors[:size, :known].T, factors[:size, known:].T
        folded = np.linalg.solve(seen.T @ seen + FOLDING * np.eye(size), seen.T @ (test - middle[:known]).T).T
        found[f"matrix factorisation {size}"] = folded @ wanted.T + middle[known:]
    slopes = np.linalg.solve(train.T @ train + RIDGE * np.eye(known), train.T @ (given - mean))
    found["ridge regression"] = test @ slopes + mean - train.mean(axis=0) @ slopes
    return found


if __name__ == "__main__":
    main()
