"""The documents tell the truth: their commands are understood, their links lead somewhere, their tables are those that the code prints."""

import csv
import re
import shlex
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import fedward
from common.tasks import TASKS
from simulations import settings_cli
from simulations.datasets import DATASETS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = [
    line
    for page in PAGES
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    for line in block.splitlines()
    if line.startswith("fedward ")
]


def _leaves(parser, words=()):
    """Yield every command that runs something, as (words, parser)."""
    actions = [action for action in parser._actions if action.__class__.__name__ == "_SubParsersAction"]
    if not actions:
        yield words, parser
    for action in actions:
        for name, child in action.choices.items():
            yield from _leaves(child, (*words, name))


def test_the_readme_has_its_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    one_liners = re.findall(r"^python3 -m venv \.venv && \.venv/bin/pip install .*$", text, re.MULTILINE)
    assert len(one_liners) == 2
    assert one_liners[0].endswith("fedward simulate heart")
    assert one_liners[1].endswith("pytest")


@pytest.mark.parametrize("command", COMMANDS)
def test_documented_commands_are_understood(command):
    args = fedward.parser().parse_args(shlex.split(command)[1:])
    assert callable(args.run)


@pytest.mark.parametrize(
    ("words", "parser"),
    list(_leaves(fedward.parser())),
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_every_command_has_help_with_an_example_and_stands_in_the_docs(words, parser):
    text = parser.format_help()
    assert "example" in text
    assert "--json" in text
    assert all(action.help for action in parser._actions)
    assert any(f"fedward {' '.join(words)}" in page.read_text(encoding="utf-8") for page in PAGES)


def test_the_page_of_settings_is_what_the_command_prints():
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == settings_cli.markdown() + "\n"


def test_the_page_of_the_policy_is_what_the_command_prints(capsys):
    assert fedward.main(["hospital", "policy", "--markdown"]) == 0
    assert (ROOT / "docs" / "policy.md").read_text(encoding="utf-8") == capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_folders_and_files_that_the_docs_name_exist(page):
    for name in re.findall(
        r"`((?:benchmarks|client|common|server|simulations|tests)/[\w./]*)`", page.read_text(encoding="utf-8")
    ):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_the_docs_name_exist(page):
    for file, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text(encoding="utf-8")):
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), name


def _module(monkeypatch, name, source):
    """Make a module of a page's source, as if it lay in its file."""
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(source, name, "exec"), module.__dict__)
    return module


def test_the_task_that_the_docs_write_runs(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
    ask, _own, task, data = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    _mapping, scenario = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    monkeypatch.setitem(TASKS, "fever", _module(monkeypatch, "common.tasks.fever", task).Fever)
    monkeypatch.setitem(DATASETS, "fever", _module(monkeypatch, "simulations.datasets.fever", data).FEVER)
    (tmp_path / "fever.toml").write_text(scenario)
    assert fedward.main(["simulate", str(tmp_path / "fever.toml"), "--out", str(tmp_path / "runs"), "--json"]) == 0
    assert '"auroc": [0.9' in capsys.readouterr().out
    folder = tmp_path / "runs" / "fever-0001"
    assert (folder / "report.html").exists()
    # A setting's file and a table have no banner, and must say all the same what the numbers are of.
    assert (folder / "config.toml").read_text(encoding="utf-8").startswith("# SYNTHETIC DATA")
    given = _module(monkeypatch, "ask", ask).probabilities(folder, {"temperature": np.array([36.0, 40.0])})
    assert given.shape == (2, 2)
    assert given[0, 1] < 0.5 < given[1, 1]
    rows = csv.DictReader((folder / "metrics.csv").read_text(encoding="utf-8").splitlines())
    assert {row["data"] for row in rows} == {"SYNTHETIC"}
