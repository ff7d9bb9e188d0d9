"""What ``fedward server check`` looks at: the federation's folder, its certificates and members, and the door for hospitals."""

import socket
import sqlite3
import ssl
from contextlib import closing
from datetime import datetime, timedelta
from functools import partial

from common import certificates, keys, preflight, relay
from common.errors import DataError, UsageError
from common.preflight import NEEDED_MB, Finding, Findings, fail, look, ok, warn
from server import coordinator, models, records
from server.members import Member
from server.provision import SETTINGS, Federation

AUTHORITY_EARLY = timedelta(days=365)
"""When the authority is that near its end, a new federation is to be made ready."""
MEMBER_EARLY = timedelta(days=14)
"""A member renews from 30 days before the end on; with less than this left, it has not been able to for two weeks."""


def check(federation: Federation, host: str, port: int) -> Findings:
    """Make all checks; host and port are where hospitals are to connect."""
    running = coordinator.running(federation) is not None
    return look(
        {
            "folder": partial(preflight.folder, federation.folder),
            "keys": partial(own_keys, federation),
            "authority": partial(authority, federation),
            "certificate": partial(certificate, federation, running=running),
            "names": partial(names, federation, port),
            "port": partial(door, federation, host, port),
            "disk": partial(preflight.disk, federation.folder),
            "memory": partial(preflight.memory, NEEDED_MB, NEEDED_MB, running=running),
            "versions": preflight.versions,
            "database": partial(database, federation),
            "runs": partial(runs, federation),
            "members": partial(members, federation),
        }
    )


def own_keys(federation: Federation) -> Finding:
    """Look whether the keys are those of their certificates, and the token is one."""
    path = federation.gateway_certificate
    for key, shown in (
        (federation.folder / "ca" / "key.pem", federation.authority),
        (federation.gateway_key, path.read_bytes() if path.exists() else None),
    ):
        private = keys.load_private(keys.read(key), "tls", str(key))
        if shown and keys.public_line(private) != certificates.tls_line(certificates.load(shown, str(key))):
            return fail(f"{key} is not the key of the certificate beside it; restore both from the same backup")
    federation.token()
    return ok("those of the authority and the gateway fit their certificates")


def authority(federation: Federation) -> Finding:
    """Look how long the authority still counts."""
    anew = "make a new federation, which every hospital has to join"
    return preflight.lifetime(federation.authority, AUTHORITY_EARLY, anew, anew)


def certificate(federation: Federation, *, running: bool) -> Finding:
    """Look whether the gateway's certificate is the authority's, for the hosts that are set, and in its time."""
    path, start = federation.gateway_certificate, "'fedward server start' makes it anew"
    if not path.exists():
        return warn(f"{path}: there is none; {start}")
    shown = certificates.load(path.read_bytes(), str(path))
    if not certificates.is_issued_by(shown, certificates.load(federation.authority, "authority")):
        return fail(f"{path}: not from the authority in {federation.folder / 'ca'}; delete it, {start}")
    if certificates.hosts_of(certificates.pem_of(shown)) != certificates.hosts(federation.hosts):
        return warn(f"{path}: for other hosts than {SETTINGS} has; {'stop, then ' if running else ''}{start}")
    found = preflight.lifetime(certificates.pem_of(shown), certificates.RENEW_BEFORE, start, start)
    # What a start mends keeps nothing from starting.
    return found if running or found.level != "FAIL" else warn(found.text)


def names(federation: Federation, port: int) -> Finding:
    """Look whether hospitals are told an address that the certificate is for, and that somebody will listen at."""
    if not federation.address:
        return warn(
            f"{SETTINGS} has no address, so that hospitals are not told where to connect; set it, and admit again"
        )
    host, _, told = federation.address.rpartition(":")
    if not certificates.hosts((host.strip("[]"),)) <= certificates.hosts(federation.hosts):
        return fail(
            f"hospitals are told {federation.address}, which is not among the hosts in {SETTINGS}; add it there"
        )
    if int(told) != port:
        return warn(
            f"hospitals are told port {told}, and {port} is listened at; unless it is forwarded: --listen 0.0.0.0:{told}"
        )
    return ok(f"hospitals are told {federation.address}, and the certificate is for it")


def door(federation: Federation, host: str, port: int) -> Finding:
    """Look whether the gateway can listen, or does."""
    try:
        relay.listen(host, port).close()
    except UsageError:
        if coordinator.running(federation) and _shows(federation, host, port):
            return ok(f"{host}:{port}: this federation's gateway listens")
        raise
    return ok(f"{host}:{port}: nobody else listens")


def database(federation: Federation) -> Finding:
    """Look whether Flower's database is whole."""
    path = federation.folder / "run" / "flower.db"
    if not path.exists():
        return ok("none yet")
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5.0)) as opened:
            (told,) = opened.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        told = str(error)
    told = " ".join(told.split())
    if told != "ok":
        return fail(f"{path}: {told}; stop, move flower.db* away, and start: hospitals are let in anew, runs resume")
    return ok(f"whole, {path.stat().st_size // 10**6} MB")


def runs(federation: Federation) -> Finding:
    """Look whether the runs that are not finished can go on."""
    waiting = []
    for path in sorted((federation.folder / "runs").glob(f"*/{models.NAME}")):
        if not (path.parent / records.RUN).exists():
            saved = models.load(path)
            models.history(path.parent, saved) if saved else None
            waiting.append(path.parent.name)
    return ok(f"not finished: {', '.join(waiting)}" if waiting else "none waits to go on")


def members(federation: Federation) -> Finding:
    """Look whose certificates end soon, or have."""
    admitted = [member for member in federation.members() if not member.revoked]
    late = [member for member in admitted if _left(member) < MEMBER_EARLY]
    told = f"{len(admitted)} admitted"
    if not late:
        return ok(told)
    ends = ", ".join(f"{member.name} ({max(_left(member).days, 0)} days)" for member in late)
    return warn(f"{told}; near their end: {ends}; have them start, and where none is left, send their request again")


def _left(member: Member) -> timedelta:
    try:
        return datetime.fromisoformat(member.ends) - certificates.now() if member.ends else timedelta.max
    except (ValueError, TypeError):
        raise DataError(f"members/{member.name}.json: ends: expected a time in UTC; admit the hospital again") from None


def _shows(federation: Federation, host: str, port: int) -> bool:
    """Say whether whoever listens there shows the gateway's certificate."""
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - where to look, not where to listen
    try:
        with socket.create_connection((here, port), 5.0) as line, _unchecked().wrap_socket(line) as secured:
            shown = secured.getpeercert(binary_form=True)
    except OSError:
        return False
    own = certificates.load(federation.gateway_certificate.read_bytes(), "certificate")
    return shown == ssl.PEM_cert_to_DER_cert(certificates.pem_of(own).decode())


def _unchecked() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
