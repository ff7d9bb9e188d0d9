"""The door for hospitals: mutual TLS on one port, in front of a SuperLink that only this machine can reach.

Who asks is known by the certificate, looked up on every request, so that a revocation counts at once, also on connections that are open. A member reaches
Flower's fleet routes, with the node key that was enrolled with it and in its own name, and nothing else.

``python -m server.gateway FOLDER HOST PORT UPSTREAM_URL`` runs it.
"""

import argparse
import asyncio
import base64
import hashlib
import logging
import random
import ssl
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import httpx
from cryptography import x509

from common import certificates, flower, keys, relay
from common.attempts import Attempts
from common.deployment import LARGEST_ANSWER
from common.errors import FedwardError
from common.preflight import CLOCK, HEALTH, RELEASE
from common.relay import Body, Gone, Header, Receive, Refused, Scope, Send
from server.superlink import NEWS

PULL, PUSH = "/v1/fleet/pull-messages", "/v1/fleet/push-messages"
PART = "/v1/fleet/pull-object"
LEAVE = "/v1/fleet/deactivate-node"
ALIVE = frozenset((relay.ENTER, relay.BEAT, LEAVE))
"""Routes that say nothing of whether a message has arrived."""

KEPT = relay.ANSWERED - {b"content-length"}
AT_ONCE = 16
"""Requests that one member may have under way; a node has at most four."""
SMALL = 8 << 20
"""Bytes of the largest request that is read before it is passed on: one that announces an answer, without its arrays."""
MOST_PARTS = 256
"""Parts of the largest announcement: an answer of `LARGEST_ANSWER` has some 70."""
HOLD_SECONDS = 20.0
"""How long a node that asks for messages is kept waiting: its time-out is 30 s, and its signature counts for 300 s."""
LOOK_SECONDS, LOOKS_PER_SECOND = 2.0, 50
"""A waiting node's question is put to Flower again when there is news, and after so long without; those of all nodes together not more often than Flower can well answer."""
DEAF_SECONDS = 0.5
"""How often it is asked where nothing tells of news."""
AWAITED = b"\x08\x01"
"""Flower's answer that it knows of a part and does not have it yet: a PullObjectResponse with ``object_found`` alone."""
PART_SECONDS, PART_PAUSE, PART_GROWS = 5.0, 0.02, 0.125
"""How long a part of a message is looked for that has not arrived yet, and how often: each pause is at least so long, and this share of the time that it was looked for
already. The node itself would look again after a second."""
PARTS_PER_SECOND, ALL_PARTS_PER_SECOND = 100, 400
"""The parts that one member's requests wait for are not looked for more often, nor those of all."""
MOST_TIMES = 3
"""How often a message is handed out to a node that never does anything with it."""
TIMEOUT = httpx.Timeout(30.0, connect=5.0)
STAY_SECONDS = 600.0
"""How long a request that stays open does so, until it is made anew."""
LOST_SECONDS = 10.0
"""How long nothing may come from a hospital whose requests have all ended with their connections, until Flower is told that its node has left; Flower itself would
notice after a minute. A line that was cut for 5 s is back by then."""
MEMBER_SECONDS = 5.0
"""How often it is asked, while a request is under way, whether its sender is still a member."""
REFRESH_SECONDS = 3600.0
"""How often the age of the gateway's own certificate is looked at."""

_RELEASE = RELEASE.encode(), version("fedward").encode()
_log = logging.getLogger("fedward.gateway")


