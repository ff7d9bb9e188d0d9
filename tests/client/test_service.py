"""The worker's socket, with real sockets, threads and processes: what goes over it, and what bad company can do there."""

import hashlib
import os
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict

from client import service
from client.app import guarded
from common import flower, messages, wire
from common.errors import FedwardError, Unreachable
from common.messages import TRAIN, Reply

ROOT = Path(__file__).parents[2]
GIVE_UP = 30.0


class Stop(BaseException):
    """Raised in the service's thread by the message that ends a test."""


def message(text="{}", weights=None, name="1", kind=TRAIN):
    arrays = {} if weights is None else {"weights": weights}
    with flower.identity(7):
        made = Message(messages.pack_request(text, arrays, {}), dst_node_id=3, message_type=kind)
    return flower.stamp(made, name, 7, flower.server_node())


def context(**state):
    arrays = {name: wire.to_record({"kept": np.asarray(value, np.float32)}) for name, value in state.items()}
    return Context(run_id=7, node_id=3, node_config={"bundle": "b"}, state=RecordDict(arrays), run_config={})


def doubled(asked, where):
    """Answer with the weights doubled, and leave something in the context."""
    request = messages.unpack_request(asked.content)
    if request.run == "stop":
        raise Stop
    where.state["left"] = wire.to_record({"kept": np.ones(1, np.float32)})
    weights = request.arrays.get("weights", np.zeros(0, np.float32))
    return Message(messages.pack_reply(Reply({"delta": 2 * weights})), reply_to=asked)


def delta(reply):
    return messages.unpack_reply(reply.content).arrays["delta"]


@contextmanager
def serving(path, answer=doubled, deadline=60.0):
    """Serve in a thread; at the end one message ends it, which shows that it still answered."""
    ready, ended = threading.Event(), []

    def run():
        try:
            service.serve(path, answer, ready.set, deadline)
        except Stop:
            ended.append("by the last message")

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield
    finally:
        with pytest.raises(Unreachable):
            service.ask(path, message("stop"), context())
        thread.join(GIVE_UP)
    assert ended
    assert not path.exists(), "the socket's file should be gone"


@pytest.fixture
def path(tmp_path_factory):
    # A socket's whole path has about 100 letters at most, and pytest's own folders come near that.
    folder = tmp_path_factory.mktemp("s")
    return Path(os.path.relpath(folder)) / "worker" if len(str(folder)) > 80 else folder / "worker"


@pytest.fixture
def served(path):
    with serving(path):
        yield path


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(service, "PATIENCE", 0.3)


def connect(path):
    line = socket.socket(socket.AF_UNIX)
    line.settimeout(GIVE_UP)
    line.connect(str(path))
    return closing(line)


def hears_nothing(line):
    """Say that the other side hung up without a word."""
    try:
        return line.recv(1) == b""
    except ConnectionResetError:
        return True


def part(content, length=None):
    return struct.pack(">Q", len(content) if length is None else length) + content


class TestRoundTrip:
    def test_the_answer_is_that_of_the_worker_bit_for_bit(self, served):
        weights = np.random.default_rng(1).normal(size=1000).astype(np.float32)
        reply = service.ask(served, message(weights=weights), context())
        np.testing.assert_array_equal(delta(reply), 2 * weights)
        assert reply.metadata.reply_to_message_id == "1"
        assert reply.metadata.run_id == 7

    def test_nothing_but_the_answer_comes_back(self, served):
        """Whatever a worker writes into its copy of the context, the node's stays as it was."""
        where = context(other=[1.5])
        service.ask(served, message(), where)
        assert list(where.state) == ["other"]
        assert wire.from_record(where.state.array_records["other"])["kept"].tolist() == [1.5]

    def test_the_worker_is_told_the_nodes_own_settings(self, path):
        told = []

        def answer(asked, where):
            if messages.unpack_request(asked.content).run == "stop":
                raise Stop
            told.append((dict(where.node_config), where.run_id, where.node_id))
            return doubled(asked, where)

        with serving(path, answer):
            service.ask(path, message(), context())
        assert told == [({"bundle": "b"}, 7, 3)]

    def test_a_large_model_goes_through(self, served):
        weights = np.random.default_rng(2).normal(size=5_000_000).astype(np.float32)
        reply = service.ask(served, message(weights=weights), context())
        assert hashlib.sha256(delta(reply).tobytes()).hexdigest() == hashlib.sha256((2 * weights).tobytes()).hexdigest()

    def test_askers_are_answered_in_turn_each_with_its_own(self, path):
        busy, most = [], []

        def answer(asked, where):
            busy.append(1)
            most.append(len(busy))
            time.sleep(0.02)
            busy.pop()
            return doubled(asked, where)

        def asked(number):
            reply = service.ask(path, message(weights=np.full(3, number, np.float32), name=str(number)), context())
            return reply.metadata.reply_to_message_id, delta(reply).tolist()

        with serving(path, answer), ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(asked, range(24)))
        assert answers == [(str(number), [2.0 * number] * 3) for number in range(24)]
        assert set(most) == {1}, "compiled training is for one message at a time"


