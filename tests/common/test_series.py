"""Series: the grid against pandas, moments that count every patient once, and what a recurrent layer reads."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import DataError
from common.statistics import total
from common.tasks import series
from common.tasks.icu import COLUMNS, HOURS, VARIABLES, Icu
from common.tasks.task import Column


def events(count, rows, hours, variables, seed):
    draw = np.random.default_rng(seed)
    whose = draw.integers(0, rows, count), draw.uniform(0, hours, count)
    return *whose, draw.integers(0, variables, count), draw.normal(size=count)


@given(st.integers(0, 200), st.integers(0, 2**16))
def test_the_grid_holds_the_means_that_pandas_finds(count, seed):
    row, hour, variable, value = events(count, 3, 4, 2, seed)
    found = series.grid(row, hour, variable, value, (3, 4, 2))
    frame = pd.DataFrame({"row": row, "hour": hour.astype(int), "variable": variable, "value": value})
    expected = np.full((3, 4, 2), np.nan)
    for place, mean in frame.groupby(["row", "hour", "variable"])["value"].mean().items():
        expected[place] = mean
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_what_lies_outside_the_stay_is_left_out_and_its_last_moment_is_not():
    row, variable = np.zeros(4, int), np.zeros(4, int)
    found = series.grid(row, np.array([-0.1, 2.0, 2.1, 0.0]), variable, np.array([9.0, 5.0, 9.0, 1.0]), (1, 2, 1))
    assert found[0, :, 0].tolist() == [1.0, 5.0]


@given(st.integers(0, 2**16))
def test_a_patient_counts_once_however_often_he_is_measured(seed):
    values = np.random.default_rng(seed).normal(size=(5, 6, 2))
    values[np.random.default_rng(seed + 1).random(values.shape) < 0.5] = np.nan
    often = np.concatenate([values, values], axis=1)
    for name, sums in series.moments(values).items():
        np.testing.assert_allclose(series.moments(often)[name], sums)


@given(st.integers(0, 2**16))
def test_a_value_is_carried_forward_until_the_next_one(seed):
    draw = np.random.default_rng(seed)
    values = np.where(draw.random((2, 7, 3)) < 0.6, np.nan, draw.normal(size=(2, 7, 3)))
    carried, seen, since = series.carried(values)
    for row, variable in np.ndindex(2, 3):
        filled = pd.Series(values[row, :, variable]).ffill().fillna(0.0)
        np.testing.assert_array_equal(carried[row, :, variable], filled)
    np.testing.assert_array_equal(seen, ~np.isnan(values))
    np.testing.assert_array_equal(since[seen], 0.0)
    assert ((since >= 0) & (since <= 1)).all()


def test_no_value_is_known_before_it_was_measured():
    values = np.full((1, 5, 1), np.nan)
    values[0, 3, 0] = 7.0
    carried, _, since = series.carried(values)
    assert carried[0, :, 0].tolist() == [0, 0, 0, 7, 7]
    assert since[0, :, 0].tolist() == [1, 1, 1, 0, 0.2]


def test_steps_of_several_hours_are_their_means():
    values = np.array([[[1.0], [np.nan], [3.0], [np.nan], [np.nan]]])
    np.testing.assert_array_equal(series.steps(values, 2)[0, :, 0], [1.0, 3.0, np.nan])


def test_an_artefact_counts_as_not_measured():
    heat = Column("heat", "number", "temperature", "degrees C", 25, 45)
    found = series.scaled(np.array([[[-17.8], [37.0]]]), [heat], frozenset())
    np.testing.assert_array_equal(found, [[[np.nan], [37.0]]])


def stays(rows, seed=0):
    draw = np.random.default_rng(seed)
    low, high = (np.array([getattr(each, end) for each in VARIABLES]) for end in ("low", "high"))
    grid = draw.uniform(low, high, (rows, HOURS, len(VARIABLES)))
    grid[draw.random(grid.shape) < 0.9] = np.nan
    fixed = {"age": draw.uniform(20, 90, rows), "gender": draw.integers(0, 2, rows), "height": np.full(rows, np.nan)}
    return {**fixed, "unit": draw.integers(1, 5, rows), "events": grid.astype(np.float32), "death": np.zeros(rows)}


def test_hospitals_agree_on_one_scale_and_a_variable_that_nobody_measured_keeps_its_range():
    task = Icu().build()
    parts = [task.summarise(stays(9, seed)) for seed in (1, 2)]
    preparation = task.fit(total(parts))
    height = [column.name for column in COLUMNS].index("height")
    assert (preparation["mean"][height], preparation["scale"][height]) == (165.0, 32.5)
    pooled = {name: np.concatenate([stays(9, seed)[name] for seed in (1, 2)]) for name in stays(1)}
    for name, values in task.fit(task.summarise(pooled)).items():
        np.testing.assert_allclose(values, preparation[name])


def test_the_future_of_a_stay_changes_no_earlier_step():
    task = Icu(hours=4).build()
    records = stays(3)
    preparation = task.fit(task.summarise(records))
    shorter = records | {"events": np.where(np.arange(HOURS)[None, :, None] < 24, records["events"], np.nan)}
    whole, half = (task.encode(given, preparation).x for given in (records, shorter))
    np.testing.assert_array_equal(whole[:, :6], half[:, :6])


def test_a_grid_of_another_shape_is_refused():
    records = stays(2)
    records["events"] = records["events"][:, :-1]
    with pytest.raises(DataError, match=r"events: expected the shape \(n, 48, 37\), got \(2, 47, 37\)"):
        Icu().build().summarise(records)
