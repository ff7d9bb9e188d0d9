"""``fedward server``: what each command does, and every way to type it wrongly: one line, the documented exit code, and nothing lost."""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from client import site as sites
from client.audit import AuditLog
from common import chain, supervise
from common.config import as_table, dumps
from common.errors import FedwardError
from common.supervise import free_port
from server import coordinator, provision, records, runs

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # where Flower builds a bundle
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


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
        fingerprint = provision.open_federation(Path("new")).fingerprint
        assert f"fedward hospital join FOLDER admitted-St-Mary.json --fingerprint {fingerprint}" in told
        assert fingerprint not in Path("admitted-St-Mary.json").read_text(), "it is told another way"

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

    @pytest.mark.parametrize("lost", ["port", "secret"])
    def test_a_crash_between_its_own_files_is_mended(self, run, fed, lost):
        place = coordinator.place_of(provision.open_federation(fed))
        (place.folder / lost).unlink()
        again = coordinator.place_of(provision.open_federation(fed))
        assert (again.port == place.port) == (lost == "secret")
        assert len(again.secret.read_bytes()) == 32
        run("server", "status", "fed")


class TestAudit:
    """A log is held against what its hospital promised."""

    @pytest.fixture
    def log(self, run, fed, made, tmp_path):
        """Write a log with the hospital's key, and have the coordinator hold a promise of its third line."""
        run("server", "admit", "fed", made / "site" / "request.json", "--out", "answer.json")
        path = tmp_path / "audit.jsonl"
        with AuditLog(path, sites.open_site(made / "site").audit_key()) as log:
            for _ in range(3):
                log.append("started")
            text = chain.checkpoint_text(log.checkpoint())
            log.append("stopped")
        federation = provision.open_federation(fed)
        federation.witness.take(federation.members()[0], text, 0)
        return path

    def test_what_was_promised_is_shown(self, run, log):
        assert run("server", "audit", "fed").split() == ["St", "Mary", "3", "lines", "promised"]
        assert json.loads(run("server", "audit", "fed", "--json")) == {"St Mary": 3}

    def test_a_log_that_holds_it_is_said_to(self, run, log):
        words = ("server", "audit", "fed", "St Mary", "--log", "audit.jsonl")
        assert run(*words) == "audit.jsonl: holds all 3 lines that 'St Mary' promised.\n"
        assert json.loads(run(*words, "--json")) == {"hospital": "St Mary", "promised": 3, "intact": True}

    def test_one_that_does_not_is_named_by_line(self, refused, log):
        log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:2]))
        code, line = refused("server", "audit", "fed", "St Mary", "--log", "audit.jsonl")
        assert (code, "audit.jsonl: line 3: missing" in line) == (1, True)

    def test_a_hospital_may_begin_anew(self, run, log):
        assert "ended/St Mary.json" in run("server", "audit", "fed", "St Mary", "--put-aside")
        assert "0 lines promised" in run("server", "audit", "fed")
        assert "promised nothing" in run("server", "audit", "fed", "St Mary", "--put-aside")

    def test_wrong_words(self, refused, log):
        assert refused("server", "audit", "fed", "St Marx")[0] == 2
        assert "did you mean 'St Mary'?" in refused("server", "audit", "fed", "St Marx")[1]
        assert "for one hospital" in refused("server", "audit", "fed", "--log", "audit.jsonl")[1]
        assert "cannot be read" in refused("server", "audit", "fed", "St Mary", "--log", "gone")[1]


class TestDamagedMember:
    @pytest.fixture(
        params=[
            lambda _: "{",
            lambda text: text.replace("St Mary", "Lakeside").replace('"node_key": "', '"node_key": "x'),
        ]
    )
    def damaged(self, request, run, fed, request_file):
        run("server", "admit", "fed", "request.json")
        member = (fed / "members" / "St Mary.json").read_text()
        (fed / "members" / "Lakeside.json").write_text(request.param(member))
        return fed

    def test_the_status_names_the_file_and_goes_on(self, run, damaged):
        lines = run("server", "status", "fed").splitlines()
        assert any("St Mary" in line for line in lines)
        assert [line for line in lines if "Lakeside.json" in line and line.startswith("  DAMAGED")]
        assert "Lakeside.json" in json.loads(run("server", "status", "fed", "--json"))["damaged"][0]

    def test_a_running_federation_says_it_once_and_lets_the_others_in(self, damaged, caplog):
        """Nobody listens where Flower would, so each is tried again at the next look."""
        federation, known = provision.open_federation(damaged), coordinator.Known()
        place = coordinator.place_of(federation)
        for _ in range(3):
            coordinator.let_in(place, federation, known)
        assert [record.getMessage().count("Lakeside.json") for record in caplog.records] == [1]

    def test_a_run_that_starts_refuses_and_names_it(self, refused, damaged):
        code, line = refused("server", "run", "fed", "heart")
        assert (code, "Lakeside.json" in line) == (1, True)
        assert list(damaged.glob("runs/*")) == []


