"""Runs side by side: grouping, statistics, and the table in every form."""

import argparse
import csv
import io
import json
import math
import re
import statistics
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedward
from common.errors import UsageError
from simulations import compare, compare_cli
from tests.simulations.test_report import fake_record


def save(folder, seed=1, **settings):
    """Write a made-up run with settings such as ``strategy="fedprox"``, and return its folder."""
    record = fake_record(seed, rounds=1)
    record["name"] = folder.name
    record["config"]["strategy"]["name"] = settings.pop("strategy", "fedavg")
    record |= settings
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


@pytest.fixture
def runs(tmp_path):
    """Two strategies, three seeds each."""
    return [
        save(tmp_path / f"{name}-{seed}", seed, strategy=name) for name in ("fedavg", "fedprox_%") for seed in (3, 1, 2)
    ]


def call(*words):
    parser = argparse.ArgumentParser()
    compare_cli.add_parsers(parser.add_subparsers())
    args = parser.parse_args(["compare", *map(str, words)])
    return args.run(args)


def test_runs_are_grouped_by_what_differs_but_the_seed(runs):
    comparison = compare.compare(runs)
    assert [group.settings for group in comparison.groups] == [
        (("strategy.name", "fedavg"),),
        (("strategy.name", "fedprox_%"),),
    ]
    assert [group.seeds for group in comparison.groups] == [(1, 2, 3)] * 2


def test_settings_of_what_was_switched_off_make_no_difference(tmp_path):
    """A private run's delta beside a plain run's default would be read as if both had one."""
    folders = []
    off, on, more = (
        {"epsilon": epsilon, "delta": delta} for epsilon, delta in ((math.inf, 1e-5), (2.0, 1e-4), (2.0, 1e-6))
    )
    for name, privacy in (("plain", off), ("noised", on)):
        config = fake_record(rounds=1)["config"]
        folders += [save(tmp_path / name, config=config | {"privacy": privacy})]
    settings = [dict(group.settings) for group in compare.compare(folders).groups]
    assert settings == [{"privacy.epsilon": "inf"}, {"privacy.epsilon": "2.0"}]
    folders.append(save(tmp_path / "more", config=fake_record(rounds=1)["config"] | {"privacy": more}))
    deltas = [dict(group.settings)["privacy.delta"] for group in compare.compare(folders).groups]
    assert deltas == ["–", "0.0001", "1e-06"]


def test_means_and_deviations_are_those_of_the_records(runs):
    records = [json.loads((folder / "run.json").read_text()) for folder in runs[:3]]
    cells = compare.compare(runs).groups[0].cells
    for approach in ("federated", "local", "central"):
        pooled = [record["results"][approach]["pooled"]["auroc"][0] for record in records]
        means = [
            statistics.fmean(row["auroc"][0] for row in record["results"][approach]["hospitals"].values())
            for record in records
        ]
        for view, values in (("pooled", pooled), ("hospitals", means)):
            assert cells[view, approach].mean == pytest.approx(statistics.fmean(values))
            assert cells[view, approach].deviation == pytest.approx(statistics.stdev(values))


def test_undefined_values_are_left_out_and_counted(tmp_path):
    record = fake_record(2, rounds=1)
    record["results"]["local"]["pooled"]["auroc"] = [None, None, None]
    folders = [save(tmp_path / "a", 1), save(tmp_path / "b", 2, results=record["results"])]
    group = compare.compare(folders).groups[0]
    assert len(group.cells["pooled", "local"].values) == 1
    assert len(group.cells["pooled", "federated"].values) == 2
    assert compare.as_json(compare.compare(folders))["groups"][0]["results"]["pooled"]["local"]["sd"] is None


def test_one_run_has_no_deviation(tmp_path):
    heads, rows = compare.table(compare.compare([save(tmp_path / "a")]))
    assert heads[:2] == ["runs", "n"]
    assert rows[0][:2] == ["all", "1"]
    assert not any("±" in cell for cell in rows[0])


def test_a_run_made_twice_counts_once(tmp_path):
    comparison = compare.compare([save(tmp_path / "a", 1), save(tmp_path / "b", 1), save(tmp_path / "c", 2)])
    assert comparison.groups[0].seeds == (1, 2)
    assert comparison.notes == ("b has the settings and seed of a and is left out",)


def test_runs_of_different_versions_are_told(tmp_path):
    versions = {"fedward": "0.2.0", "tensorflow": "2.21.0"}
    comparison = compare.compare([save(tmp_path / "a", 1), save(tmp_path / "b", 2, versions=versions)])
    assert comparison.notes == ("the runs were made by different versions of fedward: 0.1.0, 0.2.0",)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"task": "pneumonia"}, "different tasks"),
        ({"data": {**fake_record(rounds=1)["data"], "name": "other"}}, "different data"),
        ({"data": {**fake_record(rounds=1)["data"], "sha256": {"heart.csv": "00"}}}, "different data"),
    ],
)
def test_different_tasks_or_data_are_refused(settings, reason, tmp_path):
    with pytest.raises(UsageError, match=reason):
        compare.compare([save(tmp_path / "a", 1), save(tmp_path / "b", 2, **settings)])


def test_generated_data_may_differ_by_the_seed(tmp_path):
    data = fake_record(rounds=1)["data"]
    folders = [
        save(tmp_path / f"{seed}", seed, synthetic=True, data={**data, "sha256": {"x": str(seed)}}) for seed in (1, 2)
    ]
    comparison = compare.compare(folders)
    assert comparison.groups[0].seeds == (1, 2)
    assert "SYNTHETIC" in compare.as_latex(comparison)


