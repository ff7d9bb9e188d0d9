"""Preflight within the hospital: each fault is really made, is found, and is said in one line that tells what to mend."""

import json
import os
import shutil
import socket
import tempfile
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

import fedward
from client import policy, preflight, programs, resident
from client import site as sites
from client.audit import AuditLog
from client.data import vault
from client.data.split import Parts
from common import certificates, deployment, keys, supervise
from common import preflight as common
from common.certificates import Issuer
from common.config import Choice
from common.tasks import task_of
from server import provision

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # where Flower builds a bundle
PASSPHRASE = "vier Worte am Fenster"


@pytest.fixture(autouse=True)
def _cheap(monkeypatch):
    monkeypatch.setattr(keys, "COST", {"memory_kib": 64, "iterations": 1, "lanes": 1})
    monkeypatch.delenv("FEDWARD_PASSPHRASE", raising=False)


@pytest.fixture
def federation(tmp_path):
    return provision.create(tmp_path / "federation", "trial", ["127.0.0.1"], supervise.free_port())


@pytest.fixture
def seal(make_patients):
    """Seal so many patients into a site, changed by a function."""

    def sealed(site, train=60, test=20, change=dict):
        records = {
            part: change(make_patients(rows, 1)) for part, rows in (("train", train), ("validation", 0), ("test", test))
        }
        patients = {part: np.arange(len(rows["num"])) for part, rows in records.items()}
        path = resident.sealed(site.folder, site.task)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        vault.seal(path, Parts(records, patients), task_of(Choice("heart")), site.vault_key(), site.name)
        return path

    return sealed


@pytest.fixture(params=[None])
def site(request, tmp_path, federation, seal):
    """A site that lacks nothing."""
    made = sites.create(tmp_path / "site", "St Mary", "heart", request.param)
    path = made.folder / resident.POLICY
    path.write_text(policy.template("St Mary", "heart", ""))
    made.join(federation.admit(json.loads((made.folder / "request.json").read_text())), federation.fingerprint)
    policy.add(path, "coordinators", federation.fingerprint)
    policy.add(path, "bundles", deployment.bundle().sha256)
    seal(made)
    return made


def set_(site, before, after):
    path = site.folder / resident.POLICY
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))


def found(check, *words):
    """Make one check as it is made among all."""
    (finding,) = common.look({"it": lambda: check(*words)}).values()
    assert "\n" not in finding.text
    return finding.level, finding.text


def test_where_all_is_well_all_but_the_coordinator_that_does_not_run_is_ok(site):
    findings = preflight.check(site)
    assert list(findings) == [
        "folder", "keys", "policy", "data", "audit log", "socket", "disk", "memory", "versions", "joined", "rules", "certificate",
        "proxy", "name", "line",
    ]  # fmt: skip
    machine = {"disk", "memory"}  # which are as they are
    assert [name for name, finding in findings.items() if finding.level != "ok" and name not in machine] == ["line"]
    assert "no connection (Connection refused); is it running" in findings["line"].text


class TestFolder:
    @pytest.mark.parametrize(
        ("mode", "level"), [(0o755, "warn"), (0o701, "warn"), (0o710, "ok"), (0o770, "FAIL"), (0o777, "FAIL")]
    )
    def test_one_that_others_may_use(self, site, mode, level):
        site.folder.chmod(mode)
        assert found(common.folder, site.folder)[0] == level
        if level != "ok":
            assert f"(mode {mode:o}); mend it with: chmod 700 {site.folder}" in found(common.folder, site.folder)[1]

    def test_one_that_cannot_be_written_into(self):
        level, text = found(common.folder, Path("/proc"))
        assert (level, "cannot be written into" in text) == ("FAIL", True)

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
    def test_one_of_another_user(self, site):
        os.chown(site.folder, 12345, -1)
        assert found(common.folder, site.folder) == (
            "warn",
            f"{site.folder}: belongs to user 12345, and this is user 0; check and run it as its owner",
        )

    def test_a_disk_with_too_little_space(self, site):
        free = shutil.disk_usage(site.folder).free // 10**6
        assert found(common.disk, site.folder, 0, 0)[0] == "ok"
        assert found(common.disk, site.folder, 0, free * 2)[0] == "warn"
        level, text = found(common.disk, site.folder, free * 2, free * 4)
        assert (level, text.endswith("free space")) == ("FAIL", True)


