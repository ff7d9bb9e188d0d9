"""Passing Flower's requests on over HTTP, streamed both ways: what the coordinator's gateway and a hospital's tunnel have in common.

A request passes with a short list of headers. What a hop or a proxy adds is dropped, and nothing that a client says about where it comes from is believed.
"""

import asyncio
import ipaddress
import logging
import os
import resource
import signal
import socket
import ssl
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, MutableMapping
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from types import FrameType
from typing import Any, Protocol, TypeVar

import h11
import httpx
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from common.errors import FedwardError, UsageError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Header = tuple[bytes, bytes]
T = TypeVar("T")
_log = logging.getLogger("fedward.relay")

FLEET = frozenset(
    f"/v1/fleet/{name}"
    for name in (
        "activate-node",
        "confirm-message-received",
        "deactivate-node",
        "get-fab",
        "get-run",
        "pull-messages",
        "pull-object",
        "push-messages",
        "push-object",
        "send-node-heartbeat",
    )
)
"""Flower's routes for a node that has been registered. Registering is the coordinator's business."""
ENTER, BEAT = "/v1/fleet/activate-node", "/v1/fleet/send-node-heartbeat"
"""Those of them by which Flower learns that a node is there."""
RENEW = "/fedward/renew"
"""The gateway's own route for a certificate that is about to expire."""
STAY = "/fedward/stay"
"""The gateway's own route for a request that stays open: by its end the gateway sees at once that a hospital, or the line to it, is gone."""
NODE_KEY = b"flwr-public-key"
ASKED = frozenset(
    (
        b"accept",
        b"content-length",
        b"content-type",
        b"flwr-component-name",
        b"flwr-package-name",
        b"flwr-package-version",
        NODE_KEY,
        b"flwr-signature",
        b"flwr-timestamp",
    )
)
"""Headers of a request that pass."""
ANSWERED = frozenset((b"content-length", b"content-type", b"flwr-version-incompatibility-message"))
"""Headers of an answer that pass."""

LARGEST = 64 << 20
"""Bytes of the largest request. Flower sends a model in pieces of 5 MiB."""
PIECE = 1 << 18
"""Bytes of an answer that are handed on at a time: TLS gives 16 KiB, and each handing on costs as much as their encryption."""
HEAD_SECONDS = 20.0
"""How long a connection may take for the first lines of a request."""
PAUSE_SECONDS = 60.0
"""How long either side may send nothing within a request."""
WHOLE_SECONDS = 3600.0
"""How long a request may take in all: `LARGEST` at a little over 0.1 Mbit/s."""
IDLE_SECONDS = 75
"""How long a connection without requests is kept."""
STOP_SECONDS = 5
"""How long requests under way may take to end when the server is told to stop."""
WAIT_ON_SECONDS = 2.0
"""How often a client is told to wait on. The time-outs of Flower's node, 5 s for a sign of life and 30 s for others, begin when it has written its last byte,
which may take minutes from there over a slow line; a tunnel's tells it that its gateway is gone."""
REPEAT_SECONDS, MOST_SAID = 60.0, 1000
"""How often it is logged that a connection of one address was refused for one reason, and of how many of these at a time."""
HANDSHAKES, FROM_ONE = 512, 128
"""Handshakes that may be under way in all and from one address: who is there is not known before their end, so strangers could keep the door busy with them."""
DESCRIPTORS = 65_536
"""Files and connections that a server asks the system for; each connection takes one."""
CERTIFICATE = "fedward.certificate"
"""Where in a request's scope the peer's certificate stands, in DER; absent where it showed none."""
WAITING = "fedward.waiting"
"""Where in a request's scope the function stands that tells the peer to wait on."""