class TestTheSocket:
    def test_only_its_owner_can_connect(self, served):
        mode = served.stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600

    def test_the_files_that_are_made_later_have_their_usual_mode(self, path, tmp_path):
        before = os.umask(0o022)
        try:
            with serving(path):
                (tmp_path / "after").write_text("")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "after").stat().st_mode) == 0o644

    def test_one_that_a_crash_left_is_replaced(self, path):
        with closing(socket.socket(socket.AF_UNIX)) as left:
            left.bind(str(path))
        with serving(path):
            reply = service.ask(path, message(weights=np.ones(1, np.float32)), context())
        assert delta(reply).tolist() == [2.0]

    @pytest.mark.parametrize("there", [False, True])
    def test_where_nobody_listens_it_is_unreachable(self, path, there):
        if there:
            with closing(socket.socket(socket.AF_UNIX)) as left:
                left.bind(str(path))
        with pytest.raises(Unreachable, match=r"is 'fedward hospital start' running\?"):
            service.ask(path, message(), context())

    def test_a_path_too_long_is_said(self, tmp_path):
        path = tmp_path / ("a" * 60) / ("b" * 60)
        path.parent.mkdir()
        with pytest.raises(FedwardError, match="100 letters at most"):
            service.serve(path, doubled, lambda: None, 1)
        assert not path.exists()


