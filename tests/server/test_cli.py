"""``fedward server``: what each command does, and every way to type it wrongly: one line, the documented exit code, and nothing lost."""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fedward
from client import site as sites
from common.config import as_table, dumps
from common.errors import FedwardError
from common.supervise import free_port
from server import coordinator, provision, runs

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # where Flower builds a bundle
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(capsys):
    """Run a command that works; return what it printed."""

    def ran(*words):
        code = fedward.main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert (code, err) == (0, "")
        return out

    return ran


@pytest.fixture
def refused(capsys):
    """Run a command that is refused; return the exit code and the one line."""

    def ran(*words):
        code = fedward.main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("fedward: "), err
        assert err.count("\n") == 1, err
        assert "Traceback" not in err
        return code, err

    return ran


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Make a federation and a hospital's request once."""
    folder = tmp_path_factory.mktemp("made")
    provision.create(folder / "fed", "trial", ["127.0.0.1"])
    sites.create(folder / "site", "St Mary", "heart")
    return folder


@pytest.fixture
def fed(made, tmp_path):
    shutil.copytree(made / "fed", tmp_path / "fed")
    return tmp_path / "fed"


@pytest.fixture
def request_file(made, tmp_path):
    return shutil.copy(made / "site" / "request.json", tmp_path / "request.json")


