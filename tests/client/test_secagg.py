"""The hospital's side: its gate masks what its policy has screened, its policy judges the company, and a restart forgets."""

import itertools
import json
import os
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Context, Message, RecordDict
from scipy import stats

from client import policy, secagg, stub
from client.app import Seat, guarded
from client.audit import AuditLog
from client.gate import Gate
from client.hospital import Hospital
from client.ledger import Ledger
from client.private import shared_noise
from client.secagg import InMemory, Shield
from client.worker import Worker
from common import flower, messages
from common.errors import QuorumError
from common.messages import COMPARE, EVALUATE, KEYS, SHARES, TRAIN, run_text
from common.privacy.events import from_text
from common.secagg import fixed
from common.secagg.protocol import Session
from server import rounds
from server.plan import Plan
from server.secagg import SecureSums
from simulations import secagg as virtual
from simulations.local_grid import LocalGrid

NAMES = ("east", "north", "south", "west")
CA, APPROVED = "3f" * 32, "2d" * 32
AUDIT_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
RUNS = itertools.count(1)
SECURE = {"secure": {"aggregation": True}, "rounds": 2}


def rules_of(name):
    text = policy.template(name, "heart", "heart.csv").replace("min_patients = 50", "min_patients = 20")
    for key, value in (("settings", "task.hidden=4"), ("bundles", APPROVED), ("coordinators", CA)):
        text = policy.added(text, key, value)
    return text


@pytest.fixture(scope="module")
def worker():
    return Worker()


@pytest.fixture
def house(tmp_path, worker, make_patients):
    """Open gates of four hospitals, each with a shield that keeps its keys in memory; the authority is made for the test."""
    gates, logs = {}, []
    for number, (name, shield) in enumerate(zip(NAMES, virtual.shields(NAMES, bytes(32)), strict=True)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "site.toml").write_text(rules_of(name))
        parts = (make_patients(count, number + 10 * place) for place, count in enumerate((60, 40, 50)))
        hospital = Hospital(name, *parts)
        logs.append(AuditLog(folder / "audit.jsonl", AUDIT_KEY))
        mine = Shield(shield.identity, InMemory())
        gates[name] = Gate(hospital, Seat(worker, hospital), folder / "site.toml", logs[-1], CA, mine)
    yield gates
    for log in logs:
        log.close()


def play(house, federation, settings=None, names=NAMES, watch=None, taps=()):
    contexts = {
        number: Context(
            run_id=1, node_id=number, node_config={stub.BUNDLE: APPROVED}, state=RecordDict(), run_config={}
        )
        for number in range(1, len(names) + 1)
    }
    nodes = {number: guarded(house[name]) for number, name in enumerate(names, 1)}

    def ask(message, context):
        message.metadata.__dict__["_message_id"] = os.urandom(32).hex()

        def answer():
            reply = nodes[context.node_id](message, context)
            for tap in taps:
                tap(message, reply)
            return reply

        return answer

    grid = LocalGrid(ask, contexts)
    run = next(RUNS)
    grid.set_run(flower.local_run(run, {}))
    with flower.identity(run):
        return rounds.run(grid, Plan(federation.config(SECURE | (settings or {})), cohort=tuple(names)), None, watch)


def log_of(gate):
    return [json.loads(line) for line in gate.policy.with_name("audit.jsonl").read_text().splitlines()]


def rule(gate, before, after):
    text = gate.policy.read_text()
    assert text.count(before) == 1
    gate.policy.write_text(text.replace(before, after))


