"""The round loop under good and bad hospitals: a bad one costs its own update, bit for bit, and nothing else."""

import json
import math
import time
from dataclasses import asdict, replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score, recall_score
from sklearn.utils.class_weight import compute_class_weight

from common import messages, wire
from common.config import Choice
from common.errors import ConfigError, QuorumError
from common.network import build, initial
from common.tasks import read_run, task_of
from common.tasks.heart import TABLE
from common.tasks.task import take
from server import models, rounds
from server.plan import Plan
from server.records import RoundRecord, sha256
from server.results import results_of

BAD, ROUND = "south", 2
SECRET = "Erika Mustermann"
LIMITS = {"limits": {"update_norm": 50.0, "examples": 1000}}


def round_of(message):
    return message.content["config"].get("server-round") if message.metadata.message_type == messages.TRAIN else None


def in_round(number, change, kind=messages.TRAIN):
    """Return a script that is honest but in one round, where ``change`` makes another answer of the honest one."""

    def script(message, answer):
        if message.metadata.message_type != kind or (kind == messages.TRAIN and round_of(message) != number):
            return answer()
        return change(message, answer())

    return script


def replaced(record, contents):
    """Return a change that exchanges one record of the answer; ``contents`` makes it of the one that was there."""

    def change(_message, reply):
        reply.content[record] = contents(reply.content[record])
        return reply

    return change


def values(contents):
    """Return a change of the update's one array."""
    return replaced(
        "arrays", lambda record: wire.to_record({"values": contents(wire.from_record(record)["values"].copy())})
    )


def put(place, number):
    def contents(vector):
        vector[place] = number
        return vector

    return values(contents)


def count(number):
    return replaced("metrics", lambda _: MetricRecord({"num-examples": number}))


def statistics(change):
    return replaced("statistics", lambda record: messages.pack_statistics(change(messages.unpack_statistics(record))))


def without(name):
    return lambda arrays: {key: value for key, value in arrays.items() if key != name}


def failed(code, reason):
    return lambda message, _reply: Message(Error(code, reason), reply_to=message)


def emptied(message, _reply):
    return Message(RecordDict(), reply_to=message)


def raw(dtype, shape, data):
    def contents(_record):
        record = ArrayRecord()
        record["values"] = Array(dtype, shape, wire.RAW, data)
        return record

    return replaced("arrays", contents)


CHANGES = {
    "missing array": (replaced("arrays", lambda _: ArrayRecord()), "missing"),
    "extra array": (
        replaced("arrays", lambda r: wire.to_record({**wire.from_record(r), SECRET: np.ones(1, np.float32)})),
        "extra",
    ),
    "too short": (values(lambda vector: vector[:-1]), "shape"),
    "two-dimensional": (values(lambda vector: vector[None]), "shape"),
    "bytes that do not fit": (raw("float32", (10**6,), b"\0" * 8), "shape"),
    "float64": (values(lambda vector: vector.astype(np.float64)), "dtype"),
    "objects": (raw("object", (1,), b"\0" * 8), "dtype"),
    "nan": (put(3, np.nan), "nan"),
    "inf": (put(-1, -np.inf), "inf"),
    "nan and inf": (
        values(lambda vector: np.where(np.arange(vector.size) % 2, np.inf, np.nan).astype(np.float32)),
        "nan",
    ),
    "1e9": (values(lambda vector: vector + np.float32(1e9)), "norm"),
    "beyond float32": (values(lambda vector: vector + np.float32(1e30)), "norm"),
    "count 0": (count(0), "count"),
    "count negative": (count(-5), "count"),
    "count huge": (count(1001), "count"),
    "count a fraction": (count(21.0), "count"),
    "count NaN": (count(math.nan), "count"),
    "extra metric": (replaced("metrics", lambda _: MetricRecord({"num-examples": 9, SECRET: 1.0})), "extra"),
    "no metric": (replaced("metrics", lambda _: MetricRecord()), "missing"),
    "extra statistic": (statistics(lambda arrays: {**arrays, f"test/{SECRET}": np.ones(1)}), "extra"),
    "no loss": (statistics(without("train/loss")), "missing"),
    "half of the test statistics": (statistics(without("test/losses")), "missing"),
    "statistic of another shape": (statistics(lambda arrays: {**arrays, "train/loss": np.ones(3)}), "shape"),
    "statistic NaN": (statistics(lambda arrays: {**arrays, "train/loss": np.array([np.nan, 1.0])}), "dtype"),
    "statistic float32": (statistics(lambda arrays: {**arrays, "train/loss": np.ones(2, np.float32)}), "dtype"),
    "statistic negative": (statistics(lambda arrays: {**arrays, "train/loss": np.array([1.0, -2.0])}), "range"),
    "statistic huge": (statistics(lambda arrays: {**arrays, "test/losses": np.full((2, 2), 1e308)}), "range"),
    "extra record": (
        lambda _, reply: Message(RecordDict({**reply.content, SECRET: ConfigRecord()}), reply_to=_),
        "extra",
    ),
    "nothing": (emptied, "missing"),
    "an error": (failed(2, "failed"), "failed"),
    "an error in words": (failed(2, f"ValueError: row 17, {SECRET}, age 60"), "error"),
}


