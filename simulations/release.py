"""The release gate: a model is marked releasable only where a study of privacy held its very settings to limits, and they were kept."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from common.config import EvaluationConfig, RunConfig
from common.errors import UsageError
from server import records
from simulations import report
from simulations import run as runs
from simulations.privacy_study import ARMS, Cell, Verdict


def cell_of(folder: Path, cells: Sequence[Cell], limits: Mapping[str, float]) -> Cell:
    """Return which of a study's runs has the settings of the run in a folder; seeds may differ, and so may the patients.

    Raises
    ------
    UsageError
        When no limits were given, the folder holds no finished run, or the study has no run of its settings.
    """
    if not limits:
        raise UsageError("--release: expected limits that the model is held to, for example --limit epsilon=3")
    report.load(folder)
    config = _judged(runs.reopen(folder).run)
    for cell in cells:
        if _judged(cell.scenario.run) == config:
            return cell
    raise UsageError(
        f"--release {folder}: no run of this study has its settings; give the study what {folder / runs.CONFIG} says"
    )


def mark(folder: Path, cell: Cell, verdicts: Sequence[Verdict], limits: Mapping[str, float], study: str) -> Verdict:
    """Write into a run's record and model card whether its model may be released; return the verdict, that on runs like ``cell``."""
    verdict = next(each for each in verdicts if (each.arm, each.epsilon) == (cell.arm, cell.epsilon))
    release = {
        "releasable": not verdict.reasons,
        "reasons": list(verdict.reasons),
        "limits": dict(limits),
        "protection": ARMS[cell.arm],
        "study": study,
    }
    records.write_json(folder / records.RUN, {**report.load(folder), "release": release})
    report.write_report(folder)
    return verdict


def _judged(config: RunConfig) -> RunConfig:
    """Return what decides what a model tells: all settings but the seed, which a study draws anew, and how often models are judged on the way."""
    return replace(config, seed=0, evaluation=EvaluationConfig())
