"""The hospital's worker behind a Unix socket: the only way from the coordinator's bundle to the patients.

What goes over it is Flower's own protobuf bytes, each with its length before it: a message and the node's context one way, the answer and what the
hospital keeps between rounds the other way. Nothing is unpickled, nothing longer than `MOST` is read, and whoever runs the bundle needs
no access but to the socket.
"""

import logging
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flwr.app import Context, Message

from common import flower
from common.errors import FedwardError, Unreachable

MOST = 2**31 - 1
"""Bytes of the longest message, protobuf's own limit."""
PATIENCE = 10.0
"""Seconds that the rest of a message which has begun may take."""

_LENGTH = struct.Struct(">Q")
_log = logging.getLogger(__name__)


def ask(path: Path, message: Message, context: Context) -> Message:
    """Have the worker at ``path`` answer a message; the context gets its new state.

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
            state = _receive(line, PATIENCE)
    except (OSError, EOFError):
        raise Unreachable(
            f"{path}: the hospital's worker does not answer; is 'fedward hospital start' running?"
        ) from None
    if state:
        context.state = flower.content_from(state)
    return reply


def serve(
    path: Path, answer: Callable[[Message, Context], Message], ready: Callable[[], None], deadline: float
) -> None:
    """Answer one message after another, for ever; only this user can connect.

    A message that is not answered after ``deadline`` seconds ends the process, because compiled training cannot be stopped in any other way;
    whoever started the process starts it again.
    """
    with _listening(path) as listener:
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
                with _ended_after(deadline):
                    reply = answer(message, context)
                _send(line, flower.message_bytes(reply))
                _send(line, flower.content_bytes(context.state) if len(context.state) else b"")


@contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
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
        listener.listen()
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def _ended_after(seconds: float) -> Iterator[None]:
    def end() -> None:
        _log.error("a message was not answered within %g s; this worker ends", seconds)
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


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
    content = bytearray(length)
    view, done = memoryview(content), 0
    while done < length:
        count = line.recv_into(view[done:])
        if not count:
            raise EOFError
        done += count
        line.settimeout(PATIENCE)
    return bytes(content)