FIRST = flower.message_bytes(message())
BAD = {
    "nothing": b"",
    "half a length": b"\0\0\0",
    "a length alone": part(b"", 10),
    "half a message": part(FIRST[: len(FIRST) // 2], len(FIRST)),
    "a message and no context": part(FIRST),
    "half a context": part(FIRST) + part(b"abc", 10),
    "bytes that are no message": part(b"\xff" * 100) + part(b""),
    "a message without anything": part(b"") + part(b""),
    "text": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "bytes that are no context": part(FIRST) + part(b"\xff" * 100),
    "a length beyond all": part(b"", 2**64 - 1),
    "a length just beyond": part(b"", service.MOST + 1),
}


class TestBadCompany:
    """Each time the service hangs up without a word, and answers the next one; that it does is checked by `serving`."""

    @pytest.mark.parametrize("content", BAD.values(), ids=BAD.keys())
    @pytest.mark.fault(9, passes_when="wrong bytes on the worker's socket get no answer")
    def test_wrong_bytes_get_no_answer(self, served, hasty, content):
        with connect(served) as line:
            line.sendall(content)
            line.shutdown(socket.SHUT_WR)
            assert hears_nothing(line)
        assert delta(service.ask(served, message(weights=np.ones(1, np.float32)), context())).tolist() == [2.0]

    @pytest.mark.parametrize("content", BAD.values(), ids=BAD.keys())
    def test_whoever_stops_half_way_does_not_keep_others_waiting(self, served, hasty, content):
        with connect(served) as stuck:
            stuck.sendall(content)
            begun = time.monotonic()
            service.ask(served, message(), context())
            assert time.monotonic() - begun < 5
            assert hears_nothing(stuck)

    @pytest.mark.parametrize("text", ["[" * 200_000, "{", '{"rounds": "x"}'], ids=["deep", "cut", "wrong"])
    def test_settings_that_cannot_be_read_do_not_end_the_worker(self, served, text):
        for _ in range(2):
            answer = service.ask(served, message(text, weights=np.ones(1, np.float32)), context())
            assert delta(answer).tolist() == [2.0]

    def test_a_length_too_long_is_not_waited_for(self, served, monkeypatch):
        monkeypatch.setattr(service, "MOST", 1000)
        with connect(served) as line:
            begun = time.monotonic()
            line.sendall(part(b"", 1001))
            assert hears_nothing(line)
            assert time.monotonic() - begun < service.PATIENCE / 2

    def test_whoever_never_reads_the_answer_does_not_keep_others_waiting(self, path, hasty):
        def answer(asked, where):
            if messages.unpack_request(asked.content).run != "large":
                return doubled(asked, where)
            return Message(messages.pack_reply(Reply({"delta": np.ones(4_000_000, np.float32)})), reply_to=asked)

        with serving(path, answer), connect(path) as line:
            line.sendall(part(flower.message_bytes(message("large"))) + part(flower.context_bytes(context())))
            begun = time.monotonic()
            service.ask(path, message(), context())
            assert time.monotonic() - begun < 10

    def test_whoever_leaves_before_the_answer_is_forgotten(self, served):
        with connect(served) as line:
            line.sendall(part(FIRST) + part(flower.context_bytes(context())))
        assert delta(service.ask(served, message(weights=np.ones(1, np.float32)), context())).tolist() == [2.0]

    @pytest.mark.fault(9, passes_when="damaged bytes on the worker's socket do no harm")
    def test_damaged_bytes_do_no_harm(self, path, hasty):
        draw = np.random.default_rng(3)
        whole = part(FIRST) + part(flower.context_bytes(context(other=[1.0])))
        with serving(path, guarded(doubled)):
            for _ in range(300):
                damaged = bytearray(whole)
                for place in draw.integers(8, len(whole), 3):
                    damaged[place] = draw.integers(256)
                with connect(path) as line:
                    line.sendall(damaged)
                    line.shutdown(socket.SHUT_WR)
                    hears_nothing(line)

    @pytest.mark.parametrize(
        "content",
        [b"", b"\0\0\0", part(b"abc", 10), part(b"\xff" * 9)],
        ids=["nothing", "half a length", "half a message", "no message"],
    )
    @pytest.mark.fault(9, passes_when="a worker that answers badly is an error of ours")
    def test_a_worker_that_answers_badly_is_an_error_of_ours(self, path, hasty, content):
        """The stub asks something that is no worker, or one that ends while it answers."""
        with closing(socket.socket(socket.AF_UNIX)) as listener:
            listener.bind(str(path))
            listener.listen()

            def answer():
                line, _ = listener.accept()
                with closing(line):
                    line.recv(1 << 16)
                    line.sendall(content)

            thread = threading.Thread(target=answer)
            thread.start()
            where = context(other=[2.0])
            with pytest.raises(FedwardError):
                service.ask(path, message(), where)
            thread.join(GIVE_UP)
        assert list(where.state) == ["other"], "a half answer leaves the state as it was"


PROGRAM = """
import sys, time
from pathlib import Path
from client import service
from client.app import guarded

def answer(message, context):
    print("asked", flush=True)
    time.sleep(600)

service.serve(Path(sys.argv[1]), answer, lambda: print("ready", flush=True), float(sys.argv[2]))
"""


class TestDeadline:
    @pytest.fixture
    def process(self, path):
        @contextmanager
        def started(deadline):
            command = [sys.executable, "-c", PROGRAM, str(path.absolute()), str(deadline)]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            with subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
            ) as child:
                try:
                    assert child.stdout.readline() == "ready\n"
                    yield child
                finally:
                    child.kill()

        return started

    def test_an_answer_that_hangs_ends_the_process_and_the_asker_learns_it(self, path, process):
        with process(0.5) as child:
            begun = time.monotonic()
            with pytest.raises(Unreachable):
                service.ask(path, message(), context())
            assert 0.4 < time.monotonic() - begun < 10
            assert child.wait(GIVE_UP) == 1
            assert "was not answered within 0.5 s" in child.stderr.read()

    def test_a_worker_that_dies_is_unreachable_at_once(self, path, process):
        with process(600) as child, ThreadPoolExecutor(1) as pool:
            asker = pool.submit(service.ask, path, message(), context())
            assert child.stdout.readline() == "asked\n"
            child.kill()
            with pytest.raises(Unreachable):
                asker.result(GIVE_UP)

    def test_an_answer_in_time_stops_the_clock(self, path):
        """Were it not stopped, this very process would end."""
        with serving(path, deadline=0.3):
            service.ask(path, message(), context())
            time.sleep(0.6)
            reply = service.ask(path, message(weights=np.ones(1, np.float32)), context())
        assert delta(reply).tolist() == [2.0]
