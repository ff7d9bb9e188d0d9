"""What goes wrong on the way, made on purpose: a proxy of TCP bytes, which can't read them, and one of plain HTTP, which remembers.

Both stand on loopback, and what they do can be changed while connections are open. Where bytes are turned follows from a seed.
"""

import asyncio
import random
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import httpx

from server import superlink

PIECE = 1 << 14
AT_ONCE = struct.pack("ii", 1, 0)
"""SO_LINGER of a connection that ends with RST."""
PULL, PART = "/v1/fleet/pull-messages", "/v1/fleet/pull-object"
UNUSED = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""So that no client reads all the world's authorities, which takes longer than a request."""
HOP = {b"connection", b"content-length", b"host", b"transfer-encoding"}


@dataclass(eq=False)
class Pair:
    """A connection, by its ends at the client and at the target; on one that is lost nothing passes any more, not even its end."""

    ends: tuple[asyncio.StreamWriter, asyncio.StreamWriter]
    lost: bool = False
    left: set[asyncio.StreamWriter] = field(default_factory=set)
    """Ends that were closed over there."""

    @property
    def given_up(self) -> bool:
        """Say whether the client has closed it."""
        return self.ends[0] in self.left

    def reset(self) -> None:
        for end in self.ends:
            _reset(end)


