"""A hospital's programs: the way out, Flower's node, the stub that answers for it, and the worker behind the stub."""

import os
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from client import bundles, resident, tunnel, watch
from client.policy import read_policy
from client.site import Site
from common import health, keys, supervise
from common.errors import FedwardError, UsageError
from common.supervise import Program, Supervisor, free_port, until_stopped

DIRECT = {"NO_PROXY": tunnel.LOOPBACK, "no_proxy": tunnel.LOOPBACK}
"""For Flower's node and the stub, who talk to this machine alone, whatever proxy the hospital has."""

RUN, BUNDLES = "run", bundles.FOLDER
PORTS, SECRET = "ports", "secret"
"""Within ``run``."""


@dataclass(frozen=True)
class Place:
    """Where a hospital's programs meet on its machine: two ports of the loopback, and the secret of who may take up messages."""

    folder: Path
    tunnel: int
    node: int

    @property
    def secret(self) -> Path:
        """Return the file of the secret."""
        return self.folder / SECRET


def place_of(site: Site) -> Place:
    """Return the meeting place of a site, made when it is first asked for; its ports stay the same from then on."""
    folder = site.folder / RUN
    for name in (RUN, BUNDLES):
        (site.folder / name).mkdir(mode=0o700, exist_ok=True)
    keys.complete(folder, {SECRET: lambda: secrets.token_bytes(32), PORTS: _two_ports})
    first, second = (folder / PORTS).read_text().split()
    return Place(folder, int(first), int(second))


def _two_ports() -> bytes:
    return f"{free_port()} {free_port()}".encode()


def start(site: Site, tell: Callable[[str], object], *, stub: bool = True, health_port: int | None = None) -> None:
    """Run a hospital's programs until this process is told to stop; ``tell`` gets one line as soon as they are up. Without ``stub``, that one is another user's.

    Raises
    ------
    UsageError
        When it has not joined, or is running already.
    """
    place, group = place_of(site), read_policy(site.folder / resident.POLICY).site.stub_group
    socket, reached = site.folder / resident.SOCKET, place.folder / tunnel.REACHED
    advice = f"; 'fedward hospital stop {site.folder}' ends it"
    with (
        supervise.stopping() as stopped,
        supervise.marked(place.folder, advice) as note,
        node_key(site, place) as key,
    ):
        _share(site, place, group)
        for sign in (socket, reached):
            sign.unlink(missing_ok=True)
        supervisor = Supervisor(programs(site, place, key, stub=stub))
        figures = partial(watch.figures, site, watch.Tally(site.folder / resident.AUDIT))
        with health.answering(place.folder, supervisor.states, figures, health_port), supervisor:
            up: list[str] = []

            def look() -> None:
                note(supervisor.pids())
                if not up and reached.exists() and socket.exists():
                    up.append(_connected(site))
                    tell(up[0])

            until_stopped(supervisor, look, stopped=stopped)


def _connected(site: Site) -> str:
    joined = site.federation or {}
    return f"connected to {joined['federation']!r} at {joined['address']} as {site.name!r}"


def _share(site: Site, place: Place, group: str) -> None:
    """Keep what is in the folder to this user, but for what a stub needs: that the members of its group have too."""
    for path in (*site.folder.iterdir(), *place.folder.iterdir()):
        if not path.is_symlink():
            path.chmod(stat.S_IMODE(path.stat().st_mode) & 0o700)
    if group:
        for path, mode in (
            (place.secret, 0o640),
            (place.folder / PORTS, 0o640),
            (place.folder, 0o710),
            (site.folder / BUNDLES, 0o770),
            (site.folder, 0o710),
        ):
            keys.share(path, group, mode)


def serve_stub(folder: Path, tell: Callable[[str], object]) -> None:
    """Become the stub of a site whose other programs run as another user; does not return.

    Raises
    ------
    UsageError
        When this user cannot reach what a stub needs.
    """
    run = folder / RUN
    try:
        port = (run / PORTS).read_text().split()[1]
        (run / SECRET).read_bytes()
    except (OSError, IndexError):
        raise UsageError(
            f"{run}: this user cannot read what a stub needs; name a group of this user in site.toml (site.stub_group),"
            f" start the hospital with: fedward hospital start {folder} --without-stub"
        ) from None
    tell(f"answering for {folder}")
    os.execve(sys.executable, _stub(folder, int(port)), os.environ | DIRECT)  # noqa: S606


def running(site: Site) -> int | None:
    """Return the process that runs the site's programs; None where there is none."""
    return supervise.running(site.folder / RUN)


def programs(site: Site, place: Place, key: Path, *, stub: bool = True) -> list[Program]:
    """Return what runs at a hospital, in the order in which it is started; ``key`` is of `node_key`, and ``stub`` for the last of it.

    Raises
    ------
    UsageError
        When the hospital has not joined, or does not know where its federation is.
    """
    joined = site.federation
    if joined is None or not joined.get("address"):
        raise UsageError(f"{site.folder}: does not know its federation yet; 'fedward hospital join' tells it")
    secret = {"FEDWARD_PASSPHRASE": site.passphrase} if site.passphrase else {}
    way = [f"https://{joined['address']}", str(place.folder), "--port", str(place.tunnel)]
    wanted = [
        _ours(place, "worker", _module("client.resident", str(site.folder)), secret),
        _ours(place, "tunnel", _module("client.tunnel", str(site.folder), *way), secret),
        _node(place, key),
    ]
    return [*wanted, _ours(place, "stub", _stub(site.folder, place.node), DIRECT)] if stub else wanted


def _ours(place: Place, name: str, command: list[str], environment: dict[str, str]) -> Program:
    return Program(name, command, place.folder / f"{name}.log", environment)


def _module(*words: str) -> list[str]:
    return [sys.executable, "-P", "-m", *words]


def _stub(folder: Path, node: int) -> list[str]:
    """Return the whole of what a stub is told."""
    files = (folder / RUN / SECRET, folder / resident.SOCKET, folder / BUNDLES)
    return _module("client.stub", f"127.0.0.1:{node}", *map(str, files))


@contextmanager
def node_key(site: Site, place: Place) -> Iterator[Path]:
    """Within, the key of Flower's node stands, not sealed, in what its program can open like a file: memory of this process, where there is that (Linux).

    Elsewhere it is a file of mode 0600 that is removed at the end.
    """
    file = place.folder / "node.key"
    file.unlink(missing_ok=True)  # of a release or a process that left it
    if not hasattr(os, "memfd_create"):
        keys.write(file, site.node_key())
        try:
            yield file
        finally:
            file.unlink(missing_ok=True)
        return
    descriptor = os.memfd_create("node.key")
    try:
        os.fchmod(descriptor, 0o600)
        os.write(descriptor, site.node_key())
        # By this process's number, for the node is another and is started again when it ends.
        yield Path(f"/proc/{os.getpid()}/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _node(place: Place, key: Path) -> Program:
    """Return Flower's own program, unmodified; it sees messages pass, and neither patients nor the key of the certificate."""
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
    return Program("node", [flower_program("flower-supernode"), *words], place.folder / "node.log", home)


def flower_program(name: str) -> str:
    """Return the path of one of Flower's programs, that of this environment first.

    Raises
    ------
    FedwardError
        When it is not installed.
    """
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        raise FedwardError(f"{name} is not installed; install Flower with: pip install 'flwr==1.41.*'")
    return found
