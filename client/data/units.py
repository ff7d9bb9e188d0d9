"""Units of measurement: from the hospital's unit to the task's.

Factors are exact where the unit is defined by one: inch, foot and pound (international yard and pound agreement, 1959), degrees Fahrenheit,
millimetre of mercury (133.322387415 Pa) and centimetre of water (98.0665 Pa; both conventional, ISO 80000-4 annex).
Amounts of substance turn into masses by the molar mass: sums of the standard atomic weights (IUPAC 2021, abridged), but cholesterol and triglycerides,
which are mixtures, by the customary 38.67 and 88.57 mg/dL per mmol/L (NCEP ATP III, 2001).
"""

import unicodedata
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError
from common.tasks.task import Column

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Unit:
    """A unit as ``base = factor * value + offset`` of its dimension's base unit."""

    dimension: str
    factor: float
    offset: float = 0.0


UNITS = {
    "m": Unit("length", 1.0),
    "cm": Unit("length", 0.01),
    "mm": Unit("length", 0.001),
    "in": Unit("length", 0.0254),
    "ft": Unit("length", 0.3048),
    "kg": Unit("mass", 1.0),
    "g": Unit("mass", 0.001),
    "lb": Unit("mass", 0.45359237),
    "c": Unit("temperature", 1.0, 273.15),
    "f": Unit("temperature", 5 / 9, 273.15 - 160 / 9),
    "k": Unit("temperature", 1.0),
    "pa": Unit("pressure", 1.0),
    "kpa": Unit("pressure", 1000.0),
    "mmhg": Unit("pressure", 133.322387415),
    "cmh2o": Unit("pressure", 98.0665),
    # A year is 365.25 days, as the Julian year of astronomers, and a month a twelfth of it.
    "years": Unit("time", 365.25),
    "months": Unit("time", 365.25 / 12),
    "weeks": Unit("time", 7.0),
    "days": Unit("time", 1.0),
    "hours": Unit("time", 1 / 24),
    "minutes": Unit("time", 1 / 1440),
    "/min": Unit("rate", 1.0),
    "/s": Unit("rate", 60.0),
    "1": Unit("share", 1.0),
    "%": Unit("share", 0.01),
    "/l": Unit("number concentration", 1.0),
    "/ul": Unit("number concentration", 1e6),
    "10^3/ul": Unit("number concentration", 1e9),
    "10^9/l": Unit("number concentration", 1e9),
    "10^12/l": Unit("number concentration", 1e12),
    "g/l": Unit("mass concentration", 1.0),
    "g/dl": Unit("mass concentration", 10.0),
    "mg/dl": Unit("mass concentration", 0.01),
    "mg/l": Unit("mass concentration", 1e-3),
    "ug/ml": Unit("mass concentration", 1e-3),
    "ug/l": Unit("mass concentration", 1e-6),
    "ng/ml": Unit("mass concentration", 1e-6),
    "mol/l": Unit("amount concentration", 1.0),
    "mmol/l": Unit("amount concentration", 1e-3),
    "umol/l": Unit("amount concentration", 1e-6),
    "nmol/l": Unit("amount concentration", 1e-9),
}
ALIASES = {
    "beats/min": "/min",
    "breaths/min": "/min",
    "bpm": "/min",
    "1/min": "/min",
    "次/分": "/min",
    "hz": "/s",
    "a": "years",
    "year": "years",
    "岁": "years",
    "month": "months",
    "week": "weeks",
    "day": "days",
    "d": "days",
    "天": "days",
    "hour": "hours",
    "h": "hours",
    "min": "minutes",
    "lbs": "lb",
    "inch": "in",
    "celsius": "c",
    "fahrenheit": "f",
    "kelvin": "k",
    "degreesc": "c",
    "degreesf": "f",
    "fraction": "1",
    "torr": "mmhg",
    "cells/ul": "/ul",
    "cells/nl": "10^9/l",
    "103/ul": "10^3/ul",
    "109/l": "10^9/l",
    "1012/l": "10^12/l",
    "g/100ml": "g/dl",
    "mg/100ml": "mg/dl",
}
MOLAR_MASS = {
    "cholesterol": 386.7,
    "glucose": 180.16,
    "blood sugar": 180.16,
    "triglyceride": 885.7,
    "creatinine": 113.12,
    "urea nitrogen": 28.014,
    "urea": 60.056,
    "bilirubin": 584.67,
    "uric acid": 168.11,
    "calcium": 40.078,
    "magnesium": 24.305,
    "phosphorus": 30.974,
}
"""Grams a mole. The first that stands in a column's name or meaning is its substance, so 'urea nitrogen' comes before 'urea'."""


def convert(values: Values, column: Column, unit: str, substance: str = "") -> Values:
    """Turn values ``(n,)`` in the hospital's unit into the task's; NaN stays.

    >>> convert(np.array([5.0]), Column("chol", "number", "serum cholesterol", "mg/dL"), "mmol/L").round(2).tolist()
    [193.35]

    Raises
    ------
    ConfigError
        For a unit that is not known or measures something else, or an amount of an unknown substance; the message ends with what to set.
    """
    if not unit or canonical(unit) == canonical(column.unit):
        return values
    theirs, ours = _unit(unit, column), _unit(column.unit, column)
    base = values * theirs.factor + theirs.offset
    return (base * _bridge(theirs, ours, column, substance) - ours.offset) / ours.factor


def fitting(values: Values, column: Column, substance: str = "") -> tuple[str, ...]:
    """Return the units in which 9 in 10 of the values would be in range; asked when most are not."""
    return tuple(unit for unit in UNITS if _fits(values, column, unit, substance))


def _fits(values: Values, column: Column, unit: str, substance: str) -> bool:
    try:
        converted = convert(values, column, unit, substance)
    except ConfigError:
        return False
    return bool(np.mean((converted >= column.low) & (converted <= column.high)) >= 0.9)


def canonical(unit: str) -> str:
    """Return the unit's name without case, spaces, degree signs and other ways of writing.

    >>> canonical("°C"), canonical("µmol / L"), canonical("BPM")
    ('c', 'umol/l', '/min')
    """
    # NFKC also turns the one-character signs for degrees, mmHg and the like into letters.
    plain = unicodedata.normalize("NFKC", unit).casefold().replace("°", "").replace("μ", "u").replace("×", "")
    plain = "".join(plain.split()).replace("*", "")
    return ALIASES.get(plain, plain)


def _unit(name: str, column: Column) -> Unit:
    unit = UNITS.get(canonical(name))
    if unit is None:
        raise ConfigError(
            f"column {column.name!r}: no conversion from or to {name!r} is known; convert to {column.unit or 'no unit'!r} in the file. "
            f"Known: {', '.join(UNITS)}"
        )
    return unit


def _bridge(theirs: Unit, ours: Unit, column: Column, substance: str) -> float:
    """Return the factor between two dimensions' base units: 1, or the molar mass between amounts and masses."""
    if theirs.dimension == ours.dimension:
        return 1.0
    if {theirs.dimension, ours.dimension} != {"mass concentration", "amount concentration"}:
        raise ConfigError(
            f"column {column.name!r}: expected a unit of {ours.dimension} such as {column.unit!r}, got one of {theirs.dimension}"
        )
    text = substance.casefold() or f"{column.name} {column.meaning}".casefold()
    mass = next((mass for name, mass in MOLAR_MASS.items() if name in text), None)
    if mass is None:
        raise ConfigError(f"column {column.name!r}: set its substance to one of {', '.join(MOLAR_MASS)}")
    return mass if theirs.dimension == "amount concentration" else 1 / mass
