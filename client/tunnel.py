"""The hospital's way out: Flower's node talks TLS to this process on loopback, which talks mutual TLS to the federation's gateway, and to nothing else.

One outbound connection target, through the proxy of ``HTTPS_PROXY`` where there is one. The hospital's certificate is renewed here, over the same key.

``python -m client.tunnel SITE GATEWAY_URL FOLDER`` runs it; ``FEDWARD_PASSPHRASE`` in the environment opens a sealed key.
"""

import argparse
import asyncio
import logging
import os
import random
import ssl
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import httpx

from common import certificates, keys, relay
from common.certificates import Issuer
from common.errors import DataError, FedwardError, UsageError
from common.relay import Body, Gone, Receive, Refused, Scope, Send

LOOPBACK = "127.0.0.1"
TRUST, SHOWN, SHOWN_KEY = "tunnel-ca.pem", "tunnel.pem", "tunnel.key"
"""Files for the loopback side: what Flower's node is told to trust, and what it is shown."""
REACHED = "reached"
"""A file whose time is when the coordinator last let this hospital's node in."""
LOOPBACK_LIFE = timedelta(days=730)

TIMEOUT = httpx.Timeout(60.0, connect=3.0, read=5 * relay.WAIT_ON_SECONDS)
"""A gateway that is at work says so; one that says nothing is gone, whatever the connection looks like."""
RETRY_SECONDS = 240.0
"""How long a gateway that can't be reached is tried before the node is told so: almost as long as the node's signature counts, 300 s. Once told, the node waits
up to 20 s before it asks again, even if the line is back by then."""
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 1.5
BROKEN = (httpx.TransportError, ssl.SSLError)
"""What a broken line raises. Bytes that were damaged on their way fail TLS's check, which httpx hands on as it is."""
IDLE_SECONDS = 15.0
"""How long a connection to the gateway without requests is kept; what stands between may forget it without a word."""
AWAY_SECONDS = 60.0
"""How long no request is left open at a gateway that does not take one, such as an earlier release's."""
RENEW_SECONDS = 3600.0
"""How often the age of the hospital's certificate is looked at."""

REFUSED = "refuses this hospital: revoked, its certificate overtaken, or another node key enrolled; ask the coordinator"

_log = logging.getLogger("fedward.tunnel")


class Identity(Protocol):
    """A hospital's key and certificate, and the authority that it trusts."""

    @property
    def certificate(self) -> Path: ...  # noqa: D102
    def tls_context(self) -> ssl.SSLContext:
        """Return a context that shows the certificate and trusts the authority alone."""

    def csr(self) -> bytes:
        """Return a signing request (PEM) over the same key."""

    def renewed(self, certificate: bytes, /) -> None:
        """Keep a new certificate (PEM), once it is found good."""


