"""Worker processes for large simulations: each reads the data itself, holds its own TensorFlow on one thread, and answers for any hospital.

Which process answers changes nothing in the answer, so the count of processes may be chosen while a run is under way.
"""

import os
import queue
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Self

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.app import Node, make_app
from common import flower
from common.errors import FedwardError
from simulations import hospitals

WORTH_SECONDS = 20.0
"""Work that is left from which starting processes pays: each needs about 6 s before its first answer."""
TELLING_ROUNDS = 3
COMMAND = [sys.executable, "-m", "simulations.workers"]
"""Starts a process; the number of its socket is added."""
ENDED = "a worker process ended; set simulation.workers to 1, or give the machine more memory"


def app_of(seats: Sequence[Node]) -> ClientApp:
    """Return the app of nodes whose partition number is a seat's."""
    return make_app(lambda context: seats[int(context.node_config["partition-id"])])


def cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start(command: Sequence[str], scenario: str, secret: bytes) -> "tuple[subprocess.Popen[bytes], Connection]":
    """Start a process that serves a scenario's hospitals, and tell it scenario and secret; the number of its socket is added to the command."""
    ours, theirs = socket.socketpair()
    with theirs:
        # A session of its own, so that Ctrl-C reaches this process alone, which then ends its workers.
        process = subprocess.Popen(  # noqa: S603
            [*command, str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    connection = Connection(ours.detach())
    connection.send_bytes(scenario.encode())
    connection.send_bytes(secret)
    return process, connection


class Crew:
    """Answers messages in this process until it has grown, then in worker processes."""

    def __init__(self, seats: Sequence[Node], scenario: str, secret: bytes) -> None:
        self._app = app_of(seats)
        self._scenario, self._secret = scenario, secret
        self._processes: list[subprocess.Popen[bytes]] = []
        self._idle: queue.SimpleQueue[Line] = queue.SimpleQueue()
        self._threads: ThreadPoolExecutor | None = None
        self._seconds: list[float] = []

    def ask(self, message: Message, context: Context) -> Callable[[], Message]:
        """Begin to answer; the function that comes back waits for the answer."""
        if self._threads is None:
            return lambda: self._app(message, context)
        answer: Future[Message] = self._threads.submit(self._exchange, message, context)
        return answer.result

    def grow(self, count: int) -> None:
        """Start ``count`` processes; from now on they answer."""
        for _ in range(count):
            process, connection = start(COMMAND, self._scenario, self._secret)
            self._processes.append(process)
            self._idle.put(Line(connection))
        self._threads = ThreadPoolExecutor(count)

    def grow_if_worth(self, seconds: float, rounds_left: int, asked: int) -> None:
        """Start a process for each core, but no more than hospitals are ``asked`` a round, when it pays.

        That is judged by the fastest round so far; the first ones also compile, and say nothing.
        """
        self._seconds.append(seconds)
        told = len(self._seconds) >= TELLING_ROUNDS and min(self._seconds) * rounds_left > WORTH_SECONDS
        if self._threads is None and min(cores(), asked) > 1 and told:
            self.grow(min(cores(), asked))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._threads:
            self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.kill()
            process.wait()

    def _exchange(self, message: Message, context: Context) -> Message:
        line = self._idle.get()
        try:
            return line.exchange(message, context)
        except (EOFError, OSError):
            raise FedwardError(ENDED) from None
        finally:
            self._idle.put(line)


class Line:
    """The way to one process. Content that several messages share goes over it once."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._last: RecordDict | None = None

    def exchange(self, message: Message, context: Context) -> Message:
        """Send a message and its node's context; return the answer, and give the context its new state."""
        fresh = message.content is not self._last
        self.connection.send_bytes(flower.content_bytes(message.content) if fresh else b"")
        self._last = message.content
        self.connection.send_bytes(flower.message_bytes(flower.without_content(message)))
        self.connection.send_bytes(flower.context_bytes(context))
        reply = flower.message_from(self.connection.recv_bytes())
        state = self.connection.recv_bytes()
        if state:
            context.state = flower.content_from(state)
        return reply


def serve(connection: Connection) -> None:
    """Answer messages until the other end closes."""
    scenario, secret = connection.recv_bytes().decode(), connection.recv_bytes()
    population = hospitals.population_of(scenario, secret)
    app = app_of(population.seats)
    content = RecordDict()
    while True:
        fresh = connection.recv_bytes()
        content = flower.content_from(fresh) if fresh else content
        message = flower.message_from(connection.recv_bytes())
        message.content = content
        context = flower.context_from(connection.recv_bytes())
        reply = app(message, context)
        connection.send_bytes(flower.message_bytes(reply))
        connection.send_bytes(flower.content_bytes(context.state) if len(context.state) else b"")


if __name__ == "__main__":
    flower.quiet()
    with suppress(EOFError, KeyboardInterrupt, ConnectionError):
        serve(Connection(int(sys.argv[1])))
