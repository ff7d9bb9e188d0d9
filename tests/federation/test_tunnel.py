"""The tunnel: from Flower's node on loopback to the gateway, through proxies, outages and renewals."""

import base64
import logging
import os
import signal
import socket
import socketserver
import ssl
import stat
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.node_pb2 import Node

from client import site, tunnel
from common import certificates, keys, relay
from common.certificates import Issuer
from common.errors import UsageError
from server import gateway
from server.provision import create

PULL, OBJECT, RUN = "/v1/fleet/pull-messages", "/v1/fleet/push-object", "/v1/fleet/get-run"
LEAVE = "/v1/fleet/deactivate-node"


class Line:
    """A tunnel that runs, and a client that trusts what Flower's node is told to trust."""

    def __init__(self, app, folder, port, headers):
        self.app, self.port = app, port
        context = ssl.create_default_context(cafile=folder / tunnel.TRUST)
        self.client = httpx.Client(
            base_url=f"https://127.0.0.1:{port}", verify=context, trust_env=False, headers=headers, timeout=30
        )

    def post(self, path, **words):
        return self.client.post(path, **words)


@pytest.fixture
def run_tunnel(hospitals, tools, tmp_path):
    @contextmanager
    def run(url=None, **settings):
        folder = tmp_path / "tunnel"
        app = tunnel.Tunnel(url or hospitals.url, hospitals.east, **settings)
        with tools.serving(app, tunnel.loopback(folder)) as port:
            line = Line(app, folder, port, tools.node(hospitals.east))
            with line.client:
                yield line

    return run


@pytest.fixture
def line(door, run_tunnel):
    with run_tunnel() as opened:
        yield opened


@pytest.fixture
def hasty(monkeypatch):
    """Give up on a gateway that can't be reached at once."""
    monkeypatch.setattr(tunnel, "RETRY_SECONDS", 0.0)


class TestStaying:
    """From when Flower's node is in, a request stays open; by its end the gateway knows that this hospital is gone."""

    @pytest.fixture(autouse=True)
    def _hasty(self, monkeypatch):
        monkeypatch.setattr(gateway, "LOST_SECONDS", 1.0)

    @pytest.mark.parametrize("path", [relay.ENTER, relay.BEAT])
    def test_a_tunnel_that_ends_is_missed(self, door, run_tunnel, tools, path):
        with run_tunnel() as line:
            line.post(path)
            line.post(PULL, content=PullMessagesRequest(node=Node(node_id=77)).SerializeToString())
            time.sleep(2.0)
            assert LEAVE not in door.upstream.paths()
        tools.until(lambda: LEAVE in door.upstream.paths(), 10)

    def test_another_certificate_is_shown_for_it_too(self, door, run_tunnel, tools, monkeypatch):
        monkeypatch.setattr(tunnel, "RENEW_SECONDS", 0.1)
        with run_tunnel() as line:
            line.post(PULL, content=PullMessagesRequest(node=Node(node_id=77)).SerializeToString())
            line.post(relay.BEAT)
            new = _signed(door, timedelta(days=80))
            keys.replace({door.east.certificate: new})
            tools.until(lambda: line.app._shown == new)
            _count_only(door, new)
            time.sleep(2.0)
            assert LEAVE not in door.upstream.paths()

    def test_a_gateway_that_takes_none_is_not_asked_again_and_again(self, door, run_tunnel, monkeypatch, caplog):
        async def refused(*_):
            raise relay.Refused(403, "no route for hospitals")

        monkeypatch.setattr(gateway.Gateway, "_stay", refused)
        with run_tunnel() as line:
            line.post(relay.BEAT)
            time.sleep(1.0)
            assert line.post(RUN).status_code == 200
        assert sum("no route" in record.getMessage() for record in caplog.records) == 1


