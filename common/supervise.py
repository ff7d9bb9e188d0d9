"""Programs that run beside each other until they are told to stop, each started again when it ends."""

import contextlib
import ctypes
import fcntl
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Self

from common.attempts import FIRST_PAUSE, LONGEST_PAUSE, Attempts
from common.errors import DataError, FedwardError, UsageError

STEADY = 60.0
"""Seconds after which a program counts as running well."""
GRACE = 10.0
"""Seconds that a program has to stop by itself."""
LARGEST_LOG = 4 << 20
"""Bytes of a program's log, from which on it is begun anew; the one before is kept beside it."""

PID = "pid"
HELD_FOR = 0.5
"""Seconds for which somebody who only looks may have the lock."""

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
    starts: int = 0

    def begin(self) -> None:
        self.process, self.begun = _start(self.program), time.monotonic()
        self.starts += 1


@dataclass(frozen=True)
class State:
    """Whether a program runs, and how often it was started again."""

    running: bool
    restarts: int


class Supervisor:
    """Keeps programs running, in the order given, and stops them in the opposite one; used as a context.

    One that cannot be started at first is an error; later on it is tried again, as where it ended.
    """

    def __init__(self, programs: Sequence[Program]) -> None:
        self._all = [_Running(program) for program in programs]

    def __enter__(self) -> Self:
        try:
            for running in self._all:
                running.begin()
        except BaseException:  # whatever ended it, Ctrl-C too, no program may be left that nobody looks after
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for running in reversed(self._all):
            _end(running.process)

    def look_after(self) -> None:
        """Start again what is not running and whose pause is over; begin logs anew that are full."""
        now = time.monotonic()
        for running in self._all:
            if running.process and running.process.poll() is not None:
                _end(running.process)
                _note_end(running, now)
            if not running.process and now >= running.due:
                _begin_again(running, now)
            _bound(running.program.log)

    def pids(self) -> dict[str, int]:
        """Return the process numbers of the programs that run, by name."""
        return {each.program.name: each.process.pid for each in self._all if each.process}

    def states(self) -> dict[str, State]:
        """Return how all programs are, by name; any thread may ask."""
        return {each.program.name: State(_runs(each.process), max(each.starts - 1, 0)) for each in self._all}


def running(folder: Path) -> int | None:
    """Return the process that holds the lock of a folder, see `marked`; None where there is none, whatever number a crash left there."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder / PID, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _number(descriptor)
        finally:
            os.close(descriptor)
    return None


@contextlib.contextmanager
def marked(folder: Path, advice: str = "") -> Iterator[Callable[[Mapping[str, int]], None]]:
    """Within, this process is the one that works in a folder: it holds the lock of the folder's file ``pid``, and its number stands in there.

    What is given writes down the numbers of its programs, by name, for `programs`.

    The kernel gives the lock back however the process ends, so a file that a crash left, and a number that is somebody else's by now, mean nothing.

    Raises
    ------
    UsageError
        When another process has it; ``advice`` says what to do then.
    """
    path = folder / PID
    descriptor = _locked(path)
    if descriptor is None:
        raise UsageError(f"{folder.parent if folder.name == 'run' else folder}: is running already{advice}")
    try:
        _note(descriptor, {})
        yield partial(_note, descriptor)
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def programs(folder: Path) -> dict[str, int]:
    """Return the process numbers of the programs that run in a folder, by name."""
    if running(folder) is None:
        return {}
    try:
        lines = [line.split() for line in (folder / PID).read_text().splitlines()[1:]]
    except FileNotFoundError:
        return {}
    return {words[0]: int(words[1]) for words in lines if len(words) == 2}


def stop(folder: Path, seconds: float = 30.0) -> int:
    """End the process that works in a folder, and wait until it has ended; return its number.

    Raises
    ------
    UsageError
        When there is none, or it is another user's.
    FedwardError
        When it does not end in time.
    """
    number = running(folder)
    if number is None:
        raise UsageError(f"{folder.parent}: is not running")
    try:
        os.kill(number, signal.SIGTERM)
    except PermissionError:
        raise UsageError(f"{folder.parent}: process {number} is another user's; stop it as that user") from None
    end = time.monotonic() + seconds
    while running(folder) == number:
        if time.monotonic() > end:
            raise FedwardError(f"process {number} has not stopped within {seconds:g} s; look at the logs in {folder}")
        time.sleep(0.1)
    return number


def until_stopped(
    supervisor: Supervisor, every: Callable[[], object], seconds: float = 0.2, stopped: Sequence[int] | None = None
) -> None:
    """Look after programs until SIGTERM or SIGINT, and call ``every`` in between; ``stopped`` is of a `stopping` that has begun before.

    An error of ``every`` is logged and ends nothing; it is called again after a pause.
    """
    attempts = Attempts("what goes with looking after the programs failed")
    with stopping() if stopped is None else contextlib.nullcontext(stopped) as asked:
        while not asked:
            supervisor.look_after()
            attempts.make(every)
            time.sleep(seconds)


@contextlib.contextmanager
def stopping() -> Iterator[list[int]]:
    """Within, SIGTERM and SIGINT end nothing by themselves: they are collected in the list that is given."""
    stopped: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, lambda number, _frame: stopped.append(number))
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def free_port() -> int:
    """Return a port of the loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _locked(path: Path) -> int | None:
    """Open and lock a file; None where somebody holds it."""
    end = time.monotonic() + HELD_FOR
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror}); mend the rights of its folder") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The last holder may have removed the name between the two calls; a lock on a file without one keeps nobody out.
            if _names(path, descriptor):
                return descriptor
        except BlockingIOError:
            if time.monotonic() > end:
                os.close(descriptor)
                return None
        os.close(descriptor)
        time.sleep(0.02)


