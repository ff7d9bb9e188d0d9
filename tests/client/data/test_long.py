"""Folders of tables: what a hospital that keeps measurements and codes line by line gives, and what of it is refused, by file, row and column."""

import gzip

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.data import deidentify, reading, schema, split, vault
from common.config import Choice
from common.errors import DataError
from common.tasks import task_of

KEY = bytes(range(32))
SECRET = "Erika Mustermann"
ROWS = "stay,patient,age,gender,height,unit,death\na,1,50,1,,3,0\nb,2,60,0,170,2,1\nc,2,61,0,170,2,1\n"
EVENTS = "stay,time,code,value\na,0.5,HR,80\nb,3,Temp,37\na,00:54,HR,90\nc,47:59,pH,7.4\n"


@pytest.fixture(scope="module", params=["icu", "treatment-next", "treatment-match"])
def task(request):
    return named(request.param)


def named(name):
    return task_of(Choice(name))


def hr(task, name="HR"):
    return [variable.name for variable in task.columns[-1].variables].index(name)


@pytest.fixture
def take_in(tmp_path):
    """Write a folder's files and read them for a task."""

    def ran(name="icu", mapping=None, **files):
        folder = tmp_path / "tables"
        folder.mkdir(exist_ok=True)
        for stem, content in files.items():
            (folder / f"{stem}.csv").write_text(content, encoding="utf-8")
        task = named(name)
        return reading.read(folder, task, schema.mapping_of(mapping or {}, task))

    return ran


class TestSeries:
    def test_a_long_table_becomes_the_hourly_grid_of_its_rows(self, take_in):
        imported = take_in(mapping={"patient": "patient"}, rows=ROWS, events=EVENTS)
        assert not imported.report.problems
        assert imported.patients.tolist() == ["1", "2", "2"]
        assert imported.records["death"].tolist() == [0, 1, 1]
        events, task = imported.records["events"], named("icu")
        assert events.shape == (3, 48, 37)
        assert events.dtype == np.float32
        known = {tuple(place): float(events[tuple(place)]) for place in np.argwhere(~np.isnan(events))}
        expected = {(0, 0, hr(task)): 85.0, (1, 3, hr(task, "Temp")): 37.0, (2, 47, hr(task, "pH")): np.float32(7.4)}
        assert known == pytest.approx(expected)

    def test_the_order_of_lines_does_not_count_nor_do_lines_before_and_after(self, take_in):
        imported = take_in(rows=ROWS, events=EVENTS)
        head, *lines = EVENTS.splitlines()
        more = [*lines[::-1], "a,-3,HR,60", "b,48.5,HR,60"]
        again = take_in(rows=ROWS, events="\n".join([head, *more]))
        np.testing.assert_array_equal(again.records["events"], imported.records["events"])

    def test_units_and_names_of_variables_are_the_hospitals(self, take_in):
        columns = {"Temp": {"name": "temperature", "unit": "°F"}, "HR": "pulse"}
        events = "stay,time,code,value\na,1,Temperature,98.6\na,1,PULSE,80\n"
        imported = take_in(mapping={"columns": columns}, rows=ROWS, events=events)
        task = named("icu")
        assert imported.records["events"][0, 1, hr(task, "Temp")] == pytest.approx(37.0)
        assert imported.records["events"][0, 1, hr(task)] == 80

    def test_columns_of_a_long_table_can_have_other_names_and_the_file_be_gzipped(self, take_in, tmp_path):
        take_in(rows=ROWS.replace("stay", "visit"), events=EVENTS)
        (tmp_path / "tables" / "events.csv").unlink()
        other = EVENTS.replace("stay,time,code,value", "visit;hour;item;number").replace(",", ";")
        (tmp_path / "tables" / "events.csv.gz").write_bytes(gzip.compress(other.encode()))
        mapping = {"row": "visit", "time": "hour", "code": "item", "value": "number"}
        imported = take_in(mapping=mapping)
        assert not imported.report.problems
        np.testing.assert_array_equal(
            imported.records["events"], take_in(rows=ROWS, events=EVENTS, mapping={}).records["events"]
        )

    def test_artefacts_foreign_lines_and_empty_rows_are_counted_and_left_out(self, take_in):
        more = "a,1,HR,9000\nb,1,HR,80\na,2,Shoe size,43\nz,2,HR,80\n"
        imported = take_in(rows=ROWS, events=EVENTS.replace("c,47:59,pH,7.4\n", more))
        assert not imported.report.refused
        notes = "\n".join(imported.report.notes)
        assert "events.csv: 1 values of 'HR' are not within 10 to 300 beats/min, and are left out" in notes
        assert "events.csv: 1 lines belong to no row of rows, and are left out" in notes
        assert "events.csv: 1 lines measure what the task does not use, and are left out" in notes
        assert "events.csv: 1 rows have no line" in notes
        assert np.isnan(imported.records["events"][0, 1]).all()

    def test_most_values_in_another_unit_bring_the_hint(self, take_in):
        events = "stay,time,code,value\n" + "".join(f"a,{hour},Temp,98.6\n" for hour in range(9))
        notes = "\n".join(take_in(rows=ROWS, events=events).report.notes)
        assert "set unit of [data.columns.Temp]" in notes


