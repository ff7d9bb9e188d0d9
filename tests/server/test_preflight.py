"""Preflight of the coordinator: each fault is really made, is found, and is said in one line that tells what to mend."""

import json
import shutil
import socket
import sqlite3
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

import fedward
from client import site as sites
from common import certificates, keys
from common import preflight as common
from common.certificates import Issuer
from common.supervise import free_port
from server import models, preflight, provision, watch


@pytest.fixture
def port():
    return free_port()


@pytest.fixture
def federation(tmp_path, port):
    return provision.create(tmp_path / "federation", "trial", ["127.0.0.1"], port)


@pytest.fixture
def admit(federation, tmp_path):
    def admitted(name):
        site = sites.create(tmp_path / name, name, "heart")
        federation.admit(json.loads((site.folder / "request.json").read_text()))
        return site

    return admitted


def found(check, *words, **settings):
    """Make one check as it is made among all."""
    (finding,) = common.look({"it": lambda: check(*words, **settings)}).values()
    assert "\n" not in finding.text
    return finding.level, finding.text


def issuer_of(federation):
    key = keys.load_private(keys.read(federation.folder / "ca" / "key.pem"), "tls", "")
    return Issuer(certificates.load(federation.authority, ""), key)


def show(federation, life=certificates.SERVER_LIFE, hosts=("127.0.0.1",)):
    """Give the gateway another certificate over its own key."""
    key = keys.load_private(keys.read(federation.gateway_key), "tls", "")
    federation.gateway_certificate.write_bytes(issuer_of(federation).server(hosts, key.public_key(), life))


def test_where_all_is_well_all_is_ok(federation, port, admit):
    admit("east")
    findings = preflight.check(federation, "127.0.0.1", port)
    assert list(findings) == [
        "folder", "keys", "authority", "certificate", "names", "port", "disk", "memory", "versions", "database", "runs", "members",
    ]  # fmt: skip
    machine = {"disk", "memory"}  # which are as they are
    assert {finding.level for name, finding in findings.items() if name not in machine} == {"ok"}


class TestKeys:
    @pytest.mark.parametrize("name", ["ca/key.pem", "gateway/key.pem", "token"])
    def test_one_that_is_missing_or_others_may_read(self, federation, name):
        path = federation.folder / name
        path.chmod(0o644)
        assert "chmod 600" in found(preflight.own_keys, federation)[1]
        path.unlink()
        level, text = found(preflight.own_keys, federation)
        assert (level, f"{path}: cannot be read" in text) == ("FAIL", True)

    @pytest.mark.parametrize("name", ["ca/key.pem", "gateway/key.pem"])
    def test_one_of_another_federation(self, federation, name, tmp_path):
        other = provision.create(tmp_path / "other", "trial", ["127.0.0.1"])
        shutil.copy(other.folder / name, federation.folder / name)
        level, text = found(preflight.own_keys, federation)
        assert (level, "is not the key of the certificate beside it" in text) == ("FAIL", True)


class TestCertificates:
    @pytest.mark.parametrize(
        ("days", "stopped", "running"),
        [(100, "ok", "ok"), (31, "ok", "ok"), (29, "warn", "warn"), (-0.01, "warn", "FAIL")],
    )
    def test_the_gateways_age_which_a_start_mends(self, federation, days, stopped, running):
        show(federation, timedelta(days=days))
        assert found(preflight.certificate, federation, running=False)[0] == stopped
        assert found(preflight.certificate, federation, running=True)[0] == running
        federation.refresh_gateway()
        assert found(preflight.certificate, federation, running=False)[0] == "ok"

    def test_the_gateways_that_is_missing_is_made(self, federation):
        federation.gateway_certificate.unlink()
        assert found(preflight.certificate, federation, running=False)[0] == "warn"
        federation.refresh_gateway()
        assert found(preflight.certificate, federation, running=False)[0] == "ok"

    def test_the_gateways_of_another_authority(self, federation, tmp_path):
        other = provision.create(tmp_path / "other", "trial", ["127.0.0.1"])
        shutil.copy(other.gateway_certificate, federation.gateway_certificate)
        level, text = found(preflight.certificate, federation, running=False)
        assert (level, "not from the authority in" in text) == ("FAIL", True)

    def test_the_gateways_for_other_names(self, federation):
        show(federation, hosts=("localhost",))
        level, text = found(preflight.certificate, federation, running=True)
        assert (level, "for other hosts than federation.toml has; stop, then 'fedward server start'" in text) == (
            "warn",
            True,
        )

    @pytest.mark.parametrize(("days", "level"), [(3650, "ok"), (300, "warn"), (-0.01, "FAIL")])
    def test_the_authoritys_age(self, federation, monkeypatch, days, level):
        monkeypatch.setattr(certificates, "AUTHORITY_LIFE", timedelta(days=days))
        pem = certificates.make_authority("trial", keys.generate("tls"))
        assert found(preflight.authority, replace(federation, authority=pem))[0] == level


