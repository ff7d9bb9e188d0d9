"""The gate: what is asked of a hospital is held against its own rules, and a coordinator that is hostile gets nothing and leaves a trace."""

import hashlib
import json
import logging
import os
import stat
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Context, Message, RecordDict

from client import gate, policy, private, service, stub
from client.app import FAILED, REFUSED, Seat, guarded
from client.audit import AuditLog
from client.gate import Gate
from client.hospital import Hospital
from client.private import LARGEST
from client.resident import open_ledger
from client.worker import Worker
from common import chain, flower, messages, wire
from common.deployment import Bundle, Received, bundle
from common.errors import FedwardError, QuorumError
from common.messages import COMPARE, EVALUATE, STATISTICS, TRAIN, run_text
from common.network import dumps, initial
from common.tasks import read_run, task_of
from server import rounds
from server.plan import Plan
from simulations.local_grid import LocalGrid

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # where Flower builds a bundle
CA, APPROVED = "3f" * 32, "2d" * 32
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
NAMES = ("east", "north", "south")
SECRET = "Erika Mustermann"
"""A patient's name, planted where it must not come from."""


@dataclass
class Counted:
    """Hands on to the worker, and keeps what it was asked for."""

    node: Seat
    asked: list[str] = field(default_factory=list)

    def __call__(self, message, context):
        self.asked.append(message.metadata.message_type)
        return self.node(message, context)


@dataclass
class Desk:
    """A hospital behind its gate, with its own folder, and a coordinator's way of asking it."""

    folder: Path
    hospital: Hospital
    gate: Gate
    worker: Counted
    base: object
    """Make settings of a run from some of them."""
    context: Context
    sent: int = 0

    def request(self, kind=TRAIN, number=1, settings=None, arrays=None, **options):
        """Lay out what an honest coordinator would send, but for what is given."""
        config = self.base(settings)
        task = task_of(config.task)
        preparation = task.fit(task.summarise(self.hospital.train))
        if arrays is None:
            arrays = {} if kind == STATISTICS else {"weights": initial(task, preparation, (), config.seed)[0]}
        common = {"hospitals": len(NAMES), "cohort": "\n".join(NAMES)}
        model = {
            "preparation": dumps(preparation),
            "local-parts": "",
            "evaluate": True,
            "server-round": number,
            "attempt": 0,
        }
        return messages.pack_request(run_text(config), arrays, common | ({} if kind == STATISTICS else model) | options)

    def message(self, kind=TRAIN, content=None, name=None, run=7, **request):
        content = self.request(kind, **request) if content is None else content
        self.sent += 1
        with flower.identity(run):
            made = Message(content, dst_node_id=3, message_type=kind)
        name = name or hashlib.sha256(str(self.sent).encode()).hexdigest()
        return flower.stamp(made, name, run, flower.server_node())

    def ask(self, kind=TRAIN, **request):
        """Ask, and return the answer as its bytes hold it, as a coordinator gets it."""
        answer = guarded(self.gate)(self.message(kind, **request), self.context)
        return flower.message_from(flower.message_bytes(answer))

    def log(self):
        """Return event and fields of every line."""
        lines = (self.folder / "audit.jsonl").read_text().splitlines()
        return [(line["event"], line["fields"]) for line in map(json.loads, lines)]

    def events(self):
        return [event for event, _ in self.log()]

    def rule(self, before, after):
        """Change a rule in the hospital's own file."""
        path = self.folder / "site.toml"
        text = path.read_text()
        assert text.count(before) == 1
        path.write_text(text.replace(before, after))


def rules_of(name):
    text = policy.template(name, "heart", "heart.csv")
    text = policy.added(text.replace("min_patients = 50", "min_patients = 20"), "settings", "task.hidden=4")
    return policy.added(policy.added(text, "bundles", APPROVED), "coordinators", CA)


def context_of(sha256=APPROVED):
    return Context(run_id=7, node_id=3, node_config={stub.BUNDLE: sha256}, state=RecordDict(), run_config={})


@pytest.fixture(scope="module")
def worker():
    return Worker()


@pytest.fixture
def make_desk(tmp_path, worker, federation, make_patients):
    """Open a desk for a hospital with so many patients; its log is closed at the end."""
    opened = []

    def made(name="east", rows=60, seed=1, around=None):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "site.toml").write_text(rules_of(name))
        parts = (make_patients(count, seed + 10 * place) for place, count in enumerate((rows, 40, 50)))
        hospital = Hospital(name, *parts)
        log = AuditLog(folder / "audit.jsonl", KEY)
        opened.append(log)
        counted = Counted(around or Seat(worker, hospital))
        gate = Gate(hospital, counted, folder / "site.toml", log, CA)
        return Desk(folder, hospital, gate, counted, federation.config, context_of())

    yield made
    for log in opened:
        log.close()


@pytest.fixture
def desk(make_desk):
    return make_desk()


def refused(answer):
    assert answer.has_error()
    return answer.error.code, answer.error.reason


