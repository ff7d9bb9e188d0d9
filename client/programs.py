"""A hospital's programs: the way out, Flower's node, the stub that answers for it, and the worker behind the stub."""

import secrets
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from client import resident, tunnel
from client.site import Site
from common import keys, supervise
from common.errors import FedwardError, UsageError
from common.supervise import Program, Supervisor, free_port, until_stopped

DIRECT = {"NO_PROXY": tunnel.LOOPBACK, "no_proxy": tunnel.LOOPBACK}
"""For Flower's node and the stub, who talk to this machine alone, whatever proxy the hospital has."""


@dataclass(frozen=True)
class Place:
    """Where a hospital's programs meet on its machine: two ports of the loopback, and the secret of who may take up messages."""

    folder: Path
    tunnel: int
    node: int

    @property
    def secret(self) -> Path:
        """Return the file of the secret."""
        return self.folder / "secret"


def place_of(site: Site) -> Place:
    """Return the meeting place of a site, made when it is first asked for; its ports stay the same from then on."""
    folder = site.folder / "run"
    for name in ("run", "bundles"):
        (site.folder / name).mkdir(mode=0o700, exist_ok=True)
    ports, secret = folder / "ports", folder / "secret"
    if not ports.exists():
        keys.write(secret, secrets.token_bytes(32))
        keys.write(ports, f"{free_port()} {free_port()}".encode())
    first, second = ports.read_text().split()
    return Place(folder, int(first), int(second))


def start(site: Site) -> None:
    """Run a hospital's programs until this process is told to stop.

    Raises
    ------
    UsageError
        When it has not joined, or is running already.
    """
    if running(site):
        raise UsageError(f"{site.folder}: is running already")
    place = place_of(site)
    try:
        with supervise.marked(place.folder), Supervisor(programs(site, place)) as supervisor:
            until_stopped(supervisor, lambda: None)
    finally:
        _key_file(place).unlink(missing_ok=True)


def running(site: Site) -> int | None:
    """Return the process that runs the site's programs; None where there is none."""
    return supervise.running(site.folder / "run")


def programs(site: Site, place: Place) -> list[Program]:
    """Return what runs at a hospital, in the order in which it is started.

    Raises
    ------
    UsageError
        When the hospital has not joined, or does not know where its federation is.
    """
    joined = site.federation
    if joined is None or not joined.get("address"):
        raise UsageError(f"{site.folder}: does not know its federation yet; 'fedward hospital join' tells it")
    secret = {"FEDWARD_PASSPHRASE": site.passphrase} if site.passphrase else {}
    return [
        _ours(place, "worker", ["client.resident", str(site.folder)], secret),
        _ours(
            place,
            "tunnel",
            [
                "client.tunnel",
                str(site.folder),
                f"https://{joined['address']}",
                str(place.folder),
                "--port",
                str(place.tunnel),
            ],
            secret,
        ),
        _node(site, place),
        _ours(
            place,
            "stub",
            [
                "client.stub",
                f"127.0.0.1:{place.node}",
                str(place.secret),
                str(site.folder / resident.SOCKET),
                str(site.folder / "bundles"),
            ],
            DIRECT,
        ),
    ]


def _ours(place: Place, name: str, words: list[str], environment: dict[str, str] | None = None) -> Program:
    return Program(name, [sys.executable, "-P", "-m", *words], place.folder / f"{name}.log", environment or {})


def _node(site: Site, place: Place) -> Program:
    """Return Flower's own program, unmodified; it sees messages pass, and neither patients nor the key of the certificate."""
    key = _key_file(place)
    key.unlink(missing_ok=True)
    keys.write(key, site.node_key())
    words = [
        "--superlink",
        f"{tunnel.LOOPBACK}:{place.tunnel}",
        "--root-certificates",
        str(place.folder / tunnel.TRUST),
    ]
    words += [
        "--auth-supernode-private-key",
        str(key),
        "--isolation",
        "process",
        "--host",
        "127.0.0.1",
        "--port",
        str(place.node),
    ]
    words += ["--superexec-auth-secret-file", str(place.secret)]
    home = {"FLWR_HOME": str(place.folder / "flower")} | DIRECT
    return Program("node", [_flower("flower-supernode"), *words], place.folder / "node.log", home)


def _key_file(place: Place) -> Path:
    return place.folder / "node.key"


def _flower(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        raise FedwardError(f"{name} is not installed; install Flower with: pip install 'flwr==1.41.*'")
    return found
