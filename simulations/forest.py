"""Forest plots: one row a hospital or a group of runs, one estimate with its interval for each way of training."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.intervals import Estimate
from simulations import cards, paper, words
from simulations.cards import APPROACHES, Record
from simulations.paper import COLOURS, MUTED, PAPER, RULE


@dataclass(frozen=True)
class Mark:
    """How one series is drawn; every series has a marker of its own, so that the plot reads without colours."""

    label: str
    colour: str
    marker: str
    filled: bool = True

    @property
    def looks(self) -> dict[str, Any]:
        """What matplotlib is told of a marker."""
        return {
            "color": self.colour,
            "marker": self.marker,
            "markersize": 2.8,
            "markeredgewidth": 0.7,
            "markerfacecolor": self.colour if self.filled else PAPER,
        }


MARKS = {
    "local": Mark(APPROACHES["local"], COLOURS["local"], "s", filled=False),
    "federated": Mark(APPROACHES["federated"], COLOURS["federated"], "o"),
    "central": Mark(APPROACHES["central"], COLOURS["central"], "D", filled=False),
}


@dataclass(frozen=True)
class Row:
    """One row of a forest plot: an estimate a series. ``inner`` are quartiles, ``points`` single values, both a series."""

    label: str
    estimates: tuple[Estimate, ...]
    inner: tuple[tuple[float, float], ...] = ()
    points: tuple[tuple[float, ...], ...] = ()
    bold: bool = False


# --- rows ----------------------------------------------------------------------------------------------------------------


def marks_of(record: Record) -> list[Mark]:
    """Return a mark for every way of training that the run has."""
    return [MARKS[name] for name in cards.approaches(record)]


def rows_of(record: Record, metric: str) -> list[Row]:
    """Return a row for every hospital that is drawn, one for all of them where some are not, and one for all test patients pooled."""
    present, drawn = cards.approaches(record), paper.drawn_hospitals(record)
    rows = [
        Row(paper.hospital_label(record, name), tuple(cards.estimate(record, kind, metric, name) for kind in present))
        for name in drawn
    ]
    if len(drawn) < len(record["hospitals"]):
        rows.append(_summary(record, metric))
    return [*rows, Row("pooled", tuple(cards.estimate(record, kind, metric) for kind in present), bold=True)]


def differences_of(record: Record, metric: str) -> tuple[list[Row], list[Mark]]:
    """Return rows and marks of the paired differences federated minus other."""
    others = cards.compared(record)
    rows = [
        Row(
            paper.hospital_label(record, name),
            tuple(cards.difference(record, other, metric, name) for other in others),
        )
        for name in paper.drawn_hospitals(record)
    ]
    rows.append(Row("pooled", tuple(cards.difference(record, other, metric) for other in others), bold=True))
    return rows, [replace(MARKS[other], label=f"minus {MARKS[other].label}") for other in others]


def left(rows: Sequence[Row]) -> float:
    """Return the millimetres that the row labels need."""
    return paper.names_width([row.label for row in rows])


def height(rows: Sequence[Row]) -> float:
    """Return the millimetres that the rows need."""
    return (len(rows) + 1.4) * (6.5 if len(rows) <= 12 else 3.9)


def _summary(record: Record, metric: str) -> Row:
    """Return one row for all hospitals: median, 5 to 95 % and quartiles of their values."""
    estimates, quartiles = [], []
    for kind in cards.approaches(record):
        values = np.array([cards.estimate(record, kind, metric, name).value for name in cards.hospitals(record)])
        values = values[np.isfinite(values)]
        low, first, middle, third, high = np.percentile(values, (5, 25, 50, 75, 95)) if len(values) else [np.nan] * 5
        estimates.append(Estimate(float(middle), float(low), float(high)))
        quartiles.append((float(first), float(third)))
    return Row(f"all {words.hospitals(len(record['hospitals']))}", tuple(estimates), tuple(quartiles), bold=True)


# --- drawing -------------------------------------------------------------------------------------------------------------


def draw(
    axes: Any,
    rows: Sequence[Row],
    marks: Sequence[Mark],
    xlabel: str,
    *,
    numbers: bool = False,
    zero: bool = False,
    legend: bool = True,
) -> None:
    """Draw rows from top to bottom, one estimate a series; those of summaries stand apart, under a line."""
    summaries = sum(row.bold for row in rows)
    heights = np.arange(len(rows), dtype=float) + 0.6 * (np.arange(len(rows)) >= len(rows) - summaries)
    offsets = (np.arange(len(marks)) - (len(marks) - 1) / 2) * 0.25
    for series, mark in enumerate(marks):
        _draw_series(axes, rows, series, mark, heights + offsets[series])
    if zero:
        axes.axvline(0, color=MUTED, linewidth=0.6, zorder=0)
    axes.set_ylim(heights[-1] + 0.7, -0.7)
    axes.set_yticks(heights, [row.label for row in rows])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    if 0 < summaries < len(rows):
        axes.axhline(heights[-summaries] - 0.8, color=RULE, linewidth=0.5, clip_on=False)
    _limits(axes, rows)
    axes.set_xlabel(xlabel)
    if legend:
        draw_legend(axes, marks)
    if numbers:
        _number_column(axes, rows, heights, marks)


def draw_legend(axes: Any, marks: Sequence[Mark]) -> None:
    """Draw the key of the series above the axes."""
    from matplotlib.lines import Line2D

    paper.legend(axes, [Line2D([], [], linewidth=0.8, label=mark.label, **mark.looks) for mark in marks])


def _draw_series(axes: Any, rows: Sequence[Row], series: int, mark: Mark, heights: NDArray[np.float64]) -> None:
    """Draw one series, in few strokes, for there may be many rows."""
    table = np.array([row.estimates[series] for row in rows], float)
    axes.hlines(heights, table[:, 1], table[:, 2], color=mark.colour, linewidth=0.8, zorder=2)
    quartiles = np.array([row.inner[series] if row.inner else (np.nan, np.nan) for row in rows], float)
    axes.hlines(heights, quartiles[:, 0], quartiles[:, 1], color=mark.colour, linewidth=2.4, zorder=2)
    points = [(point, at) for row, at in zip(rows, heights, strict=True) if row.points for point in row.points[series]]
    if points:
        axes.plot(*zip(*points, strict=True), "|", color=mark.colour, markersize=4, markeredgewidth=0.5, alpha=0.7)
    bold = np.array([row.bold for row in rows])
    for chosen, wide in ((~bold, 2.8), (bold, 3.6)):
        looks = {**mark.looks, "markersize": wide, "linestyle": "none"}
        axes.plot(table[chosen, 0], heights[chosen], zorder=3, **looks)


def _number_column(axes: Any, rows: Sequence[Row], heights: NDArray[np.float64], marks: Sequence[Mark]) -> None:
    series = [mark.label for mark in marks].index(APPROACHES["federated"])
    for row, at in zip(rows, heights, strict=True):
        value = row.estimates[series]
        if row.inner:
            paper.beside(axes, "quartiles, 5–95 %", at, (4, 0))
        elif cards.defined(value):
            paper.beside(axes, words.interval(value, 2), at, (4, 0))
        else:
            paper.beside(axes, "not defined", at, (4, 0), color=MUTED)
    paper.beside(axes, "federated (95 %)", -0.7, (4, 4), va="bottom", color=MUTED)


def _limits(axes: Any, rows: Sequence[Row]) -> None:
    ends = [number for row in rows for estimate in row.estimates for number in estimate if np.isfinite(number)]
    ends += [number for row in rows for points in row.points for number in points if np.isfinite(number)]
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    margin = 0.04 * (high - low) or 0.01
    axes.set_xlim(low - margin, high + margin)
    axes.locator_params(axis="x", nbins=6, steps=(1, 2, 5, 10))
    axes.grid(visible=True, axis="x", color=RULE, linewidth=0.4)
    axes.set_axisbelow(True)
