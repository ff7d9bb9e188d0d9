"""``fedward hospital``: the walk, and every way to type it wrongly: one line that says what to do, the documented exit code, and nothing lost."""

import csv
import grp
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

import fedward
from client import policy, programs, resident
from client.audit import AuditLog
from client.data import vault
from client.policy import read_policy
from client.site import open_site
from common import supervise
from common.config import Choice
from common.deployment import Bundle, bundle
from common.tasks import task_of
from common.tasks.heart import COLUMNS
from server import provision

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # where Flower builds a bundle
ROOT = Path(__file__).parents[2]
SECRET = "Erika Mustermann"
FINGERPRINT = ":".join(["3F"] * 32)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDWARD_PASSPHRASE", raising=False)


@pytest.fixture
def patients_file(tmp_path, make_patients):
    """Write patients as a hospital's file would hold them, with some cells changed."""

    def written(rows=60, cells=None, name="heart.csv"):
        records = make_patients(rows, 1)
        columns = [*(column.name for column in COLUMNS), "num"]
        path = tmp_path / name
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            for row in range(rows):
                values = {name: _written(name, records[name][row]) for name in columns}
                writer.writerow((values | (cells or {}).get(row, {}))[name] for name in columns)
        return path

    return written


def _written(name, value):
    if np.isnan(value):
        return ""
    return str(int(value > 0)) if name == "num" else f"{value:g}"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Make a site once."""
    folder = tmp_path_factory.mktemp("made") / "site"
    assert fedward.main(["hospital", "init", str(folder), "--name", "St Mary", "--task", "heart"]) == 0
    return folder


@pytest.fixture
def site(made, tmp_path):
    shutil.copytree(made, tmp_path / "site")
    return tmp_path / "site"


@pytest.fixture
def federation(tmp_path):
    return provision.create(tmp_path / "federation", "trial", ["127.0.0.1"])


@pytest.fixture
def admitted(federation, site, tmp_path):
    """Return the file by which the hospital is admitted."""
    path = tmp_path / "admitted.json"
    path.write_text(json.dumps(federation.admit(json.loads((site / "request.json").read_text()))))
    return path


class TestWalk:
    def test_from_nothing_to_a_hospital_that_could_start(self, run, refused, patients_file, federation, tmp_path):
        told = run("hospital", "init", "site", "--name", "St Mary", "--task", "heart", "--data", patients_file())
        assert "Next: send site/request.json to the coordinator" in told
        assert "60 rows read, 60 taken" in told
        (tmp_path / "admitted.json").write_text(
            json.dumps(federation.admit(json.loads(Path("site/request.json").read_text())))
        )
        told = run("hospital", "join", "site", "admitted.json", "--fingerprint", federation.fingerprint)
        assert "Next: fedward hospital approve site --own" in told
        run("hospital", "approve", "site", "--own")
        allowed = read_policy(Path("site/site.toml")).allow
        assert allowed.bundles == (bundle().sha256,)
        assert [each.replace(":", "").lower() for each in allowed.coordinators] == [
            federation.fingerprint.replace(":", "").lower()
        ]
        assert allowed.tasks == ("heart",)

    def test_the_patients_that_are_kept_are_sealed_and_those_of_the_file(self, run, patients_file, make_patients):
        run(
            "hospital",
            "init",
            "site",
            "--name",
            "St Mary",
            "--task",
            "heart",
            "--data",
            patients_file(cells={3: {"trestbps": "133.7"}}),
        )
        made = open_site(Path("site"))
        path = resident.sealed(Path("site"), "heart")
        assert b"133.7" not in path.read_bytes()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        hospital = vault.unseal(path, task_of(Choice("heart")), made.vault_key(), "St Mary").hospital("St Mary")
        ages = np.concatenate([part["trestbps"] for part in (hospital.train, hospital.validation, hospital.test)])
        records = make_patients(60, 1)["trestbps"]
        records[3] = 133.7
        np.testing.assert_allclose(np.sort(ages), np.sort(np.round(records, 4)), atol=1e-2)
        assert 0 < len(hospital.test["num"]) < len(hospital.train["num"])

    def test_reading_again_takes_the_file_that_the_policy_names(self, run, site, patients_file):
        path = site / "site.toml"
        path.write_text(path.read_text().replace('data = ""', f'data = "{patients_file()}"'))
        assert "60 rows read, 60 taken" in run("hospital", "import", "site")
        patients_file(rows=70)
        assert "70 rows read, 70 taken" in run("hospital", "import", "site")

    def test_the_policy_is_shown_as_it_is(self, run, site):
        shown = tomllib.loads(run("hospital", "policy", "show", "site"))
        written = tomllib.loads((site / "site.toml").read_text())
        assert shown == {section: written[section] for section in ("site", "allow", "limits", "privacy")}
        assert json.loads(run("hospital", "policy", "show", "site", "--json"))["site"]["name"] == "St Mary"

    def test_a_whole_audit_log_is_said_to_be(self, run, site):
        with AuditLog(site / "audit.jsonl", open_site(site).audit_key()) as log:
            log.append("started", {"version": "0.1.0"})
            log.append("stopped")
        assert "2 lines, none of them changed" in run("hospital", "audit", "verify", "site")
        assert json.loads(run("hospital", "audit", "verify", "site", "--json")) == {"lines": 2, "intact": True}

    def test_keys_are_sealed_by_the_passphrase_in_the_environment(self, run, refused, monkeypatch):
        monkeypatch.setenv("FEDWARD_PASSPHRASE", "correct horse")
        run("hospital", "init", "site", "--name", "St Mary", "--task", "heart")
        assert b"sealed key" in Path("site/keys/tls.key").read_bytes()
        monkeypatch.setenv("FEDWARD_PASSPHRASE", "wrong horse")
        code, line = refused("hospital", "audit", "verify", "site")
        assert (code, "wrong passphrase" in line) == (2, True)
        assert "horse" not in line


class TestWrong:
    def test_init_without_a_folder_or_task_is_used_wrongly(self, refused):
        for words in (["site"], ["site", "--name", "a"], ["--task", "heart"], []):
            code, line = refused("hospital", "init", *words)
            assert code == 2
            assert "'fedward hospital init --help' shows what it takes" in line

    @pytest.mark.parametrize("folder", ["St Mary", "./St Mary/", "."])
    def test_a_hospital_without_a_name_has_that_of_its_folder(self, run, folder, tmp_path, monkeypatch):
        if folder == ".":
            (tmp_path / "St Mary").mkdir()
            monkeypatch.chdir(tmp_path / "St Mary")
        assert json.loads(run("hospital", "init", folder, "--task", "heart", "--json"))["name"] == "St Mary"
        assert open_site(tmp_path / "St Mary").name == "St Mary"

    def test_a_folder_whose_name_is_none_for_a_hospital_is_refused(self, refused):
        code, line = refused("hospital", "init", "a,b", "--task", "heart")
        assert (code, "--name: expected" in line and "got 'a,b'" in line) == (2, True)
        assert not Path("a,b").exists()

    @pytest.mark.parametrize(
        "words",
        [["audit", "site"], ["audit", "site", "verify"], ["policy", "site"], ["policy", "site", "show"], ["policy"]],
    )
    def test_what_it_does_comes_before_the_folder(self, refused, site, words):
        assert refused("hospital", *words)[0] == 2

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--name", "St Mary", "--task", "hart"], "did you mean 'heart'?"),
            (["--name", "St Mary", "--task", "../heart"], "unknown task"),
            (["--name", "", "--task", "heart"], "name"),
            (["--name", "../etc", "--task", "heart"], "name"),
            (["--name", "a\nb", "--task", "heart"], "name"),
        ],
    )
    def test_init_with_a_wrong_name_or_task_leaves_no_folder(self, refused, words, said):
        code, line = refused("hospital", "init", "site", *words)
        assert (code, said in line) == (2, True), line
        assert not Path("site").exists()

    def test_init_overwrites_no_keys(self, refused, site):
        before = {path: path.read_bytes() for path in site.rglob("*") if path.is_file()}
        code, line = refused("hospital", "init", "site", "--name", "St Mary", "--task", "heart")
        assert (code, "not empty" in line) == (2, True)
        assert {path: path.read_bytes() for path in site.rglob("*") if path.is_file()} == before

    def test_init_in_a_file(self, refused, tmp_path):
        (tmp_path / "site").write_text("mine")
        code, _ = refused("hospital", "init", "site", "--name", "St Mary", "--task", "heart")
        assert code == 2
        assert (tmp_path / "site").read_text() == "mine"

    @pytest.mark.parametrize(
        ("words", "code"),
        [
            (["import"], 2),
            (["join", "admitted.json", "--fingerprint", FINGERPRINT], 2),
            (["approve", "--own"], 2),
            (["approve", "--show"], 2),
            (["approve", "--sha256", "ab" * 32], 2),
            (["start"], 2),
            (["stub"], 2),
            (["stop"], 2),
            (["status"], 2),
            (["backup", "new.backup"], 2),
            (["service"], 2),
            (["audit"], 2),
            (["policy"], 2),
        ],
        ids=lambda words: " ".join(words) if isinstance(words, list) else "",
    )
    @pytest.mark.parametrize("kind", ["missing", "empty", "a file"])
    def test_a_folder_that_is_no_site(self, refused, tmp_path, words, code, kind):
        if kind == "empty":
            (tmp_path / "none").mkdir()
        elif kind == "a file":
            (tmp_path / "none").write_text("")
        given, line = refused("hospital", words[0], "none", *words[1:])
        assert (given, "none" in line) == (code, True), line
        assert kind == "missing" or list(tmp_path.glob("none/*")) == []

    def test_import_without_a_file(self, refused, site):
        code, line = refused("hospital", "import", "site")
        assert (code, "site.data: expected the file or folder" in line) == (2, True)

    def test_a_damaged_policy(self, refused, site):
        (site / "site.toml").write_text("[allow]\ntask = 3\n")
        for words in (["import", "site"], ["approve", "site", "--own"], ["policy", "show", "site"]):
            code, line = refused("hospital", *words)
            assert (code, "site.toml" in line) == (2, True)
        assert (site / "site.toml").read_text() == "[allow]\ntask = 3\n"

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"name": "St Mary"}', b"{}" * 100_000])
    def test_a_damaged_request_of_its_own(self, refused, site, content):
        (site / "request.json").write_bytes(content)
        code, line = refused("hospital", "audit", "verify", "site")
        assert (code, "request.json" in line) == (1, True)

    def test_audit_without_a_log(self, refused, site):
        code, line = refused("hospital", "audit", "verify", "site")
        assert (code, "audit.jsonl: cannot be read" in line) == (1, True)

    @pytest.mark.parametrize("change", [(b'"stopped"', b'"started"'), (b"0.1.0", b"0.1.1")])
    def test_audit_names_the_line_that_was_changed(self, refused, site, change):
        path = site / "audit.jsonl"
        with AuditLog(path, open_site(site).audit_key()) as log:
            log.append("started", {"version": "0.1.0"})
            log.append("stopped")
        path.write_bytes(path.read_bytes().replace(*change))
        code, line = refused("hospital", "audit", "verify", "site")
        assert code == 1
        assert f"line {1 if b'0.1.0' in change else 2}: altered" in line

    def test_start_before_it_has_joined(self, refused, site):
        code, line = refused("hospital", "start", "site")
        assert (code, "'fedward hospital join' tells it" in line) == (2, True)
        assert not (site / "run" / "pid").exists()
        assert not (site / "run" / "node.key").exists()

    def test_start_where_it_runs_already(self, refused, site):
        (site / "run").mkdir()
        with supervise.marked(site / "run"):
            code, line = refused("hospital", "start", "site")
            assert (code, "is running already; 'fedward hospital stop site' ends it" in line) == (2, True)

    def test_the_key_of_the_node_is_in_no_file_while_it_runs(self, monkeypatch, run):
        """It is sealed on the disk; Flower's program, another process, reads it from memory, and again when it is started again."""
        monkeypatch.setenv("FEDWARD_PASSPHRASE", "swordfish")
        run("hospital", "init", "sealed", "--name", "St Mary", "--task", "heart")
        made = open_site(Path("sealed"), "swordfish")
        with programs.node_key(made, programs.place_of(made)) as key:
            for _ in range(2):
                words = [sys.executable, "-c", "import sys; sys.stdout.write(open(sys.argv[1]).read())", str(key)]
                told = subprocess.run(words, capture_output=True, check=True).stdout
                assert told == made.node_key()
            files = [path.read_bytes() for path in Path("sealed").rglob("*") if path.is_file()]
            assert not any(b"PRIVATE KEY" in content for content in files)
            assert stat.S_IMODE(key.stat().st_mode) == 0o600
        assert not key.exists()

    @pytest.mark.parametrize("pid", [None, "", "x", "1", "999999999"])
    def test_stopping_what_does_not_run(self, refused, site, pid):
        if pid is not None:
            (site / "run").mkdir()
            (site / "run" / "pid").write_text(pid)
        code, line = refused("hospital", "stop", "site")
        assert (code, "is not running" in line) == (2, True)


