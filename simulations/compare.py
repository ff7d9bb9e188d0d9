"""Several runs side by side: means and standard deviations over seeds, of every way of training and every setting that differs."""

import csv
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.config import flatten
from common.errors import UsageError, nearest
from common.intervals import UNDEFINED, Estimate
from common.tasks import SWITCHES
from simulations import cards, words
from simulations.cards import APPROACHES, Record
from simulations.report import load

VIEWS = {"pooled": "pooled", "hospitals": "mean of hospitals"}
OFF = ("inf", "False")
"""What the switch of a part is where the part is switched off."""
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


@dataclass(frozen=True)
class Cell:
    """One approach in one view: its value in every run of a group, in the order of the seeds; undefined ones are left out."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the seeds; NaN of none."""
        return statistics.fmean(self.values) if self.values else float("nan")

    @property
    def deviation(self) -> float:
        """Standard deviation over the seeds, with n - 1; NaN of fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else float("nan")

    def __str__(self) -> str:
        return words.number(self.mean) + (f" ± {words.number(self.deviation)}" if len(self.values) > 1 else "")


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone. ``settings`` are those that differ between groups; ``cells`` go by (view, approach)."""

    settings: tuple[tuple[str, str], ...]
    seeds: tuple[int, ...]
    cells: Mapping[tuple[str, str], Cell]

    @property
    def label(self) -> str:
        """The settings in short."""
        return ", ".join(value for _, value in self.settings) or "all runs"


@dataclass(frozen=True)
class Comparison:
    """Groups of runs judged by one metric. ``notes`` say what the reader should know about the choice of runs."""

    metric: str
    groups: tuple[Group, ...]
    notes: tuple[str, ...] = ()
    synthetic: bool = False

    @property
    def title(self) -> str:
        """The metric's name, and a warning when the data are not of patients."""
        return words.metric_name(self.metric) + (" (SYNTHETIC DATA)" if self.synthetic else "")

    @property
    def columns(self) -> list[tuple[str, str]]:
        """The (view, approach) pairs that at least one run has."""
        pairs = [(view, approach) for view in VIEWS for approach in ("federated", "local", "central")]
        return [pair for pair in pairs if any(group.cells[pair].values for group in self.groups)]


def compare(folders: Sequence[Path], metric: str = "") -> Comparison:
    """Read runs and group them by the settings, other than the seed, in which they differ.

    Raises
    ------
    UsageError
        When there is no run, a folder is none, the runs are of different tasks or data, or do not have the metric.
    DataError
        When a record is damaged.
    """
    if not folders:
        raise UsageError("compare: expected one or more folders of runs, for example runs/heart-*")
    records = [load(folder) for folder in folders]
    _check_same("tasks", [(record["task"],) for record in records], folders)
    # A generator's data go by the seed, so only real files must be the same.
    _check_same(
        "data",
        [
            (data["name"], {} if record["synthetic"] else data["sha256"])
            for record in records
            for data in [record["data"]]
        ],
        folders,
    )
    chosen = metric or records[0]["headline"]
    for record in records:
        if chosen not in cards.metrics(record):
            raise UsageError(
                f"--metric {chosen}: run {record['name']} has no such metric; {nearest(chosen, cards.metrics(record))}"
            )
    kept, notes = _without_repeats(records)
    return Comparison(
        chosen,
        tuple(_groups(kept, chosen)),
        (*notes, *_version_notes(kept)),
        any(record["synthetic"] for record in kept),
    )


def table(comparison: Comparison, views: Sequence[str] = tuple(VIEWS)) -> tuple[list[str], list[list[str]]]:
    """Return the heads and rows of the table, as text; of one view alone, its columns are named by the approach."""
    head = [name for name, _ in comparison.groups[0].settings] or ["runs"]
    columns = [(view, approach) for view, approach in comparison.columns if view in views]
    ends = {view: f", {VIEWS[view]}" if len(views) > 1 else "" for view in views}
    heads = [*head, "n", *(f"{APPROACHES[approach]}{ends[view]}" for view, approach in columns)]
    return heads, [
        [
            *([value for _, value in group.settings] or ["all"]),
            str(len(group.seeds)),
            *(str(group.cells[pair]) for pair in columns),
        ]
        for group in comparison.groups
    ]


def as_csv(comparison: Comparison) -> str:
    """Return the table as CSV: mean, standard deviation and count apart, numbers in full; empty where not defined."""
    text = io.StringIO()
    names = [name for name, _ in comparison.groups[0].settings]
    columns = comparison.columns
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(
        [
            *names,
            "metric",
            "seeds",
            *(f"{view}_{approach}_{part}" for view, approach in columns for part in ("mean", "sd", "n")),
        ]
    )
    for group in comparison.groups:
        cells = [group.cells[pair] for pair in columns]
        numbers = [number for cell in cells for number in (_plain(cell.mean), _plain(cell.deviation), len(cell.values))]
        settings = [value for _, value in group.settings]
        rows.writerow(
            [
                *settings,
                comparison.metric,
                " ".join(map(str, group.seeds)),
                *("" if number is None else number for number in numbers),
            ]
        )
    return text.getvalue()