@pytest.fixture(scope="module")
def honest(federation):
    """The run in which nobody is bad."""
    return federation.run(LIMITS)


@pytest.fixture(scope="module")
def without_bad(federation):
    """The run in which the bad hospital is not asked in the round in which it would be bad."""
    select = rounds.Coordinator.select

    def others(coordinator, number):
        return [name for name in select(coordinator, number) if (name, number) != (BAD, ROUND)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds.Coordinator, "select", others)
        return federation.run(LIMITS)


def dropped(outcome):
    return [(record.round, row.hospital, row.reason) for record in outcome.rounds for row in record.dropped]


def text_of(outcome):
    return json.dumps([asdict(record) for record in outcome.rounds])


class TestBadUpdates:
    def test_the_references_differ(self, honest, without_bad):
        assert dropped(honest) == dropped(without_bad) == []
        assert BAD in honest.rounds[ROUND - 1].answered
        assert BAD not in without_bad.rounds[ROUND - 1].asked
        assert sha256(honest.model.weights) != sha256(without_bad.model.weights)

    @pytest.mark.parametrize("name", CHANGES)
    @pytest.mark.fault(
        10,
        passes_when="every kind of bad answer is dropped with its code; the weights are those without that hospital",
    )
    def test_it_is_dropped_with_its_code_and_leaves_no_trace(self, federation, without_bad, name):
        change, code = CHANGES[name]
        outcome = federation.run(LIMITS, {BAD: in_round(ROUND, change)})
        assert dropped(outcome) == [(ROUND, BAD, code)]
        assert [BAD in record.answered for record in outcome.rounds] == [True, False, True]
        assert sha256(outcome.model.weights) == sha256(without_bad.model.weights)
        assert SECRET not in text_of(outcome)
        for ours, theirs in zip(outcome.rounds, without_bad.rounds, strict=True):
            assert (ours.metrics, ours.train_loss, ours.examples) == (
                theirs.metrics,
                theirs.train_loss,
                theirs.examples,
            )

    def test_no_answer_until_the_deadline(self, federation, without_bad):
        grid = Muffled(federation.grid(), lambda message: round_of(message) == ROUND and goes_to(grid, message, BAD))
        begun = time.monotonic()
        outcome = federation.run({"limits": {**LIMITS["limits"], "deadline_seconds": 1.0}}, grid=grid)
        assert time.monotonic() - begun >= 1.0
        assert dropped(outcome) == [(ROUND, BAD, "late")]
        assert sha256(outcome.model.weights) == sha256(without_bad.model.weights)

    @pytest.mark.fault(10, passes_when="an update that would overflow the sum")
    def test_without_a_cap_a_large_update_counts_but_one_that_would_overflow_the_sum_does_not(self, federation):
        scripts = {BAD: in_round(ROUND, values(lambda vector: vector + np.float32(100)))}
        assert dropped(federation.run({}, scripts)) == []
        scripts = {BAD: in_round(ROUND, values(lambda vector: vector + np.float32(1e38)))}
        outcome = federation.run({}, scripts)
        assert dropped(outcome) == [(ROUND, BAD, "norm")]
        assert np.isfinite(outcome.model.weights).all()

    @pytest.mark.fault(10, passes_when="two bad hospitals in every round")
    def test_two_bad_ones_in_every_round(self, federation):
        always = lambda change: lambda message, answer: change(message, answer()) if round_of(message) else answer()  # noqa: E731
        outcome = federation.run(LIMITS, {"east": always(put(0, np.nan)), "west": always(count(-1))})
        assert dropped(outcome) == [(n, *row) for n in (1, 2, 3) for row in (("east", "nan"), ("west", "count"))]
        assert all(record.answered == ["north", "south"] for record in outcome.rounds)

    @given(st.dictionaries(st.sampled_from(["confusion", "calibration", "losses"]), st.integers(0, 2**32), min_size=1))
    def test_statistics_that_contradict_themselves_stop_nothing(self, seeds):
        task = task_of(Choice("heart"))
        judged = dict(
            task.objective.summarise(np.array([0, 1, 1], np.int32), np.array([[0.9, 0.1], [0.3, 0.7], [0.6, 0.4]]))
        )
        for name, seed in seeds.items():
            draw = np.random.default_rng(seed)
            judged[name] = draw.choice([0.0, 1.0, 7.0, 1e12], judged[name].shape)
        with np.errstate(all="ignore"):
            results = results_of(task, {"east": judged})
            known = [number for number in task.objective.values(judged).values() if number is not None]
        assert all(math.isfinite(number) for number in known)
        json.dumps([results.pooled, results.hospitals, results.curves], allow_nan=False)