def lines(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "fedward.tunnel"]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class TestLoopback:
    def test_files_are_the_owners_alone_and_the_authoritys_key_is_not_among_them(self, tmp_path):
        folder = tmp_path / "new" / "tunnel"
        tunnel.loopback(folder)
        assert sorted(path.name for path in folder.iterdir()) == ["tunnel-ca.pem", "tunnel.key", "tunnel.pem"]
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in folder.iterdir())
        trusted = certificates.load((folder / "tunnel-ca.pem").read_bytes(), "")
        own = keys.load_private((folder / "tunnel.key").read_bytes(), "tls", "")
        assert trusted.public_key() != own.public_key()

    def test_a_second_start_uses_them_again(self, tmp_path):
        tunnel.loopback(tmp_path)
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        tunnel.loopback(tmp_path)
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before

    @pytest.mark.parametrize("name", ["tunnel-ca.pem", "tunnel.key", "tunnel.pem"])
    @pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"x")])
    def test_damaged_ones_are_made_anew(self, tmp_path, name, damage):
        tunnel.loopback(tmp_path)
        damage(tmp_path / name)
        tunnel.loopback(tmp_path)
        assert all(path.stat().st_size > 100 for path in tmp_path.iterdir())

    def test_files_that_do_not_belong_together_are_made_anew(self, tmp_path):
        tunnel.loopback(tmp_path / "one")
        tunnel.loopback(tmp_path / "two")
        other = (tmp_path / "two" / "tunnel-ca.pem").read_bytes()
        (tmp_path / "one" / "tunnel-ca.pem").write_bytes(other)
        tunnel.loopback(tmp_path / "one")
        assert (tmp_path / "one" / "tunnel-ca.pem").read_bytes() != other

    def test_nobody_else_can_reach_it(self, line):
        listeners = {local for local, port in _listening() if port == line.port}
        assert listeners == {"127.0.0.1"}


def _listening():
    """Return the addresses and ports that somebody listens on, as the kernel tells."""
    found = set()
    for name in ("tcp", "tcp6"):
        for row in Path(f"/proc/net/{name}").read_text("ascii").splitlines()[1:]:
            _, local, _, state = row.split()[:4]
            address, port = local.split(":")
            if state == "0A":
                ip = socket.inet_ntoa(bytes.fromhex(address)[::-1]) if name == "tcp" else address
                found.add((ip, int(port, 16)))
    return found


class TestPassing:
    def test_a_nodes_request_reaches_flower_and_its_answer_the_node(self, door, line, tools):
        answer = line.post(RUN, content=b"asked", headers={"flwr-signature": "s", "x-forwarded-for": "1.2.3.4"})
        assert (answer.status_code, answer.content) == (200, b"asked")
        headers = door.upstream.asked[0]["headers"]
        assert headers[b"flwr-signature"] == b"s"
        assert headers[b"flwr-public-key"].decode() == tools.node(door.east)["flwr-public-key"]
        assert b"x-forwarded-for" not in headers

    @pytest.mark.parametrize("chunked", [False, True])
    def test_a_large_body_passes_both_ways_unchanged(self, door, line, chunked):
        content = os.urandom(20 << 20)
        pieces = (content[i : i + 100_000] for i in range(0, len(content), 100_000))
        assert line.post(OBJECT, content=pieces if chunked else content).content == content

    def test_no_other_route_leaves_the_house(self, door, line):
        for path in ("/v1/fleet/register-node", "/v1/control/start-run", "/fedward/renew", "/", "/v1/fleet/get-run/"):
            assert line.post(path).status_code == 403
        assert line.client.get(RUN).status_code == 403
        assert door.upstream.asked == []

    @pytest.mark.parametrize("chunked", [False, True])
    def test_a_body_beyond_the_limit_is_refused_and_the_connection_goes_on(self, door, run_tunnel, chunked):
        with run_tunnel(limit=100_000) as line:
            content = bytes(5_000_000)
            answer = line.post(OBJECT, content=iter([content[:50_000], content]) if chunked else content)
            assert answer.status_code == 413
            assert line.post(RUN).status_code == 200

    def test_a_node_that_goes_takes_its_question_with_it(self, make_door, run_tunnel):
        with make_door(hold=30.0) as door, run_tunnel() as line:
            with pytest.raises(httpx.ReadTimeout):
                line.post(PULL, timeout=0.5)
            time.sleep(0.3)
            before = len(door.upstream.asked)
            time.sleep(0.5)
            assert len(door.upstream.asked) == before

    def test_a_node_that_is_in_a_hurry_is_told_to_wait_on(self, make_door, run_tunnel, monkeypatch):
        """Its time-out of 5 s for a sign of life and 30 s for others would pass over a slow line."""
        monkeypatch.setattr(relay, "WAIT_ON_SECONDS", 0.2)
        with make_door() as door, run_tunnel() as line:
            door.upstream.slow = 1.5
            assert line.post(RUN, timeout=0.6).status_code == 200

    def test_without_that_it_would_have_given_up(self, make_door, run_tunnel):
        with make_door() as door, run_tunnel() as line:
            door.upstream.slow = 1.5
            with pytest.raises(httpx.ReadTimeout):
                line.post(RUN, timeout=0.6)

    def test_an_answer_that_breaks_off_does_not_look_whole(self, door, line):
        door.upstream.says["/v1/fleet/pull-object"] = b"break off"
        with pytest.raises(httpx.RemoteProtocolError):
            line.post("/v1/fleet/pull-object")
        assert line.post(RUN).status_code == 200


