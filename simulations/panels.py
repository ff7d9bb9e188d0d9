"""The other drawings of a run, each into given axes: the course of training, the split, and curves in a square."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulations import cards, forest, paper, words
from simulations.cards import APPROACHES, COMPARED, Record
from simulations.paper import COLOURS, MOST, MUTED, SHADES, SMALL_PRINT

Curves = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""Training curves by hospital: rounds of training and values of the headline metric."""
Points = NDArray[np.float64]
"""A curve as points (n, 2)."""
Label = tuple[float, str, str]
"""What stands at the end of a line: the height, the text and the colour."""


# --- training ------------------------------------------------------------------------------------------------------------


def draw_training(axes: Any, record: Record, curves: Curves) -> None:
    """Draw the headline metric by round: pooled, each hospital (a band when there are many), and the comparators as levels."""
    metric = record["headline"]
    pooled = _pooled_curve(record, metric)
    axes.set_xlabel("Rounds of training")
    axes.set_ylabel(words.metric_name(metric))
    labels = [*_draw_hospitals(axes, record, curves), *_draw_levels(axes, record, metric)]
    if len(pooled):
        axes.plot(pooled[:, 0], pooled[:, 1], color=COLOURS["federated"], linewidth=1.5, zorder=3)
        labels.append((pooled[-1, 1], APPROACHES["federated"], COLOURS["federated"]))
    if not len(pooled) and not curves:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "not judged during training", transform=axes.transAxes, ha="center", color=MUTED)
        return
    axes.margins(x=0)
    _few_ticks(axes)
    _end_labels(axes, labels)


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


def _draw_hospitals(axes: Any, record: Record, curves: Curves) -> list[Label]:
    if len(curves) > MOST:
        _draw_band(axes, curves)
        return []
    for rounds, values in curves.values():
        axes.plot(rounds, values, color=MUTED, linewidth=0.5, alpha=0.55, zorder=1)
    if len(curves) > 6:
        return []
    return [
        (values[-1], paper.short(paper.hospital_label(record, name), 14), MUTED)
        for name, (_, values) in curves.items()
        if len(values)
    ]


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
    looks = {"ha": "right", "fontsize": SMALL_PRINT, "color": MUTED}
    corner = {"xycoords": "axes fraction", "textcoords": "offset points"}
    axes.annotate("hospitals: 50 % and 90 %", (1, 0), (0, 3), **corner, **looks)


def _draw_levels(axes: Any, record: Record, metric: str) -> list[Label]:
    levels = {other: cards.estimate(record, other, metric).value for other in COMPARED}
    known = {other: level for other, level in levels.items() if np.isfinite(level)}
    for other, level in known.items():
        axes.axhline(level, color=COLOURS[other], linewidth=0.8, linestyle=(0, (4, 2)), zorder=2)
    return [(level, APPROACHES[other], COLOURS[other]) for other, level in known.items()]


def _end_labels(axes: Any, labels: Sequence[Label]) -> None:
    low, high = axes.get_ylim()
    gap = 7.5 / (axes.get_window_extent().height / axes.figure.dpi * 72) * (high - low)
    ordered = sorted(labels)
    for (value, text, colour), at in zip(ordered, apart([label[0] for label in ordered], gap), strict=True):
        line = {"color": colour, "linewidth": 0.4, "transform": axes.get_yaxis_transform(), "clip_on": False}
        axes.plot([1.0, 1.04], [value, at], **line)
        paper.beside(axes, text, at, (0.05 * axes.get_window_extent().width / axes.figure.dpi * 72, 0), color=colour)


def _few_ticks(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=(1, 2, 5, 10)))


def _pooled_curve(record: Record, metric: str) -> Points:
    """Return rounds of training and values over all test patients, (n, 2), the final model last.

    A round's record judges the model that the round started from, which has one round less behind it. A run that stopped early may have
    gone back to an earlier model, so its final one is not drawn.
    """
    points = [(item["round"] - 1, _float(item["metrics"].get(metric))) for item in record["rounds"]]
    if points and record["stopped"] == "rounds":
        points.append((record["rounds"][-1]["round"], cards.estimate(record, "federated", metric).value))
    curve = np.array([point for point in points if np.isfinite(point[1])], np.float64)
    return curve.reshape(-1, 2)


# --- the split -----------------------------------------------------------------------------------------------------------