def goes_to(grid, message, name):
    """Tell whether a message is for the hospital of that name: nodes are numbered from 1 in the order of the names."""
    return message.metadata.dst_node_id == 1 + ["east", "north", "south", "west"].index(name)


class Muffled:
    """A grid on which the answers to some messages never come."""

    def __init__(self, grid, muffles):
        self._grid, self._muffles, self._lost = grid, muffles, set()
        self.run, self.get_node_ids = grid.run, grid.get_node_ids

    def push_messages(self, messages):
        messages = list(messages)
        names = self._grid.push_messages(messages)
        self._lost |= {name for name, message in zip(names, messages, strict=True) if self._muffles(message)}
        return names

    def pull_messages(self, names):
        return self._grid.pull_messages([name for name in names if name not in self._lost])


class Disordered(Muffled):
    """A grid whose answers are made in a drawn order, and come only when they were asked for some times."""

    def __init__(self, grid, seed):
        super().__init__(grid, lambda _message: False)
        self._draw, self._answers, self._patience = np.random.default_rng(seed), {}, {}

    def push_messages(self, messages):
        names = super().push_messages(messages)
        for index in self._draw.permutation(len(names)):
            self._answers[names[index]] = self._grid.pull_messages([names[index]])
            self._patience[names[index]] = int(self._draw.integers(3))
        return names

    def pull_messages(self, names):
        (name,) = names
        self._patience[name] -= 1
        return [] if self._patience[name] >= 0 else self._answers.pop(name)


class TestOrder:
    @pytest.mark.parametrize("seed", [1, 2])
    def test_answers_in_any_order_give_the_same_bits(self, federation, honest, seed):
        outcome = federation.run(LIMITS, grid=Disordered(federation.grid(), seed))
        assert sha256(outcome.model.weights) == sha256(honest.model.weights)
        assert [record.metrics for record in outcome.rounds] == [record.metrics for record in honest.rounds]

    def test_nodes_in_any_order_give_the_same_bits(self, federation, honest):
        turned = replace(federation, hospitals=federation.hospitals[::-1])
        assert sha256(turned.run(LIMITS).model.weights) == sha256(honest.model.weights)


