"""What a hospital keeps between rounds: through the real gate and seat, over restarts, lost answers and resumed runs, and nowhere but there."""

import hashlib
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Context, Message, RecordDict

from client import keeping, policy, stub
from client.app import Seat, guarded
from client.audit import AuditLog
from client.gate import Gate
from client.hospital import Hospital
from client.keeping import Sealed
from client.worker import Worker
from common import flower, messages
from common.errors import DataError
from common.messages import COMPARE, EVALUATE, STATISTICS, TRAIN, Request, run_text
from common.network import dumps, initial
from common.tasks import task_of

CA, APPROVED, KEY = "3f" * 32, "2d" * 32, bytes(range(32))
SETTINGS = {"strategy": "scaffold", "update": {"codec": "topk", "keep": 0.5}, "rounds": 9}
"""With a local head on top, everything that can be kept: local weights, a control variate, the residuals of both."""


@dataclass
class House:
    """A real hospital's gate and seat over its own folder, and a coordinator's way of asking it."""

    folder: Path
    hospital: Hospital
    worker: Worker
    config: object
    context: Context = None
    log: AuditLog = None
    gate: Gate = None
    sent: int = field(default=0)

    def restart(self):
        """Start the worker anew: nothing is left but what is in the folder."""
        self.close()
        self.context = Context(
            run_id=7, node_id=3, node_config={stub.BUNDLE: APPROVED}, state=RecordDict(), run_config={}
        )
        self.log = AuditLog(self.folder / "audit.jsonl", Ed25519PrivateKey.from_private_bytes(KEY))
        seat = Seat(self.worker, self.hospital, keeping=Sealed(self.folder / "kept", KEY, "east"))
        self.gate = Gate(self.hospital, seat, self.folder / "site.toml", self.log, CA, key=KEY)
        return self

    def close(self):
        if self.log:
            self.log.close()

    def message(self, number, kind=TRAIN, run=7, attempt=0):
        task = task_of(self.config.task)
        preparation = task.fit(task.summarise(self.hospital.train))
        weights, _ = initial(task, preparation, (self.local,) if self.local else (), self.config.seed)
        weights = weights * np.float32(1 + number / 10)
        options = {
            "preparation": dumps(preparation),
            "local-parts": self.local,
            "hospitals": 3,
            "cohort": "east\nnorth\nsouth",
        }
        if kind == TRAIN:
            options |= {"evaluate": True, "server-round": number, "attempt": attempt}
        arrays = {"weights": weights} | ({"control": weights / 100} if kind == TRAIN and self.local else {})
        with flower.identity(run):
            content = messages.pack_request(run_text(self.config), arrays, options)
            made = Message(content, dst_node_id=3, message_type=kind)
        self.sent += 1
        return flower.stamp(made, hashlib.sha256(str(self.sent).encode()).hexdigest(), run, flower.server_node())

    def ask(self, number, *words, **more):
        return guarded(self.gate)(self.message(number, *words, **more), self.context)

    def bits(self, *words, **more):
        return bits_of(self.ask(*words, **more))

    @property
    def local(self):
        return "head" if self.config.strategy.name == "scaffold" else ""

    @property
    def kept(self):
        return sorted((self.folder / "kept").glob("*"))


def bits_of(answer):
    """Return all that an answer tells, apart from the log's own promise."""
    assert answer.has_content(), answer.error
    reply = messages.unpack_reply(answer.content)
    return {name: array.tobytes() for name, array in {**reply.arrays, **reply.statistics}.items()}


@pytest.fixture(scope="module")
def worker():
    return Worker()


@pytest.fixture
def make_house(tmp_path, worker, federation, make_patients):
    opened = []

    def made(name="site", seed=1, **settings):
        folder = tmp_path / name
        folder.mkdir()
        text = policy.template("east", "heart", "heart.csv").replace("min_patients = 50", "min_patients = 20")
        text = policy.added(policy.added(text, "settings", "task.hidden=4"), "bundles", APPROVED)
        (folder / "site.toml").write_text(policy.added(text, "coordinators", CA))
        hospital = Hospital("east", *(make_patients(rows, seed + rows) for rows in (60, 40, 50)))
        opened.append(House(folder, hospital, worker, federation.config(SETTINGS | settings)))
        return opened[-1].restart()

    yield made
    for house in opened:
        house.close()


@pytest.fixture
def house(make_house):
    return make_house()


@pytest.fixture
def simulated(make_house):
    """Return what the same hospital answers in rounds 1 to 3 where everything is kept in its node's context, as of a virtual one."""
    virtual = make_house("virtual")
    virtual.gate.worker = Seat(virtual.worker, virtual.hospital)
    found = [virtual.bits(number) for number in (1, 2, 3)]
    assert "hospital" in virtual.context.state
    assert virtual.kept == []
    return found