class TestKeys:
    @pytest.mark.parametrize("name", ["tls", "node", "audit", "vault"])
    def test_one_that_is_missing(self, site, name):
        (site.folder / "keys" / f"{name}.key").unlink()
        level, text = found(preflight.own_keys, site)
        assert (level, f"{name}.key: cannot be read" in text) == ("FAIL", True)

    @pytest.mark.parametrize("name", ["tls", "node", "audit"])
    def test_one_of_another_site(self, site, name, tmp_path):
        other = sites.create(tmp_path / "other", "St Mary", "heart")
        shutil.copy(other.folder / "keys" / f"{name}.key", site.folder / "keys" / f"{name}.key")
        level, text = found(preflight.own_keys, site)
        assert (level, text) == (
            "FAIL",
            f"keys/{name}.key is not the one of request.json; restore both from the same backup",
        )

    def test_one_that_others_may_read(self, site):
        (site.folder / "keys" / "audit.key").chmod(0o640)
        level, text = found(preflight.own_keys, site)
        assert (level, "chmod 600" in text) == ("FAIL", True)

    @pytest.mark.parametrize("site", [PASSPHRASE], indirect=True)
    def test_sealed_ones_without_the_passphrase(self, site):
        assert found(preflight.own_keys, site) == ("ok", "all four open")
        level, text = found(preflight.own_keys, sites.open_site(site.folder))
        assert (level, "is sealed by a passphrase, and none was given" in text) == ("FAIL", True)


class TestPolicy:
    def test_one_that_is_damaged(self, site):
        set_(site, "min_cohort = 3", "min_cohort = 0")
        level, text = found(preflight.settings, site)
        assert (level, "limits.min_cohort" in text) == ("FAIL", True)

    def test_one_that_is_missing(self, site):
        (site.folder / resident.POLICY).unlink()
        assert found(preflight.settings, site)[0] == "FAIL"

    def test_one_of_another_site(self, site):
        set_(site, 'name = "St Mary"', 'name = "St Anne"')
        level, text = found(preflight.settings, site)
        assert (level, "is of 'St Anne' for 'heart', and the keys are of 'St Mary'" in text) == ("FAIL", True)

    @pytest.mark.parametrize(
        ("before", "after", "rule"),
        [
            ('tasks = ["heart"]', "tasks = []", "task (allow.tasks)"),
            ('statistics = ["count", "task"]', 'statistics = ["count"]', "statistics (allow.statistics)"),
            ('minimum = "none"', 'minimum = "dp"', "privacy (privacy.minimum)"),
            ("min_records = 8", "min_records = 32", "min_records (limits.min_records)"),
            ("max_rounds = 500", "max_rounds = 5", "max_rounds (limits.max_rounds)"),
            ("max_steps = 10000", "max_steps = 4", "max_steps (limits.max_steps)"),
            ("cohort = []", 'cohort = ["St Anne"]', "min_cohort (limits.min_cohort)"),
        ],
    )
    def test_a_rule_that_refuses_every_run_is_named(self, site, before, after, rule):
        assert found(preflight.rules, site)[0] == "ok"
        set_(site, before, after)
        assert found(preflight.rules, site) == (
            "warn",
            f"even a run with the task's own settings would be refused: {rule}; change site.toml",
        )

    def test_a_bundle_and_a_coordinator_that_are_not_approved(self, site):
        (site.folder / resident.POLICY).write_text(policy.template("St Mary", "heart", ""))
        level, text = found(preflight.rules, site)
        assert level == "warn"
        assert "coordinator (allow.coordinators), bundle (allow.bundles)" in text
        assert text.endswith(
            f"change site.toml, and look at the code and approve it: fedward hospital approve {site.folder} --own"
        )

    @pytest.mark.parametrize("key", ["", "@" + "5a" * 32])
    def test_a_cohort_that_is_large_enough_is_none(self, site, key):
        set_(site, "cohort = []", f'cohort = ["St Anne{key}", "St Luke{key}"]')
        assert found(preflight.rules, site)[0] == "ok"


class TestData:
    def test_how_many_there_are_is_said(self, site):
        assert found(preflight.data, site) == ("ok", "60 patients to train with, 20 to test")

    def test_none(self, site):
        resident.sealed(site.folder, "heart").unlink()
        level, text = found(preflight.data, site)
        assert (level, "there is no vault" in text) == ("FAIL", True)

    def test_a_bit_that_was_turned(self, site):
        path = resident.sealed(site.folder, "heart")
        content = bytearray(path.read_bytes())
        content[-100] ^= 1
        path.write_bytes(content)
        level, text = found(preflight.data, site)
        assert (level, "damaged or changed since it was sealed; import the data anew" in text) == ("FAIL", True)

    def test_another_vault_key(self, site, tmp_path):
        other = sites.create(tmp_path / "other", "St Mary", "heart")
        shutil.copy(other.folder / "keys" / "vault.key", site.folder / "keys" / "vault.key")
        level, text = found(preflight.data, site)
        assert (level, "sealed with another key" in text) == ("FAIL", True)

    def test_columns_of_another_version_of_the_task(self, site, monkeypatch):
        """As after an upgrade that changed the schema: what was sealed before does not fit."""
        from client.data import schema

        digest = schema.digest
        monkeypatch.setattr(schema, "digest", lambda task: digest(task)[::-1])
        level, text = found(preflight.data, site)
        assert (level, "this is for with other columns; import the data anew" in text) == ("FAIL", True)

    def test_fewer_than_the_policy_wants(self, site, seal):
        seal(site, train=49)
        level, text = found(preflight.data, site)
        assert (level, "below limits.min_patients = 50 every round is refused" in text) == ("FAIL", True)

    @pytest.mark.parametrize(("label", "missing"), [(0.0, "disease"), (1.0, "no disease")])
    def test_patients_of_one_class(self, site, seal, label, missing):
        seal(site, change=lambda records: {**records, "num": np.full_like(records["num"], label)})
        level, text = found(preflight.data, site)
        assert (level, f"in the part 'train' nobody is of class {missing}: is the label read rightly?" in text) == (
            "warn",
            True,
        )

    def test_nobody_to_test_with(self, site, seal):
        seal(site, test=0)
        level, text = found(preflight.data, site)
        assert (level, "in the part 'test' nobody is of class no disease, disease" in text) == ("warn", True)