class Member(Protocol):
    """A hospital that was admitted; ``node_key`` is the public key of its node, a line in OpenSSH's form."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def node_key(self) -> str: ...  # noqa: D102


class Federation(Protocol):
    """What the gateway needs of a federation."""

    def member_of(self, certificate_der: bytes, /) -> Member | None:
        """Return whose certificate this is; None unless it counts at this moment."""

    def renew(self, name: str, csr_pem: bytes, certificate_der: bytes, /) -> bytes:
        """Return a new certificate for a member, beside the one that it shows."""


@dataclass
class _Handed:
    """A message that was handed out, kept until the node does something with it, because Flower itself gives it out once."""

    content: bytes
    until: float
    times: int = 0


@dataclass
class _Line:
    """What is remembered of a member."""

    busy: int = 0
    """Its requests under way."""
    begun: int = 0
    """All that ever began."""
    renewing: bool = False
    asked: int = 0
    """How often its node asked for messages."""
    waiting: int = 0
    """How many of these questions wait."""
    seeking: int = 0
    """How many of its requests wait for a part of a message."""
    looking: "asyncio.Task[None] | None" = None
    """Looks whether it comes back, see `Gateway._stay`."""
    handed: _Handed | None = None
    """A message that it may not have received."""
    node: int = 0
    """Its node's number in Flower."""
    signed: list[Header] = field(default_factory=list)
    """What its node signed last."""
    left: bool = False
    """Whether Flower was told that this node has left."""
    room: int = field(default_factory=lambda: LARGEST_ANSWER)
    """Bytes that it may send: as many as an answer may have, again with every message for it that is handed out."""

    def grant(self) -> None:
        """Make room for one answer more, and keep room for no more than two."""
        self.room = min(self.room + LARGEST_ANSWER, 2 * LARGEST_ANSWER)

    async def within(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Pass on what is sent as long as there is room for it."""
        async for piece in pieces:
            self.room -= len(piece)
            if self.room < 0:
                raise Refused(413, "more bytes than the answers to what was asked may have")
            yield piece


class Gateway:
    """The ASGI application; ``limit`` is the largest request in bytes, ``hold`` how many seconds a question for messages waits for one."""

    def __init__(
        self, federation: Federation, upstream: str, limit: int = relay.LARGEST, hold: float = HOLD_SECONDS
    ) -> None:
        self._federation, self._upstream = federation, upstream.rstrip("/")
        self._limit, self._hold = limit, hold
        self._lines: defaultdict[str, _Line] = defaultdict(_Line)
        self._held = self._sought = 0
        self._asking: set[asyncio.Task[Any]] = set()
        self._stopping = asyncio.Event()
        self._news = asyncio.Event()
        self._listening: asyncio.Task[None] | None = None
        # The way to the SuperLink is loopback: no proxy of the environment has a part in it.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self._client = httpx.AsyncClient(limits=limits, trust_env=False)

    async def open(self) -> None:
        """Begin."""
        self._listening = asyncio.create_task(self._listen())

    async def stop(self) -> None:
        """Answer the nodes that wait."""
        self._stopping.set()
        self._wake()

    async def close(self) -> None:
        """End."""
        await relay.ended(self._listening)
        for line in self._lines.values():
            if line.looking and not line.looking.done():
                await relay.ended(line.looking)
        await asyncio.gather(*self._asking, return_exceptions=True)
        await self._client.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        try:
            async with relay.waiting_on(scope):
                await self._while_member(self._member(scope), scope, receive, send)
        except Refused as refusal:
            _log.warning("refused %s %s %d: %s", self._who(scope), _route(scope), refusal.code, refusal)
            await relay.answer(send, refusal.code, closing=True)
        except Gone:
            pass
        except httpx.TransportError as error:
            # The answer has begun and can't be ended well; the server cuts it off when this returns, and the node asks again.
            _log.warning("broken off %s %s: %s", self._who(scope), _route(scope), type(error).__name__)

    async def _while_member(self, member: Member, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, which may take an hour over a slow line, and break it off when the member is one no more."""
        begun = False

        async def sent(event: MutableMapping[str, Any]) -> None:
            nonlocal begun
            begun = True
            await send(event)

        answering = asyncio.create_task(self._answer(member, scope, receive, sent))
        try:
            while not (await asyncio.wait({answering}, timeout=MEMBER_SECONDS))[0]:
                self._member(scope)
            await answering
        except Refused:
            if not begun:
                raise
            # What has begun can't be refused any more; the server cuts it off when this returns.
            _log.warning("broken off %s %s: no member any more", self._who(scope), _route(scope))
        finally:
            await relay.ended(answering)

    def _member(self, scope: Scope) -> Member:
        member = self._federation.member_of(scope.get(relay.CERTIFICATE, b""))
        if member is None:
            raise Refused(403, "no member's certificate")
        return member

    def _who(self, scope: Scope) -> str:
        certificate = scope.get(relay.CERTIFICATE, b"")
        member = self._federation.member_of(certificate)
        return repr(member.name) if member else _stranger(certificate)

    async def _answer(self, member: Member, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["raw_path"].decode("ascii", "replace")
        line = self._lines[member.name]
        if (method, path) == ("GET", HEALTH):
            await relay.answer(send, 200, b"ok\n", [(CLOCK.encode(), b"%.3f" % time.time()), _RELEASE])
        elif (method, path) == ("POST", relay.RENEW):
            with _at_once(line), _alone(line):
                csr = await Body(scope, receive, certificates.LARGEST).whole()
                await relay.answer(send, 200, await self._renewed(member, csr, scope[relay.CERTIFICATE]))
        elif (method, path) == ("POST", relay.STAY):
            with _at_once(line):
                await self._stay(member, line, Body(scope, receive, 0), send)
        elif method == "POST" and path in relay.FLEET:
            with _at_once(line):
                await self._fleet(member, line, path, scope, receive, send)
        else:
            raise Refused(403, "no route for hospitals")

    async def _renewed(self, member: Member, csr: bytes, shown: bytes) -> bytes:
        try:
            # In a thread: it signs, waits for a lock and for the disk, and others are to be answered meanwhile.
            pem = await asyncio.to_thread(self._federation.renew, member.name, csr, shown)
        except FedwardError as error:
            raise Refused(400, f"not renewed: {error}") from None
        _log.info("renewed %r", member.name)
        return pem

    async def _fleet(self, member: Member, line: _Line, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        headers = relay.passing(scope["headers"], relay.ASKED)
        if relay.header(headers, relay.NODE_KEY) != _header_of(member.node_key):
            raise Refused(403, "another node key than was enrolled with this certificate")
        if path not in ALIVE | {PULL}:
            line.handed = None
        line.signed = [(name, value) for name, value in headers if name != b"content-length"]
        if line.left:
            line.left = False
            if path not in ALIVE:
                await self._say_for(line, relay.BEAT, _beating(line.node))
        body = Body(scope, receive, self._limit if path not in (PULL, PUSH, PART) else min(SMALL, self._limit))
        if path == PULL:
            question = await body.whole()
            line.node = _asking_node(question) or line.node
            await body.wait_for(self._pull(line, scope, headers, question, send))
        elif path == PART:
            await body.wait_for(self._part(line, headers, await body.whole(), send))
        elif path == relay.ENTER:
            await body.wait_for(self._enter(line, headers, await body.whole(), send))
        else:
            content: Any = _own_answers(await body.whole()) if path == PUSH else line.within(body.pieces())
            await body.wait_for(self._pass_on(path, headers, content, send))

    async def _pass_on(self, path: str, headers: list[Header], content: Any, send: Send) -> None:
        with _reached():
            response = await self._client.send(self._request(path, headers, content), stream=True)
        await relay.hand_back(response, send)

    async def _enter(self, line: _Line, headers: list[Header], content: bytes, send: Send) -> None:
        """Let a node in. Where it was in already, that was a process which ended without a word: Flower would refuse this one for a minute."""
        if line.node:
            await self._say_for(line, LEAVE, _leaving(line.node))
            line.node = 0
        await self._pass_on(relay.ENTER, headers, content, send)

    async def _stay(self, member: Member, line: _Line, body: Body, send: Send) -> None:
        """Keep a request open for as long as its sender does; where that one ends with its connection, look whether the hospital comes back."""
        await body.whole()
        try:
            await body.wait_for(self._stopped_within(STAY_SECONDS))
            await relay.answer(send, 200)
        finally:
            # One that looks already goes on doing so, since this request began after it.
            if line.looking is None or line.looking.done():
                line.looking = asyncio.create_task(self._look_for(member, line))

    async def _stopped_within(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    async def _look_for(self, member: Member, line: _Line) -> None:
        """Tell Flower that a hospital's node has left where nothing comes from there any more; a line that is cut for short is no loss."""
        begun = -1
        while begun != line.begun:
            begun = line.begun
            await asyncio.sleep(LOST_SECONDS)
            if line.busy:
                return
        if line.node and not line.left:
            line.left = True
            _log.warning("%r is gone: nothing came for %g s after its connections had ended", member.name, LOST_SECONDS)
            with suppress(Refused):
                await self._say_for(line, LEAVE, _leaving(line.node))

    async def _say_for(self, line: _Line, path: str, content: bytes) -> None:
        """Say something to Flower in the name of a node, with what it signed last, which counts for 300 s."""
        with _reached():
            await self._client.send(self._request(path, line.signed, content))

    async def _part(self, line: _Line, headers: list[Header], content: bytes, send: Send) -> None:
        """Hand out a part of a message; a message is announced before its parts have arrived."""
        begun = time.monotonic()
        while True:
            with _reached():
                response = await self._client.send(self._request(PART, headers, content), stream=True)
                if response.headers.get("content-length") != str(len(AWAITED)):
                    break
                short = await response.aread()
            waited = time.monotonic() - begun
            if short != AWAITED or waited > PART_SECONDS:
                await relay.answer(send, response.status_code, short, relay.passing(response.headers.raw, KEPT))
                return
            with self._seeking(line):
                shares = line.seeking / PARTS_PER_SECOND, self._sought / ALL_PARTS_PER_SECOND
                await asyncio.sleep(max(PART_PAUSE, PART_GROWS * waited, *shares))
        await relay.hand_back(response, send)

    async def _pull(self, line: _Line, scope: Scope, headers: list[Header], content: bytes, send: Send) -> None:
        """Answer when there is a message for the node, when it has waited long enough, or when it asks anew on another connection."""
        line.asked += 1
        if line.waiting:
            self._wake()
        asked, end = line.asked, time.monotonic() + self._hold
        with self._holding(line):
            while True:
                news = self._news
                found = await self._ask(line, headers, content)
                over = self._stopping.is_set() or line.asked != asked or time.monotonic() > end
                if over or found.content or not found.is_success:
                    break
                with suppress(TimeoutError):
                    await asyncio.wait_for(news.wait(), min(LOOK_SECONDS, max(end - time.monotonic(), 0.0)))
                # The news is for all who wait, and most often there is something for each of them.
                await asyncio.sleep(random.uniform(0, self._held / LOOKS_PER_SECOND))  # noqa: S311 - spreads questions, hides nothing
                self._member(scope)
        await relay.answer(send, found.status_code, found.content, relay.passing(found.headers.raw, KEPT))

    async def _listen(self) -> None:
        """Wake the nodes that wait whenever the coordinator has sent a message; see `server.superlink`."""
        known = ""
        while True:
            try:
                answer = await self._client.get(f"{self._upstream}{NEWS}?{known}", timeout=TIMEOUT)
                count = answer.text if answer.is_success else ""
            except httpx.HTTPError:
                count = ""
            if not count:
                await asyncio.sleep(DEAF_SECONDS)
            if count != known or not count:
                self._wake()
            known = count

    def _wake(self) -> None:
        """Have the nodes that wait look again."""
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def _ask(self, line: _Line, headers: list[Header], content: bytes) -> httpx.Response:
        """Ask Flower once; but first hand out again what was lost on its way."""
        if line.handed and line.handed.times < MOST_TIMES and time.time() < line.handed.until:
            line.handed.times += 1
            return httpx.Response(200, content=line.handed.content, headers={"content-type": "application/protobuf"})
        task = asyncio.create_task(self._ask_flower(line, self._request(PULL, headers, content)))
        self._asking.add(task)
        task.add_done_callback(self._asked)
        # Shielded: Flower counts the message as delivered even where the node has gone in the meantime.
        return await asyncio.shield(task)

    async def _ask_flower(self, line: _Line, request: httpx.Request) -> httpx.Response:
        with _reached():
            response = await self._client.send(request)
        if response.is_success and response.content:
            line.handed = _Handed(response.content, _end_of_life(response.content), times=1)
            line.grant()
        return response

    def _asked(self, task: "asyncio.Task[httpx.Response]") -> None:
        self._asking.discard(task)
        if not task.cancelled():
            # Looked at here, since nobody else does where the node has gone.
            task.exception()

    def _request(self, path: str, headers: list[Header], content: Any) -> httpx.Request:
        return relay.request(self._upstream + path, headers, content, TIMEOUT)

    @contextmanager
    def _holding(self, line: _Line) -> Iterator[None]:
        self._held += 1
        line.waiting += 1
        try:
            yield
        finally:
            self._held -= 1
            line.waiting -= 1

    @contextmanager
    def _seeking(self, line: _Line) -> Iterator[None]:
        self._sought += 1
        line.seeking += 1
        try:
            yield
        finally:
            self._sought -= 1
            line.seeking -= 1


@contextmanager
def _at_once(line: _Line) -> Iterator[None]:
    """Count a member's requests under way.

    Raises
    ------
    Refused
        When there are too many.
    """
    if line.busy >= AT_ONCE:
        # Not 429: Flower's node ends at that, and tries again at 503.
        raise Refused(503, f"more than {AT_ONCE} requests at once")
    line.busy += 1
    line.begun += 1
    try:
        yield
    finally:
        line.busy -= 1


@contextmanager
def _alone(line: _Line) -> Iterator[None]:
    """Renew one certificate of a member at a time; raise as `_at_once` does."""
    if line.renewing:
        raise Refused(503, "a renewal is under way")
    line.renewing = True
    try:
        yield
    finally:
        line.renewing = False


@contextmanager
def _reached() -> Iterator[None]:
    try:
        yield
    except httpx.TransportError as error:
        raise Refused(503, f"Flower does not answer ({type(error).__name__})") from None


@lru_cache(maxsize=1024)
def _header_of(node_key: str) -> bytes:
    """Return a node key as Flower's node sends it: PEM, in base64."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = keys.load_public(node_key, "node", "node key")
    return base64.b64encode(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def _own_answers(content: bytes) -> bytes:
    """Return an announcement of answers where they are all in the name of the node that sends it.

    Flower proves the node that asks, but takes the sender that stands in a message on trust, and a message that replies to nothing as an instruction: any
    node could speak as another, and even as the coordinator to another hospital. Nor does it count the parts that it is told of.
    """
    from flwr.proto.fleet_pb2 import PushMessagesRequest
    from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        announced = PushMessagesRequest.FromString(content)
    except DecodeError:
        raise Refused(400, "no announcement of answers") from None
    for each in announced.messages_list:
        if each.metadata.src_node_id != announced.node.node_id or not each.metadata.reply_to_message_id:
            raise Refused(403, "a message in another's name")
    trees = announced.message_object_trees
    if [tree.object_id for tree in trees] != [each.metadata.message_id for each in announced.messages_list]:
        raise Refused(403, "parts of other messages than are announced")
    if sum(1 for tree in trees for _ in islice(iterate_object_tree(tree), MOST_PARTS + 1)) > MOST_PARTS:
        raise Refused(413, f"an answer of more than {MOST_PARTS} parts")
    return content


def _asking_node(content: bytes) -> int:
    """Return the number of the node that asks for messages, 0 where it says none; Flower checks that it is the sender's."""
    from flwr.proto.fleet_pb2 import PullMessagesRequest
    from google.protobuf.message import DecodeError

    try:
        return int(PullMessagesRequest.FromString(content).node.node_id)
    except DecodeError:
        return 0


def _leaving(node: int) -> bytes:
    """Return what a node says that leaves."""
    from flwr.proto.fleet_pb2 import DeactivateNodeRequest

    return bytes(DeactivateNodeRequest(node_id=node).SerializeToString())


def _beating(node: int) -> bytes:
    """Return what a node says that is there."""
    from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
    from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
    from flwr.proto.node_pb2 import Node

    request = SendNodeHeartbeatRequest(node=Node(node_id=node), heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
    return bytes(request.SerializeToString())


def _end_of_life(content: bytes) -> float:
    """Return until when the messages in Flower's answer count, in seconds of this machine's clock, on which they were made."""
    from flwr.proto.fleet_pb2 import PullMessagesResponse
    from google.protobuf.message import DecodeError

    try:
        found = PullMessagesResponse.FromString(content).messages_list
    except DecodeError:
        raise Refused(503, "Flower's answer cannot be read") from None
    return min((each.metadata.created_at + each.metadata.ttl for each in found), default=0.0)


def _stranger(certificate: bytes) -> str:
    """Name a certificate that is no member's by the hash of its subject, so that the log holds no text of a stranger's."""
    if not certificate:
        return "without certificate"
    try:
        subject = x509.load_der_x509_certificate(certificate).subject.public_bytes()
    except ValueError:
        subject = certificate
    return f"subject {hashlib.sha256(subject).hexdigest()[:16]}"


def _route(scope: Scope) -> str:
    """Return a request's method and path for the log, short and in plain letters."""
    return ascii(f"{scope['method']} {scope['path']}"[:80])


class House(Federation, Protocol):
    """A federation's folder, as far as it concerns the gateway's own certificate; all PEM."""

    @property
    def authority(self) -> bytes: ...  # noqa: D102
    @property
    def gateway_key(self) -> Path: ...  # noqa: D102
    @property
    def gateway_certificate(self) -> Path: ...  # noqa: D102
    def refresh_gateway(self) -> bool:
        """Make the certificate anew where it is about to expire; say whether it was."""


def context_of(federation: House) -> ssl.SSLContext:
    """Return the gateway's TLS: version 1.3, and a client certificate of the federation's authority on every connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=federation.authority.decode("ascii"))
    # A resumed session would not show whether the certificate is still in its time.
    context.num_tickets = 0
    show_certificate(context, federation)
    return context


def show_certificate(context: ssl.SSLContext, federation: House) -> None:
    """Have connections from now on see the certificate that is in the federation's folder."""
    key = keys.load_private(keys.read(federation.gateway_key), "tls", str(federation.gateway_key))
    keys.load_chain(context, federation.gateway_certificate.read_bytes(), key)


class _Served(Gateway):
    """A gateway that also keeps its own certificate fresh."""

    def __init__(self, federation: House, upstream: str, context: ssl.SSLContext) -> None:
        super().__init__(federation, upstream)
        self._house, self._context = federation, context
        self._shown = federation.gateway_certificate.read_bytes()
        self._refreshing: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Begin."""
        await super().open()
        self._refreshing = asyncio.create_task(self._refresh())

    async def close(self) -> None:
        """End."""
        await relay.ended(self._refreshing)
        await super().close()

    async def _refresh(self) -> None:
        attempts, pause = Attempts("the gateway's certificate was not made anew"), REFRESH_SECONDS
        while True:
            await asyncio.sleep(pause)
            pause = REFRESH_SECONDS if attempts.make(self._freshen) else attempts.wait()

    def _freshen(self) -> None:
        self._house.refresh_gateway()
        # Compared to what is shown, and not to what was just made: that may have been made by an attempt that failed afterwards.
        there = self._house.gateway_certificate.read_bytes()
        if there != self._shown:
            show_certificate(self._context, self._house)
            self._shown = there
            _log.info("the gateway shows a new certificate from now on")


def serve(
    federation: House, host: str, port: int, upstream: str, ready: Callable[[int], object] = lambda _port: None
) -> None:
    """Run the gateway until SIGTERM or SIGINT; ``ready`` is told the port as soon as hospitals can connect.

    Raises
    ------
    UsageError
        When the address is taken.
    """
    federation.refresh_gateway()
    context = context_of(federation)
    listener = relay.listen(host, port)
    bound = int(listener.getsockname()[1])
    relay.Server(_Served(federation, upstream, context), context, listener, lambda: ready(bound)).run()


def main(words: list[str] | None = None) -> int:
    """Run the gateway of a federation's folder; print ``ready PORT`` when it listens."""
    from server.provision import open_federation

    parser = argparse.ArgumentParser(prog="server.gateway", description="The federation's door for hospitals.")
    parser.add_argument("folder", type=Path, help="the federation's folder")
    parser.add_argument("host", help="address to listen on, such as 0.0.0.0")
    parser.add_argument("port", type=int, help="port to listen on; 0 takes any")
    parser.add_argument("upstream", help="where the SuperLink listens, such as http://127.0.0.1:8000")
    args = parser.parse_args(words)
    flower.quiet()
    relay.quiet_logs()
    try:
        serve(
            open_federation(args.folder),
            args.host,
            args.port,
            args.upstream,
            lambda port: print("ready", port, flush=True),
        )
    except FedwardError as error:
        _log.error("%s", error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