class Tunnel:
    """The ASGI application; ``gateway`` is a URL such as ``https://fedward.example.org:8443``."""

    def __init__(
        self, gateway: str, identity: Identity, limit: int = relay.LARGEST, reached: Path | None = None
    ) -> None:
        self._gateway, self._identity, self._limit = gateway.rstrip("/"), identity, limit
        self._reached = reached
        self._client = client_of(gateway, identity.tls_context())
        self._stopping = asyncio.Event()
        self._shown = identity.certificate.read_bytes()
        self._renewing: asyncio.Task[None] | None = None
        self._staying: asyncio.Task[None] | None = None
        self._before: httpx.AsyncClient | None = None
        self._said = ""

    async def open(self) -> None:
        """Begin."""
        self._renewing = asyncio.create_task(self._keep_fresh())

    async def stop(self) -> None:
        """Give up on a gateway that can't be reached."""
        self._stopping.set()

    async def close(self) -> None:
        """End."""
        await relay.ended(self._renewing)
        await relay.ended(self._staying)
        await self._client.aclose()
        if self._before:
            await self._before.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        path = scope["raw_path"].decode("ascii", "replace")
        try:
            _check_route(scope["method"], path)
            body = Body(scope, receive, self._limit)
            await body.wait_for(self._pass_on(path, body, scope, send))
        except Refused as refusal:
            _log.warning("refused %a %d: %s", path[:80], refusal.code, refusal)
            await relay.answer(send, refusal.code)
        except Gone:
            pass
        except BROKEN as error:
            # The answer has begun; the server cuts it off when this returns, and the node asks again.
            self._say(self._explained(error))

    async def _pass_on(self, path: str, body: Body, scope: Scope, send: Send) -> None:
        async with relay.waiting_on(scope):
            try:
                response = await self._reach(path, body, scope)
            except BROKEN as error:
                self._say(self._explained(error))
                response = None
        if response is None:
            await relay.answer(send, 503)
        else:
            self._say_answered(response)
            if path in (relay.ENTER, relay.BEAT) and response.is_success and not self._staying:
                self._staying = asyncio.create_task(self._stay())
            await relay.hand_back(response, send)

    async def _reach(self, path: str, body: Body, scope: Scope) -> httpx.Response:
        """Send a request; where no connection comes about, try again for a while, so that the node is back soon after the line is."""
        headers = relay.passing(scope["headers"], relay.ASKED)
        end, pause = time.monotonic() + RETRY_SECONDS, FIRST_PAUSE
        while True:
            request = relay.request(self._gateway + path, headers, body.pieces(), TIMEOUT)
            try:
                return await self._client.send(request, stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
                if body.begun or time.monotonic() > end or self._stopping.is_set():
                    raise
                self._say(self._explained(error))
            await self._sleep(random.uniform(pause / 2, pause))  # noqa: S311 - spreads attempts, hides nothing
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _stay(self) -> None:
        """Keep a request open at the gateway for as long as this process lives, and make it anew where it ends; Flower's node is in."""
        while True:
            request, pause = relay.request(self._gateway + relay.STAY, [], b"", TIMEOUT), LONGEST_PAUSE
            try:
                taken = (await self._client.send(request)).is_success
                pause = FIRST_PAUSE if taken else AWAY_SECONDS
            except BROKEN:
                pass  # the node's own requests say so
            await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - spreads attempts, hides nothing

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass

    def _say(self, line: str) -> None:
        """Log what is wrong with the line to the gateway, once as long as it is the same."""
        if line != self._said:
            self._said = line
            _log.warning("%s", line)

    def _explained(self, error: Exception) -> str:
        return explained(error, self._gateway, self._shown, "trying on")

    def _say_answered(self, response: httpx.Response) -> None:
        if self._reached and response.is_success:
            with suppress(OSError):
                self._reached.touch()
        # Flower says more than nothing when it refuses; the gateway does not.
        if response.status_code == httpx.codes.FORBIDDEN and response.headers.get("content-length") == "0":
            self._say(f"{self._gateway} {REFUSED}")
        elif self._said:
            self._said = ""
            _log.warning("%s answers again", self._gateway)

    async def _keep_fresh(self) -> None:
        while True:
            try:
                await self._freshen()
            except (FedwardError, httpx.TransportError, OSError) as error:
                reason = self._explained(error) if isinstance(error, BROKEN) else error
                _log.warning("the hospital's certificate was not renewed, which is tried again in an hour: %s", reason)
            await asyncio.sleep(RENEW_SECONDS)

    async def _freshen(self) -> None:
        if certificates.expires_in(self._identity.certificate.read_bytes()) < certificates.RENEW_BEFORE:
            await self._renew()
            _log.info("the hospital's certificate was renewed")
        if self._identity.certificate.read_bytes() != self._shown:
            await self._show()

    async def _renew(self) -> None:
        # In a thread, since opening a sealed key takes a moment.
        csr = await asyncio.to_thread(self._identity.csr)
        request = relay.request(self._gateway + relay.RENEW, [(b"content-length", b"%d" % len(csr))], csr, TIMEOUT)
        response = await self._client.send(request)
        if not response.is_success:
            raise DataError(f"the gateway answered {response.status_code}; ask the coordinator")
        await asyncio.to_thread(self._identity.renewed, response.content)

    async def _show(self) -> None:
        """Show the gateway the certificate that is there now; requests under way end on the connections that they began on."""
        shown = self._identity.certificate.read_bytes()
        context = await asyncio.to_thread(self._identity.tls_context)
        if self._before:
            await self._before.aclose()
        self._before, self._client, self._shown = self._client, client_of(self._gateway, context), shown
        if self._staying:
            await relay.ended(self._staying)
            self._staying = asyncio.create_task(self._stay())


def _check_route(method: str, path: str) -> None:
    if method != "POST" or path not in relay.FLEET:
        raise Refused(403, "no route for Flower's node")


class _Transport(httpx.AsyncHTTPTransport):
    """HTTP over TLS, for which a connection that was reset in the moment in which it was made is none; httpx has no error for it."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        try:
            return await super().handle_async_request(request)
        except AttributeError:  # there is no socket any more whose options could be set
            raise httpx.ConnectError("reset while connecting", request=request) from None


def client_of(gateway: str, context: ssl.SSLContext) -> httpx.AsyncClient:
    """Return a client that reaches the gateway, through the environment's proxy where there is one for it.

    Raises
    ------
    UsageError
        When the URL of the gateway or proxy is none.
    """
    address = urlsplit(gateway)
    if address.scheme != "https" or not address.hostname or address.path.strip("/"):
        raise UsageError(f"gateway: expected a URL such as https://fedward.example.org:8443, got {gateway[:80]!r}")
    transport = _Transport(
        verify=context,
        trust_env=False,
        limits=httpx.Limits(max_connections=None, keepalive_expiry=IDLE_SECONDS),
        proxy=proxy_for(address.netloc),
        socket_options=relay.socket_options(),
    )
    return httpx.AsyncClient(transport=transport, trust_env=False)


def proxy_for(host: str) -> httpx.Proxy | None:
    """Return the proxy that ``HTTPS_PROXY`` or ``ALL_PROXY`` names, unless ``NO_PROXY`` has the host.

    Raises
    ------
    UsageError
        When its URL is none.
    """
    found = urllib.request.getproxies()
    url = found.get("https") or found.get("all")
    if not url or urllib.request.proxy_bypass(host):
        return None
    try:
        proxy = httpx.Proxy(url if "://" in url else f"http://{url}")
    except (ValueError, httpx.InvalidURL):
        proxy = None
    if proxy is None or proxy.url.scheme not in ("http", "https"):
        raise UsageError("HTTPS_PROXY: expected a URL such as http://proxy.example.org:3128")
    return proxy


def explained(error: Exception, gateway: str, shown: bytes, otherwise: str) -> str:
    """Say in one line what is wrong with the way to the gateway, and what to do; ``otherwise`` where nothing answers there."""
    untrusted = relay.cause(error, ssl.SSLCertVerificationError)
    if untrusted:
        return (
            f"{gateway} shows a certificate that this hospital does not trust ({untrusted.verify_message}); check the address, this computer's clock,"
            " and that no proxy opens the TLS in between"
        )
    if certificates.expires_in(shown) < timedelta(0):
        # The gateway hangs up on it, which by itself looks like a broken line.
        return "this hospital's certificate has expired; have its request admitted again, then: fedward hospital join (or mend this computer's clock)"
    if isinstance(error, httpx.ProxyError):
        return f"the proxy of HTTPS_PROXY does not connect to {gateway} ({error}); have it allowed there"
    reasons = [each.strerror for each in relay.causes(error) if isinstance(each, OSError) and each.strerror]
    return (
        f"{gateway} cannot be reached ({reasons[-1] if reasons else str(error) or type(error).__name__}); {otherwise}"
    )


def loopback(folder: Path) -> ssl.SSLContext:
    """Return TLS for this machine alone, because Flower's node shows its key over nothing less; ``folder`` gets the file that the node is to trust.

    The files of an earlier start are used again, so that a node that runs trusts a tunnel that was started anew. The authority's key is never kept.

    Raises
    ------
    DataError
        When a file cannot be written.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        return _shown_again(folder)
    except (DataError, OSError):
        authority, own = keys.generate("tls"), keys.generate("tls")
        trust = certificates.make_authority("loopback", authority)
        issuer = Issuer(certificates.load(trust, TRUST), authority)
        shown = issuer.server((LOOPBACK, "localhost"), own.public_key(), LOOPBACK_LIFE)
        keys.replace(
            {folder / SHOWN_KEY: keys.private_bytes(own), folder / SHOWN: shown, folder / TRUST: trust},
        )
        return _shown_again(folder)


def _shown_again(folder: Path) -> ssl.SSLContext:
    trust, shown = (folder / TRUST).read_bytes(), (folder / SHOWN).read_bytes()
    signed = certificates.is_issued_by(certificates.load(shown, SHOWN), certificates.load(trust, TRUST))
    if not signed or certificates.expires_in(shown) < LOOPBACK_LIFE / 2:
        raise DataError(f"{folder / SHOWN}: too old")
    key = keys.load_private(keys.read(folder / SHOWN_KEY), "tls", SHOWN_KEY)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    keys.load_chain(context, shown, key)
    return context


def serve(
    gateway: str,
    identity: Identity,
    folder: Path,
    port: int = 0,
    ready: Callable[[int], object] = lambda _port: None,
) -> None:
    """Run the tunnel until SIGTERM or SIGINT; ``ready`` is told the port of 127.0.0.1 as soon as Flower's node can connect.

    Raises
    ------
    FedwardError
        When the hospital has not joined, its key cannot be opened, or the port is taken.
    """
    tunnel, context = Tunnel(gateway, identity, reached=folder / REACHED), loopback(folder)
    listener = relay.listen(LOOPBACK, port)
    bound = int(listener.getsockname()[1])
    relay.Server(tunnel, context, listener, lambda: ready(bound)).run()


def main(words: list[str] | None = None) -> int:
    """Run the tunnel of a site's folder; print ``ready PORT`` when it listens."""
    from client.site import open_site

    parser = argparse.ArgumentParser(prog="client.tunnel", description="A hospital's way to its federation's gateway.")
    parser.add_argument("site", type=Path, help="the hospital's site folder")
    parser.add_argument("gateway", help="the federation's gateway, such as https://fedward.example.org:8443")
    parser.add_argument("folder", type=Path, help=f"folder for {TRUST}, which Flower's node is to trust")
    parser.add_argument("--port", type=int, default=0, help="port of 127.0.0.1 to listen on; 0 takes any")
    args = parser.parse_args(words)
    relay.quiet_logs()
    try:
        site = open_site(args.site, os.environ.pop("FEDWARD_PASSPHRASE", None))
        serve(args.gateway, site, args.folder, args.port, lambda port: print("ready", port, flush=True))
    except FedwardError as error:
        _log.error("%s", error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
