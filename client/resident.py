"""The resident worker of a real hospital: ``python -m client.resident SITE``, started and kept by ``fedward hospital start``.

It alone holds the patients and the hospital's keys, and answers on a Unix socket. ``FEDWARD_PASSPHRASE`` in the environment opens sealed keys.
"""

import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

from client import ledger, service
from client.app import Seat, guarded
from client.audit import LONGEST, AuditLog
from client.data import vault
from client.data.deidentify import keyed
from client.gate import Gate
from client.keeping import FOLDER, Sealed
from client.ledger import Budget, Ledger
from client.policy import read_policy
from client.private import shared_noise
from client.secagg import InMemory, Shield
from client.site import Site, open_site
from client.worker import Worker
from common import backend, flower
from common.attempts import Attempts
from common.config import Choice
from common.errors import FedwardError
from common.tasks import task_of

SOCKET, AUDIT, POLICY = "run/worker.sock", "audit.jsonl", "site.toml"
HOUR = 3600.0
ANSWER_SECONDS = LONGEST
"""How long one answer may take before the worker is ended and started anew."""

_log = logging.getLogger("fedward.worker")


def sealed(folder: Path, task: str) -> Path:
    """Return where a site keeps its patients."""
    return folder / "data" / f"{task}.sealed"


def open_ledger(folder: Path) -> Ledger:
    """Open a site's ledger; the budget is the policy's as it stands at every charge."""

    def budget() -> Budget:
        privacy = read_policy(folder / POLICY).privacy
        return Budget(privacy.budget, privacy.delta, privacy.epsilon if privacy.minimum == "dp" else math.inf)

    return Ledger(folder / ledger.NAME, budget)


def serve(site: Site) -> None:
    """Open the patients in memory and answer for ever.

    Raises
    ------
    FedwardError
        When the hospital has not joined, or its policy, keys or data cannot be read.
    """
    policy = read_policy(site.folder / POLICY)
    if site.federation is None:
        raise FedwardError(f"{site.folder}: has not joined a federation; 'fedward hospital join' does")
    hospital = vault.unseal(
        sealed(site.folder, site.task), task_of(Choice(site.task)), site.vault_key(), site.name
    ).hospital(site.name)
    hospital = replace(hospital, ledger=open_ledger(site.folder), least=policy.limits.min_records)
    keeping = Sealed(site.folder / FOLDER, site.vault_key(), site.name)
    for forget in (hospital.ledger.forget, keeping.forget):
        _in_background(HOUR, "what is old was not erased", forget)
    backend.start(policy.limits.threads)
    _end_above(policy.limits.memory_mb)
    with AuditLog(site.folder / AUDIT, site.audit_key()) as audit:
        audit.append("started", {"version": version("fedward")})
        shield = Shield(site.identity, InMemory(), partial(shared_noise, hospital))
        seat = Seat(Worker(), hospital, keeping=keeping)
        fingerprint, cells = str(site.federation["fingerprint"]), keyed(site.vault_key(), "small cells", b"")
        gate = Gate(hospital, seat, site.folder / POLICY, audit, fingerprint, shield, cells)
        ready = partial(print, "ready", flush=True)
        service.serve(site.folder / SOCKET, guarded(gate), ready, ANSWER_SECONDS, policy.site.stub_group)


def _end_above(megabytes: int) -> None:
    """End this process when it takes more memory than the policy allows; it is started again, and the request counts as failed."""

    def watch() -> None:
        if _resident_mb() > megabytes:
            _log.error("this worker took more than limits.memory_mb = %d; it ends", megabytes)
            os._exit(1)

    _in_background(0.2, "the memory of this worker was not measured", watch)


def _in_background(seconds: float, failed: str, work: Callable[[], None]) -> None:
    """Do something now and every so many seconds, as long as this process lives; that it ``failed`` is logged, and it is tried again sooner or later."""
    attempts = Attempts(failed)

    def repeat() -> None:
        while True:
            time.sleep(seconds if attempts.make(work) else attempts.wait())

    threading.Thread(target=repeat, daemon=True).start()


def _resident_mb() -> float:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0.0  # no such file but on Linux; the service's own limit is what remains there
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> int:
    """Serve the site of the command line."""
    flower.check_version()
    flower.quiet()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        serve(open_site(Path(sys.argv[1]), os.environ.pop("FEDWARD_PASSPHRASE", None)))
    except FedwardError as error:
        _log.error("%s", error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
