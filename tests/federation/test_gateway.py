"""The gateway: who may ask what, on real sockets and with real certificates."""

import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

import httpx
import pytest
from flwr.proto.fleet_pb2 import (
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES

from common import certificates, keys, relay
from common.certificates import Issuer
from server import gateway, provision, superlink
from server.provision import create

ROUTES = sorted({path for _, path in PROTOBUF_REQUEST_TYPES})
CLOSED = [path for path in ROUTES if path not in relay.FLEET]
PART = "/v1/fleet/pull-object"
PULL, PUSH, OBJECT = "/v1/fleet/pull-messages", "/v1/fleet/push-messages", "/v1/fleet/push-object"
LEAVE = "/v1/fleet/deactivate-node"


def message(created=None, ttl=60.0) -> bytes:
    """Return Flower's answer with one message, as it stands on the wire."""
    response = PullMessagesResponse()
    metadata = response.messages_list.add().metadata
    metadata.message_id, metadata.created_at, metadata.ttl = "m1", time.time() if created is None else created, ttl
    return response.SerializeToString()


def announcement(node_id=7, source=7, reply="m1", root="m2", parts=0) -> bytes:
    """Announce an answer ``m2`` whose parts hang from one of so many others."""
    request = PushMessagesRequest()
    request.node.node_id = node_id
    metadata = request.messages_list.add().metadata
    metadata.src_node_id, metadata.reply_to_message_id, metadata.message_id = source, reply, "m2"
    tree = request.message_object_trees.add(object_id=root)
    for number in range(parts):
        tree.children.add(object_id=f"p{number}")
    return request.SerializeToString()


def issuer_of(federation) -> Issuer:
    key = keys.load_private(keys.read(federation.folder / "ca" / "key.pem"), "tls", "ca")
    return Issuer(certificates.load(federation.authority, "authority"), key)


def on_the_list(federation, name, pem) -> None:
    """Add a certificate to those that count for a hospital."""
    book = federation._book
    with book.locked():
        member = book.read(name)
        book.store(replace(member, serials=(*member.serials, f"{certificates.load(pem, '').serial_number:x}")))


def context_with(authority, certificate=None, key=None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=authority.decode())
    if certificate:
        keys.load_chain(context, certificate, key)
    return context


def handshake_is_refused(port, context) -> bool:
    """Say whether the server ends the connection before it has said a word of HTTP."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as line:
        try:
            with context.wrap_socket(line, server_hostname="127.0.0.1") as secured:
                secured.sendall(b"GET /fedward/health HTTP/1.1\r\nhost: x\r\n\r\n")
                return secured.recv(1) == b""
        except (ssl.SSLError, ConnectionError):
            return True


class TestRoutes:
    def test_the_routes_are_flowers_own_without_those_of_the_coordinator(self):
        fleet = {path for path in ROUTES if path.startswith("/v1/fleet/")}
        assert fleet - relay.FLEET == {"/v1/fleet/register-node", "/v1/fleet/unregister-node"}
        assert fleet >= relay.FLEET

    @pytest.mark.parametrize("path", sorted(relay.FLEET - {PULL, PUSH}))
    def test_a_member_reaches_the_fleet_routes(self, door, path):
        answer = door.post(path, content=b"asked")
        assert (answer.status_code, answer.content) == (200, b"asked")
        assert door.upstream.paths() == [path]

    def test_a_member_reaches_no_other(self, door, tools):
        """Neither the operator's, nor the run-time's, nor what Flower serves besides, nor another spelling of an open one."""
        others = ["/", "/docs", "/health", "/openapi.json", "/fedward/", "/fedward/health/", "/fedward/members"]
        others += ["/v1/fleet/", "/v1/fleet/get-run/", "//v1/fleet/get-run", "/v1/fleet/get%2Drun", "/V1/FLEET/get-run"]
        others += ["/v1/fleet/get-run%3f", "/v1/fleet/%2e%2e/control/start-run", "/v1/fleet/../control/start-run"]
        with door.client() as client:
            for path in [*CLOSED, *others]:
                answer = client.post(path, headers=tools.node(door.east))
                assert (answer.status_code, answer.content) == (403, b""), path
                assert set(answer.headers) <= {"content-length", "date", "connection"}
        assert len(CLOSED) > 60
        assert door.upstream.asked == []

    @pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE"])
    def test_only_post_is_passed_on(self, door, tools, method):
        with door.client() as client:
            for path in relay.FLEET:
                assert client.request(method, path, headers=tools.node(door.east)).status_code == 403
        assert door.upstream.asked == []

    @pytest.mark.parametrize("path", ["/v1/fleet/../control/start-run", "http://127.0.0.1/v1/control/start-run", "*"])
    def test_a_path_is_taken_as_it_is(self, door, tools, path):
        """The client above tidies paths; this one does not."""
        key = tools.node(door.east)["flwr-public-key"]
        with secured(door) as line:
            line.sendall(f"POST {path} HTTP/1.1\r\nhost: x\r\nflwr-public-key: {key}\r\n\r\n".encode())
            assert line.recv(100).startswith(b"HTTP/1.1 403")
        assert door.upstream.asked == []

    def test_what_follows_the_question_mark_stays_behind(self, door):
        assert door.post("/v1/fleet/get-run?admin=1").status_code == 200
        assert door.upstream.paths() == ["/v1/fleet/get-run"]

    def test_health_is_for_members(self, door):
        with door.client() as client:
            assert client.get("/fedward/health").text == "ok\n"
        door.federation.revoke("east")
        with door.client() as client:
            assert client.get("/fedward/health").status_code == 403


class TestHandshake:
    def test_without_a_certificate_it_is_refused(self, door):
        assert handshake_is_refused(door.port, context_with(door.federation.authority))
        assert not handshake_is_refused(door.port, door.east.tls_context())

    @pytest.mark.fault(16, passes_when="an expired certificate is refused")
    def test_with_an_expired_one_it_is_refused(self, door):
        request = certificates.load_request(door.east.csr())
        pem = issuer_of(door.federation).client(request, "east", timedelta(seconds=-1))
        on_the_list(door.federation, "east", pem)
        assert handshake_is_refused(door.port, context_with(door.federation.authority, pem, door.east.tls_key()))

    @pytest.mark.fault(16, passes_when="a certificate of another authority of the same name is refused")
    def test_with_one_from_another_authority_of_the_same_name_it_is_refused(self, door, tools, tmp_path):
        other = create(tmp_path / "other", "trial", ["127.0.0.1"])
        stranger = tools.join(other, tmp_path / "stranger", "east")
        pem = stranger.certificate.read_bytes()
        assert handshake_is_refused(door.port, context_with(door.federation.authority, pem, stranger.tls_key()))

    def test_with_the_gateways_own_one_it_is_refused(self, door):
        federation = door.federation
        key = keys.load_private(keys.read(federation.gateway_key), "tls", "")
        pem = federation.gateway_certificate.read_bytes()
        assert handshake_is_refused(door.port, context_with(federation.authority, pem, key))

    @pytest.mark.fault(16, passes_when="a certificate signed by a hospital is refused")
    def test_with_one_signed_by_a_hospital_it_is_refused(self, door):
        """A hospital's certificate is no authority, whatever it signs."""
        own = certificates.load(door.east.certificate.read_bytes(), "")
        key = keys.generate("tls")
        request = certificates.load_request(certificates.signing_request("west", key))
        pem = Issuer(own, door.east.tls_key()).client(request, "west")
        chain = pem + door.east.certificate.read_bytes()
        assert handshake_is_refused(door.port, context_with(door.federation.authority, chain, key))

    def test_below_version_1_3_it_is_refused(self, door):
        context = door.east.tls_context()
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
        assert handshake_is_refused(door.port, context)

    def test_over_plain_http_nothing_is_said(self, door):
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{door.port}/fedward/health", trust_env=False)


class TestMembers:
    def test_a_certificate_of_the_authority_that_was_never_admitted_opens_nothing(self, door, tools):
        key = keys.generate("tls")
        request = certificates.load_request(certificates.signing_request("east", key))
        pem = issuer_of(door.federation).client(request, "east")
        with door.client(context=context_with(door.federation.authority, pem, key)) as client:
            assert client.post("/v1/fleet/get-run", headers=tools.node(door.east)).status_code == 403
            assert client.get("/fedward/health").status_code == 403
        assert door.upstream.asked == []

    @pytest.mark.fault(16, passes_when="revocation counts at the next request, on open connections too")
    def test_revocation_counts_on_a_connection_that_is_open(self, door, tools):
        with door.client() as client:
            assert client.post("/v1/fleet/get-run", headers=tools.node(door.east)).status_code == 200
            door.federation.revoke("east")
            assert client.post("/v1/fleet/get-run", headers=tools.node(door.east)).status_code == 403
        assert len(door.upstream.asked) == 1

    @pytest.mark.fault(16, passes_when="revocation counts for a node that waits for messages")
    def test_revocation_counts_for_a_node_that_waits_for_messages(self, make_door, tools):
        with make_door(hold=20.0) as door:
            answers = []
            thread = threading.Thread(target=lambda: answers.append(door.post(PULL, timeout=30)))
            thread.start()
            tools.until(lambda: door.upstream.asked)
            door.federation.revoke("east")
            thread.join(3)
            door.upstream.says[PULL] = message()
            assert [answer.status_code for answer in answers] == [403]

    @pytest.mark.fault(16, passes_when="revocation ends a request whose body is under way")
    def test_revocation_ends_a_request_whose_body_is_under_way(self, door, tools, monkeypatch):
        monkeypatch.setattr(gateway, "MEMBER_SECONDS", 0.2)
        whole = []

        def slowly():
            yield b"x" * 1000
            tools.until(lambda: OBJECT in door.upstream.begun)
            door.federation.revoke("east")
            tools.until(lambda: door.upstream.asked)
            whole.append(True)

        with suppress(httpx.TransportError):  # its code may come before the end of the connection, or not
            assert door.post(OBJECT, content=slowly()).status_code == 403
        assert whole == [True], "it was cut off while the body was under way"
        assert door.upstream.asked == [{"path": OBJECT, "cut": 1000}]

    @pytest.mark.fault(16, passes_when="a certificate that expires on an open connection counts no more")
    def test_a_certificate_that_expires_on_an_open_connection_counts_no_more(self, door, tools):
        request = certificates.load_request(door.east.csr())
        pem = issuer_of(door.federation).client(request, "east", timedelta(seconds=2))
        on_the_list(door.federation, "east", pem)
        with door.client(context=context_with(door.federation.authority, pem, door.east.tls_key())) as client:
            assert client.post("/v1/fleet/get-run", headers=tools.node(door.east)).status_code == 200
            time.sleep(2.1)
            assert client.post("/v1/fleet/get-run", headers=tools.node(door.east)).status_code == 403

    def test_the_other_hospital_goes_on(self, door):
        door.federation.revoke("east")
        assert door.post("/v1/fleet/get-run", door.west).status_code == 200

    @pytest.mark.parametrize("path", sorted(relay.FLEET))
    def test_the_node_key_of_another_member_opens_nothing(self, door, tools, path):
        with door.client(door.east) as client:
            for headers in (tools.node(door.west), {}, {"flwr-public-key": "Z"}):
                assert client.post(path, headers=headers).status_code == 403
        assert door.upstream.asked == []

    def test_two_node_keys_in_one_request_open_nothing(self, door, tools):
        mine, other = (("flwr-public-key", tools.node(site)["flwr-public-key"]) for site in (door.east, door.west))
        for headers in ([mine, other], [other, mine], [mine, mine]):
            assert door.post("/v1/fleet/get-run", headers=headers).status_code in {400, 403}
        assert door.upstream.asked == []


class TestAnswersInOnesOwnName:
    def test_are_passed_on_as_they_came(self, door):
        assert door.post(PUSH, content=announcement()).status_code == 200
        assert door.upstream.asked[0]["body"] == announcement()

    @pytest.mark.parametrize(
        "forged",
        [announcement(source=8), announcement(source=1, reply=""), announcement(reply=""), announcement(source=0)],
        ids=["as another node", "as the coordinator", "as an instruction", "as nobody"],
    )
    def test_others_are_not(self, door, forged):
        assert door.post(PUSH, content=forged).status_code == 403
        assert door.upstream.asked == []

    def test_neither_is_one_forged_among_good_ones(self, door):
        request = PushMessagesRequest.FromString(announcement())
        request.messages_list.add().metadata.src_node_id = 1
        assert door.post(PUSH, content=request.SerializeToString()).status_code == 403

    def test_neither_are_parts_of_another_message(self, door):
        assert door.post(PUSH, content=announcement(root="another's")).status_code == 403
        bare = PushMessagesRequest.FromString(announcement())
        bare.message_object_trees.clear()
        assert door.post(PUSH, content=bare.SerializeToString()).status_code == 403
        assert door.upstream.asked == []

    def test_neither_are_more_parts_than_an_answer_can_have(self, door):
        assert door.post(PUSH, content=announcement(parts=gateway.MOST_PARTS - 1)).status_code == 200
        assert door.post(PUSH, content=announcement(parts=gateway.MOST_PARTS)).status_code == 413
        assert len(door.upstream.asked) == 1

    @pytest.mark.fault(9, passes_when="an announcement that can't be read is not passed on")
    def test_neither_is_what_cannot_be_read(self, door):
        assert door.post(PUSH, content=b"\xff\xff\xff").status_code == 400
        assert door.upstream.asked == []


class TestRoom:
    """Flower would take, and the coordinator would hold, as much as a member sends."""

    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch):
        monkeypatch.setattr(gateway, "LARGEST_ANSWER", 1000)

    def test_there_is_room_for_one_answer(self, door):
        assert [door.post(OBJECT, content=bytes(500)).status_code for _ in range(3)] == [200, 200, 413]
        assert door.post(OBJECT, door.west, content=bytes(500)).status_code == 200

    def test_and_for_one_more_with_every_message(self, door):
        door.post(OBJECT, content=bytes(1000))
        for _ in range(4):
            door.upstream.says[PULL] = message()
            door.post(PULL)
            assert door.post(OBJECT, content=bytes(1000)).status_code == 200
        assert door.post(OBJECT, content=bytes(1)).status_code == 413

    def test_but_not_for_a_heap_of_answers(self, door):
        for _ in range(5):
            door.upstream.says[PULL] = message()
            door.post(PULL)
        assert [door.post(OBJECT, content=bytes(1000)).status_code for _ in range(3)] == [200, 200, 413]

    def test_a_message_that_is_handed_out_again_makes_no_room(self, door):
        door.upstream.says[PULL] = message()
        for _ in range(3):
            door.post(PULL)
        assert [door.post(OBJECT, content=bytes(1000)).status_code for _ in range(3)] == [200, 200, 413]