class TestGate:
    def test_hospitals_behind_their_gates_make_secure_sums_and_write_down_each_step(self, house, federation):
        told = []
        outcome = play(house, federation, taps=[lambda message, reply: told.append((message, reply))])
        assert [len(record.answered) for record in outcome.rounds] == [4, 4]
        assert all(reply.has_content() for _, reply in told)
        for message, reply in told:
            if message.metadata.message_type == TRAIN:
                assert set(messages.unpack_reply(reply.content).arrays) == {"masked"}
        lines = log_of(house["east"])
        kinds = [line["fields"]["kind"] for line in lines if line["event"] == "sent"]
        assert kinds == ["query.statistics", KEYS, SHARES, TRAIN, SHARES, TRAIN, SHARES, EVALUATE, SHARES]
        assert [line["event"] for line in lines].count("trained") == 2

    def test_what_the_policy_keeps_here_is_not_in_the_sum(self, house, federation):
        for name in NAMES:
            rule(house[name], "metrics = true", "metrics = false")
        outcome = play(house, federation)
        assert outcome.rounds[0].metrics == {}
        assert outcome.rounds[0].train_loss is None
        for name in NAMES[1:]:
            rule(house[name], "metrics = false", "metrics = true")
        assert play(house, federation).tests["*"]["confusion"].sum() == 3 * 50

    def test_small_cells_are_screened_before_the_mask(self, house, federation, monkeypatch):
        seen = []
        real = fixed.Frame.write
        monkeypatch.setattr(
            fixed.Frame,
            "write",
            lambda frame, statistics, *rest: seen.append(statistics) or real(frame, statistics, *rest),
        )
        play(house, federation)
        counts = [each["test/histogram"] for each in seen if "test/histogram" in each]
        assert counts
        assert all(((table == 0) | (table >= 5)).all() for table in counts)

    def test_a_hospital_that_wants_more_company_than_survive_stops_the_sum(self, house, federation):
        rule(house["east"], "min_cohort = 3", "min_cohort = 4")
        play(house, federation)

        def around(message, _reply):
            if message.metadata.message_type == TRAIN:
                house["west"].worker = None  # its worker is gone, and with it its answer

        with pytest.raises(QuorumError, match="secure"):
            play(house, federation, {"limits": {"quorum": 0.5, "retries": 0}}, taps=[around])
        refused = [line["fields"]["code"] for line in log_of(house["east"]) if line["event"] == "refused"]
        assert refused == ["min_cohort"]

    @pytest.mark.parametrize("asked", ["train", "judge"])
    def test_what_was_summed_is_not_summed_again_without_one(self, house, federation, monkeypatch, asked):
        """The difference of the two sums would be what one hospital sent."""
        real, lists = getattr(SecureSums, asked), []

        def twice(sums, channel, step):
            first = real(sums, channel, replace(step, upcoming="again", members=NAMES[:3]))
            with pytest.raises(QuorumError, match="0 hospitals sent what is summed"):
                lists.append(real(sums, channel, replace(step, label="again", names=NAMES[:3], upcoming="")))
            return first

        monkeypatch.setattr(SecureSums, asked, twice)
        play(house, federation, {"rounds": 1})
        assert lists == []
        for name in NAMES[:3]:
            assert [line["fields"]["code"] for line in log_of(house[name]) if line["event"] == "refused"] == ["stale"]
        (opened,) = (
            line["fields"]
            for line in log_of(house["east"])
            if line["event"] == "opened" and line["fields"]["kind"] == TRAIN
        )
        assert opened["round"] == 1

    def test_a_round_of_which_nothing_was_opened_may_be_asked_again(self, house, federation):
        workers = {"1.0": None, "1.1": house["west"].worker}

        def around(message, _reply):
            if message.metadata.message_type == SHARES:
                upcoming = str(messages.unpack_request(message.content).options["next"])
                house["west"].worker = workers.get(upcoming, workers["1.1"])

        outcome = play(house, federation, {"rounds": 1, "limits": {"quorum": 1.0, "retries": 1}}, taps=[around])
        assert len(outcome.rounds[0].answered) == 4
        trained = [line["fields"]["attempt"] for line in log_of(house["east"]) if line["event"] == "trained"]
        assert trained == [0, 1]

    def test_a_stranger_among_the_cards_is_refused(self, house, federation):
        """The run names only whom east allows; that a fourth shows a card comes out all the same."""
        names = NAMES[:3]
        for name in names[1:]:
            policy.add(house["east"].policy, "cohort", name)
        assert len(play(house, federation, names=names).rounds) == 2
        play(house, federation)  # without east, whose policy the first question fails already
        assert log_of(house["east"])[-1]["fields"]["code"] == "cohort"

    def test_a_comparison_would_be_of_one_hospital_and_is_refused(self, house, federation):
        with flower.identity(1):
            content = messages.pack_request(
                run_text(federation.config(SECURE)), {}, {"hospitals": 4, "cohort": "\n".join(NAMES)}
            )
            message = Message(content, dst_node_id=1, message_type=COMPARE)
        rule(house["east"], 'statistics = ["count", "task"]', 'statistics = ["count", "task", "compare"]')
        message = flower.stamp(message, "a" * 64, 1, flower.server_node())
        context = Context(run_id=1, node_id=1, node_config={stub.BUNDLE: APPROVED}, state=RecordDict(), run_config={})
        assert guarded(house["east"])(message, context).error.reason == "alone"

    def test_a_gate_without_an_identity_sends_nothing_in_clear(self, house, federation):
        for gate in house.values():
            gate.shield = None
        with pytest.raises(QuorumError, match="secure"):
            play(house, federation)
        assert not any(line["event"] == "trained" for line in log_of(house["east"]))

    def test_a_hospital_can_demand_secure_sums(self, house, federation):
        policy.add(house["east"].policy, "settings", "secure.aggregation=true")
        assert len(play(house, federation).rounds) == 2
        play(house, federation, {"secure": {"aggregation": False}})  # the others do not mind
        assert log_of(house["east"])[-1]["fields"]["code"] == "settings"


