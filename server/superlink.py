"""Flower's SuperLink with a lock on its operator's routes: whoever reaches its port can otherwise submit code.

``python -m server.superlink TOKEN_FILE ...`` takes the options of ``flower-superlink`` and is it, but for the one door-keeper in front. That one also
tells the gateway when a message has come in, so that nobody has to ask Flower again and again.
"""

import asyncio
import gc
import hmac
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import flower
from common.deployment import TOKEN_HEADER

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/v1/fleet/", "/v1/runtime/", "/health")
"""Routes that have proofs of their own: the node's signature, the task's token, the secret of who may take up work."""
NEWS, PUSHED = "/fedward/news", "/v1/runtime/push-messages"
NEWS_SECONDS = 2.0
"""How long who asks for news waits at most: this process ends when nobody waits any more."""


CONCERNS = {"Control": "/v1/control/", "NodeAuth": "/v1/fleet/", "Fleet": "/v1/fleet/"}
"""How the names of Flower's layers begin that look at the routes of one kind alone, and these routes."""


class Layer:
    """One of Flower's layers, which requests to other than the routes that it concerns pass by: each takes a millisecond, and there are nine."""

    def __init__(self, app: App, kind: Callable[..., App], routes: str, **words: Any) -> None:
        self._layer, self._past, self._routes = kind(app, **words), app, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request through the layer, or by it."""
        concerned = scope["type"] == "http" and scope["path"].startswith(self._routes)
        await (self._layer if concerned else self._past)(scope, receive, send)


def short_cuts(app: Any) -> None:
    """Let requests pass by those of the application's layers that do not concern them."""
    from starlette.middleware import Middleware

    for place, layer in enumerate(app.user_middleware):
        routes = [path for name, path in CONCERNS.items() if layer.cls.__name__.startswith(name)]
        if routes:
            kept: Any = Layer
            app.user_middleware[place] = Middleware(kept, kind=layer.cls, routes=routes[0], **layer.kwargs)


class Locked:
    """Lets requests to other than the open routes through only with the operator's token; ``GET /fedward/news?N`` is answered when the coordinator has sent other than ``N`` messages, with their count."""

    def __init__(self, app: App, token: str) -> None:
        self._app = app
        self._token = token.encode()
        self._count, self._news = 0, asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403 without a word, or pass the request on."""
        if scope["type"] == "websocket":
            return  # Flower has none; unanswered, the server closes it with 500
        path = scope.get("path", "")
        if path == NEWS:
            if scope["query_string"] == b"%d" % self._count:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), NEWS_SECONDS)
            await _answer(send, 200, b"%d" % self._count)
        elif scope["type"] == "http" and not (path.startswith(OPEN) or self._may(scope)):
            await _answer(send, 403)
        else:
            await self._app(scope, receive, send)
            if path == PUSHED:
                self._count += 1
                news, self._news = self._news, asyncio.Event()
                news.set()

    def _may(self, scope: Scope) -> bool:
        given = dict(scope["headers"]).get(TOKEN_HEADER.encode(), b"")
        return hmac.compare_digest(given, self._token)


async def _answer(send: Send, status: int, body: bytes = b"") -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


def main() -> None:
    """Run Flower's own program with the lock in front of its routes."""
    flower.check_version()
    flower.quiet()
    from flwr.superlink import main as superlink
    from flwr.superlink.cli.flower_superlink import flower_superlink

    file = sys.argv.pop(1)
    token = Path(file).read_text(encoding="utf-8").strip()
    if not token:
        sys.exit(f"{file}: is empty; without a token these routes would be open to whoever reaches the port")
    create = superlink.create_app

    def locked(config: Any, lifespan: Any) -> Locked:
        # The option for this refuses loopback without TLS; the gateway in front has it.
        app = create(replace(config, enable_supernode_auth=True), lifespan)
        short_cuts(app)
        # Otherwise requests wait, half a second at a time, for a look for garbage among all that was imported.
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)
        return Locked(app, token)

    superlink.create_app = locked  # type: ignore[assignment]
    flower_superlink()


if __name__ == "__main__":
    main()
