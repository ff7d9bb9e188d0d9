"""The coordinator's programs and its runs: Flower's SuperLink on loopback behind the gateway, and this process as the ServerApp of a run."""

import logging
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from common import deployment, flower, health, keys, relay, supervise
from common.attempts import Attempts
from common.deployment import Control, Task, Tasks
from common.errors import FedwardError, Unreachable, UsageError
from common.supervise import Program, Supervisor, free_port, until_stopped
from server import watch
from server.members import Member
from server.plan import Plan
from server.provision import Federation, open_federation

if TYPE_CHECKING:
    from flwr.serverapp import Grid

RUN = "run"
"""The folder within a federation's own in which its programs meet."""
RUNS = "runs"
"""The folder of the runs that a process of this machine is the ServerApp of, each by Flower's number."""
START_SECONDS = 120.0
"""How long a program may take until it answers: some seconds, but where others use the machine."""
TAKE_SECONDS = 60.0
"""How long a run that was begun may take until it can be taken up."""

_log = logging.getLogger(__name__)


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
    folder = federation.folder / RUN
    folder.mkdir(mode=0o700, exist_ok=True)
    keys.complete(folder, {"secret": lambda: secrets.token_bytes(32), "port": lambda: str(free_port()).encode()})
    return Place(folder, int((folder / "port").read_text()), federation.token())


def start(
    federation: Federation, host: str, port: int, tell: Callable[[str], object], health_port: int | None = None
) -> None:
    """Run the federation's programs until this process is told to stop; ``tell`` gets one line as soon as they are up. Hospitals that are admitted later are let in.

    Raises
    ------
    UsageError
        When it is running already, or nothing can listen there.
    """
    relay.raise_descriptors()  # for Flower too, whom the gateway asks for every hospital
    place, known = place_of(federation), Known()
    advice = f"; 'fedward server stop {federation.folder}' ends it"
    with supervise.stopping() as stopped, supervise.marked(place.folder, advice) as note:
        _wait_for_port(host, port, stopped)
        supervisor = Supervisor(programs(place, federation, host, port))
        figures = partial(watch.figures, federation, partial(online, federation))
        with health.answering(place.folder, supervisor.states, figures, health_port), supervisor:
            wait_for_flower(place, stopped=stopped)
            let_in(place, federation, known)
            wait_for_door(place, host, port, stopped)
            note(supervisor.pids())
            if not stopped:
                admitted = sum(not member.revoked for member in federation.survey()[0])
                tell(f"open at {host}:{port}; {admitted} {'hospital' if admitted == 1 else 'hospitals'} admitted")

            def look() -> None:
                note(supervisor.pids())
                let_in(place, federation, known)

            until_stopped(supervisor, look, stopped=stopped)


def _wait_for_port(host: str, port: int, stopped: Sequence[int]) -> None:
    """Wait until nobody listens there: the programs of a coordinator that was killed end by themselves, which takes some seconds.

    Here and not in the gateway, which is another process, whose log nobody may be looking at.
    """
    end = time.monotonic() + supervise.GRACE
    while not stopped:
        try:
            relay.listen(host, port).close()
        except UsageError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
        else:
            return


def running(federation: Federation) -> int | None:
    """Return the process that runs the federation's programs; None where there is none."""
    return supervise.running(federation.folder / RUN)


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


@dataclass
class Known:
    """What this process has told Flower of hospitals' nodes, and the log of their files."""

    nodes: set[str] = field(default_factory=set)
    said: set[str] = field(default_factory=set)
    attempts: dict[str, Attempts] = field(default_factory=dict)


def let_in(place: Place, federation: Federation, known: Known) -> None:
    """Tell Flower of the nodes of hospitals that are not ``known`` to it yet; the gateway decides at every request whether they are still admitted.

    A damaged file of one is said, once, and keeps nobody else out; nor does one that Flower refuses, for whom it is tried again after pauses.
    """
    members, damaged = federation.survey()
    for text in {str(error) for error in damaged} - known.said:
        _log.error("%s", text)
        known.said.add(text)
    for member in members:
        if member.node_key not in known.nodes and not member.revoked:
            attempts = known.attempts.setdefault(member.node_key, Attempts(f"{member.name!r} was not let in"))
            attempts.make(partial(_tell_of, place, member, known))


def _tell_of(place: Place, member: Member, known: Known) -> None:
    with suppress(Unreachable):  # its supervisor says so, and at the next look it may be back
        place.control().register(member.node_key, member.name)
        known.nodes.add(member.node_key)
        known.attempts.pop(member.node_key, None)


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


def wait_for_flower(place: Place, seconds: float = START_SECONDS, stopped: Sequence[int] = ()) -> None:
    """Wait until the SuperLink answers, or there is something in ``stopped``.

    Raises
    ------
    Unreachable
        When it does not in time; the message names its log.
    """
    end = time.monotonic() + seconds
    while not stopped:
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


def wait_for_door(
    place: Place, host: str, port: int, stopped: Sequence[int] = (), seconds: float = START_SECONDS
) -> None:
    """Wait until the gateway listens, or there is something in ``stopped``; errors as of `wait_for_flower`."""
    near = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - nothing is bound here
    end = time.monotonic() + seconds
    while not stopped:
        try:
            socket.create_connection((near, port), timeout=1).close()
        except OSError:
            if time.monotonic() > end:
                log = place.folder / "gateway.log"
                raise Unreachable(f"the gateway did not open within {seconds:g} s; see {log}") from None
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
    end_left_behind(place)
    run_id = place.control().start(deployment.bundle(), {"run": plan.text})
    folder = place.folder / RUNS / str(run_id)
    folder.mkdir(mode=0o700, parents=True)
    try:
        screen = open_federation(place.folder.parent).screen()
        with supervise.marked(folder), _taken(place, run_id).grid(screen) as opened:
            yield opened
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def end_left_behind(place: Place) -> None:
    """End the runs of processes that were killed: hospitals wait for the rest of what these were sending, and Flower for a sign of life."""
    for folder in (place.folder / RUNS).glob("*"):
        if not supervise.running(folder):
            try:
                place.control().stop(int(folder.name))
            except Unreachable:
                raise
            except FedwardError:
                pass  # it is over, or Flower has forgotten it
            shutil.rmtree(folder, ignore_errors=True)


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