class TestInMemory:
    def context(self):
        return Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})

    def message(self, run):
        with flower.identity(run):
            return flower.stamp(Message(RecordDict(), dst_node_id=1, message_type=TRAIN), "1", run, 1)

    def test_keys_are_kept_by_run_the_newest_and_nowhere_else(self):
        identity, context, sessions = virtual.shields(["a"], bytes(32))[0].identity(), self.context(), InMemory()
        begun = {run: Session.begin(identity, bytes([run]))[0] for run in range(1, secagg.MOST_RUNS + 2)}
        for run, session in begun.items():
            sessions.keep(self.message(run), context, session)
        assert sessions.load(self.message(1), context) is None
        for run in range(2, secagg.MOST_RUNS + 2):
            assert sessions.load(self.message(run), context) is begun[run]
        assert not len(context.state)
        assert InMemory().load(self.message(2), context) is None
        assert begun[2].agreement.hex() not in repr(sessions)


class TestShield:
    def test_noise_that_is_shared_out_is_in_the_sum_as_the_run_claims(self, federation):
        """The same round without the parts differs by a Gaussian of the deviation that follows from epsilon, raised by the fourth part of which three are enough."""
        from simulations.engines import grid_of

        secure = {"aggregation": True, "examples": 200, "magnitude": 1.0}
        privacy = {"epsilon": 1.0, "delta": 1e-4, "method": "full", "noise": "shared"}
        config = SECURE | {"rounds": 1, "secure": secure, "privacy": privacy, "training": {"learning_rate": 0.4}}
        hospitals = [replace(hospital, ledger=Ledger()) for hospital in federation.hospitals]

        def weights(noise):
            shields = virtual.shields([hospital.name for hospital in hospitals], bytes(32))
            seats = [
                Seat(Worker(), hospital, shield=Shield(shield.identity, shield.sessions, noise(hospital)))
                for hospital, shield in zip(hospitals, shields, strict=True)
            ]
            return federation.run(config, grid=grid_of(seats))

        noised = weights(lambda hospital: partial(shared_noise, hospital))
        plain = weights(lambda _: lambda *_: lambda count, _scale: np.zeros(count, np.int64))
        difference = noised.model.weights.astype(np.float64) - plain.model.weights
        event = from_text(noised.rounds[0].events[hospitals[0].name])
        moved = 0.4 / 200 + len(difference) ** 0.5 / (2**30 / 4)
        patients = sum(hospital.train["age"].size for hospital in hospitals)
        sigma = event.noise_multiplier * moved * (4 / 3) ** 0.5 * 200 / patients
        assert stats.kstest(difference / sigma, "norm").pvalue > 0.001

    def test_noise_that_a_hospital_adds_is_in_the_sum_and_in_nothing_else(self, federation):
        """A whole level added to every value by every hospital moves the mean by just that."""
        from simulations.engines import grid_of

        def outcome(noise):
            shields = virtual.shields([hospital.name for hospital in federation.hospitals], bytes(32))
            seats = [
                Seat(federation.worker, hospital, shield=Shield(shield.identity, shield.sessions, lambda *_: noise))
                for hospital, shield in zip(federation.hospitals, shields, strict=True)
            ]
            return federation.run(SECURE | {"rounds": 1}, grid=grid_of(seats))

        asked = []

        def level(count, scale):
            asked.append(scale)
            return np.full(count, round(scale * 0.25), np.int64)

        moved = outcome(level).model.weights - outcome(None).model.weights
        weights = [hospital.train["age"].size for hospital in federation.hospitals]
        # Each added a quarter to its weighted update: in the mean that is four quarters over the sum of the weights.
        np.testing.assert_allclose(moved, 0.25 * 4 * max(weights) / sum(weights), rtol=1e-3)
        assert asked == [2**30 / (16.0 * 4)] * 4
