"""A hospital's table: read by the task's schema, every problem named by row and column, and no value ever shown."""

import gzip
import logging
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.data import deidentify, split, vault
from client.data.reading import read
from client.data.schema import commented, label_column, mapping_of
from common.config import loads
from common.errors import ConfigError, DataError, UsageError
from common.tasks.heart import COLUMNS, Heart
from common.tasks.notes import Notes
from common.tasks.objective import BINARY
from common.tasks.splice import Splice
from common.tasks.task import Column, Task

MIRROR = os.environ.get("FEDWARD_DATA_MIRROR", "")
HEART = Heart().build()
NOTES = Notes().build()
SPLICE = Splice().build()
KEY = bytes(range(32))


def nothing(*_):
    """Stand for what these tests never call."""


def task_with(*columns, classes=("no", "yes")):
    return Task("small", "Small", columns, "y", classes, BINARY, nothing, nothing, nothing, nothing, nothing)


SMALL = task_with(
    Column("age", "number", "age", "years", 18, 100),
    Column("sex", "category", "sex", codes=(0, 1)),
    Column("chol", "number", "serum cholesterol", "mg/dL", 60, 700, missing=(0,)),
)
GOOD = "age,sex,chol,y\n50,1,200,0\n60,0,250.5,1\n"


@pytest.fixture
def write(tmp_path):
    def write(content, name="table.csv", encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
        return path

    return write


def read_small(path, task=SMALL, **table):
    return read(path, task, mapping_of(table, task))


FASTA = ">one|EI\nACGT\nacgn\n\n>two|N\nTTGA\n"


def test_a_fasta_file_is_read_by_its_records(write):
    imported = read(write(FASTA, "some.fasta"), SPLICE, mapping_of({}, SPLICE))
    assert imported.records["sequence"].tolist() == ["ACGTACGN", "TTGA"]
    assert imported.records["label"].tolist() == [0, 2]


@pytest.mark.parametrize(
    ("content", "name"), [(FASTA.replace("TTGA", "TTXA"), "a.fa"), ("sequence,label\nACGT,EI\nTTXA,N\n", "a.csv")]
)
def test_a_wrong_letter_is_named_by_row_and_position_and_never_shown(write, content, name):
    imported = read(write(content, name), SPLICE, mapping_of({}, SPLICE))
    (problem,) = imported.report.problems
    assert (problem.kind, problem.row) == ("wrong letter", 5 if name == "a.fa" else 3)
    assert "position 3" in str(problem)
    assert "TTXA" not in imported.report.text()


def test_text_that_is_no_fasta_file_is_refused(write):
    imported = read(write("ACGT\n>one|EI\nAC\n", "a.faa"), SPLICE, mapping_of({}, SPLICE))
    with pytest.raises(DataError, match="line 1: expected a record, which begins with '>'"):
        imported.report.check()


def places(imported):
    """Return kind, row and column of every problem."""
    return [(problem.kind, problem.row, problem.column) for problem in imported.report.problems]


def only(imported):
    """Return the line of the one problem of the whole file."""
    (problem,) = imported.report.problems
    assert imported.report.refused
    assert not imported.records
    assert "\n" not in str(problem)
    with pytest.raises(DataError) as caught:
        imported.report.check()
    assert "\n" not in str(caught.value)
    return str(problem)


class TestGoodFiles:
    def test_columns_come_out_in_the_task_s_types(self, write):
        imported = read_small(write(GOOD))
        assert not imported.report.problems
        assert {name: values.tolist() for name, values in imported.records.items()} == {
            "age": [50.0, 60.0],
            "sex": [1.0, 0.0],
            "chol": [200.0, 250.5],
            "y": [0, 1],
        }
        assert imported.records["y"].dtype == np.int64
        assert imported.patients is None

    def test_columns_are_renamed_units_converted_codes_read_and_marks_taken_for_missing(self, write):
        text = "Nr;Alter;Geschlecht;Chol;Befund\n7;50,0;M;5,2;krank\n8;fehlt;W;;gesund\n9;NA;1;0;0\n"
        table = {
            "decimal": ",",
            "patient": "Nr",
            "missing": ["", "fehlt"],
            "columns": {
                "age": {"name": "Alter", "missing": ["na"]},
                "sex": {"name": "Geschlecht", "codes": {"m": 1, "w": 0, "1": 1}},
                "chol": {"name": "Chol", "unit": "mmol/l"},
                "y": {"name": "Befund", "codes": {"krank": "yes", "gesund": 0, "0": 0}},
            },
        }
        imported = read_small(write(text), **table)
        assert not imported.report.problems
        np.testing.assert_allclose(imported.records["age"], [50, np.nan, np.nan])
        np.testing.assert_allclose(imported.records["chol"], [5.2 * 38.67, np.nan, np.nan])
        assert imported.records["sex"].tolist() == [1, 0, 1]
        assert imported.records["y"].tolist() == [1, 0, 0]
        assert imported.patients.tolist() == ["7", "8", "9"]

    def test_the_label_may_be_the_name_of_its_class(self, write):
        imported = read_small(write("age,sex,chol,y\n50,1,200,No\n60,0,200, YES \n70,0,200,1.0\n"))
        assert imported.records["y"].tolist() == [0, 1, 1]

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "gbk", "utf-16"])
    def test_encodings_are_found(self, write, encoding):
        text = "年龄,性别,胆固醇,结果\n50,男,200,有\n60,女,210,无\n"
        columns = {
            "age": "年龄",
            "sex": {"name": "性别", "codes": {"男": 1, "女": 0}},
            "chol": "胆固醇",
            "y": {"name": "结果", "codes": {"有": 1, "无": 0}},
        }
        imported = read_small(write(text, encoding=encoding), columns=columns)
        assert not imported.report.problems
        assert imported.records["sex"].tolist() == [1, 0]
        assert any("GB18030" in note for note in imported.report.notes) == encoding.startswith("gb")
        given = read_small(write(text, encoding=encoding), columns=columns, encoding=encoding)
        assert not any("GB18030" in note for note in given.report.notes)

    @pytest.mark.parametrize("sign", [",", ";", "\t", "|"])
    def test_delimiters_are_found(self, write, sign):
        assert not read_small(write(GOOD.replace(",", sign))).report.problems

    def test_a_table_with_tabs_or_gzipped_is_read(self, write):
        assert not read_small(write(GOOD.replace(",", "\t"), "table.tsv")).report.problems
        assert not read_small(write(gzip.compress(GOOD.encode()), "table.csv.gz")).report.problems

    def test_names_stand_in_the_settings_where_the_file_has_none(self, write):
        imported = read_small(write("50,1,200,0\n60,9,250,1\n"), header=["age", "sex", "chol", "y"])
        assert places(imported) == [("unknown code", 2, "sex")]

    def test_a_column_that_is_not_measured_is_missing_throughout(self, write):
        imported = read_small(write("age,sex,y\n50,1,0\n"), columns={"chol": {"absent": True}})
        assert np.isnan(imported.records["chol"]).all()

    def test_dates_become_days_since_the_patient_s_first(self, write):
        task = task_with(
            Column("seen", "number", "day of the visit", "days", 0, 1000),
            Column("operated", "number", "day of the operation", "days", 0, 1000),
        )
        text = (
            "id,seen,operated,y\na,01.02.2020,03.02.2020,0\nb,05.05.2019,,0\na,31.01.2020,,1\nb,x,,1\na,01.02.2024,,1\n"
        )
        form = {"date": "%d.%m.%Y"}
        table = {"patient": "id", "columns": {"seen": form, "operated": form}, "on_problem": "drop"}
        imported = read_small(write(text), task, **table)
        assert places(imported) == [("not a date", 5, "seen"), ("out of range", 6, "seen")]
        assert imported.records["seen"].tolist() == [1, 0, 0]
        np.testing.assert_array_equal(imported.records["operated"], [3, np.nan, np.nan])

    def test_texts_keep_their_lines(self, write):
        imported = read(write('text,label\n"one\ntwo",yes\n" x ",0\n'), NOTES, mapping_of({}, NOTES))
        assert imported.records["text"].tolist() == ["one\ntwo", "x"]
        assert imported.records["label"].tolist() == [1, 0]

    def test_the_section_written_for_a_new_site_reads_the_task_s_own_form(self, write):
        assert not read_small(write(GOOD), **loads(commented(SMALL))["data"]).report.problems