class TestBits:
    def test_a_real_hospital_answers_as_a_virtual_one(self, house, simulated):
        assert [house.bits(number) for number in (1, 2, 3)] == simulated

    def test_a_restart_between_rounds_changes_no_bit(self, house, simulated):
        assert [house.restart().bits(number) for number in (1, 2, 3)] == simulated

    def test_a_round_that_is_asked_again_starts_from_what_there_was_before_it(self, house, simulated):
        for number, expected in enumerate(simulated, 1):
            assert [house.bits(number, attempt=attempt) for attempt in (0, 1, 2)] == [expected] * 3
            house.restart()

    def test_a_run_that_is_resumed_under_another_number_goes_on(self, house, simulated):
        house.bits(1)
        house.bits(2)
        assert house.restart().bits(2, run=8) == simulated[1], "the coordinator had not kept round 2"
        assert house.bits(3, run=8) == simulated[2]

    def test_a_run_that_begins_anew_under_the_same_settings_begins_with_nothing(self, house, simulated):
        [house.bits(number) for number in (1, 2, 3)]
        assert [house.bits(number, run=8) for number in (1, 2, 3)] == simulated

    def test_a_hospital_that_sat_out_goes_on_from_its_own_last_round(self, house, simulated):
        house.bits(1)
        assert house.bits(5) != house.bits(6), "and what it starts from in round 6 is what it left in round 5"
        assert house.bits(6, attempt=1) == house.bits(6, attempt=2)

    def test_judging_uses_the_newest_and_changes_nothing(self, house):
        fresh = house.bits(3, kind=EVALUATE)
        house.bits(1)
        house.bits(2)
        before = [path.read_bytes() for path in house.kept]
        judged = house.bits(3, kind=EVALUATE)
        assert judged != fresh
        assert house.restart().bits(3, kind=EVALUATE) == judged
        assert [path.read_bytes() for path in house.kept] == before

    def test_a_run_with_nothing_to_keep_leaves_no_file(self, make_house):
        plain = make_house("plain", strategy="fedavg", update={"codec": "float32"})
        plain.bits(1)
        plain.bits(2)
        assert plain.kept == []


class TestWhere:
    def test_flowers_context_stays_empty_and_the_file_tells_nothing(self, house):
        for number in (1, 2):
            house.ask(number)
        (path,) = house.kept
        request = messages.unpack_request(house.message(3).content)
        state = house.gate.worker.keeping.load(TRAIN, request, house.context)
        assert set(state) == {"local", "control", "residual", "control/residual"}
        assert len(house.context.state) == 0
        seen = flower.context_bytes(house.context) + path.read_bytes() + (house.folder / "audit.jsonl").read_bytes()
        answers = flower.content_bytes(house.ask(3).content)
        for name, array in state.items():
            assert array.any()
            # Any eight bytes of it that hold more than noughts.
            canary = array[np.flatnonzero(array)[0] :][:2].tobytes()
            assert canary not in seen, name
        assert state["local"].tobytes() not in answers

    def test_it_is_for_the_owner_alone_and_nothing_lies_beside_it(self, house):
        house.ask(1)
        (path,) = house.kept
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert path.name == f"{hashlib.sha256(run_text(house.config).encode()).hexdigest()}.sealed"

    @pytest.mark.parametrize(
        "change", ["a bit", "its end", "another key", "another run", "another site", "nothing of it"]
    )
    def test_a_strangers_file_is_refused_by_name(self, house, change, caplog):
        house.ask(1)
        (path,) = house.kept
        ours, content = house.gate.worker.keeping, path.read_bytes()
        request = messages.unpack_request(house.message(2).content)
        state = {"local": np.ones(5, np.float32)}
        theirs = {
            "another key": Sealed(ours.folder, bytes(32), "east"),
            "another site": Sealed(ours.folder, KEY, "west"),
            "another run": Sealed(ours.folder, KEY, "east"),
        }.get(change)
        if theirs:
            path.unlink()
            asked = Request(request.run + " " * (change == "another run"), request.arrays, {"server-round": 1})
            theirs.keep(TRAIN, asked, house.context, state)
            house.kept[0].rename(path)
        else:
            turned = {"a bit": content[:-1] + bytes([content[-1] ^ 1]), "its end": content[:-20], "nothing of it": b""}
            path.write_bytes(turned[change])
        with pytest.raises(DataError, match=path.name):
            ours.load(TRAIN, request, house.context)
        answer = house.ask(2)
        assert answer.error.reason == "DataError"
        assert path.name in caplog.text

    def test_what_cannot_be_kept_is_not_sent_either(self, house, simulated):
        house.bits(1)
        (path,) = house.kept
        before, part = path.read_bytes(), path.with_name(f".{path.name}.part")
        part.mkdir()  # where the new file would be written
        assert house.ask(2).error.reason == "DataError"
        assert path.read_bytes() == before
        part.rmdir()
        assert house.bits(2, attempt=1) == simulated[1]


class TestAge:
    def kept_of(self, house, run, number=1):
        request = Request(run, {}, {"server-round": number})
        house.gate.worker.keeping.keep(TRAIN, request, house.context, {"local": np.ones(3, np.float32)})

    def test_so_many_runs_are_kept_those_trained_in_last(self, house):
        for run in range(keeping.MOST_RUNS + 3):
            self.kept_of(house, str(run))
            for age, path in enumerate(reversed(house.gate.worker.keeping._files())):
                os.utime(path, (age, age))
        names = [hashlib.sha256(str(run).encode()).hexdigest() for run in range(3, keeping.MOST_RUNS + 3)]
        assert sorted(path.stem for path in house.kept) == sorted(names)

    def test_an_old_run_is_erased_and_a_young_one_stays(self, house):
        for run, days in (("old", keeping.DAYS + 1), ("young", keeping.DAYS - 1)):
            self.kept_of(house, run)
            path = house.folder / "kept" / f"{hashlib.sha256(run.encode()).hexdigest()}.sealed"
            when = path.stat().st_mtime - days * 86_400
            os.utime(path, (when, when))
        house.gate.worker.keeping.forget()
        assert [path.stem for path in house.kept] == [hashlib.sha256(b"young").hexdigest()]

    def test_two_rounds_are_kept_and_no_more(self, house):
        for number in range(1, 6):
            self.kept_of(house, "run", number)
        store = house.gate.worker.keeping
        assert sorted(store._read("run")) == [4, 5]
        assert store.load(STATISTICS, Request("other", {}, {}), house.context) == {}
        assert set(store.load(COMPARE, Request("run", {}, {}), house.context)) == {"local"}
