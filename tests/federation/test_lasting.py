"""Loops that must go on for as long as their process does outlive an error: it is said, and the next attempt is made."""

import threading
from datetime import timedelta

import pytest

from client import resident
from common import attempts, certificates
from server import coordinator, gateway

PAUSE = 0.05


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(attempts, "FIRST_PAUSE", PAUSE)


def test_the_gateways_certificate_is_made_anew_after_one_error_and_shown_after_another(
    hospitals, monkeypatch, tools, caplog
):
    """In the place of the certificate there is a folder for a while; then it is made, and the first time it is to be shown it cannot be read."""
    monkeypatch.setattr(gateway, "REFRESH_SECONDS", PAUSE)
    federation = hospitals.federation
    app = gateway._Served(federation, "http://127.0.0.1:1", gateway.context_of(federation))
    path, first = federation.gateway_certificate, federation.gateway_certificate.read_bytes()
    show, shown = gateway.show_certificate, []

    def fails_once(context, house):
        shown.append(house.gateway_certificate.read_bytes())
        if len(shown) == 1:
            raise PermissionError(13, "Permission denied")
        show(context, house)

    monkeypatch.setattr(gateway, "show_certificate", fails_once)
    with tools.serving(app, app._context):
        path.unlink()
        path.mkdir()
        tools.until(lambda: "Is a directory" in caplog.text)
        path.rmdir()
        tools.until(lambda: len(shown) == 2 and app._shown != first)
    assert shown[0] == shown[1] == app._shown == path.read_bytes()
    assert "Permission denied; tried again in" in caplog.text
    assert certificates.expires_in(path.read_bytes()) > timedelta(days=80)


def test_what_a_worker_does_every_hour_is_done_again_after_an_error(tools, caplog):
    made, kinds = [], [OSError(28, "No space left on device"), ValueError("odd"), MemoryError()]

    def work():
        made.append(threading.current_thread())
        if len(made) <= len(kinds):
            raise kinds[len(made) - 1]

    resident._in_background(PAUSE, "nothing was erased", work)
    tools.until(lambda: len(made) > 5)
    assert len(set(made)) == 1
    said = [record.getMessage() for record in caplog.records]
    assert [line.rpartition("; ")[0] for line in said] == [
        "nothing was erased: [Errno 28] No space left on device",
        "nothing was erased: odd",
        "nothing was erased: MemoryError",
    ]
    assert [bool(record.exc_info) for record in caplog.records] == [False, True, True]


def test_a_node_that_flower_refuses_keeps_no_other_out_and_is_let_in_later(hospitals, monkeypatch, tools, caplog):
    """East is first by name, and Flower answers 500 for it."""
    monkeypatch.setattr(attempts, "FIRST_PAUSE", 4.0)
    asked, refuses = [], True

    async def flower(scope, receive, send):
        if scope["type"] != "http":
            return
        body = (await receive())["body"]
        name = next((name for name in ("east", "west") if name.encode() in body), "")
        asked.append(name)
        code = 500 if name == "east" and refuses else 200
        headers = [(b"content-type", b"application/protobuf"), (b"content-length", b"0")]
        await send({"type": "http.response.start", "status": code, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    federation, known = hospitals.federation, coordinator.Known()
    east, west = federation.members()
    with tools.plainly_serving(flower) as port:
        place = coordinator.Place(federation.folder, port, "0" * 64)
        for _ in range(3):
            coordinator.let_in(place, federation, known)
        assert known.nodes == {west.node_key}
        assert asked.count("east") == 1, "there is a pause"
        assert "'east' was not let in: Flower refused" in caplog.text
        refuses = False
        tools.until(
            lambda: coordinator.let_in(place, federation, known) or known.nodes == {east.node_key, west.node_key}
        )
