"""The bundle that hospitals approve by its hash: the same code gives the same bytes, other code gives others."""

import hashlib
import os
import shutil
import subprocess
import sys
import threading
import tomllib
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import pytest

from common import deployment
from common.deployment import Control, Task, Tasks, bundle
from common.errors import RunEnded, Unreachable
from common.supervise import free_port

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # where Flower builds it
ROOT = Path(__file__).parents[2]
PACKAGES = ("client", "common", "server")


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """Copy the packages, and have the bundle made of the copy."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(deployment, "__file__", str(tmp_path / "common" / "deployment.py"))
    return tmp_path


def names(content):
    with zipfile.ZipFile(BytesIO(content)) as archive:
        return [name for name in archive.namelist() if not name.startswith(".info/")]


class TestBundle:
    def test_it_holds_the_code_of_both_sides_and_a_manifest(self, copy):
        expected = {
            path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py")
        }
        assert set(names(bundle().content)) == expected | {"pyproject.toml"}

    def test_its_files_are_those_installed(self):
        with zipfile.ZipFile(BytesIO(bundle().content)) as archive:
            for name in set(names(bundle().content)) - {"pyproject.toml"}:
                assert archive.read(name) == (ROOT / name).read_bytes()

    def test_its_hash_is_that_of_its_bytes(self):
        one = bundle()
        assert one.sha256 == hashlib.sha256(one.content).hexdigest()

    def test_it_is_the_same_in_another_folder_at_another_time_in_another_process(self, copy):
        here = bundle().sha256
        for path in copy.rglob("*.py"):
            os.utime(path, (1e9, 1e9))
            path.chmod(0o600)
        assert bundle().sha256 == here
        script = "from common.deployment import bundle; print(bundle().sha256)"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "1", "TZ": "Asia/Shanghai"}
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=copy, env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == here

    def test_what_is_no_code_of_it_does_not_count(self, copy):
        before = bundle().sha256
        for name in ("client/site.toml", "client/keys/tls.key", "client/patients.csv", "server/__pycache__/x.pyc"):
            (copy / name).parent.mkdir(exist_ok=True)
            (copy / name).write_text("secret")
        (copy / "simulations").mkdir()
        (copy / "simulations" / "attack.py").write_text("")
        assert bundle().sha256 == before

    @pytest.mark.parametrize("package", PACKAGES)
    def test_one_letter_more_is_another(self, copy, package):
        before = bundle().sha256
        path = copy / package / "__init__.py"
        path.write_text(path.read_text() + "#")
        assert bundle().sha256 != before

    def test_a_file_more_or_less_is_another(self, copy):
        seen = {bundle().sha256}
        (copy / "client" / "more.py").write_text("")
        seen.add(bundle().sha256)
        (copy / "client" / "more.py").rename(copy / "client" / "other.py")
        seen.add(bundle().sha256)
        (copy / "client" / "gate.py").unlink()
        seen.add(bundle().sha256)
        assert len(seen) == 4

    def test_its_manifest_is_that_of_the_project(self):
        with zipfile.ZipFile(BytesIO(bundle().content)) as archive:
            manifest = tomllib.loads(archive.read("pyproject.toml").decode())
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        for key in ("name", "version", "license"):
            assert manifest["project"][key] == project["project"][key]
        ours, theirs = manifest["tool"]["flwr"]["app"], project["tool"]["flwr"]["app"]
        for key in ("publisher", "fab-include", "components"):
            assert ours[key] == theirs[key]


@pytest.fixture
def ended():
    """Stand where Flower stands that knows the work no more; give the address."""

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response(401)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


class TestEnded:
    """Flower's own clients would interrupt this process, as Ctrl-C does."""

    def test_work_that_is_no_more_is_an_error_that_can_be_told_from_ctrl_c(self, ended):
        with pytest.raises(RunEnded, match="Flower has ended this run"), Task(ended, "token", 1).message():
            pass

    def test_so_is_a_run(self, ended):
        with pytest.raises(RunEnded, match="Flower has ended this run"), Task(ended, "token", 1).grid():
            pass

    def test_a_sign_of_life_for_it_is_sent_in_vain_and_without_a_word(self, ended):
        with deployment._client(Task(ended, "token", 1)) as client:
            assert deployment._sign_of_life(client)


class TestUnreachable:
    """Without Flower there is one line, and no other library's error."""

    def test_the_operators_side(self):
        control = Control(f"127.0.0.1:{free_port()}", "token")
        for act in (control.online, lambda: control.stop(1), lambda: control.start(bundle(), {})):
            with pytest.raises(Unreachable, match="is it running"):
                act()

    def test_work_that_waits(self):
        with pytest.raises(Unreachable, match="is it running"):
            Tasks(f"127.0.0.1:{free_port()}", b"0" * 32, deployment.CLIENT).take()

    def test_work_is_waited_for(self, monkeypatch):
        """With longer and longer pauses, so that a node which is down is not asked ten times a second for days."""
        pauses = []

        class Enough(Exception):
            pass

        def sleep(seconds):
            pauses.append(seconds)
            if len(pauses) == 9:
                raise Enough

        monkeypatch.setattr(deployment.time, "sleep", sleep)
        with pytest.raises(Enough):
            next(Tasks(f"127.0.0.1:{free_port()}", b"0" * 32, deployment.CLIENT).wait())
        assert pauses == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5, 5])