class TestPassing:
    def test_only_known_headers_pass(self, door, tools):
        known = {"flwr-timestamp": "now", "flwr-signature": "s", "flwr-package-version": "1", "accept": "a"}
        dropped = {
            "x-forwarded-for": "127.0.0.1",
            "forwarded": "for=127.0.0.1",
            "x-real-ip": "127.0.0.1",
            "x-fedward-token": "t",
            "flwr-task-token": "t",
            "cookie": "c",
            "authorization": "a",
            "connection": "keep-alive, x-hop",
            "x-hop": "h",
            "te": "trailers",
            "proxy-authorization": "p",
            "user-agent": "u",
            "accept-encoding": "gzip",
        }
        answer = door.post("/v1/fleet/get-run", headers={**tools.node(door.east), **known, **dropped}, content=b"x")
        seen = {name.decode(): value.decode() for name, value in door.upstream.asked[0]["headers"].items()}
        assert seen.keys() == {*known, *tools.node(door.east), "content-length", "host"}
        assert all(seen[name] == value for name, value in known.items())
        assert "x-secret" not in answer.headers
        assert answer.headers["content-type"] == "application/protobuf"

    @pytest.mark.parametrize("chunked", [False, True])
    def test_a_large_body_passes_both_ways_unchanged(self, door, chunked):
        content = os.urandom(30 << 20)
        pieces = (content[i : i + 100_000] for i in range(0, len(content), 100_000))
        assert door.post(OBJECT, content=pieces if chunked else content, timeout=30).content == content
        assert door.upstream.asked[0]["body"] == content

    @pytest.mark.parametrize("path", [OBJECT, PUSH, PULL])
    @pytest.mark.parametrize("chunked", [False, True])
    def test_a_body_beyond_the_limit_is_refused(self, make_door, path, chunked):
        with make_door(limit=100_000) as door:
            content = bytes(100_001)
            answer = door.post(path, content=iter([content[:50_000], content[50_000:]]) if chunked else content)
            assert answer.status_code == 413
            assert all("cut" in each for each in door.upstream.asked)
            assert door.post(OBJECT, content=bytes(100_000)).status_code == 200

    def test_without_flower_it_says_try_again(self, make_door):
        with make_door() as door:
            port = door.upstream.port
            with socket.create_server(("127.0.0.1", 0)) as listener:
                door.upstream.port = listener.getsockname()[1]
        with make_door() as door:
            for path in (OBJECT, PULL):
                assert door.post(path).status_code == 503
            door.upstream.port = port

    def test_an_answer_that_breaks_off_does_not_look_whole(self, door):
        door.upstream.says["/v1/fleet/pull-object"] = b"break off"
        with pytest.raises(httpx.RemoteProtocolError):
            door.post("/v1/fleet/pull-object")
        assert door.post("/v1/fleet/get-run").status_code == 200

    def test_a_member_has_so_many_requests_at_once_and_no_more(self, door, monkeypatch):
        monkeypatch.setattr(gateway, "AT_ONCE", 2)
        door.upstream.slow = 0.5
        codes = []
        threads = [
            threading.Thread(target=lambda: codes.append(door.post("/v1/fleet/get-run").status_code)) for _ in range(5)
        ]
        for thread in threads:
            thread.start()
        time.sleep(0.2)
        assert door.post("/v1/fleet/get-run", door.west).status_code == 200
        for thread in threads:
            thread.join()
        assert sorted(codes) == [200, 200, 503, 503, 503]
        assert door.post("/v1/fleet/get-run").status_code == 200