class TestProblemsOfCells:
    def test_each_kind_is_named_by_row_and_column(self, write):
        rows = [
            "id,Alter,sex,chol,y,day",
            "1,50,1,200,0,2020-01-01",
            "2,fifty,1,200,0,2020-01-01",  # row 3
            "3,17,1,200,0,2020-01-01",
            "4,50,2,200,0,2020-01-01",
            "5,50,1,200,,2020-01-01",
            "6,50,1,200,maybe,2020-01-01",
            ",50,1,200,0,2020-01-01",  # row 8
            "8,50,1,200,0,2020-02-30",
            '9,"1,5",1,1e999,0,',
        ]
        task = task_with(*SMALL.columns, Column("day", "number", "day", "days", 0, 9))
        table = {"patient": "id", "columns": {"age": "Alter", "day": {"date": "%Y-%m-%d"}}}
        imported = read_small(write("\n".join(rows)), task, **table)
        assert places(imported) == [
            ("no patient number", 8, "id"),
            ("not a number", 3, "Alter"),
            ("not a number", 10, "Alter"),
            ("out of range", 4, "Alter"),
            ("unknown code", 5, "sex"),
            ("not a number", 10, "chol"),
            ("not a date", 9, "day"),
            ("missing label", 6, "y"),
            ("unknown code", 7, "y"),
        ]
        assert imported.report.counts["not a number"] == 3
        assert imported.report.refused
        assert not imported.records
        with pytest.raises(
            DataError,
            match=r"table.csv: refused, 9 problems; the first: row 8, column 'id': expected the patient's number",
        ):
            imported.report.check()

    def test_a_row_s_number_is_the_line_on_which_it_starts(self, write):
        text = 'text,label\n"a\nb\nc",0\n\n"d\r\ne",7\n"",0\nf,7\n'
        imported = read(write(text), NOTES, mapping_of({}, NOTES))
        lines = text.replace("\r\n", "\n").split("\n")
        assert [lines[row - 1] for _, row, _ in places(imported)] == ['""' + ",0", '"d', "f,7"]
        assert places(imported) == [("no text", 8, "text"), ("unknown code", 6, "label"), ("unknown code", 9, "label")]

    def test_a_required_number_is_refused_where_it_is_missing(self, write):
        task = task_with(Column("T", "number", "time", "days", 0, 9, required=True))
        assert places(read_small(write("T,y\n3,0\n,1\n"), task)) == [("missing value", 3, "T")]

    def test_dropped_rows_are_counted_and_the_others_taken(self, write):
        imported = read_small(write(GOOD + "x,7,1,0\n30,1,100,1\n"), on_problem="drop")
        assert (imported.report.rows, imported.report.bad, imported.report.refused) == (4, 1, False)
        assert len(imported.report.problems) == 3
        assert imported.records["age"].tolist() == [50, 60, 30]
        assert "4 rows read, 3 taken, 1 with problems dropped" in imported.report.text()

    def test_no_good_row_is_refused_even_where_rows_may_be_dropped(self, write):
        assert read_small(write("age,sex,chol,y\nx,1,200,0\n"), on_problem="drop").report.refused

    def test_the_report_shows_some_of_each_kind_and_counts_the_rest(self, write):
        imported = read_small(write("age,sex,chol,y\n" + "x,5,200,0\n" * 20))
        text = imported.report.text(most=3)
        assert text.count("expected a number") == 3
        assert text.count("and 17 more") == 2
        assert "not a number (20)" in text
        assert "row 4, column 'age': expected a number, or nothing" in text

    def test_the_unit_that_would_fit_is_proposed(self, write):
        imported = read_small(write("age,sex,chol,y\n50,1,5.1,0\n60,1,4.4,1\n"))
        assert "in g/l or mmol/l they would fit: set unit of [data.columns.chol]" in imported.report.text()

    @pytest.mark.parametrize("decimal", [".", ","])
    def test_the_other_decimal_mark_is_a_problem_not_a_guess(self, write, decimal):
        other = "," if decimal == "." else "."
        for mark, problems in ((decimal, []), (other, [("not a number", 2, "age")])):
            path = write(f"age;sex;chol;y\n50{mark}125;1;200;0\n")
            assert places(read_small(path, decimal=decimal)) == problems

    @given(st.floats(18, 100), st.sampled_from([".", ","]))
    def test_any_number_is_read_as_it_was_written(self, number, decimal):
        from client.data.cells import number as parsed

        assert parsed(repr(number).replace(".", decimal), decimal) == number

    def test_a_converted_limit_is_still_in_range(self, write):
        text = f"age,sex,chol,y\n50,1,{700 / 38.67!r},0\n50,1,{60 / 38.67!r},0\n"
        assert not read_small(write(text), columns={"chol": {"unit": "mmol/L"}}).report.problems


