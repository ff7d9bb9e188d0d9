"""How a hospital stands: its programs, whom it has joined, and what was asked last; read from files, so that it can be asked at any time."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from client import programs, resident, tunnel
from client.site import Site
from common import certificates, supervise

LATEST = 1 << 18
"""Bytes at the end of the audit log in which the last request is looked for."""
FRESH = 90.0
"""Seconds for which a sign of life of the coordinator counts; the node asks for one every 30 s."""
OUTCOMES = ("sent", "refused", "failed", "replay", "trained", "allowed", "asked")


def facts(site: Site) -> dict[str, Any]:
    """Return all of it, for JSON; None for what there is not."""
    run = site.folder / programs.RUN
    joined = site.federation or {}
    return {
        "name": site.name,
        "task": site.task,
        "running": supervise.running(run) is not None,
        "programs": supervise.programs(run),
        "federation": joined.get("federation"),
        "address": joined.get("address"),
        "connected": supervise.running(run) is not None and _since(run / tunnel.REACHED) < FRESH,
        "certificate_days": _days(site.certificate),
        "key": _key(site.certificate),
        "last": last_request(site.folder / resident.AUDIT),
    }


def text(facts: dict[str, Any]) -> str:
    """Write it for people."""
    lines = [f"{facts['name']}: {'running' if facts['running'] else 'not running'}"]
    if facts["federation"]:
        line = "connected" if facts["connected"] else "not connected"
        lines.append(f"  joined    {facts['federation']} at {facts['address'] or 'an address not known yet'}: {line}")
    else:
        lines.append("  joined    no federation")
    if facts["certificate_days"] is not None:
        lines.append(f"  valid     the certificate, for {facts['certificate_days']} days")
    if facts["key"]:
        lines.append(f"  key       {facts['key']}")
    lines += [f"  program   {name:12} process {number}" for name, number in facts["programs"].items()]
    last = facts["last"]
    if last:
        code = f" ({last['code']})" if last["code"] else ""
        round_ = f", round {last['round']}" if last["round"] else ""
        lines.append(f"  last      {last['time'][:19]}Z  {last['kind']}{round_}: {last['outcome']}{code}")
    return "\n".join(lines)


def last_request(path: Path) -> dict[str, Any] | None:
    """Return what was asked last and what became of it, as the audit log says; whether the log is whole, `fedward hospital audit verify` says."""
    events = list(_latest(path))
    asked = next((line for line in reversed(events) if "message" in line["fields"]), None)
    if asked is None:
        return None
    same = [line for line in events if line["fields"].get("message") == asked["fields"]["message"]]
    outcome = min(same, key=lambda line: OUTCOMES.index(line["event"]))
    told = {name: asked["fields"].get(name) for name in ("kind", "run", "round")}
    return {"time": asked["time"], **told, "outcome": outcome["event"], "code": outcome["fields"].get("code")}


def _latest(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the last whole lines of the log that are of a request."""
    try:
        with path.open("rb") as file:
            begin = max(file.seek(0, os.SEEK_END) - LATEST, 0)
            file.seek(begin)
            lines = file.read().split(b"\n")[1 if begin else 0 : -1]
    except OSError:
        return
    for line in lines:
        with suppress(ValueError, KeyError, TypeError):
            content = json.loads(line)
            if content["event"] in OUTCOMES and isinstance(content["fields"], dict):
                yield {"time": str(content["time"]), "event": content["event"], "fields": content["fields"]}


def _since(path: Path) -> float:
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except OSError:
        return float("inf")


def _key(certificate: Path) -> str | None:
    """Return the fingerprint of the hospital's key, which others may name beside it in their policy."""
    try:
        return certificates.key_fingerprint(certificates.load(certificate.read_bytes(), str(certificate)))
    except OSError:
        return None


def _days(certificate: Path) -> int | None:
    try:
        return certificates.expires_in(certificate.read_bytes()).days
    except OSError:
        return None
