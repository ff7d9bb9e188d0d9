"""A coordinator and three hospitals as real processes over mutual TLS, each with its own file, driven by the commands that people type."""

import re

import pytest

from tests.federation.processes import HOSPITALS, fedward, here, until

pytestmark = pytest.mark.slow


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
        assert "none of them changed" in fedward("hospital", "audit", running.site(hospital), "verify")
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
