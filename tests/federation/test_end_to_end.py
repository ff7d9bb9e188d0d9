"""A coordinator and three hospitals as real processes over mutual TLS, each with its own file, driven by the commands that people type."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from common.supervise import free_port
from simulations.datasets import DATASETS
from simulations.datasets.fetch import load

pytestmark = pytest.mark.slow

HOSPITALS = ("cleveland", "hungarian", "va")
NAME, NUMBER, CELL = "Xanthippe Quuxington", "77316655-K", "131.0173"
"""Planted in every hospital's file: a patient's name and number, and a value of a column that is learnt from."""


def fedward(*words, code=0, timeout=150):
    """Type a command; return what it printed, parsed where it is JSON."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "fedward", *map(str, words)], capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout) if "--json" in words and code == 0 else done.stdout + done.stderr


def write_file(path, hospital):
    """Write a hospital's patients as its own people would have them, with names and numbers."""
    table = load(DATASETS["heart"])
    rows = np.flatnonzero(table.hospital == hospital)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "patient_id", *table.records])
        for place, row in enumerate(rows):
            cells = {name: "" if np.isnan(values[row]) else values[row] for name, values in table.records.items()}
            cells["num"] = int(cells["num"] > 0)
            cells["trestbps"] = CELL if place == 0 else cells["trestbps"]
            writer.writerow([NAME, f"{NUMBER}{place}", *cells.values()])


class Federation:
    """Folders and processes of a federation that runs."""

    def __init__(self, root):
        self.root, self.server = root, root / "fed"
        self.started = []

    def site(self, hospital):
        return self.root / hospital

    def prepare(self):
        port = free_port()
        fingerprint = fedward("server", "init", self.server, "--host", "127.0.0.1", "--port", port, "--json")[
            "fingerprint"
        ]
        for hospital in HOSPITALS:
            data, site, answer = (
                self.root / f"{hospital}.csv",
                self.site(hospital),
                self.root / f"admitted-{hospital}.json",
            )
            write_file(data, hospital)
            fedward("hospital", "init", site, "--name", hospital, "--task", "heart", "--data", data)
            fedward("server", "admit", self.server, site / "request.json", "--out", answer)
            fedward("hospital", "join", site, answer, "--fingerprint", fingerprint)
            self.allow(hospital, "min_cohort = 3", "min_cohort = 2")
            fedward("hospital", "approve", site, "--own")
        self.begin("server", "start", self.server, "--listen", f"127.0.0.1:{port}")
        for hospital in HOSPITALS:
            self.begin("hospital", "start", self.site(hospital))
        self.wait_for(HOSPITALS)

    def begin(self, *words):
        self.started.append(subprocess.Popen([sys.executable, "-P", "-m", "fedward", *map(str, words)]))

    def wait_for(self, hospitals, seconds=90):
        end = time.monotonic() + seconds
        while set(self.online()) != set(hospitals):
            assert time.monotonic() < end, f"only {self.online()} connected"
            time.sleep(0.5)

    def online(self):
        status = fedward("server", "status", self.server, "--json")
        return [row["name"] for row in status["hospitals"] if row["online"]]

    def run(self, *words, rounds=2):
        return fedward("server", "run", self.server, "heart", "--rounds", rounds, *words, "--json")

    def allow(self, hospital, before, after):
        path = self.site(hospital) / "site.toml"
        text = path.read_text(encoding="utf-8")
        assert before in text
        path.write_text(text.replace(before, after), encoding="utf-8")

    def audit(self, hospital):
        return [json.loads(line) for line in (self.site(hospital) / "audit.jsonl").read_text().splitlines()]

    def stop(self):
        for process in reversed(self.started):
            process.send_signal(signal.SIGTERM)
        for process in self.started:
            process.wait(60)


@pytest.fixture(scope="module")
def federation():
    # Sockets have short paths; those of pytest's own folders are longer.
    with tempfile.TemporaryDirectory(prefix="fw-") as root:
        running = Federation(Path(root))
        try:
            running.prepare()
            yield running
        finally:
            running.stop()


def test_hospitals_train_together_and_can_prove_what_was_sent(federation):
    record = federation.run(rounds=3)
    assert [sorted(row["answered"]) for row in record["rounds"]] == [list(HOSPITALS)] * 3
    assert record["rounds"][-1]["train_loss"] < record["rounds"][0]["train_loss"]
    assert record["results"]["federated"]["pooled"]["auroc"][0] > 0.75
    folder = federation.server / "runs" / record["name"]
    assert {"run.json", "metrics.csv", "model.keras", "config.toml"} <= {path.name for path in folder.iterdir()}
    for hospital in HOSPITALS:
        assert "none of them changed" in fedward("hospital", "audit", federation.site(hospital), "verify")
        events = [line["event"] for line in federation.audit(hospital)]
        assert events.count("trained") >= 3
        assert events.count("sent") == events.count("allowed")


def test_nothing_of_a_patient_reached_the_coordinator_or_a_log(federation):
    looked = [path for path in federation.server.rglob("*") if path.is_file()]
    for hospital in HOSPITALS:
        looked += [path for path in federation.site(hospital).rglob("*") if path.is_file()]
    # The model and its preparation are there, so the search would find what had travelled.
    assert any(b'"mean"' in path.read_bytes() for path in looked)
    for path in looked:
        content = path.read_bytes()
        for planted in (NAME, NUMBER, CELL):
            assert planted.encode() not in content, f"{planted} stands in {path}"
        assert np.float64(CELL).tobytes() not in content, path


def test_a_hospital_that_has_not_approved_the_code_stays_out_and_the_others_go_on(federation):
    text = (federation.site("va") / "site.toml").read_text(encoding="utf-8")
    (federation.site("va") / "site.toml").write_text(
        re.sub(r"(?m)^bundles = .*$", "bundles = []", text), encoding="utf-8"
    )
    record = federation.run()
    assert [member["name"] for member in record["hospitals"]] == ["cleveland", "hungarian"]
    last = federation.audit("va")[-1]
    assert (last["event"], last["fields"]["code"]) == ("refused", "bundle")
    waits = fedward("hospital", "approve", federation.site("va"), "--show")
    assert "waits" in waits
    assert "the same as what is installed here" in waits
    fedward("hospital", "approve", federation.site("va"), "--own")
    assert len(federation.run()["hospitals"]) == 3


def test_a_worker_that_is_killed_comes_back(federation):
    found = subprocess.run(
        ["pgrep", "-f", f"client.resident {federation.site('cleveland')}"], capture_output=True, text=True, check=True
    )
    os.kill(int(found.stdout.split()[0]), signal.SIGKILL)
    end = time.monotonic() + 60
    while [member["name"] for member in federation.run(rounds=1)["hospitals"]] != list(HOSPITALS):
        assert time.monotonic() < end, "the worker did not come back"


def test_a_revoked_hospital_is_out_at_once(federation):
    fedward("server", "revoke", federation.server, "hungarian")
    begun = time.monotonic()
    log = federation.server / "run" / "gateway.log"
    while "hungarian" not in log.read_text() or "403" not in log.read_text():
        assert time.monotonic() - begun < 60, "still let in a minute after"
        time.sleep(0.5)
    record = federation.run("--set", "limits.deadline_seconds=30")
    assert {name for row in record["rounds"] for name in row["answered"]} == {"cleveland", "va"}
