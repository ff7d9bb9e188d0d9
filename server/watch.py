"""The figures of a coordinator's programs, for whoever watches its machine."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from common import certificates
from common.health import Figure
from server import models, records
from server.provision import Federation


def figures(federation: Federation, online: Callable[[], Sequence[str] | None]) -> Iterator[Figure]:
    """Return the figures of a federation; ``online`` are the hospitals that are connected, None where that is not known."""
    members, here = federation.survey()[0], online()
    revoked = sum(member.revoked is not None for member in members)
    counts = {"admitted": len(members) - revoked, "revoked": revoked}
    counts |= {} if here is None else {"connected": len(here)}
    yield Figure("fedward_hospitals", "gauge", "Hospitals, by how they stand.", counts, "state")
    ends = {"gateway": federation.gateway_certificate.read_bytes(), "authority": federation.authority}
    left = {name: certificates.expires_in(pem).total_seconds() for name, pem in ends.items()}
    yield Figure(
        "fedward_certificate_seconds", "gauge", "Seconds that a certificate still counts.", left, "certificate"
    )
    rounds = unfinished(federation.folder / "runs")
    yield Figure(
        "fedward_run_rounds", "gauge", "Whole rounds of the run that goes on, or was interrupted last.", rounds, "run"
    )


def unfinished(runs: Path) -> dict[str, float]:
    """Return how many whole rounds the newest run has that is not finished; empty where there is none."""
    found = [path for path in runs.glob(f"*/{models.HISTORY}") if not (path.parent / records.RUN).exists()]
    newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
    return {newest.parent.name: newest.read_bytes().count(b"\n")} if newest else {}