def _names(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _note(descriptor: int, pids: Mapping[str, int]) -> None:
    content = "".join([f"{os.getpid()}\n", *(f"{name} {number}\n" for name, number in pids.items())]).encode()
    if os.pread(descriptor, len(content) + 1, 0) != content:
        os.pwrite(descriptor, content, 0)
        os.ftruncate(descriptor, len(content))


def _number(descriptor: int) -> int | None:
    """Read the number that the holder of a lock writes at once after it has got it."""
    for _ in range(50):
        with contextlib.suppress(ValueError):
            return int(os.pread(descriptor, 32, 0).partition(b"\n")[0])
        time.sleep(0.02)
    return None


def _bound(log: Path) -> None:
    """Begin a full log anew. The program goes on writing to the same file, at its end, since it was opened to append."""
    try:
        if log.stat().st_size > LARGEST_LOG:
            with contextlib.suppress(OSError):  # a disk that is full is no reason to let it grow
                shutil.copy(log, log.with_name(f"{log.name}.1"))
            os.truncate(log, 0)
    except OSError:
        pass  # not there yet


def _start(program: Program) -> subprocess.Popen[bytes]:
    with open(program.log, "ab", opener=_private) as log:
        return subprocess.Popen(  # noqa: S603 - commands are made by this package, of paths and numbers
            program.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | dict(program.environment),
            start_new_session=True,
            umask=0o077,
            preexec_fn=_ends_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509 - it takes no lock that another thread could hold
        )


def _private(path: str, flags: int) -> int:
    descriptor = os.open(path, flags, 0o600)
    os.fchmod(descriptor, 0o600)
    return descriptor


def _ends_with_parent() -> None:
    """Have the kernel stop this process when the one that started it is gone, however it went."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _runs(process: subprocess.Popen[bytes] | None) -> bool:
    return process is not None and process.poll() is None


def _note_end(running: _Running, now: float) -> None:
    code = running.process.returncode if running.process else None
    if now - running.begun > STEADY:
        running.pause = FIRST_PAUSE
    running.process = None
    _put_off(running, now, f"ended with {code}")


def _begin_again(running: _Running, now: float) -> None:
    """Start a program; where that fails, as while it is being replaced or the disk is full, the others go on, and it is tried again."""
    try:
        running.begin()
    except (OSError, subprocess.SubprocessError) as error:
        _put_off(running, now, f"cannot be started ({error})")


def _put_off(running: _Running, now: float, what: str) -> None:
    _log.warning("%s %s; starting it again in %g s", running.program.name, what, running.pause)
    running.due, running.pause = now + running.pause, min(2 * running.pause, LONGEST_PAUSE)


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
