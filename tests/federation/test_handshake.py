"""Who is refused at the handshake of TLS stands in the gateway's log: from where, and why; and a knock that says nothing does not."""

import contextlib
import logging
import socket
import ssl
import subprocess
import sys
import time
from datetime import timedelta

import httpx
import pytest

from common import certificates, keys, relay
from common.certificates import Issuer
from server import provision


def knock(door, context):
    with pytest.raises((httpx.TransportError, ssl.SSLError)), httpx.Client(verify=context, trust_env=False) as client:
        client.get(f"{door.url}/fedward/health")


def lines(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "fedward.relay"]


@pytest.fixture
def shown(door):
    """Return a context that shows a certificate of an authority, which lasts so long, or none."""

    def made(federation=None, life=timedelta(days=90)):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=door.federation.authority.decode())
        if federation:
            key = keys.load_private(keys.read(federation.folder / "ca" / "key.pem"), "tls", "")
            issuer = Issuer(certificates.load(federation.authority, ""), key)
            pem = issuer.client(certificates.load_request(door.east.csr()), "east", life)
            keys.load_chain(context, pem, door.east.tls_key())
        return context

    return made


def test_without_a_certificate(door, shown, tools, caplog):
    knock(door, shown())
    tools.until(lambda: lines(caplog))
    assert lines(caplog) == ["refused a connection from 127.0.0.1: it showed no certificate"]


def test_with_an_expired_one(door, shown, tools, caplog):
    knock(door, shown(door.federation, timedelta(seconds=-60)))
    tools.until(lambda: lines(caplog))
    assert lines(caplog) == ["refused a connection from 127.0.0.1: its certificate: certificate has expired"]


def test_with_one_of_another_authority(door, shown, tools, caplog, tmp_path):
    knock(door, shown(provision.create(tmp_path / "other", "other", ["127.0.0.1"])))
    tools.until(lambda: lines(caplog))
    (line,) = lines(caplog)
    assert line.startswith("refused a connection from 127.0.0.1: its certificate: ")
    assert "issuer" in line or "self-signed" in line


def test_the_same_is_said_once_in_a_while(door, shown, tools, caplog):
    for _ in range(5):
        knock(door, shown())
    with door.client() as client:
        assert client.get("/fedward/health").status_code == 200
    assert len(lines(caplog)) == 1


def test_what_is_no_tls_is_said_and_a_knock_is_not(door, tools, caplog):
    for _ in range(3):
        socket.create_connection(("127.0.0.1", door.port)).close()
    with socket.create_connection(("127.0.0.1", door.port)) as line:
        line.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
        tools.until(lambda: lines(caplog))
    assert lines(caplog) == ["refused a connection from 127.0.0.1: http request"]


def test_many_that_say_nothing_keep_nobody_out(door, caplog):
    silent = [socket.create_connection(("127.0.0.1", door.port)) for _ in range(50)]
    with door.client() as client:
        assert client.get("/fedward/health").status_code == 200
    for line in silent:
        line.close()
    assert lines(caplog) == []


def silent(door, source="127.0.0.1"):
    return socket.create_connection(("127.0.0.1", door.port), source_address=(source, 0), timeout=10)


def open_still(line):
    """Say whether a connection that says nothing is still open."""
    line.setblocking(False)
    try:
        return line.recv(1) != b""
    except BlockingIOError:
        return True
    except ConnectionResetError:
        return False


def test_of_too_many_from_one_address_the_oldest_give_way(door, tools, caplog):
    lines_ = [silent(door) for _ in range(relay.FROM_ONE + 50)]
    tools.until(lambda: sum(map(open_still, lines_)) == relay.FROM_ONE)
    assert not any(map(open_still, lines_[:50]))
    with door.client() as client:
        assert client.get("/fedward/health").status_code == 200
    for line in lines_:
        line.close()
    assert lines(caplog) == [
        "refused a connection from 127.0.0.1: too many handshakes are under way; the oldest gave way"
    ]


def test_of_too_many_in_all_the_address_gives_way_that_has_most(make_door, monkeypatch, tools):
    monkeypatch.setattr(relay, "HANDSHAKES", 20)
    monkeypatch.setattr(relay, "FROM_ONE", 12)
    with make_door() as door:
        slow = silent(door, "127.0.0.9")
        crowd = [silent(door, f"127.0.0.{2 + number % 4}") for number in range(80)]
        tools.until(lambda: sum(map(open_still, crowd)) == 19)
        assert open_still(slow)
        with door.client() as client:
            assert client.get("/fedward/health").status_code == 200
            assert open_still(slow)
        for line in (slow, *crowd):
            line.close()


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (128, int(sys.argv.pop(1))))
from server import gateway
sys.exit(gateway.main())
"""


@pytest.mark.parametrize(("hard", "stay"), [(128, 31), (512, 127)])
def test_more_that_say_nothing_than_there_are_descriptors_keep_nobody_out(hospitals, tools, hard, stay):
    """A quarter of the descriptors is for handshakes; one of those was ended for the member's."""
    command = [
        sys.executable,
        "-c",
        LIMITED,
        str(hard),
        hospitals.federation.folder,
        "127.0.0.1",
        "0",
        "http://127.0.0.1:1",
    ]
    with ended(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)) as process:
        hospitals.port = int(process.stdout.readline().split()[1])
        crowd = [silent(hospitals, f"127.0.0.{2 + number % 8}") for number in range(hard + 100)]
        begun = time.monotonic()
        with hospitals.client() as client:
            assert client.get("/fedward/health").status_code == 200
        assert time.monotonic() - begun < 5
        tools.until(lambda: sum(map(open_still, crowd)) == stay)
        for line in crowd:
            line.close()
        process.terminate()
        assert process.wait(10) == 0


@contextlib.contextmanager
def ended(process):
    """Leave no process behind where a test fails."""
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_one_that_says_nothing_is_hung_up_on(make_door, monkeypatch, caplog):
    monkeypatch.setattr(relay, "HEAD_SECONDS", 0.3)
    with (
        make_door() as door,
        caplog.at_level(logging.INFO),
        socket.create_connection(("127.0.0.1", door.port), timeout=10) as line,
    ):
        assert line.recv(1) == b""
    assert lines(caplog) == []
