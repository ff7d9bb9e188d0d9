"""The Scenario: a simulated federation that can be repeated exactly. Data, partition, hospitals, faults, run settings and seed, in one TOML file.

A scenario file holds the settings of a run and one more table, ``[simulation]``.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from common.config import FRACTION, Range, RunConfig, as_table, check_keys, dumps, loads, merge, parse
from common.errors import ConfigError, UsageError, nearest
from common.tasks import read_run
from simulations import datasets, own
from simulations.datasets.dataset import Dataset
from simulations.datasets.fetch import absence, is_here


@dataclass(frozen=True)
class FaultsConfig:
    """Declared faults, drawn from the seed: by hospital and round, or by hospital for the whole run."""

    dropouts: Annotated[float, FRACTION, "chance that a hospital does not answer in a round"] = 0.0
    stragglers: Annotated[float, FRACTION, "chance that a hospital answers in a round after the deadline"] = 0.0
    nan_updates: Annotated[float, FRACTION, "chance that a hospital's update in a round holds NaN"] = 0.0
    label_flips: Annotated[float, FRACTION, "share of the hospitals that train on turned labels"] = 0.0
    scaled_updates: Annotated[
        float, FRACTION, "share of the hospitals that send their updates turned round and ten times as large"
    ] = 0.0


@dataclass(frozen=True)
class SimulationConfig:
    """Where the virtual hospitals and their patients come from."""

    dataset: Annotated[
        str, "name of the data set, see 'fedward data list'; or the path of a table or a folder of images"
    ]
    otherwise: Annotated[str, "data set to take when that one is not on this computer; empty for none"] = ""
    hospitals: Annotated[int, Range(0, 1_000_000), "count of virtual hospitals; 0 for those of the data"] = 0
    partition: Annotated[str, "how patients are dealt to hospitals: KIND or KIND:X"] = "natural"
    test: Annotated[
        float,
        Range(0, 0.9, open_low=True),
        "share of each hospital's patients kept for testing, where the data name none",
    ] = 0.3
    engine: Annotated[
        Literal["local", "ray", "deploy"],
        "local: this process; ray: Flower's simulation runtime; deploy: real processes over mutual TLS",
    ] = "local"
    workers: Annotated[int, Range(0, 256), "processes of the local engine; 0 chooses by the expected work"] = 0
    comparators: Annotated[bool, "train local-only and centralised models beside the federated one"] = True
    faults: FaultsConfig = field(default_factory=FaultsConfig)


@dataclass(frozen=True)
class Scenario:
    """A simulated federation: ``run`` is what a real one would be given, ``simulation`` is what stands in for its hospitals."""

    run: RunConfig
    simulation: SimulationConfig

    def table(self) -> dict[str, Any]:
        """Return all settings as nested tables."""
        return {**as_table(self.run), "simulation": as_table(self.simulation)}

    def text(self) -> str:
        """Return the settings as TOML; `read` makes the same scenario of it."""
        return dumps(self.table())


def names() -> list[str]:
    """Return the names of the scenarios that come with the package."""
    return sorted(
        file.name.removesuffix(".toml")
        for file in resources.files("simulations.scenarios").iterdir()
        if file.name.endswith(".toml")
    )


def find(word: str) -> dict[str, Any]:
    """Return the tables of a scenario given by name, or by the path of a TOML file.

    Raises
    ------
    UsageError
        When there is no such scenario or file.
    """
    path = Path(word)
    if own.is_task(word):
        return {"task": {"name": word}, "simulation": {}}
    if path.suffix == ".toml":
        try:
            return loads(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise UsageError(f"{path}: cannot be read as a scenario file ({reason})") from None
    if path.suffix == ".py" and not path.is_file():
        raise UsageError(
            f"{word}: there is no such file; 'fedward template KIND {word}' writes one with a task to begin from"
        )
    if path.suffix == ".py":
        raise UsageError(f"{word}: a file of tasks; name the task in it too, for example {word}:task")
    if word not in names():
        raise UsageError(f"unknown task or scenario {word!r}; {nearest(word, names())}")
    return loads((resources.files("simulations.scenarios") / f"{word}.toml").read_text(encoding="utf-8"), word)


def tables_of(text: str) -> dict[str, Any]:
    """Return the tables of a scenario given as TOML text, or by name."""
    return loads(text, "scenario") if "=" in text else find(text)


def read(tables: Mapping[str, Any], over: Mapping[str, Any] | None = None) -> Scenario:
    """Parse a scenario's tables with further settings laid over them; what neither gives, the data set and then the task give.

    A data set that is not here is exchanged for the one that ``simulation.otherwise`` names, with a line on stderr: the scenario that is
    returned names the one that is used. A damaged data set is never exchanged.

    Raises
    ------
    ConfigError
        For an unknown key, a wrong type or range, or a contradiction; the message names the key.
    """
    merged = merge(tables, over or {})
    check_keys(merged, ["simulation", *(item.name for item in fields(RunConfig))])
    simulation = merged.pop("simulation", None)
    if simulation is None:
        raise ConfigError(
            "simulation: this table is required; it names the data set, for example [simulation] dataset = 'heart'"
        )
    settings = parse(SimulationConfig, simulation, "simulation")
    dataset = _present(settings)
    if isinstance(merged.get("task"), str):
        merged["task"] = {"name": merged["task"]}
    suited = {"task": {"name": dataset.task, **dataset.task_settings}} if dataset.task else {}
    settled = merge(suited, merged)
    name = str(settled.get("task", {}).get("name", ""))
    if own.is_task(name):
        own.add_task(name)
    return Scenario(read_run(settled), replace(settings, dataset=dataset.name, otherwise=""))


def dataset_of(name: str) -> Dataset:
    """Return a data set by name, or the user's own file by its path."""
    return own.dataset_of(name) if own.is_data(name) else datasets.dataset_of(name)


def _present(settings: SimulationConfig) -> Dataset:
    dataset = dataset_of(settings.dataset)
    if not settings.otherwise:
        return dataset
    stand_in = dataset_of(settings.otherwise)
    if is_here(dataset):
        return dataset
    print(f"fedward: {absence(dataset)}; taking {stand_in.name} instead: {stand_in.title}", file=sys.stderr)
    return stand_in