class TestProblemsOfFiles:
    def test_a_missing_column_is_named_with_the_nearest(self, write):
        line = only(read_small(write("age,sex,cholest,y\n50,1,200,0\n")))
        assert line.startswith(
            "column 'chol' is not in the header; the nearest are 'cholest'; name it in [data.columns]"
        )

    def test_every_missing_column_is_named(self, write):
        imported = read_small(write("age,other\n50,1\n"))
        assert places(imported) == [("missing column", 0, "")] * 3

    def test_a_file_without_a_header_shows_nothing_of_its_first_patient(self, write):
        imported = read_small(write("Miller,51,233.25,0\nJones,60,250,1\n"))
        assert "none of age, sex, chol, y is in row 1" in only(imported)
        assert not any(word in imported.report.text() for word in ("Miller", "51", "233"))

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            (b"", "the file is empty"),
            (b"\n\n", "the file is empty"),
            (b"age,sex,chol,y\n", "holds no rows"),
            (b"age,sex,chol,y\n50,1,200,0\n50,1,200\n50,1\n", "row 3 (and 1 more rows): expected 4 cells"),
            (
                b"age,sex,chol,y\n50,1,200,0\n50,1,20",
                "row 3: expected 4 cells, as in the header; the file ends within that row",
            ),
            (b"age,sex,chol,y,age\n50,1,200,0,50\n", "column 'age' stands 2 times in the header"),
            (b"age,sex,chol,y\n50,1,200,0\n50,1,2\x0000,0\n", "row 3: holds a NUL byte"),
            (b'age,sex,chol,y\n50,1,200,0\n50,1,"200,0\n50,1,200,1\n', "row 3: not CSV"),
            (b'age,sex,chol,y\n50,1,"2"00,0\n', "row 2: not CSV"),
            (b"age,sex,chol,y\n50,1,200,\xff\xff\n", "neither UTF-8 nor GB18030"),
        ],
    )
    def test_what_spoils_the_whole_file_is_one_line(self, write, content, expected):
        assert expected in only(read_small(write(content), on_problem="drop"))

    def test_bytes_that_are_no_text_are_named_by_row(self, write):
        line = only(read_small(write(b"age,sex,chol,y\n50,1,200,0\n50,1,200,\xff\n"), encoding="utf-8"))
        assert line.startswith("row 3: not text in utf-8-sig")

    @pytest.mark.parametrize("length", [5, 20, 40])
    def test_a_cut_off_gzip_is_said(self, write, length):
        whole = gzip.compress(os.urandom(200).hex().encode())
        assert "damaged or cut off gzip" in only(read_small(write(whole[:length], "table.csv.gz")))

    def test_an_absent_file_is_said(self, tmp_path):
        assert "cannot be read (No such file" in only(read_small(tmp_path / "absent.csv"))

    def test_identity_numbers_are_no_measurement(self, write):
        task = task_with(Column("value", "number", "value"))
        rows = "".join(f"1381234567{digit},0\n" for digit in range(5))
        assert "holds identity or telephone numbers" in only(read_small(write("value,y\n" + rows), task))

    def test_a_changed_schema_is_noted(self, write):
        imported = read_small(
            write("age,sex,chol,y,ward,remark,remark,13812345678\n50,1,?,0,A,x,y,z\n60,1,,0,B,x,y,z\n")
        )
        notes = " ".join(imported.report.notes)
        assert "'ward', 'remark', 'remark' and 1 without a plain name" in notes
        assert "column 'chol': every value is missing" in notes
        assert "column 'remark' stands 2 times" in notes
        assert "13812345678" not in imported.report.text()

    def test_columns_that_identify_are_counted_by_name_and_by_content(self, write):
        text = "age,sex,chol,y,PatientName,x7,ward\n" + "".join(
            f"50,1,200,0,A B,1381234567{row},A\n" for row in range(5)
        )
        assert dict(read_small(write(text)).left_out) == {("NAME", "PatientName"): 5, ("PHONE", "x7"): 5}


