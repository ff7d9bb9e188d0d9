"""The worker: what it answers, what stays at the hospital, and what it keeps compiled."""

import json
import logging
from dataclasses import dataclass, replace

import numpy as np
import pytest

from client import training
from client.app import FAILED, REFUSED, Seat, make_app
from client.hospital import Hospital
from client.worker import Worker
from common import flower, messages, wire
from common.balance import KEY
from common.errors import UpdateRejected
from common.messages import COMPARE, EVALUATE, STATISTICS, TRAIN, Request, group, run_text
from common.network import dumps, initial
from common.tasks import TASKS, task_of
from common.tasks.heart import Heart
from common.tasks.task import take

SECRET = "Erika Mustermann"


@dataclass
class Asked:
    """One hospital that is asked, with what a coordinator would send it."""

    worker: Worker
    hospital: Hospital
    config: object
    preparation: str
    weights: np.ndarray
    local_parts: str = ""
    arrays: dict = None
    state: dict = None

    def answer(self, kind=TRAIN, number=1, *, evaluate=True, **options):
        options = {
            "preparation": self.preparation,
            "local-parts": self.local_parts,
            "server-round": number,
            "attempt": 0,
            "evaluate": evaluate,
            **options,
        }
        request = Request(run_text(self.config), {"weights": self.weights, **(self.arrays or {})}, options)
        return self.worker.answer(kind, self.hospital, request, self.state)


@pytest.fixture
def ask(federation):
    """Return the way to a hospital, by name, under given settings."""

    def asked(name="east", settings=None, local_parts="", worker=None):
        config = federation.config(settings)
        task = task_of(config.task)
        hospital = next(hospital for hospital in federation.hospitals if hospital.name == name)
        preparation = task.fit(task.summarise(hospital.train))
        weights, _ = initial(task, preparation, tuple(filter(None, local_parts.split(","))), config.seed)
        return Asked(worker or federation.worker, hospital, config, dumps(preparation), weights, local_parts, state={})

    return asked


def delta_of(asked, reply):
    own = {name: array for name, array in reply.arrays.items() if not name.startswith("control/")}
    return wire.CODECS[asked.config.update.codec].decode(own, len(asked.weights))


def control_of(asked, reply):
    return wire.CODECS[asked.config.update.codec].decode(group("control", reply.arrays), len(asked.weights))