class TestAllowed:
    def test_an_update_leaves_as_the_worker_made_it(self, desk, worker):
        content = desk.request()
        answer = desk.ask(content=content)
        alone = Seat(worker, desk.hospital)(desk.message(content=content), context_of())
        ours, theirs = (messages.unpack_reply(each.content) for each in (answer, alone))
        assert ours.arrays.keys() == theirs.arrays.keys()
        for name, array in ours.arrays.items():
            np.testing.assert_array_equal(array, theirs.arrays[name])
        assert ours.num_examples == theirs.num_examples == 60

    @pytest.mark.parametrize("kind", [STATISTICS, EVALUATE])
    def test_other_questions_are_answered_and_train_nothing(self, desk, kind):
        assert desk.ask(kind).has_content()
        assert desk.events() == ["asked", "allowed", "sent"]
        assert desk.worker.asked == [kind]

    def test_the_log_has_what_was_asked_decided_and_sent(self, desk):
        answer = desk.ask(number=2)
        lines = dict(desk.log())
        assert desk.events() == ["asked", "allowed", "trained", "sent"]
        request = {name: lines["asked"][name] for name in ("message", "run", "kind", "round", "attempt")}
        assert request | {"message": "-"} == {"message": "-", "run": "7", "kind": TRAIN, "round": 2, "attempt": 0}
        assert lines["asked"]["bundle"] == APPROVED
        assert lines["asked"]["coordinator"] == CA
        assert lines["asked"]["task"] == "heart"
        asked = messages.unpack_request(desk.request(number=2))
        assert lines["asked"]["settings"] == hashlib.sha256(asked.run.encode()).hexdigest()
        assert lines["asked"]["weights"] == hashlib.sha256(asked.arrays["weights"].tobytes()).hexdigest()
        rules = desk.folder / "site.toml"
        assert lines["asked"]["policy"] == hashlib.sha256(rules.read_bytes()).hexdigest()
        assert lines["trained"]["rounds"] == 1
        assert all({**fields, **request} == fields for fields in lines.values())
        arrays = messages.unpack_reply(answer.content).arrays
        assert lines["sent"]["norm"] == pytest.approx(np.linalg.norm(np.concatenate([*arrays.values()])))

    def test_the_digest_in_the_log_is_that_of_the_bytes_sent(self, desk):
        reply = guarded(desk.gate)(desk.message(), desk.context)
        del reply.content["config"][chain.CHECKPOINT]
        content = flower.content_bytes(reply.content)
        sent = dict(desk.log())["sent"]
        assert (sent["sha256"], sent["bytes"]) == (hashlib.sha256(content).hexdigest(), len(content))

    @pytest.mark.parametrize("kind", [STATISTICS, TRAIN, EVALUATE])
    def test_every_answer_promises_the_log_up_to_its_own_line(self, desk, kind):
        promised = chain.checkpoint_from(messages.unpack_reply(desk.ask(kind).content).texts[chain.CHECKPOINT])
        assert chain.is_signed(promised, KEY.public_key())
        lines = (desk.folder / "audit.jsonl").read_bytes().splitlines()
        assert promised["sequence"] == len(lines)
        assert promised["sha256"] == chain.sha256(lines[-1])
        assert desk.events()[-1] == "sent"

    def test_a_refusal_promises_nothing_and_says_nothing_but_its_code(self, desk):
        answer = desk.ask(number=0)
        assert refused(answer) == (REFUSED, "round")
        assert not answer.has_content()

    def test_the_log_is_whole(self, desk):
        for kind in (STATISTICS, TRAIN, EVALUATE, "query.everything"):
            desk.ask(kind)
        assert chain.verify(desk.folder / "audit.jsonl", KEY.public_key()) is None


class TestStatistics:
    def test_questions_are_counted_too(self, desk):
        desk.rule("max_questions_a_day = 200", "max_questions_a_day = 2")
        assert [desk.ask(kind).has_content() for kind in (STATISTICS, EVALUATE)] == [True, True]
        assert refused(desk.ask(EVALUATE, run=8)) == (REFUSED, "max_questions_a_day")
        assert refused(desk.ask(STATISTICS, run=9)) == (REFUSED, "max_questions_a_day")
        assert desk.ask().has_content(), "training has limits of its own"
        assert desk.worker.asked == [STATISTICS, EVALUATE, TRAIN]

    def test_small_counts_do_not_leave(self, desk):
        ill = np.flatnonzero(np.asarray(desk.hospital.test["num"]) > 0)
        fine = np.flatnonzero(np.asarray(desk.hospital.test["num"]) == 0)
        rows = np.concatenate([fine, ill[:2]])
        desk.gate.hospital = replace(
            desk.hospital, test={name: values[rows] for name, values in desk.hospital.test.items()}
        )
        desk.worker.node = Seat(desk.worker.node.worker, desk.gate.hospital)
        counts = messages.group("count", messages.unpack_reply(desk.ask(STATISTICS).content).statistics)
        assert counts["train"].sum() == 60
        assert counts["test"].tolist() == [0, 0], "two ill patients are fewer than the smallest cell"
        for kind, examples in ((EVALUATE, 0), (TRAIN, 60)):
            told = messages.unpack_reply(desk.ask(kind).content)
            assert not messages.group("test", told.statistics)
            assert messages.group("validation", told.statistics)
            assert told.num_examples == examples, "how many there are would be told beside figures that are withheld"

    def test_a_rare_class_among_the_training_patients_is_refused(self, desk, caplog):
        desk.rule("smallest_cell = 5", "smallest_cell = 60")
        assert refused(desk.ask(STATISTICS)) == (REFUSED, "smallest_cell")
        assert desk.log()[-1] == ("refused", {**desk.log()[-1][1], "code": "smallest_cell"})

    def test_the_loss_stays_where_metrics_must(self, desk):
        desk.rule("metrics = true", "metrics = false")
        told = messages.unpack_reply(desk.ask().content).statistics
        assert {name: value.tolist() for name, value in told.items()} == {"train/loss": [0, 0]}

    def test_comparing_is_refused_until_the_hospital_allows_it(self, desk):
        weights = messages.unpack_request(desk.request()).arrays["weights"]
        asked = {"arrays": {"weights": weights, "other": weights}}
        asked["other-preparation"] = messages.unpack_request(desk.request()).options["preparation"]
        assert refused(desk.ask(COMPARE, **asked)) == (REFUSED, "compare")
        desk.rule('["count", "task"]', '["count", "task", "compare"]')
        assert desk.ask(COMPARE, **asked).has_content()


