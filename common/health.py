"""Health and figures of programs that run, for whoever watches this machine: ``/health`` as JSON and ``/metrics`` in Prometheus' text format.

Answers on 127.0.0.1 alone, without proof of who asks, so that nothing secret and nothing of a patient may ever be a figure: states, counts, seconds, codes.
"""

import json
import logging
import socketserver
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socket import SHUT_RDWR
from typing import Literal

from common import keys
from common.errors import UsageError
from common.supervise import State

LOOPBACK = "127.0.0.1"
FILE = "health"
"""Where in the folder of the programs the port stands."""
SECONDS = 5.0
"""How long one question and its answer may take in all."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Figure:
    """One metric: ``values`` by what its ``label`` says, or the only value under the empty text where it has no label."""

    name: str
    kind: Literal["gauge", "counter"]
    meaning: str
    values: Mapping[str, float]
    label: str = ""


States = Callable[[], Mapping[str, State]]
Figures = Callable[[], Iterable[Figure]]


@contextmanager
def answering(folder: Path, states: States, figures: Figures, port: int | None = None) -> Iterator[int]:
    """Within, answer questions; give the port, which is written into the folder and stays the same from start to start where it can.

    Raises
    ------
    UsageError
        When a port is asked for and taken.
    """
    with _listening(folder / FILE, port) as server:
        server.states, server.figures = states, figures
        keys.replace({folder / FILE: str(server.server_address[1]).encode()})
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def written(figures: Iterable[Figure]) -> str:
    """Write figures in Prometheus' text format, version 0.0.4."""
    lines = []
    for figure in figures:
        lines += [f"# HELP {figure.name} {figure.meaning}", f"# TYPE {figure.name} {figure.kind}"]
        for what, value in figure.values.items():
            label = f'{{{figure.label}="{_escaped(what)}"}}' if figure.label else ""
            lines.append(f"{figure.name}{label} {float(value)!r}")
    return "".join(f"{line}\n" for line in lines)


def of_programs(states: Mapping[str, State]) -> list[Figure]:
    """Return the figures that any programs have."""
    up = {name: float(state.running) for name, state in states.items()}
    again = {name: float(state.restarts) for name, state in states.items()}
    return [
        Figure("fedward_program_up", "gauge", "Whether the program runs.", up, "program"),
        Figure(
            "fedward_program_restarts_total", "counter", "How often the program was started again.", again, "program"
        ),
    ]


class _Server(socketserver.TCPServer):
    """Answers one question at a time."""

    allow_reuse_address = True
    server_address: tuple[str, int]
    states: States
    figures: Figures

    def handle_error(self, _request: object, _address: object) -> None:
        """Say nothing of an asker who has gone; of what else went wrong, all, and go on."""
        if not isinstance(sys.exception(), ConnectionError):
            _log.exception("a question was not answered")


class _Answer(BaseHTTPRequestHandler):
    """Answers one question, and closes the connection."""

    server: _Server
    server_version, sys_version = "fedward", ""

    def handle(self) -> None:
        """Answer within the time that there is; then the connection is cut, whatever the asker does."""
        end = threading.Timer(SECONDS, self._cut)
        end.daemon = True
        end.start()
        try:
            super().handle()
        finally:
            end.cancel()

    def do_GET(self) -> None:
        """Answer."""
        states = self.server.states()
        if self.path == "/health":
            well = all(state.running for state in states.values())
            told = {"ok": well, "programs": {name: asdict(state) for name, state in states.items()}}
            self._say(200 if well else 503, "application/json", json.dumps(told) + "\n")
        elif self.path == "/metrics":
            figures = written([*of_programs(states), *self.server.figures()])
            self._say(200, "text/plain; version=0.0.4; charset=utf-8", figures)
        else:
            self._say(404, "text/plain", "there are /health and /metrics\n")

    def log_message(self, *_: object) -> None:
        """Write no log: who watches asks every few seconds."""

    def _say(self, code: int, kind: str, text: str) -> None:
        content = text.encode()
        self.send_response(code)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _cut(self) -> None:
        with suppress(OSError):
            self.connection.shutdown(SHUT_RDWR)


def _listening(file: Path, port: int | None) -> _Server:
    """Listen at the port asked for, else at that of the last start, else at any."""
    try:
        return _Server((LOOPBACK, port or _last(file)), _Answer)
    except (OSError, OverflowError) as error:
        if port:
            raise UsageError(
                f"{LOOPBACK}:{port}: cannot listen here ({getattr(error, 'strerror', None) or error}); choose another port with --health"
            ) from None
        return _Server((LOOPBACK, 0), _Answer)


def _last(file: Path) -> int:
    try:
        port = int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0
    return port if 0 < port < 2**16 else 0


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