class TestSettings:
    @pytest.mark.parametrize(
        ("table", "expected"),
        [
            ({"encodng": "x"}, "data.encodng: unknown key; did you mean 'encoding'"),
            ({"encoding": "klingon"}, "data.encoding: unknown encoding"),
            ({"encoding": "hex"}, "data.encoding: unknown encoding"),
            ({"delimiter": ";;"}, "data.delimiter: expected one character"),
            ({"on_problem": "ignore"}, "data.on_problem"),
            ({"missing": "NA"}, "data.missing: expected a list of texts"),
            (
                {"columns": {"cholesterol": "x"}},
                "data.columns.cholesterol: the task small has no such column; did you mean 'chol'",
            ),
            ({"columns": {"chol": 3}}, "data.columns.chol: expected the file's name"),
            (
                {"columns": {"chol": {"unit": "kg"}}},
                "data.columns.chol.unit: column 'chol': expected a unit of mass concentration",
            ),
            ({"columns": {"chol": {"unti": "kg"}}}, "data.columns.chol.unti: unknown key"),
            ({"columns": {"chol": {"date": "%Y"}}}, "data.columns.chol.date"),
            ({"columns": {"sex": {"unit": "kg"}}}, "data.columns.sex: unit and date are for numbers"),
            ({"columns": {"sex": {"codes": {"m": 3}}}}, "data.columns.sex.codes.m: expected one of 0, 1"),
            ({"columns": {"sex": {"codes": {"m": True}}}}, "data.columns.sex.codes.m"),
            ({"columns": {"sex": {"codes": "m"}}}, "data.columns.sex.codes: expected a table"),
            ({"columns": {"sex": {"codes": {"m": [1]}}}}, "data.columns.sex.codes.m"),
            ({"columns": {"y": {"codes": {"m": "ill"}}}}, "data.columns.y.codes.m: expected one of 0, 1, no, yes"),
            ({"columns": {"y": {"absent": True}}}, "data.columns.y.absent"),
            ({"columns": {"age": {"decimal": ";"}}}, "data.columns.age.decimal"),
            ({"columns": []}, "data.columns: expected a table"),
            ({"patient_in_file_name": "("}, "data.patient_in_file_name: not a regular expression"),
            ({"patient_in_file_name": "a"}, "data.patient_in_file_name: expected a group"),
        ],
    )
    def test_what_is_wrong_is_named_by_key(self, table, expected):
        with pytest.raises(ConfigError) as caught:
            mapping_of(table, SMALL)
        assert expected in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("task", [HEART, NOTES, SMALL], ids=lambda task: task.name)
    def test_the_section_for_a_new_site_is_valid_commented_or_not(self, task):
        text = commented(task)
        bare = [line.removeprefix("# ") if " = " in line else line for line in text.splitlines()]
        names = {column.name: column.name for column in (*task.columns, label_column(task))}
        for each in (text, "\n".join(bare)):
            mapping = mapping_of(loads(each)["data"], task)
            assert {name: how.name for name, how in mapping.columns.items()} == names