class TestWrong:
    @pytest.mark.parametrize(
        "words", [[], ["init"], ["admit", "fed"], ["revoke", "fed"], ["run", "fed"], ["resume", "fed"], ["x"]]
    )
    def test_a_word_too_few_is_used_wrongly(self, refused, words):
        code, line = refused("server", *words)
        assert code == 2
        assert "--help' shows what it takes" in line

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

    def test_a_port_that_is_taken(self, refused, fed, monkeypatch):
        monkeypatch.setattr(supervise, "GRACE", 0.5)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            code, line = refused("server", "start", "fed", "--listen", f"127.0.0.1:{taken.getsockname()[1]}")
        assert (code, "cannot listen here" in line) == (2, True)
        assert not (fed / "run" / "pid").exists()

    def test_a_port_that_a_killed_one_has_for_some_seconds_more_is_waited_for(self):
        taken = socket.create_server(("127.0.0.1", 0))
        begun = time.monotonic()
        threading.Timer(1.0, taken.close).start()
        coordinator._wait_for_port(*taken.getsockname(), [])
        assert 0.9 < time.monotonic() - begun < supervise.GRACE

    def test_an_address_that_is_not_of_this_machine(self, refused, fed, monkeypatch):
        monkeypatch.setattr(supervise, "GRACE", 0.5)
        code, line = refused("server", "start", "fed", "--listen", "192.0.2.1:8443")
        assert (code, "cannot listen here" in line) == (2, True)

    def test_one_that_runs_already(self, refused, fed):
        (fed / "run").mkdir()
        with supervise.marked(fed / "run"):
            code, line = refused("server", "start", "fed", "--listen", f"127.0.0.1:{free_port()}")
        assert (code, "is running already; 'fedward server stop" in line) == (2, True)

    @pytest.mark.parametrize("pid", [None, "", "x", "-", "999999999", "1", "-1"])
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
        folder = records.new_folder(fed / "runs", "heart")
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


class TestKeeping:
    def test_a_federation_comes_back_with_members_and_port(self, run, fed, request_file, monkeypatch):
        run("server", "admit", "fed", "request.json")
        place = coordinator.place_of(provision.open_federation(fed))
        (fed / "run" / "gateway.log").write_text("noise")
        monkeypatch.setenv("FEDWARD_PASSPHRASE", "correct horse")
        assert "sealed by the passphrase" in run("server", "backup", "fed", "file")
        assert "Restored the federation 'trial' in new" in run("server", "restore", "file", "new")
        again = provision.open_federation(Path("new"))
        assert [member.name for member in again.members()] == ["St Mary"]
        assert coordinator.place_of(again).port == place.port
        assert not (Path("new") / "run" / "gateway.log").exists()
        monkeypatch.delenv("FEDWARD_PASSPHRASE")
        assert "WARNING: it holds private keys" in run("server", "backup", "fed", "bare")

    @pytest.mark.parametrize("words", [["backup", "none", "file"], ["service", "none"]], ids=lambda words: words[0])
    def test_a_folder_that_is_no_federation(self, refused, words):
        assert refused("server", *words)[0] == 2

    def test_a_port_below_1024_is_the_only_right_that_its_unit_asks_for(self, run, fed):
        unit = json.loads(run("server", "service", "fed", "--json"))["fedward-server.service"]
        assert "AmbientCapabilities=\n" in unit
        assert "CAP_" not in unit
        words = ("server", "service", "fed", "--listen", "0.0.0.0:443", "--json")
        assert "AmbientCapabilities=CAP_NET_BIND_SERVICE\n" in json.loads(run(*words))["fedward-server.service"]


class TestState:
    def test_a_run_under_way_is_not_an_interrupted_one(self, run, refused, fed, federation):
        folder = records.new_folder(fed / "runs", "heart")
        (folder / "config.toml").write_text(dumps(as_table(federation.config())))
        assert json.loads(run("server", "status", "fed", "--json"))["runs"][0]["state"] == "interrupted"
        with supervise.marked(folder):
            assert json.loads(run("server", "status", "fed", "--json"))["runs"][0]["state"] == "running"
            assert "is running already" in refused("server", "resume", "fed", "heart-0001", "--json")[1]
            assert (folder / "config.toml").exists(), "a second process takes nothing from the first"


@pytest.mark.slow
def test_a_signal_while_flower_starts_stops_all_of_it(fed):
    """Flower takes seconds to answer; the signal comes as soon as its process is there."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "fedward",
        "server",
        "start",
        str(fed),
        "--listen",
        f"127.0.0.1:{free_port()}",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 60
        while not (children := Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()):
            assert time.monotonic() < end
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "stopped\n", "")
    assert not (fed / "run" / "pid").exists()
    assert children
    assert not any(Path(f"/proc/{child}").exists() for child in children)