class TestAuditLog:
    @pytest.fixture
    def path(self, site):
        with AuditLog(site.folder / resident.AUDIT, site.audit_key()) as log:
            for _ in range(5):
                log.append("started", {"version": "0.1.0"})
        return site.folder / resident.AUDIT

    def test_a_whole_one(self, site, path):
        assert found(preflight.audit_log, site) == ("ok", "5 lines, none of them changed")

    def test_none_yet(self, site):
        assert found(preflight.audit_log, site) == ("ok", "none yet")

    def test_a_line_that_was_changed(self, site, path):
        path.write_text(path.read_text().replace('"sequence":3', '"sequence":4'))
        level, text = found(preflight.audit_log, site)
        assert (level, "line 3: altered" in text, "as evidence" in text) == ("FAIL", True, True)

    def test_a_torn_line_which_the_next_start_puts_away(self, site, path):
        path.write_bytes(path.read_bytes()[:-7])
        assert found(preflight.audit_log, site)[0] == "warn"
        AuditLog(path, site.audit_key()).close()
        assert found(preflight.audit_log, site)[0] == "ok"


class TestMachine:
    @pytest.mark.parametrize("letters", [60, 94, 107, 108, 140])
    def test_a_path_of_the_socket_is_as_long_as_the_system_lets_it(self, letters):
        """As the worker itself finds out: it can listen there, or not."""
        with tempfile.TemporaryDirectory(dir="/tmp", prefix="fw-") as short:
            left = letters - len(short) - len("//run/worker.sock")
            folder = Path(short) / ("x" * left)
            (folder / "run").mkdir(parents=True)
            level, text = found(preflight.socket_path, sites.Site(folder, "a", "heart"))
            with socket.socket(socket.AF_UNIX) as line:
                try:
                    line.bind(str(folder / resident.SOCKET))
                except OSError:
                    assert level == "FAIL"
                    assert text.endswith("move the site to a folder whose path is shorter")
                else:
                    assert (level, text) == ("ok", f"its path has {letters} letters")

    def test_a_limit_of_memory_that_the_worker_is_above_at_once(self, site):
        set_(site, "memory_mb = 4096", "memory_mb = 256")
        level, text = found(preflight.memory, site)
        assert (level, "limits.memory_mb is 256" in text) == ("FAIL", True)

    def test_too_little_memory(self):
        assert common.memory(1, 2, running=False).level == "ok"
        assert common.memory(1, 2**40, running=False).level == "warn"
        assert common.memory(2**40, 2**41, running=False).level == "FAIL"
        assert common.memory(2**40, 2**41, running=True).level == "ok"

    def test_the_memory_of_a_container_is_what_it_may_take(self, tmp_path):
        machine = tmp_path / "meminfo"
        machine.write_text("MemTotal:  8000000 kB\nMemAvailable:  4000000 kB\n")
        assert common.available_mb(machine, tmp_path) == 4096
        (tmp_path / "memory.current").write_text("500000000\n")
        for limit, free in (("max", 4096), ("1500000000", 1000), ("9000000000", 4096)):
            (tmp_path / "memory.max").write_text(f"{limit}\n")
            assert common.available_mb(machine, tmp_path) == free

    def test_another_flower(self, monkeypatch):
        monkeypatch.setattr("common.flower.version", lambda _: "1.40.2")
        level, text = found(preflight.versions)
        assert (level, "found 1.40.2" in text) == ("FAIL", True)

    def test_a_flower_without_its_program(self, monkeypatch, tmp_path):
        monkeypatch.setattr(programs.sys, "executable", str(tmp_path / "python"))
        monkeypatch.setenv("PATH", str(tmp_path))
        level, text = found(preflight.versions)
        assert (level, "flower-supernode is not installed" in text) == ("FAIL", True)