class TestStatus:
    def test_before_it_has_joined(self, run, site):
        assert run("hospital", "status", "site") == "St Mary: not running\n  joined    no federation\n"

    def test_programs_and_federation(self, run, site, federation, admitted):
        run("hospital", "join", "site", "admitted.json", "--fingerprint", federation.fingerprint)
        (site / "run").mkdir()
        (site / "run" / "reached").touch()
        with supervise.marked(site / "run") as note:
            note({"worker": 17, "tunnel": 18})
            facts = json.loads(run("hospital", "status", "site", "--json"))
            assert (facts["running"], facts["connected"]) == (True, True)
            assert facts["programs"] == {"worker": 17, "tunnel": 18}
            assert (facts["federation"], facts["certificate_days"]) == ("trial", 89)
            assert facts["key"] in run("hospital", "status", "site")
            assert len(facts["key"]) == 64
            os.utime(site / "run" / "reached", (1e9, 1e9))
            assert "trial at 127.0.0.1:8443: not connected" in run("hospital", "status", "site")
        facts = json.loads(run("hospital", "status", "site", "--json"))
        assert (facts["running"], facts["connected"], facts["programs"]) == (False, False, {})

    @pytest.mark.parametrize(
        ("events", "outcome"),
        [
            (["asked"], "asked"),
            (["asked", "allowed"], "allowed"),
            (["asked", "refused"], "refused"),
            (["asked", "allowed", "trained", "failed"], "failed"),
            (["asked", "allowed", "trained", "sent"], "sent"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_the_last_request_and_what_became_of_it(self, run, site, events, outcome):
        with AuditLog(site / "audit.jsonl", open_site(site).audit_key()) as log:
            for number in range(3):
                who = {"message": f"{number}a", "run": "7", "kind": "train", "round": number}
                for event in ["asked", "allowed", "sent"] if number < 2 else events:
                    code = {"code": "min_records"} if event in ("refused", "failed") else {}
                    log.append(event, who | code)
            log.append("stopped")
        last = json.loads(run("hospital", "status", "site", "--json"))["last"]
        assert (last["kind"], last["run"], last["round"], last["outcome"]) == ("train", "7", 2, outcome)
        assert last["code"] == ("min_records" if outcome in ("refused", "failed") else None)
        assert f"train, round 2: {outcome}" in run("hospital", "status", "site")

    @pytest.mark.parametrize("content", [b"", b"{", b'{"event": 3}\n', b"\xff\n[]\n", b'{"event": "asked"}\n' * 9])
    def test_a_damaged_log_is_no_end_of_it(self, run, site, content):
        (site / "audit.jsonl").write_bytes(content)
        assert json.loads(run("hospital", "status", "site", "--json"))["last"] is None


class TestJoin:
    @pytest.mark.parametrize("fingerprint", [FINGERPRINT, "", "3f", "not one", "a" * 10_000])
    def test_another_fingerprint_is_refused_and_the_right_one_not_told(
        self, refused, site, federation, admitted, fingerprint
    ):
        before = {path: path.read_bytes() for path in site.rglob("*") if path.is_file()}
        code, line = refused("hospital", "join", "site", "admitted.json", "--fingerprint", fingerprint)
        assert (code, "ask the coordinator on the telephone" in line) == (1, True)
        assert federation.fingerprint not in line
        assert {path: path.read_bytes() for path in site.rglob("*") if path.is_file()} == before

    @pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"{}", b"\xff", b'{"federation": 1}', b" " * 100_000])
    def test_a_damaged_answer(self, refused, site, federation, content):
        if content is not None:
            Path("admitted.json").write_bytes(content)
        code, _ = refused("hospital", "join", "site", "admitted.json", "--fingerprint", federation.fingerprint)
        assert code == 1
        assert not (site / "federation.json").exists()

    def test_the_answer_to_another_hospital(self, run, refused, federation, admitted):
        run("hospital", "init", "other", "--name", "Other", "--task", "heart")
        code, line = refused("hospital", "join", "other", "admitted.json", "--fingerprint", federation.fingerprint)
        assert (code, "is not for the key" in line) == (1, True)

    def test_without_a_policy_it_is_said(self, refused, site, federation, admitted):
        (site / "site.toml").unlink()
        code, line = refused("hospital", "join", "site", "admitted.json", "--fingerprint", federation.fingerprint)
        assert (code, "site.toml: cannot be read" in line) == (1, True)


def fab(files):
    content = BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return Bundle(content.getvalue())


class TestApprove:
    def keep(self, site, waiting, name=None):
        (site / "bundles").mkdir(exist_ok=True)
        (site / "bundles" / f"{name or waiting.sha256}.fab").write_bytes(waiting.content)

    def test_what_waits_is_shown_as_the_difference_to_what_is_installed(self, run, site):
        with zipfile.ZipFile(BytesIO(bundle().content)) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        files["client/gate.py"] += b"steal()\n"
        files["client/new.py"] = b"import os\n"
        del files["client/policy.py"]
        waiting = fab(files)
        self.keep(site, waiting)
        shown = run("hospital", "approve", "site", "--show")
        assert f"Installed here: {bundle().sha256}" in shown
        assert f"{waiting.sha256}  waits" in shown
        lines = shown.splitlines()
        added = {line for line in lines if line.startswith("+") and not line.startswith("+++")}
        assert added == {"+", "+steal()", "+import os"}
        assert "--- installed/client/policy.py" in shown

    def test_the_installed_one_differs_in_nothing(self, run, site):
        self.keep(site, bundle())
        assert "the same as what is installed here" in run("hospital", "approve", "site")
        run("hospital", "approve", "site", "--own")
        assert f"{bundle().sha256}  approved" in run("hospital", "approve", "site")
        (facts,) = json.loads(run("hospital", "approve", "site", "--json"))["bundles"]
        assert facts["approved"]

    def test_what_will_run_is_shown_file_by_file(self, run, site):
        shown = run("hospital", "approve", "site", "--show")
        with zipfile.ZipFile(BytesIO(bundle().content)) as archive:
            for name in ("client/gate.py", "client/policy.py", "common/keys.py"):
                content = archive.read(name)
                digest, lines = hashlib.sha256(content).hexdigest()[:16], content.decode().count("\n") + 1
                assert re.search(rf"  {digest} +{lines} lines  {name}\n", shown)
        assert "Nothing that was approved is kept here" in shown
        assert "client/gate.py" not in run("hospital", "approve", "site")

    def test_what_waits_and_what_is_installed_are_held_against_the_last_approved(self, run, site):
        """As after an upgrade here, and another one at the coordinator."""
        with zipfile.ZipFile(BytesIO(bundle().content)) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        before = fab(files | {"client/gate.py": files["client/gate.py"] + b"before()\n"})
        coming = fab(files | {"client/gate.py": files["client/gate.py"] + b"before()\ncoming()\n"})
        self.keep(site, before)
        run("hospital", "approve", "site", "--sha256", before.sha256)
        self.keep(site, coming)
        (site / "bundles" / f"{before.sha256}.fab").unlink()
        shown = run("hospital", "approve", "site", "--show")
        assert f"It differs from what was approved last, {before.sha256}:\n--- approved/client/gate.py" in shown
        changed = [line for line in shown.splitlines() if re.match(r"[-+]\w", line)]
        assert changed == ["-before()", "+coming()"]
        run("hospital", "approve", "site", "--own")
        shown = run("hospital", "approve", "site", "--show")
        assert "It is what was approved last." in shown
        assert [line for line in shown.splitlines() if re.match(r"[-+]\w", line)] == ["+before()", "+coming()"]

    def test_one_that_was_taken_off_the_list_is_approved_no_more(self, run, site):
        run("hospital", "approve", "site", "--own")
        path = site / "site.toml"
        path.write_text(path.read_text().replace(f'bundles = ["{bundle().sha256}"]', "bundles = []"))
        facts = json.loads(run("hospital", "approve", "site", "--json"))
        assert (facts["own_approved"], facts["last_approved"]) == (False, None)

    def test_nothing_of_it_is_executed(self, run, site, tmp_path):
        spy = f"from pathlib import Path\nPath({str(tmp_path / 'executed')!r}).touch()\n"
        waiting = fab(
            dict.fromkeys(["client/__init__.py", "client/app.py", "sitecustomize.py", "common/__init__.py"], spy)
        )
        self.keep(site, waiting)
        run("hospital", "approve", "site", "--show")
        run("hospital", "approve", "site", "--sha256", waiting.sha256)
        assert not (tmp_path / "executed").exists()
        assert read_policy(site / "site.toml").allow.bundles == (waiting.sha256,)

    def test_a_terminal_can_not_be_made_to_hide_lines(self, run, site):
        tricks = "x = 1\x1b[2K\x1b[1A\r\ny = 2 \u202e# \x07\x08\n\x9b31m\n"
        self.keep(site, fab({"client/app\x1b[8m.py": tricks, "client/b.py": tricks}))
        shown = run("hospital", "approve", "site", "--show")
        assert all(letter.isprintable() or letter in "\n\t" for letter in shown)
        assert "\\u001b[2K" in shown
        assert "\\u202e" in shown

    @pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04", "cut", "damaged", "encrypted", "bomb"])
    def test_a_damaged_one_keeps_nobody_from_seeing_the_others(self, run, site, content):
        whole = fab({"client/app.py": "print('a line that is long enough to be packed')\n" * 50}).content
        if content == "cut":
            content = whole[: len(whole) // 2]
        elif content == "damaged":
            content = whole[:50] + bytes(byte ^ 0xFF for byte in whole[50:70]) + whole[70:]
        elif content == "encrypted":
            content = whole.replace(b"PK\x03\x04\x14\0\0\0", b"PK\x03\x04\x14\0\x01\0").replace(
                b"PK\x01\x02\x14\x03\x14\0\0\0", b"PK\x01\x02\x14\x03\x14\0\x01\0"
            )
        elif content == "bomb":
            content = fab({f"client/{number}.py": b"\n" * (20 << 20) for number in range(4)}).content
        self.keep(site, Bundle(content))
        self.keep(site, bundle())
        shown = run("hospital", "approve", "site", "--show")
        assert "do not approve it" in shown
        assert "the same as what is installed here" in shown

    def test_one_that_is_not_what_its_name_says_can_not_be_approved(self, refused, site):
        """Else whoever can write to that folder could have one thing looked at and another approved."""
        self.keep(site, bundle(), "ab" * 32)
        code, line = refused("hospital", "approve", "site", "--sha256", "ab" * 32)
        assert (code, "no run asked for such a bundle" in line) == (2, True)

    @pytest.mark.parametrize("digest", ["ab" * 32, "", "x", "../../keys/tls", "a\nb" * 100])
    def test_a_hash_that_nobody_asked_for(self, refused, run, site, digest):
        before = (site / "site.toml").read_bytes()
        if digest:
            code, _ = refused("hospital", "approve", "site", "--sha256", digest)
            assert code == 2
        else:
            run("hospital", "approve", "site", "--sha256", digest)
        assert (site / "site.toml").read_bytes() == before

    def test_approving_twice_changes_nothing(self, run, site):
        run("hospital", "approve", "site", "--own")
        once = (site / "site.toml").read_bytes()
        run("hospital", "approve", "site", "--own")
        assert (site / "site.toml").read_bytes() == once
        assert b"# SHA-256 of the bundles that may run here" in once, "comments stay"

    def test_a_list_written_by_hand_on_several_lines_is_left_alone(self, refused, site):
        path = site / "site.toml"
        path.write_text(path.read_text().replace("bundles = []", f'bundles = [\n  "{"ab" * 32}",\n]'))
        before = path.read_bytes()
        code, line = refused("hospital", "approve", "site", "--own")
        assert (code, "by hand" in line) == (2, True)
        assert path.read_bytes() == before


class TestData:
    """Every problem by row and column, never by value."""

    BAD = {4: {"age": SECRET}, 7: {"chol": "9" * 30}, 9: {"sex": "7"}, 11: {"num": "perhaps"}}

    def test_problems_are_named_by_row_and_column(self, capsys, patients_file, tmp_path):
        path = patients_file(cells=self.BAD)
        code = fedward.main(["hospital", "init", "site", "--name", "St Mary", "--task", "heart", "--data", str(path)])
        out, err = capsys.readouterr()
        assert (code, out) == (1, "")
        # The header is row 1, and the first patient row 2.
        for row, cells in self.BAD.items():
            for column in cells:
                assert f"row {row + 2}, column {column!r}" in err
        assert err.splitlines()[-1].startswith("fedward: the data were not taken; mend the file")
        for value in ("Mustermann", "9999", "perhaps"):
            assert value not in err
        assert "Traceback" not in err
        assert list(tmp_path.glob("site/data/*")) == []

    def test_what_was_mended_is_taken(self, capsys, run, patients_file):
        path = patients_file(cells=self.BAD)
        assert fedward.main(["hospital", "init", "site", "--name", "a", "--task", "heart", "--data", str(path)]) == 1
        capsys.readouterr()
        patients_file()
        assert "60 rows read, 60 taken" in run("hospital", "import", "site")

    @pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\0\0", b"a,b\n1,2\n", b"age,sex\n"], ids=repr)
    def test_a_file_that_is_none(self, capsys, tmp_path, content):
        path = tmp_path / "heart.csv"
        if content is not None:
            path.write_bytes(content)
        code = fedward.main(["hospital", "init", "site", "--name", "St Mary", "--task", "heart", "--data", str(path)])
        out, err = capsys.readouterr()
        assert (code, out) == (1, "")
        assert "REFUSED" in err
        assert "Traceback" not in err

    def test_a_canary_in_a_column_that_is_not_asked_for_is_nowhere(self, run, patients_file, tmp_path):
        path = patients_file()
        lines = path.read_text().splitlines()
        path.write_text("\n".join([lines[0] + ",name", *(f"{line},{SECRET}" for line in lines[1:])]) + "\n")
        told = run("hospital", "init", "site", "--name", "St Mary", "--task", "heart", "--data", path)
        assert SECRET not in told
        for file in (tmp_path / "site").rglob("*"):
            assert file.is_dir() or SECRET.encode() not in file.read_bytes()


def test_the_hospitals_commands_import_nothing_heavy():
    script = "import sys, fedward\ntry:\n    fedward.main(['hospital', '--help'])\nexcept SystemExit:\n    pass\nprint(sorted(set(sys.modules) & {'flwr', 'tensorflow', 'pandas', 'cryptography'}), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_the_hash_shown_is_that_of_the_file(run, site):
    waiting = fab({"client/app.py": "x\n"})
    (site / "bundles").mkdir()
    (site / "bundles" / f"{waiting.sha256}.fab").write_bytes(waiting.content)
    assert hashlib.sha256(waiting.content).hexdigest() in run("hospital", "approve", "site")
    assert policy.read_policy(site / "site.toml").allow.bundles == ()


class TestKeeping:
    def test_a_site_comes_back_whole_also_under_a_passphrase(self, run, refused, site, monkeypatch):
        with AuditLog(site / "audit.jsonl", open_site(site).audit_key()) as log:
            log.append("started", {"version": "0.1.0"})
        with (site / "audit.jsonl").open("ab") as file:
            file.write(b'{"half a line')
        assert "WARNING: it holds private keys" in run("hospital", "backup", "site", "bare")
        monkeypatch.setenv("FEDWARD_PASSPHRASE", "correct horse")
        assert json.loads(run("hospital", "backup", "site", "sealed", "--json"))["bare_keys"] is False
        run("hospital", "restore", "sealed", "again")
        assert refused("hospital", "restore", "bare", "other")[0] == 2
        assert refused("server", "restore", "sealed", "other")[0] == 2
        monkeypatch.delenv("FEDWARD_PASSPHRASE")
        assert refused("hospital", "restore", "sealed", "other")[0] == 2
        assert not Path("other").exists()
        assert "1 lines, none of them changed" in run("hospital", "audit", "verify", "again")
        assert open_site(Path("again")).vault_key() == open_site(site).vault_key()
        assert (Path("again") / "site.toml").read_bytes() == (site / "site.toml").read_bytes()

    def test_bundles_that_wait_are_in_no_backup(self, run, site):
        """They belong to the stub, perhaps another user, who could put a link or a file there that ends every backup."""
        (site / "bundles").mkdir()
        (site / "bundles" / "x.fab").symlink_to("/nowhere")
        run("hospital", "backup", "site", "file")
        run("hospital", "restore", "file", "again")
        assert not (Path("again") / "bundles").exists()

    def test_a_passphrase_that_opens_no_key_seals_no_backup(self, run, refused, monkeypatch):
        monkeypatch.setenv("FEDWARD_PASSPHRASE", "correct horse")
        run("hospital", "init", "site", "--name", "St Mary", "--task", "heart")
        monkeypatch.setenv("FEDWARD_PASSPHRASE", "corect horse")
        code, line = refused("hospital", "backup", "site", "file")
        assert (code, "wrong passphrase" in line) == (2, True)
        assert not Path("file").exists()

    def test_a_passphrase_may_come_as_a_credential(self, run, refused, tmp_path, monkeypatch):
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
        (tmp_path / "passphrase").write_text("correct horse\n")
        run("hospital", "init", "site", "--name", "St Mary", "--task", "heart")
        assert b"sealed key" in Path("site/keys/tls.key").read_bytes()
        assert refused("hospital", "audit", "verify", "site")[1].endswith(
            "cannot be read (No such file or directory)\n"
        )
        (tmp_path / "passphrase").write_text("wrong\n")
        assert "wrong passphrase" in refused("hospital", "audit", "verify", "site")[1]


class TestService:
    def test_memory_and_passphrase_are_the_sites(self, run, site, monkeypatch):
        files = json.loads(run("hospital", "service", "site", "--json"))
        assert files.keys() == {"fedward-hospital.service", "Containerfile.hospital"}
        assert "MemoryMax=5120M" in files["fedward-hospital.service"]
        assert "LoadCredential" not in files["fedward-hospital.service"]
        monkeypatch.setenv("FEDWARD_PASSPHRASE", "correct horse")
        run("hospital", "init", "sealed", "--name", "St Mary", "--task", "heart")
        unit = json.loads(run("hospital", "service", "sealed", "--json"))["fedward-hospital.service"]
        assert "LoadCredential=passphrase:" in unit
        assert "correct horse" not in unit

    def test_where_the_stub_has_a_group_it_gets_a_unit_of_its_own(self, run, site):
        path = site / "site.toml"
        path.write_text(path.read_text().replace('stub_group = ""', 'stub_group = "apart"'))
        run("hospital", "service", "site", "--out", "units", "--stub-user", "nobody")
        main, stub = (Path("units", f"fedward-{name}.service").read_text() for name in ("hospital", "stub"))
        assert "--without-stub" in main
        assert "User=nobody\nGroup=apart\n" in stub
        assert f'ReadWritePaths="{site}/bundles"' in stub
        assert f'InaccessiblePaths="-{site}/keys"' in stub
        assert "IPAddressDeny=any\nIPAddressAllow=localhost\n" in stub


def modes(folder):
    return {path.relative_to(folder).as_posix(): stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}


class TestModes:
    """What a stub of another user may reach."""

    @pytest.fixture
    def place(self, site):
        for name in ("data", "run"):
            (site / name).mkdir(exist_ok=True)
        for name in ("data/heart.sealed", "audit.jsonl", "run/worker.log", "note.txt"):
            (site / name).write_text("")
            (site / name).chmod(0o666)
        return programs.place_of(open_site(site))

    def test_a_group_gets_what_a_stub_needs_and_nothing_else(self, site, place):
        group = grp.getgrgid(os.getgid()).gr_name
        programs._share(open_site(site), place, group)
        assert stat.S_IMODE(site.stat().st_mode) == 0o710
        found = modes(site)
        shared = {"run": 0o710, "bundles": 0o770, "run/secret": 0o640, "run/ports": 0o640}
        assert {name: mode for name, mode in found.items() if mode & 0o070 and "data/" not in name} == shared
        assert not {name for name, mode in found.items() if mode & 0o007 and "data/" not in name}
        assert found["data"] == 0o700, "what lies within is behind a door that is shut"
        programs._share(open_site(site), place, "")
        assert not {name for name, mode in modes(site).items() if mode & 0o077 and "data/" not in name}

    @pytest.mark.parametrize("lost", [programs.PORTS, programs.SECRET])
    def test_a_crash_between_the_files_of_the_place_is_mended(self, site, place, lost):
        (place.folder / lost).unlink()
        again = programs.place_of(open_site(site))
        assert (again == place) == (lost == programs.SECRET)
        assert len(again.secret.read_bytes()) == 32

    def test_a_group_that_there_is_not_is_one_line(self, refused, run, site, federation, admitted):
        run("hospital", "join", "site", "admitted.json", "--fingerprint", federation.fingerprint)
        path = site / "site.toml"
        path.write_text(path.read_text().replace('stub_group = ""', 'stub_group = "no such group"'))
        code, line = refused("hospital", "start", "site")
        assert (code, "'no such group'; make the group" in line) == (2, True)
        assert not (site / "run" / "pid").exists()

    def test_a_stub_that_may_not_says_what_to_do(self, refused, site):
        code, line = refused("hospital", "stub", "site")
        assert (code, "fedward hospital start site --without-stub" in line) == (2, True)
