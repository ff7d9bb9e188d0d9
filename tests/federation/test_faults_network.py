"""Faults on the way between hospital and coordinator: cuts, silence, damage, repetition; what is counted afterwards is what would have been without."""

import json
import os
import random
import socket
import ssl
import struct
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import httpx
import numpy as np
import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PullMessagesResponse, PushMessagesRequest

from client import programs, resident, service, tunnel
from client.app import Seat, guarded
from client.audit import AuditLog
from client.gate import Gate
from common import deployment, flower, messages, relay
from common.errors import FedwardError
from common.messages import TRAIN, Reply
from common.supervise import Supervisor, free_port
from common.tasks.heart import TABLE, Heart
from server import coordinator, gateway, provision, rounds
from server.plan import Plan
from server.records import sha256
from simulations import deploy
from tests.federation.processes import at_most
from tests.federation.proxy import Proxy, Recorder

# Flower's own, where it makes a bundle.
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")

RUN, OBJECT, PULL, PUSH = (f"/v1/fleet/{name}" for name in ("get-run", "push-object", "pull-messages", "push-messages"))
SEED = 20


@dataclass
class Way:
    """What stands where Flower's node does, with a tunnel, the proxy, and a gateway behind it."""

    door: object
    proxy: Proxy
    node: httpx.Client

    def post(self, path=RUN, **words):
        return self.node.post(path, **words)


@pytest.fixture
def make_way(make_door, tools, tmp_path):
    """Lay a way with a gateway's settings of a test's own."""

    @contextmanager
    def laid(**settings):
        with make_door(**settings) as door, Proxy(door.port, SEED) as proxy:
            app = tunnel.Tunnel(f"https://127.0.0.1:{proxy.port}", door.east)
            with tools.serving(app, tunnel.loopback(tmp_path / "tunnel")) as port:
                trust = ssl.create_default_context(cafile=tmp_path / "tunnel" / tunnel.TRUST)
                url, headers = f"https://127.0.0.1:{port}", tools.node(door.east)
                with httpx.Client(base_url=url, verify=trust, trust_env=False, headers=headers, timeout=30) as node:
                    yield Way(door, proxy, node)

    return laid


@pytest.fixture
def way(make_way):
    with make_way(hold=1.0) as laid:
        yield laid


def threads():
    """Return the threads of this process that are neither a pool's, which stay for later work, nor a fixture's."""
    return {thread for thread in threading.enumerate() if not thread.name.startswith(("asyncio_", "ThreadPool"))}


def later(seconds, work):
    """Do something in so many seconds, beside the test."""
    timer = threading.Timer(seconds, work)
    timer.start()
    return timer


class TestCut:
    @pytest.mark.fault(
        5, passes_when="attempts come at growing pauses of random length; the first one after healing gets through"
    )
    def test_back_off_has_jitter_and_ends_with_the_cut(self, way):
        assert way.post().status_code == 200
        begun = time.monotonic()
        way.proxy.cut()
        healed = []
        timer = later(6, lambda: healed.append(way.proxy.heal()))
        assert way.post(content=b"asked in the cut").content == b"asked in the cut"
        assert time.monotonic() - healed[0] < at_most(5)
        timer.join()
        pauses = [after - before for before, after in pairwise(time_ for time_ in way.proxy.tries if time_ > begun)]
        assert len(pauses) >= 4
        assert len({round(pause, 2) for pause in pauses}) > 2, "every pause is the same"
        assert max(pauses[:2]) < 1.0 < max(pauses) < tunnel.LONGEST_PAUSE + 1.0
        assert way.door.upstream.paths() == [RUN, RUN]

    @pytest.mark.fault(5, passes_when="what was under way goes on where it was held up, once")
    def test_what_is_held_up_arrives_once(self, way):
        way.post()
        way.proxy.hold()
        timer = later(3, way.proxy.heal)
        content = random.Random(SEED).randbytes(1 << 20)
        assert way.post(OBJECT, content=content).content == content
        timer.join()
        assert way.door.upstream.paths() == [RUN, OBJECT]


