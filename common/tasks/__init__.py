"""TASKS: the one place where a name becomes a task."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Protocol

from common.config import Choice, RunConfig, merge, parse
from common.errors import ConfigError
from common.tasks.cells import Cells
from common.tasks.cells_vgg16 import CellsVgg16
from common.tasks.heart import Heart
from common.tasks.icu import Icu
from common.tasks.mimic import Mimic
from common.tasks.notes import Notes
from common.tasks.peptides import Peptides
from common.tasks.pneumonia import Pneumonia
from common.tasks.readmission import Readmission
from common.tasks.splice import Splice
from common.tasks.survival import Survival
from common.tasks.task import Task
from common.tasks.treatment_match import TreatmentMatch
from common.tasks.treatment_next import TreatmentNext


class Recipe(Protocol):
    """A frozen dataclass of settings that builds a task."""

    def build(self) -> Task:
        """Return the task."""


TASKS: dict[str, type[Recipe]] = {
    "heart": Heart,
    "readmission": Readmission,
    "mimic": Mimic,
    "pneumonia": Pneumonia,
    "cells": Cells,
    "cells-vgg16": CellsVgg16,
    "notes": Notes,
    "icu": Icu,
    "treatment-next": TreatmentNext,
    "treatment-match": TreatmentMatch,
    "splice": Splice,
    "peptides": Peptides,
    "survival": Survival,
}

SWITCHES = {"privacy": "epsilon", "secure": "aggregation"}
"""Parts of a run that a setting of theirs switches on."""


@lru_cache(maxsize=64)
def task_of(choice: Choice) -> Task:
    """Return the task that a run names, with the run's settings for it."""
    return choice.resolve(TASKS, "task").build()


def read_run(tables: Mapping[str, Any]) -> RunConfig:
    """Parse the settings of a run; what they leave open, the task's own defaults give.

    Raises
    ------
    ConfigError
        For an unknown key, a wrong type or range, or a contradiction; the message names the key.
    """
    for part, switch in SWITCHES.items():
        given = tables.get(part, {})
        if isinstance(given, Mapping) and given and switch not in given:
            raise ConfigError(f"{part}.{next(iter(given))}: means nothing without {part}.{switch}; set that too")
    task = task_of(parse(RunConfig, tables).task)
    return parse(RunConfig, merge(task.defaults, tables))
