"""The README's commands work: each is run as a reader would type it, in the order of the page, in one empty folder.

Each builds on those before it. They are shortened, so that the page takes minutes and not hours: one round where the page names no other number.
"""

import importlib.util
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
# The first command of the page installs before it simulates; what is installed is what these tests run in.
LINES = [line.rpartition(".venv/bin/")[2] for block in BLOCKS for line in block.splitlines()]
COMMANDS = [line for line in LINES if line.startswith("fedward ")]
FLOWER = [line for line in LINES if line.startswith("flwr run ")]
BIN = Path(sys.executable).parent
SCENARIO = """
rounds = 1
[task]
name = "heart"
[training]
compile = "graph"
[simulation]
dataset = "heart"
comparators = false
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install 'fedward[ray]'"
)
needs_data = pytest.mark.skipif(
    "FEDWARD_DATA_MIRROR" not in os.environ, reason="would download: set FEDWARD_DATA_MIRROR"
)


def case(command):
    """Return a command as a test's parameter, skipped where it needs what is not here."""
    marks = [needs_ray] if "--engine ray" in command else [needs_data] if " data get " in command else []
    return pytest.param(command, marks=marks, id=command)


def shortened(command):
    """Return the words of a command that trains no longer than it must.

    >>> shortened("fedward simulate notes")[3:]
    ['--rounds', '1', '--set', 'simulation.comparators=false']
    """
    words = shlex.split(command)
    trains = words[1] in ("simulate", "sweep") and "--resume" not in words
    if trains and "--rounds" not in words:
        words += ["--rounds", "1"]
    if trains and words[2] in ("pneumonia", "notes"):
        words += ["--set", "simulation.comparators=false"]
    return words


def run(words, cwd, **environment):
    """Run a command of the environment that these tests run in; what it printed is the message when it fails."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        words, cwd=cwd, capture_output=True, text=True, timeout=550, env={**os.environ, "PATH": path, **environment}
    )
    told = f"{shlex.join(words)}\nexit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert done.returncode == 0, told
    assert "Traceback" not in done.stderr, told
    return told


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("reader")


def test_the_page_was_read():
    assert COMMANDS[0] == "fedward simulate heart"
    assert len(COMMANDS) > 10
    assert FLOWER


@pytest.mark.parametrize("command", [case(command) for command in COMMANDS])
def test_a_command_of_the_readme_works(command, folder):
    run(shortened(command), folder, FEDWARD_DATA=str(folder / "data"))


def test_what_the_readme_says_comes_out_came_out(folder):
    """Every file of the table that stands under 'What comes out'."""
    if not (folder / "runs" / "heart-0001").exists():
        pytest.skip("the command that makes it was not run")
    table = re.search(r"leaves a folder.*?\n\n(\|.*?)\n\n", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    cells = [line.split("|")[1] for line in table[1].splitlines()[2:]]
    names = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    assert len(names) >= 6
    for name in names:
        assert (folder / "runs" / "heart-0001" / name).stat().st_size > 0, name


def free_ports(count):
    """Return ports that nobody listens on."""
    taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [str(each.getsockname()[1]) for each in taken]
    for each in taken:
        each.close()
    return ports


@pytest.fixture
def superlink(tmp_path):
    """Yield the environment in which ``flwr run`` starts a SuperLink of its own, which outlives the command; and end that SuperLink afterwards.

    Which process it is, a script of its name tells that stands before it on the PATH.
    """
    pid, script = tmp_path / "pid", tmp_path / "bin" / "flower-superlink"
    script.parent.mkdir()
    script.write_text(
        f'#!/bin/sh\necho $$ > {shlex.quote(str(pid))}\nexec {shlex.quote(str(BIN / script.name))} "$@"\n'
    )
    script.chmod(0o755)
    http, control = free_ports(2)
    yield {
        "PATH": os.pathsep.join([str(script.parent), str(BIN), os.environ["PATH"]]),
        "FLWR_HOME": str(tmp_path / "flower"),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": http,
        "FLWR_LOCAL_CONTROL_API_PORT": control,
    }
    if pid.exists():
        _end(int(pid.read_text()))


def _end(process):
    """End a process and what it started; those that stop in good order first."""
    for order in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process, order)
            for _ in range(100):
                time.sleep(0.1)
                os.killpg(process, 0)
        except ProcessLookupError:
            return


@needs_ray
@pytest.mark.parametrize("command", FLOWER)
def test_the_bundle_of_the_readme_runs_on_flower(command, superlink, tmp_path):
    out, settings = tmp_path / "run", tmp_path / "settings.toml"
    settings.write_text(f"folder = {json.dumps(str(out))}\nscenario = {json.dumps(SCENARIO)}\n")
    told = run([*shlex.split(command), "--run-config", str(settings), "--stream"], ROOT, **superlink)
    # Flower exits with 0 when the run failed, too: what counts is what lies in the folder.
    assert (out / "run.json").is_file(), told
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert len(record["rounds"]) == 1
    assert len(record["rounds"][0]["answered"]) == 4
