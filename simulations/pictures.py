"""The pictures of a run: one figure for a paper, and drawings for the report.

Sizes are in millimetres and placed by hand, so that nothing moves or collapses with long names or many hospitals. Colours are of Okabe and Ito's
palette, which colour-blind readers can tell apart, and every series has a marker of its own.
"""

import io
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.intervals import Estimate
from simulations import cards
from simulations.cards import APPROACHES, Record

Curves = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""Training curves by hospital: rounds of training and values of the headline metric."""

INK, MUTED, RULE, PAPER = "#1b1f24", "#66707b", "#d4d9df", "#fffffe"
COLOURS = {"local": "#808790", "federated": "#0072b2", "central": "#d55e00"}
SHADES = ("#c6d0da", "#7d97b0", "#34546f")
THEME = {
    INK: "ink",
    MUTED: "muted",
    RULE: "rule",
    PAPER: "paper",
    **{colour: name for name, colour in COLOURS.items()},
    **{colour: f"shade-{place}" for place, colour in enumerate(SHADES)},
}
"""Colours that the report's page sets itself, so that a drawing follows light, dark and print."""

MOST = 40
"""Hospitals drawn one by one; of more, the largest."""
SANS = ("Helvetica", "Arial", "Liberation Sans", "DejaVu Sans")
CHINESE = (
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Source Han Sans SC",
    "Noto Sans CJK JP",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Microsoft YaHei",
    "PingFang SC",
    "Hiragino Sans GB",
    "SimHei",
    "Droid Sans Fallback",
    "Arial Unicode MS",
)
STYLE = {
    "font.size": 7,
    "axes.labelsize": 7,
    "axes.titlesize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "axes.linewidth": 0.5,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "fedward",
}


@dataclass(frozen=True)
class Mark:
    """How one series is drawn."""

    label: str
    colour: str
    marker: str
    filled: bool = True


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


# --- the figures ---------------------------------------------------------------------------------------------------------


def save_picture(record: Record, curves: Curves, path: Path) -> None:
    """Draw the run for a paper, 180 mm wide at 300 dpi: (a) hospitals, (b) training, (c) split."""
    with _style():
        chosen = _chosen(record)
        rows = _forest_rows(record, record["headline"], chosen)
        tall = _split_height(len(chosen))
        header = 58.0 + _header_height(record)
        height = max(_forest_height(rows) + 22.0, header + tall + 11.0)
        figure = _figure(180, height)
        left = _label_width(rows)
        forest = _place(figure, left, 11, 72 - left, height - 22)
        draw_forest(forest, rows, _marks(record), cards.metric_name(record["headline"]), numbers=True)
        curve = _place(figure, 113, height - 43, 44, 38)
        draw_training(curve, record, curves)
        names = [_hospital_label(record, name) for name in chosen]
        split = _place(figure, 100 + _names_width(names), height - header - tall, 66 - _names_width(names), tall)
        draw_split(split, record, chosen)
        for letter, x, y in (("a", 3, height - 4), ("b", 99, height - 4), ("c", 99, height - 56)):
            figure.text(x / 180, y / height, letter, fontsize=9, fontweight="bold", fontfamily=_fonts()[0], va="center")
        if record["synthetic"]:
            style = {"fontweight": "bold", "fontfamily": _fonts()[0], "color": COLOURS["central"]}
            figure.text(3 / 180, 3 / height, "SYNTHETIC DATA", va="center", **style)
        figure.savefig(path, dpi=300, metadata={"Software": None, "Title": f"{record['name']}: {record['title']}"})


def forest_svg(record: Record, metric: str) -> str:
    """Draw one metric at every hospital, with intervals, for local, federated and central training."""
    with _style():
        rows = _forest_rows(record, metric, _chosen(record, metric))
        return _forest_page(rows, _marks(record), cards.metric_name(metric))


def differences_svg(record: Record) -> str:
    """Draw the paired differences of the headline metric at every hospital, with intervals and a line at zero."""
    with _style():
        others = [name for name in ("local", "central") if record.get("differences", {}).get(name)]
        marks = [
            Mark(f"minus {MARKS[name].label}", MARKS[name].colour, MARKS[name].marker, MARKS[name].filled)
            for name in others
        ]
        metric = cards.compared_metric(record)
        rows = [
            Row(_hospital_label(record, name), tuple(cards.difference(record, other, metric, name) for other in others))
            for name in _chosen(record, metric)
        ]
        rows.append(Row("pooled", tuple(cards.difference(record, other, metric) for other in others), bold=True))
        return _forest_page(rows, marks, f"Difference in {cards.in_text(metric)}, federated minus other", zero=True)


