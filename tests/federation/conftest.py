"""A federation with two hospitals, its gateway on a real socket, and in place of the SuperLink a small server that says what it was asked."""

import asyncio
import base64
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import uvicorn
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from client import site as sites
from client.site import Site
from common import relay
from server import gateway, provision, superlink

PROTOBUF = "application/protobuf"
RUNNING = []
"""The federation of real processes, while there is one."""


@contextmanager
def serving(app, context) -> Iterator[int]:
    """Serve an application in a thread; give its port."""
    listener, ready = relay.listen("127.0.0.1", 0), threading.Event()
    server = relay.Server(app, context, listener, ready.set)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert ready.wait(10)
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(15)
        assert not thread.is_alive()


@dataclass
class Upstream:
    """Stands where Flower stands: keeps each request, and answers with what `says` holds for its path, or with its body. Those that have ``begun`` it knows by path."""

    port: int = 0
    begun: list[str] = field(default_factory=list)
    asked: list[dict] = field(default_factory=list)
    says: dict[str, bytes] = field(default_factory=dict)
    slow: float = 0.0

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return
        self.begun.append(scope["path"])
        body, more = bytearray(), True
        while more:
            event = await receive()
            if event["type"] == "http.disconnect":
                self.asked.append({"path": scope["path"], "cut": len(body)})
                return
            body += event["body"]
            more = event["more_body"]
        await asyncio.sleep(self.slow)
        path = scope["path"]
        self.asked.append(
            {"path": path, "headers": dict(scope["headers"]), "body": bytes(body), "client": scope["client"]}
        )
        content = self.says.get(path, bytes(body))
        if path.endswith("pull-messages"):
            content = self.says.pop(path, b"")
        headers = [(b"content-type", PROTOBUF.encode()), (b"x-secret", b"of the coordinator")]
        if content == b"break off":
            headers.append((b"content-length", b"100"))
        elif path.endswith("pull-object"):
            headers.append((b"content-length", str(len(content)).encode()))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content, "more_body": False})

    def send(self, content: bytes) -> None:
        """Have a message for a node, as after the coordinator has sent one."""
        self.says["/v1/fleet/pull-messages"] = content
        httpx.post(f"http://127.0.0.1:{self.port}{superlink.PUSHED}")

    def paths(self) -> list[str]:
        return [each["path"] for each in self.asked]


@contextmanager
def plainly_serving(app) -> Iterator[int]:
    """Serve an application on plain HTTP in a thread; give its port."""
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, log_config=None, access_log=False, lifespan="off", http="h11", ws="none")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(15)


def until(true, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@dataclass
class Door:
    """A federation, its two hospitals, and the gateway between one of them and Flower."""

    federation: provision.Federation
    east: Site
    west: Site
    upstream: Upstream
    port: int = 0

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def client(self, site: Site | None = None, context=None, **words) -> httpx.Client:
        context = context or (site or self.east).tls_context()
        return httpx.Client(base_url=self.url, verify=context, trust_env=False, **words)

    def post(self, path: str, site: Site | None = None, **words) -> httpx.Response:
        with self.client(site) as client:
            return client.post(path, **{"headers": node(site or self.east), **words})


def node(site: Site) -> dict[str, str]:
    """Return the header by which Flower's node shows its key."""
    key = serialization.load_ssh_private_key(site.node_key(), None).public_key()
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return {"flwr-public-key": base64.b64encode(pem).decode(), "content-type": PROTOBUF}


def join(federation: provision.Federation, folder: Path, name: str) -> Site:
    site = sites.create(folder, name, "heart")
    site.join(federation.admit(sites.joining.read_document(folder / sites.REQUEST)), federation.fingerprint)
    return site


@pytest.fixture(scope="session")
def _flower() -> Iterator[Upstream]:
    flower = Upstream()
    with plainly_serving(superlink.Locked(flower, "token")) as flower.port:
        yield flower


@pytest.fixture
def upstream(_flower) -> Upstream:
    _flower.begun, _flower.asked, _flower.says, _flower.slow = [], [], {}, 0.0
    return _flower


@pytest.fixture
def hospitals(tmp_path, upstream) -> Door:
    federation = provision.create(tmp_path / "federation", "trial", ["127.0.0.1"])
    east, west = (join(federation, tmp_path / name, name) for name in ("east", "west"))
    return Door(federation, east, west, upstream)


@pytest.fixture
def make_door(hospitals):
    """Open the gateway with settings of a test's own."""

    @contextmanager
    def opened(**settings):
        app = gateway.Gateway(hospitals.federation, f"http://127.0.0.1:{hospitals.upstream.port}", **settings)
        with serving(app, gateway.context_of(hospitals.federation)) as hospitals.port:
            yield hospitals

    return opened


@pytest.fixture
def door(make_door) -> Iterator[Door]:
    with make_door(hold=1.0) as opened:
        yield opened


@pytest.fixture(scope="session")
def running():
    """Give a federation of real processes, which all slow tests share: each leaves three hospitals that are connected."""
    from tests.federation.processes import Federation

    # Sockets have short paths; those of pytest's own folders are longer.
    with tempfile.TemporaryDirectory(prefix="fw-") as root:
        federation = Federation(Path(root))
        RUNNING.append(federation)
        try:
            federation.prepare()
            yield federation
        finally:
            stop_all()


def stop_all():
    while RUNNING:
        RUNNING.pop().stop()


def pytest_runtest_teardown(nextitem):
    """Stop the federation after the last test of this folder: those that follow need the machine."""
    if nextitem is None or Path(__file__).parent not in nextitem.path.parents:
        stop_all()


@pytest.fixture(scope="session")
def tools() -> SimpleNamespace:
    """Give the functions of this file."""
    return SimpleNamespace(node=node, join=join, serving=serving, plainly_serving=plainly_serving, until=until)
