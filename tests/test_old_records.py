"""What an earlier release wrote, this one reads: after an upgrade nothing that was kept is lost.

``tests/kept`` has a folder for each release, written once by ``python -m tests.test_old_records tests/kept/RELEASE`` and never changed. Patients are made up.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client import policy
from client.audit import AuditLog
from client.data import vault
from client.data.split import PARTS, Parts
from client.ledger import Ledger, Question
from common import archive, chain
from common.config import Choice
from common.privacy.accountant import epsilon
from common.privacy.events import Event
from common.tasks import task_of
from server import models
from server.records import sha256

KEPT = Path(__file__).with_name("kept")
TASK, KEY, SECRET = task_of(Choice("heart")), bytes(range(32)), "not a secret"
SIGNING = Ed25519PrivateKey.from_private_bytes(KEY)
KIND = archive.Kind("site", "site.toml")
EVENT, DELTA = Event(2.0, 0.1, 20), 1e-5
SETTINGS = {"rounds": 3, "evaluation": {"every": 0}}
AUDITED = [("asked", {"kind": "train", "round": 1}), ("allowed", {"kind": "train", "round": 1})]


def question(number):
    return Question("run", number, b"asked", "study", "heart", "record")


def make(folder, federation, make_patients):
    """Write one of each."""

    def stop(record):
        if record.round == 3:
            raise KeyboardInterrupt

    folder.mkdir(parents=True)
    (folder / "run").mkdir()
    with pytest.raises(KeyboardInterrupt):
        federation.run(SETTINGS, folder=folder / "run", watch=stop)
    with AuditLog(folder / "audit.jsonl", SIGNING, every=2) as log:
        for event, fields in AUDITED:
            log.append(event, fields)
    ledger = Ledger(folder / "ledger.sqlite")
    for number in (1, 2):
        ledger.reserve(question(number), EVENT)
    ledger.close()
    parts = {name: make_patients(5, 1) for name in PARTS}
    vault.seal(folder / "heart.sealed", Parts(parts, {name: np.arange(5) for name in parts}), TASK, KEY, "east")
    (folder / "site.toml").write_text(policy.template("east", "heart", "heart.csv"), encoding="utf-8")
    (folder / "site").mkdir()
    shutil.copy(folder / "site.toml", folder / "site")
    archive.write(folder / "site", folder / "site.backup", KIND, "east", SECRET)
    shutil.rmtree(folder / "site")


@pytest.fixture(params=sorted(path.name for path in KEPT.iterdir()))
def kept(request, tmp_path):
    """Give a release's files, to be read and written."""
    return shutil.copytree(KEPT / request.param, tmp_path / "kept")


@pytest.mark.fault(19, passes_when="a run that an earlier release began goes on from its last whole round")
def test_a_run_under_way_goes_on(kept, federation):
    before = models.history(kept / "run", models.load(kept / "run" / models.NAME))
    assert [record["round"] for record in before] == [1, 2]
    outcome = federation.run(SETTINGS, folder=kept / "run")
    after = models.history(kept / "run", models.load(kept / "run" / models.NAME))
    assert after[:2] == before
    assert [record["round"] for record in after] == [1, 2, 3]
    assert len(sha256(outcome.model.weights)) == 64


@pytest.mark.fault(
    19,
    passes_when="an audit log, a ledger, sealed patients, a policy and a backup of an earlier release are read and added to",
)
class TestASite:
    def test_its_audit_log_is_whole_and_goes_on(self, kept):
        path = kept / "audit.jsonl"
        assert chain.verify(path, SIGNING.public_key(), every=2) is None
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        told = [(line["event"], line["fields"]) for line in lines if line["event"] != "checkpoint"]
        assert told == AUDITED
        with AuditLog(path, SIGNING, every=2) as log:
            log.append("refused", {"kind": "train", "code": "bundle"})
        assert chain.verify(path, SIGNING.public_key(), every=2) is None

    def test_its_ledger_forgets_nothing(self, kept):
        ledger = Ledger(kept / "ledger.sqlite")
        assert ledger.spent(DELTA) == epsilon([EVENT] * 2, DELTA)
        ledger.reserve(question(3), EVENT)
        assert ledger.spent(DELTA) == epsilon([EVENT] * 3, DELTA)
        ledger.close()

    def test_its_patients_are_those_that_were_sealed(self, kept, make_patients):
        opened = vault.unseal(kept / "heart.sealed", TASK, KEY, "east")
        for name in PARTS:
            for column, values in make_patients(5, 1).items():
                np.testing.assert_array_equal(opened.records[name][column], values)

    def test_its_policy_and_its_backup(self, kept, tmp_path):
        rules = policy.read_policy(kept / "site.toml")
        assert (rules.site.name, rules.site.task) == ("east", "heart")
        assert archive.restore(kept / "site.backup", tmp_path / "new", KIND, SECRET) == "east"
        assert (tmp_path / "new" / "site.toml").read_bytes() == (kept / "site.toml").read_bytes()


if __name__ == "__main__":
    from tests import conftest

    hospitals = [conftest.make_hospital(name, 12, seed) for seed, name in enumerate(conftest.NAMES)]
    make(Path(sys.argv[1]), conftest.Federation(conftest.Worker(), hospitals), conftest.patients)