class TestOutages:
    def test_a_gateway_that_is_not_there_is_said_once_and_the_node_told_to_try_again(self, run_tunnel, hasty, caplog):
        url = f"https://127.0.0.1:{free_port()}"
        with caplog.at_level(logging.INFO), run_tunnel(url) as line:
            assert [line.post(RUN).status_code for _ in range(3)] == [503, 503, 503]
        (said,) = lines(caplog)
        assert said == f"{url} cannot be reached (Connection refused); trying on"

    @pytest.mark.fault(5, passes_when="a gateway that comes back is found before the node has noticed")
    def test_a_gateway_that_comes_back_is_found_before_the_node_has_noticed(self, hospitals, run_tunnel, tools, caplog):
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        listener.close()
        app = gateway.Gateway(hospitals.federation, f"http://127.0.0.1:{hospitals.upstream.port}")
        with caplog.at_level(logging.INFO), run_tunnel(f"https://127.0.0.1:{port}") as line:
            answers = []
            thread = threading.Thread(target=lambda: answers.append(line.post(RUN, content=b"asked").content))
            thread.start()
            time.sleep(1.0)
            server = relay.Server(
                app, gateway.context_of(hospitals.federation), relay.listen("127.0.0.1", port), lambda: None
            )
            serving = threading.Thread(target=server.run)
            serving.start()
            thread.join(4)
            assert answers == [b"asked"]
            server.should_exit = True
            serving.join()
        assert lines(caplog)[-1] == f"https://127.0.0.1:{port} answers again"

    @pytest.mark.fault(16, passes_when="a gateway of another authority is not believed")
    def test_a_gateway_of_another_authority_is_not_believed(
        self, hospitals, run_tunnel, tools, tmp_path, hasty, caplog
    ):
        other = create(tmp_path / "other", "trial", ["127.0.0.1"])
        app = gateway.Gateway(other, f"http://127.0.0.1:{hospitals.upstream.port}")
        with (
            tools.serving(app, gateway.context_of(other)) as hospitals.port,
            caplog.at_level(logging.INFO),
            run_tunnel() as line,
        ):
            assert line.post(RUN).status_code == 503
        (said,) = lines(caplog)
        assert "shows a certificate that this hospital does not trust" in said

    def test_a_gateway_of_another_name_is_not_believed(self, door, run_tunnel, hasty, caplog):
        with caplog.at_level(logging.INFO), run_tunnel(f"https://localhost:{door.port}") as line:
            assert line.post(RUN).status_code == 503
        (said,) = lines(caplog)
        assert "Hostname mismatch" in said
        assert door.upstream.asked == []

    @pytest.mark.fault(16, passes_when="a hospital is told that its certificate has expired")
    def test_an_expired_certificate_is_said(self, door, run_tunnel, hasty, caplog):
        pem = _signed(door, timedelta(seconds=-1))
        door.east.certificate.write_bytes(pem)
        with caplog.at_level(logging.INFO), run_tunnel() as line:
            assert line.post(RUN).status_code == 503
        assert (
            sum("this hospital's certificate has expired; have its request admitted" in said for said in lines(caplog))
            == 2
        )

    @pytest.mark.fault(16, passes_when="a hospital is told that it was revoked")
    def test_revocation_is_said_once_and_reaches_the_node(self, door, line, caplog):
        with caplog.at_level(logging.INFO):
            assert line.post(RUN).status_code == 200
            door.federation.revoke("east")
            assert [line.post(RUN).status_code for _ in range(3)] == [403, 403, 403]
        (said,) = lines(caplog)
        assert "refuses this hospital: revoked" in said

    @pytest.mark.parametrize("address", ["http://x:1", "fedward.example.org", "https://", "https://x/path", ""])
    def test_what_is_no_address_is_said(self, hospitals, address):
        with pytest.raises(UsageError, match="gateway: expected a URL"):
            tunnel.Tunnel(address, hospitals.east)


