"""The lock on Flower's operator's routes: what answers to whom, at the lock itself and at Flower's real program behind it."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from starlette.middleware import Middleware

from common.deployment import TOKEN_HEADER
from common.errors import FedwardError
from common.supervise import Supervisor
from server import coordinator, provision
from server.superlink import NEWS, PUSHED, Locked, short_cuts

ROOT = Path(__file__).parents[2]
TOKEN = "5a" * 32


class Behind:
    """Stands where Flower stands, and keeps what reached it."""

    def __init__(self):
        self.reached = []

    async def __call__(self, scope, receive, send):
        self.reached.append((scope["type"], scope.get("path")))
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"done"})


@pytest.fixture
def behind():
    return Behind()


def post(behind, path, headers=(), method="POST", token=TOKEN):
    """Send a request as a server would hand it on; return status and body."""
    sent = []

    async def send(event):
        sent.append(event)

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": method, "path": path, "headers": list(headers)}
    asyncio.run(Locked(behind, token)(scope, receive, send))
    return sent[0]["status"], b"".join(event.get("body", b"") for event in sent)


def token(text):
    return [(TOKEN_HEADER.encode(), text.encode())]


def test_a_request_passes_the_layers_that_concern_it_and_no_other():
    """By the names that Flower's own application has for them."""
    from flwr.superlink import main
    from starlette.applications import Starlette

    passed = []

    def noted(layer):
        class Noted:
            def __init__(self, app, **_):
                self._app = app

            async def __call__(self, scope, receive, send):
                passed.append(layer.cls.__name__)
                await self._app(scope, receive, send)

        Noted.__name__ = layer.cls.__name__
        return Middleware(Noted)

    app = Starlette(middleware=[noted(layer) for layer in main._get_middleware()])
    names = [layer.cls.__name__ for layer in app.user_middleware]
    short_cuts(app)

    def asked(path):
        passed.clear()
        post(app, path, token(TOKEN))
        return list(passed)

    control = {name for name in names if name.startswith("Control")}
    fleet = {"NodeAuthMiddleware", "FleetEventLogMiddleware"}
    assert len(control) == 4
    assert fleet < set(names)
    assert asked("/v1/control/list-nodes") == [name for name in names if name not in fleet]
    assert asked("/v1/fleet/pull-messages") == [name for name in names if name not in control]
    assert asked("/v1/runtime/push-messages") == [name for name in names if name not in control | fleet]


def test_who_asks_for_news_waits_until_there_is_a_message_more_than_he_knows_of(behind):
    async def ask(app, path, query=b""):
        sent = []

        async def send(event):
            sent.append(event)

        scope = {"type": "http", "method": "GET", "path": path, "query_string": query, "headers": []}
        await app({**scope}, None, send)
        return sent[-1]["body"]

    async def talk():
        app = Locked(behind, TOKEN)
        first = await ask(app, NEWS)
        waits = asyncio.create_task(ask(app, NEWS, first))
        await asyncio.sleep(0.05)
        assert not waits.done()
        await ask(app, "/v1/runtime/pull-messages")
        await asyncio.sleep(0.05)
        assert not waits.done()
        await ask(app, PUSHED)
        second = await asyncio.wait_for(waits, 1)
        # What came in between two questions is news as well.
        await ask(app, PUSHED)
        return first, second, await asyncio.wait_for(ask(app, NEWS, second), 1)

    assert asyncio.run(talk()) == (b"0", b"1", b"2")


OPEN = (
    "/v1/fleet/register-node",
    "/v1/fleet/pull-messages",
    "/v1/fleet/push-object",
    "/v1/runtime/acquire-task",
    "/v1/runtime/push-messages",
    "/health",
)
CLOSED = (
    "/",
    "",
    "/v1",
    "/v1/",
    "/v1/control/start-run",
    "/v1/control/list-nodes",
    "/v1/control/register-node",
    "/v1/control/stop-run",
    "/v1/control/pull-artifacts",
    "/v1/fleet",
    "/v1/runtime",
    "/v1/fleets/x",
    "/v2/fleet/x",
    "/V1/FLEET/register-node",
    "//v1/fleet/register-node",
    "/docs",
    "/openapi.json",
    "/x/v1/fleet/",
    "v1/fleet/x",
)


