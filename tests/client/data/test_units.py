"""Units: conversions are exact where the definition is, undo themselves, and never mix what is measured."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.data import units
from common.errors import ConfigError
from common.tasks.task import Column


def column(unit, meaning="serum cholesterol", low=float("-inf"), high=float("inf")):
    return Column("x", "number", meaning, unit, low, high)


@pytest.mark.parametrize(
    ("value", "theirs", "ours", "meaning", "expected"),
    [
        (5.0, "mmol/L", "mg/dL", "serum cholesterol", 193.35),
        (5.0, "mmol/L", "mg/dL", "fasting glucose", 90.08),
        (100.0, "µmol/L", "mg/dL", "creatinine", 1.1312),
        (1.0, "mmol/L", "mg/dL", "triglycerides", 88.57),
        (10.0, "mmol/L", "mg/dL", "blood urea nitrogen", 28.014),
        (16.0, "kPa", "mmHg", "pressure", 16000 / 133.322387415),
        (180.0, "cm", "m", "height", 1.8),
        (6.0, "ft", "cm", "height", 182.88),
        (150.0, "lb", "kg", "weight", 68.0388555),
        (98.6, "°F", "°C", "temperature", 37.0),
        (-40.0, "°F", "℃", "temperature", -40.0),
        (310.15, "K", "°C", "temperature", 37.0),
        (24.0, "months", "years", "age", 2.0),
        (1.2, "Hz", "beats/min", "rate", 72.0),
        (45.0, "%", "1", "share", 0.45),
        (6.5, "×10^9/L", "10^3/µL", "white cells", 6.5),
        (6.5, "10⁹/L", "/µL", "white cells", 6500.0),
        (13.5, "g/dL", "g/L", "haemoglobin", 135.0),
    ],
)
def test_known_values(value, theirs, ours, meaning, expected):
    converted = units.convert(np.array([value, np.nan]), column(ours, meaning), theirs)
    assert converted[0] == pytest.approx(expected, rel=1e-12)
    assert np.isnan(converted[1])


names = st.sampled_from(sorted(units.UNITS))


@given(names, names, st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5))
def test_there_and_back_is_the_same(one, other, values):
    values = np.array(values)
    try:
        there = units.convert(values, column(other), one)
    except ConfigError:
        with pytest.raises(ConfigError):
            units.convert(values, column(one), other)
        return
    back = units.convert(there, column(one), other)
    # An offset such as that of degrees Fahrenheit costs the digits below its own last.
    np.testing.assert_allclose(back, values, rtol=1e-9, atol=1e-6)


@given(names, st.lists(st.floats(allow_nan=False), min_size=1, max_size=5))
def test_the_same_unit_changes_no_bit(unit, values):
    values = np.array(values)
    assert units.convert(values, column(unit), unit.upper()) is values


def test_what_measures_something_else_is_refused():
    with pytest.raises(ConfigError, match="expected a unit of length such as 'cm', got one of mass"):
        units.convert(np.ones(1), column("cm"), "kg")
    with pytest.raises(ConfigError, match="no conversion from or to 'furlong'"):
        units.convert(np.ones(1), column("cm"), "furlong")


def test_amounts_need_a_known_substance():
    with pytest.raises(ConfigError, match="set its substance to one of cholesterol, glucose"):
        units.convert(np.ones(1), column("mg/dL", "lipid"), "mmol/L")
    assert units.convert(np.ones(1), column("mg/dL", "lipid"), "mmol/L", "Cholesterol")[0] == pytest.approx(38.67)


def test_every_alias_leads_to_a_unit():
    assert {units.canonical(name) for name in [*units.ALIASES, *units.UNITS]} == set(units.UNITS)


def test_the_unit_that_would_fit_is_found():
    assert units.fitting(np.array([1.9, 0.5, 6.1]), column("cm", low=40, high=700)) == ("m",)
    assert units.fitting(np.array([-3.0]), column("mg/dL", low=60, high=700)) == ()
