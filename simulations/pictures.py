"""The pictures of a run: one figure for a paper, and drawings for the report."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import UsageError
from server import models
from simulations import cards, forest, panels, paper, words
from simulations.cards import Record
from simulations.forest import Mark, Row
from simulations.panels import Curves, Points

WIDE = 180
"""Millimetres over both columns of a journal's page."""
HALF = 110
"""Millimetres of a drawing in the report."""


def save_picture(record: Record, curves: Curves, path: Path) -> None:
    """Draw the run for a paper, 180 mm wide at 300 dpi: (a) hospitals, (b) training, (c) split."""
    with paper.style():
        rows = forest.rows_of(record, record["headline"])
        tall, header = panels.split_height(record), 58.0 + panels.split_header(record)
        height = max(forest.height(rows) + 22.0, header + tall + 11.0)
        figure = paper.sheet(WIDE, height)
        left = forest.left(rows)
        axes = paper.place(figure, left, 11, 72 - left, height - 22)
        forest.draw(axes, rows, forest.marks_of(record), words.metric_name(record["headline"]), numbers=True)
        panels.draw_training(paper.place(figure, 113, height - 43, 44, 38), record, curves)
        names = _names_width(record)
        axes = paper.place(figure, 100 + names, height - header - tall, 66 - names, tall)
        panels.draw_split(axes, record)
        for letter, x, down in (("a", 3, 4), ("b", 99, 4), ("c", 99, 56)):
            paper.write(figure, letter, x, height - down, fontsize=9)
        if record["synthetic"]:
            paper.write(figure, "SYNTHETIC DATA", 3, 3, color=paper.COLOURS["central"])
        title = f"{record['name']}: {record['title']}"
        _save(figure, path, title)


def _save(figure: Any, path: Path, title: str | None = None) -> None:
    """Write a picture, whole or not at all, in the form that the file's name ends in."""
    buffer = io.BytesIO()
    kind = path.suffix.lstrip(".") or "png"
    try:
        figure.savefig(
            buffer, format=kind, dpi=paper.DPI, metadata={"Software": None, "Title": title} if kind == "png" else None
        )
    except ValueError:
        raise UsageError(f"{path}: no picture of the kind {kind!r} can be drawn; choose .png, .pdf or .svg") from None
    models.write(path, buffer.getbuffer())


def forest_svg(record: Record, metric: str) -> str:
    """Draw one metric at every hospital, with intervals, for local, federated and central training."""
    with paper.style():
        return _forest_svg(forest.rows_of(record, metric), forest.marks_of(record), words.metric_name(metric))


def differences_svg(record: Record) -> str:
    """Draw the paired differences of one metric at every hospital, with intervals and a line at zero."""
    with paper.style():
        metric = cards.compared_metric(record)
        rows, marks = forest.differences_of(record, metric)
        return _forest_svg(rows, marks, f"Difference in {words.in_text(metric)}, federated minus other", zero=True)


def training_svg(record: Record, curves: Curves) -> str:
    """Draw the headline metric by round, pooled and at every hospital."""
    with paper.style():
        figure = paper.sheet(HALF, 62)
        panels.draw_training(paper.place(figure, 13, 11, 72, 48), record, curves)
        return paper.svg(figure, "training")


def split_svg(record: Record) -> str:
    """Draw how many patients of each class every hospital has."""
    with paper.style():
        tall, left = panels.split_height(record), _names_width(record)
        figure = paper.sheet(HALF, tall + panels.split_header(record) + 11)
        panels.draw_split(paper.place(figure, left, 10, 92 - left, tall), record)
        return paper.svg(figure, "split")


def roc_svg(record: Record) -> str:
    """Draw the receiver operating characteristic of the pooled test patients; empty when the record has none."""
    return _square_svg("roc", panels.roc_lines(record), "False positive rate", "True positive rate")


def calibration_svg(record: Record) -> str:
    """Draw observed against predicted shares, without bins of too few patients; empty when the record has none."""
    lines = panels.calibration_lines(record)
    return _square_svg("calibration", lines, "Predicted probability", "Observed share", points=True)


def save_forest(plots: Sequence[tuple[str, Sequence[Row]]], marks: Sequence[Mark], path: Path) -> None:
    """Draw forest plots side by side, each with its title and the same row labels, 180 mm wide at 300 dpi."""
    with paper.style():
        left, height = forest.left(plots[0][1]), forest.height(plots[0][1]) + 24
        figure = paper.sheet(WIDE, height)
        width = (WIDE - 4 - left) / len(plots) - 5
        for place, (title, rows) in enumerate(plots):
            axes = paper.place(figure, left + place * (width + 5), 12, width, height - 24)
            forest.draw(axes, rows, marks, title, legend=not place)
            if place:
                axes.tick_params(labelleft=False)
        _save(figure, path)


def _forest_svg(rows: Sequence[Row], marks: Sequence[Mark], xlabel: str, *, zero: bool = False) -> str:
    left, tall = forest.left(rows), forest.height(rows)
    figure = paper.sheet(HALF, tall + 17)
    forest.draw(paper.place(figure, left, 10, HALF - 3 - left, tall), rows, marks, xlabel, zero=zero)
    return paper.svg(figure, xlabel)


def _square_svg(name: str, lines: dict[str, Points], xlabel: str, ylabel: str, *, points: bool = False) -> str:
    if not any(len(line) for line in lines.values()):
        return ""
    with paper.style():
        figure = paper.sheet(80, 84)
        panels.draw_square(paper.place(figure, 13, 11, 64, 64), lines, xlabel, ylabel, points=points)
        return paper.svg(figure, name)


def _names_width(record: Record) -> float:
    return paper.names_width([paper.hospital_label(record, name) for name in paper.drawn_hospitals(record)])
