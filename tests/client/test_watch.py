"""A hospital's figures: those of its audit log, read once and then only on; nothing that could tell of a patient."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from client import site as sites
from client import watch
from client.audit import AuditLog
from client.watch import Tally
from server import provision


@pytest.fixture
def site(tmp_path):
    return sites.create(tmp_path / "site", "St Mary", "heart")


@pytest.fixture
def path(site):
    return site.folder / "audit.jsonl"


@pytest.fixture
def log(site, path):
    with AuditLog(path, site.audit_key()) as opened:
        yield opened


def told(site, tally):
    return {figure.name: dict(figure.values) for figure in watch.figures(site, tally)}


WHO = {"message": "m1", "run": "7", "kind": "train"}


def one_round(log, seconds=2.5, size=1000):
    log.append("asked", WHO | {"round": 1})
    log.append("allowed", WHO)
    log.append("trained", WHO | {"rounds": 1, "seconds": seconds})
    log.append("sent", WHO | {"bytes": size, "norm": 1.0})


def test_rounds_refusals_and_bytes_are_counted_by_code(site, path, log):
    one_round(log)
    one_round(log)
    log.append("asked", WHO)
    log.append("refused", WHO | {"code": "min_records"})
    log.append("replay", WHO)
    log.append("failed", WHO | {"code": "DataError"})
    found = told(site, Tally(path))
    assert found["fedward_requests_total"] == {"asked": 3, "allowed": 2, "sent": 2}
    assert found["fedward_refusals_total"] == {"min_records": 1, "replay": 1}
    assert found["fedward_failures_total"] == {"DataError": 1}
    assert found["fedward_sent_bytes_total"] == {"": 2000}
    assert found["fedward_trained_rounds"] == {"": 2}
    assert found["fedward_trained_seconds"] == {"": 5.0}


def test_they_are_the_audit_logs_own(site, path, log):
    """The policy's limits count with these."""
    for seconds in (1.0, 2.0, 4.0):
        one_round(log, seconds)
    tally = Tally(path)
    tally.update()
    assert tally.trained() == log.trained() == (3, 7.0)


def test_asked_again_only_what_is_new_is_read(site, path, log, monkeypatch):
    tally, read = Tally(path), []
    count = Tally._count
    monkeypatch.setattr(Tally, "_count", lambda self, line: read.append(line) or count(self, line))
    for number in range(1, 4):
        one_round(log)
        assert told(site, tally)["fedward_requests_total"]["sent"] == number
        assert len(read) == 4 * number


def test_a_line_that_is_being_written_counts_when_it_is_whole(site, path):
    whole = json.dumps({"event": "asked", "fields": {}, "time": datetime.now(UTC).isoformat()}).encode() + b"\n"
    tally = Tally(path)
    path.write_bytes(whole + whole[:20])
    assert told(site, tally)["fedward_requests_total"]["asked"] == 1
    path.write_bytes(whole + whole)
    assert told(site, tally)["fedward_requests_total"]["asked"] == 2


def test_a_log_that_was_moved_away_is_counted_anew(site, path):
    with AuditLog(path, site.audit_key()) as log:
        one_round(log)
    tally = Tally(path)
    assert told(site, tally)["fedward_requests_total"]["sent"] == 1
    path.unlink()
    assert told(site, tally)["fedward_requests_total"]["sent"] == 0
    with AuditLog(path, site.audit_key()) as log:
        log.append("asked", WHO)
    assert told(site, tally)["fedward_requests_total"] == {"asked": 1, "allowed": 0, "sent": 0}


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"[]\n",
        b"{}\n",
        b'{"event":"sent","fields":7}\n',
        b"\xff\xfe\n",
        b'{"event":"sent","fields":{"bytes":"x"}}\n',
    ],
)
def test_a_damaged_line_harms_no_other(site, path, line):
    with AuditLog(path, site.audit_key()) as log:
        one_round(log)
    path.write_bytes(line + path.read_bytes())
    assert told(site, Tally(path))["fedward_requests_total"]["sent"] == 1


def test_training_of_the_day_before_counts_no_more(site, path):
    def line(hours):
        when = (datetime.now(UTC) - timedelta(hours=hours)).isoformat()
        return json.dumps({"event": "trained", "time": when, "fields": {"rounds": 1, "seconds": 10.0}}) + "\n"

    path.write_text(line(25) + line(23))
    found = told(site, Tally(path))
    assert (found["fedward_trained_rounds"], found["fedward_trained_seconds"]) == ({"": 1}, {"": 10.0})


def test_the_time_that_the_certificate_has_left_is_told_once_there_is_one(site, path, tmp_path):
    assert "fedward_certificate_seconds" not in told(site, Tally(path))
    federation = provision.create(tmp_path / "federation", "trial", ["127.0.0.1"])
    site.join(federation.admit(json.loads((site.folder / "request.json").read_text())), federation.fingerprint)
    (left,) = told(site, Tally(path))["fedward_certificate_seconds"].values()
    assert 89 * 86400 < left < 90 * 86400


def test_how_long_ago_the_coordinator_answered_is_told_once_it_has(site, path):
    assert "fedward_coordinator_seconds" not in told(site, Tally(path))
    (site.folder / "run").mkdir()
    (site.folder / "run" / "reached").touch()
    (since,) = told(site, Tally(path))["fedward_coordinator_seconds"].values()
    assert 0 <= since < 60
