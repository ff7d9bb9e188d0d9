"""How numbers are written, in every place that shows them."""

import doctest
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.intervals import UNDEFINED, Estimate
from simulations import panels, paper, words


@pytest.mark.parametrize("module", [words, paper, panels])
def test_the_examples_in_the_docstrings_hold(module):
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed


@given(st.floats(-1e4, 1e4), st.integers(0, 4), st.booleans())
def test_numbers_are_written_as_python_rounds_them(value, digits, signed):
    text = words.number(value, digits, signed)
    assert float(text.replace("−", "-")) == round(value, digits)
    assert "-" not in text


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_a_dash(value):
    assert words.number(value) == "–"


@pytest.mark.parametrize(
    ("estimate", "signed", "text"),
    [
        (UNDEFINED, False, "–"),
        (Estimate(0.5, 0.25, 0.75), False, "0.500 (0.250–0.750)"),
        (Estimate(0.5, math.nan, math.nan), False, "0.500"),
        (Estimate(0.5, 0.25, math.nan), False, "0.500"),
        (Estimate(0.0125, -0.5, 0.5), True, "+0.013 (−0.500 to +0.500)"),
    ],
)
def test_a_value_stands_before_its_interval(estimate, signed, text):
    assert words.interval(estimate, signed=signed) == text


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (99_960, "100 kB"),
        (1_500_000, "1.5 MB"),
        (2e9, "2 GB"),
        (5e12, "5 TB"),
        (5e15, "5,000 TB"),
    ],
)
def test_a_size_has_the_unit_that_fits(amount, text):
    assert words.size(amount) == text


@given(st.floats(0, 9.9e14))
def test_a_size_is_right_to_three_digits(amount):
    number, unit = words.size(amount).split()
    factor = 1000.0 ** ["B", "kB", "MB", "GB", "TB"].index(unit)
    assert float(number) * factor == pytest.approx(amount, rel=0.0051, abs=0.5)
    assert "e" not in number
    assert float(number) < 1000


class TestConsole:
    def test_what_is_piped_is_not_broken(self, monkeypatch):
        monkeypatch.delenv("COLUMNS", raising=False)
        assert words.console().width == words.ENDLESS

    def test_columns_counts_where_it_is_given(self, monkeypatch):
        monkeypatch.setenv("COLUMNS", "72")
        assert words.console().width == 72