class TestQuorum:
    def broken(self, attempts):
        """Return a script that fails in the round's first attempts."""

        def script(message, answer):
            bad = round_of(message) == ROUND and message.content["config"]["attempt"] < attempts
            return Message(Error(2, "failed"), reply_to=message) if bad else answer()

        return script

    def settings(self, retries):
        return {"limits": {"quorum": 1.0, "retries": retries}}

    def test_those_that_failed_are_asked_again_and_nobody_else(self, federation, honest):
        outcome = federation.run(self.settings(2), {BAD: self.broken(2)})
        record = outcome.rounds[ROUND - 1]
        assert dropped(outcome) == [(ROUND, BAD, "failed")] * 2
        assert sorted(record.answered) == record.asked
        assert record.bytes_down == 6 / 4 * outcome.rounds[0].bytes_down
        # The same sum in another order.
        np.testing.assert_allclose(outcome.model.weights, honest.model.weights, atol=1e-6)

    def test_the_run_stops_when_retries_do_not_help_and_says_why(self, federation):
        with pytest.raises(QuorumError, match=r"round 2: 3 of 4 .* 4 are needed; south: failed \(south: an error"):
            federation.run(self.settings(1), {BAD: self.broken(2)})

    def test_training_that_diverges_everywhere_is_told_with_its_cure(self, federation):
        settings = {"training": {"learning_rate": 1e6, "learning_rate_decay": 1.0, "epochs": 9}}
        with pytest.raises(QuorumError, match=r"0 of 4 .*east: \w+, .*take a smaller training.learning_rate\)$"):
            federation.run({**settings, "limits": {"update_norm": 10.0}})

    def test_what_was_finished_stays_and_the_run_goes_on_from_there(self, federation, honest, tmp_path):
        with pytest.raises(QuorumError):
            federation.run(self.settings(0), {BAD: self.broken(1)}, folder=tmp_path)
        assert models.load(tmp_path / models.NAME).facts["rounds"] == ROUND - 1
        outcome = federation.run(self.settings(0), folder=tmp_path)
        assert sha256(outcome.model.weights) == sha256(honest.model.weights)

    def test_below_the_quorum_nothing_is_aggregated(self, federation, tmp_path):
        scripts = {name: self.broken(9) for name in ("east", "north", "west")}
        with pytest.raises(QuorumError, match=r"1 of 4 .* 2 are needed"):
            federation.run({"limits": {"quorum": 0.5}}, scripts, folder=tmp_path)
        assert models.load(tmp_path / models.NAME).facts["rounds"] == ROUND - 1

    def test_a_federation_that_is_too_small_does_not_start(self, federation):
        settings = {"selection": {"minimum": 5}, "limits": {"deadline_seconds": 0.2}}
        with pytest.raises(QuorumError, match=r"4 hospitals are here, and selection.minimum asks for 5"):
            federation.run(settings)

    def test_a_strategy_gets_the_updates_it_needs(self, federation):
        scripts = {name: self.broken(9) for name in ("north", "west")}
        with pytest.raises(QuorumError, match=r"round 2: 2 of 4 .* 3 are needed"):
            federation.run({"strategy": {"name": "krum", "byzantine": 0}, "limits": {"quorum": 0.1}}, scripts)


class TestEnrolment:
    @pytest.mark.parametrize(
        "change",
        [
            failed(2, SECRET),
            emptied,
            replaced("config", lambda _: ConfigRecord()),
            statistics(lambda arrays: {**arrays, "task/sum": arrays["task/sum"] * np.nan}),
            statistics(lambda arrays: {**arrays, "task/sum": arrays["task/sum"][1:]}),
            statistics(without("task/count")),
            statistics(without("count/test")),
            statistics(lambda arrays: {**arrays, "count/test": -1.0 * arrays["count/test"]}),
        ],
    )
    def test_a_hospital_that_can_not_be_understood_is_left_out(self, federation, change, caplog):
        outcome = federation.run({}, {BAD: in_round(0, change, messages.STATISTICS)})
        expected = federation.without(BAD).run()
        assert [member.name for member in outcome.members] == ["east", "north", "west"]
        assert outcome.model.preparation == expected.model.preparation
        assert sha256(outcome.model.weights) == sha256(expected.model.weights)
        assert "left out of the run" in caplog.text
        assert SECRET not in caplog.text

    def test_a_second_hospital_of_the_same_name_does_not_take_the_firsts_place(self, federation):
        thief = replaced("config", lambda _: ConfigRecord({"hospital": "east"}))
        outcome = federation.run({}, {BAD: in_round(0, thief, messages.STATISTICS)})
        assert outcome.model.preparation == federation.without(BAD).run().model.preparation

    def test_counts_are_those_of_the_hospitals(self, federation, honest):
        for member, hospital in zip(honest.members, federation.hospitals, strict=True):
            assert member.name == hospital.name
            for part in ("train", "validation", "test"):
                ill = np.asarray(getattr(hospital, part)["num"]) > 0
                assert getattr(member, part).classes == [int((~ill).sum()), int(ill.sum())]
                assert getattr(member, part).rows == len(ill)

    @pytest.mark.parametrize("change", [failed(2, SECRET), emptied, statistics(without("test/losses"))])
    def test_a_bad_answer_to_the_last_question_costs_that_answer(self, federation, honest, change):
        outcome = federation.run(LIMITS, {BAD: in_round(0, change, messages.EVALUATE)})
        assert set(outcome.tests) == {"east", "north", "west"}
        for name, parts in outcome.tests.items():
            for key, value in parts.items():
                np.testing.assert_array_equal(value, honest.tests[name][key])


