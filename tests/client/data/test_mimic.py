"""MIMIC-III's tables become one row an admission: by hand on a small set, on the demo, in pieces, and with bad cells."""

import gzip
import os
from pathlib import Path

import pandas as pd
import pytest

from client.data import mimic
from common.errors import DataError
from common.tasks.mimic import COLUMNS, DAYS

DEMO = Path(os.environ.get("FEDWARD_DATA_MIRROR", "")) / "mimic3-demo"
TABLES = {
    "ADMISSIONS": "ROW_ID,SUBJECT_ID,HADM_ID,ADMITTIME,DISCHTIME,ADMISSION_TYPE,ADMISSION_LOCATION,INSURANCE,MARITAL_STATUS,ETHNICITY,HOSPITAL_EXPIRE_FLAG\n"
    "1,7,70,2150-03-01 10:00:00,2150-03-05 22:00:00,EMERGENCY,CLINIC,Medicare,MARRIED,WHITE,0\n"
    "2,7,71,2151-03-01 10:00:00,2151-03-03 10:00:00,ELECTIVE,CLINIC,Medicare,MARRIED,WHITE,1\n"
    "3,8,80,2150-01-01 00:00:00,2150-01-01 09:00:00,EMERGENCY,CLINIC,Private,,WHITE,1\n"
    "4,9,90,2150-01-01 00:00:00,2150-01-09 00:00:00,EMERGENCY,CLINIC,Private,,ASIAN,0\n",
    "PATIENTS": "ROW_ID,SUBJECT_ID,GENDER,DOB\n1,7,F,2100-03-02 00:00:00\n2,8,M,2100-01-01 00:00:00\n3,9,M,1850-01-01 00:00:00\n",
    "ICUSTAYS": "HADM_ID,INTIME,FIRST_CAREUNIT\n70,2150-03-01 12:00:00,MICU\n70,2150-03-01 11:00:00,CCU\n71,2151-03-02 12:00:00,SICU\n",
    "SERVICES": "HADM_ID,TRANSFERTIME,CURR_SERVICE\n70,2150-03-01 10:01:00,MED\n71,2151-03-01 10:01:00,SURG\n",
    "PRESCRIPTIONS": "HADM_ID,STARTDATE,DRUG\n70,2150-03-01 00:00:00,Aspirin\n70,2150-03-01 00:00:00,Aspirin\n70,2150-03-01 00:00:00,Insulin\n70,2150-03-02 00:00:00,Heparin\n",
    "LABEVENTS": "HADM_ID,ITEMID,CHARTTIME,VALUENUM\n70,50983,2150-03-01 14:00:00,140\n70,50983,2150-03-01 11:00:00,135\n,50983,2150-03-01 10:30:00,99\n"
    "70,50912,2150-03-03 11:00:00,9\n70,50971,2150-03-01 11:00:00,\n71,50912,2151-03-01 11:00:00,1.5\n",
}


def written(folder, zipped=False, **changed):
    for name, text in (TABLES | changed).items():
        content = text.encode()
        path = folder / (f"{name}.csv.gz" if zipped else f"{name}.csv")
        path.write_bytes(gzip.compress(content) if zipped else content)
    return folder


@pytest.mark.parametrize("zipped", [False, True])
def test_an_admission_is_what_a_reader_finds_in_the_tables_of_its_first_day(tmp_path, zipped):
    rows = mimic.join(written(tmp_path, zipped))
    assert rows.index.tolist() == [70, 71, 90]  # 80 ended within the day
    first = rows.loc[70]
    assert (first["age"], first["earlier"], first["drugs"]) == (49, 0, 2)
    assert (first["first_careunit"], first["curr_service"]) == ("CCU", "MED")
    assert (first["sodium"], first[DAYS.name]) == (135, 4.5)
    assert pd.isna([first["creatinine"], first["potassium"], rows.loc[71, "first_careunit"]]).all()
    assert (rows.loc[71, "earlier"], rows.loc[71, "creatinine"], rows.loc[71, "drugs"]) == (1, 1.5, 0)
    assert rows.loc[90, "age"] == 90
    assert {column.name for column in COLUMNS} <= set(rows.columns)


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_the_size_of_the_pieces_changes_nothing(tmp_path, monkeypatch, chunk):
    whole = mimic.join(written(tmp_path))
    monkeypatch.setattr(mimic, "CHUNK", chunk)
    pd.testing.assert_frame_equal(mimic.join(tmp_path), whole)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"LABEVENTS": TABLES["LABEVENTS"].replace("1.5", "one")}, "LABEVENTS.csv: row 7, column 'valuenum'"),
        ({"SERVICES": TABLES["SERVICES"].replace("2151-03-01", "yesterday")}, "SERVICES.csv: row 3, column 'transfertime'"),
        ({"PATIENTS": TABLES["PATIENTS"].replace("DOB", "BORN")}, "column 'dob' is missing"),
    ],
)  # fmt: skip
def test_a_bad_cell_is_named_by_table_row_and_column_and_not_shown(tmp_path, monkeypatch, changed, told):
    monkeypatch.setattr(mimic, "CHUNK", 2)
    with pytest.raises(DataError, match=".") as caught:
        mimic.join(written(tmp_path, **changed))
    assert told in str(caught.value)
    assert "one" not in str(caught.value).split()
    assert "yesterday" not in str(caught.value)


def test_a_missing_table_is_named(tmp_path):
    (written(tmp_path) / "SERVICES.csv").unlink()
    with pytest.raises(DataError, match=r"SERVICES\.csv\.gz or SERVICES\.csv is missing"):
        mimic.join(tmp_path)


def test_the_command_writes_a_file_to_import(tmp_path, capsys):
    assert mimic.main([str(written(tmp_path)), str(tmp_path / "out.csv")]) == 0
    assert capsys.readouterr().out == "3 admissions of 2 patients\n"
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 4
    assert mimic.main([str(tmp_path / "nowhere"), "out.csv"]) == 1
    assert mimic.main([]) == 2


@pytest.mark.skipif(not DEMO.is_dir(), reason="the MIMIC-III demo is not on this computer")
def test_the_demo_gives_its_admissions():
    rows = mimic.join(DEMO)
    assert (len(rows), rows["subject_id"].nunique()) == (119, 91)
    assert rows["sodium"].notna().mean() > 0.9
    assert rows[DAYS.name].min() >= 1


@pytest.mark.parametrize("table", sorted(TABLES))
def test_a_table_of_only_its_header_ends_in_no_traceback(tmp_path, capsys, table):
    written(tmp_path, **{table: TABLES[table].splitlines()[0] + "\n"})
    code = mimic.main([str(tmp_path), str(tmp_path / "out.csv")])
    assert code == (1 if table == "ADMISSIONS" else 0)
    assert ("ADMISSIONS has no rows" in capsys.readouterr().err) == bool(code)


def test_a_folder_that_is_not_there_to_write_to_is_named(tmp_path, capsys):
    assert mimic.main([str(written(tmp_path)), str(tmp_path / "nowhere" / "out.csv")]) == 1
    assert "cannot be written" in capsys.readouterr().err