HOSTILE = {
    "an unapproved bundle": ({"bundle": "ab" * 32}, {}, "bundle"),
    "no bundle": ({"bundle": ""}, {}, "bundle"),
    "a coordinator of another authority": ({"coordinator": "ab" * 32}, {}, "coordinator"),
    "another task": ({}, {"run": run_text(read_run({"task": {"name": "pneumonia"}}))}, "task"),
    "a wider layer": ({}, {"settings": {"task": {"name": "heart", "hidden": 4096}}}, "settings"),
    "the default where another was approved": ({}, {"settings": {"task": {"name": "heart", "hidden": 16}}}, "settings"),
    "another kind of model": (
        {},
        {"settings": {"task": {"name": "heart", "hidden": 4, "model": "logistic"}}},
        "settings",
    ),
    "a part of the model that stays": (
        {},
        {"settings": {"task": {"name": "heart", "hidden": 4, "site_intercept": True}}},
        "settings",
    ),
    "a federation of two": ({}, {"hospitals": 2, "cohort": "east\nwest"}, "min_cohort"),
    "a federation that says it is large and names two": ({}, {"hospitals": 9, "cohort": "east\nwest"}, "min_cohort"),
    "a federation that names one hospital thrice": ({}, {"cohort": "east\neast\neast"}, "min_cohort"),
    "one record a step": ({}, {"settings": {"training": {"batch_size": 1}}}, "min_records"),
    "one step": ({}, {"settings": {"training": {"batch_size": 64}}}, "min_steps"),
    "steps without end": ({}, {"settings": {"training": {"epochs": 2000, "batch_size": 8}}}, "max_steps"),
    "more rounds than allowed": ({}, {"settings": {"rounds": 501}}, "max_rounds"),
    "a round that the run does not have": ({}, {"number": 4}, "round"),
    "a round below the first": ({}, {"number": 0}, "round"),
    "weights of another length": ({}, {"arrays": {"weights": np.zeros(3, np.float32)}}, "layout"),
    "a layer in front that remembers patients": ({}, {"arrays": {"weights": np.ones(13 * 4096, np.float32)}}, "layout"),
    "a model laid out in another way": ({}, {"layout": "ab" * 32}, "layout"),
    "a layout that is none": ({}, {"layout": 7}, "layout"),
    "a preparation of more columns": ({}, {"preparation": '{"mean": [0, 0], "scale": [1, 1]}'}, "layout"),
    "no weights": ({}, {"arrays": {}}, "failed"),
    "a model beyond all": ({}, {"arrays": {"weights": np.zeros(50_000_001, np.int8)}}, "max_parameters"),
    "a task that does not exist": ({}, {"run": '{"task": {"name": "hart"}}'}, "task"),
    "settings that do not exist": ({}, {"run": '{"task": {"name": "heart"}, "hart": 1}'}, "ConfigError"),
    "settings that are no settings": ({}, {"run": "[" * 5000}, "ConfigError"),
    "a round that is no number": ({}, {"server-round": SECRET}, "failed"),
    "a round without end": ({}, {"server-round": float("nan")}, "failed"),
    "an attempt that is no number": ({}, {"attempt": SECRET}, "failed"),
    "a preparation that is none": ({}, {"preparation": SECRET}, "failed"),
}


def code_of(answer):
    assert answer.has_error()
    return answer.error.reason


class TestHostile:
    """Whatever a coordinator asks: nothing is trained, the answer is a code, and it stands in the log."""

    @pytest.fixture
    def trained(self, monkeypatch):
        """Note every step of training that is really taken."""
        steps = []
        fit = Worker._fit
        monkeypatch.setattr(Worker, "_fit", lambda *given: steps.append(given) or fit(*given))
        return steps

    @pytest.fixture(params=HOSTILE.values(), ids=HOSTILE.keys())
    def case(self, request, desk):
        """Give what is asked, and the code that is expected."""
        changes, words, code = request.param
        desk.context.node_config[stub.BUNDLE] = changes.get("bundle", APPROVED)
        desk.gate.coordinator = changes.get("coordinator", CA)
        content = desk.request(**{key: value for key, value in words.items() if key != "run"})
        if "run" in words:
            content["config"]["run"] = words["run"]
        return SimpleNamespace(content=content, code=code)

    @pytest.mark.fault(
        11, passes_when="every hostile request is refused with a code, trains nothing, and is in the audit log"
    )
    def test_it_is_refused_and_leaves_the_hospital_untrained(self, desk, trained, case):
        told = code_of(desk.ask(content=case.content))
        assert told == case.code
        assert trained == []
        event, fields = desk.log()[-1]
        assert (event, fields["code"]) == ("failed" if told in {"failed", "ConfigError"} else "refused", told)
        assert "trained" not in desk.events()
        assert "sent" not in desk.events()
        if told in {rule.code for rule in policy.rules()}:
            assert desk.worker.asked == [], "a rule is tried before the worker is called"
        if event == "refused":
            assert desk.gate.audit.trained() == (0, 0.0), "the day's limits are untouched"

    def test_the_answer_names_nothing(self, desk, case):
        sent = flower.message_bytes(guarded(desk.gate)(desk.message(content=case.content), desk.context))
        assert len(sent) < 400
        for word in (SECRET, "east", str(desk.folder), "site.toml", "hart"):
            assert word.encode() not in sent
        assert SECRET not in (desk.folder / "audit.jsonl").read_text()

    @pytest.mark.parametrize("kind", ["train.more", "query", "query.records", "query.patients", "evaluate.all"])
    def test_other_kinds_of_message_are_refused(self, desk, kind):
        assert refused(desk.ask(kind, content=desk.request())) == (REFUSED, "kind")
        assert desk.worker.asked == []
        assert desk.log()[-1][1]["code"] == "kind"

    @pytest.mark.parametrize(
        "content",
        [RecordDict(), RecordDict({"config": messages.pack_request("{}", {}, {})["config"]})],
        ids=["nothing", "no arrays"],
    )
    def test_a_message_without_a_request_fails_and_is_in_the_log(self, desk, content):
        assert desk.ask(content=content).error.code in {FAILED, REFUSED}
        assert desk.events() == ["failed"]
        assert desk.worker.asked == []

    @pytest.mark.fault(11, passes_when="privacy that the hospital demands can't be lowered")
    def test_privacy_that_the_hospital_demands_can_not_be_lowered(self, desk):
        desk.rule('minimum = "none"', 'minimum = "dp"')
        for epsilon in ({}, {"epsilon": 0.1}):
            assert refused(desk.ask(**epsilon)) == (REFUSED, "privacy")
        assert desk.worker.asked == []

    def test_who_may_be_in_the_federation_is_the_hospitals_word(self, desk):
        desk.rule("cohort = []", 'cohort = ["north", "west"]')
        assert refused(desk.ask()) == (REFUSED, "cohort")
        assert refused(desk.ask(cohort="")) == (REFUSED, "cohort")
        assert desk.ask(cohort="east\nnorth\nwest").has_content()

    def test_a_day_has_so_many_rounds(self, desk):
        desk.rule("max_rounds_a_day = 1000", "max_rounds_a_day = 2")
        assert [desk.ask(number=number).has_content() for number in (1, 2, 3)] == [True, True, False]
        assert desk.log()[-1][1]["code"] == "max_rounds_a_day"
        assert refused(desk.ask(run=8)) == (REFUSED, "max_rounds_a_day")
        assert desk.worker.asked == [TRAIN, TRAIN]

    def test_what_is_written_of_a_hostile_message_can_not_break_the_log(self, desk):
        desk.ask("query.x", content=desk.request(), name='x"}\n{"event":"allowed"')
        assert len((desk.folder / "audit.jsonl").read_text().splitlines()) == 2
        assert all(fields["message"] == "?" for _, fields in desk.log())
        assert chain.verify(desk.folder / "audit.jsonl", KEY.public_key()) is None