class Late(Muffled):
    """A grid on which one hospital's node comes only when told to."""

    def __init__(self, federation, name):
        super().__init__(federation.grid(), lambda _message: False)
        names = [hospital.name for hospital in federation.hospitals]
        self.here, self._late = False, self._grid.get_node_ids()[names.index(name)]
        self.get_node_ids = lambda: [node for node in self._grid.get_node_ids() if self.here or node != self._late]

    def watch(self, record):
        self.here = record.round >= ROUND


class TestLate:
    SETTINGS = {"rounds": 4}

    def test_a_hospital_that_comes_in_mid_run_is_in_it_from_the_next_round_on(self, federation):
        grid, others = Late(federation, BAD), federation.without(BAD)
        weights = []

        def watch(record):
            grid.watch(record)
            weights.append(record.update_norm)

        outcome = federation.run(self.SETTINGS, grid=grid, watch=watch)
        assert [BAD in record.answered for record in outcome.rounds] == [False, False, True, True]
        assert [member.name for member in outcome.members] == ["east", "north", "south", "west"]
        assert BAD in outcome.tests
        before = others.run(self.SETTINGS)
        assert outcome.model.preparation == before.model.preparation
        assert weights[:ROUND] == [record.update_norm for record in before.rounds[:ROUND]]

    def test_a_run_that_goes_on_has_it_too_and_ends_with_the_same_bits(self, federation, tmp_path):
        grid, again = Late(federation, BAD), Late(federation, BAD)

        def stop(record):
            grid.watch(record)
            if record.round == 4:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            federation.run(self.SETTINGS, grid=grid, folder=tmp_path, watch=stop)
        resumed = federation.run(self.SETTINGS, folder=tmp_path)
        whole = federation.run(self.SETTINGS, grid=again, watch=again.watch)
        assert sha256(resumed.model.weights) == sha256(whole.model.weights)

    def test_one_that_was_left_out_is_not_asked_again_and_again(self, federation):
        asked = []

        def script(message, answer):
            if message.metadata.message_type == messages.STATISTICS:
                asked.append(message)
            return failed(2, "failed")(message, answer())

        federation.run(self.SETTINGS, {BAD: script})
        assert len(asked) == 1

    @pytest.mark.parametrize(
        "settings",
        [
            {"strategy": {"name": "scaffold"}},
            {"secure": {"aggregation": True}, "selection": {"minimum": 2}},
            {"privacy": {"epsilon": 5.0, "delta": 0.01}, "training": {"optimizer": "sgd"}},
        ],
        ids=["scaffold", "secure sums", "privacy"],
    )
    def test_nobody_joins_what_is_over_those_who_were_there(self, federation, settings):
        grid = Late(federation, BAD)
        outcome = federation.run({**self.SETTINGS, **settings}, grid=grid, watch=grid.watch)
        assert not any(BAD in record.asked for record in outcome.rounds)


