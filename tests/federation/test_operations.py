"""A federation of one hospital as its people run it: the stub as another user, a backup in the middle of a run, and both sides restored from it."""

import contextlib
import grp
import json
import os
import pwd
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from common.supervise import free_port
from tests.federation.processes import fedward, until, write_file

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
OTHER = "nobody"
ROUNDS = 8


def others_python():
    """Return a Python that the other user can run with all that is installed here, and its environment; None where there is none."""
    packages = Path(np.__file__).parents[1]
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "PYTHONPATH": f"{ROOT}:{packages}"}
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        with contextlib.suppress(OSError):
            command = [python, "-P", "-c", "import client.stub, flwr.app"]
            if not subprocess.run(command, env=environment, user=OTHER, group=group(), extra_groups=[]).returncode:
                return python, environment
    return None


def group():
    return pwd.getpwnam(OTHER).pw_gid


@pytest.fixture(scope="module")
def other():
    if os.geteuid() != 0:
        pytest.skip("only root can run a program as another user")
    found = others_python()
    if not found:
        pytest.skip(f"the user {OTHER} can run no Python here that has what Fedward needs")
    return found


@pytest.fixture(scope="module")
def root():
    with tempfile.TemporaryDirectory(prefix="fw-") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


@contextlib.contextmanager
def running(*words, **how):
    """Run a command of those that run until they are stopped; give its first line once it is up."""
    command = [how.pop("python", sys.executable), "-P", "-m", "fedward", *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **how) as process:
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def address(root):
    """Make a federation and a hospital that has joined it, its stub left to the other user's group."""
    port = free_port()
    made = fedward("server", "init", root / "fed", "--host", "127.0.0.1", "--port", port, "--json")
    write_file(root / "heart.csv", "cleveland")
    words = ("--name", "cleveland", "--task", "heart", "--data", root / "heart.csv")
    fedward("hospital", "init", root / "site", *words)
    fedward("server", "admit", root / "fed", root / "site" / "request.json", "--out", root / "answer.json")
    fedward("hospital", "join", root / "site", root / "answer.json", "--fingerprint", made["fingerprint"])
    fedward("hospital", "approve", root / "site", "--own")
    policy = root / "site" / "site.toml"
    text = policy.read_text().replace("min_cohort = 3", "min_cohort = 1")
    policy.write_text(text.replace('stub_group = ""', f'stub_group = "{grp.getgrgid(group()).gr_name}"'))
    return f"127.0.0.1:{port}"


@contextlib.contextmanager
def up(root, address, other, fed="fed", site="site"):
    """Start both sides, and the stub as the other user."""
    python, environment = other
    who = {"python": python, "env": environment, "user": OTHER, "group": group(), "extra_groups": [], "umask": 0o077}
    with (
        running("server", "start", root / fed, "--listen", address) as door,
        running("hospital", "start", root / site, "--without-stub") as hospital,
        running("hospital", "stub", root / site, **who) as stub,
    ):
        assert door == f"open at {address}; 1 hospital admitted"
        assert hospital == f"connected to 'fed' at {address} as 'cleveland'"
        assert stub == f"answering for {root / site}"
        yield


def test_a_run_works_and_is_the_same_after_a_restore_from_its_middle(root, address, other):
    with up(root, address, other):
        facts = fedward("hospital", "status", root / "site", "--json")
        assert (facts["connected"], sorted(facts["programs"])) == (True, ["node", "tunnel", "worker"])
        refuses_all_else(root / "site", other)
        record, files = train_and_keep(root)
        kept = [path.stat() for path in (root / "site" / "bundles").glob("*.fab")]
        assert {(stat.S_IMODE(each.st_mode), each.st_gid) for each in kept} == {(0o640, group())}
        assert fedward("hospital", "status", root / "site", "--json")["last"]["outcome"] == "sent"
    for kind, file, folder in (("server", files[0], "fed2"), ("hospital", files[1], "site2")):
        fedward(kind, "restore", file, root / folder)
    (row,) = fedward("server", "status", root / "fed2", "--json")["runs"]
    assert (row["state"], 0 < row["rounds"] < ROUNDS) == ("interrupted", True)
    assert "none of them changed" in fedward("hospital", "audit", "verify", root / "site2")
    with up(root, address, other, "fed2", "site2"):
        again = fedward("server", "resume", root / "fed2", row["name"], "--json")
    assert again["weights_sha256"] == record["weights_sha256"]
    assert len(again["rounds"]) == len(record["rounds"]) == ROUNDS


def train_and_keep(root):
    """Train, and back both sides up when some rounds are done; return the run's record and the files."""
    words = ["server", "run", str(root / "fed"), "heart", "--rounds", str(ROUNDS)]
    rounds, files = root / "fed" / "runs" / "heart-0001" / "checkpoint.npz", (root / "fed.backup", root / "site.backup")
    with subprocess.Popen([sys.executable, "-P", "-m", "fedward", *words], stdout=subprocess.DEVNULL) as process:
        until(rounds.exists, 120, "no round was finished")
        assert fedward("server", "status", root / "fed", "--json")["runs"][0]["state"] == "running"
        for kind, file, folder in (("server", files[0], "fed"), ("hospital", files[1], "site")):
            fedward(kind, "backup", root / folder, file)
        assert process.poll() is None, "the run was over before it was backed up"
        assert process.wait(120) == 0
    return json.loads((rounds.parent / "run.json").read_text()), files


def refuses_all_else(site, other):
    """The other user can read and write nothing of the site but what a stub needs."""
    script = """
import os, sys
for folder, _, files in os.walk(sys.argv[1]):
    for name in files:
        print(os.path.join(folder, name))
for path in sys.stdin.read().splitlines():
    try:
        os.listdir(path) if os.path.isdir(path) else open(path, "rb").close()
    except OSError as error:
        pass
    else:
        print(path)
"""
    python, environment = other
    known = [path for path in site.rglob("*") if not path.is_socket()]
    who = {"env": environment, "user": OTHER, "group": group(), "extra_groups": []}
    done = subprocess.run(
        [python, "-c", script, site],
        input="\n".join(map(str, known)),
        capture_output=True,
        text=True,
        check=True,
        **who,
    )
    read = {Path(line).relative_to(site).as_posix() for line in done.stdout.splitlines()}
    assert {"run/secret", "run/ports"} <= read
    assert all(name in {"run/secret", "run/ports", "bundles"} or name.startswith("bundles/") for name in read), read