class TestSilence:
    @pytest.mark.fault(6, passes_when="the tunnel tells the node within its deadline that the gateway is gone")
    def test_a_connection_that_carries_nothing_any_more_is_given_up(self, way, monkeypatch, tools):
        monkeypatch.setattr(tunnel, "TIMEOUT", httpx.Timeout(60, connect=0.5, read=1.0))
        way.post()
        before, lost = threads(), way.proxy.pairs
        way.proxy.vanish()
        begun = time.monotonic()
        assert way.post().status_code == 503
        assert time.monotonic() - begun < 5
        tools.until(lambda: all(pair.given_up for pair in lost))
        timer = later(1, way.proxy.heal)
        assert way.post(content=b"again").content == b"again"
        timer.join()
        tools.until(lambda: threads() <= before)

    @pytest.mark.fault(
        6, passes_when="the gateway forgets a hospital that fell silent; nothing of its requests is left"
    )
    def test_the_gateway_does_not_wait_for_the_silent(self, monkeypatch, make_way, tools):
        monkeypatch.setattr(relay, "IDLE_SECONDS", 1)
        with make_way(hold=0.5) as way:
            monkeypatch.setattr(tunnel, "TIMEOUT", httpx.Timeout(60, connect=0.5, read=1.0))
            asked = []
            timer = later(0.2, way.proxy.vanish)
            way.post()
            asked.append(way.post(PULL).status_code)
            timer.join()
            assert asked == [503]
            tools.until(lambda: not {pair for pair in way.proxy.pairs if pair.lost}, 10)

    @pytest.mark.fault(6, passes_when="the real deadline: 10 s of silence")
    def test_a_gateway_that_lives_is_heard_well_within_the_deadline(self):
        assert relay.WAIT_ON_SECONDS * 3 < tunnel.TIMEOUT.read <= 10

    @pytest.mark.fault(6, passes_when="a gateway that is only slow is waited for")
    def test_a_slow_answer_is_no_silence(self, way, monkeypatch):
        monkeypatch.setattr(relay, "WAIT_ON_SECONDS", 0.2)
        monkeypatch.setattr(tunnel, "TIMEOUT", httpx.Timeout(60, read=1.0))
        way.door.upstream.slow = 3.0
        assert way.post().status_code == 200


@pytest.mark.slow
@pytest.mark.fault(7, passes_when="0.9 MB at 1 Mbit/s and 200 ms, each way: longer than every time-out for silence")
def test_a_slow_line_is_no_silence(way):
    way.proxy.rate, way.proxy.delay = 125_000, 0.1
    content = random.Random(SEED).randbytes(900_000)
    assert way.post(OBJECT, content=content, timeout=60).content == content
    assert way.door.upstream.paths() == [OBJECT]


class TestDamage:
    @pytest.mark.fault(9, passes_when="bytes turned on the way: what arrives is what was sent, or nothing does")
    def test_no_turned_byte_arrives(self, way):
        way.proxy.turned = 0.05
        draw = random.Random(SEED)
        sent, answers = set(), []
        for _ in range(40):
            content = draw.randbytes(draw.randrange(1, 50_000))
            sent.add(content)
            with suppress(httpx.TransportError):
                answer = way.post(content=content)
                assert answer.content in {content, b""}
                answers.append(answer.status_code)
        assert set(answers) <= {200, 503}
        assert 5 < answers.count(200) < 35
        assert {each["body"] for each in way.door.upstream.asked if "body" in each} <= sent

    @pytest.mark.fault(9, passes_when="connections that end in mid-sentence: nothing half arrives")
    def test_nothing_arrives_by_halves(self, way):
        draw = random.Random(SEED)
        content = draw.randbytes(100_000)
        codes = []
        for _ in range(30):
            way.proxy.most = draw.randrange(6_000, 150_000)  # beyond the handshake, which is tried until it is whole
            with suppress(httpx.TransportError):
                answer = way.post(content=content)
                assert answer.content in {content, b""}
                codes.append(answer.status_code)
        assert {each["body"] for each in way.door.upstream.asked if "body" in each} <= {content}
        way.proxy.most = 0
        assert way.post(content=content).content == content


@pytest.mark.fault(8, passes_when="a connection's recorded bytes, sent again, reach nobody")
def test_recorded_bytes_of_a_connection_are_worth_nothing(way):
    way.post(content=b"once")
    before = way.door.upstream.paths()
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", way.door.port)) as line:
            line.settimeout(5)
            line.sendall(bytes(way.proxy.sent))
            with suppress(ConnectionError):
                while line.recv(1 << 16):
                    pass
    assert way.door.upstream.paths() == before