class TestDoor:
    def test_a_port_that_is_free(self, federation, port):
        assert found(preflight.door, federation, "127.0.0.1", port) == ("ok", f"127.0.0.1:{port}: nobody else listens")

    def test_a_port_that_another_program_has(self, federation):
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            level, text = found(preflight.door, federation, "127.0.0.1", port)
        assert (level, f"127.0.0.1:{port}: cannot listen here" in text) == ("FAIL", True)

    def test_an_address_that_is_not_of_this_machine(self, federation, port):
        level, text = found(preflight.door, federation, "192.0.2.1", port)
        assert (level, "cannot listen here" in text) == ("FAIL", True)

    def test_an_address_that_the_certificate_is_not_for(self, federation, port):
        level, text = found(preflight.names, replace(federation, address=f"fedward.example.org:{port}"), port)
        assert (level, "which is not among the hosts in federation.toml" in text) == ("FAIL", True)

    def test_a_port_that_nobody_listens_at(self, federation, port):
        level, text = found(preflight.names, federation, 8443)
        assert (level, f"hospitals are told port {port}, and 8443 is listened at" in text) == ("warn", True)

    def test_no_address(self, federation, port):
        assert found(preflight.names, replace(federation, address=None), port)[0] == "warn"


class TestDatabase:
    @pytest.fixture
    def path(self, federation):
        path = federation.folder / "run" / "flower.db"
        path.parent.mkdir()
        with sqlite3.connect(path) as opened:
            opened.execute("PRAGMA journal_mode = WAL")  # as Flower's own
            opened.execute("CREATE TABLE a (b TEXT)")
            opened.executemany("INSERT INTO a VALUES (?)", [("x" * 1000,)] * 100)
        opened.close()
        return path

    def test_a_whole_one(self, federation, path):
        assert found(preflight.database, federation) == ("ok", "whole, 0 MB")

    @pytest.mark.parametrize("content", [b"x" * 5000, b"SQLite format 3\0" + b"\xff" * 5000])
    def test_what_is_none(self, federation, path, content):
        path.write_bytes(content)
        level, text = found(preflight.database, federation)
        assert (level, "move flower.db* away, and start" in text) == ("FAIL", True)

    def test_one_that_was_cut_off(self, federation, path):
        path.write_bytes(path.read_bytes()[:-20_000])
        assert found(preflight.database, federation)[0] == "FAIL"

    def test_one_with_a_page_overwritten(self, federation, path):
        content = bytearray(path.read_bytes())
        content[8192:12288] = b"\xaa" * 4096
        path.write_bytes(content)
        assert found(preflight.database, federation)[0] == "FAIL"

    def test_looking_changes_nothing(self, federation, path):
        before = path.read_bytes()
        preflight.database(federation)
        assert path.read_bytes() == before


class TestRuns:
    @pytest.fixture
    def run(self, federation):
        """A run of which two rounds are finished."""
        folder = federation.folder / "runs" / "heart-0001"
        folder.mkdir(parents=True)
        with models.Saver(folder) as saver:
            for number in (1, 2):
                saver.save({"weights": np.zeros(3)}, {"rounds": number}, {"round": number})
        return folder

    def test_one_that_can_go_on(self, federation, run):
        assert found(preflight.runs, federation) == ("ok", "not finished: heart-0001")

    def test_a_damaged_checkpoint(self, federation, run):
        (run / models.NAME).write_bytes((run / models.NAME).read_bytes()[:-50])
        level, text = found(preflight.runs, federation)
        assert (level, "damaged checkpoint" in text) == ("FAIL", True)

    def test_a_history_that_was_cut_off(self, federation, run):
        (run / models.HISTORY).write_bytes(b"")
        level, text = found(preflight.runs, federation)
        assert (level, "rounds.jsonl: damaged" in text) == ("FAIL", True)

    def test_one_that_is_finished_is_not_looked_at(self, federation, run):
        (run / "run.json").write_text("{}")
        (run / models.NAME).write_bytes(b"x")
        assert found(preflight.runs, federation) == ("ok", "none waits to go on")

    def test_its_rounds_are_a_figure_until_it_is_finished(self, federation, run):
        assert watch.unfinished(run.parent) == {"heart-0001": 2}
        (run / "run.json").write_text("{}")
        assert watch.unfinished(run.parent) == {}