class Refused(FedwardError):
    """A request is answered with ``code`` and an empty body; the message is for the log alone."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Gone(FedwardError):
    """The peer closed its connection before it was answered."""


def passing(headers: Iterable[Header], names: frozenset[bytes]) -> list[Header]:
    """Return the headers that pass.

    Raises
    ------
    Refused
        When one of them comes twice: the two sides could each believe another of them.
    """
    kept = [(name.lower(), value) for name, value in headers if name.lower() in names]
    if len({name for name, _ in kept}) < len(kept):
        raise Refused(400, "a header came twice")
    return kept


class Body:
    """A request's body, read as it arrives, never more than ``limit`` bytes of it."""

    def __init__(self, scope: Scope, receive: Receive, limit: int) -> None:
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        self._receive, self._limit = receive, limit
        self._complete = asyncio.Event()
        self.begun = False
        if int(declared) > limit:
            raise self._too_large()

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield it piece by piece.

        Raises
        ------
        Refused
            When it is larger than the limit, or stops arriving.
        Gone
            When the peer closes the connection.
        """
        self.begun = True
        size, more = 0, True
        while more:
            event = await self._next()
            size += len(event["body"])
            more = event["more_body"]
            if size > self._limit:
                raise self._too_large()
            if event["body"]:
                yield event["body"]
        self._complete.set()

    async def whole(self) -> bytes:
        """Return all of it."""
        return b"".join([piece async for piece in self.pieces()])

    async def wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        """Do the work that answers the request, and end it when the peer closes its connection.

        Raises
        ------
        Gone
            When it did.
        """
        working, watching = asyncio.create_task(work), asyncio.create_task(self._watch())
        try:
            await asyncio.wait((working, watching), timeout=WHOLE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            raise Gone("the peer closed its connection, or took too long")
        finally:
            working.cancel()
            watching.cancel()
            await asyncio.gather(working, watching, return_exceptions=True)

    async def _watch(self) -> None:
        await self._complete.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _next(self) -> MutableMapping[str, Any]:
        try:
            async with asyncio.timeout(PAUSE_SECONDS):
                event = await self._receive()
        except TimeoutError:
            # Not 408: Flower's node ends at that, and tries again at 503.
            raise Refused(503, f"no more of the body came for {PAUSE_SECONDS:g} s") from None
        if event["type"] == "http.disconnect":
            raise Gone("the peer closed its connection")
        return event

    def _too_large(self) -> Refused:
        return Refused(413, f"the body is larger than {self._limit} bytes")


async def answer(
    send: Send, code: int, content: bytes = b"", headers: Iterable[Header] = (), *, closing: bool = False
) -> None:
    """Answer a request with a content at hand; ``closing`` ends the connection too, so that a body that nobody reads can't follow."""
    ending = [(b"connection", b"close")] if closing else []
    await start(send, code, [*headers, (b"content-length", b"%d" % len(content)), *ending])
    await _send(send, {"type": "http.response.body", "body": content})


async def start(send: Send, code: int, headers: Iterable[Header]) -> None:
    """Begin an answer."""
    await _send(send, {"type": "http.response.start", "status": code, "headers": list(headers)})


async def hand_back(response: httpx.Response, send: Send) -> None:
    """Answer with what another server answered, piece by piece; where that breaks off, so does this."""
    try:
        await start(send, response.status_code, passing(response.headers.raw, ANSWERED))
        async for piece in response.aiter_raw(PIECE):
            await _send(send, {"type": "http.response.body", "body": piece, "more_body": True})
        await _send(send, {"type": "http.response.body", "body": b""})
    finally:
        await response.aclose()


async def _send(send: Send, event: MutableMapping[str, Any]) -> None:
    try:
        async with asyncio.timeout(PAUSE_SECONDS):
            await send(event)
    except TimeoutError:
        raise Gone(f"the peer took nothing for {PAUSE_SECONDS:g} s") from None


def request(url: str, headers: list[Header], content: Any, timeout: httpx.Timeout) -> httpx.Request:
    """Make a POST with exactly these headers and the host's, none of a client's own."""
    return httpx.Request("POST", url, headers=headers, content=content, extensions={"timeout": timeout.as_dict()})


class Application(Protocol):
    """What `Server` serves."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""

    async def open(self) -> None:
        """Begin, in the server's event loop."""

    async def stop(self) -> None:
        """Let requests that only wait end at once: the server was told to stop."""

    async def close(self) -> None:
        """End; no request is under way any more."""