class Proxy(socketserver.ThreadingTCPServer):
    """A proxy that knows CONNECT alone, and keeps what it was asked."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, allows=True):
        super().__init__(("127.0.0.1", 0), Tunnelling)
        self.allows, self.asked, self.passed = allows, [], bytearray()


class Tunnelling(socketserver.StreamRequestHandler):
    def handle(self):
        head = [self.rfile.readline().decode().strip()]
        while head[-1]:
            head.append(self.rfile.readline().decode().strip())
        self.server.asked.append(head)
        if not self.server.allows:
            self.wfile.write(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")
            return
        host, port = head[0].split()[1].rsplit(":", 1)
        with socket.create_connection((host, int(port))) as out:
            self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=self._copy, args=(out, self.connection))
            back.start()
            self._copy(self.connection, out)
            back.join()

    def _copy(self, source, sink):
        try:
            while data := source.recv(65536):
                self.server.passed += data
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass


@contextmanager
def proxying(allows=True):
    with Proxy(allows) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


class TestProxy:
    def test_the_environments_proxy_is_used_and_sees_nothing(self, door, run_tunnel, monkeypatch):
        with proxying() as proxy:
            monkeypatch.setenv("HTTPS_PROXY", f"http://user:word@127.0.0.1:{proxy.server_address[1]}")
            with run_tunnel() as line:
                assert line.post(RUN, content=b"canary" * 100).content == b"canary" * 100
            assert proxy.asked[0][0] == f"CONNECT 127.0.0.1:{door.port} HTTP/1.1"
            words = base64.b64encode(b"user:word").decode()
            assert f"proxy-authorization: basic {words}".lower() in [text.lower() for text in proxy.asked[0]]
            assert len(proxy.passed) > 1000
            assert b"canary" not in proxy.passed
        assert b"proxy-authorization" not in door.upstream.asked[0]["headers"]

    @pytest.mark.parametrize("spared", ["127.0.0.1", "*", "example.org,127.0.0.1"])
    def test_but_not_where_the_environment_spares_the_gateway(self, door, run_tunnel, monkeypatch, spared):
        with proxying() as proxy:
            monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{proxy.server_address[1]}")
            monkeypatch.setenv("NO_PROXY", spared)
            with run_tunnel() as line:
                assert line.post(RUN).status_code == 200
            assert proxy.asked == []

    def test_one_that_refuses_is_said(self, door, run_tunnel, monkeypatch, hasty, caplog):
        with proxying(allows=False) as proxy:
            monkeypatch.setenv("https_proxy", f"http://user:word@127.0.0.1:{proxy.server_address[1]}")
            with caplog.at_level(logging.INFO), run_tunnel() as line:
                assert line.post(RUN).status_code == 503
        (said,) = lines(caplog)
        assert said == f"the proxy of HTTPS_PROXY does not connect to {door.url} (403 Forbidden); have it allowed there"
        assert "word" not in caplog.text

    def test_one_that_is_not_there_is_said(self, door, run_tunnel, monkeypatch, hasty, caplog):
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{free_port()}")
        with caplog.at_level(logging.INFO), run_tunnel() as line:
            assert line.post(RUN).status_code == 503
        (said,) = lines(caplog)
        assert "cannot be reached" in said

    @pytest.mark.parametrize("address", ["gopher://x", "socks5://127.0.0.1:1080"])
    def test_what_is_no_address_is_said(self, hospitals, monkeypatch, address):
        monkeypatch.setenv("HTTPS_PROXY", address)
        with pytest.raises(UsageError, match="HTTPS_PROXY: expected a URL"):
            tunnel.Tunnel(hospitals.url or "https://x", hospitals.east)


def _signed(door, life):
    """Sign the east's certificate anew for so long, and let it count."""
    federation = door.federation
    key = keys.load_private(keys.read(federation.folder / "ca" / "key.pem"), "tls", "")
    issuer = Issuer(certificates.load(federation.authority, ""), key)
    pem = issuer.client(certificates.load_request(door.east.csr()), "east", life)
    book = federation._book
    with book.locked():
        member = book.read("east")
        book.store(replace(member, serials=(*member.serials, f"{certificates.load(pem, '').serial_number:x}")))
    return pem