class TestReplay:
    @pytest.mark.fault(8, passes_when="a message that comes again is ignored and in the audit log")
    def test_a_message_that_comes_again_is_ignored_and_in_the_log(self, desk):
        message = desk.message()
        answers = [guarded(desk.gate)(message, desk.context) for _ in range(3)]
        assert [answer.has_content() for answer in answers] == [True, False, False]
        assert refused(answers[1]) == (REFUSED, "replay")
        assert desk.events() == ["asked", "allowed", "trained", "sent", "asked", "replay", "asked", "replay"]
        assert desk.worker.asked == [TRAIN]

    @pytest.mark.fault(8, passes_when="also one that was refused before")
    def test_also_one_that_was_refused(self, desk):
        message = desk.message(settings={"training": {"batch_size": 1}})
        first, second = (guarded(desk.gate)(message, desk.context) for _ in range(2))
        assert refused(first) == (REFUSED, "min_records")
        assert refused(second) == (REFUSED, "replay")

    @pytest.mark.fault(11, passes_when="a stale round is refused")
    def test_a_round_of_the_past_is_stale(self, desk):
        assert desk.ask(number=2).has_content()
        assert refused(desk.ask(number=1)) == (REFUSED, "stale")
        assert desk.log()[-1] == ("refused", {**desk.log()[-1][1], "code": "stale", "round": 1})
        assert desk.worker.asked == [TRAIN]

    def test_a_second_attempt_at_a_round_is_none_of_these(self, desk):
        assert desk.ask(number=2).has_content()
        assert desk.ask(number=2, attempt=1).has_content()

    def test_another_run_begins_at_its_own_first_round(self, desk):
        assert desk.ask(number=3, run=7).has_content()
        assert desk.ask(number=1, run=8).has_content()
        assert refused(desk.ask(number=1, run=7)) == (REFUSED, "stale")


class TestRestart:
    """What the gate has to remember is in the log, so a worker that was started again knows it."""

    @pytest.fixture
    def restart(self, make_desk):
        opened = []

        def again(desk):
            desk.gate.audit.close()
            log = AuditLog(desk.folder / "audit.jsonl", KEY)
            opened.append(log)
            log.append("started")
            desk.gate = replace(desk.gate, audit=log)
            return desk

        yield again
        for log in opened:
            log.close()

    @pytest.mark.fault(8, passes_when="also after the worker was started again")
    def test_a_message_that_was_answered_before_it_is_still_one(self, desk, restart):
        message = desk.message()
        assert guarded(desk.gate)(message, desk.context).has_content()
        assert refused(guarded(restart(desk).gate)(message, desk.context)) == (REFUSED, "replay")
        assert desk.worker.asked == [TRAIN]

    def test_a_round_of_the_past_is_still_stale(self, desk, restart):
        assert desk.ask(number=2).has_content()
        restart(desk)
        assert refused(desk.ask(number=1)) == (REFUSED, "stale")
        assert desk.ask(number=2).has_content()
        assert desk.ask(number=1, run=8).has_content(), "to Flower a run that goes on is another run"

    def test_training_that_fails_uses_up_the_day(self, desk):
        desk.rule("max_rounds_a_day = 1000", "max_rounds_a_day = 2")
        desk.worker.node = lambda *_: 1 / 0
        assert [code_of(desk.ask()) for _ in range(3)] == ["failed", "failed", "max_rounds_a_day"]

    def test_so_does_training_in_which_the_process_ended(self, desk, restart):
        desk.rule("max_rounds_a_day = 1000", "max_rounds_a_day = 1")

        def ended(_message, _context):
            raise KeyboardInterrupt

        desk.worker.node = ended
        with pytest.raises(KeyboardInterrupt):
            desk.ask()
        assert desk.events() == ["asked", "allowed"]
        assert refused(restart(desk).ask()) == (REFUSED, "max_rounds_a_day")