def secured(door):
    line = socket.create_connection(("127.0.0.1", door.port), timeout=5)
    return door.east.tls_context().wrap_socket(line, server_hostname="127.0.0.1")


class TestSlowness:
    @pytest.mark.parametrize("begin", [b"", b"POST /v1/fleet/get-run HTTP/1.1\r\nhost: x\r\n"])
    def test_a_head_that_does_not_come_ends_the_connection(self, door, monkeypatch, begin):
        """Also one that comes a letter at a time."""
        monkeypatch.setattr(relay, "HEAD_SECONDS", 0.5)
        with secured(door) as line:
            line.settimeout(0.1)
            line.sendall(begin)
            begun = time.monotonic()
            while not self.ended(line, b"a" if begin else b"") and time.monotonic() < begun + 3:
                pass
            assert 0.4 < time.monotonic() - begun < 2

    def test_neither_may_a_later_head_come_a_letter_at_a_time(self, door, tools, monkeypatch):
        monkeypatch.setattr(relay, "HEAD_SECONDS", 0.5)
        key = tools.node(door.east)["flwr-public-key"]
        with secured(door) as line:
            line.sendall(f"POST /v1/fleet/get-run HTTP/1.1\r\nhost: x\r\nflwr-public-key: {key}\r\n\r\n".encode())
            assert line.recv(1000).startswith(b"HTTP/1.1 200")
            time.sleep(0.6)
            line.settimeout(0.1)
            begun = time.monotonic()
            while not self.ended(line, b"P") and time.monotonic() < begun + 3:
                pass
            assert 0.4 < time.monotonic() - begun < 2

    def ended(self, line, letter):
        try:
            line.sendall(letter)
            return line.recv(1) == b""
        except TimeoutError:
            return False
        except (ssl.SSLError, ConnectionError):
            return True

    def test_the_next_head_has_its_own_time(self, door, tools, monkeypatch):
        monkeypatch.setattr(relay, "HEAD_SECONDS", 0.5)
        with door.client() as client:
            for _ in range(3):
                assert client.post("/v1/fleet/get-run", headers=tools.node(door.east)).status_code == 200
                time.sleep(0.4)

    def test_a_body_that_stops_coming_ends_the_request(self, door, tools, monkeypatch):
        monkeypatch.setattr(relay, "PAUSE_SECONDS", 0.3)
        key = tools.node(door.east)["flwr-public-key"]
        with secured(door) as line:
            line.sendall(
                f"POST {OBJECT} HTTP/1.1\r\nhost: x\r\nflwr-public-key: {key}\r\ncontent-length: 9\r\n\r\nabc".encode()
            )
            assert line.recv(100).startswith(b"HTTP/1.1 503")
        tools.until(lambda: door.upstream.asked == [{"path": OBJECT, "cut": 3}])

    def test_a_client_that_goes_takes_its_request_with_it(self, make_door, tools):
        with make_door(hold=30.0) as door:
            with pytest.raises(httpx.ReadTimeout):
                door.post(PULL, timeout=0.3)
            time.sleep(0.3)
            before = len(door.upstream.asked)
            time.sleep(0.5)
            assert len(door.upstream.asked) == before


