"""How numbers, metrics and durations are written, on the screen, in the report and in the cards; and how wide the screen is."""

import math
import os
from typing import TYPE_CHECKING

from common.intervals import Estimate

if TYPE_CHECKING:
    from rich.console import Console

DASH = "–"
"""What stands where a number is not defined."""
METRICS = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "f1": "F1",
    "macro_f1": "Macro F1",
    "log_loss": "Log loss",
    "brier": "Brier score",
    "c_index": "C-index",
    "mae": "Mean absolute error",
    "rmse": "Root mean squared error",
    "r2": "R2",
    "ndcg": "NDCG",
}
ENDLESS = 10_000
"""Columns of an output that is no terminal: whoever reads it wants whole lines."""


def metric_name(metric: str) -> str:
    """Return a metric's name as it stands in a table.

    >>> metric_name("auroc"), metric_name("balanced_accuracy")
    ('AUROC', 'Balanced accuracy')
    """
    return METRICS.get(metric, metric.replace("_", " ").capitalize())


def in_text(metric: str) -> str:
    """Return a metric's name as it stands inside a sentence.

    >>> in_text("auroc"), in_text("accuracy")
    ('AUROC', 'accuracy')
    """
    return METRICS.get(metric, metric.replace("_", " "))


def undefined(metric: str) -> str:
    """Say where a metric has no value, which a dash in a table or a missing mark in a drawing stands for.

    >>> undefined("auroc")
    'AUROC is not defined where the test patients are all of one class, or there are none'
    """
    if metric in ("auroc", "auprc"):
        return f"{metric_name(metric)} is not defined where the test patients are all of one class, or there are none"
    return f"{metric_name(metric)} is not defined where it would be a share or a mean of no patients"


def number(value: float | None, digits: int = 3, signed: bool = False) -> str:
    """Write a number with a true minus sign; a dash where it is not defined. What rounds to zero has no sign.

    >>> number(-0.12345), number(0.5, 2, signed=True), number(-0.0001), number(None)
    ('−0.123', '+0.50', '0.000', '–')
    """
    if value is None or not math.isfinite(value):
        return DASH
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    if not float(text):
        text = text.lstrip("+-")
    return text.replace("-", "−")


def interval(value: Estimate, digits: int = 3, signed: bool = False) -> str:
    """Write a value and its 95 % interval.

    >>> interval(Estimate(0.874, 0.832, 0.911)), interval(Estimate(0.03, -0.01, 0.07), 2, signed=True)
    ('0.874 (0.832–0.911)', '+0.03 (−0.01 to +0.07)')
    """
    text, low, high = (number(part, digits, signed) for part in value)
    if DASH in (text, low, high):
        return text
    return f"{text} ({low}{' to ' if signed else '–'}{high})"


def size(amount: float) -> str:
    """Write bytes in decimal units, to three digits.

    >>> size(999), size(999_700), size(1_234_567)
    ('999 B', '1 MB', '1.23 MB')
    """
    unit = "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if amount < 999.5:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:,.0f} {unit}" if unit == "B" or amount >= 99.95 else f"{amount:.3g} {unit}"


def percent(value: float) -> str:
    """Write a fraction as a percentage."""
    return f"{100 * value:.0f} %"


def seconds(value: float) -> str:
    """Write a duration.

    >>> seconds(0.0123), seconds(9.14), seconds(4000)
    ('0.012 s', '9.1 s', '1 h 6 min')
    """
    if value >= 3600:
        return f"{value // 3600:.0f} h {value % 3600 // 60:.0f} min"
    if value >= 100:
        return f"{value // 60:.0f} min {value % 60:.0f} s"
    return f"{value:.1f} s" if value >= 1 else f"{value:.3f} s"


def hospitals(amount: int) -> str:
    """Write a count of hospitals.

    >>> hospitals(1), hospitals(1200)
    ('1 hospital', '1,200 hospitals')
    """
    return f"{amount:,} hospital{'' if amount == 1 else 's'}"


def console(*, stderr: bool = False) -> "Console":
    """Return the screen: as wide as the terminal or ``COLUMNS`` says, without end where the output goes to a file or another program."""
    from rich.console import Console

    found = Console(stderr=stderr, highlight=False)
    if not found.is_terminal and not os.environ.get("COLUMNS", "").isdigit():
        found.width = ENDLESS
    return found