class TestJoined:
    def test_one_that_has_not_joined_is_asked_nothing_more(self, site):
        (site.folder / sites.FEDERATION).unlink()
        findings = preflight.check(site)
        assert list(findings)[-1] == "joined"
        assert findings["joined"].level == "FAIL"
        assert "fedward hospital join" in findings["joined"].text

    def test_one_that_does_not_know_where_its_federation_is(self, site):
        path = site.folder / sites.FEDERATION
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "address"}))
        level, text = found(preflight.joined, site)
        assert (level, "address is not known" in text) == ("FAIL", True)

    def test_a_damaged_file(self, site):
        (site.folder / sites.FEDERATION).write_text("{")
        assert preflight.check(site)["joined"].level == "FAIL"


def issued(federation, site, life):
    """Sign a certificate for the site that counts for so long."""
    key = keys.load_private(keys.read(federation.folder / "ca" / "key.pem"), "tls", "")
    issuer = Issuer(certificates.load(federation.authority, ""), key)
    return issuer.client(certificates.load_request(site.csr()), site.name, life)


class TestCertificate:
    @pytest.mark.parametrize(("days", "level"), [(89, "ok"), (31, "ok"), (29, "warn"), (-0.01, "FAIL")])
    def test_its_age(self, site, federation, days, level):
        site.certificate.write_bytes(issued(federation, site, timedelta(days=days)))
        assert found(preflight.certificate, site)[0] == level

    def test_what_to_mend_is_said(self, site, federation):
        site.certificate.write_bytes(issued(federation, site, timedelta(seconds=-30)))
        assert found(preflight.certificate, site)[1].endswith("have request.json admitted again, and join again")
        site.certificate.write_bytes(issued(federation, site, timedelta(days=7, minutes=1)))
        assert "7 days left; it is renewed while the hospital runs" in found(preflight.certificate, site)[1]

    def test_one_that_counts_only_later_by_this_clock(self, site, monkeypatch):
        now = certificates.now() - timedelta(days=2)
        monkeypatch.setattr(certificates, "now", lambda: now)
        level, text = found(preflight.certificate, site)
        assert (level, "UTC on, and here it is" in text, text.endswith("set this clock")) == ("FAIL", True, True)

    def test_one_of_another_authority(self, site, tmp_path):
        other = provision.create(tmp_path / "other", "trial", ["127.0.0.1"])
        answer = other.admit(json.loads((site.folder / "request.json").read_text()))
        site.certificate.write_text(answer["certificate"])
        assert "certificate.pem is not from the federation's authority" in found(preflight.certificate, site)[1]
        site.authority.write_text(answer["authority"])
        level, text = found(preflight.certificate, site)
        assert (level, "authority.pem is not the authority that this hospital joined" in text) == ("FAIL", True)

    def test_one_for_another_key(self, site, federation, tmp_path):
        other = sites.create(tmp_path / "other", "St Anne", "heart")
        site.certificate.write_bytes(issued(federation, other, timedelta(days=90)))
        level, text = found(preflight.certificate, site)
        assert (level, "certificate.pem is not for keys/tls.key" in text) == ("FAIL", True)

    @pytest.mark.parametrize("name", ["certificate.pem", "authority.pem"])
    def test_one_that_is_missing_or_damaged(self, site, name):
        (site.folder / name).write_text("x")
        assert found(preflight.certificate, site)[0] == "FAIL"
        (site.folder / name).unlink()
        assert found(preflight.certificate, site)[0] == "FAIL"


class TestCommand:
    def test_it_says_one_line_a_check_and_fails_with_1(self, site, capsys):
        assert fedward.main(["hospital", "check", str(site.folder)]) == 1
        out, err = capsys.readouterr()
        rows = [line.split(maxsplit=1) for line in out.splitlines()]
        assert {row[0] for row in rows} <= {"ok", "warn", "FAIL"}
        assert (len(rows), err) == (15, "")

    def test_machines_get_json(self, site, capsys):
        assert fedward.main(["hospital", "check", str(site.folder), "--json"]) == 1
        told = json.loads(capsys.readouterr().out)
        assert told["ok"] is False
        assert told["checks"][1] == {"check": "keys", "level": "ok", "text": "all four open, without a passphrase"}

    def test_no_site_is_wrong_usage(self, tmp_path, capsys):
        assert fedward.main(["hospital", "check", str(tmp_path / "nowhere")]) == 2
        assert "no site here" in capsys.readouterr().err

    def test_no_patients_value_is_said(self, site, capsys, seal):
        seal(site, change=lambda records: {**records, "age": np.full_like(records["age"], 61.0625)})
        fedward.main(["hospital", "check", str(site.folder)])
        assert "61.06" not in capsys.readouterr().out