class TestParquet:
    def test_without_pyarrow_the_extra_is_named(self, write, monkeypatch):
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
        assert "pip install 'fedward[parquet]'" in only(read_small(write(b"PAR1", "table.parquet")))

    def test_typed_cells_are_read_as_their_text_would_be(self, tmp_path):
        arrow = pytest.importorskip("pyarrow", reason="the extra 'parquet' is not installed")
        parquet = pytest.importorskip("pyarrow.parquet")
        from datetime import date

        task = task_with(*SMALL.columns, Column("day", "number", "day", "days", 0, 9))
        day = date(2020, 1, 5)
        columns = {
            "age": [50.5, None, 17.0],
            "sex": [1, 0, 1],
            "chol": [200.25, float("nan"), 100],
            "y": ["no", "yes", "no"],
        }
        path = tmp_path / "table.parquet"
        parquet.write_table(arrow.table(columns | {"day": [day, None, day]}), path)
        for decimal in (".", ","):
            table = {"decimal": decimal, "columns": {"day": {"date": "%Y-%m-%d"}}, "on_problem": "drop"}
            imported = read_small(path, task, **table)
            assert places(imported) == [("out of range", 4, "age")]
            np.testing.assert_array_equal(imported.records["age"], [50.5, np.nan])
            np.testing.assert_array_equal(imported.records["chol"], [200.25, np.nan])
            np.testing.assert_array_equal(imported.records["day"], [0, np.nan])

    def test_a_damaged_file_is_said(self, write):
        pytest.importorskip("pyarrow", reason="the extra 'parquet' is not installed")
        assert "cannot be read as Parquet" in only(read_small(write(b"PAR1 no table", "table.parquet")))


