"""A coordinator and three hospitals as real processes over mutual TLS, each with its own file, driven by the commands that people type."""

import json
import re
import urllib.error
import urllib.request

import pytest

from tests.exposition import parsed
from tests.federation.processes import CELL, HOSPITALS, NAME, NUMBER, fedward, here, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),  # where Flower builds a bundle
]


def test_hospitals_train_together_and_can_prove_what_was_sent(running):
    told = fedward("server", "run", running.server, "heart", "--rounds", 3)
    record = running.record(running.last_run())
    assert told.count("3 of 3 hospitals") == 3
    assert record["name"] in told
    assert [sorted(row["answered"]) for row in record["rounds"]] == [list(HOSPITALS)] * 3
    assert record["rounds"][-1]["train_loss"] < record["rounds"][0]["train_loss"]
    assert record["results"]["federated"]["pooled"]["auroc"][0] > 0.75
    folder = running.server / "runs" / record["name"]
    assert {"run.json", "metrics.csv", "model.keras", "config.toml"} <= {path.name for path in folder.iterdir()}
    for hospital in HOSPITALS:
        assert "none of them changed" in fedward("hospital", "audit", "verify", running.site(hospital))
        events = [line["event"] for line in running.audit(hospital)]
        assert events.count("trained") >= 3
        assert events.count("sent") == events.count("allowed")
        log = running.site(hospital) / "audit.jsonl"
        assert fedward("server", "audit", running.server, hospital, "--log", log, "--json")["promised"] == len(
            running.audit(hospital)
        ), "the last answer promised its own line"
        shorter = running.root / "shorter.jsonl"
        shorter.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-1]))
        assert "missing" in fedward("server", "audit", running.server, hospital, "--log", shorter, code=1)


def test_a_hospital_that_has_not_approved_the_code_stays_out_and_the_others_go_on(running):
    text = (running.site("va") / "site.toml").read_text(encoding="utf-8")
    (running.site("va") / "site.toml").write_text(re.sub(r"(?m)^bundles = .*$", "bundles = []", text), encoding="utf-8")
    record = running.run()
    assert [member["name"] for member in record["hospitals"]] == ["cleveland", "hungarian"]
    last = running.audit("va")[-1]
    assert (last["event"], last["fields"]["code"]) == ("refused", "bundle")
    waits = fedward("hospital", "approve", running.site("va"), "--show")
    assert "waits" in waits
    assert "the same as what is installed here" in waits
    fedward("hospital", "approve", running.site("va"), "--own")
    assert len(running.run()["hospitals"]) == 3


@pytest.mark.fault(16, passes_when="between real programs: out within 60 s of revocation")
def test_a_revoked_hospital_is_out_at_once(running):
    here("server", "revoke", running.server, "hungarian")
    log = running.site("hungarian") / "run" / "tunnel.log"
    until(lambda: "refuses this hospital" in log.read_text(), 60, "still let in a minute after")
    record = running.run("--set", "limits.deadline_seconds=30")
    assert {name for row in record["rounds"] for name in row["answered"]} == {"cleveland", "va"}


def test_a_revoked_hospital_returns_with_a_new_site(running):
    running.leave("hungarian")
    running.join("hungarian")
    running.start("hungarian")
    running.wait_for(HOSPITALS)


# Health, figures and the check before the start. (In this file, because a federation takes a minute to start.)


def page(folder, name):
    """Return status and text of one of the two pages of a folder's programs."""
    port = (folder / "run" / "health").read_text()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}/{name}", timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_where_all_runs_both_sides_are_healthy_and_pass_the_check(running):
    for hospital in HOSPITALS:
        told = here("hospital", "check", running.site(hospital), "--json")
        assert [row["check"] for row in told["checks"]][-3:] == ["gateway", "release", "clock"]
        assert not [row for row in told["checks"] if row["level"] == "FAIL"]
        assert page(running.site(hospital), "health")[0] == 200
    told = here("server", "check", running.server, "--listen", f"127.0.0.1:{running.port}", "--json")
    assert "this federation's gateway listens" in {row["check"]: row["text"] for row in told["checks"]}["port"]
    status, text = page(running.server, "health")
    assert (status, set(json.loads(text)["programs"])) == (200, {"superlink", "gateway"})


def test_the_figures_are_those_of_a_run(running):
    site = running.site("cleveland")
    before = parsed(page(site, "metrics")[1])
    running.run(rounds=2)
    after, server = parsed(page(site, "metrics")[1]), parsed(page(running.server, "metrics")[1])
    assert after["fedward_trained_rounds", None] - before["fedward_trained_rounds", None] == 2
    assert after["fedward_requests_total", "asked"] == [row["event"] for row in running.audit("cleveland")].count(
        "asked"
    )
    assert after["fedward_sent_bytes_total", None] > before["fedward_sent_bytes_total", None]
    assert after["fedward_coordinator_seconds", None] < 60
    assert server["fedward_hospitals", "connected"] == 3
    assert {value for (name, _), value in (after | server).items() if name == "fedward_program_up"} == {1.0}


def test_a_program_that_is_killed_shows_until_it_is_started_again(running):
    site = running.site("va")
    again = parsed(page(site, "metrics")[1])["fedward_program_restarts_total", "stub"]
    running.kill_program("va", "stub")
    until(lambda: page(site, "health")[0] == 503, 10, "nothing shows")
    until(lambda: page(site, "health")[0] == 200, 90, "it is not started again")
    assert parsed(page(site, "metrics")[1])["fedward_program_restarts_total", "stub"] == again + 1
    running.wait_for(HOSPITALS)


def test_nothing_of_a_patient_is_told(running):
    told = [page(folder, name)[1] for folder in map(running.site, HOSPITALS) for name in ("health", "metrics")]
    told += [here("hospital", "check", running.site(hospital)) for hospital in HOSPITALS]
    for canary in (NAME, NUMBER, CELL):
        assert not any(canary in text for text in told)