class TestPolicyOnDisk:
    def test_a_change_counts_at_the_next_message(self, desk):
        assert desk.ask().has_content()
        desk.rule(f'bundles = ["{APPROVED}"]', "bundles = []")
        assert refused(desk.ask()) == (REFUSED, "bundle")
        desk.rule("bundles = []", f'bundles = ["{APPROVED}"]')
        assert desk.ask().has_content()

    def test_a_policy_that_can_not_be_read_allows_nothing(self, desk):
        assert desk.ask().has_content()
        whole = (desk.folder / "site.toml").read_text()
        for damaged in (whole.replace("[limits]", "[limit]"), "", whole[:50] + "\0"):
            (desk.folder / "site.toml").write_text(damaged)
            assert desk.ask().error.reason == "ConfigError"
        (desk.folder / "site.toml").unlink()
        assert desk.ask().has_error()
        assert desk.worker.asked == [TRAIN]
        (desk.folder / "site.toml").write_text(whole)
        assert desk.ask().has_content()

    def test_a_policy_in_the_folder_of_the_process_is_not_looked_at(self, desk, tmp_path, monkeypatch):
        """As a bundle unpacked there would bring one."""
        elsewhere = tmp_path / "unpacked"
        elsewhere.mkdir()
        (elsewhere / "site.toml").write_text(rules_of("east").replace("min_records = 8", "min_records = 1"))
        monkeypatch.chdir(elsewhere)
        assert refused(desk.ask(settings={"training": {"batch_size": 1}})) == (REFUSED, "min_records")


class TestFailing:
    def test_the_text_of_an_error_reaches_neither_the_answer_nor_the_log(self, desk, caplog):
        def broken(_message, _context):
            raise ValueError(f"could not convert {SECRET}")

        desk.worker.node = broken
        with caplog.at_level(logging.ERROR):
            answer = desk.ask()
        assert SECRET in caplog.text, "the hospital's own log should say what went wrong"
        assert refused(answer) == (FAILED, "failed")
        assert SECRET.encode() not in flower.message_bytes(answer)
        assert SECRET not in (desk.folder / "audit.jsonl").read_text()
        assert desk.events() == ["asked", "allowed", "failed"]

    def test_nor_does_a_patients_cell(self, make_desk, worker):
        desk = make_desk("north")
        content = desk.request(STATISTICS)
        desk.hospital.train["age"] = np.array([SECRET] * 60)
        answer = desk.ask(STATISTICS, content=content)
        assert refused(answer) == (FAILED, "failed")
        assert SECRET.encode() not in flower.message_bytes(answer)
        assert SECRET not in (desk.folder / "audit.jsonl").read_text()

    def test_the_next_message_is_answered(self, desk):
        whole, desk.worker.node = desk.worker.node, lambda *_: 1 / 0
        assert desk.ask().has_error()
        desk.worker.node = whole
        assert desk.ask().has_content()

    def test_without_a_log_nothing_is_answered(self, desk):
        """What can not be written down is not done."""
        desk.gate.audit.close()
        assert desk.ask().has_error()
        assert desk.worker.asked == []


SPY = """
from pathlib import Path
Path({marker!r}).write_text("executed")
Path({marker!r}).with_name("stolen").write_bytes(Path({secret!r}).read_bytes())
"""


