"""A sweep: one scenario under every combination of some settings, over several seeds. Started again, it goes on where it stopped."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from common.config import assign, merge
from common.errors import UsageError
from server.plan import Plan
from simulations import run
from simulations import scenario as scenarios
from simulations.run import Watcher
from simulations.scenario import Scenario

Begin = Callable[[Scenario, str], Watcher]
"""Is told of every run by its scenario and its place in the sweep, and returns who watches it."""


def combinations(grid: Sequence[str], seeds: int) -> Iterator[tuple[str, ...]]:
    """Yield every combination as ``key=value`` words, the seed last.

    >>> list(combinations(["strategy.name=fedavg,fedprox"], 1))
    [('strategy.name=fedavg', 'seed=1'), ('strategy.name=fedprox', 'seed=1')]

    Raises
    ------
    UsageError
        For a word that is not of the form ``key=value,value``.
    """
    axes = []
    for word in grid:
        key, equals, values = word.partition("=")
        if not (key and equals and all(values.split(","))):
            raise UsageError(f"--grid {word}: expected key=value,value, for example strategy.name=fedavg,fedprox")
        axes.append([f"{key}={value}" for value in values.split(",")])
    axes.append([f"seed={seed}" for seed in range(1, seeds + 1)])
    return itertools.product(*axes)


def sweep(base: dict[str, Any], grid: Sequence[str], seeds: int, out: Path, command: str, begin: Begin) -> list[Path]:
    """Run every combination into a folder of its own under ``out``; return the folders. What is finished there already is kept.

    Raises
    ------
    UsageError
        When a folder of that name holds a run of other settings.
    """
    # All are parsed before the first is run: a mistake in the last one should not cost a night.
    planned = [(words, scenarios.read(merge(base, assign(list(words))))) for words in combinations(grid, seeds)]
    for _, scenario in planned:
        _ = Plan(scenario.run).strategy
    folders = []
    for number, (words, scenario) in enumerate(planned, start=1):
        folder = out / ",".join(words).replace("/", "_")
        watcher = begin(scenario, f"{number} of {len(planned)}: {folder.name}")
        if not _finished(folder, scenario):
            run.make_folder(folder)
            run.simulate(scenario, folder, command, watcher)
        folders.append(folder)
    return folders


def _finished(folder: Path, scenario: Scenario) -> bool:
    if (folder / run.CONFIG).is_file() and run.reopen(folder) != scenario:
        raise UsageError(f"{folder}: holds a run of other settings; choose another folder with --out")
    return run.is_finished(folder)