def training_svg(record: Record, curves: Curves) -> str:
    """Draw the headline metric by round, pooled and at every hospital."""
    with _style():
        figure = _figure(110, 62)
        draw_training(_place(figure, 13, 11, 72, 48), record, curves)
        return _svg(figure, "training")


def split_svg(record: Record) -> str:
    """Draw how many patients of each class every hospital has."""
    with _style():
        chosen = _chosen(record)
        header, tall = _header_height(record), _split_height(len(chosen))
        left = _names_width([_hospital_label(record, name) for name in chosen])
        figure = _figure(110, tall + header + 11)
        draw_split(_place(figure, left, 10, 92 - left, tall), record, chosen)
        return _svg(figure, "split")


def roc_svg(record: Record) -> str:
    """Draw the receiver operating characteristic of the pooled test patients; empty when the record has none."""
    with _style():
        lines = {name: _pairs(record, name, "roc", "fpr", "tpr") for name in cards.approaches(record)}
        return _square("roc", lines, "False positive rate", "True positive rate", drawstyle="default")


def calibration_svg(record: Record) -> str:
    """Draw observed against predicted shares, without bins of too few patients; empty when the record has none."""
    with _style():
        lines = {}
        for name in cards.approaches(record):
            pairs = _pairs(record, name, "calibration", "score", "fraction")
            counts = (_part(record, name, "calibration") or {}).get("count") or []
            enough = [count is not None and count > 0 and not cards.hidden(record, count) for count in counts]
            lines[name] = pairs[np.asarray(enough, bool)] if len(enough) == len(pairs) else pairs[:0]
        return _square("calibration", lines, "Predicted probability", "Observed share", drawstyle="points")


def save_forest(rows: Sequence[tuple[str, Sequence[Row]]], marks: Sequence[Mark], path: Path) -> None:
    """Draw forest plots side by side, each with its title and the same row labels, 180 mm wide at 300 dpi."""
    with _style():
        left, height = _label_width(rows[0][1]), _forest_height(rows[0][1]) + 24
        figure = _figure(180, height)
        width = (176 - left) / len(rows) - 5
        for place, (title, panel) in enumerate(rows):
            axes = _place(figure, left + place * (width + 5), 12, width, height - 24)
            draw_forest(axes, panel, marks, title, legend=not place)
            if place:
                axes.tick_params(labelleft=False)
        figure.savefig(path, dpi=300, metadata={"Software": None})


# --- drawing into axes ---------------------------------------------------------------------------------------------------


def draw_forest(
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
        _legend(axes, marks)
    if numbers:
        _number_column(axes, rows, heights, marks)


def draw_training(axes: Any, record: Record, curves: Curves) -> None:
    """Draw the headline metric by round: pooled, each hospital (a band when there are many), and the comparators as levels."""
    metric = record["headline"]
    labels: list[tuple[float, str, str]] = []
    if len(curves) > MOST:
        _draw_band(axes, curves)
    else:
        for name, (rounds, values) in curves.items():
            axes.plot(rounds, values, color=MUTED, linewidth=0.5, alpha=0.55, zorder=1)
            if len(curves) <= 6 and len(values):
                labels.append((values[-1], _short(_hospital_label(record, name), 14), MUTED))
    for other in ("local", "central"):
        level = cards.estimate(record, other, metric).value
        if np.isfinite(level):
            axes.axhline(level, color=COLOURS[other], linewidth=0.8, linestyle=(0, (4, 2)), zorder=2)
            labels.append((level, APPROACHES[other], COLOURS[other]))
    pooled = _pooled_curve(record, metric)
    if len(pooled):
        axes.plot(pooled[:, 0], pooled[:, 1], color=COLOURS["federated"], linewidth=1.5, zorder=3)
        labels.append((pooled[-1, 1], "federated", COLOURS["federated"]))
    axes.set_xlabel("Rounds of training")
    axes.set_ylabel(cards.metric_name(metric))
    if not len(pooled) and not curves:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "not judged during training", transform=axes.transAxes, ha="center", color=MUTED)
        return
    axes.margins(x=0)
    _whole_numbers(axes)
    _end_labels(axes, labels)