class TestAnswers:
    def test_statistics_are_counts_and_the_tasks_own(self, ask):
        asked = ask()
        reply = asked.answer(STATISTICS)
        ill = np.asarray(asked.hospital.train["num"]) > 0
        np.testing.assert_array_equal(reply.statistics["count/train"], [(~ill).sum(), ill.sum()])
        expected = task_of(asked.config.task).summarise(asked.hospital.train)
        for name, value in group("task", reply.statistics).items():
            np.testing.assert_array_equal(value, expected[name])
        assert reply.texts == {"hospital": "east"}
        assert reply.num_examples == len(ill)

    def test_an_update_is_the_change_of_the_model_and_its_count(self, ask):
        asked = ask()
        reply = asked.answer()
        delta = delta_of(asked, reply)
        assert delta.shape == asked.weights.shape
        assert np.abs(delta).max() > 1e-3
        assert reply.num_examples == len(asked.hospital.train["num"])
        assert reply.statistics["train/loss"][1] == 3  # 21 patients in batches of 8

    def test_no_learning_is_no_change(self, ask):
        """A step size of almost nothing: what is sent is the difference, not the model."""
        asked = ask(settings={"training": {"learning_rate": 1e-12}})
        assert np.abs(delta_of(asked, asked.answer())).max() < 1e-6

    def test_evaluation_rides_in_the_training_answer_and_judges_the_incoming_model(self, ask):
        asked = ask()
        riding = {name: value for name, value in asked.answer().statistics.items() if name != "train/loss"}
        alone = asked.answer(EVALUATE).statistics
        assert riding.keys() == alone.keys()
        for name, value in riding.items():
            np.testing.assert_array_equal(value, alone[name])
        assert {name.split("/")[0] for name in riding} == {"test", "validation"}
        assert set(asked.answer(evaluate=False).statistics) == {"train/loss"}

    def test_statistics_of_a_model_are_those_of_its_predictions(self, ask):
        asked = ask()
        task = task_of(asked.config.task)
        examples = task.encode(asked.hospital.test, json.loads(asked.preparation))
        from common.network import build

        network = build(task, json.loads(asked.preparation), (), asked.config.seed)
        outputs = network.model(examples.x).numpy()
        expected = task.objective.summarise(examples.y, task.objective.predict(outputs))
        for name, value in group("test", asked.answer(EVALUATE).statistics).items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-4)

    def test_a_hospital_without_test_patients_judges_nothing(self, ask):
        asked = ask()
        nobody = take(asked.hospital.test, np.arange(0))
        asked.hospital = replace(asked.hospital, name="east without tests", test=nobody, validation=nobody)
        assert set(asked.answer().statistics) == {"train/loss"}
        assert asked.answer(EVALUATE).statistics == {}
        asked.arrays = {"other": asked.weights}
        assert asked.answer(COMPARE, **{"other-preparation": asked.preparation}).statistics == {}

    def test_comparing_a_model_with_itself_finds_no_difference(self, ask):
        asked = ask()
        asked.arrays = {"other": asked.weights}
        joint = group("compare", asked.answer(COMPARE, **{"other-preparation": asked.preparation}).statistics)
        differences = task_of(asked.config.task).objective.differences(joint)
        assert differences["accuracy"].value == 0
        asked.arrays = {"other": -5 * asked.weights}
        other = group("compare", asked.answer(COMPARE, **{"other-preparation": asked.preparation}).statistics)
        assert np.abs(other["losses"]).sum() > 0

    @pytest.mark.fault(11, passes_when="a model of another layout is refused")
    def test_a_model_of_another_layout_is_refused(self, ask):
        asked = ask()
        asked.weights = asked.weights[:-1]
        for kind in (TRAIN, EVALUATE):
            with pytest.raises(UpdateRejected, match="shared weights") as caught:
                asked.answer(kind)
            assert caught.value.code == "layout"

    @pytest.mark.parametrize("weights", [None, [1.0], [1.0, 11.0]])
    def test_class_weights_that_are_none_are_refused(self, ask, weights):
        asked = ask(settings={"training": {"class_weights": "balanced"}})
        asked.preparation = dumps({**json.loads(asked.preparation), KEY: weights})
        with pytest.raises(UpdateRejected) as caught:
            asked.answer()
        assert caught.value.code == "class_weights"

    def test_class_weights_that_the_settings_do_not_ask_for_do_nothing(self, ask):
        """Otherwise a policy that allows none could be got round."""
        asked = ask()
        expected = delta_of(asked, asked.answer())
        asked.preparation = dumps({**json.loads(asked.preparation), KEY: [0.1, 10.0]})
        np.testing.assert_array_equal(delta_of(asked, asked.answer()), expected)

    def test_another_round_draws_another_order_and_the_same_round_the_same(self, ask):
        asked = ask()
        one, again, other = (delta_of(asked, asked.answer(number=number)) for number in (1, 1, 2))
        np.testing.assert_array_equal(one, again)
        assert np.abs(one - other).max() > 0