def as_latex(comparison: Comparison) -> str:
    r"""Return the table for LaTeX; it needs ``\usepackage{booktabs}``."""
    heads, rows = table(comparison)
    words = max(len(comparison.groups[0].settings), 1)
    lines = [
        f"% {_one_line(comparison.title)}: mean and standard deviation over n seeds",
        rf"\begin{{tabular}}{{{'l' * words}{'r' * (len(heads) - words)}}}",
        r"\toprule",
        latex_row(heads),
        r"\midrule",
        *(latex_row(row) for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as JSON values."""
    return {
        "metric": comparison.metric,
        "synthetic": comparison.synthetic,
        "notes": list(comparison.notes),
        "groups": [
            {
                "settings": dict(group.settings),
                "seeds": list(group.seeds),
                "results": {
                    view: {
                        approach: _summary(group.cells[view, approach])
                        for at, approach in comparison.columns
                        if at == view
                    }
                    for view in VIEWS
                },
            }
            for group in comparison.groups
        ],
    }


def save_figure(comparison: Comparison, path: Path) -> None:
    """Draw mean and standard deviation of every group as PNG, with a tick for every seed."""
    from simulations import forest, paper, pictures

    kinds = [kind for kind in APPROACHES if any(approach == kind for _, approach in comparison.columns)]
    rows = list(enumerate(comparison.groups, 1))
    plots = [
        (
            f"{comparison.title}, {told}",
            [
                forest.Row(paper.label(group.label, f"group {place}"), *_drawn(group, view, kinds))
                for place, group in rows
            ],
        )
        for view, told in VIEWS.items()
    ]
    pictures.save_forest(plots, [forest.MARKS[kind] for kind in kinds], path)


def _drawn(
    group: Group, view: str, kinds: Sequence[str]
) -> tuple[tuple[Estimate, ...], tuple[()], tuple[tuple[float, ...], ...]]:
    cells = [group.cells[view, kind] for kind in kinds]
    estimates = tuple(
        Estimate(cell.mean, cell.mean - cell.deviation, cell.mean + cell.deviation) if cell.values else UNDEFINED
        for cell in cells
    )
    return estimates, (), tuple(cell.values for cell in cells)


def _check_same(what: str, values: Sequence[Any], folders: Sequence[Path]) -> None:
    for value, folder in zip(values, folders, strict=True):
        if value != values[0]:
            names = f"{folders[0]} ({values[0][0]}) and {folder} ({value[0]})"
            raise UsageError(
                f"compare: expected runs on the same task and data, got different {what}: {names}; compare them apart"
            )


def _groups(records: Sequence[Record], metric: str) -> Iterable[Group]:
    tables = [_settings(record) for record in records]
    names = sorted({name for settings in tables for name in settings})
    differing = [name for name in names if _differs(name, tables)]
    members: dict[tuple[tuple[str, str], ...], list[Record]] = {}
    for record, settings in zip(records, tables, strict=True):
        members.setdefault(tuple((name, settings.get(name, "–")) for name in differing), []).append(record)
    for key, group in members.items():
        yield _group(key, sorted(group, key=lambda record: int(record["seed"])), metric)


def _differs(name: str, tables: Sequence[Mapping[str, str]]) -> bool:
    """Tell whether runs differ in a setting; those in which its part is switched off do not count."""
    given = [settings[name] for settings in tables if name in settings]
    absent = len(given) < len(tables) and name.partition(".")[0] not in SWITCHES
    return len(set(given)) + absent > 1


def _group(settings: tuple[tuple[str, str], ...], records: Sequence[Record], metric: str) -> Group:
    values = {
        (view, approach): [read(record, approach, metric).value for record in records]
        for view, read in (("pooled", cards.estimate), ("hospitals", cards.mean_of_hospitals))
        for approach in APPROACHES
    }
    cells = {pair: Cell(tuple(number for number in numbers if np.isfinite(number))) for pair, numbers in values.items()}
    return Group(settings, tuple(record["seed"] for record in records), cells)


def _settings(record: Record) -> dict[str, str]:
    """Return a run's settings that had an effect: of a part that was switched off, the switch alone."""
    settings = {name: _one_line(value) for name, value in flatten(record["config"]).items() if name != "seed"}
    switches = {f"{part}.{switch}" for part, switch in SWITCHES.items()}
    off = tuple(f"{part}." for part, switch in SWITCHES.items() if settings.get(f"{part}.{switch}") in OFF)
    return {name: value for name, value in settings.items() if name in switches or not name.startswith(off)}


def _without_repeats(records: Sequence[Record]) -> tuple[list[Record], list[str]]:
    """Leave out runs of the same settings and seed as an earlier one: a run made twice is not a second seed."""
    first: dict[tuple[int, tuple[tuple[str, str], ...]], Record] = {}
    notes = []
    for record in records:
        key = (record["seed"], tuple(sorted(_settings(record).items())))
        if key in first:
            notes.append(f"{record['name']} has the settings and seed of {first[key]['name']} and is left out")
        else:
            first[key] = record
    return list(first.values()), notes


def _version_notes(records: Sequence[Record]) -> list[str]:
    found = {
        name: sorted({str(record["versions"].get(name)) for record in records}) for name in ("fedward", "tensorflow")
    }
    return [
        f"the runs were made by different versions of {name}: {', '.join(versions)}"
        for name, versions in found.items()
        if len(versions) > 1
    ]


def _summary(cell: Cell) -> dict[str, Any]:
    return {"mean": _plain(cell.mean), "sd": _plain(cell.deviation), "n": len(cell.values), "values": list(cell.values)}


def _plain(number: float) -> float | None:
    return number if np.isfinite(number) else None


def _one_line(value: object) -> str:
    # JSON has no infinity; of settings, nothing else is written as nothing.
    return "inf" if value is None else " ".join(str(value).split())


def latex_row(cells: Iterable[str]) -> str:
    """Return a row of a table for LaTeX."""
    return " & ".join("".join(_LATEX.get(letter, letter) for letter in cell) for cell in cells) + r" \\"
