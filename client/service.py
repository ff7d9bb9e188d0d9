"""The hospital's worker behind a Unix socket: the only way from the coordinator's bundle to the patients.

What goes over it is Flower's own protobuf bytes, each with its length before it: a message and the node's context one way, the answer the
other way; what the hospital keeps stays in the worker. Nothing is unpickled, nothing longer than `MOST` is read, and whoever runs the bundle needs
no access but to the socket.
"""

import ctypes
import logging
import math
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flwr.app import Context, Message

from common import flower, keys, messages
from common.errors import FedwardError, Unreachable

MOST = 2**31 - 1
"""Bytes of the longest message, protobuf's own limit."""
PATIENCE = 10.0
"""Seconds that the rest of a message which has begun may take."""
LAST_WORDS = 0.5
"""Seconds that a worker whose time is over has to say so and end by itself."""
PIECE = 1 << 20
"""Bytes that are read at a time."""

_LENGTH = struct.Struct(">Q")
_log = logging.getLogger(__name__)


def ask(path: Path, message: Message, context: Context) -> Message:
    """Have the worker at ``path`` answer a message.

    Raises
    ------
    Unreachable
        When nobody listens there, or the worker ended before it answered.
    """
    try:
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(path))
            _send(line, flower.message_bytes(message))
            _send(line, flower.context_bytes(context))
            reply = flower.message_from(_receive(line, None))
    except (OSError, EOFError):
        raise Unreachable(
            f"{path}: the hospital's worker does not answer; is 'fedward hospital start' running?"
        ) from None
    return reply


def serve(
    path: Path,
    answer: Callable[[Message, Context], Message],
    ready: Callable[[], None],
    deadline: float,
    group: str = "",
) -> None:
    """Answer one message after another, for ever; only this user can connect, and the members of ``group`` where one is named.

    A message that is not answered when its run gives up on it, or after ``deadline`` seconds, ends the process, because compiled training cannot be stopped
    in any other way; whoever started the process starts it again.
    """
    with _listening(path, group) as listener:
        ready()
        while True:
            line, _ = listener.accept()
            with line, suppress(OSError, EOFError):
                try:
                    message = flower.message_from(_receive(line, PATIENCE))
                    context = flower.context_from(_receive(line, PATIENCE))
                except FedwardError as error:
                    _log.warning("not answered: %s", error)
                    continue
                with _ended_after(min(deadline, _patience(message))):
                    reply = answer(message, context)
                _send(line, flower.message_bytes(reply))


@contextmanager
def _listening(path: Path, group: str) -> Iterator[socket.socket]:
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        except OSError as error:
            raise FedwardError(
                f"{path}: no socket can be made here ({error.strerror}); its whole path may have 100 letters at most"
            ) from None
        finally:
            os.umask(before)
        if group:
            keys.share(path, group, 0o660)
        listener.listen()
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


def _patience(message: Message) -> float:
    """Return how many seconds the run of a message waits for its answer; without end where it does not say, which the gate will refuse."""
    try:
        return messages.run_config(str(message.content["config"]["run"])).limits.deadline_seconds
    except (FedwardError, KeyError, ValueError, TypeError, RecursionError):
        return math.inf


@contextmanager
def _ended_after(seconds: float) -> Iterator[None]:
    def end() -> None:
        _log.error("a message was not answered within %g s; this worker ends", seconds)
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        with _killed_after(seconds + LAST_WORDS):
            yield
    finally:
        timer.cancel()


class _Event(ctypes.Structure):
    """Linux's ``sigevent``."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("rest", ctypes.c_byte * 48),
    )


class _Span(ctypes.Structure):
    """Its ``itimerspec``: seconds and nanoseconds, of every time and of the first."""

    _fields_ = (("every", ctypes.c_long * 2), ("first", ctypes.c_long * 2))


@contextmanager
def _killed_after(seconds: float) -> Iterator[None]:
    """Have the kernel kill this process, which may be stopped, or held up in compiled code where no thread of Python runs."""
    if sys.platform != "linux":
        yield
        return
    own = ctypes.CDLL(None)
    library = own if hasattr(own, "timer_create") else ctypes.CDLL("librt.so.1")
    timer, event = ctypes.c_void_p(), _Event(signal=signal.SIGKILL)
    library.timer_create(time.CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(timer))
    library.timer_settime(timer, 0, ctypes.byref(_Span(first=(int(seconds), int(seconds % 1 * 1e9)))), None)
    try:
        yield
    finally:
        library.timer_delete(timer)


def _send(line: socket.socket, content: bytes) -> None:
    line.sendall(_LENGTH.pack(len(content)))
    line.sendall(content)


def _receive(line: socket.socket, seconds: float | None) -> bytes:
    """Read one part; its first byte may take ``seconds``, None for any time."""
    line.settimeout(seconds)
    (length,) = _LENGTH.unpack(_read(line, _LENGTH.size))
    if length > MOST:
        raise FedwardError(f"a message of {length} bytes came, and {MOST} is the most that is read")
    return _read(line, length)


def _read(line: socket.socket, length: int) -> bytes:
    """Read so many bytes; memory is taken as they come, not as they are announced."""
    content = bytearray()
    while len(content) < length:
        piece = line.recv(min(length - len(content), PIECE))
        if not piece:
            raise EOFError
        content += piece
        line.settimeout(PATIENCE)
    return bytes(content)