class TestBundle:
    """A bundle that is hostile itself, handed to the stub as Flower's node would hand it."""

    @pytest.fixture
    def marker(self, tmp_path):
        return tmp_path / "markers" / "executed"

    @pytest.fixture
    def hostile(self, desk, marker):
        """Build a bundle with rules of its own, and code that reads the data as soon as it is imported, for every way in."""
        from flwr.cli.build import build_fab_from_files

        marker.parent.mkdir()
        (desk.folder / "data").mkdir()
        (desk.folder / "data" / "heart.sealed").write_bytes(SECRET.encode())
        spy = SPY.format(marker=str(marker), secret=str(desk.folder / "data" / "heart.sealed")).encode()
        names = ("client/__init__.py", "client/app.py", "client/gate.py", "client/policy.py", "client/worker.py")
        names += ("common/__init__.py", "common/tasks/__init__.py", "server/app.py", "sitecustomize.py", "numpy.py")
        lax = rules_of("east").replace("min_records = 8", "min_records = 1")
        files = dict.fromkeys(names, spy) | {
            "site.toml": lax.encode(),
            "pyproject.toml": b'[project]\nname = "fedward"\nversion = "0.1.0"\nlicense = "Apache-2.0"\n[tool.flwr.app]\npublisher = "fedward"\n'
            b'fab-include = ["**/*.py", "site.toml"]\n[tool.flwr.app.components]\nserverapp = "server.app:app"\nclientapp = "client.app:app"\n',
        }
        return Bundle(build_fab_from_files(files)[0])

    @pytest.fixture
    def answer(self, desk, tmp_path_factory):
        """Return the way to the hospital by its stub: as over a real socket, with the worker's own process before it."""
        path = tmp_path_factory.mktemp("s") / "worker"
        bundles = desk.folder / "bundles"
        bundles.mkdir()
        ready = threading.Event()
        node = guarded(desk.gate)
        threading.Thread(target=service.serve, args=(path, node, ready.set, 60.0), daemon=True).start()
        assert ready.wait(10)

        def answered(came, **request):
            desk.context.node_config.clear()
            return stub.answer(Received(desk.message(**request), desk.context, came), path, bundles)

        return answered

    @pytest.mark.fault(11, passes_when="code not approved is never executed")
    def test_the_code_is_kept_and_neither_executed_nor_unpacked(self, desk, hostile, answer, marker, monkeypatch):
        monkeypatch.chdir(desk.folder)
        before, modules = set(sys.path), set(sys.modules)
        told = answer(hostile)
        assert refused(told) == (REFUSED, "bundle")
        assert list(marker.parent.iterdir()) == []
        assert {path.name for path in (desk.folder / "bundles").iterdir()} == {f"{hostile.sha256}.fab"}
        assert (desk.folder / "bundles" / f"{hostile.sha256}.fab").read_bytes() == hostile.content
        assert set(sys.path) == before
        assert not {"sitecustomize"} & (set(sys.modules) - modules)
        assert desk.worker.asked == []
        assert desk.log()[-1][1]["code"] == "bundle"

    def test_it_would_have_acted_had_it_been_executed(self, desk, hostile, marker, tmp_path):
        """Else the test above could not fail."""
        import subprocess
        import zipfile
        from io import BytesIO

        zipfile.ZipFile(BytesIO(hostile.content)).extractall(tmp_path / "unpacked")
        subprocess.run([sys.executable, "-c", "import client.app"], cwd=tmp_path / "unpacked", check=True)
        assert {path.name for path in marker.parent.iterdir()} == {"executed", "stolen"}
        assert (marker.parent / "stolen").read_text() == SECRET

    def test_approving_it_changes_no_rule_and_executes_nothing_either(self, desk, hostile, answer, marker):
        path = desk.folder / "site.toml"
        policy.add(path, "bundles", hostile.sha256)
        rules = path.read_bytes()
        told = answer(hostile, settings={"training": {"batch_size": 1}})
        assert refused(told) == (REFUSED, "min_records")
        assert answer(hostile).has_content(), "the hospital's own code answers"
        assert list(marker.parent.iterdir()) == []
        assert path.read_bytes() == rules

    @pytest.mark.fault(11, passes_when="the policy of an approved bundle lowers nothing")
    def test_nor_does_its_own_policy_lower_the_privacy_that_is_demanded(self, desk, hostile, answer):
        """The bundle's rules demand none."""
        policy.add(desk.folder / "site.toml", "bundles", hostile.sha256)
        desk.rule('minimum = "none"', 'minimum = "dp"')
        assert refused(answer(hostile)) == (REFUSED, "privacy")
        assert desk.worker.asked == []

    @pytest.mark.fault(11, passes_when="an approved bundle brings no model of its own")
    def test_nor_does_a_model_of_its_own_come_with_it(self, desk, hostile, answer):
        """The bundle's files of the task would build another; weights for that one fit nothing here."""
        policy.add(desk.folder / "site.toml", "bundles", hostile.sha256)
        honest = messages.unpack_request(desk.request()).arrays["weights"]
        larger = np.concatenate([honest, np.ones(500, np.float32)])
        assert refused(answer(hostile, arrays={"weights": larger})) == (REFUSED, "layout")
        assert "trained" not in desk.events()

    @pytest.mark.fault(11, passes_when="a run can't say which code it is")
    def test_the_run_can_not_say_which_bundle_it_is(self, desk, hostile, answer):
        told = answer(hostile, **{stub.BUNDLE: APPROVED})
        assert refused(told) == (REFUSED, "bundle")

    def test_the_installed_one_is_answered_once_it_is_approved(self, desk, answer):
        own = bundle()
        assert refused(answer(own)) == (REFUSED, "bundle")
        policy.add(desk.folder / "site.toml", "bundles", own.sha256)
        assert answer(own).has_content()

    def test_one_that_is_no_bundle_at_all_is_kept_to_be_looked_at(self, desk, answer):
        assert refused(answer(Bundle(b"no zip"))) == (REFUSED, "bundle")
        assert [path.read_bytes() for path in (desk.folder / "bundles").iterdir()] == [b"no zip"]

    def test_where_none_can_be_kept_there_is_no_answer_but_a_code(self, desk, hostile, answer):
        (desk.folder / "bundles").rmdir()
        assert refused(answer(hostile)) == (FAILED, "worker")
        assert desk.worker.asked == []

    def test_without_a_worker_there_is_a_code(self, desk, hostile, tmp_path):
        received = Received(desk.message(), desk.context, hostile)
        assert refused(stub.answer(received, tmp_path / "nobody", tmp_path)) == (FAILED, "worker")

    def test_one_is_written_whole_or_not_at_all(self, tmp_path, monkeypatch):
        def full(path, content):
            with path.open("wb") as file:
                file.write(content[:5])
            raise OSError(28, os.strerror(28))

        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            stub.keep(Bundle(b"0123456789"), tmp_path)
        assert not list(tmp_path.glob("*.fab"))

    def test_the_hospitals_own_user_can_read_one_whatever_the_mask_of_the_stubs(self, tmp_path):
        if os.geteuid() == 0:
            os.chown(tmp_path, -1, 12345)
        before = os.umask(0o077)
        try:
            stub.keep(Bundle(b"0123456789"), tmp_path)
        finally:
            os.umask(before)
        (kept,) = tmp_path.iterdir()
        facts = kept.stat()
        assert stat.S_IMODE(facts.st_mode) == 0o640
        assert facts.st_gid == tmp_path.stat().st_gid

    def test_so_many_are_kept_and_the_oldest_make_room(self, tmp_path):
        for number in range(stub.MOST_BUNDLES + 3):
            stub.keep(Bundle(bytes([number])), tmp_path)
            os.utime(tmp_path / f"{Bundle(bytes([number])).sha256}.fab", (number, number))
        kept = {path.read_bytes()[0] for path in tmp_path.iterdir()}
        assert kept == set(range(3, stub.MOST_BUNDLES + 3))

    def test_and_so_many_bytes(self, tmp_path, monkeypatch):
        monkeypatch.setattr(stub, "MOST_BYTES", 10)
        (tmp_path / "left-by-a-crash.part").write_bytes(b"123456")
        for number, content in enumerate((b"aaaa", b"bbbb", b"ccc", b"dddddddd")):
            stub.keep(Bundle(content), tmp_path)
            os.utime(tmp_path / f"{Bundle(content).sha256}.fab", (number, number))
            assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 10
        assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"dddddddd"]
        with pytest.raises(FedwardError, match="11 bytes came with a run, and 10 is the most"):
            stub.keep(Bundle(b"e" * 11), tmp_path)
        assert len(list(tmp_path.iterdir())) == 1

    def test_one_that_is_here_already_is_not_written_again(self, tmp_path):
        one = Bundle(b"0123456789")
        stub.keep(one, tmp_path)
        before = (tmp_path / f"{one.sha256}.fab").stat().st_mtime_ns
        time.sleep(0.01)
        stub.keep(one, tmp_path)
        assert (tmp_path / f"{one.sha256}.fab").stat().st_mtime_ns == before


