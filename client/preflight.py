"""What ``fedward hospital check`` looks at: the folder, the patients, the policy, and all of the way to the coordinator."""

import asyncio
import re
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.metadata import version
from typing import TYPE_CHECKING

import httpx

from client import policy, programs, resident, tunnel
from client.site import REQUEST, Site
from common import certificates, chain, joining, keys, preflight
from common.errors import DataError, FedwardError
from common.preflight import CLOCK, HEALTH, NEEDED_MB, RELEASE, Finding, Findings, fail, look, ok, warn

if TYPE_CHECKING:
    from client.policy import SitePolicy

LEAST_LIMIT_MB = 600
"""What the worker takes before it has seen a patient: TensorFlow alone 560 MB."""
TIMES = 4
"""How often the coordinator is asked for its time; the first answer waits for the handshake."""
PATIENCE = httpx.Timeout(10.0)
OFF_SECONDS, AHEAD_SECONDS, BEHIND_SECONDS = 2.0, 5.0, 280.0
"""How far off a clock gives concern, and from where on Flower refuses its node: 5 s ahead, and behind 305 s without those that a question waits."""
JUMP_SECONDS = 0.5
"""How far two measurements of a clock may contradict each other: as much as a time server moves it at once without notice."""

_TIME = re.compile(r"[0-9]{1,12}\.[0-9]{1,6}")


def check(site: Site, now: Callable[[], float] = time.time) -> Findings:
    """Make all checks; ``now`` is this computer's clock, in seconds since 1970."""
    found = look(
        {
            "folder": partial(preflight.folder, site.folder),
            "keys": partial(own_keys, site),
            "policy": partial(settings, site),
            "data": partial(data, site),
            "audit log": partial(audit_log, site),
            "socket": partial(socket_path, site),
            "disk": partial(preflight.disk, site.folder),
            "memory": partial(memory, site),
            "versions": versions,
            "joined": partial(joined, site),
        }
    )
    if found["joined"].level == "FAIL":
        return found
    way = cache(partial(Way.of, site))
    answers = cache(lambda: asyncio.run(way().questioned(site, now)))
    found |= look({"rules": partial(rules, site), "certificate": partial(certificate, site)})
    steps = {
        "proxy": lambda: way().proxied(),
        "name": lambda: way().named(),
        "line": lambda: way().connected(),
        "gateway": lambda: gateway(way(), site, answers),
        "release": lambda: release(answers()[0]),
        "clock": lambda: clock(answers()),
    }
    return found | look(steps, until_failure=True)


def own_keys(site: Site) -> Finding:
    """Look whether all keys open, and are those that the coordinator was told of."""
    request = joining.check_request(joining.read_document(site.folder / REQUEST), REQUEST)
    node = keys.load_private(site.node_key(), "node", "node.key")
    lines = {"tls": request.tls_key, "node": request.node_key, "audit": request.audit_key}
    for name, key in {"tls": site.tls_key(), "node": node, "audit": site.audit_key()}.items():
        if keys.public_line(key) != lines[name]:
            return fail(f"keys/{name}.key is not the one of {REQUEST}; restore both from the same backup")
    site.vault_key()
    return ok("all four open" + ("" if site.passphrase else ", without a passphrase"))


def settings(site: Site) -> Finding:
    """Look whether the policy can be read, and is of this site."""
    found = _policy(site)
    if (found.site.name, found.site.task) != (site.name, site.task):
        return fail(
            f"site.toml is of {found.site.name!r} for {found.site.task!r}, and the keys are of {site.name!r} for {site.task!r}; write these there"
        )
    return ok(f"{resident.POLICY} is of {site.name!r} for the task {site.task!r}")


def data(site: Site) -> Finding:
    """Look whether the sealed patients open, fit the task as it is installed, and suffice."""
    from client.data import vault
    from common.config import Choice
    from common.tasks import task_of
    from common.tasks.task import rows_of

    path, limits, task = resident.sealed(site.folder, site.task), _policy(site).limits, task_of(Choice(site.task))
    records = vault.unseal(path, task, site.vault_key(), site.name).records
    train, test = rows_of(records["train"]), rows_of(records["test"])
    told = f"{train} patients to train with, {test} to test"
    if train < limits.min_patients:
        return fail(f"{told}; below limits.min_patients = {limits.min_patients} every round is refused")
    for part in ("train", "test"):
        kinds = set(task.classify(records[part]).tolist())
        missing = [name for number, name in enumerate(task.classes) if number not in kinds]
        if missing:
            return warn(
                f"{told}; in the part {part!r} nobody is of class {', '.join(missing)}: is the label read rightly?"
            )
    return ok(told)


def audit_log(site: Site) -> Finding:
    """Look whether every line of the log is as it was written."""
    path = site.folder / resident.AUDIT
    if not path.exists():
        return ok("none yet")
    broken = chain.verify(path, site.audit_key().public_key())
    if broken and broken.how == "torn tail":
        return warn(f"{path}: {broken}; the next start moves them to a file of their own")
    if broken:
        return fail(f"{path}: {broken}; move the file to a safe place as evidence, then start")
    return ok(f"{len(path.read_bytes().splitlines())} lines, none of them changed")


