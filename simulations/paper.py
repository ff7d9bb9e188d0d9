"""What every drawing is made on: millimetres, colours, fonts, the names that stand in it, and the file that comes out.

Sizes are in millimetres and placed by hand, so that nothing moves or collapses with long names or many hospitals. Colours are of Okabe and Ito's
palette, which colour-blind readers can tell apart.
"""

import io
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from simulations import cards
from simulations.cards import Record

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
SMALL_PRINT = 6
DPI = 300
_INCH = 25.4
_SANS = ("Helvetica", "Arial", "Liberation Sans", "DejaVu Sans")
_CHINESE = (
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
_STYLE = {
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


# --- the sheet -----------------------------------------------------------------------------------------------------------


@contextmanager
def style() -> Iterator[None]:
    """Draw in the house's style while this context lasts."""
    import matplotlib.style

    with matplotlib.style.context(["default", {**_STYLE, "font.family": list(_fonts())}]):
        yield


def sheet(width: float, height: float) -> Any:
    """Return an empty figure of a size in millimetres."""
    from matplotlib.figure import Figure

    return Figure((width / _INCH, height / _INCH))


def place(figure: Any, left: float, bottom: float, width: float, height: float) -> Any:
    """Add axes at a place in millimetres."""
    wide, tall = figure.get_size_inches() * _INCH
    return figure.add_axes((left / wide, bottom / tall, width / wide, height / tall))


def write(figure: Any, text: str, x: float, y: float, **looks: Any) -> None:
    """Write bold text at a place in millimetres from the left and from the bottom."""
    wide, tall = figure.get_size_inches() * _INCH
    looks = {"fontweight": "bold", "fontfamily": _fonts()[0], "va": "center", **looks}
    figure.text(x / wide, y / tall, text, **looks)


def beside(axes: Any, text: str, height: float, offset: tuple[float, float] = (3, 0), **looks: Any) -> None:
    """Write small print right of the axes at a height of its data, moved by an offset in points."""
    looks = {"va": "center_baseline", "fontsize": SMALL_PRINT, **looks}
    axes.annotate(
        text,
        (1, height),
        offset,
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        annotation_clip=False,
        **looks,
    )


def legend(axes: Any, handles: Sequence[Any], left: float = 3.0) -> None:
    """Put the key above the axes, from ``left`` millimetres on: above the row labels."""
    from matplotlib.transforms import blended_transform_factory

    axes.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(left / (_INCH * axes.figure.get_figwidth()), 1),
        bbox_transform=blended_transform_factory(axes.figure.transFigure, axes.transAxes),
        ncols=3,
        frameon=False,
        borderaxespad=0.2,
        borderpad=0.2,
        handlelength=1.6,
        columnspacing=1.2,
        handletextpad=0.5,
    )


def left_of(axes: Any) -> float:
    """Return the millimetres that the axes leave free on their left."""
    return float(axes.get_position().x0 * axes.figure.get_figwidth() * _INCH)


def svg(figure: Any, salt: str) -> str:
    """Return the drawing as inline SVG: no address, no metadata, ids of its own, the page's colours."""
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context({"svg.hashsalt": salt}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    drawing = text.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>\s*", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r'\sxmlns(:xlink)?="[^"]*"', "", drawing)
    for side in ("height", "width"):
        drawing = re.sub(rf'(<svg[^>]*?) {side}="[^"]*"', r"\1", drawing, count=1)
    # Groups are named "axes_1" in every drawing; without names, ids stay unique on the page.
    drawing = re.sub(r'<g id="[^"]*"', "<g", drawing)
    for colour, name in THEME.items():
        drawing = drawing.replace(colour, f"var(--{name})")
    return drawing


# --- names ---------------------------------------------------------------------------------------------------------------


def drawn_hospitals(record: Record) -> list[str]:
    """Return the hospitals drawn one by one, those with most test patients, in the order that the tables have them in too."""
    largest = sorted(record["hospitals"], key=lambda hospital: -cards.rows(hospital, "test"))[:MOST]
    names = {hospital["name"] for hospital in largest}
    return [name for name in cards.hospitals(record) if name in names]


def hospital_label(record: Record, name: str) -> str:
    """Return a hospital's name as it stands in a drawing, or its number where no installed font has its letters."""
    return label(name, f"hospital {cards.hospitals(record).index(name) + 1}")


def class_labels(record: Record) -> list[str]:
    """Return the classes' names (none where hospitals did not tell how many of each they have), or "class 1" and so on where no installed font has the letters."""
    names = list(record["classes"]) if cards.sorted_out(record) else []
    if all(drawable(name) for name in names):
        return [short(name, 24) for name in names]
    return [f"class {number}" for number in range(1, len(names) + 1)]


def label(text: str, otherwise: str, width: int = 18) -> str:
    """Return a text cut to a width, or another where no installed font has its letters."""
    return short(text, width) if drawable(text) else otherwise


def drawable(text: str) -> bool:
    """Whether the installed fonts have every letter of a text."""
    letters = _letters(_fonts())
    return all(ord(letter) in letters for letter in text)


def short(text: str, width: int) -> str:
    """Cut a text to a width in Latin letters; Chinese ones count twice.

    >>> short("cleveland", 6)
    'cleve…'
    """
    taken = 0
    for at, letter in enumerate(text):
        taken += cells(letter)
        if taken > width:
            return text[: max(at - 1, 1)].rstrip() + "…"
    return text


def cells(text: str) -> int:
    """Return a text's width in Latin letters."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def names_width(labels: Sequence[str]) -> float:
    """Return the millimetres that the longest of the names needs beside the axes."""
    return 4.0 + 1.4 * max((cells(text) for text in labels), default=0)


@lru_cache(maxsize=1)
def _fonts() -> tuple[str, ...]:
    """Return the families to write with: a plain one, and a Chinese one where installed."""
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    return tuple(
        next(name for name in family if name in installed)
        for family in (_SANS, _CHINESE)
        if installed.intersection(family)
    )


@lru_cache(maxsize=4)
def _letters(families: tuple[str, ...]) -> frozenset[int]:
    from matplotlib import font_manager

    paths = [font_manager.findfont(family) for family in families]
    return frozenset(code for path in paths for code in font_manager.get_font(path).get_charmap())
