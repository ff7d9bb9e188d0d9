"""Programs that run beside each other until they are told to stop, each started again when it ends."""

import contextlib
import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before a program is started again; they double while it keeps ending at once. Flower refuses a node that comes back within a minute."""
STEADY = 60.0
"""Seconds after which a program counts as running well."""
GRACE = 10.0
"""Seconds that a program has to stop by itself."""

PID = "pid"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Program:
    """What to run, and where what it says goes; ``environment`` is laid over this process's own."""

    name: str
    command: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass
class _Running:
    program: Program
    process: subprocess.Popen[bytes] | None = None
    begun: float = 0.0
    pause: float = FIRST_PAUSE
    due: float = 0.0


class Supervisor:
    """Keeps programs running, in the order given, and stops them in the opposite one; used as a context."""

    def __init__(self, programs: Sequence[Program]) -> None:
        self._all = [_Running(program) for program in programs]

    def __enter__(self) -> Self:
        try:
            self.look_after()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for running in reversed(self._all):
            _end(running.process)

    def look_after(self) -> None:
        """Start what is not running and whose pause is over."""
        now = time.monotonic()
        for running in self._all:
            if running.process and running.process.poll() is not None:
                _end(running.process)
                _note_end(running, now)
            if not running.process and now >= running.due:
                running.process, running.begun = _start(running.program), now

    def pids(self) -> dict[str, int]:
        """Return the process numbers of the programs that run, by name."""
        return {each.program.name: each.process.pid for each in self._all if each.process}


def running(folder: Path) -> int | None:
    """Return the process that runs the programs of a folder, as `marked` wrote down; None where there is none."""
    try:
        number = int((folder / PID).read_text())
        os.kill(number, 0)
    except (OSError, ValueError):
        return None
    return number


@contextlib.contextmanager
def marked(folder: Path) -> Iterator[None]:
    """Within, this process is the one that runs the programs of a folder."""
    path = folder / PID
    path.write_text(str(os.getpid()))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def until_stopped(supervisor: Supervisor, every: Callable[[], object], seconds: float = 0.2) -> None:
    """Look after programs until SIGTERM or SIGINT, and call ``every`` in between."""
    with _stopping() as stopped:
        while not stopped:
            supervisor.look_after()
            every()
            time.sleep(seconds)


def free_port() -> int:
    """Return a port of the loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _start(program: Program) -> subprocess.Popen[bytes]:
    with program.log.open("ab") as log:
        return subprocess.Popen(  # noqa: S603 - commands are made by this package, of paths and numbers
            program.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | dict(program.environment),
            start_new_session=True,
            preexec_fn=_ends_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509 - this process has one thread
        )


def _ends_with_parent() -> None:
    """Have the kernel stop this process when the one that started it is gone, however it went."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _note_end(running: _Running, now: float) -> None:
    code = running.process.returncode if running.process else None
    pause = FIRST_PAUSE if now - running.begun > STEADY else running.pause
    running.due, running.pause, running.process = now + pause, min(2 * pause, LONGEST_PAUSE), None
    _log.warning("%s ended with %s; starting it again in %g s", running.program.name, code, pause)


def _end(process: subprocess.Popen[bytes] | None) -> None:
    """End a program and whatever it started, also where it has ended by itself."""
    if process is None:
        return
    if process.poll() is None:
        _tell(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    _tell(process, signal.SIGKILL)  # itself, or what it left behind
    process.wait()


def _tell(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


@contextlib.contextmanager
def _stopping() -> Iterator[list[int]]:
    """Collect the signals that ask to stop."""
    stopped: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, lambda number, _frame: stopped.append(number))
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