class TestStaying:
    """A hospital leaves one request open; Flower is told when it has ended with its connection, and nothing comes any more."""

    @pytest.fixture(autouse=True)
    def _hasty(self, monkeypatch):
        monkeypatch.setattr(gateway, "LOST_SECONDS", 0.5)

    @pytest.fixture
    def stay(self, door, tools):
        """Have a node ask for messages, and leave a request open; return the connection."""

        def opened():
            question = PullMessagesRequest(node=Node(node_id=77)).SerializeToString()
            door.post(PULL, headers={**tools.node(door.east), "flwr-signature": "signed"}, content=question)
            line = secured(door)
            line.sendall(f"POST {relay.STAY} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n".encode())
            assert line.recv(100).startswith(b"HTTP/1.1 102")
            door.upstream.asked.clear()
            return line

        return opened

    @pytest.mark.fault(1, passes_when="Flower is told that a node is gone soon after its connections have ended")
    def test_a_hospital_that_hangs_up_is_said_to_have_left_in_its_nodes_name(self, door, stay, tools):
        stay().close()
        tools.until(lambda: door.upstream.paths() == [LEAVE], 5)
        (asked,) = door.upstream.asked
        assert DeactivateNodeRequest.FromString(asked["body"]).node_id == 77
        assert asked["headers"][b"flwr-signature"] == b"signed"

    @pytest.mark.fault(
        5, passes_when="a line that is cut for short is no loss, nor is one on which other requests come"
    )
    def test_one_that_is_back_soon_is_not(self, door, stay):
        line = stay()
        line.close()
        time.sleep(0.3)
        with secured(door) as again:
            again.sendall(f"POST {relay.STAY} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n".encode())
            time.sleep(1.0)
            assert door.upstream.paths() == []

    def test_nor_is_one_that_goes_on_asking(self, door, stay):
        stay().close()
        for _ in range(5):
            time.sleep(0.3)
            door.post(OBJECT)
        assert set(door.upstream.paths()) == {OBJECT}

    @pytest.mark.parametrize("path", [OBJECT, PULL])
    def test_one_that_comes_back_later_is_let_in_with_its_first_request(self, door, stay, tools, path):
        stay().close()
        tools.until(lambda: door.upstream.paths() == [LEAVE], 5)
        door.post(path)
        door.post(OBJECT)
        said = door.upstream.paths()
        assert said[:3] == [LEAVE, relay.BEAT, path]
        assert said.count(relay.BEAT) == 1
        (beat,) = (each for each in door.upstream.asked if each["path"] == relay.BEAT)
        assert SendNodeHeartbeatRequest.FromString(beat["body"]).node.node_id == 77

    def test_it_ends_with_the_membership(self, door, stay, monkeypatch):
        monkeypatch.setattr(gateway, "MEMBER_SECONDS", 0.2)
        with stay() as line:
            door.federation.revoke("east")
            line.settimeout(5)
            rest = b""
            while piece := line.recv(1 << 16):
                rest += piece
        assert b"HTTP/1.1 403" in rest