CANARIES = st.sampled_from(["Zqcanary", "Zq金丝雀", "8675309.25", "13877776666", "1867-05-04", "zq@canary.org"])
AROUND = st.text("ab 1,;\"'\n\t.-张\N{ZERO WIDTH SPACE}", max_size=6)
TARGETS = st.sampled_from(["id", "age", "sex", "chol", "y", "day", "extra", "note"])


class TestNoValueIsShown:
    @settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        st.lists(st.tuples(TARGETS, st.integers(0, 2), CANARIES, AROUND, AROUND), min_size=1, max_size=6),
        st.booleans(),
        st.sampled_from(["utf-8", "gb18030", "utf-16"]),
        st.sampled_from(["auto", "utf-8", "gb18030", "ascii"]),
        st.sampled_from(["refuse", "drop"]),
    )
    def test_a_canary_in_any_cell_stays_in_its_cell(
        self, tmp_path, caplog, capsys, planted, quoted, encoding, claimed, on_problem
    ):
        caplog.set_level(logging.DEBUG)
        task = task_with(*SMALL.columns, Column("day", "number", "day", "days", 0, 9), Column("note", "text", "note"))
        base = {
            "id": "1",
            "age": "50",
            "sex": "1",
            "chol": "200",
            "y": "0",
            "day": "2020-01-01",
            "extra": "x",
            "note": "fine",
        }
        rows = [dict(base) for _ in range(3)]
        for target, row, canary, before, after in planted:
            rows[row][target] = before + canary + after
        text = ",".join(base) + "\n"
        for row in rows:
            cells = ['"' + cell.replace('"', '""') + '"' if quoted else cell for cell in row.values()]
            text += ",".join(cells) + "\n"
        path = tmp_path / "table.csv"
        path.write_bytes(text.encode(encoding))
        table = {
            "encoding": claimed,
            "patient": "id",
            "columns": {"day": {"date": "%Y-%m-%d"}},
            "on_problem": on_problem,
        }
        imported = read_small(path, task, **table)
        shown = [imported.report.text(most=10**6), repr(imported.report), repr(imported), str(imported)]
        try:
            clean = deidentify.deidentify(imported, task, KEY)
            parts = split.split(clean, task, KEY)
            shown += [repr(clean), clean.found.text(), repr(clean.found), repr(parts)]
        except DataError as error:
            shown.append(repr(error))
        said = "\n".join([*shown, caplog.text, *capsys.readouterr()])
        for _, _, canary, _, _ in planted:
            assert canary not in said

    def test_the_canaries_would_be_seen(self, tmp_path):
        """A canary planted where showing is right, in a column's name, is shown; so the test above can fail."""
        path = tmp_path / "table.csv"
        path.write_text("age,sex,chol,y,Zqcanary\n50,1,200,0,1\n")
        assert "Zqcanary" in read_small(path).report.text()