class Connection(H11Protocol):
    """One connection. Its peer's certificate goes with every request, and the head of a request has to come in time."""

    _overdue: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Keep what the handshake proved."""
        super().connection_made(transport)
        secured = transport.get_extra_info("ssl_object")
        shown = secured.getpeercert(binary_form=True) if secured else None
        given = {WAITING: self.wait_on} | ({CERTIFICATE: shown} if shown else {})
        app = self.app

        async def with_connection(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, **given}, receive, send)

        self.app = with_connection
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Take what came; a first byte of a head sets the clock, its last one stops it."""
        if self.conn.their_state is h11.IDLE:
            self._expect_head()
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._forget_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the clock."""
        self._forget_head()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """End: at once where nothing is under way, since a peer that is idle does not notice a polite end of TLS."""
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()
        else:
            super().shutdown()

    def timeout_keep_alive_handler(self) -> None:
        """End a connection that has had no request for long, at once: a peer that has vanished would not answer a polite end of TLS."""
        self.transport.abort()

    def wait_on(self) -> None:
        """Send 102 Processing where nothing has been answered yet: a client's time-out for reading begins anew."""
        if self.conn.our_state is h11.SEND_RESPONSE and not self.transport.is_closing():
            event = h11.InformationalResponse(status_code=102, headers=[], reason=b"Processing")
            self.transport.write(self.conn.send(event) or b"")

    def _expect_head(self) -> None:
        if self._overdue is None:
            self._overdue = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _forget_head(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None


class Handshakes:
    """The handshakes under way, by where they come from. Where there are too many, the oldest of the source that has most gives way: one that is meant takes a moment."""

    def __init__(self) -> None:
        self.most = HANDSHAKES
        self._sources: defaultdict[str, dict[asyncio.Task[None], None]] = defaultdict(dict)

    def add(self, source: str, task: "asyncio.Task[None]") -> bool:
        """Count one that begins; say whether another had to give way."""
        others = self._sources[source]
        others[task] = None
        task.add_done_callback(partial(self._over, source))
        if len(others) <= min(FROM_ONE, self.most) and sum(map(len, self._sources.values())) <= self.most:
            return False
        crowd = max(self._sources, key=lambda each: len(self._sources[each]))
        oldest = next(iter(self._sources[crowd]))
        oldest.cancel()
        self._over(crowd, oldest)
        return True

    async def close(self) -> None:
        """End all."""
        for task in [task for tasks in self._sources.values() for task in tasks]:
            await ended(task)

    def _over(self, source: str, task: "asyncio.Task[None]") -> None:
        if source in self._sources:
            self._sources[source].pop(task, None)
            if not self._sources[source]:
                del self._sources[source]


class Server(uvicorn.Server):
    """Serves an application over TLS on a socket that listens, until SIGTERM or SIGINT."""

    def __init__(
        self, app: Application, context: ssl.SSLContext, listener: socket.socket, ready: Callable[[], object]
    ) -> None:
        config = uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=STOP_SECONDS,
        )
        super().__init__(config)
        self._app, self._context, self._listener, self._ready = app, context, listener, ready
        self._accepting: asyncio.Task[None] | None = None
        self._beginning = Handshakes()
        self._said: dict[tuple[str, str], float] = {}

    def run(self, _sockets: Any = None) -> None:
        """Serve; return when told to stop and all requests have ended."""
        self._beginning.most = min(HANDSHAKES, raise_descriptors() // 4)
        super().run([self._listener])

    async def startup(self, sockets: Any = None) -> None:  # noqa: ARG002 - uvicorn names it
        """Begin, and say so."""
        await self._app.open()
        await super().startup([])
        self._accepting = asyncio.create_task(self._accept())
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End."""
        await self._app.stop()
        await ended(self._accepting)
        await self._beginning.close()
        await super().shutdown(sockets)
        await self._app.close()

    async def _accept(self) -> None:
        """Take connections; asyncio's own servers say nothing of one whose handshake fails."""
        loop = asyncio.get_running_loop()
        self._listener.setblocking(False)
        while True:
            try:
                connection, address = await loop.sock_accept(self._listener)
            except OSError:  # the peer has gone, or there are no descriptors left
                await asyncio.sleep(0.1)
                continue
            host = str(address[0])
            if self._beginning.add(source_of(host), loop.create_task(self._begin(connection, host))):
                self._say_refused(host, "too many handshakes are under way; the oldest gave way")

    async def _begin(self, connection: socket.socket, host: str) -> None:
        """Have a connection's TLS begin, and log who is refused and why."""
        make = partial(
            Connection, config=self.config, server_state=self.server_state, app_state=self.lifespan.state, _loop=None
        )
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                make, connection, ssl=self._context, ssl_handshake_timeout=HEAD_SECONDS
            )
        except ssl.SSLError as error:
            if not isinstance(error, ssl.SSLEOFError):
                self._say_refused(host, _reason(error))
        except OSError:
            pass  # it hung up, or said nothing

    def _say_refused(self, host: str, reason: str) -> None:
        """Log it, once a while for each: a hospital whose certificate has expired knocks every few seconds."""
        now = time.monotonic()
        self._said = {known: when for known, when in self._said.items() if now - when < REPEAT_SECONDS}
        if (host, reason) not in self._said and len(self._said) < MOST_SAID:
            self._said[host, reason] = now
            _log.warning("refused a connection from %s: %s", host, reason)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at a signal and return in good order; uvicorn would have the process die of the signal after all."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        for number in before:
            signal.signal(number, self._stop)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self.should_exit = True


