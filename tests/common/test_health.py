"""Health and figures on loopback: what Prometheus would read, how programs are, and what whoever asks cannot do."""

import http.client
import json
import socket
import stat
import sys
import threading
import time
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import health
from common.errors import UsageError
from common.health import Figure, written
from common.supervise import Program, State, Supervisor, free_port
from tests.exposition import parsed


class TestFormat:
    @pytest.mark.parametrize("text", ["x 1\n", "# HELP x y\nx 1\n", "# HELP x y\n# TYPE x gauge\nx 1", "\n"])
    def test_the_grammar_of_this_test_refuses_what_is_none(self, text):
        with pytest.raises((AssertionError, TypeError, UnboundLocalError)):
            parsed(text)

    @given(st.dictionaries(st.text(), st.floats(allow_nan=False)), st.sampled_from(["gauge", "counter"]))
    def test_whatever_a_label_holds_it_is_read_back(self, values, kind):
        text = written([Figure("fedward_x", kind, "What it is.", values, "what")])
        assert parsed(text) == {("fedward_x", what): value for what, value in values.items()}

    def test_a_figure_without_a_label_has_one_value(self):
        text = written(
            [Figure("fedward_x", "gauge", "What it is.", {"": 3}), Figure("fedward_y", "gauge", "And it.", {})]
        )
        assert parsed(text) == {("fedward_x", None): 3.0}
        assert text.splitlines()[2] == "fedward_x 3.0"


STATES = {"worker": State(running=True, restarts=2), "tunnel": State(running=True, restarts=0)}


@contextmanager
def opened(folder, states=STATES, figures=(), port=None):
    with health.answering(folder, lambda: states, lambda: figures, port) as at:
        yield at


def get(port, path, method="GET", **words):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, **words)
        answer = connection.getresponse()
        return answer.status, answer.headers["content-type"], answer.read().decode()
    finally:
        connection.close()


class TestAnswers:
    def test_health_is_200_while_all_run(self, tmp_path):
        with opened(tmp_path) as port:
            status, kind, text = get(port, "/health")
        assert (status, kind) == (200, "application/json")
        worker, tunnel = {"running": True, "restarts": 2}, {"running": True, "restarts": 0}
        assert json.loads(text) == {"ok": True, "programs": {"worker": worker, "tunnel": tunnel}}

    def test_and_503_where_one_does_not(self, tmp_path):
        with opened(tmp_path, STATES | {"stub": State(running=False, restarts=9)}) as port:
            status, _, text = get(port, "/health")
        assert (status, json.loads(text)["ok"]) == (503, False)

    def test_metrics_are_those_of_the_programs_and_of_the_side(self, tmp_path):
        with opened(tmp_path, figures=[Figure("fedward_x", "gauge", "What it is.", {"": 1.5})]) as port:
            status, kind, text = get(port, "/metrics")
        assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
        assert parsed(text) == {
            ("fedward_program_up", "worker"): 1,
            ("fedward_program_up", "tunnel"): 1,
            ("fedward_program_restarts_total", "worker"): 2,
            ("fedward_program_restarts_total", "tunnel"): 0,
            ("fedward_x", None): 1.5,
        }

    def test_real_programs_are_seen_to_end_and_to_be_started_again(self, tmp_path):
        programs = [
            Program(name, [sys.executable, "-c", script], tmp_path / f"{name}.log")
            for name, script in (("stays", "import time; time.sleep(60)"), ("ends", ""))
        ]
        supervisor, end, restarted = Supervisor(programs), time.monotonic() + 20, 0
        with health.answering(tmp_path, supervisor.states, list) as port:
            assert get(port, "/health")[0] == 503
            with supervisor:
                while not restarted:
                    assert time.monotonic() < end
                    supervisor.look_after()
                    restarted = json.loads(get(port, "/health")[2])["programs"]["ends"]["restarts"]
                while get(port, "/health")[0] == 200:
                    assert time.monotonic() < end
                told = parsed(get(port, "/metrics")[2])
                assert told["fedward_program_up", "stays"] == 1
                assert told["fedward_program_up", "ends"] == 0
                assert told["fedward_program_restarts_total", "ends"] == 1
                assert told["fedward_program_restarts_total", "stays"] == 0


class TestBounds:
    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS"])
    def test_there_is_nothing_but_get(self, tmp_path, method):
        with opened(tmp_path) as port:
            assert get(port, "/health", method, body=b"x" * 1000 if method == "POST" else None)[0] == 501
            assert get(port, "/health")[0] == 200

    @pytest.mark.parametrize("path", ["/", "/metrics/", "/health?x=1", "/../etc/passwd", "/run/secret"])
    def test_there_are_two_pages_alone(self, tmp_path, path):
        with opened(tmp_path) as port:
            assert get(port, path)[0] == 404

    def test_one_that_asks_slowly_keeps_the_others_waiting_no_longer_than_the_limit(self, tmp_path, monkeypatch):
        monkeypatch.setattr(health, "SECONDS", 0.5)
        with opened(tmp_path) as port, socket.create_connection(("127.0.0.1", port)) as slow:
            over = threading.Event()

            def drip():
                while not over.wait(0.05):
                    try:
                        slow.sendall(b"x")
                    except OSError:
                        return

            dripping = threading.Thread(target=drip)
            dripping.start()
            begun = time.monotonic()
            assert get(port, "/health")[0] == 200
            assert time.monotonic() - begun < 5
            over.set()
            dripping.join()

    def test_figures_that_fail_harm_nobody_else(self, tmp_path):
        with health.answering(tmp_path, lambda: STATES, lambda: 1 / 0) as port:
            with pytest.raises(http.client.RemoteDisconnected):
                get(port, "/metrics")
            assert get(port, "/health")[0] == 200

    def test_when_it_ends_no_thread_is_left_and_nobody_listens(self, tmp_path):
        before = threading.active_count()
        with opened(tmp_path) as port:
            get(port, "/health")
        end = time.monotonic() + 5
        while threading.active_count() > before:
            assert time.monotonic() < end
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


class TestPort:
    def test_it_stands_in_the_folder_for_the_owner_and_stays_the_same(self, tmp_path):
        ports = []
        for _ in range(2):
            with opened(tmp_path) as port:
                assert (tmp_path / "health").read_text() == str(port)
                assert stat.S_IMODE((tmp_path / "health").stat().st_mode) == 0o600
                ports.append(port)
        assert ports[0] == ports[1]

    def test_one_may_be_asked_for(self, tmp_path):
        wanted = free_port()
        with opened(tmp_path, port=wanted) as port:
            assert port == wanted
            with (
                pytest.raises(UsageError, match=rf"127\.0\.0\.1:{wanted}: cannot listen here .*--health"),
                opened(tmp_path, port=wanted),
            ):
                pass

    @pytest.mark.parametrize("content", ["", "x", "0", "-1", "70000", "8080 9090"])
    def test_a_damaged_file_is_written_anew(self, tmp_path, content):
        (tmp_path / "health").write_text(content)
        with opened(tmp_path) as port:
            assert (tmp_path / "health").read_text() == str(port)

    def test_that_of_the_last_start_is_given_up_where_it_is_taken(self, tmp_path):
        with socket.create_server(("127.0.0.1", 0)) as other:
            (tmp_path / "health").write_text(str(other.getsockname()[1]))
            with opened(tmp_path) as port:
                assert port != other.getsockname()[1]
                assert get(port, "/health")[0] == 200
