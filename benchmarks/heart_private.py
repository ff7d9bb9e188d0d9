"""Heart disease on FLamby's filter and split under record-level differential privacy, beside FLamby's published accuracies with Opacus.

``python benchmarks/heart_private.py`` prints the mean of the hospitals and the pooled accuracy over twenty seeds, delta 1e-4, with noise by each hospital and with noise shared out under
secure aggregation. ``--choose`` judges the settings, and others near them, by five-fold cross-validation within the training patients alone: that is how they were chosen. Cross-validation
trains on a fifth fewer patients, whose noise is a quarter larger.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from heart_flamby import folds, scores, seeded, train
from measure import progress
from rich.console import Console
from rich.table import Table

from client.worker import Worker

SETTINGS = (
    "privacy.delta=1e-4",
    "privacy.method=full",
    "privacy.clip_norm=0.5",
    "rounds=10",
    "training.learning_rate=2.0",
    "training.learning_rate_decay=1.0",
)
SHARED = (
    "privacy.noise=shared",
    "secure.aggregation=true",
    "secure.examples=250",
    "secure.magnitude=64",
    "task.site_intercept=false",
    "privacy.clip_norm=1.0",
    "training.learning_rate=1.0",
)
"""Added where the noise is shared out: what stays at a hospital would be covered by no sum."""
ALTERNATIVES = (
    ("rounds=20",),
    ("rounds=20", "training.learning_rate=1.0"),
    ("rounds=20", "privacy.clip_norm=0.25"),
    ("privacy.clip_norm=1.0", "training.learning_rate=1.0"),
    ("task.site_intercept=false",),
    ("rounds=40", "training.learning_rate=1.0"),
    ("rounds=20", "training.learning_rate=2.0", "privacy.clip_norm=1.0"),
)
# FLamby (du Terrail et al. 2022) with Opacus: mean of hospitals.
PUBLISHED = {float("inf"): 0.7125, 5.0: 0.704, 1.0: 0.685, 0.1: 0.606}
GOALS = {(float("inf"), "none"): 0.80, (1.0, "hospital"): 0.77, (1.0, "shared"): 0.79}


def accuracies(seeds: int, words: Sequence[str], *, within: bool) -> np.ndarray:
    """Return pooled accuracy and mean of hospitals, a row a seed; on test patients, or by cross-validation ``within`` the training patients."""
    found, worker = [], Worker()  # one for all, which compiles once
    for scenario, each in seeded(seeds, words):
        population = replace(each, worker=worker)
        members = folds(population.hospitals, scenario.run.seed) if within else [population.hospitals]
        found.append(np.mean([scores(train(scenario, population, part)) for part in members], axis=0))
    return np.array(found)


def choose(console: Console, seeds: int) -> None:
    """Print the cross-validated accuracies of the settings at epsilon 1, and of the alternatives."""
    table = Table(
        "noise by", "settings", "pooled", "mean of hospitals", title=f"within the training patients, {seeds} seeds"
    )
    for kind, words in {"hospital": (), "shared": SHARED}.items():
        for others in ((), *ALTERNATIVES):
            found = accuracies(seeds, (*SETTINGS, "privacy.epsilon=1", *words, *others), within=True)
            table.add_row(kind, " ".join(others) or "as chosen", *_cells(found))
    console.print(table)


def report(console: Console, seeds: int) -> None:
    """Print test accuracies by epsilon beside the published ones, with the goals."""
    title = f"heart, FLamby's 740 rows and split, accuracy over {seeds} seeds, record-level, delta 1e-4"
    table = Table(
        "epsilon", "noise by", "FLamby, Opacus: mean of hospitals", "pooled", "mean of hospitals", "goal", title=title
    )
    for epsilon, published in PUBLISHED.items():
        target = f"privacy.epsilon={epsilon}"
        kinds = (
            {"hospital": (*SETTINGS, target), "shared": (*SETTINGS, target, *SHARED)}
            if np.isfinite(epsilon)
            else {"none": ()}
        )
        for kind, words in kinds.items():
            progress(f"epsilon {epsilon:g}, noise: {kind}")
            found = accuracies(seeds, words, within=False)
            goal = GOALS.get((epsilon, kind))
            met = f"{goal} ({'met' if found[:, 1].mean() >= goal else 'NOT met'})" if goal else ""
            table.add_row(f"{epsilon:g}", kind, f"{published}", *_cells(found), met)
    console.print(table)
    console.print("± is the standard deviation over seeds: first weights and noise. The split is fixed.")


def _cells(found: np.ndarray) -> list[str]:
    return [f"{m:.3f} ± {s:.3f}" for m, s in zip(found.mean(axis=0), found.std(axis=0, ddof=1), strict=True)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--choose", action="store_true", help="compare settings on the training patients alone")
    parser.add_argument("--seeds", type=int, default=20)
    arguments = parser.parse_args()
    (choose if arguments.choose else report)(Console(), arguments.seeds)