def test_wrong_use_is_told(runs, tmp_path):
    with pytest.raises(UsageError, match="did you mean 'accuracy'"):
        compare.compare(runs, "acuracy")
    with pytest.raises(UsageError, match="one or more"):
        compare.compare([])
    with pytest.raises(UsageError, match="absent: not a run folder"):
        compare.compare([tmp_path / "absent"])


def test_the_table_has_the_same_numbers_in_every_form(runs, tmp_path, capsys):
    paths = {name: tmp_path / name for name in ("t.tex", "t.csv", "t.png")}
    assert (
        call(
            *runs,
            "--metric",
            "brier",
            "--json",
            "--latex",
            paths["t.tex"],
            "--csv",
            paths["t.csv"],
            "--figure",
            paths["t.png"],
        )
        == 0
    )
    facts = json.loads(capsys.readouterr().out)
    rows = list(csv.DictReader(io.StringIO(paths["t.csv"].read_text(encoding="utf-8"))))
    latex = paths["t.tex"].read_text(encoding="utf-8")
    for group, row in zip(facts["groups"], rows, strict=True):
        assert row["strategy.name"] == group["settings"]["strategy.name"]
        assert row["seeds"] == "1 2 3"
        for view, approaches in group["results"].items():
            for approach, cell in approaches.items():
                assert float(row[f"{view}_{approach}_mean"]) == cell["mean"]
                assert float(row[f"{view}_{approach}_sd"]) == cell["sd"]
                assert f"{cell['mean']:.3f} $\\pm$ {cell['sd']:.3f}" in latex
    assert r"fedprox\_\%" in latex
    assert paths["t.png"].read_bytes().startswith(b"\x89PNG")


def test_the_screen_shows_settings_as_they_are(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    folders = [save(tmp_path / "a", 1, strategy="[red]x[/red]"), save(tmp_path / "b", 1), save(tmp_path / "c", 1)]
    assert call(*folders) == 0
    shown = capsys.readouterr().out
    assert "[red]x[/red]" in shown
    assert "left out" in shown


class TestScreen:
    """Two strategies with names of one length, so that all rows of a table are of one width."""

    def shown(self, capsys, monkeypatch, folders, columns):
        if columns:
            monkeypatch.setenv("COLUMNS", str(columns))
        else:
            monkeypatch.delenv("COLUMNS", raising=False)
        assert call(*folders) == 0
        return capsys.readouterr().out

    def many(self, tmp_path):
        """Runs that differ in settings too wide for 80 columns."""
        folders = []
        for place, dataset in enumerate(("a" * 30, "b" * 30)):
            config = {**fake_record(rounds=1)["config"], "simulation": {"dataset": dataset, "partition": "natural" * 5}}
            if place:
                config["simulation"]["partition"] = "dirichlet:0.3"
            folders += [save(tmp_path / f"{place}-{seed}", seed, config=config) for seed in (1, 2)]
        return folders

    @pytest.mark.parametrize("columns", [None, 80, 120, 60])
    def test_every_number_stands_whole_in_its_line(self, runs, tmp_path, capsys, monkeypatch, columns):
        for folders in (runs, self.many(tmp_path)):
            shown = self.shown(capsys, monkeypatch, folders, columns)
            comparison = compare.compare(folders)
            for group in comparison.groups:
                for view in compare.VIEWS:
                    cells = [str(group.cells[view, kind]) for kind in ("federated", "local", "central")]
                    assert any(re.search(r"\s+".join(map(re.escape, cells)), line) for line in shown.splitlines())
                for name, value in group.settings:
                    assert name in shown
                    assert value in shown
            table = [line for line in shown.splitlines() if "±" in line and "mean" not in line]
            assert all(len(line) <= (columns or 1000) for line in table)
            assert "…" not in shown

    def test_settings_too_wide_for_the_screen_stand_below_by_number(self, tmp_path, capsys, monkeypatch):
        shown = self.shown(capsys, monkeypatch, self.many(tmp_path), 80)
        numbers = re.findall(r"^(\d+)   2 ", shown, re.MULTILINE)
        assert numbers == ["1", "2", "1", "2"]
        assert f"1: simulation.dataset={'a' * 30}, simulation.partition={'natural' * 5}" in shown
        assert "1: simulation" not in self.shown(capsys, monkeypatch, self.many(tmp_path / "again"), None)


@given(st.text(max_size=30))
def test_latex_leaves_no_bare_sign(text):
    row = compare.latex_row([text])
    assert row.endswith(r" \\")
    bare = re.sub(r"\$(\\pm|-)\$|\\text\w+\{\}|\\[{}$&%#_]", "", row.removesuffix(r" \\"))
    assert not re.search(r"[\\{}$&%#_~^]", bare)


def test_help_names_an_example_and_imports_nothing_heavy():
    code = (
        "import argparse, sys; from simulations import compare_cli; p = argparse.ArgumentParser();"
        "compare_cli.add_parsers(p.add_subparsers()); print(p.parse_args(['compare', 'x']).runs);"
        "print(sorted({'numpy', 'matplotlib', 'jinja2', 'rich'} & set(sys.modules)));"
        "p.parse_args(['compare', '--help'])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "example: fedward compare runs/heart-*" in shown
    assert "[]" in shown.splitlines()[1]


def test_runs_that_are_not_finished_are_left_out_and_named(runs, tmp_path, capsys):
    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped" / "config.toml").write_text("seed = 1\n")
    assert fedward.main(["compare", "--json", *map(str, runs)]) == 0
    alone = capsys.readouterr().out
    assert fedward.main(["compare", "--json", *map(str, runs), str(tmp_path / "stopped")]) == 0
    out, err = capsys.readouterr()
    assert out == alone
    assert err.startswith(f"fedward: {tmp_path / 'stopped'} is left out: this run is not finished")
    assert fedward.main(["compare", str(tmp_path / "stopped")]) == 2
