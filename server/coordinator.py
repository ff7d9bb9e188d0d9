"""The coordinator's programs and its runs: Flower's SuperLink on loopback behind the gateway, and this process as the ServerApp of a run."""

import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common import deployment, flower, keys, relay, supervise
from common.deployment import Control, Task, Tasks
from common.errors import FedwardError, Unreachable, UsageError
from common.supervise import Program, Supervisor, free_port, until_stopped
from server.plan import Plan
from server.provision import Federation

if TYPE_CHECKING:
    from flwr.serverapp import Grid

TAKE_SECONDS = 20.0
"""How long a run that was begun may take until it can be taken up."""


@dataclass(frozen=True)
class Place:
    """Where a federation's programs meet on this machine: a port of the loopback, and the secret of who may take up work."""

    folder: Path
    port: int
    token: str

    @property
    def address(self) -> str:
        """Return where Flower listens."""
        return f"127.0.0.1:{self.port}"

    @property
    def secret(self) -> Path:
        """Return the file of the secret."""
        return self.folder / "secret"

    def control(self) -> Control:
        """Open the operator's side of Flower."""
        return Control(self.address, self.token)


def place_of(federation: Federation) -> Place:
    """Return the meeting place of a federation, made when it is first asked for; its port stays the same from then on."""
    folder = federation.folder / "run"
    folder.mkdir(mode=0o700, exist_ok=True)
    port, secret = folder / "port", folder / "secret"
    if not port.exists():
        keys.write(secret, secrets.token_bytes(32))
        keys.write(port, str(free_port()).encode())
    return Place(folder, int(port.read_text()), federation.token())


def start(federation: Federation, host: str, port: int) -> None:
    """Run the federation's programs until this process is told to stop; hospitals that are admitted meanwhile are let in.

    Raises
    ------
    UsageError
        When it is running already, or nothing can listen there.
    """
    if running(federation):
        raise UsageError(f"{federation.folder}: is running already; 'fedward server stop {federation.folder}' ends it")
    relay.listen(host, port).close()  # the gateway is another process, whose log nobody may be looking at
    place, known = place_of(federation), set[str]()
    with supervise.marked(place.folder), Supervisor(programs(place, federation, host, port)) as supervisor:
        wait_for_flower(place)
        until_stopped(supervisor, lambda: let_in(place, federation, known))


def running(federation: Federation) -> int | None:
    """Return the process that runs the federation's programs; None where there is none."""
    return supervise.running(federation.folder / "run")


def online(federation: Federation) -> list[str] | None:
    """Return the names of the hospitals that are connected; None where the federation is not running."""
    try:
        return place_of(federation).control().online() if running(federation) else None
    except Unreachable:
        return None


def programs(place: Place, federation: Federation, host: str, port: int) -> list[Program]:
    """Return what a coordinator runs, in the order in which it is started."""
    return [superlink(place, federation.folder / "token"), gateway(place, federation, host, port)]


def gateway(place: Place, federation: Federation, host: str, port: int) -> Program:
    """Return the door for hospitals."""
    words = [str(federation.folder), host, str(port), f"http://{place.address}"]
    return Program("gateway", [sys.executable, "-P", "-m", "server.gateway", *words], place.folder / "gateway.log")


def let_in(place: Place, federation: Federation, known: set[str]) -> None:
    """Tell Flower of the nodes of hospitals that are not ``known`` to it yet; the gateway decides at every request whether they are still admitted."""
    for member in federation.members():
        if member.node_key not in known and not member.revoked:
            with suppress(Unreachable):
                place.control().register(member.node_key, member.name)
                known.add(member.node_key)


def superlink(place: Place, token: Path) -> Program:
    """Return Flower's SuperLink: on loopback alone, with nodes that prove who they are, and a database that outlives it."""
    words = [
        "--insecure",
        "--host",
        "127.0.0.1",
        "--port",
        str(place.port),
        "--database",
        str(place.folder / "flower.db"),
    ]
    words += ["--isolation", "process", "--superexec-auth-secret-file", str(place.secret)]
    words += ["--disable-runtime-dependency-installation"]
    command = [sys.executable, "-P", "-m", "server.superlink", str(token), *words]
    return Program("superlink", command, place.folder / "superlink.log", {"FLWR_HOME": str(place.folder / "flower")})


def wait_for_flower(place: Place, seconds: float = 30.0) -> None:
    """Wait until the SuperLink answers.

    Raises
    ------
    Unreachable
        When it does not in time; the message names its log.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            place.control().online()
        except Unreachable:
            if time.monotonic() > end:
                raise Unreachable(
                    f"Flower did not start within {seconds:g} s; see {place.folder / 'superlink.log'}"
                ) from None
            time.sleep(0.2)
        else:
            return


def wait_for_hospitals(place: Place, count: int, seconds: float) -> None:
    """Wait until so many hospitals are connected.

    Raises
    ------
    Unreachable
        When they are not in time.
    """
    end = time.monotonic() + seconds
    while len(here := place.control().online()) < count:
        if time.monotonic() > end:
            raise Unreachable(
                f"{len(here)} of {count} hospitals connected within {seconds:g} s; see the logs under run/ of the others"
            )
        time.sleep(0.2)


@contextmanager
def grid(place: Place, plan: Plan) -> Iterator["Grid"]:
    """Begin a run whose ServerApp is this process; it is over when the block ends."""
    flower.quiet()
    with _taken(place, place.control().start(deployment.bundle(), {"run": plan.text})).grid() as opened:
        yield opened


def _taken(place: Place, run_id: int) -> Task:
    end = time.monotonic() + TAKE_SECONDS
    with closing(Tasks(place.address, place.secret.read_bytes(), deployment.SERVER)) as tasks:
        while time.monotonic() < end:
            task = tasks.take()
            if task and task.run_id == run_id:
                return task
            time.sleep(deployment.POLL_SECONDS)
    place.control().stop(run_id)
    raise FedwardError(
        f"Flower did not hand over the run within {TAKE_SECONDS:g} s; see {place.folder / 'superlink.log'}"
    )