def spoilt(draw, content):
    """Turn bits, cut, put in, repeat, or announce sizes that are not there."""
    damaged = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(damaged) + 1)
        kind = draw.randrange(6)
        if kind == 0 and damaged:
            damaged[place % len(damaged)] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del damaged[place:]
        elif kind == 2:
            damaged[place:place] = draw.randbytes(draw.randint(1, 40))
        elif kind == 3:
            damaged[place:place] = damaged[max(0, place - draw.randint(1, 200)) : place]
        elif kind == 4:
            damaged[place : place + 8] = b"\xff\xff\xff\xff\xff\xff\xff\x7f"
        else:
            del damaged[place : place + draw.randint(1, 20)]
    return bytes(damaged)


@contextmanager
def memory_stays(megabytes=64):
    """Hold the most that this process takes within to what it took before, and so much."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _peak()
    yield
    assert _peak() - before < megabytes, "memory jumped"


def _peak():
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def asked(weights, name="1"):
    with flower.identity(7):
        content = messages.pack_request('{"task": {"name": "heart"}}', {"weights": weights}, {"server-round": 1})
        made = Message(content, dst_node_id=3, message_type=TRAIN)
    return flower.stamp(made, name, 7, flower.server_node())


def where():
    return Context(run_id=7, node_id=3, node_config={"bundle": "b"}, state=RecordDict(), run_config={})


def answered(message, _context):
    """Read a request as the hospital does, and answer with what is in it."""
    request = messages.unpack_request(message.content)
    return Message(messages.pack_reply(Reply({"delta": request.arrays["weights"]}, {}, 1)), reply_to=message)


WEIGHTS = np.random.default_rng(SEED).normal(size=500).astype(np.float32)


def connected(port):
    line = socket.create_connection(("127.0.0.1", port), 5)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return line


class TestFuzz:
    """10,000 damaged cases, of everything that is read from somebody else."""

    @pytest.mark.fault(
        9, passes_when="6,000 damaged messages, announcements and answers: read, or refused with an error of ours"
    )
    def test_messages(self):
        draw = random.Random(SEED)
        request = asked(WEIGHTS)
        reply = answered(request, None)
        announced = PushMessagesRequest(messages_list=[message_to_proto(reply)]).SerializeToString()
        pulled = PullMessagesResponse(messages_list=[message_to_proto(request)]).SerializeToString()
        readers = [
            (flower.message_bytes(request), lambda data: guarded(answered)(flower.message_from(data), None)),
            (flower.message_bytes(reply), lambda data: messages.unpack_reply(flower.message_from(data).content)),
            (flower.context_bytes(where()), flower.context_from),
            (announced, gateway._own_answers),
            (pulled, gateway._end_of_life),
        ]
        with memory_stays():
            for content, read in readers:
                for _ in range(1200):
                    with suppress(FedwardError):
                        read(spoilt(draw, content))

    @pytest.mark.fault(
        9, passes_when="3,000 damaged conversations on the worker's socket: the next good one is answered"
    )
    def test_the_workers_socket(self, tmp_path_factory):
        path = Path(os.path.relpath(tmp_path_factory.mktemp("s"))) / "worker"
        ready = threading.Event()
        threading.Thread(target=service.serve, args=(path, guarded(answered), ready.set, 60.0), daemon=True).start()
        assert ready.wait(10)
        draw = random.Random(SEED)
        parts = (flower.message_bytes(asked(WEIGHTS)), flower.context_bytes(where()))
        good = b"".join(struct.pack(">Q", len(part)) + part for part in parts)
        with memory_stays():
            for _ in range(3000):
                with socket.socket(socket.AF_UNIX) as line, suppress(ConnectionError):
                    line.connect(str(path))
                    line.sendall(spoilt(draw, good))
                    line.shutdown(socket.SHUT_WR)
                    while line.recv(1 << 16):
                        pass
        reply = service.ask(path, asked(WEIGHTS), where())
        assert np.array_equal(messages.unpack_reply(reply.content).arrays["delta"], WEIGHTS)

    @pytest.mark.fault(
        9, passes_when="500 damaged requests each at the gateway and at the tunnel: the next good one is answered"
    )
    @pytest.mark.parametrize("at", ["gateway", "tunnel"])
    def test_requests(self, way, at, tools):
        draw = random.Random(SEED)
        head = "".join(f"{name}: {value}\r\n" for name, value in tools.node(way.door.east).items())
        body = PushMessagesRequest(messages_list=[message_to_proto(asked(WEIGHTS))]).SerializeToString()
        good = f"POST {PUSH} HTTP/1.1\r\nhost: x\r\n{head}content-length: {len(body)}\r\n\r\n".encode() + body
        place = way.door.port if at == "gateway" else way.node.base_url.port
        trust = way.door.east.tls_context()
        if at == "tunnel":
            trust = ssl.create_default_context()
            trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
        with memory_stays():
            for _ in range(500):
                with suppress(OSError), trust.wrap_socket(connected(place), server_hostname="127.0.0.1") as line:
                    line.sendall(spoilt(draw, good))
                    line.unwrap()
        assert way.post(content=b"good").content == b"good"


@pytest.fixture(scope="module")
def real(federation, tools):
    # Sockets have short paths; those of pytest's own folders are longer.
    with tempfile.TemporaryDirectory(prefix="fw-") as root, ExitStack() as stack:
        yield Real(Path(root), federation.without("west"), tools, stack)


class Real:
    """Flower's own programs on both sides, and three hospitals, each with a proxy before its tunnel; before the SuperLink stands a recorder.

    SuperLink, nodes and stubs are processes; gateway, tunnels and workers are threads, so that the hospitals can share what was compiled.
    """

    def __init__(self, root, virtual, tools, stack):
        self.virtual, self.root, self._tools, self._stack = virtual, root, tools, stack
        self._training = threading.Lock()
        self.federation = provision.create(root / "federation", "trial", ["127.0.0.1"])
        self.place = coordinator.place_of(self.federation)
        stack.enter_context(Supervisor([coordinator.superlink(self.place, self.federation.folder / "token")]))
        coordinator.wait_for_flower(self.place)
        self.door = gateway.Gateway(self.federation, f"http://{self.place.address}")
        self._port = stack.enter_context(tools.serving(self.door, gateway.context_of(self.federation)))
        self.bundle = deployment.bundle()
        # Made once: it takes a second, and hospitals approve the one of the beginning.
        stack.enter_context(pytest.MonkeyPatch.context()).setattr(deployment, "bundle", lambda: self.bundle)
        self.proxies, self.sites, self.nodes = {}, {}, {}
        for hospital in virtual.hospitals:
            self._open(hospital)
        coordinator.wait_for_hospitals(self.place, len(self.sites), 60)

    def _open(self, hospital):
        proxy = self.proxies[hospital.name] = self._stack.enter_context(Proxy(self._port, SEED))
        task = Plan(self.virtual.config()).task
        site = deploy._site(self.root, self.federation, proxy.port, task, hospital, self.bundle.sha256)
        self.sites[hospital.name] = site
        coordinator.let_in(self.place, self.federation, set())
        place = programs.place_of(site)
        app = tunnel.Tunnel(f"https://127.0.0.1:{proxy.port}", site)
        port = self._stack.enter_context(self._tools.serving(app, tunnel.loopback(place.folder)))
        self._serve(site, hospital)
        key = self._stack.enter_context(programs.node_key(site, place))
        wanted = programs.programs(site, replace(place, tunnel=port, node=free_port()), key)
        node_and_stub = Supervisor([each for each in wanted if each.name in {"node", "stub"}])
        self.nodes[hospital.name] = self._stack.enter_context(node_and_stub).pids()["node"]

    def _serve(self, site, hospital):
        audit = self._stack.enter_context(AuditLog(site.folder / resident.AUDIT, site.audit_key()))
        seat = Seat(self.virtual.worker, hospital)
        gate = Gate(hospital, seat, site.folder / resident.POLICY, audit, self.federation.fingerprint)
        ready = threading.Event()

        def in_turn(message, context):
            with self._training:
                return guarded(gate)(message, context)

        words = (site.folder / resident.SOCKET, in_turn, ready.set, 600.0)
        threading.Thread(target=service.serve, args=words, daemon=True).start()
        assert ready.wait(10)

    @contextmanager
    def recorded(self):
        """Within, what hospitals ask of Flower is recorded and can be repeated."""
        flower_itself = self.door._upstream
        recorder = Recorder(flower_itself)
        with self._tools.plainly_serving(recorder) as port:
            self.door._upstream = f"http://127.0.0.1:{port}"
            try:
                yield recorder
            finally:
                self.door._upstream = flower_itself

    def run(self, number, watch=None, deadline=180.0, hidden=4):
        """Train for so many rounds; by default nobody is late for them, also where others use the machine."""
        limits = {"deadline_seconds": deadline, "quorum": 0.5, "retries": 3}
        settings = {"task": {"hidden": hidden}, "rounds": number, "limits": limits}
        plan = Plan(self.virtual.config(settings), cohort=tuple(self.sites), expected=len(self.sites))
        with coordinator.grid(self.place, plan) as grid:
            return rounds.run(grid, plan, None, watch)

    def in_memory(self, outcome, hidden=4):
        """Return the same run without a network, of those who enrolled; who did not answer in a round does not train in it either."""
        heard = {(record.round, name) for record in outcome.rounds for name in record.answered}

        def script(name):
            def around(message, answer):
                number = message.content["config"].get("server-round")
                if number is None or (number, name) in heard:
                    return answer()
                return Message(Error(2, "failed"), reply_to=message)

            return around

        settings = {"task": {"hidden": hidden}, "rounds": len(outcome.rounds), "limits": {"quorum": 0.5}}
        absent = set(self.sites) - {member.name for member in outcome.members}
        return self.virtual.without(*absent).run(settings, {name: script(name) for name in self.sites})

    def events(self, name):
        """Return kind and fields of the lines of a hospital's audit log."""
        lines = (self.sites[name].folder / resident.AUDIT).read_text().splitlines()
        return [(line["event"], line["fields"]) for line in map(json.loads, lines)]

    def trained(self, name):
        """Return run, round and attempt of each training of a hospital."""
        lines = [fields for event, fields in self.events(name) if event == "trained"]
        return [(fields["run"], fields["round"], fields["attempt"]) for fields in lines]

    def threads_of_node(self, name):
        return len(list(Path(f"/proc/{self.nodes[name]}/task").iterdir()))

    def node_key(self, name):
        return self._tools.node(self.sites[name])["flwr-public-key"].encode()