class TestRun:
    """Whole runs over hospitals behind their gates."""

    def play(self, desks, federation):
        config = federation.config({"limits": {"quorum": 0.5}})
        nodes = {number: guarded(desk.gate) for number, desk in enumerate(desks, 1)}
        contexts = {number: desk.context for number, desk in enumerate(desks, 1)}

        def ask(message, context):
            message.metadata.__dict__["_message_id"] = hashlib.sha256(message.metadata.message_id.encode()).hexdigest()
            number = message.metadata.dst_node_id
            return lambda: nodes[number](message, context)

        grid = LocalGrid(ask, contexts)
        with flower.identity(grid.run.run_id):
            return rounds.run(grid, Plan(config, cohort=NAMES), None, None)

    def test_hospitals_that_allow_it_train_together(self, make_desk, federation):
        desks = [make_desk(name, seed=seed) for seed, name in enumerate(NAMES)]
        outcome = self.play(desks, federation)
        assert len(outcome.rounds) == 3
        assert all(len(row.answered) == 3 for row in outcome.rounds)
        for desk in desks:
            assert desk.events().count("trained") == 3
            assert not {"refused", "failed", "replay"} & set(desk.events())

    def test_a_run_goes_on_without_one_that_refuses_later(self, make_desk, federation):
        desks = [make_desk(name, seed=seed) for seed, name in enumerate(NAMES)]
        desks[1].rule("max_rounds_a_day = 1000", "max_rounds_a_day = 1")
        outcome = self.play(desks, federation)
        assert [len(row.answered) for row in outcome.rounds] == [3, 2, 2]
        assert [(dropped.hospital, dropped.reason) for dropped in outcome.rounds[1].dropped] == [
            ("north", "max_rounds_a_day")
        ]

    def test_where_all_refuse_there_is_no_model(self, make_desk, federation):
        desks = [make_desk(name, seed=seed) for seed, name in enumerate(NAMES)]
        for desk in desks:
            desk.rule("min_cohort = 3", "min_cohort = 4")
        with pytest.raises(QuorumError):
            self.play(desks, federation)
        assert all(desk.worker.asked == [] for desk in desks)


class TestHostileWeights:
    """Of the right shape, without differential privacy: values of which training makes no numbers."""

    @pytest.mark.parametrize("value", [3e38, -3e38, np.inf, np.nan])
    def test_what_is_no_number_does_not_leave_and_is_in_the_log(self, desk, value):
        arrays = {"weights": np.full(initial_size(desk), value, np.float32)}
        assert refused(desk.ask(arrays=arrays, evaluate=False)) == (REFUSED, "nan")
        assert desk.events()[-1] == "refused"

    def test_large_ones_that_stay_numbers_are_trained_on(self, desk):
        arrays = {"weights": np.full(initial_size(desk), 1e3, np.float32)}
        reply = messages.unpack_reply(desk.ask(arrays=arrays).content)
        assert all(np.isfinite(array).all() for array in reply.arrays.values())