def draw_split(axes: Any, record: Record, chosen: Sequence[str]) -> None:
    """Draw patients by class and hospital: stacked bars up to three classes, shares as shades for more. Hidden counts are left out."""
    by_name = {hospital["name"]: hospital for hospital in record["hospitals"]}
    picked = [by_name[name] for name in chosen]
    counts = [cards.classes(hospital) or [cards.rows(hospital)] for hospital in picked]
    shown = np.array([[0 if cards.hidden(record, item) else item for item in row] for row in counts], float)
    labels = class_labels(record) or ["patients"]
    names = [_hospital_label(record, name) for name in chosen]
    if len(labels) <= len(SHADES):
        left = axes.get_position().x0 * axes.figure.get_figwidth() * 25.4
        _draw_bars(axes, shown, labels, left - _names_width(names) + 3.0)
    else:
        _draw_shares(axes, shown, labels)
    axes.set_yticks(range(len(chosen)), names)
    axes.set_ylim(len(chosen) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    for place, (hospital, row) in enumerate(zip(picked, counts, strict=True)):
        text = cards.row_total(record, row, cards.rows(hospital))
        axes.annotate(
            text,
            (1, place),
            (3, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center_baseline",
            fontsize=6,
            color=MUTED,
        )
    few = len(chosen) < len(record["hospitals"])
    axes.set_xlabel(
        f"{axes.get_xlabel()}, {len(chosen)} largest of {len(record['hospitals']):,} hospitals"
        if few
        else axes.get_xlabel()
    )


def _draw_series(axes: Any, rows: Sequence[Row], series: int, mark: Mark, heights: NDArray[np.float64]) -> None:
    """Draw one series of a forest plot, in few strokes, for there may be many rows."""
    table = np.array([row.estimates[series] for row in rows], float)
    axes.hlines(heights, table[:, 1], table[:, 2], color=mark.colour, linewidth=0.8, zorder=2)
    quartiles = np.array([row.inner[series] if row.inner else (np.nan, np.nan) for row in rows], float)
    axes.hlines(heights, quartiles[:, 0], quartiles[:, 1], color=mark.colour, linewidth=2.4, zorder=2)
    points = [
        (point, height) for row, height in zip(rows, heights, strict=True) if row.points for point in row.points[series]
    ]
    if points:
        axes.plot(*zip(*points, strict=True), "|", color=mark.colour, markersize=4, markeredgewidth=0.5, alpha=0.7)
    bold = np.array([row.bold for row in rows])
    for chosen, width in ((~bold, 2.8), (bold, 3.6)):
        (drawn,) = axes.plot(
            table[chosen, 0],
            heights[chosen],
            mark.marker,
            color=mark.colour,
            markersize=width,
            markeredgewidth=0.7,
            zorder=3,
        )
        drawn.set_markerfacecolor(mark.colour if mark.filled else PAPER)


def _draw_bars(axes: Any, shown: NDArray[np.float64], labels: Sequence[str], left: float) -> None:
    from matplotlib.patches import Patch

    colours = SHADES if len(labels) == len(SHADES) else (SHADES[0], SHADES[-1])
    starts = np.cumsum(shown, axis=1) - shown
    for column, colour in enumerate(colours[: len(labels)]):
        axes.barh(range(len(shown)), shown[:, column], left=starts[:, column], height=0.66, color=colour)
    # Three long names stand beside each other in half a page.
    handles = [Patch(color=colour, label=_short(label, 13)) for colour, label in zip(colours, labels, strict=False)]
    _place_legend(axes, handles, left)
    axes.set_xlabel("Patients")


def _draw_shares(axes: Any, shown: NDArray[np.float64], labels: Sequence[str]) -> None:
    from matplotlib.patches import Rectangle

    shares = shown / np.maximum(shown.sum(axis=1, keepdims=True), 1)
    shade = shares / max(float(shares.max()), 1e-9)
    for place, column in np.argwhere(shown > 0):
        square = Rectangle(
            (column - 0.46, place - 0.42),
            0.92,
            0.84,
            color=SHADES[-1],
            alpha=0.08 + 0.92 * shade[place, column],
            linewidth=0,
        )
        axes.add_patch(square)
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.xaxis.tick_top()
    axes.set_xticks(
        range(len(labels)),
        [_short(label, 14) for label in labels],
        rotation=60,
        ha="left",
        va="bottom",
        rotation_mode="anchor",
    )
    axes.tick_params(axis="x", length=0, pad=2)
    axes.xaxis.set_label_position("bottom")
    axes.spines["bottom"].set_visible(False)
    axes.set_xlabel(f"Share of patients (darkest: {cards.percent(float(shares.max()))})")


def _draw_band(axes: Any, curves: Curves) -> None:
    rounds = sorted({at for where, _ in curves.values() for at in where})
    table = np.full((len(curves), len(rounds)), np.nan)
    column = {at: place for place, at in enumerate(rounds)}
    for place, (where, values) in enumerate(curves.values()):
        table[place, [column[at] for at in where]] = values
    known = np.isfinite(table).any(axis=0)
    low, first, third, high = np.nanpercentile(table[:, known], (5, 25, 75, 95), axis=0)
    at = np.asarray(rounds)[known]
    axes.fill_between(at, low, high, color=MUTED, alpha=0.15, linewidth=0)
    axes.fill_between(at, first, third, color=MUTED, alpha=0.25, linewidth=0)
    axes.annotate(
        "hospitals: 50 % and 90 %",
        (1, 0),
        (0, 3),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="right",
        fontsize=6,
        color=MUTED,
    )


def _number_column(axes: Any, rows: Sequence[Row], heights: NDArray[np.float64], marks: Sequence[Mark]) -> None:
    series = [mark.label for mark in marks].index(APPROACHES["federated"])
    for row, height in zip(rows, heights, strict=True):
        text = "quartiles, 5–95 %" if row.inner else cards.interval(row.estimates[series], 2)
        axes.annotate(
            text,
            (1, height),
            (4, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center_baseline",
            fontsize=6,
        )
    axes.annotate(
        "federated (95 %)",
        (1, -0.7),
        (4, 4),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        va="bottom",
        fontsize=6,
        color=MUTED,
    )


def _end_labels(axes: Any, labels: Sequence[tuple[float, str, str]]) -> None:
    if not labels:
        return
    low, high = axes.get_ylim()
    gap = 7.5 / (axes.get_window_extent().height / axes.figure.dpi * 72) * (high - low)
    ordered = sorted(labels)
    for (value, text, colour), at in zip(ordered, apart([label[0] for label in ordered], gap), strict=True):
        axes.annotate(
            text,
            (1.05, at),
            xycoords=("axes fraction", "data"),
            va="center_baseline",
            fontsize=6,
            color=colour,
            annotation_clip=False,
        )
        axes.plot(
            [1.0, 1.04], [value, at], color=colour, linewidth=0.4, transform=axes.get_yaxis_transform(), clip_on=False
        )


def apart(values: Sequence[float], gap: float) -> list[float]:
    """Move sorted values apart by at least ``gap``, keeping their order and their mean.

    >>> apart([0.0, 0.0, 5.0], 1.0)
    [-0.5, 0.5, 5.0]
    """
    groups: list[list[float]] = []
    for value in values:
        group = [value]
        # Groups that would touch melt into one, laid evenly around their mean.
        while groups and _spread(groups[-1], gap)[-1] + gap > _spread(group, gap)[0]:
            group = groups.pop() + group
        groups.append(group)
    return [at for group in groups for at in _spread(group, gap)]


def _spread(group: Sequence[float], gap: float) -> list[float]:
    middle = sum(group) / len(group)
    return [middle + gap * (place - (len(group) - 1) / 2) for place in range(len(group))]


def _limits(axes: Any, rows: Sequence[Row]) -> None:
    ends = [number for row in rows for estimate in row.estimates for number in estimate if np.isfinite(number)]
    ends += [number for row in rows for points in row.points for number in points if np.isfinite(number)]
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    margin = 0.04 * (high - low) or 0.01
    axes.set_xlim(low - margin, high + margin)
    axes.locator_params(axis="x", nbins=6, steps=(1, 2, 5, 10))
    axes.grid(visible=True, axis="x", color=RULE, linewidth=0.4)
    axes.set_axisbelow(True)


def _whole_numbers(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=(1, 2, 5, 10)))


def _legend(axes: Any, marks: Sequence[Mark]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [],
            [],
            color=mark.colour,
            marker=mark.marker,
            markersize=2.8,
            markeredgewidth=0.7,
            linewidth=0.8,
            label=mark.label,
        )
        for mark in marks
    ]
    for handle, mark in zip(handles, marks, strict=True):
        handle.set_markerfacecolor(mark.colour if mark.filled else PAPER)
    _place_legend(axes, handles, 3.0)


def _place_legend(axes: Any, handles: Sequence[Any], left: float) -> None:
    """Put the key above the axes, from ``left`` millimetres on: above the row labels."""
    from matplotlib.transforms import blended_transform_factory

    axes.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(left / (25.4 * axes.figure.get_figwidth()), 1),
        bbox_transform=blended_transform_factory(axes.figure.transFigure, axes.transAxes),
        ncols=3,
        frameon=False,
        borderaxespad=0.2,
        borderpad=0.2,
        handlelength=1.6,
        columnspacing=1.2,
        handletextpad=0.5,
    )