class TestOracle:
    def test_federated_moments_are_those_of_all_patients_in_one_place(self, federation, honest):
        pooled = np.concatenate([TABLE.expand(hospital.train) for hospital in federation.hospitals])
        preparation = json.loads(honest.model.preparation)
        np.testing.assert_allclose(preparation["mean"], np.nanmean(pooled, axis=0), rtol=1e-12)
        np.testing.assert_allclose(preparation["scale"], np.nanstd(pooled, axis=0), rtol=1e-9)

    @pytest.mark.parametrize("class_weights", ["none", "balanced"])
    def test_one_round_of_fedavg_is_that_of_numpy_in_float64(self, federation, class_weights):
        settings = {
            "task": {"name": "heart", "model": "logistic"},
            "rounds": 1,
            "training": {"batch_size": 64, "epochs": 3, "class_weights": class_weights},
        }
        outcome = federation.run(settings)
        config, task = outcome.coordinator.config, outcome.coordinator.plan.task
        preparation = json.loads(outcome.model.preparation)
        start, layout = initial(task, preparation, (), config.seed)
        assert [entry.path for entry in layout.entries] == ["output/kernel", "output/bias"]
        labels = np.concatenate([task.classify(hospital.train) for hospital in federation.hospitals])
        balance = {"none": np.ones(2), "balanced": compute_class_weight("balanced", classes=np.arange(2), y=labels)}
        weight = balance[class_weights]
        assert preparation.get("class_weights", [1, 1]) == pytest.approx(weight.tolist())
        total, patients = np.zeros(start.size), 0
        for hospital in federation.hospitals:
            examples = task.encode(hospital.train, preparation)
            x, weights = examples.x.astype(np.float64), start.astype(np.float64)
            for _ in range(3):
                error = 1 / (1 + np.exp(-(x @ weights[:-1] + weights[-1]))) - examples.y
                error *= weight[examples.y]
                gradient = np.append(x.T @ error, error.sum()) / len(x)
                gradient[:-1] += config.training.weight_decay * weights[:-1]
                weights = weights - config.training.learning_rate * gradient
            total += len(x) * weights
            patients += len(x)
        np.testing.assert_allclose(outcome.model.weights, total / patients, atol=1e-6)
        assert np.abs(outcome.model.weights - start).max() > 1e-2
        assert outcome.rounds[0].examples == patients

    def test_metrics_of_a_round_judge_the_model_it_started_from(self, federation, honest):
        two = federation.run({**LIMITS, "rounds": 2})
        task = two.coordinator.plan.task
        merged = rounds.total(two.tests.values())
        assert honest.rounds[2].metrics == task.objective.values(merged)

    def test_bytes_are_those_of_the_arrays(self, honest):
        size = honest.model.weights.nbytes
        assert honest.rounds[0].bytes_down == 4 * size
        assert honest.rounds[0].bytes_up > 4 * size

    def test_the_step_size_decays_from_round_to_round(self, federation):
        """A step size of next to nothing from round 2 on leaves what round 1 brought."""
        one = federation.run({"rounds": 1})
        three = federation.run({"rounds": 3, "training": {"learning_rate_decay": 1e-6}})
        np.testing.assert_allclose(three.model.weights, one.model.weights, atol=1e-4)


class TestThreshold:
    SETTINGS = {"evaluation": {"validation": 0.2, "threshold": "youden"}}

    def predictions(self, outcome, records):
        """Return labels and probabilities of illness by plain Keras."""
        task, preparation = outcome.coordinator.plan.task, json.loads(outcome.model.preparation)
        network = build(task, preparation, (), outcome.coordinator.config.seed)
        network.assign(outcome.model.weights, network.vectors()[1])
        examples = task.encode(records, preparation)
        return examples.y, task.objective.predict(network.model(examples.x).numpy())[:, 1]

    def pooled(self, outcome, hospitals, part):
        found = [self.predictions(outcome, getattr(hospital, part)) for hospital in hospitals]
        return (np.concatenate(column) for column in zip(*found, strict=True))

    @pytest.mark.parametrize(("rule", "merit"), [("youden", balanced_accuracy_score), ("f1", f1_score)])
    def test_it_is_best_on_all_validation_patients_and_test_patients_are_counted_at_it(self, federation, rule, merit):
        settings = {"evaluation": {"validation": 0.2, "threshold": rule}, "training": {"epochs": 5}}
        outcome = federation.run(settings)
        at = outcome.model.threshold
        labels, scores = self.pooled(outcome, federation.hospitals, "validation")
        best = max(merit(labels, scores >= edge) for edge in np.concatenate([scores, scores + 1e-9]))
        assert merit(labels, scores >= at) == pytest.approx(best)
        labels, scores = self.pooled(outcome, federation.hospitals, "test")
        table = confusion_matrix(labels, scores >= at)
        found = results_of(outcome.coordinator.plan.task, outcome.tests)
        np.testing.assert_array_equal(found.curves["confusion"], table)
        assert found.pooled["recall"][0] == pytest.approx(recall_score(labels, scores >= at))
        assert (table != confusion_matrix(labels, scores > 0.5)).any(), "one half would have done"

    def test_test_patients_cannot_move_it(self, federation):
        """Others in their place change what is judged, and not what is decided."""
        moved = [replace(hospital, test=take(hospital.train, np.arange(5))) for hospital in federation.hospitals]
        one, other = federation.run(self.SETTINGS), replace(federation, hospitals=moved).run(self.SETTINGS)
        assert one.model.threshold == other.model.threshold
        assert sha256(one.model.weights) == sha256(other.model.weights)
        assert one.tests["east"]["confusion"].tolist() != other.tests["east"]["confusion"].tolist()

    def test_validation_patients_move_it_and_nothing_else(self, federation, honest):
        one = federation.run({**LIMITS, **self.SETTINGS})
        moved = [replace(hospital, validation=hospital.train) for hospital in federation.hospitals]
        other = replace(federation, hospitals=moved).run({**LIMITS, **self.SETTINGS})
        assert one.model.threshold != other.model.threshold
        assert sha256(one.model.weights) == sha256(other.model.weights) == sha256(honest.model.weights)
        assert one.rounds[-1].metrics == honest.rounds[-1].metrics

    def test_without_validation_patients_the_more_probable_class_is_said(self, federation, honest, caplog):
        nobody = [replace(each, validation=take(each.validation, np.arange(0))) for each in federation.hospitals]
        outcome = replace(federation, hospitals=nobody).run({**LIMITS, **self.SETTINGS})
        assert outcome.model.threshold is None
        assert "no threshold is chosen, for want of validation patients of both classes" in caplog.text
        np.testing.assert_array_equal(outcome.tests["east"]["confusion"], honest.tests["east"]["confusion"])

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"task": "cells"}, "'cells' does not sort patients into two"),
            ({"task": {"name": "readmission", "target": "stay"}}, "'readmission' does not sort"),
            ({"task": "survival"}, "'survival' does not sort"),
            ({"task": "heart", "evaluation": {"threshold": "f1"}}, "set evaluation.validation"),
            ({"task": "heart", "privacy": {"epsilon": 3.0}}, "no epsilon covers that"),
            ({"task": "heart", "privacy": {"epsilon": 3.0, "unit": "hospital"}}, "no epsilon covers that"),
        ],
    )
    def test_it_is_refused_where_it_means_nothing_or_would_tell(self, settings, words):
        with pytest.raises(ConfigError, match=rf"^evaluation\.threshold: .*{words}"):
            _ = Plan(read_run({**self.SETTINGS, **settings})).strategy