class TestWaitingForMessages:
    def test_a_message_is_there_as_soon_as_it_is_there(self, make_door):
        with make_door(hold=20.0) as door:
            content, arrived = message(), []
            thread = threading.Thread(
                target=lambda: arrived.append((door.post(PULL, timeout=30).content, time.monotonic()))
            )
            thread.start()
            time.sleep(1.0)
            sent = time.monotonic()
            door.upstream.send(content)
            thread.join(5)
            assert arrived[0][0] == content
            assert 0 <= arrived[0][1] - sent < 0.5

    def test_a_part_that_is_on_its_way_is_waited_for(self, door):
        from flwr.proto.message_pb2 import PullObjectResponse

        part = PullObjectResponse(object_found=True, object_available=True, object_content=b"x" * 1000)
        door.upstream.says[PART] = PullObjectResponse(object_found=True).SerializeToString()
        assert len(door.upstream.says[PART]) == len(gateway.AWAITED)
        answers = []
        thread = threading.Thread(target=lambda: answers.append(door.post(PART, timeout=30).content))
        thread.start()
        time.sleep(0.5)
        assert not answers
        assert door.upstream.paths().count(PART) > 3
        door.upstream.says[PART] = part.SerializeToString()
        thread.join(5)
        assert answers == [part.SerializeToString()]

    def test_a_part_that_nobody_knows_is_not_waited_for(self, door):
        door.upstream.says[PART] = b"\x08\x00"
        assert door.post(PART).content == b"\x08\x00"
        assert door.upstream.paths().count(PART) == 1

    def test_without_one_the_answer_is_empty_after_a_while(self, door):
        begun = time.monotonic()
        answer = door.post(PULL)
        assert (answer.status_code, answer.content) == (200, b"")
        assert 0.9 < time.monotonic() - begun < 2
        assert 2 <= len(door.upstream.asked) <= 4

    def test_flower_is_asked_again_when_the_coordinator_has_sent_something_and_not_before(
        self, make_door, tools, monkeypatch
    ):
        monkeypatch.setattr(gateway, "LOOK_SECONDS", 60.0)
        with make_door(hold=60.0) as door:
            answers = []
            asking = threading.Thread(target=lambda: answers.append(door.post(PULL).content))
            asking.start()
            tools.until(lambda: PULL in door.upstream.paths())
            time.sleep(1.0)  # a gateway that only now begins to listen for news may ask twice
            before = door.upstream.paths()
            time.sleep(1.0)
            assert door.upstream.paths() == before
            door.upstream.send(content := message())
            asking.join(10.0)
            assert answers == [content]
            assert door.upstream.paths() == [*before, superlink.PUSHED, PULL]

    def test_a_message_that_came_while_nobody_listened_for_news_is_found_all_the_same(self, make_door, monkeypatch):
        monkeypatch.setattr(gateway, "NEWS", "/nothing/there")
        monkeypatch.setattr(gateway, "LOOK_SECONDS", 0.3)
        with make_door(hold=4.0) as door:
            threading.Timer(0.5, lambda: door.upstream.says.update({PULL: message()})).start()
            begun = time.monotonic()
            assert door.post(PULL).content
            assert time.monotonic() - begun < 2

    def test_flower_is_asked_with_what_the_node_signed(self, door, tools):
        door.post(PULL, headers={**tools.node(door.east), "flwr-signature": "s"}, content=b"node 7")
        assert {each["body"] for each in door.upstream.asked} == {b"node 7"}
        assert {each["headers"][b"flwr-signature"] for each in door.upstream.asked} == {b"s"}

    def test_a_message_that_was_lost_on_its_way_is_handed_out_again(self, door):
        """Flower counts a message as delivered when it is asked for it; the node may have gone by then."""
        door.upstream.slow = 0.5
        door.upstream.says[PULL] = content = message()
        with pytest.raises(httpx.ReadTimeout):
            door.post(PULL, timeout=0.2)
        time.sleep(0.6)
        door.upstream.slow = 0.0
        assert PULL not in door.upstream.says
        assert door.post(PULL).content == content

    def test_but_not_once_the_node_has_done_something_with_it(self, door):
        door.upstream.says[PULL] = content = message()
        assert door.post(PULL).content == content
        door.post("/v1/fleet/pull-object")
        assert door.post(PULL).content == b""

    def test_and_not_for_ever(self, door):
        door.upstream.says[PULL] = content = message()
        assert [door.post(PULL).content for _ in range(4)] == [content, content, content, b""]

    def test_and_not_beyond_its_time(self, door):
        door.upstream.says[PULL] = content = message(created=time.time() - 100)
        assert [door.post(PULL).content for _ in range(2)] == [content, b""]

    def test_and_not_to_another(self, door):
        door.upstream.says[PULL] = message()
        door.post(PULL)
        assert door.post(PULL, door.west).content == b""

    def test_signs_of_life_do_not_count_as_having_it(self, door):
        door.upstream.says[PULL] = content = message()
        door.post(PULL)
        door.post("/v1/fleet/send-node-heartbeat")
        assert door.post(PULL).content == content

    def test_a_node_that_asks_anew_ends_its_older_question(self, make_door, tools):
        with make_door(hold=20.0) as door:
            answers = []
            for _ in range(2):
                threading.Thread(target=lambda: answers.append(door.post(PULL, timeout=30).content)).start()
                before = len(door.upstream.asked)
                tools.until(lambda: len(door.upstream.asked) >= before + 2)  # noqa: B023
            tools.until(lambda: len(answers) == 1, 2)
            door.upstream.send(content := message())
            tools.until(lambda: len(answers) == 2, 2)
            assert answers == [b"", content]