# --- rows and labels -----------------------------------------------------------------------------------------------------


def class_labels(record: Record) -> list[str]:
    """Return the classes' names, or "class 1" and so on where no installed font has the letters."""
    names = list(record["classes"])
    if all(drawable(name) for name in names):
        return [_short(name, 24) for name in names]
    return [f"class {number}" for number in range(1, len(names) + 1)]


def drawable(text: str) -> bool:
    """Whether the installed fonts have every letter of a text."""
    letters = _letters(_fonts())
    return all(ord(letter) in letters for letter in text)


def label(text: str, otherwise: str, width: int = 18) -> str:
    """Return a text cut to a width, or another where no installed font has its letters."""
    return _short(text, width) if drawable(text) else otherwise


def _hospital_label(record: Record, name: str) -> str:
    return _short(name, 18) if drawable(name) else f"hospital {cards.hospitals(record).index(name) + 1}"


def _short(text: str, width: int) -> str:
    """Cut a text to a width in Latin letters; Chinese ones count twice."""
    taken = 0
    for place, letter in enumerate(text):
        taken += _cells(letter)
        if taken > width:
            return text[: max(place - 1, 1)].rstrip() + "…"
    return text


def _cells(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _chosen(record: Record, metric: str = "") -> list[str]:
    """Return the hospitals drawn one by one: those with most test patients, ordered by the federated model's result."""
    largest = sorted(record["hospitals"], key=lambda hospital: -cards.rows(hospital, "test"))[:MOST]
    value = {
        item["name"]: cards.estimate(record, "federated", metric or record["headline"], item["name"]).value
        for item in largest
    }
    return sorted(value, key=lambda name: -value[name] if np.isfinite(value[name]) else np.inf)


def _forest_rows(record: Record, metric: str, chosen: Sequence[str]) -> list[Row]:
    present = cards.approaches(record)
    rows = [
        Row(_hospital_label(record, name), tuple(cards.estimate(record, kind, metric, name) for kind in present))
        for name in chosen
    ]
    if len(chosen) < len(record["hospitals"]):
        rows.append(_summary_row(record, metric))
    return [*rows, Row("pooled", tuple(cards.estimate(record, kind, metric) for kind in present), bold=True)]


def _summary_row(record: Record, metric: str) -> Row:
    """Return one row for all hospitals: median, 5 to 95 % and quartiles of their values."""
    estimates, quartiles = [], []
    for kind in cards.approaches(record):
        values = np.array([cards.estimate(record, kind, metric, name).value for name in cards.hospitals(record)])
        values = values[np.isfinite(values)]
        low, first, middle, third, high = np.percentile(values, (5, 25, 50, 75, 95)) if len(values) else [np.nan] * 5
        estimates.append(Estimate(float(middle), float(low), float(high)))
        quartiles.append((float(first), float(third)))
    return Row(f"all {len(record['hospitals']):,} hospitals", tuple(estimates), tuple(quartiles), bold=True)


def _marks(record: Record) -> list[Mark]:
    return [MARKS[name] for name in cards.approaches(record)]


def _pooled_curve(record: Record, metric: str) -> NDArray[np.float64]:
    """Return rounds of training and values over all test patients, (n, 2), the final model last.

    A round's record judges the model that the round started from, which has one round less behind it. A run that stopped early may have
    gone back to an earlier model, so its final one is not drawn.
    """
    points = [(item["round"] - 1, _float(item["metrics"].get(metric))) for item in record["rounds"]]
    if points and record["stopped"] == "rounds":
        points.append((record["rounds"][-1]["round"], cards.estimate(record, "federated", metric).value))
    curve = np.array([point for point in points if np.isfinite(point[1])], np.float64)
    return curve.reshape(-1, 2)


def _pairs(record: Record, approach: str, curve: str, x: str, y: str) -> NDArray[np.float64]:
    """Return a curve as an array ``(n, 2)``; points that are not defined are NaN."""
    part = _part(record, approach, curve) or {}
    points = [(_float(a), _float(b)) for a, b in zip(part.get(x) or [], part.get(y) or [], strict=True)]
    return np.array(points, np.float64).reshape(-1, 2)


def _part(record: Record, approach: str, curve: str) -> Any:
    return ((record.get("curves") or {}).get(approach) or {}).get(curve)


def _float(value: float | None) -> float:
    return np.nan if value is None else float(value)


# --- paper, fonts, files -------------------------------------------------------------------------------------------------


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib.style

    with matplotlib.style.context(["default", {**STYLE, "font.family": list(_fonts())}]):
        yield


@lru_cache(maxsize=1)
def _fonts() -> tuple[str, ...]:
    """Return the families to write with: a plain one, and a Chinese one where installed."""
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    return tuple(
        next(name for name in family if name in installed)
        for family in (SANS, CHINESE)
        if installed.intersection(family)
    )


@lru_cache(maxsize=4)
def _letters(families: tuple[str, ...]) -> frozenset[int]:
    from matplotlib import font_manager

    paths = [font_manager.findfont(family) for family in families]
    return frozenset(code for path in paths for code in font_manager.get_font(path).get_charmap())


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure((width / 25.4, height / 25.4))


def _place(figure: Any, left: float, bottom: float, width: float, height: float) -> Any:
    """Add axes at a place in millimetres."""
    wide, tall = figure.get_size_inches() * 25.4
    return figure.add_axes((left / wide, bottom / tall, width / wide, height / tall))


def _names_width(labels: Sequence[str]) -> float:
    return 4.0 + 1.4 * max((_cells(label) for label in labels), default=0)


def _label_width(rows: Sequence[Row]) -> float:
    return _names_width([row.label for row in rows])


def _forest_height(rows: Sequence[Row]) -> float:
    return (len(rows) + 1.4) * (6.5 if len(rows) <= 12 else 3.9)


def _split_height(rows: int) -> float:
    return max(12.0, rows * (5.0 if rows <= 8 else 3.3))


def _header_height(record: Record) -> float:
    """Return the room above the split: a line for a key, more for slanted class names."""
    labels = class_labels(record)
    if len(labels) <= len(SHADES):
        return 5.0
    return 4.0 + 1.05 * max(_cells(_short(label, 14)) for label in labels)


def _forest_page(rows: Sequence[Row], marks: Sequence[Mark], xlabel: str, *, zero: bool = False) -> str:
    left, tall = _label_width(rows), _forest_height(rows)
    figure = _figure(110, tall + 17)
    draw_forest(_place(figure, left, 10, 107 - left, tall), rows, marks, xlabel, zero=zero)
    return _svg(figure, xlabel)


def _square(name: str, lines: Mapping[str, NDArray[np.float64]], xlabel: str, ylabel: str, drawstyle: str) -> str:
    if not any(len(line) for line in lines.values()):
        return ""
    figure = _figure(80, 84)
    axes = _place(figure, 13, 11, 64, 64)
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.5, linestyle=(0, (2, 2)))
    for kind, line in lines.items():
        mark = MARKS[kind]
        points = {"marker": mark.marker, "markersize": 3, "markeredgewidth": 0.7} if drawstyle == "points" else {}
        (drawn,) = axes.plot(line[:, 0], line[:, 1], color=mark.colour, linewidth=1.0, **points)
        drawn.set_markerfacecolor(mark.colour if mark.filled else PAPER)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=xlabel, ylabel=ylabel)
    _legend(axes, [MARKS[kind] for kind in lines])
    return _svg(figure, name)


def _svg(figure: Any, salt: str) -> str:
    """Return the drawing as inline SVG: no address, no metadata, ids of its own, the page's colours."""
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context({"svg.hashsalt": salt}):
        figure.savefig(
            text, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    drawing = text.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>\s*", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r'\sxmlns(:xlink)?="[^"]*"', "", drawing)
    drawing = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", drawing, count=1), count=1
    )
    # Groups are named "axes_1" in every drawing; without names, ids stay unique on the page.
    drawing = re.sub(r'<g id="[^"]*"', "<g", drawing)
    for colour, name in THEME.items():
        drawing = drawing.replace(colour, f"var(--{name})")
    return drawing
