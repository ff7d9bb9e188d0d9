"""The figures of a hospital's programs, for whoever watches its machine: counts and times from the audit log, never a patient's value."""

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from client import tunnel
from client.audit import DAY
from client.site import Site
from common import certificates
from common.errors import FedwardError
from common.health import Figure


class Tally:
    """Counts what stands in an audit log; asked again, it reads only what was written since."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begin()

    def _begin(self) -> None:
        self._read = 0
        self.events: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.sent_bytes = 0
        self._trained: list[tuple[float, float]] = []

    def trained(self) -> tuple[int, float]:
        """Return how many rounds were trained in the last 24 hours, and for how many seconds."""
        since = time.time() - DAY
        self._trained = [entry for entry in self._trained if entry[0] >= since]
        return len(self._trained), sum(seconds for _, seconds in self._trained)

    def update(self) -> None:
        """Read on. A log that was moved away and begun anew is counted anew."""
        try:
            with self._path.open("rb") as file:
                if file.seek(0, 2) < self._read:
                    self._begin()
                file.seek(self._read)
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # it is being written
                    self._read += len(line)
                    self._count(line)
        except FileNotFoundError:
            self._begin()

    def _count(self, line: bytes) -> None:
        try:
            content: Mapping[str, Any] = json.loads(line)
            event, fields = str(content["event"]), content["fields"]
            if event == "trained":
                when = datetime.fromisoformat(content["time"]).timestamp()
                self._trained.append((when, float(fields.get("seconds") or 0.0)))
            self.sent_bytes += int(fields.get("bytes") or 0) if event == "sent" else 0
        except (ValueError, KeyError, TypeError, AttributeError):
            return  # whether the log is whole, 'fedward hospital audit verify' tells
        self.events[event] += 1
        if event in ("refused", "replay"):
            self.refused[str(fields.get("code", event))] += 1
        if event == "failed":
            self.failed[str(fields.get("code", event))] += 1


def figures(site: Site, tally: Tally) -> Iterator[Figure]:
    """Return the figures of a hospital; what cannot be had is left out."""
    tally.update()
    rounds, seconds = tally.trained()
    events = {what: float(tally.events[what]) for what in ("asked", "allowed", "sent")}
    yield Figure(
        "fedward_requests_total", "counter", "Requests in the audit log, by what became of them.", events, "what"
    )
    yield Figure("fedward_refusals_total", "counter", "Requests refused, by the rule's code.", tally.refused, "code")
    yield Figure("fedward_failures_total", "counter", "Requests that failed, by code.", tally.failed, "code")
    yield Figure("fedward_sent_bytes_total", "counter", "Bytes of answers sent.", {"": tally.sent_bytes})
    yield Figure("fedward_trained_rounds", "gauge", "Rounds trained in the last 24 hours.", {"": rounds})
    yield Figure("fedward_trained_seconds", "gauge", "Seconds of training in the last 24 hours.", {"": seconds})
    with suppress(OSError):
        since = max(0.0, time.time() - (site.folder / "run" / tunnel.REACHED).stat().st_mtime)
        yield Figure(
            "fedward_coordinator_seconds", "gauge", "Seconds since the coordinator last answered.", {"": since}
        )
    with suppress(FedwardError, OSError):
        left = certificates.expires_in(site.certificate.read_bytes()).total_seconds()
        yield Figure("fedward_certificate_seconds", "gauge", "Seconds that the certificate still counts.", {"": left})