class TestRenewal:
    def test_a_member_gets_a_new_certificate_over_its_key(self, door):
        with door.client() as client:
            answer = client.post("/fedward/renew", content=door.east.csr())
        assert answer.status_code == 200
        before = door.east.certificate.read_bytes()
        door.east.renewed(answer.content)
        assert door.east.certificate.read_bytes() != before
        assert door.post("/v1/fleet/get-run").status_code == 200

    def test_many_whose_answers_are_lost_leave_the_certificate_in_use(self, door):
        with door.client() as client:
            for _ in range(10):
                assert client.post("/fedward/renew", content=door.east.csr()).status_code == 200
        assert door.post("/v1/fleet/get-run").status_code == 200

    def test_a_renewal_holds_nobody_up_and_there_is_one_at_a_time(self, door, monkeypatch):
        """Somebody else has the lock of the members' folder meanwhile."""
        waiting, answers = threading.Event(), []
        renew = provision.Federation.renew
        monkeypatch.setattr(provision.Federation, "renew", lambda *given: waiting.set() or renew(*given))

        def ask():
            with door.client(timeout=30) as client:
                answers.append(client.post("/fedward/renew", content=door.east.csr()).status_code)

        thread = threading.Thread(target=ask)
        with door.federation._book.locked():
            thread.start()
            assert waiting.wait(10)
            assert door.post("/v1/fleet/get-run", door.west).status_code == 200
            ask()
            assert answers == [503]
        thread.join(10)
        assert answers == [503, 200]

    def test_nothing_else_is_signed(self, door):
        key = keys.generate("tls")
        requests = [b"", b"garbage", certificates.signing_request("east", key), door.west.csr()]
        requests.append(certificates.signing_request("west", door.east.tls_key()))
        with door.client() as client:
            for csr in requests:
                answer = client.post("/fedward/renew", content=csr)
                assert (answer.status_code, answer.content) == (400, b"")
            assert client.post("/fedward/renew", content=bytes(100_000)).status_code == 413


