"""Preflight on the way to the coordinator: real gateways, certificates and proxies, and a clock that is wrong."""

import socket
import threading
import time
from datetime import timedelta

import httpx
import pytest

from client import policy, preflight, resident, tunnel
from common import certificates, keys, supervise
from common.certificates import Issuer
from common.errors import UsageError
from server import gateway
from server import preflight as servers
from server.provision import create


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    for name in ("HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def check(hospitals, monkeypatch):
    """Make the checks of the way to the gateway."""
    (hospitals.east.folder / resident.POLICY).write_text(policy.template("east", "heart", ""))
    monkeypatch.setattr(preflight, "rules", lambda _site: preflight.ok(""))  # half a second that has no part in this

    def checked(address=None, **words):
        path = hospitals.east.folder / "federation.json"
        facts = preflight.joining.read_document(path) | {"address": address or f"127.0.0.1:{hospitals.port}"}
        path.write_bytes(preflight.joining.document_bytes(facts))
        found = preflight.check(hospitals.east, **words)
        return {name: found[name] for name in list(found)[list(found).index("joined") :]}

    return checked


def levels(found):
    return {name: finding.level for name, finding in found.items()}


def ending(found):
    """Return what the last check, at which the way ends, is and says."""
    name, finding = list(found.items())[-1]
    assert finding.level == "FAIL"
    return name, finding.text


def test_a_way_on_which_all_is_well(door, check):
    found = check()
    names = ["joined", "rules", "certificate", "proxy", "name", "line", "gateway", "release", "clock"]
    assert levels(found) == dict.fromkeys(names, "ok")
    assert found["release"].text == f"Fedward {gateway.version('fedward')} on both sides"
    assert found["gateway"].text == f"{door.url} is the federation's, and this hospital a member"


def test_the_gateway_tells_members_alone_its_release_and_time(door):
    with door.client() as client:
        headers = client.get("/fedward/health").headers
        assert abs(float(headers["fedward-clock"]) - time.time()) < 1
        assert headers["fedward-release"] == gateway.version("fedward")
        assert not any(name.startswith("fedward") for name in client.get("/fedward/other").headers)
    door.federation.revoke("east")
    with door.client() as client:
        assert not any(name.startswith("fedward") for name in client.get("/fedward/health").headers)


class TestClock:
    @pytest.mark.fault(12, passes_when="the check before the start warns, then refuses with the skew in the message")
    @pytest.mark.parametrize(
        ("off", "level"),
        [(0, "ok"), (1.5, "ok"), (-1.5, "ok"), (2.5, "warn"), (-2.5, "warn"), (4.5, "warn"), (5.5, "FAIL"), (600, "FAIL"), (-270, "warn"), (-600, "FAIL")],
    )  # fmt: skip
    def test_one_that_is_off_is_told_by_how_much(self, door, check, off, level):
        finding = check(now=lambda: time.time() + off)["clock"]
        assert finding.level == level
        side = "ahead of" if off > 0 else "behind"
        assert abs(float(finding.text.split()[0]) - abs(off)) < 0.4
        assert off == 0 or f" s {side} the coordinator's" in finding.text
        if level == "FAIL":
            assert finding.text.endswith("set this clock by a time server")

    @pytest.mark.fault(12, passes_when="a clock that jumps while it is looked at is told from one that is off")
    @pytest.mark.parametrize("jump", [600, -600, 3])
    def test_one_that_jumps_is_found_out(self, door, check, jump):
        asked = []

        def now():
            asked.append(1)
            return time.time() + jump * (len(asked) > 2)

        finding = check(now=now)["clock"]
        assert finding.level == "FAIL"
        assert abs(float(finding.text.split()[4]) - abs(jump)) < 0.4
        assert finding.text.startswith("this clock jumped by ")

    @pytest.mark.parametrize("off", [0.0, 4.0, 30.0])
    def test_a_slow_line_is_not_taken_for_a_wrong_clock(self, off):
        """Each answer only bounds the skew; asked over a line of 3 s, one way slower than the other, the truth is within."""

        def answer(there, back):
            asked = 1_000_000.0
            response = httpx.Response(200, headers={"fedward-clock": f"{asked - off + there:.3f}"})
            return preflight.Answer(response, asked, there + back)

        answers = [answer(2.0, 1.0), answer(0.3, 0.5), answer(0.5, 0.2)]
        assert all(low <= off <= high for low, high in (each.ahead for each in answers))
        assert abs(float(preflight.clock(answers).text.split()[0]) - off) < 0.3


class TestGateway:
    def test_nobody_there(self, check):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        name, text = ending(check(f"127.0.0.1:{port}"))
        assert (name, text.startswith(f"127.0.0.1:{port}: no connection (Connection refused)")) == ("line", True)

    def test_a_name_that_leads_nowhere(self, door, check):
        name, text = ending(check("a..b:8443"))
        assert (name, text.startswith("a..b: no address is found for this name")) == ("name", True)

    def test_somebody_else_who_speaks_no_tls(self, check):
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def hang_up():
                for _ in range(2):
                    line, _ = listener.accept()
                    line.settimeout(5)
                    line.recv(1)
                    line.sendall(b"SSH-2.0-x\r\n") if _ else None
                    line.close()

            thread = threading.Thread(target=hang_up)
            thread.start()
            name, text = ending(check(f"127.0.0.1:{listener.getsockname()[1]}"))
            thread.join(10)
        assert (name, "cannot be reached" in text) == ("gateway", True)

    @pytest.mark.fault(16, passes_when="the check before the start names a gateway of another authority")
    def test_one_of_another_authority(self, hospitals, check, tools, tmp_path):
        other = create(tmp_path / "other", "trial", ["127.0.0.1"])
        app = gateway.Gateway(other, f"http://127.0.0.1:{hospitals.upstream.port}")
        with tools.serving(app, gateway.context_of(other)) as hospitals.port:
            name, text = ending(check())
        assert (name, "shows a certificate that this hospital does not trust" in text) == ("gateway", True)

    def test_one_of_another_name(self, door, check):
        name, text = ending(check(f"localhost:{door.port}"))
        assert (name, "Hostname mismatch" in text) == ("gateway", True)

    @pytest.mark.fault(16, passes_when="the check before the start says that a certificate has expired")
    def test_an_expired_certificate(self, door, check):
        key = keys.load_private(keys.read(door.federation.folder / "ca" / "key.pem"), "tls", "")
        issuer = Issuer(certificates.load(door.federation.authority, ""), key)
        request = certificates.load_request(door.east.csr())
        door.east.certificate.write_bytes(issuer.client(request, "east", timedelta(seconds=-1)))
        found = check()
        assert found["certificate"].text.startswith("expired at ")
        name, text = ending(found)
        assert (name, "this hospital's certificate has expired" in text) == ("gateway", True)

    @pytest.mark.fault(16, passes_when="the check before the start says that this hospital is revoked")
    def test_a_revoked_hospital(self, door, check):
        door.federation.revoke("east")
        name, text = ending(check())
        assert (name, text) == ("gateway", f"{door.url} {tunnel.REFUSED}")

    def test_another_release_at_the_coordinator(self, door, check, monkeypatch):
        monkeypatch.setattr(gateway, "_RELEASE", (b"fedward-release", b"0.9.3"))
        found = check()
        assert (found["release"].level, found["clock"].level) == ("warn", "ok")
        assert "the coordinator runs Fedward 0.9.3, this is" in found["release"].text

    @pytest.mark.parametrize("said", [b"\x1b[2Jx", b"9" * 200, b""])
    def test_a_release_that_is_none_is_not_printed(self, door, check, monkeypatch, said):
        monkeypatch.setattr(gateway, "_RELEASE", (b"fedward-release", said.replace(b"\x1b", b"?")))
        assert check()["release"].text.startswith("the coordinator runs Fedward another release, this is")

    @pytest.mark.parametrize("name", ["fedward-clock", "fedward-release"])
    def test_an_answer_of_some_other_program(self, door, check, monkeypatch, name):
        monkeypatch.setattr(gateway, "CLOCK", "x-clock")
        assert ending(check())[0] == "gateway"


class TestProxy:
    @pytest.fixture
    def listener(self):
        with socket.create_server(("127.0.0.1", 0)) as opened:
            yield opened

    def test_one_that_refuses_the_tunnel(self, door, check, monkeypatch, listener):
        def refuse():
            for _ in range(2):
                line, _ = listener.accept()
                line.settimeout(5)
                if line.recv(4096):
                    line.sendall(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")
                line.close()

        thread = threading.Thread(target=refuse)
        thread.start()
        port = listener.getsockname()[1]
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:word@127.0.0.1:{port}")
        found = check()
        thread.join(10)
        assert found["proxy"].text == f"http://127.0.0.1:{port}, as the environment says"
        assert found["line"].text == f"127.0.0.1:{port} takes connections"
        name, text = ending(found)
        assert (name, "the proxy of HTTPS_PROXY does not connect to" in text) == ("gateway", True)
        assert not any("word" in finding.text for finding in found.values())

    def test_one_that_is_not_there(self, door, check, monkeypatch, listener):
        port = listener.getsockname()[1]
        listener.close()
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        name, text = ending(check())
        assert (name, text.startswith(f"127.0.0.1:{port}: no connection")) == ("line", True)

    def test_what_is_no_address(self, door, check, monkeypatch):
        monkeypatch.setenv("HTTPS_PROXY", "gopher://x")
        name, text = ending(check())
        assert (name, "HTTPS_PROXY: expected a URL" in text) == ("proxy", True)

    def test_where_the_environment_spares_the_gateway_there_is_none(self, door, check, monkeypatch):
        monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        found = check()
        assert found["proxy"].text == "none"
        assert set(levels(found).values()) == {"ok"}


class TestServersPort:
    def test_ones_own_gateway_is_known_by_its_certificate(self, door):
        place = servers.coordinator.place_of(door.federation)
        with supervise.marked(place.folder):
            finding = servers.door(door.federation, "127.0.0.1", door.port)
        assert (finding.level, "this federation's gateway listens" in finding.text) == ("ok", True)

    def test_that_of_another_federation_is_not(self, door, tmp_path):
        other = create(tmp_path / "other", "trial", ["127.0.0.1"])
        place = servers.coordinator.place_of(other)
        with supervise.marked(place.folder), pytest.raises(UsageError, match="cannot listen here"):
            servers.door(other, "127.0.0.1", door.port)