class Proxy:
    """Passes connections on to a port of this machine, in a thread of its own; used as a context.

    May be set at any time: ``delay``, seconds before each piece is passed on; ``rate``, bytes a second in each direction of all connections together; ``turned``, the
    share of pieces in which one bit is turned; ``most``, bytes of a direction after which the connection is cut off. 0 is without.
    """

    def __init__(self, target: int, seed: int = 0):
        self.delay = self.rate = self.turned = self.most = 0.0
        self.port = 0
        self.tries: list[float] = []
        """When somebody connected, by the monotonic clock."""
        self.sent = bytearray()
        """What clients sent since it was last cleared, as it was on the wire."""
        self._target, self._draw, self._mode, self._answered = target, random.Random(seed), "passing", 0.0
        self._free = [0.0, 0.0]
        self._pairs: set[Pair] = set()
        self._ready = threading.Event()

    def __enter__(self):
        self._thread = threading.Thread(target=asyncio.run, args=(self._run(),))
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_):
        self._do(self._over.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    @property
    def pairs(self) -> set[Pair]:
        """Return the connections of this moment."""
        return set(self._pairs)

    def cut(self):
        """Reset every connection, and each new one, until `heal`; return when none is left, so that what is asked afterwards is asked in the cut."""
        self._mode, lost = "cut", self.pairs
        self._do(lambda: [pair.reset() for pair in self._pairs])
        end = time.monotonic() + 10
        while lost & self.pairs:
            assert time.monotonic() < end, "a connection outlives its reset"
            time.sleep(0.001)

    def hold(self):
        """Pass nothing on until `heal`, and lose nothing, as where the kernel sends again what was lost."""
        self._do(self._flowing.clear)

    def vanish(self):
        """Swallow everything until `heal`; on connections of that time nothing ever passes again."""
        self._mode = "vanishing"
        for pair in self.pairs:
            pair.lost = True

    def heal(self) -> float:
        """Pass on again; return when."""
        self._mode = "passing"
        self._do(self._flowing.set)
        return time.monotonic()

    def back(self, healed: float, seconds: float) -> float:
        """Return how long after ``healed`` something came back from the target; it has so many seconds."""
        while self._answered < healed:
            assert time.monotonic() < healed + seconds, f"nothing came through within {seconds:g} s"
            time.sleep(0.02)
        return self._answered - healed

    def _do(self, work: Callable[[], object]):
        self._loop.call_soon_threadsafe(work)

    async def _run(self):
        self._loop, self._over, self._flowing = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        self._flowing.set()
        server = await asyncio.start_server(self._passed_on, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._over.wait()
        server.close()
        self._mode = "cut"
        self._flowing.set()
        for pair in self._pairs:
            pair.reset()
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)

    async def _passed_on(self, reader, writer):
        self.tries.append(time.monotonic())
        try:
            if self._mode == "cut":
                raise ConnectionError
            inner, outer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            _reset(writer)
            return
        pair = Pair((writer, outer), lost=self._mode == "vanishing")
        self._pairs.add(pair)
        try:
            await asyncio.gather(self._pump(pair, reader, writer, outer), self._pump(pair, inner, outer, writer))
        finally:
            self._pairs.discard(pair)
            writer.close()
            outer.close()

    async def _pump(self, pair, reader, source, writer):
        """Pass on what comes from one end, until that end or the proxy has enough."""
        passed = 0
        with suppress(ConnectionError):
            while piece := await reader.read(PIECE if not self.rate else 4 * PIECE):
                await asyncio.sleep(self.delay + self._turn(source is pair.ends[0], len(piece)))
                await self._flowing.wait()
                if pair.lost:
                    continue
                if self.most and passed + len(piece) > self.most:
                    piece = piece[: max(int(self.most) - passed, 0)]
                passed += len(piece)
                writer.write(self._spoilt(piece))
                await writer.drain()
                if source is pair.ends[0]:
                    self.sent += piece
                else:
                    self._answered = time.monotonic()
                if self.most and passed >= self.most:
                    pair.reset()
        pair.left.add(source)
        if not pair.lost:
            writer.close()

    def _turn(self, up, size):
        """Return how long it takes until so many bytes more have passed on a line that all connections share."""
        if not self.rate:
            return 0.0
        now = time.monotonic()
        self._free[up] = max(now, self._free[up]) + size / self.rate
        return self._free[up] - now

    def _spoilt(self, piece):
        if self._draw.random() >= self.turned:
            return piece
        turned = bytearray(piece)
        turned[self._draw.randrange(len(piece))] ^= 1 << self._draw.randrange(8)
        return bytes(turned)


def _reset(writer):
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
    writer.transport.abort()


@dataclass
class Recorder:
    """An ASGI application in front of Flower that keeps what passed, and can do it again: as a hostile coordinator could, or a fault in between."""

    upstream: str
    asked: list[tuple[str, list[tuple[bytes, bytes]], bytes]] = field(default_factory=list)
    """Path, headers and body of each request that was not a mere question for messages."""
    announced: dict[bytes, bytes] = field(default_factory=dict)
    """By the node key of who asked, the last answer that announced a message."""
    again: set[bytes] = field(default_factory=set)
    """Node keys to which their last announcement is made once more."""
    _parts: dict[bytes, bytes] = field(default_factory=dict)

    async def __call__(self, scope, receive, send):
        body, more = bytearray(), True
        while more:
            event = await receive()
            if event["type"] == "http.disconnect":
                return
            body += event["body"]
            more = event["more_body"]
        if scope["path"] == superlink.NEWS:
            code, content = await self._passed("GET", f"{superlink.NEWS}?{scope['query_string'].decode()}", [], b"")
        else:
            code, content = await self._answer(scope["path"], scope["headers"], bytes(body))
        headers = [(b"content-type", b"application/protobuf"), (b"content-length", b"%d" % len(content))]
        await send({"type": "http.response.start", "status": code, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _passed(self, method, path, headers, body):
        async with httpx.AsyncClient(verify=UNUSED, trust_env=False, timeout=60) as client:
            response = await client.request(method, self.upstream + path, content=body, headers=headers)
        return response.status_code, response.content

    async def _answer(self, path, headers, body):
        node = dict(headers).get(b"flwr-public-key", b"")
        if path == PULL and node in self.again:
            self.again.discard(node)
            return 200, self.announced[node]
        code, content = await self._passed("POST", path, _passing(headers), body)
        if path == PULL and code == 200 and content:
            self.announced[node] = content
        elif path == PART:
            # Flower forgets a part that was fetched; who sends a message again has its parts, too.
            self._parts.setdefault(body, content)
            if len(content) < len(self._parts[body]):
                return 200, self._parts[body]
            self._parts[body] = content
        elif path != PULL:
            self.asked.append((path, _passing(headers), body))
        return code, content

    def repeat(self) -> list[tuple[str, int]]:
        """Make every request again that was made, byte for byte; return each path and the code of the answer."""
        with httpx.Client(base_url=self.upstream, trust_env=False, timeout=60) as client:
            return [
                (path, client.post(path, content=body, headers=given).status_code)
                for path, given, body in list(self.asked)
            ]


def _passing(headers):
    return [(name, value) for name, value in headers if name not in HOP]
