"""The rules of the house, held by tests."""

import ast
import os
import subprocess
import sys
import venv
import zipfile
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest

import fedward
from common.errors import FedwardError

ROOT = Path(__file__).parent.parent
PACKAGES = ("common", "client", "server", "simulations")
ALLOWED = {
    "common": {"common"},
    "client": {"client", "common"},
    "server": {"server", "common"},
    "simulations": {"simulations", "server", "client", "common"},
}
HEAVY = ("tensorflow", "keras", "sklearn", "scipy", "pandas", "matplotlib", "ray", "flwr", "rich")
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))] + [ROOT / "fedward.py"]


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _imports(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            names |= {word.value for word in node.args if isinstance(word, ast.Constant)}
    return {name.partition(".")[0] for name in names}


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES[:-1], ids=_name)
def test_imports_point_inwards(path):
    package = path.relative_to(ROOT).parts[0]
    # The bundle that travels must not hold the harness, which Flower's own simulation starts through it.
    beyond = {"simulations"} if _name(path) in ("client/app.py", "server/app.py") else set()
    assert (_imports(_tree(path)) & set(PACKAGES)) <= ALLOWED[package] | beyond


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_functions_fit_a_screen(path):
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.FunctionDef):
            docstring = ast.get_docstring(node)
            lines = node.end_lineno - node.lineno + 1 - (docstring.count("\n") + 1 if docstring else 0)
            assert lines <= 50, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_product_code_holds_nothing_forbidden(path):
    tree = _tree(path)
    assert not _imports(tree) & {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal"}
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Assert), f"line {node.lineno}: user input is checked by raise"
        assert not (isinstance(node, ast.Call) and getattr(node.func, "id", "") in {"eval", "exec"})


def test_no_file_is_named_like_a_standard_module():
    names = {path.stem for path in FILES} - {"__init__"}
    # Inside a package these shadow nothing: they are always imported by their full name.
    assert names & set(sys.stdlib_module_names) <= {"site", "statistics"}


@pytest.mark.parametrize(
    "words", [["--help"], ["simulate", "--help"], ["data", "--help"], ["compare", "--help"]], ids=" ".join
)
def test_help_imports_nothing_heavy(words):
    script = f"import sys, fedward\ntry:\n    fedward.main({words!r})\nexcept SystemExit:\n    pass\nprint(sorted(set(sys.modules) & {set(HEAVY)!r}), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "usage: fedward" in done.stdout


@pytest.mark.parametrize(
    ("file", "listed", "package"),
    [
        ("RECORD", "something/__init__.py,sha256=0,1\ncommon/deep/er.py,,\n", "common"),
        ("RECORD", "client.py,sha256=0,1\n", "client"),
        ("top_level.txt", "something\nserver\n", "server"),
        ("RECORD", "something/common/x.py,,\ncommonly/x.py,,\nserver/x.txt,,\nclients.py,,\n", None),
        ("top_level.txt", "something\ncommonly\n", None),
    ],
)
def test_no_other_distribution_ships_our_packages(file, listed, package, tmp_path, monkeypatch):
    fedward.check_installation()
    other = tmp_path / "something_else-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: something-else\nVersion: 1.0\n")
    (other / file).write_text(listed)
    monkeypatch.syspath_prepend(tmp_path)
    # The standard library's own answer, which is slower.
    assert ("something-else" in metadata.packages_distributions().get(package, ())) == (package is not None)
    if package:
        with pytest.raises(FedwardError, match=f"'something-else' also ships a package '{package}'"):
            fedward.check_installation()
    else:
        fedward.check_installation()


def test_the_bundle_holds_just_its_folders(tmp_path):
    command = [Path(sys.executable).with_name("flwr"), "build", "--app", ROOT]
    environment = {
        **os.environ,
        "FLWR_HOME": str(tmp_path / "home"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    (bundle,) = tmp_path.glob("*.fab")
    with zipfile.ZipFile(bundle) as archive:
        names = [name for name in archive.namelist() if not name.startswith(".info/")]
    inside = {name.partition("/")[0] for name in names}
    assert (
        {"client", "common", "server"}
        <= inside
        <= {"client", "common", "server", "pyproject.toml", "README.md", "LICENSE"}
    )
    shipped = {_name(path) for path in FILES if path.relative_to(ROOT).parts[0] in ("client", "common", "server")}
    assert shipped <= set(names)


@pytest.mark.slow
def test_a_wheel_works_in_a_clean_environment(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    home = tmp_path / "env"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    # Isolated, since pip would find this checkout's own metadata in the working folder and leave the wheel out.
    install = [python, "-I", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--force-reinstall", wheel]
    subprocess.run(install, cwd=tmp_path, check=True)
    # Its dependencies are borrowed from here; the package itself must come from the wheel.
    (packages,) = home.glob("lib/python3*/site-packages")
    here = Path(metadata.distribution("numpy").locate_file(""))
    (packages / "borrowed.pth").write_text(str(here))
    (packages / "fedward_first.pth").write_text(
        "import sys; sys.path[:] = [p for p in sys.path if not p.endswith('__editable__')]"
    )
    done = subprocess.run(
        [home / "bin" / "fedward", "simulate", "heart", "--rounds", "1", "--out", tmp_path / "runs"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "heart-0001" / "report.html").stat().st_size > 10_000