def socket_path(site: Site) -> Finding:
    """Look whether the path of the worker's socket is short enough."""
    path = (site.folder / resident.SOCKET).absolute()
    with socket.socket(socket.AF_UNIX) as line:
        try:
            # One as long that does not exist: the worker's own would take a connection for a message.
            line.connect(str(path.with_suffix(".none")))
        except FileNotFoundError:
            return ok(f"its path has {len(str(path))} letters")
        except OSError as error:
            return fail(f"{path}: {error}; move the site to a folder whose path is shorter")
    raise DataError(f"{path.with_suffix('.none')}: somebody listens here; remove it")


def memory(site: Site) -> Finding:
    """Look whether the worker may take, and can have, what it needs."""
    limit = _policy(site).limits.memory_mb
    if limit < LEAST_LIMIT_MB:
        return fail(f"limits.memory_mb is {limit}, and the worker takes {LEAST_LIMIT_MB} before it begins; raise it")
    return preflight.memory(NEEDED_MB, max(limit, NEEDED_MB), running=programs.running(site) is not None)


def versions() -> Finding:
    """Look for Flower, and for its program."""
    found = preflight.versions()
    programs.flower_program("flower-supernode")
    return found


def joined(site: Site) -> Finding:
    """Look whether the hospital has joined a federation, and knows where that is."""
    federation = site.federation
    if federation is None:
        return fail(
            f"in no federation yet; have {REQUEST} admitted, then: fedward hospital join {site.folder} admitted.json"
        )
    if not federation.get("address"):
        return fail(
            "the coordinator's address is not known; have them set it in federation.toml, admit this hospital again, and join again"
        )
    return ok(f"{federation['federation']!r} at {federation['address']}")


def rules(site: Site) -> Finding:
    """Hold the most harmless run, with the task's own settings and the code that is installed here, against the policy."""
    from common import deployment, messages
    from common.config import Choice
    from common.tasks import read_run

    found = _policy(site)
    cohort = (
        tuple({*(entry.partition("@")[0] for entry in found.allow.cohort), site.name}) if found.allow.cohort else ()
    )
    asked = policy.Asked(
        messages.STATISTICS,
        Choice(site.task),
        read_run({"task": {"name": site.task}}),
        str((site.federation or {})["fingerprint"]),
        deployment.bundle().sha256,
        round=1,
        cohort=cohort,
        hospitals=len(cohort) or found.limits.min_cohort,
        rows=_rows(site, found),
    )
    broken = _broken(found, (asked, replace(asked, kind=messages.TRAIN)))
    if not broken:
        return ok("a run with the task's own settings and the release installed here is allowed")
    told = ", ".join(f"{code} ({setting})" for code, setting in broken.items())
    mend = [f"change {resident.POLICY}"] if broken.keys() - {"bundle"} else []
    mend += (
        [f"look at the code and approve it: fedward hospital approve {site.folder} --own"] if "bundle" in broken else []
    )
    return warn(f"even a run with the task's own settings would be refused: {told}; {', and '.join(mend)}")


def certificate(site: Site) -> Finding:
    """Look whether the hospital's certificate is its own, from the federation's authority, and in its time."""
    authority, own = (certificates.load(path.read_bytes(), str(path)) for path in (site.authority, site.certificate))
    again = f"have {REQUEST} admitted again, and join again"
    if certificates.fingerprint(certificates.pem_of(authority)) != (site.federation or {})["fingerprint"]:
        return fail(f"authority.pem is not the authority that this hospital joined; {again}")
    if not certificates.is_issued_by(own, authority):
        return fail(f"certificate.pem is not from the federation's authority; {again}")
    if certificates.tls_line(own) != keys.public_line(site.tls_key()):
        return fail(f"certificate.pem is not for keys/tls.key; {again}")
    soon = "it is renewed while the hospital runs, and run/tunnel.log says where that failed"
    return preflight.lifetime(certificates.pem_of(own), certificates.RENEW_BEFORE, soon, again)