class TestRenewal:
    def test_a_certificate_that_is_about_to_expire_is_renewed_over_the_same_key(self, door, run_tunnel, tools):
        old = _signed(door, timedelta(days=29))
        door.east.certificate.write_bytes(old)
        with run_tunnel() as line:
            tools.until(lambda: door.east.certificate.read_bytes() != old)
            new = door.east.certificate.read_bytes()
            assert certificates.expires_in(new) > timedelta(days=89)
            assert certificates.tls_line(certificates.load(new, "")) == certificates.tls_line(
                certificates.load(old, "")
            )
            tools.until(lambda: line.app._shown == new)
            _count_only(door, new)
            assert line.post(RUN).status_code == 200

    def test_one_with_time_left_is_not(self, door, run_tunnel):
        old = _signed(door, timedelta(days=31))
        door.east.certificate.write_bytes(old)
        with run_tunnel() as line:
            assert line.post(RUN).status_code == 200
            time.sleep(0.3)
        assert door.east.certificate.read_bytes() == old

    def test_what_fails_is_said_and_tried_again(self, hospitals, make_door, run_tunnel, tools, monkeypatch, caplog):
        monkeypatch.setattr(tunnel, "RENEW_SECONDS", 0.3)
        with make_door() as door:
            pass
        old = _signed(door, timedelta(days=1))
        door.east.certificate.write_bytes(old)
        with caplog.at_level(logging.INFO), run_tunnel():
            tools.until(lambda: any("was not renewed" in said for said in lines(caplog)))
        assert door.east.certificate.read_bytes() == old

    def test_a_certificate_that_was_put_there_by_hand_is_shown_from_then_on(self, door, run_tunnel, tools, monkeypatch):
        monkeypatch.setattr(tunnel, "RENEW_SECONDS", 0.1)
        with run_tunnel() as line:
            assert line.post(RUN).status_code == 200
            new = _signed(door, timedelta(days=80))
            _count_only(door, new)
            assert line.post(RUN).status_code == 403
            keys.replace({door.east.certificate: new})
            tools.until(lambda: line.post(RUN).status_code == 200)


def _count_only(door, pem):
    """Take every other certificate of the east off the list."""
    book = door.federation._book
    with book.locked():
        serial = f"{certificates.load(pem, '').serial_number:x}"
        book.store(replace(book.read("east"), serials=(serial,)))


class TestProgram:
    def test_it_says_when_it_listens_and_stops_in_good_order(self, door, tools, tmp_path):
        command = [sys.executable, "-m", "client.tunnel", door.east.folder, door.url, tmp_path / "tunnel"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            word, port = process.stdout.readline().split()
            assert word == "ready"
            line = Line(None, tmp_path / "tunnel", int(port), tools.node(door.east))
            with line.client:
                assert line.post(RUN, content=b"asked").content == b"asked"
            begun = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(5) == 0
            assert time.monotonic() - begun < 3
            assert process.stderr.read() == ""

    def test_when_told_to_stop_it_does_not_go_on_trying(self, hospitals, tools, tmp_path):
        url = f"https://127.0.0.1:{free_port()}"
        command = [sys.executable, "-m", "client.tunnel", hospitals.east.folder, url, tmp_path / "tunnel"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            line = Line(
                None, tmp_path / "tunnel", int(process.stdout.readline().split()[1]), tools.node(hospitals.east)
            )
            answers = []
            thread = threading.Thread(target=lambda: answers.append(line.post(RUN).status_code))
            thread.start()
            time.sleep(0.5)
            begun = time.monotonic()
            process.send_signal(signal.SIGTERM)
            thread.join(5)
            line.client.close()
            assert answers == [503]
            assert process.wait(5) == 0
            assert time.monotonic() - begun < 3
            assert process.stderr.read().count("\n") == 1

    def test_a_hospital_that_has_not_joined_is_told_so(self, tmp_path):
        site.create(tmp_path / "lone", "lone", "heart")
        command = [sys.executable, "-m", "client.tunnel", tmp_path / "lone", "https://x:1", tmp_path / "tunnel"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 1
        assert "has not joined yet" in done.stderr
        assert done.stderr.count("\n") == 1