class TestState:
    @pytest.mark.parametrize(
        ("settings", "local_parts", "size"),
        [({"task": {"site_intercept": True}}, "intercept", 1), ({"strategy": "personal"}, "head", 5)],
    )
    def test_a_part_that_stays_is_learnt_kept_and_used_but_never_sent(self, ask, settings, local_parts, size):
        whole = ask(settings=settings)
        asked = ask(settings=settings, local_parts=local_parts)
        assert len(asked.weights) == len(whole.weights) - size
        before = asked.answer(EVALUATE).statistics
        reply = asked.answer()
        assert delta_of(asked, reply).size == len(asked.weights)
        assert sum(array.size for array in reply.arrays.values()) == len(asked.weights)
        assert asked.state["local"].shape == (size,)
        first = asked.state["local"].copy()
        asked.answer(number=2)
        assert np.abs(asked.state["local"] - first).max() > 1e-4
        # The shared part is still the first one: only what stayed here can have changed the statistics.
        assert any((before[name] != value).any() for name, value in asked.answer(EVALUATE).statistics.items())

    def test_a_model_that_keeps_nothing_here_is_judged_without_what_is_kept(self, ask):
        asked = ask()
        expected = asked.answer(EVALUATE).statistics
        asked.state["local"] = np.full(5, 100, np.float32)
        for name, value in asked.answer(EVALUATE).statistics.items():
            np.testing.assert_array_equal(value, expected[name])

    def test_judging_changes_no_state(self, ask):
        asked = ask(settings={"strategy": "personal"}, local_parts="head")
        asked.answer()
        before = {name: array.copy() for name, array in asked.state.items()}
        asked.answer(EVALUATE)
        asked.answer(STATISTICS)
        assert before.keys() == asked.state.keys()
        for name, array in before.items():
            np.testing.assert_array_equal(array, asked.state[name])

    def test_without_anything_to_keep_nothing_is_kept(self, ask):
        asked = ask()
        asked.answer()
        assert asked.state == {}

    def test_scaffolds_control_is_option_two(self, ask):
        asked = ask(settings={"strategy": "scaffold", "training": {"learning_rate": 0.05}})
        control = np.random.default_rng(1).normal(0, 0.1, len(asked.weights)).astype(np.float32)
        asked.arrays = {"control": control}
        own = np.zeros_like(control)
        for number in (1, 2):
            reply = asked.answer(number=number)
            delta, change = delta_of(asked, reply), control_of(asked, reply)
            # c_i+ = c_i - c + (x - y_i) / (K rate): Karimireddy et al. 2020, algorithm 1, line 12 (ii).
            expected = own - control - delta / (3 * 0.05)
            np.testing.assert_allclose(own + change, expected, atol=1e-5)
            np.testing.assert_allclose(asked.state["control"], expected, atol=1e-5)
            own = asked.state["control"].copy()

    def test_scaffolds_correction_is_applied(self, ask):
        asked = ask(settings={"strategy": "scaffold", "training": {"weight_decay": 0.0, "learning_rate": 1e-3}})
        control = np.ones_like(asked.weights)
        asked.arrays = {"control": 0 * control}
        without = delta_of(asked, asked.answer())
        asked.state.clear()
        asked.arrays = {"control": control}
        corrected = delta_of(asked, asked.answer())
        # Three steps of 0.001 against a correction of 1.
        np.testing.assert_allclose(corrected - without, -3e-3 * control, atol=1e-5)

    def test_a_codec_keeps_as_much_of_the_model_as_of_the_control(self, ask):
        """The control may be ten times as large: encoded together, nothing of the model would be left."""
        settings = {
            "strategy": "scaffold",
            "training": {"learning_rate": 0.01},
            "update": {"codec": "topk", "keep": 0.1},
        }
        asked = ask(settings=settings)
        asked.arrays = {"control": np.zeros_like(asked.weights)}
        reply = asked.answer()
        kept = round(0.1 * len(asked.weights))
        assert np.count_nonzero(delta_of(asked, reply)) == np.count_nonzero(control_of(asked, reply)) == kept
        assert asked.state["residual"].shape == asked.state["control/residual"].shape == asked.weights.shape

    @pytest.mark.parametrize("codec", ["int8", "topk"])
    def test_what_a_codec_loses_is_sent_later(self, ask, codec):
        asked = ask(settings={"update": {"codec": codec, "keep": 0.1}})
        exact = ask()
        sent, meant = np.zeros_like(asked.weights), np.zeros_like(asked.weights)
        for number in (1, 2, 3):
            sent += delta_of(asked, asked.answer(number=number))
            meant += delta_of(exact, exact.answer(number=number))
            assert np.abs(asked.state["residual"]).max() > 0
            np.testing.assert_allclose(sent + asked.state["residual"], meant, atol=1e-6)

    def test_fedprox_pulls_towards_the_model_that_came(self, ask):
        free, pulled = (delta_of(asked, asked.answer(proximal=mu)) for asked, mu in ((ask(), 0.0), (ask(), 5.0)))
        assert np.linalg.norm(pulled) < 0.9 * np.linalg.norm(free)