def _reason(error: ssl.SSLError) -> str:
    """Say why a handshake failed, in OpenSSL's own words but for what they hide."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate: {error.verify_message}"
    if error.reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return "it showed no certificate"
    return (error.reason or "no TLS").lower().replace("_", " ")


def source_of(host: str) -> str:
    """Return what stands for whoever has an address: of IPv6, the 64 bits of a network, of which one machine may have all.

    >>> source_of("192.0.2.7"), source_of("2001:db8::1:2") == source_of("2001:db8::3:4")
    ('192.0.2.7', True)
    """
    address = ipaddress.ip_address(host.partition("%")[0])
    return host if address.version == 4 else str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))


def raise_descriptors() -> int:
    """Have the system allow this process, and what it starts, as many descriptors as it does at most, up to `DESCRIPTORS`; return how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):  # macOS names a limit that it does not give
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return DESCRIPTORS if soft == resource.RLIM_INFINITY else soft


def socket_options() -> list[tuple[int, int, int]]:
    """Return options with which a connection notices that its peer has vanished, and keeps in the kernel little that has not been sent."""
    wanted = (("TCP_USER_TIMEOUT", 30_000), ("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_NOTSENT_LOWAT", 1 << 17))
    known = [(socket.IPPROTO_TCP, getattr(socket, name), value) for name, value in wanted if hasattr(socket, name)]
    return [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), *known]


def listen(host: str, port: int) -> socket.socket:
    """Open a socket for a server; port 0 takes any.

    Raises
    ------
    UsageError
        When the address is taken or not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=256)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error
        raise UsageError(f"{host}:{port}: cannot listen here ({reason}); choose another address or port") from None
    for option in socket_options():
        listener.setsockopt(*option)
    return listener


def quiet_logs() -> None:
    """Log our own lines to stderr, with the time; of the libraries, only warnings."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in ("uvicorn", "httpx", "httpcore", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, what led to it, and what led to that; of several at once, the first."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.exceptions[0] if isinstance(seen, BaseExceptionGroup) else seen.__cause__ or seen.__context__


def cause(error: BaseException, kind: type[T]) -> T | None:
    """Return the first error of a kind among those that led to this one."""
    return next((each for each in causes(error) if isinstance(each, kind)), None)


@asynccontextmanager
async def waiting_on(scope: Scope) -> AsyncIterator[None]:
    """Within, tell the peer every now and then to wait on."""

    async def tell() -> None:
        while True:
            await asyncio.sleep(WAIT_ON_SECONDS)
            scope[WAITING]()

    telling = asyncio.create_task(tell())
    try:
        yield
    finally:
        await ended(telling)


async def ended(task: "asyncio.Task[Any] | None") -> None:
    """Cancel a task and wait until it is over."""
    if task:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def header(headers: Iterable[Header], name: bytes) -> bytes:
    """Return a header's value, empty where it is absent."""
    return dict(headers).get(name, b"")