class TestMembers:
    def end(self, federation, name, days):
        ends = (certificates.now() + timedelta(days=days, minutes=1)).isoformat(timespec="seconds")
        with federation._book.locked():
            federation._book.store(replace(federation._book.read(name), ends=ends))

    def test_ones_whose_certificates_end_soon_are_named(self, federation, admit):
        for name, days in (("east", 60), ("north", 13), ("south", -3), ("west", 5)):
            admit(name)
            self.end(federation, name, days)
        federation.revoke("west")
        level, text = found(preflight.members, federation)
        assert level == "warn"
        assert text.startswith("3 admitted; near their end: north (13 days), south (0 days); have them start")

    def test_a_renewal_moves_the_end(self, federation, admit):
        site = admit("east")
        self.end(federation, "east", 3)
        assert found(preflight.members, federation)[0] == "warn"
        federation.renew("east", site.csr())
        assert found(preflight.members, federation) == ("ok", "1 admitted")
        (member,) = federation.members()
        assert member.ends.startswith(f"{certificates.now() + certificates.LIFE:%Y-%m-%d}")

    def test_one_of_an_earlier_release_has_no_end(self, federation, admit):
        admit("east")
        path = federation.folder / "members" / "east.json"
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "ends"}))
        assert found(preflight.members, federation) == ("ok", "1 admitted")

    @pytest.mark.parametrize("content", ["{", '{"ends": 3}'])
    def test_a_damaged_file_is_named(self, federation, admit, content):
        admit("east")
        (federation.folder / "members" / "east.json").write_text(content)
        level, text = found(preflight.members, federation)
        assert (level, "east.json" in text) == ("FAIL", True)

    def test_an_end_that_is_no_time(self, federation, admit):
        admit("east")
        path = federation.folder / "members" / "east.json"
        for end in ("soon", "2026-01-01T00:00:00"):
            path.write_text(json.dumps(json.loads(path.read_text()) | {"ends": end}))
            level, text = found(preflight.members, federation)
            assert (level, "expected a time in UTC" in text) == ("FAIL", True)


def test_the_figures_of_a_federation_that_does_not_run(federation, admit):
    for name in ("east", "west"):
        admit(name)
    federation.revoke("west")
    told = {figure.name: dict(figure.values) for figure in watch.figures(federation, lambda: None)}
    assert told["fedward_hospitals"] == {"admitted": 1, "revoked": 1}
    assert 364 * 86400 < told["fedward_certificate_seconds"]["gateway"] < 365 * 86400
    assert told["fedward_certificate_seconds"]["authority"] > 3650 * 86400
    assert told["fedward_run_rounds"] == {}


class TestCommand:
    def test_it_says_one_line_a_check_and_ends_with_0(self, federation, port, capsys):
        assert fedward.main(["server", "check", str(federation.folder), "--listen", f"127.0.0.1:{port}"]) == 0
        out, err = capsys.readouterr()
        rows = [line.split(maxsplit=1) for line in out.splitlines()]
        assert {row[0] for row in rows} <= {"ok", "warn"}
        assert (len(rows), err) == (12, "")

    def test_a_fault_ends_it_with_1(self, federation, port, capsys):
        (federation.folder / "token").unlink()
        words = ["server", "check", str(federation.folder), "--listen", f"127.0.0.1:{port}", "--json"]
        assert fedward.main(words) == 1
        told = json.loads(capsys.readouterr().out)
        assert (told["ok"], told["checks"][1]["level"]) == (False, "FAIL")

    @pytest.mark.parametrize("words", [["nowhere"], ["{folder}", "--listen", "8443"]])
    def test_wrong_usage_ends_it_with_2(self, federation, capsys, words):
        assert fedward.main(["server", "check", *(word.format(folder=federation.folder) for word in words)]) == 2
        assert capsys.readouterr().err.startswith("fedward: ")