class TestSelection:
    def coordinator(self, settings, count=10):
        config = read_run({"task": "heart", **settings})
        names = [f"h{number}" for number in range(count)]
        return rounds.Coordinator(None, Plan(config), rounds.Fleet(dict.fromkeys(names, 0), [], {}), "", "")

    def draws(self, seed, **selection):
        coordinator = self.coordinator({"seed": seed, "selection": selection})
        return [coordinator.select(number) for number in range(1, 30)]

    def test_it_follows_from_seed_and_round_alone(self):
        one = self.draws(1, fraction=0.3)
        assert one == self.draws(1, fraction=0.3)
        assert one != self.draws(2, fraction=0.3)
        assert len({tuple(names) for names in one}) > 10

    def test_share_and_minimum(self):
        assert {len(names) for names in self.draws(1, fraction=0.3)} == {3}
        assert {len(names) for names in self.draws(1, fraction=0.01)} == {1}
        assert {len(names) for names in self.draws(1, fraction=0.01, minimum=4)} == {4}
        assert {len(names) for names in self.draws(1, fraction=0.1, minimum=99)} == {10}

    def test_names_are_in_order_once_each_and_everybody_has_a_turn(self):
        drawn = self.draws(1, fraction=0.3)
        assert all(names == sorted(set(names)) for names in drawn)
        assert len({name for names in drawn for name in names}) == 10

    def test_only_those_drawn_take_part(self, federation):
        outcome = federation.run({"selection": {"fraction": 0.5}, "rounds": 4})
        for record in outcome.rounds:
            assert record.answered == record.asked == outcome.coordinator.select(record.round)
            assert len(record.asked) == 2
        assert len({tuple(record.asked) for record in outcome.rounds}) > 1