class TestCodes:
    NEXT = {
        "rows": "stay,patient\na,1\nb,2\n",
        "history": "stay,time,code\na,2,diagnosis x\nb,0,age 70\na,1,age 50\n",
        "next": "stay,code\na,treatment p\nb,treatment q\na,treatment q\n",
    }

    def test_codes_stand_in_order_of_time_and_where_there_is_none_in_order_of_the_file(self, take_in):
        imported = take_in("treatment-next", **self.NEXT)
        assert not imported.report.problems
        assert imported.records["history"].tolist() == ["age 50\ndiagnosis x", "age 70"]
        assert imported.records["next"].tolist() == ["treatment p\ntreatment q", "treatment q"]

    def test_a_table_whose_cells_have_one_code_a_line_is_the_same(self, take_in, tmp_path):
        imported, task = take_in("treatment-next", **self.NEXT), named("treatment-next")
        path = tmp_path / "one.csv"
        path.write_text('history,next\n"age 50\n diagnosis x\n","treatment p\n\ntreatment q"\nage 70,treatment q\n')
        whole = reading.read(path, task, schema.mapping_of({}, task))
        assert {name: values.tolist() for name, values in whole.records.items()} == {
            name: values.tolist() for name, values in imported.records.items()
        }

    def test_a_row_without_treatments_has_no_label(self, take_in):
        files = {**self.NEXT, "next": "stay,code\na,treatment p\n"}
        imported = take_in("treatment-next", **files)
        assert [str(problem) for problem in imported.report.problems] == [
            "row 3, column 'next': expected codes, one a line"
        ]

    def test_the_hospitals_name_of_a_stay_is_kept_as_a_keyed_hash(self, take_in):
        files = {"rows": self.NEXT["rows"], "features": self.NEXT["history"], "given": self.NEXT["next"]}
        imported, task = take_in("treatment-match", mapping={"patient": "patient"}, **files), named("treatment-match")
        assert imported.records["stay"].tolist() == ["a", "b"]
        names = [deidentify.deidentify(imported, task, key).records["stay"].tolist() for key in (KEY, bytes(32))]
        assert all(len(name) == 64 for name in names[0] + names[1])
        assert len({*names[0], *names[1]}) == 4

    def test_identity_numbers_are_no_codes(self, take_in):
        numbers = "".join(f"a,{hour},1101011990030788{hour}{hour}\n" for hour in range(3)) + "a,5,13812345678\n" * 9
        files = {**self.NEXT, "history": "stay,time,code\n" + numbers}
        assert take_in("treatment-next", **files).report.counts == {"identifier": 1}