class TestLog:
    def test_a_refused_request_is_one_line_that_says_who_what_and_why(self, door, caplog):
        with caplog.at_level(logging.INFO):
            door.post("/v1/control/start-run", content=b"body")
            door.federation.revoke("east")
            door.post("/v1/fleet/get-run", content=b"body")
        lines = [record.getMessage() for record in caplog.records if record.name == "fedward.gateway"]
        assert lines[0] == "refused 'east' 'POST /v1/control/start-run' 403: no route for hospitals"
        assert lines[1].startswith("refused subject ")
        assert lines[1].endswith(" 'POST /v1/fleet/get-run' 403: no member's certificate")
        assert len(lines) == 2
        assert "body" not in caplog.text

    def test_a_path_cannot_forge_a_line(self, door, caplog):
        with caplog.at_level(logging.INFO):
            door.post("/a%0arefused%20'west'%1b[31m/" + "x" * 500)
        (line,) = [record.getMessage() for record in caplog.records if record.name == "fedward.gateway"]
        assert "\n" not in line
        assert "\x1b" not in line
        assert len(line) < 200


class TestProgram:
    def test_it_says_when_it_listens_and_stops_in_good_order(self, hospitals, tools):
        command = [sys.executable, "-m", "server.gateway", hospitals.federation.folder, "127.0.0.1", "0"]
        command.append(f"http://127.0.0.1:{hospitals.upstream.port}")
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            word, port = process.stdout.readline().split()
            assert word == "ready"
            hospitals.port = int(port)
            idle = hospitals.client()
            assert idle.get("/fedward/health").text == "ok\n"
            answers = []
            thread = threading.Thread(target=lambda: answers.append(hospitals.post(PULL, timeout=30).status_code))
            thread.start()
            tools.until(lambda: hospitals.upstream.asked)
            begun = time.monotonic()
            process.send_signal(signal.SIGTERM)
            thread.join(5)
            assert answers == [200]
            assert process.wait(5) == 0
            assert time.monotonic() - begun < 3
            idle.close()
            assert process.stderr.read() == ""

    def test_an_address_that_is_taken_is_said(self, hospitals):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            words = [hospitals.federation.folder, "127.0.0.1", str(listener.getsockname()[1]), "http://127.0.0.1:1"]
            done = subprocess.run([sys.executable, "-m", "server.gateway", *words], capture_output=True, text=True)
        assert done.returncode == 2
        assert "cannot listen here (Address already in use)" in done.stderr
        assert done.stderr.count("\n") == 1

    def test_its_own_certificate_is_made_anew_while_it_runs(self, hospitals, monkeypatch, tools):
        monkeypatch.setattr(gateway, "REFRESH_SECONDS", 0.2)
        federation = hospitals.federation
        key = keys.load_private(keys.read(federation.gateway_key), "tls", "")
        context = gateway.context_of(federation)
        app = gateway._Served(federation, "http://127.0.0.1:1", context)
        old = issuer_of(federation).server(["127.0.0.1"], key.public_key(), timedelta(days=1))
        keys.replace({federation.gateway_certificate: old})
        gateway.show_certificate(context, federation)

        def shown():
            with (
                socket.create_connection(("127.0.0.1", port)) as line,
                hospitals.east.tls_context().wrap_socket(line, server_hostname="127.0.0.1") as secured,
            ):
                return secured.getpeercert(binary_form=True)

        with tools.serving(app, context) as port:
            first = shown()
            tools.until(lambda: shown() != first)
            assert shown() == ssl.PEM_cert_to_DER_cert(federation.gateway_certificate.read_text())