def draw_split(axes: Any, record: Record) -> None:
    """Draw patients by class and hospital: stacked bars up to three classes, shares as shades for more. Hidden counts are left out."""
    by_name = {hospital["name"]: hospital for hospital in record["hospitals"]}
    drawn = [by_name[name] for name in paper.drawn_hospitals(record)]
    counts = [cards.classes(hospital) or [cards.rows(hospital)] for hospital in drawn]
    shown = np.array([[0 if cards.hidden(record, item) else item for item in row] for row in counts], float)
    labels = paper.class_labels(record) or ["patients"]
    names = [paper.hospital_label(record, hospital["name"]) for hospital in drawn]
    if len(labels) <= len(SHADES):
        _draw_bars(axes, shown, labels, paper.left_of(axes) - paper.names_width(names) + 3.0)
    else:
        _draw_shares(axes, shown, labels)
    axes.set_yticks(range(len(drawn)), names)
    axes.set_ylim(len(drawn) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    for place, (hospital, row) in enumerate(zip(drawn, counts, strict=True)):
        paper.beside(axes, cards.row_total(record, row, cards.rows(hospital)), place, color=MUTED)
    if len(drawn) < len(by_name):
        axes.set_xlabel(f"{axes.get_xlabel()}, {len(drawn)} largest of {words.hospitals(len(by_name))}")


def split_height(record: Record) -> float:
    """Return the millimetres that the split's rows need."""
    rows = len(paper.drawn_hospitals(record))
    return max(12.0, rows * (5.0 if rows <= 8 else 3.3))


def split_header(record: Record) -> float:
    """Return the room above the split, in millimetres: a line for a key, more for slanted class names."""
    labels = paper.class_labels(record)
    if len(labels) <= len(SHADES):
        return 5.0
    return 4.0 + 1.05 * max(paper.cells(paper.short(label, 14)) for label in labels)


def _draw_bars(axes: Any, shown: Points, labels: Sequence[str], left: float) -> None:
    from matplotlib.patches import Patch

    colours = SHADES if len(labels) == len(SHADES) else (SHADES[0], SHADES[-1])
    starts = np.cumsum(shown, axis=1) - shown
    for column, colour in enumerate(colours[: len(labels)]):
        axes.barh(range(len(shown)), shown[:, column], left=starts[:, column], height=0.66, color=colour)
    # Three long names stand beside each other in half a page.
    named = zip(colours, labels, strict=False)
    paper.legend(axes, [Patch(color=colour, label=paper.short(label, 13)) for colour, label in named], left)
    axes.set_xlabel("Patients")


def _draw_shares(axes: Any, shown: Points, labels: Sequence[str]) -> None:
    from matplotlib.patches import Rectangle

    shares = shown / np.maximum(shown.sum(axis=1, keepdims=True), 1)
    strength = 0.08 + 0.92 * (shares / max(float(shares.max()), 1e-9))
    for place, column in np.argwhere(shown > 0):
        looks = {"color": SHADES[-1], "alpha": strength[place, column], "linewidth": 0}
        axes.add_patch(Rectangle((column - 0.46, place - 0.42), 0.92, 0.84, **looks))
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.xaxis.tick_top()
    slant = {"rotation": 60, "ha": "left", "va": "bottom", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(labels)), [paper.short(label, 14) for label in labels], **slant)
    axes.tick_params(axis="x", length=0, pad=2)
    axes.xaxis.set_label_position("bottom")
    axes.spines["bottom"].set_visible(False)
    axes.set_xlabel(f"Share of patients (darkest: {words.percent(float(shares.max()))})")


# --- curves in a square --------------------------------------------------------------------------------------------------


def draw_square(axes: Any, lines: Mapping[str, Points], xlabel: str, ylabel: str, *, points: bool = False) -> None:
    """Draw a curve for each way of training over the unit square, with its diagonal and, on request, every point of it."""
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.5, linestyle=(0, (2, 2)))
    for kind, line in lines.items():
        mark = forest.MARKS[kind]
        looks = {**mark.looks, "markersize": 3} if points else {"color": mark.colour}
        axes.plot(line[:, 0], line[:, 1], linewidth=1.0, **looks)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=xlabel, ylabel=ylabel)
    forest.draw_legend(axes, [forest.MARKS[kind] for kind in lines])


def roc_lines(record: Record) -> dict[str, Points]:
    """Return the receiver operating characteristic for each way of training; one that is not defined is empty."""
    return {kind: _points(record, kind, "roc", "fpr", "tpr") for kind in cards.approaches(record)}


def calibration_lines(record: Record) -> dict[str, Points]:
    """Return mean score and observed share of every bin for each way of training, without bins of too few patients."""
    lines = {}
    for kind in cards.approaches(record):
        points = _points(record, kind, "calibration", "score", "fraction")
        counts = (_curve(record, kind, "calibration") or {}).get("count") or []
        enough = [count is not None and count > 0 and not cards.hidden(record, count) for count in counts]
        lines[kind] = points[np.asarray(enough, bool)] if len(enough) == len(points) else points[:0]
    return lines


def _points(record: Record, approach: str, curve: str, x: str, y: str) -> Points:
    """Return a curve as an array ``(n, 2)``; points that are not defined are NaN."""
    part = _curve(record, approach, curve) or {}
    points = [(_float(a), _float(b)) for a, b in zip(part.get(x) or [], part.get(y) or [], strict=True)]
    return np.array(points, np.float64).reshape(-1, 2)


def _curve(record: Record, approach: str, curve: str) -> Any:
    return ((record.get("curves") or {}).get(approach) or {}).get(curve)


def _float(value: float | None) -> float:
    return np.nan if value is None else float(value)