class TestStopping:
    SETTINGS = {"rounds": 9, "stopping": {"patience": 2}, "evaluation": {"validation": 0.2}}
    LOSSES = (5.0, 4.0, 3.0, 6.0, 7.0, 1.0, 1.0, 1.0, 1.0)

    def told(self, federation, losses=LOSSES):
        """Return scripts with which the validation loss of each round is as told."""

        def rewrite(message, answer):
            reply = answer()
            if round_of(message) and "validation/losses" in messages.unpack_statistics(reply.content["statistics"]):

                def change(arrays):
                    count = arrays["validation/confusion"].sum()
                    return {**arrays, "validation/losses": np.full((2, 2), losses[round_of(message) - 1] * count)}

                statistics(change)(message, reply)
            return reply

        return dict.fromkeys([hospital.name for hospital in federation.hospitals], rewrite)

    def test_it_stops_and_keeps_the_best_model(self, federation):
        outcome = federation.run(self.SETTINGS, self.told(federation))
        assert outcome.stopped == "patience"
        assert [record.validation_loss for record in outcome.rounds] == pytest.approx([5, 4, 3, 6, 7])
        # Round 3 had the lowest loss; it judged the model that two rounds made.
        best = federation.run({**self.SETTINGS, "rounds": 2, "stopping": {"patience": 0}})
        assert outcome.trained == 2
        assert sha256(outcome.model.weights) == sha256(best.model.weights)

    def test_it_keeps_the_best_model_over_an_interruption(self, federation, tmp_path):
        def stop(record):
            if record.round == 4:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            federation.run(self.SETTINGS, self.told(federation), folder=tmp_path, watch=stop)
        outcome = federation.run(self.SETTINGS, self.told(federation), folder=tmp_path)
        assert outcome.stopped == "patience"
        best = federation.run({**self.SETTINGS, "rounds": 2, "stopping": {"patience": 0}})
        assert sha256(outcome.model.weights) == sha256(best.model.weights)

    def test_a_fall_below_min_delta_is_no_gain(self, federation):
        settings = {**self.SETTINGS, "stopping": {"patience": 2, "min_delta": 2.5}}
        outcome = federation.run(settings, self.told(federation))
        assert len(outcome.rounds) == 3  # neither 4 nor 3 is far enough below 5

    def test_rounds_that_judge_nothing_do_not_stop_it(self, federation):
        settings = {**self.SETTINGS, "evaluation": {"validation": 0.2, "every": 4}, "stopping": {"patience": 3}}
        outcome = federation.run(settings, self.told(federation, (5.0, 0, 0, 0, 4.0, 0, 0, 0, 6.0)))
        assert (len(outcome.rounds), outcome.stopped) == (9, "rounds")

    def test_without_patience_it_runs_to_the_end(self, federation):
        outcome = federation.run({"rounds": 4, "evaluation": {"validation": 0.2}}, self.told(federation))
        assert (len(outcome.rounds), outcome.stopped) == (4, "rounds")


class TestSettings:
    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"task": {"name": "readmission", "target": "stay"}}, "'readmission' does not sort patients into classes"),
            ({"task": {"name": "survival", "model": "neural"}}, "'survival' does not sort"),
            ({"task": "treatment-next"}, "'treatment-next' does not sort"),
            ({"task": "treatment-match"}, "'treatment-match' does not sort"),
            ({"task": "splice"}, "'splice' fits this model by sums over patients"),
            ({"task": "heart", "privacy": {"epsilon": 3.0}}, "no noise covers that"),
        ],
    )
    def test_class_weights_are_refused_where_they_mean_nothing_or_would_tell(self, settings, words):
        with pytest.raises(ConfigError, match=rf"^training\.class_weights: .*{words}"):
            _ = Plan(read_run({"training": {"class_weights": "balanced"}, **settings})).strategy

    @pytest.mark.parametrize(
        "settings", [{"task": "cells"}, {"task": {"name": "splice", "model": "svm"}}, {"task": "icu"}]
    )
    def test_class_weights_are_for_every_task_that_is_trained_on_classes(self, settings):
        assert Plan(read_run({"training": {"class_weights": "balanced"}, **settings})).strategy

    def test_a_part_that_the_model_does_not_have_is_refused_before_anyone_is_asked(self, federation):
        asked = []
        scripts = {"east": lambda message, answer: asked.append(message) or answer()}
        with pytest.raises(ConfigError, match=r"'fedbn' keeps the part 'normalisation' .* its parts: head, intercept"):
            federation.run({"strategy": "fedbn"}, scripts)
        assert not asked

    def test_evaluation_every_so_many_rounds(self, federation):
        outcome = federation.run({"rounds": 4, "evaluation": {"every": 3}})
        assert [bool(record.metrics) for record in outcome.rounds] == [True, False, False, True]
        outcome = federation.run({"rounds": 2, "evaluation": {"every": 0}})
        assert [bool(record.metrics) for record in outcome.rounds] == [False, False]
        assert set(outcome.tests) == {"east", "north", "south", "west"}

    def test_records_survive_json(self, honest):
        for record in honest.rounds:
            assert RoundRecord.from_facts(json.loads(json.dumps(asdict(record)))) == record