@dataclass(frozen=True)
class Way:
    """The way to the gateway, and the proxy on it where there is one."""

    gateway: str
    proxy: httpx.Proxy | None

    @classmethod
    def of(cls, site: Site) -> "Way":
        """Return the way that the tunnel of a site takes."""
        gateway = f"https://{(site.federation or {})['address']}"
        return cls(gateway, tunnel.proxy_for(httpx.URL(gateway).netloc.decode()))

    @property
    def first(self) -> tuple[str, int]:
        """Return host and port that this computer itself connects to."""
        url = self.proxy.url if self.proxy else httpx.URL(self.gateway)
        return url.host, url.port or {"http": 80, "socks5": 1080}.get(url.scheme, 443)

    def proxied(self) -> Finding:
        """Say which proxy is used."""
        return ok(f"{self.proxy.url}, as the environment says" if self.proxy else "none")

    def named(self) -> Finding:
        """Look up the name."""
        host, port = self.first
        try:
            found = sorted({str(row[4][0]) for row in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)})
        except (OSError, UnicodeError) as error:
            return fail(f"{host}: no address is found for this name ({error}); mend the name, or this network's DNS")
        return ok(f"{host} is {'an address' if host in found else ', '.join(found)}")

    def connected(self) -> Finding:
        """Open a connection."""
        host, port = self.first
        try:
            socket.create_connection((host, port), timeout=10.0).close()
        except OSError as error:
            reason = error.strerror or error
            return fail(f"{host}:{port}: no connection ({reason}); is it running, and does the firewall let this out?")
        return ok(f"{host}:{port} takes connections")

    async def questioned(self, site: Site, now: Callable[[], float]) -> list["Answer"]:
        """Ask the gateway how it is, with the hospital's certificate, some times over one connection."""
        async with tunnel.client_of(self.gateway, site.tls_context()) as client:
            return [await _asked(client, self.gateway + HEALTH, now) for _ in range(TIMES)]


@dataclass(frozen=True)
class Answer:
    """What the gateway answered to a question that was asked at ``asked`` by this computer's clock and took ``seconds``."""

    response: httpx.Response
    asked: float
    seconds: float

    @property
    def ahead(self) -> tuple[float, float]:
        """Return between which bounds, in seconds, this clock is ahead of the coordinator's, who answered at some moment in between."""
        theirs = float(self.response.headers[CLOCK])
        return self.asked - theirs, self.asked + self.seconds - theirs


async def _asked(client: httpx.AsyncClient, url: str, now: Callable[[], float]) -> Answer:
    asked, begun = now(), time.monotonic()
    response = await client.get(url, timeout=PATIENCE)
    return Answer(response, asked, time.monotonic() - begun)


def gateway(way: Way, site: Site, answers: Callable[[], Sequence[Answer]]) -> Finding:
    """Look whether the gateway is the federation's own and knows this hospital."""
    try:
        responses = [answer.response for answer in answers()]
    except httpx.TransportError as error:
        advice = "is that the gateway's port, and does nothing in between open the TLS?"
        return fail(tunnel.explained(error, way.gateway, site.certificate.read_bytes(), advice))
    if any(response.status_code == httpx.codes.FORBIDDEN for response in responses):
        return fail(f"{way.gateway} {tunnel.REFUSED}")
    if not all(response.is_success and _TIME.fullmatch(response.headers.get(CLOCK, "")) for response in responses):
        return fail(f"{way.gateway} does not answer as a gateway of this release does; have the coordinator upgrade it")
    return ok(f"{way.gateway} is the federation's, and this hospital a member")


def release(answer: Answer) -> Finding:
    """Hold the coordinator's release against the one that is installed here."""
    ours, theirs = version("fedward"), answer.response.headers.get(RELEASE, "")
    if ours == theirs:
        return ok(f"Fedward {ours} on both sides")
    known = theirs if re.fullmatch(r"[0-9][0-9a-z.+]{0,23}", theirs) else "another release"
    return warn(f"the coordinator runs Fedward {known}, this is {ours}; install the same on both sides")


def clock(answers: Sequence[Answer]) -> Finding:
    """Look how far this clock is ahead of the coordinator's."""
    low, high = max(answer.ahead[0] for answer in answers), min(answer.ahead[1] for answer in answers)
    if low - high > JUMP_SECONDS:
        return fail(f"this clock jumped by {low - high:.1f} s while it was looked at; let one time server alone set it")
    ahead = (low + high) / 2
    told = f"{abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} the coordinator's"
    if ahead >= AHEAD_SECONDS or ahead <= -BEHIND_SECONDS:
        return fail(
            f"{told}; Flower refuses a node that is {AHEAD_SECONDS:g} s ahead, or 5 minutes behind: set this clock by a time server"
        )
    return ok(told) if abs(ahead) < OFF_SECONDS else warn(f"{told}; set this clock by a time server")


def _policy(site: Site) -> "SitePolicy":
    return policy.read_policy(site.folder / resident.POLICY)


def _broken(found: "SitePolicy", requests: Sequence[policy.Asked]) -> dict[str, str]:
    """Return the rules, by their codes, that speak against one of these requests, and the setting of each."""
    return {
        rule.code: rule.setting
        for asked in requests
        for rule in policy.rules()
        if (not rule.kinds or asked.kind in rule.kinds) and rule.objection(found, asked)
    }


def _rows(site: Site, found: "SitePolicy") -> int:
    """Return how many patients there are to train with; where that is not known, enough."""
    from client.data import vault

    try:
        return int(vault.header_of(resident.sealed(site.folder, site.task)).counts["train"]["rows"])
    except FedwardError:
        return found.limits.min_patients