class TestPrivacy:
    PRIVATE = {"privacy": {"epsilon": 2.0, "delta": 1e-4, "method": "full"}, "rounds": 4}

    @pytest.fixture
    def desk(self, desk):
        """Return a hospital that demands differential privacy and keeps account of it in its own folder."""
        desk.rule('minimum = "none"', 'minimum = "dp"')
        ledger = open_ledger(desk.folder)
        hospital = replace(desk.hospital, ledger=ledger)
        desk.gate.hospital, desk.gate.worker = hospital, Seat(Worker(), hospital)
        yield desk
        ledger.close()

    def test_a_run_without_it_is_refused_and_one_with_it_is_answered_charged_and_in_the_log(self, desk):
        assert refused(desk.ask()) == (REFUSED, "privacy")
        assert desk.ask(settings=self.PRIVATE).has_content()
        assert desk.events()[-5:] == ["asked", "allowed", "trained", "spent", "sent"]
        (fields,) = (fields for event, fields in desk.log() if event == "spent")
        (row,) = desk.gate.hospital.ledger.table(1e-4)
        assert fields["epsilon"] == desk.gate.hospital.ledger.spent(1e-4)
        assert (row.charges, row.unused) == (1, 0)

    @pytest.mark.parametrize(
        "claim", [{"epsilon": 4.0}, {"epsilon": 2.0, "delta": 1e-3}, {"epsilon": 2.0, "unit": "hospital"}]
    )
    def test_less_than_is_demanded_is_refused(self, desk, claim):
        assert refused(desk.ask(settings={"privacy": {"delta": 1e-4, **claim}})) == (REFUSED, "privacy")

    def test_what_counts_is_the_epsilon_that_the_hospital_reckons_itself(self, desk, monkeypatch):
        """Were its noise ever less than what the run claims, nothing would be trained."""
        real = private.terms

        def weak(*given):
            terms = real(*given)
            return replace(terms, event=replace(terms.event, noise_multiplier=terms.event.noise_multiplier / 2))

        monkeypatch.setattr(private, "terms", weak)
        for kind in (STATISTICS, TRAIN):
            assert refused(desk.ask(kind, settings=self.PRIVATE | {"seed": 77})) == (REFUSED, "privacy")
        assert desk.gate.hospital.ledger.table(1e-4) == []

    def test_what_is_charged_is_in_the_log_also_where_nothing_leaves(self, desk, monkeypatch):
        monkeypatch.setattr(gate, "_norm", lambda _: np.nan)
        assert refused(desk.ask(settings=self.PRIVATE)) == (REFUSED, "nan")
        assert desk.events()[-3:] == ["trained", "spent", "refused"]

    def test_one_run_may_not_spend_the_budget_of_several(self, desk):
        """Many models in one round, each of which is allowed by itself."""
        size = initial_size(desk)
        answers = [
            desk.ask(settings=self.PRIVATE, arrays={"weights": np.full(size, number, np.float32)})
            for number in range(12)
        ]
        assert refused(answers[-1]) == (REFUSED, "budget")
        assert 2.0 < desk.gate.hospital.ledger.spent(1e-4) <= 3.0
        assert desk.ask(settings=self.PRIVATE | {"seed": 8}).has_content()

    @pytest.mark.parametrize("older", [-1.0, 1.0])
    def test_a_preparation_made_to_overflow_for_some_patients_tells_nothing_of_them(self, desk, older):
        """Scaled such that the square of an age above some bound is no number, whether anybody is above it or not."""
        oldest = float(np.nanmax(desk.hospital.train["age"]))
        preparation = json.loads(str(messages.unpack_request(desk.request()).options["preparation"]))
        preparation["mean"][0], preparation["scale"][0] = (
            0.0,
            (oldest + older) / np.sqrt(float(np.finfo(np.float32).max)),
        )
        answer = desk.ask(
            settings=self.PRIVATE,
            arrays={"weights": np.zeros(initial_size(desk), np.float32)},
            preparation=dumps(preparation),
            evaluate=False,
        )
        assert all(np.isfinite(array).all() for array in messages.unpack_reply(answer.content).arrays.values())

    def test_an_end_that_is_refused_ends_nothing(self, desk):
        desk.ask(settings=self.PRIVATE)
        (key,) = (key for (key,) in desk.gate.hospital.ledger._file.execute("SELECT key FROM charges"))
        desk.rule("metrics = true", "metrics = false")
        assert refused(desk.ask(EVALUATE, settings=self.PRIVATE)) == (REFUSED, "metrics")
        assert key in (desk.folder / "ledger.sqlite").read_bytes()

    def test_when_the_final_model_is_judged_the_key_of_the_last_noise_is_erased(self, desk):
        desk.ask(settings=self.PRIVATE)
        (key,) = (key for (key,) in desk.gate.hospital.ledger._file.execute("SELECT key FROM charges"))
        assert key in (desk.folder / "ledger.sqlite").read_bytes()
        assert desk.ask(EVALUATE, settings=self.PRIVATE).has_content()
        assert key not in (desk.folder / "ledger.sqlite").read_bytes()
        assert desk.gate.hospital.ledger.table(1e-4)[0].charges == 1

    def test_what_the_task_keeps_here_does_not_leave_because_a_run_says_so(self, desk):
        desk.rule('"task.hidden=4"', '"task.hidden=4", "task.site_intercept=true"')
        settings = {"task": {"name": "heart", "hidden": 4, "site_intercept": True}}
        assert refused(desk.ask(settings=self.PRIVATE | settings)) == (REFUSED, "layout")
        assert "trained" not in desk.events()
        judged = desk.ask(EVALUATE, settings=self.PRIVATE | settings)
        assert judged.has_content(), "a model that came whole may be judged"
        assert not messages.unpack_reply(judged.content).arrays

    @pytest.mark.parametrize("pattern", ["all at the limit", "all at minus the limit", "signs in turn"])
    def test_hostile_weights_within_the_range_move_an_update_no_further(self, desk, pattern):
        """Right in shape, extreme in value: the step is charged, finite, and as bounded as any other."""
        size = initial_size(desk)
        signs = {
            "all at the limit": 1.0,
            "all at minus the limit": -1.0,
            "signs in turn": 1.0 - 2.0 * (np.arange(size) % 2),
        }
        weights = np.full(size, LARGEST, np.float32) * np.float32(signs[pattern])
        settings = self.PRIVATE | {"training": {"optimizer": "sgd", "weight_decay": 0.0}}
        answer = desk.ask(settings=settings, arrays={"weights": weights})
        reply, config = messages.unpack_reply(answer.content), desk.base(settings)
        delta = wire.CODECS["float32"].decode(reply.arrays, size)
        noise = private.terms(desk.gate.hospital, config, task_of(config.task)).event.noise_multiplier
        most = config.training.learning_rate * config.privacy.clip_norm * (1 + noise * (np.sqrt(size) + 5) / 60)
        assert np.isfinite(delta).all()
        assert np.linalg.norm(delta) <= most + np.sqrt(size) * np.spacing(np.float32(LARGEST))
        assert desk.gate.hospital.ledger.table(1e-4)[0].charges == 1
        beyond = desk.ask(settings=settings, arrays={"weights": weights * np.float32(1.001)}, number=2)
        assert refused(beyond) == (REFUSED, "range")
        assert desk.gate.hospital.ledger.table(1e-4)[0].charges == 1

    def test_the_budget_of_the_site_ends_it_whatever_the_run_says(self, desk):
        desk.rule("budget = 10.0", "budget = 1.5")
        assert refused(desk.ask(STATISTICS, settings=self.PRIVATE)) == (REFUSED, "budget")
        # A run that claims fewer rounds has less noise in each, and the ledger counts what was released.
        greedy = {**self.PRIVATE, "rounds": 1}
        assert refused(desk.ask(settings=greedy)) == (REFUSED, "budget")
        assert desk.gate.hospital.ledger.table(1e-4) == []

    def test_another_model_for_the_same_round_is_another_charge_until_nothing_is_left(self, desk):
        desk.rule("budget = 10.0", "budget = 3.0")
        weights = {"weights": np.zeros(initial_size(desk), np.float32)}
        answers = []
        for number in range(12):
            arrays = {"weights": weights["weights"] + number}
            answers.append(desk.ask(settings=self.PRIVATE, arrays=arrays))
        good = [answer for answer in answers if answer.has_content()]
        assert 4 <= len(good) < 12
        assert refused(answers[-1]) == (REFUSED, "budget")
        assert desk.gate.hospital.ledger.spent(1e-4) <= 3.0


def initial_size(desk):
    return messages.unpack_request(desk.request()).arrays["weights"].size