def weights(outcome):
    return sha256(outcome.model.weights)


def answered_in(outcome, name):
    return [record.round for record in outcome.rounds if name in record.answered]


@pytest.mark.slow
class TestReal:
    """Bounds of the time of a whole run are none of what is shown: where something has to be quick, the test says so itself."""

    @pytest.fixture(autouse=True)
    def _healed(self, real):
        yield
        for proxy in real.proxies.values():
            proxy.heal()

    @pytest.mark.fault(
        5, passes_when="cut for 5 s in mid-round, between real programs: back within 5 s, the weights equal bit for bit"
    )
    def test_a_cut_of_5_s_costs_nothing(self, real):
        proxy, took = real.proxies["east"], []

        def interrupt():
            proxy.cut()
            time.sleep(5)
            took.append(proxy.back(proxy.heal(), at_most(30)))

        cut = threading.Thread(target=interrupt)
        outcome = real.run(4, lambda record: cut.start() if record.round == 2 else None)
        cut.join()
        assert took[0] < at_most(5)
        assert answered_in(outcome, "east") == [1, 2, 3, 4]
        assert weights(outcome) == weights(real.in_memory(outcome)), [record.dropped for record in outcome.rounds]
        assert len(set(real.trained("east"))) == len(real.trained("east"))

    @pytest.mark.fault(
        5, passes_when="cut for 10 rounds: the others go on; back within 5 s, no round counted or trained twice"
    )
    def test_a_cut_of_10_rounds_costs_those_rounds(self, real):
        proxy, took = real.proxies["east"], []
        usual = real.run(2).rounds[-1].seconds

        def watch(record):
            if record.round == 2:
                proxy.cut()
            if record.round == 12:
                took.append(proxy.back(proxy.heal(), at_most(30)))

        outcome = real.run(20, watch, deadline=max(4.0, 3 * usual))
        assert took[0] < at_most(5)
        here = answered_in(outcome, "east")
        assert not set(here) & set(range(3, 13))
        assert here[-1] > 12, "it is back in the run"
        assert weights(outcome) == weights(real.in_memory(outcome))
        trained = real.trained("east")
        assert len(set(trained)) == len(trained)

    @pytest.mark.fault(
        6,
        passes_when="silence between real programs: connections are given up, the hospital is back within 5 s, no thread is left",
    )
    def test_silence_leaves_nothing_behind(self, real, tools):
        assert answered_in(real.run(1), "east") == [1]
        proxy = real.proxies["east"]
        before, of_node = threads(), real.threads_of_node("east")
        lost = proxy.pairs
        proxy.vanish()
        tools.until(lambda: all(pair.given_up for pair in lost), tunnel.TIMEOUT.read + tunnel.IDLE_SECONDS + 5)
        assert proxy.back(proxy.heal(), at_most(30)) < at_most(5)
        outcome = real.run(2)
        assert answered_in(outcome, "east") == [1, 2]
        assert weights(outcome) == weights(real.in_memory(outcome))
        tools.until(lambda: threads() <= before, 30)
        assert real.threads_of_node("east") <= of_node + 1

    @pytest.mark.fault(
        8, passes_when="a message that reaches the node twice is answered once; the audit log has the second"
    )
    def test_a_message_that_comes_twice_is_answered_once(self, real):
        key = real.node_key("east")

        with real.recorded() as recorder:
            outcome = real.run(3, lambda record: recorder.again.add(key) if record.round == 1 else None)
        assert not recorder.again
        replays = [fields for event, fields in real.events("east") if event == "replay"]
        assert len(replays) == 1
        assert answered_in(outcome, "east") == [1, 2, 3]
        assert weights(outcome) == weights(real.in_memory(outcome))
        assert len(set(real.trained("east"))) == len(real.trained("east"))

    @pytest.mark.fault(
        8,
        passes_when="all that hospitals sent to Flower, sent again byte for byte in mid-run: the weights are as without",
    )
    def test_requests_that_are_made_again_change_nothing(self, real):
        repeated = []
        with real.recorded() as recorder:
            outcome = real.run(3, lambda record: repeated.extend(recorder.repeat()) if record.round == 2 else None)
        assert {PUSH, OBJECT} <= {path for path, _ in repeated}
        assert weights(outcome) == weights(real.in_memory(outcome))
        for name in real.sites:
            assert answered_in(outcome, name) == [1, 2, 3]
            assert len(set(real.trained(name))) == len(real.trained(name))

    @pytest.fixture
    def slowly(self, real, monkeypatch):
        """Run one round with two wide layers of so many units, the way to one hospital slow until it is over."""
        monkeypatch.setattr(Heart, "network", wide)
        proxy = real.proxies["east"]

        def slow(yes):
            proxy.rate, proxy.delay = yes * 125_000, yes * 0.1

        def run(units, deadline):
            slow(True)
            return real.run(1, lambda _: slow(False), deadline, units)

        yield run
        slow(False)

    @pytest.mark.fault(
        7, passes_when="an update for which the line is too slow: the others are not held beyond the deadline"
    )
    def test_a_hospital_on_a_slow_line_is_late_and_holds_nobody(self, slowly):
        deadline = min(at_most(30), 45)  # enough for the first question, with which the bundle comes
        outcome = slowly(1000, deadline)
        megabytes = 2 * outcome.model.weights.nbytes / 1e6
        assert megabytes / 0.125 > deadline, "the line was not too slow"
        assert [(each.hospital, each.reason) for each in outcome.rounds[0].dropped] == [("east", "late")]
        assert outcome.rounds[0].seconds < deadline + at_most(2)

    @pytest.mark.fault(
        7,
        passes_when="61 MB down and 61 MB up at 1 Mbit/s and 200 ms complete where the deadline lets them, the weights equal bit for bit",
    )
    @pytest.mark.timeout(3600)
    def test_a_large_update_over_a_slow_line_completes(self, real, slowly):
        outcome = slowly(LARGE, 3000.0)
        megabytes, seconds = outcome.model.weights.nbytes / 1e6, outcome.rounds[0].seconds
        print(f"{megabytes:.0f} MB each way took {seconds:.0f} s")
        assert megabytes > 60
        assert seconds > 2 * megabytes / 0.125, "the line was not that slow"
        assert answered_in(outcome, "east") == [1]
        assert weights(outcome) == weights(real.in_memory(outcome, LARGE))


LARGE = 3900
"""Units of each of two hidden layers: 61 MB."""


def wide(task, preparation):
    """Return a network in place of the heart task's own."""
    import keras

    inputs = keras.Input((TABLE.features(preparation),), name="features")
    first = keras.layers.Dense(task.hidden, activation="relu", name="first")(inputs)
    hidden = keras.layers.Dense(task.hidden, activation="relu", name="hidden")(first)
    return keras.Model(inputs, keras.layers.Dense(1, name="output")(hidden), name="wide")