class TestLock:
    @pytest.mark.parametrize("path", OPEN)
    def test_routes_with_proofs_of_their_own_pass_without_the_token(self, behind, path):
        assert post(behind, path) == (200, b"done")
        assert behind.reached == [("http", path)]

    @pytest.mark.parametrize("method", ["POST", "GET", "HEAD", "OPTIONS"])
    @pytest.mark.parametrize("path", CLOSED)
    def test_all_others_do_not(self, behind, path, method):
        assert post(behind, path, method=method) == (403, b"")
        assert behind.reached == []

    @pytest.mark.parametrize("path", CLOSED + OPEN)
    def test_with_the_token_all_pass(self, behind, path):
        assert post(behind, path, token(TOKEN)) == (200, b"done")

    @pytest.mark.parametrize(
        "headers",
        [
            token(""),
            token(TOKEN[:-1]),
            token(TOKEN + "0"),
            token(TOKEN.upper()),
            token(" " + TOKEN),
            token("é" * 64),
            [(b"authorization", TOKEN.encode())],
            [(b"x-fedward-tokens", TOKEN.encode())],
            [*token(TOKEN), *token("")],
        ],
    )
    def test_another_token_is_none(self, behind, headers):
        assert post(behind, "/v1/control/start-run", headers) == (403, b"")
        assert behind.reached == []

    def test_a_line_of_another_kind_is_no_way_round(self, behind):
        async def nothing(*_):
            raise AssertionError

        scope = {"type": "websocket", "path": "/v1/control/start-run", "headers": []}
        asyncio.run(Locked(behind, TOKEN)(scope, nothing, nothing))
        assert behind.reached == []

    def test_flower_is_told_of_its_start_and_end(self, behind):
        asyncio.run(Locked(behind, TOKEN)({"type": "lifespan"}, None, None))
        assert behind.reached == [("lifespan", None)]


def routes():
    """Return path and method of every route of Flower's SuperLink, as it makes them."""
    from fastapi.routing import iter_route_contexts
    from flwr.superlink.main import create_app

    found = [(each.path or each.route.path, each.route.methods) for each in iter_route_contexts(create_app().routes)]
    return sorted({(path, method) for path, methods in found for method in methods or ()})


class TestFlower:
    """Flower's own program, started as a coordinator starts it."""

    @pytest.fixture(scope="class")
    def place(self, tmp_path_factory):
        federation = provision.create(tmp_path_factory.mktemp("s") / "federation", "trial", ["127.0.0.1"])
        place = coordinator.place_of(federation)
        with Supervisor([coordinator.superlink(place, federation.folder / "token")]):
            coordinator.wait_for_flower(place, 60)
            yield place

    def status(self, place, path, method="POST", **headers):
        content = {"content-type": "application/protobuf"} if method == "POST" else {}
        url = f"http://{place.address}{path}"
        with httpx.stream(method, url, headers=content | headers, timeout=30, trust_env=False) as answer:
            return answer.status_code

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_every_route_asks_for_a_proof(self, place):
        found = routes()
        control = [route for route in found if route[0].startswith("/v1/control/")]
        assert len(control) > 20
        for path, method in found:
            expected = 401 if path.startswith(("/v1/fleet/", "/v1/runtime/")) else 200 if path == "/health" else 403
            assert self.status(place, path, method) == expected, (method, path)

    @pytest.mark.slow
    def test_the_operators_answer_to_the_token(self, place):
        assert self.status(place, "/v1/control/list-nodes") == 403
        assert self.status(place, "/v1/control/list-nodes", **{TOKEN_HEADER: TOKEN}) == 403
        assert self.status(place, "/v1/control/list-nodes", **{TOKEN_HEADER: place.token}) == 200
        assert place.control().online() == []

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "path",
        [
            "/v1/fleet/../control/list-nodes",
            "/v1/fleet/%2e%2e/control/list-nodes",
            "/v1/fleet/%2e%2e%2fcontrol/list-nodes",
            "/health/../v1/control/list-nodes",
            "/v1/fleet//../control/list-nodes",
            "/health;/v1/control/list-nodes",
            "/v1/control/list-nodes?/v1/fleet/",
            "/v1/control/list-nodes%3F",
            "//v1/control/list-nodes",
        ],
    )
    def test_no_spelling_of_a_path_is_a_way_round(self, place, path):
        """Sent as it stands: a client would tidy some of these."""
        import socket

        with socket.create_connection(("127.0.0.1", place.port), 10) as line:
            line.sendall(
                f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/protobuf\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode()
            )
            status = int(line.makefile("rb").readline().split()[1])
        assert status in {400, 401, 403, 404}

    @pytest.mark.slow
    def test_a_wrong_token_is_said_by_name(self, place):
        with pytest.raises(
            FedwardError, match="refused /v1/control/list-nodes with 403; the federation's token is not"
        ):
            coordinator.Place(place.folder, place.port, TOKEN).control().online()

    @pytest.mark.slow
    @pytest.mark.parametrize("content", ["", "\n"])
    def test_without_a_token_it_does_not_start(self, tmp_path, content):
        (tmp_path / "token").write_text(content)
        done = subprocess.run(
            [sys.executable, "-P", "-m", "server.superlink", str(tmp_path / "token"), "--insecure"],
            env={**os.environ, "PYTHONPATH": str(ROOT), "FLWR_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 1
        assert "is empty; without a token" in done.stderr