class TestCaches:
    def test_hospitals_of_every_size_share_one_compiled_function(self, federation, monkeypatch):
        compiled = []
        compile_fit = training.compile_fit
        monkeypatch.setattr(training, "compile_fit", lambda *given: compiled.append(given) or compile_fit(*given))
        fresh = replace(federation, worker=Worker())
        assert len({len(hospital.train["num"]) for hospital in fresh.hospitals}) == 4
        fresh.run({"rounds": 3})
        assert len(compiled) == 1
        fresh.run({"rounds": 1, "strategy": "fedprox"})
        assert len(compiled) == 2

    def test_class_weights_of_every_kind_share_one_too(self, ask, monkeypatch):
        compiled = []
        compile_fit = training.compile_fit
        monkeypatch.setattr(training, "compile_fit", lambda *given: compiled.append(given) or compile_fit(*given))
        worker, deltas = Worker(), []
        for weights in ([1.0, 1.0], [0.5, 1.5], [2.0, 0.25]):
            asked = ask(settings={"training": {"class_weights": "balanced"}}, worker=worker)
            asked.preparation = dumps({**json.loads(asked.preparation), KEY: weights})
            deltas.append(delta_of(asked, asked.answer()))
        assert len(compiled) == 1
        assert np.abs(deltas[1] - deltas[0]).max() > 1e-3
        assert np.abs(deltas[2] - deltas[0]).max() > 1e-3
        np.testing.assert_array_equal(deltas[0], delta_of(ask(), ask().answer()))

    def test_tasks_of_one_model_that_augment_otherwise_share_none(self, ask, monkeypatch):
        @dataclass(frozen=True)
        class Scaled:
            factor: int = 1

            def build(self):
                return replace(Heart(hidden=4).build(), name="scaled", augment=lambda x, _seed: x * self.factor)

        monkeypatch.setitem(TASKS, "scaled", Scaled)
        worker = Worker()
        deltas = []
        for factor in (1, 0):
            settings = {"task": {"name": "scaled", "factor": factor}}
            asked = ask(settings=settings, worker=worker)
            deltas.append(delta_of(asked, asked.answer()))
        # Inputs of 0 leave the first layer's weights where they are, but for their decay.
        assert np.abs(deltas[0] - deltas[1]).max() > 1e-3

    def test_who_was_asked_before_changes_no_answer(self, ask):
        worker = Worker()
        asked = [ask(name, worker=worker) for name in ("east", "north", "east", "west", "east")]
        first, _, second, _, third = (delta_of(each, each.answer()) for each in asked)
        np.testing.assert_array_equal(first, second)
        np.testing.assert_array_equal(first, third)

    def test_a_new_preparation_encodes_anew(self, ask):
        asked = ask()
        before = delta_of(asked, asked.answer())
        preparation = json.loads(asked.preparation)
        asked.preparation = dumps({**preparation, "mean": [mean + 50 for mean in preparation["mean"]]})
        assert np.abs(delta_of(asked, asked.answer()) - before).max() > 1e-3


class TestBorder:
    """What leaves the ClientApp when something goes wrong."""

    def send(self, federation, hospital, content=None, kind=TRAIN):
        from flwr.app import Message

        from simulations.hospitals import contexts

        seat = Seat(federation.worker, hospital)
        app = make_app(lambda _context: seat)
        asked = messages.pack_request(run_text(federation.config()), {}, {}) if content is None else content
        with flower.identity(1):
            message = Message(asked, dst_node_id=1, message_type=kind)
            return app(flower.stamp(message, "1", 1, flower.server_node()), contexts(1)[1])

    def test_the_text_of_an_error_stays_at_the_hospital(self, federation, caplog):
        hospital = federation.hospitals[0]
        broken = replace(hospital, train={**hospital.train, "age": np.array([SECRET] * len(hospital.train["age"]))})
        with caplog.at_level(logging.ERROR):
            reply = self.send(federation, broken, kind=STATISTICS)
        assert SECRET in caplog.text, "the hospital's own log should say what went wrong"
        assert (reply.error.code, reply.error.reason) == (FAILED, "failed")
        assert SECRET not in str(reply)

    def test_a_refusal_is_a_code(self, federation):
        size = np.zeros(3, np.float32)
        options = {
            "preparation": dumps({"mean": [0.0] * 20, "scale": [1.0] * 20}),
            "local-parts": "",
            "evaluate": True,
            "server-round": 1,
        }
        content = messages.pack_request(run_text(federation.config()), {"weights": size}, options)
        reply = self.send(federation, federation.hospitals[0], content)
        assert (reply.error.code, reply.error.reason) == (REFUSED, "layout")

    def test_a_request_for_settings_that_are_wrong_is_refused(self, federation):
        content = messages.pack_request('{"task": {"name": "hart"}}', {}, {})
        reply = self.send(federation, federation.hospitals[0], content, STATISTICS)
        assert (reply.error.code, reply.error.reason) == (REFUSED, "ConfigError")

    def test_a_request_without_a_model_fails(self, federation):
        assert self.send(federation, federation.hospitals[0]).error.reason == "failed"