BAD = {
    "a value that is none": (
        {"events": EVENTS + f"b,1,HR,{SECRET}\n"},
        "row 6, column 'events.csv value': expected a number, or nothing",
    ),
    "a time that is none": (
        {"events": EVENTS + f"b,{SECRET},HR,80\n"},
        "row 6, column 'events.csv time': expected hours since the stay began, as 7.5 or 07:30",
    ),
    "a row named twice": ({"rows": ROWS + "a,9,50,1,,3,0\n"}, "row 5, column 'stay': the name of a row before"),
    "a row without a name": ({"rows": ROWS + ",9,50,1,,3,0\n"}, "row 5, column 'stay': expected the name of the row"),
    "a bad cell among the rows": (
        {"rows": ROWS.replace(",61,", f",{SECRET},")},
        "row 4, column 'age': expected a number",
    ),
    "names of other rows": ({"events": "stay,time,code,value\nx,1,HR,80\n"}, "'stay' names no row of rows"),
    "a long table without its columns": (
        {"events": EVENTS.replace("value", "number")},
        "events.csv: column 'value' is not in the header",
    ),
    "an empty long table": ({"events": "stay,time,code,value\n"}, "holds no rows"),
    "a torn long table": ({"events": EVENTS + "b,1\n"}, "row 6: expected 4 cells"),
    "no long table": ({"events": None}, "expected a folder with rows.csv, events.csv"),
    "no rows": ({"rows": None}, "expected a folder with rows.csv"),
}


class TestRefused:
    @pytest.mark.parametrize("case", BAD, ids=str)
    def test_what_is_wrong_is_named_by_file_row_and_column_and_never_by_value(self, take_in, case):
        changed, expected = BAD[case]
        files = {"rows": ROWS, "events": EVENTS} | changed
        imported = take_in(**{name: content for name, content in files.items() if content is not None})
        assert imported.report.refused
        with pytest.raises(DataError) as caught:
            imported.report.check()
        assert expected in str(caught.value)
        assert SECRET not in imported.report.text()

    def test_a_bad_line_costs_its_row_alone_where_rows_may_be_dropped(self, take_in):
        imported = take_in(mapping={"on_problem": "drop"}, rows=ROWS, events=EVENTS + "b,1,HR,x\n")
        assert (imported.report.rows, imported.report.bad) == (3, 1)
        assert imported.records["age"].tolist() == [50, 61]

    def test_a_file_is_no_folder(self, tmp_path):
        path, task = tmp_path / "rows.csv", named("icu")
        path.write_text(ROWS)
        with pytest.raises(DataError, match=r"expected a folder with rows\.csv, events\.csv"):
            reading.read(path, task, schema.mapping_of({}, task)).report.check()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 47), st.sampled_from(["HR", "pH"]), st.floats(10, 300, width=32)),
        min_size=1,
        max_size=30,
    )
)
def test_every_cell_of_the_grid_is_the_mean_of_its_hour(take_in, lines):
    """An oracle in plain Python."""
    lines = [(row, hour, code, 7 + value / 1000 if code == "pH" else value) for row, hour, code, value in lines]
    text = "".join(f"{'abc'[row]},{hour},{code},{value!r}\n" for row, hour, code, value in lines)
    events = take_in(rows=ROWS, events="stay,time,code,value\n" + text).records["events"]
    expected = {}
    for row, hour, code, value in lines:
        expected.setdefault((row, hour, hr(named("icu"), code)), []).append(value)
    assert {tuple(place) for place in np.argwhere(~np.isnan(events)).tolist()} == expected.keys()
    for place, values in expected.items():
        assert events[place] == pytest.approx(sum(values) / len(values), rel=1e-6)


def test_what_was_imported_goes_through_the_vault(take_in, tmp_path):
    imported, task = take_in(mapping={"patient": "patient"}, rows=ROWS, events=EVENTS), named("icu")
    parts = split.split(deidentify.deidentify(imported, task, KEY), task, KEY, test=0.0)
    vault.seal(tmp_path / "sealed", parts, task, KEY, "east")
    opened = vault.unseal(tmp_path / "sealed", task, KEY, "east").hospital("east")
    np.testing.assert_array_equal(opened.train["events"], imported.records["events"])


def test_a_new_site_file_lists_every_variable_and_the_long_tables_columns(task):
    text = schema.commented(task)
    for setting in ("# row = ", "# time = ", "# code = ", "# value = "):
        assert setting in text
    for variable in schema.variables_of(task):
        assert f"[data.columns.{variable.name}]" in text
    from common.config import loads

    schema.mapping_of(loads(text, "site.toml")["data"], task)