class TestRealData:
    def test_the_heart_data_of_four_hospitals_from_file_to_training(self, tmp_path):
        source = Path(MIRROR) / "heart4" / "heart4.csv"
        if not MIRROR or not source.is_file():
            pytest.skip("FEDWARD_DATA_MIRROR names no folder with heart4")
        codes = {"0": 0, "1": 1, "2": 1, "3": 1, "4": 1}
        mapping = mapping_of({"columns": {"num": {"codes": codes}}}, HEART)
        imported = read(source, HEART, mapping)
        assert not imported.report.problems
        import pandas as pd

        raw = pd.read_csv(source, na_values="?")
        for column in COLUMNS:
            expected = np.array(raw[column.name], np.float64)
            expected[np.isin(expected, column.missing)] = np.nan
            np.testing.assert_array_equal(imported.records[column.name], expected)
        np.testing.assert_array_equal(imported.records["num"], raw["num"] > 0)

        clean = deidentify.deidentify(imported, HEART, KEY)
        parts = split.split(clean, HEART, KEY, validation=0.1, test=0.2)
        assert parts.duplicates == 2
        assert sum(count["rows"] for count in parts.counts().values()) == 918
        vault.seal(tmp_path / "data.vault", parts, HEART, KEY, "east")
        hospital = vault.unseal(tmp_path / "data.vault", HEART, KEY, "east").hospital("east")
        preparation = HEART.fit(HEART.summarise(hospital.train))
        examples = HEART.encode(hospital.train, preparation)
        assert np.isfinite(examples.x).all()
        assert 0.4 < examples.y.mean() < 0.7

    def test_a_headerless_hospital_file_is_read_as_it_was_published(self):
        source = Path(MIRROR) / "heart4" / "processed.hungarian.data"
        if not MIRROR or not source.is_file():
            pytest.skip("FEDWARD_DATA_MIRROR names no folder with heart4")
        header = [*(column.name for column in COLUMNS), "num"]
        imported = read(source, HEART, mapping_of({"header": header, "format": "csv"}, HEART))
        assert not imported.report.problems
        assert imported.report.rows == 294
        assert imported.records["num"].sum() == 106


def test_a_key_that_is_too_short_is_refused(write):
    imported = read_small(write(GOOD))
    with pytest.raises(UsageError, match="expected 32 bytes or more, got 5"):
        deidentify.deidentify(imported, SMALL, b"short")


def test_a_refused_import_goes_no_further(write):
    with pytest.raises(DataError, match="refused"):
        deidentify.deidentify(read_small(write("age\nx\n")), SMALL, KEY)