def everything(folder):
    """Return every file with its content; the lock of the members' folder is none of it."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.stat().st_size}


class TestWalk:
    def test_a_federation_is_made_and_a_hospital_admitted(self, run, made, request_file):
        told = json.loads(run("server", "init", "new", "--host", "fed.example.org", "--host", "127.0.0.1", "--json"))
        assert told == {
            "name": "new",
            "folder": "new",
            "fingerprint": provision.open_federation(Path("new")).fingerprint,
        }
        told = run("server", "admit", "new", "request.json")
        assert "Send it admitted-St-Mary.json; it holds no secret" in told
        answer = json.loads(Path("admitted-St-Mary.json").read_text())
        assert answer["address"] == "fed.example.org:8443"
        assert "PRIVATE" not in Path("admitted-St-Mary.json").read_text()
        assert f"fedward hospital join FOLDER admitted-St-Mary.json --fingerprint {answer['fingerprint']}" in told

    def test_who_is_admitted_and_revoked_is_shown(self, run, fed, request_file):
        run("server", "admit", "fed", "request.json", "--out", "elsewhere.json")
        assert Path("elsewhere.json").exists()
        assert [line.split() for line in run("server", "status", "fed").splitlines()] == [
            ["trial:", "not", "running"],
            ["hospital", "St", "Mary", "heart", "not", "connected"],
        ]
        run("server", "revoke", "fed", "St Mary")
        (row,) = json.loads(run("server", "status", "fed", "--json"))["hospitals"]
        assert (row["name"], row["online"], bool(row["revoked"])) == ("St Mary", False, True)

    def test_its_own_files_are_only_its_owners(self, run, fed):
        run("server", "status", "fed")
        place = coordinator.place_of(provision.open_federation(fed))
        assert stat.S_IMODE(place.folder.stat().st_mode) == 0o700
        assert stat.S_IMODE(place.secret.stat().st_mode) == 0o600
        assert coordinator.place_of(provision.open_federation(fed)) == place


class TestWrong:
    @pytest.mark.parametrize(
        "words", [[], ["init"], ["admit", "fed"], ["revoke", "fed"], ["run", "fed"], ["resume", "fed"], ["x"]]
    )
    def test_a_word_too_few_is_used_wrongly(self, capsys, words):
        with pytest.raises(SystemExit) as ended:
            fedward.main(["server", *words])
        assert ended.value.code == 2
        assert "Traceback" not in capsys.readouterr().err

    @pytest.mark.parametrize(
        "words",
        [
            ["admit", "request.json"],
            ["revoke", "St Mary"],
            ["start"],
            ["run", "heart"],
            ["resume", "heart-0001"],
            ["status"],
            ["stop"],
        ],
        ids=lambda words: words[0],
    )
    @pytest.mark.parametrize("kind", ["missing", "empty", "a file"])
    def test_a_folder_that_is_no_federation(self, refused, tmp_path, request_file, words, kind):
        if kind == "empty":
            (tmp_path / "none").mkdir()
        elif kind == "a file":
            (tmp_path / "none").write_text("")
        code, line = refused("server", words[0], "none", *words[1:])
        assert (code, "make one with: fedward server init none" in line) == (2, True), line
        assert list(tmp_path.glob("none/*")) == []

    @pytest.mark.parametrize("words", [["--name", "."], ["--name", "a/b"], ["--host", "not a host"], ["--host", ""]])
    def test_init_with_a_wrong_name_or_host_leaves_no_folder(self, refused, words):
        code, _ = refused("server", "init", "new", *words)
        assert code == 2
        assert not Path("new").exists()

    def test_init_overwrites_no_keys(self, refused, fed):
        before = everything(fed)
        code, line = refused("server", "init", "fed")
        assert (code, "not empty" in line) == (2, True)
        assert everything(fed) == before

    @pytest.mark.parametrize("content", ["nonsense =", "name = 3", 'name = "trial"\nhots = []', 'name = "other"'])
    def test_damaged_settings(self, refused, fed, content):
        (fed / "federation.toml").write_text(content)
        code, line = refused("server", "status", "fed")
        assert (code, "federation.toml" in line) == (2, True)

    def test_a_damaged_token(self, refused, fed):
        (fed / "token").write_text("short\n")
        code, line = refused("server", "run", "fed", "heart")
        assert (code, "token: expected 64 hexadecimal digits" in line) == (1, True)
        assert list(fed.glob("runs/*")) == []


class TestAdmit:
    @pytest.mark.parametrize(
        "content", [None, b"", b"{", b"[]", b"{}", b"\xff\xfe", b'{"name": 3}', b" " * 100_000, b"[" * 60_000]
    )
    def test_a_damaged_request_admits_nobody(self, refused, fed, content):
        if content is not None:
            Path("request.json").write_bytes(content)
        code, line = refused("server", "admit", "fed", "request.json")
        assert (code, "request" in line) == (1, True)
        assert provision.open_federation(fed).members() == []

    @pytest.mark.parametrize("key", ["name", "task", "csr", "node_key", "audit_key", "signature"])
    def test_an_altered_request_admits_nobody(self, refused, fed, request_file, key):
        document = json.loads(Path(request_file).read_text())
        Path(request_file).write_text(json.dumps(document | {key: document[key][:-4] + "AAAA"}))
        code, _ = refused("server", "admit", "fed", "request.json")
        assert code == 1
        assert provision.open_federation(fed).members() == []
        assert not list(Path().glob("admitted*"))

    def test_an_answer_that_can_not_be_written(self, refused, fed, request_file):
        code, line = refused("server", "admit", "fed", "request.json", "--out", "nowhere/admitted.json")
        assert (code, "choose another place with --out" in line) == (1, True)

    def test_revoking_an_unknown_hospital_names_those_there_are(self, run, refused, fed, request_file):
        run("server", "admit", "fed", "request.json")
        code, line = refused("server", "revoke", "fed", "St Marry")
        assert (code, "did you mean 'St Mary'?" in line) == (2, True)

    def test_a_revoked_key_does_not_come_back(self, run, refused, fed, request_file):
        run("server", "admit", "fed", "request.json")
        run("server", "revoke", "fed", "St Mary")
        code, line = refused("server", "admit", "fed", "request.json")
        assert (code, "was revoked" in line) == (1, True)


class TestStart:
    @pytest.mark.parametrize(
        "listen",
        [
            "",
            "8443",
            ":8443",
            "localhost",
            "localhost:",
            "localhost:x",
            "localhost:0",
            "localhost:65536",
            "localhost:-1",
            "localhost:²",
            "localhost:84 43",
            "[::1]",
        ],
    )
    def test_an_address_that_is_none(self, refused, fed, listen):
        code, line = refused("server", "start", "fed", "--listen", listen)
        assert (code, "expected an address and a port, such as 0.0.0.0:8443" in line) == (2, True), line
        assert not (fed / "run" / "pid").exists()

    def test_a_port_that_is_taken(self, refused, fed):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            code, line = refused("server", "start", "fed", "--listen", f"127.0.0.1:{taken.getsockname()[1]}")
        assert (code, "cannot listen here" in line) == (2, True)
        assert not (fed / "run" / "pid").exists()

    def test_an_address_that_is_not_of_this_machine(self, refused, fed):
        code, line = refused("server", "start", "fed", "--listen", "192.0.2.1:8443")
        assert (code, "cannot listen here" in line) == (2, True)

    def test_one_that_runs_already(self, refused, fed):
        (fed / "run").mkdir()
        (fed / "run" / "pid").write_text(str(os.getpid()))
        code, line = refused("server", "start", "fed", "--listen", f"127.0.0.1:{free_port()}")
        assert (code, "is running already; 'fedward server stop" in line) == (2, True)

    @pytest.mark.parametrize("pid", [None, "", "x", "-", "999999999"])
    def test_stopping_what_does_not_run(self, refused, fed, pid):
        if pid is not None:
            (fed / "run").mkdir()
            (fed / "run" / "pid").write_text(pid)
        code, line = refused("server", "stop", "fed")
        assert (code, "is not running" in line) == (2, True)

    @pytest.mark.slow
    def test_it_starts_is_seen_and_stops(self, run, fed):
        command = [sys.executable, "-m", "fedward", "server", "start", str(fed), "--listen", f"127.0.0.1:{free_port()}"]
        with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE) as process:
            try:
                end = time.monotonic() + 60
                while not json.loads(run("server", "status", fed, "--json"))["running"]:
                    assert time.monotonic() < end
                    assert process.poll() is None
                    time.sleep(0.2)
                assert "Stopped." in run("server", "stop", fed)
                assert process.wait(30) == 0
            finally:
                process.send_signal(signal.SIGTERM)
            assert b"Traceback" not in process.stderr.read()
        assert not (fed / "run" / "pid").exists()
        assert run("server", "status", fed).startswith("trial: not running")


class TestRun:
    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["hart"], "did you mean 'heart'?"),
            (["heart", "--rounds", "0"], "rounds: expected a number from 1"),
            (["heart", "--set", "round=3"], "round: unknown key"),
            (["heart", "--set", "rounds"], "key=value"),
            (["heart", "--set", "training.batch_size=x"], "training.batch_size"),
            (["heart", "--set", "strategy.name=fedagv"], "did you mean 'fedavg'?"),
            (["heart", "--set", "strategy.name=scaffold", "--set", "training.optimizer=adam"], "training.optimizer"),
        ],
    )
    def test_wrong_settings_leave_no_run(self, refused, fed, words, said):
        code, line = refused("server", "run", "fed", *words)
        assert (code, said in line) == (2, True), line
        assert list(fed.glob("runs/*")) == []

    def test_a_federation_that_is_not_running_is_unreachable(self, refused, fed):
        code, line = refused("server", "run", "fed", "heart")
        assert (code, "is it running" in line) == (4, True)
        assert list(fed.glob("runs/*")) == []

    @pytest.mark.parametrize("name", ["heart-0001", "heart", "../..", "x" * 300])
    def test_resuming_an_unknown_run(self, refused, fed, name):
        code, line = refused("server", "resume", "fed", name)
        assert (code, "no such run; there are: none" in line) == (2, True)

    def test_resuming_a_finished_or_damaged_run(self, refused, fed, federation):
        folder = runs.new_folder(fed / "runs", "heart")
        (folder / "config.toml").write_text("rounds = ")
        code, line = refused("server", "resume", "fed", "heart-0001")
        assert (code, "config.toml: damaged" in line) == (1, True)
        (folder / "config.toml").write_text(dumps(as_table(federation.config())))
        (folder / "run.json").write_text("{}")
        code, line = refused("server", "resume", "fed", "heart-0001")
        assert (code, "this run is finished" in line) == (2, True)

    @pytest.mark.parametrize("kept", [True, False])
    def test_ctrl_c_says_how_to_go_on_only_where_one_can(self, refused, fed, monkeypatch, kept):
        def stopped(_federation, _config, folder, _watch):
            if not kept:
                folder.rmdir()
            raise KeyboardInterrupt

        monkeypatch.setattr(runs, "run", stopped)
        code, line = refused("server", "run", "fed", "heart")
        assert code == 1
        assert ("fedward server resume fed heart-0001" in line) == kept

    def test_a_refusal_of_flower_is_one_line(self, refused, fed, monkeypatch):
        def refuses(*_):
            raise FedwardError("Flower refused /v1/control/start-run with 403; the federation's token is not ...")

        monkeypatch.setattr(coordinator, "grid", refuses)
        code, _ = refused("server", "run", "fed", "heart")
        assert code == 1
        assert list(fed.glob("runs/*")) == []
