"""The command ``fedward data``, typed as a user types it."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import fedward
from client.data import reading, schema
from common.config import Choice
from common.tasks import task_of
from common.tasks.task import take
from simulations.datasets import DATASETS
from simulations.datasets.fetch import load

MIRROR = os.environ.get("FEDWARD_DATA_MIRROR", "")


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path, monkeypatch):
    monkeypatch.delenv("FEDWARD_DATA_MIRROR", raising=False)
    monkeypatch.setenv("FEDWARD_DATA", str(tmp_path / "cache"))


@pytest.fixture
def type_in(capsys):
    """Return a function from the words after ``fedward data`` to exit code, output and errors."""

    def run(*words):
        code = fedward.main(["data", *words])
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("words", [(), ("list",), ("get",), ("show",), ("export",)])
def test_help_has_an_example(words, capsys):
    with pytest.raises(SystemExit) as ended:
        fedward.main(["data", *words, "--help"])
    assert ended.value.code == 0
    assert "example: fedward data " in capsys.readouterr().out


def test_the_list_holds_every_data_set_in_two_lines_of_a_terminal(type_in):
    code, out, err = type_in("list")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) == 2 * len(DATASETS)
    assert max(map(len, lines)) <= 80
    for first, second, dataset in zip(lines[::2], lines[1::2], DATASETS.values(), strict=True):
        where = "SYNTHETIC" if dataset.synthetic else "not here" if dataset.files else "here"
        assert first.split()[:2] == [dataset.name, str(dataset.rows)]
        assert f"  {where} " in first
        assert ("not here" in first) == (where == "not here")
        assert first.endswith(dataset.licence.partition(";")[0])
        assert second.strip() == dataset.title


def test_the_list_for_machines(type_in, tmp_path):
    place = tmp_path / "cache" / "pneumoniamnist"
    place.mkdir(parents=True)
    (place / "pneumoniamnist.npz").touch()
    code, out, _ = type_in("list", "--json")
    assert code == 0
    found = {facts["name"]: facts for facts in json.loads(out)}
    assert found.keys() == DATASETS.keys()
    assert found["pneumonia"] == {
        "name": "pneumonia",
        "title": "Pneumonia on chest X-rays, 28x28 (PneumoniaMNIST)",
        "task": "pneumonia",
        "rows": 5827,
        "bytes": 4171077,
        "licence": "CC BY 4.0",
        "here": True,
        "intact": False,
        "synthetic": False,
    }
    assert [name for name, facts in found.items() if facts["synthetic"]] == [
        name for name in DATASETS if name.endswith("-synthetic")
    ]
    assert not found["mtsamples"]["here"]


def test_show_counts_classes_and_hospitals(type_in):
    code, out, err = type_in("show", "heart")
    assert (code, err) == (0, "")
    assert "rows: 918\n" in out
    assert "duplicates removed: 2\n" in out
    assert "classes: no disease 410, disease 508\n" in out
    assert "hospitals: cleveland 303, hungarian 293, switzerland 123, va 199\n" in out
    assert "split: none published\n" in out
    assert "licence: CC BY 4.0\n" in out
    assert "citation: Janosi, Steinbrunn, Pfisterer, Detrano" in out
    assert "origin: UCI Machine Learning Repository" in out


def test_show_for_machines_counts_the_published_split(type_in):
    code, out, _ = type_in("show", "heart-flamby", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["split"] == {"training": 486, "test": 254}
    assert facts["hospitals"] == {"cleveland": 303, "hungarian": 261, "switzerland": 46, "va": 130}
    assert sum(facts["classes"].values()) == facts["rows"] == 740
    assert facts["duplicates_removed"] == 0


def test_show_says_synthetic(type_in):
    code, out, _ = type_in("show", "notes-synthetic")
    assert code == 0
    assert out.startswith("title: SYNTHETIC clinical notes")
    assert "where: SYNTHETIC\n" in out
    assert "hospitals: none published\n" in out


def test_show_tells_what_is_known_of_a_data_set_that_is_not_here(type_in):
    code, out, err = type_in("show", "pneumonia")
    assert code == 0
    assert "where: not here\n" in out
    assert "licence: CC BY 4.0\n" in out
    assert "classes" not in out
    assert err.startswith("fedward: data set pneumonia is not here: run 'fedward data get pneumonia'")


def test_show_refuses_a_damaged_data_set(type_in, tmp_path):
    place = tmp_path / "cache" / "pneumoniamnist"
    place.mkdir(parents=True)
    (place / "pneumoniamnist.npz").write_bytes(b"half")
    code, out, err = type_in("show", "pneumonia")
    assert (code, out) == (1, "")
    assert "pneumoniamnist.npz: damaged or another version: 4 bytes" in err


@pytest.mark.skipif(not MIRROR, reason="FEDWARD_DATA_MIRROR names no folder with the data sets")
def test_get_and_show_read_a_mirror_in_place(type_in, monkeypatch, tmp_path):
    monkeypatch.setenv("FEDWARD_DATA_MIRROR", MIRROR)
    code, out, _ = type_in("get", "questions-zh")
    assert (code, out) == (0, f"questions-zh was already here: {MIRROR}/zh-internal-medicine-qa\n")
    code, out, _ = type_in("get", "pneumonia", "--json")
    assert code == 0
    assert json.loads(out) == {"name": "pneumonia", "folder": f"{MIRROR}/pneumoniamnist", "downloaded": False}
    code, out, _ = type_in("show", "pneumonia")
    assert "split: training 5206, test 621\n" in out
    assert not (tmp_path / "cache").exists()


def test_get_says_what_needs_no_download(type_in):
    assert type_in("get", "heart")[:2] == (0, "heart comes with this package; there is nothing to download\n")
    code, out, _ = type_in("get", "pneumonia-synthetic")
    assert (code, out) == (
        0,
        "pneumonia-synthetic is SYNTHETIC and made by this package; there is nothing to download\n",
    )


def test_get_says_why_it_cannot(type_in):
    code, out, err = type_in("get", "mtsamples")
    assert (code, out) == (1, "")
    assert "can't be downloaded; 'fedward data show mtsamples' says where it comes from" in err
    assert "set FEDWARD_DATA_MIRROR to a folder that holds mtsamples/mtsamples.csv.gz" in err


def test_export_writes_a_file_a_hospital_that_a_hospital_can_read(type_in, tmp_path):
    """Nothing is lost on the way through the file: a hospital imports what the simulation reads; the label is the class, and marks of missing values are gone."""
    code, out, _ = type_in("export", "heart", str(tmp_path / "csv"))
    assert code == 0
    assert f"{tmp_path / 'csv' / 'switzerland.csv'}: 123 rows\n" in out
    table, task = load(DATASETS["heart"]), task_of(Choice("heart"))
    for name in ("cleveland", "hungarian", "switzerland", "va"):
        imported = reading.read(tmp_path / "csv" / f"{name}.csv", task, schema.mapping_of({}, task))
        imported.report.check()
        here = table.hospital == name
        assert np.array_equal(imported.records["num"], table.label[here])
        for column in task.columns:
            values = table.records[column.name][here]
            known = np.where(np.isin(values, column.missing), np.nan, values)
            assert np.array_equal(imported.records[column.name], known, equal_nan=True), column.name


@pytest.mark.skipif(not MIRROR, reason="FEDWARD_DATA_MIRROR names no folder with the data sets")
@pytest.mark.parametrize(
    ("name", "hospital"), [("physionet2012", "coronary"), ("eicu-next", "South"), ("eicu-match", "South")]
)
def test_a_folder_of_long_tables_is_read_as_what_the_simulation_reads(type_in, monkeypatch, tmp_path, name, hospital):
    """Values out of range, which the task reads as unknown, are left out; all else is the same to the bit."""
    monkeypatch.setenv("FEDWARD_DATA_MIRROR", MIRROR)
    code, out, _ = type_in("export", name, str(tmp_path))
    assert code == 0
    assert f"{tmp_path / hospital / 'rows.csv'}: " in out
    table, task = load(DATASETS[name]), task_of(Choice(DATASETS[name].task))
    imported = reading.read(tmp_path / hospital, task, schema.mapping_of({"patient": "patient"}, task))
    imported.report.check()
    here = table.hospital == hospital
    ours, theirs = imported.records, take(table.records, np.flatnonzero(here))
    assert imported.patients.tolist() == [str(number) for number in table.patient[here]]
    assert np.array_equal(ours[task.label], theirs[task.label])
    for column in task.columns:
        if column.kind in ("codes", "name"):
            assert ours[column.name].tolist() == theirs[column.name].tolist()
    preparation = task.fit(task.summarise(table.records))
    for mine, other in zip(*(vars(task.encode(each, preparation)).values() for each in (ours, theirs)), strict=True):
        assert np.array_equal(mine, other)


def test_export_for_machines(type_in, tmp_path):
    code, out, _ = type_in("export", "heart-flamby", str(tmp_path), "--json")
    assert code == 0
    assert json.loads(out)[0] == {"file": str(tmp_path / "cleveland.csv"), "rows": 303}


def test_export_refuses_what_is_no_table_of_hospitals(type_in, tmp_path):
    code, out, err = type_in("export", "notes-synthetic", str(tmp_path / "csv"))
    assert (code, out) == (2, "")
    assert "only tables of numbers and codes from named hospitals" in err
    assert not (tmp_path / "csv").exists()


def test_export_says_where_it_cannot_write(type_in, tmp_path):
    (tmp_path / "file").touch()
    code, _, err = type_in("export", "heart", str(tmp_path / "file"))
    assert code == 1
    assert "cannot be written" in err


@pytest.mark.parametrize("command", [("get",), ("show",), ("export", "csv")])
def test_an_unknown_name_is_wrong_usage(type_in, command):
    code, out, err = type_in(command[0], "haert", *command[1:])
    assert (code, out) == (2, "")
    assert "unknown data set 'haert'; did you mean 'heart'?" in err


def test_listing_imports_nothing_heavy():
    script = "import sys, fedward; fedward.main(['data', 'list', '--json']); print(sorted({'tensorflow', 'keras', 'sklearn', 'pandas', 'flwr'} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
