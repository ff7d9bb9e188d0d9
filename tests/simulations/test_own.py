"""A user's own task and data, and the skeletons that start one: they run as they are written."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import fedward
from common.errors import DataError, UsageError
from common.tasks import TASKS, task_of
from simulations import own
from simulations import scenario as scenarios
from simulations.hospitals import populate
from simulations.templates_cli import KINDS


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = dict(TASKS)
    yield tmp_path
    TASKS.clear()
    TASKS.update(before)
    task_of.cache_clear()


def made(kind):
    assert fedward.main(["template", kind, f"my_{kind}.py"]) == 0
    data = f"./my_{kind}" if kind == "images" else f"./my_{kind}.csv"
    over = {"simulation": {"dataset": data}} | (
        {"simulation": {"dataset": data, "partition": "iid", "hospitals": 2}} if kind == "images" else {}
    )
    return scenarios.read(scenarios.find(f"./my_{kind}.py:task"), over)


@pytest.mark.parametrize("kind", KINDS)
def test_a_skeleton_reads_its_data_and_deals_it_to_hospitals(here, kind):
    population = populate(made(kind))
    assert len(population.hospitals) == 2
    assert len(population.table) == 120
    if kind != "images":
        assert population.names == ["east", "west"]


def test_a_skeleton_is_trained_and_reported_like_any_task(here, capsys):
    made("tabular")
    capsys.readouterr()
    words = ["simulate", "./my_tabular.py:task", "--data", "my_tabular.csv", "--json"]
    assert fedward.main([*words, "--set", "task.hidden=4", "--set", "simulation.comparators=false"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["task"] == "my-table"
    assert record["data"]["public"] is False
    assert record["results"]["federated"]["pooled"]["auroc"][0] > 0.6


def test_a_bad_cell_among_many_rows_is_named_by_row_and_column(here):
    made("tabular")
    lines = (here / "my_tabular.csv").read_text().splitlines()
    body = lines[1:] * 200
    wards = body[17_000].split(",")
    body[17_000] = ",".join([*wards[:3], "tall", *wards[4:]])
    (here / "my_tabular.csv").write_text("\n".join([lines[0], *body]))
    task = made_again()
    with pytest.raises(DataError, match="row 17002, column 'pressure'") as caught:
        own.table("./my_tabular.csv", task)
    assert "tall" not in str(caught.value)


def test_rows_of_one_class_are_nothing_to_learn_from(here):
    scenario = made("tabular")
    header, *rows = (here / "my_tabular.csv").read_text().splitlines()
    place = header.split(",").index("ill")
    alike = [",".join([*cells[:place], "0", *cells[place + 1 :]]) for cells in (row.split(",") for row in rows)]
    (here / "my_tabular.csv").write_text("\n".join([header, *alike]))
    with pytest.raises(DataError, match="expected rows of two classes or more, and all 120 are of one"):
        populate(scenario)


def made_again():
    own.add_task("./my_tabular.py:task")
    return TASKS["./my_tabular.py:task"]().build()


def test_patients_named_by_the_file_never_part(here):
    made("tabular")
    header, *rows = (here / "my_tabular.csv").read_text().splitlines()
    (here / "my_tabular.csv").write_text("\n".join([header, *rows, *rows]))
    table = own.table("./my_tabular.csv", made_again())
    assert len(table) == 240
    assert len(set(table.patient)) == 120


def test_a_mapping_beside_the_file_renames_its_columns(here):
    made("tabular")
    text = (here / "my_tabular.csv").read_text().replace("age", "Alter", 1)
    (here / "my_tabular.csv").write_text(text)
    with pytest.raises(DataError, match="'age'"):
        own.table("./my_tabular.csv", made_again())
    (here / "my_tabular.toml").write_text('[data]\n[data.columns.age]\nname = "Alter"\n')
    assert np.isfinite(own.table("./my_tabular.csv", made_again()).records["age"]).all()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("./nowhere.py:task", "no such file"),
        ("./broken.py:task", "does not run: ZeroDivisionError"),
        ("./empty.py:task", "expected a Task"),
    ],
)
def test_a_file_without_a_task_is_refused_in_a_line(here, name, told):
    (here / "broken.py").write_text("1 / 0\n")
    (here / "empty.py").write_text("task = 3\n")
    with pytest.raises(UsageError, match=told):
        own.add_task(name)


def test_a_file_that_is_not_there_is_refused(here):
    with pytest.raises(UsageError, match="no such file or folder"):
        scenarios.read(scenarios.find("heart"), {"simulation": {"dataset": "mine.csv"}})


def test_a_template_overwrites_nothing(here, capsys):
    made("text")
    assert fedward.main(["template", "text", "my_text.py"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert fedward.main(["template", "text", "my_text.txt"]) == 2


def test_only_a_simulation_reads_a_task_from_a_file():
    from common.config import Choice
    from common.errors import ConfigError

    with pytest.raises(ConfigError, match="unknown task"):
        task_of(Choice("./anything.py:task"))


def test_the_walk_through_of_the_docs_runs_on_its_real_file(here):
    root = Path(own.__file__).parents[1]
    page = (root / "docs" / "tasks.md").read_text(encoding="utf-8")
    for name in ("my_heart.py", "heart.toml"):
        (block,) = re.findall(rf"```\w+\n# {re.escape(name)}\n(.*?)```", page, re.DOTALL)
        (here / name).write_text(block)
    shutil.copy(root / "simulations" / "datasets" / "heart.csv", here)
    population = populate(
        scenarios.read(scenarios.find("./my_heart.py:task"), {"simulation": {"dataset": "heart.csv"}})
    )
    assert len(population.table) == 920
    assert len(population.names) == 4
