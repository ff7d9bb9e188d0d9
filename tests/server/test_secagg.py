"""Secure sums in the round loop: the same model, sums alone at the coordinator, and hospitals that fail at any step."""

from collections import Counter

import numpy as np
import pytest
from flwr.app import Error, Message

from common import messages, wire
from common.config import SecureConfig
from common.errors import ConfigError, QuorumError
from common.messages import EVALUATE, KEYS, SHARES, TRAIN
from server.plan import Plan
from server.secagg import TOGETHER, SecureSums

SECURE = {"secure": {"aggregation": True}}
PART = {"limits": {"quorum": 0.75, "retries": 0}}


def failing(when, code="dropout"):
    """Return a script of a hospital that answers with an error where ``when(kind, round, count)`` says so; ``count`` is of messages of that kind."""
    seen = Counter()

    def script(message, answer):
        kind = message.metadata.message_type
        seen[kind] += 1
        number = message.content["config"].get("server-round", 0)
        return Message(Error(2, code), reply_to=message) if when(kind, number, seen[kind]) else answer()

    return script


def watching(told):
    def script(message, answer):
        reply = answer()
        told.append((message, reply))
        return reply

    return script


def close(one, other, level=1e-4):
    return np.abs(one.model.weights - other.model.weights).max() < level


@pytest.fixture(scope="module")
def plain(federation):
    return federation.run()


@pytest.fixture(scope="module")
def told():
    return {}


@pytest.fixture(scope="module")
def secure(federation, told):
    scripts = {hospital.name: watching(told.setdefault(hospital.name, [])) for hospital in federation.hospitals}
    return federation.run(SECURE, scripts)


class TestSameModel:
    @pytest.mark.parametrize("strategy", ["fedavg", "scaffold", "fedadam", "fedavgm", "personal"])
    def test_it_ends_with_the_model_of_plain_sums_up_to_the_fixed_point(self, federation, strategy):
        settings = {"strategy": strategy}
        assert close(federation.run(SECURE | settings), federation.run(settings))

    def test_so_it_does_on_a_sparse_graph(self, federation, plain):
        settings = {"secure": {"aggregation": True, "neighbours": 2, "threshold": 0.75}}
        assert close(federation.run(settings), plain)

    def test_what_is_known_of_a_round_is_the_same_but_for_single_hospitals(self, secure, plain):
        for one, other in zip(secure.rounds, plain.rounds, strict=True):
            assert one.answered == other.answered
            assert one.examples == other.examples
            assert one.train_loss == pytest.approx(other.train_loss, abs=1e-4)
            assert one.metrics == pytest.approx(other.metrics, abs=1e-3)
            assert not one.dropped
            assert other.hospitals
            assert not one.hospitals

    def test_the_final_model_is_judged_by_a_sum_too(self, secure, plain):
        assert list(secure.tests) == [TOGETHER]
        for name, value in secure.tests[TOGETHER].items():
            together = sum(parts[name] for parts in plain.tests.values())
            np.testing.assert_allclose(value, together, atol=1e-2, err_msg=name)

    def test_a_threshold_is_chosen_on_a_sum_too(self, federation):
        settings = {"evaluation": {"validation": 0.2, "threshold": "youden"}}
        one, other = federation.run(SECURE | settings), federation.run(settings)
        # The models differ in the fixed point, which may move a patient to the next bin.
        assert one.model.threshold == pytest.approx(other.model.threshold, abs=0.005)
        assert one.model.threshold != 0.5
        together = sum(parts["confusion"] for parts in other.tests.values())
        assert np.abs(one.tests[TOGETHER]["confusion"] - together).sum() <= 2

    def test_counts_above_the_cap_weigh_as_the_cap(self, federation):
        """With a cap of one patient all hospitals weigh the same, as in SCAFFOLD's mean of controls."""
        even = federation.run({"secure": {"aggregation": True, "examples": 1}, "rounds": 1})
        weighted = federation.run(SECURE | {"rounds": 1})
        assert even.rounds[0].examples == weighted.rounds[0].examples
        assert not close(even, weighted, 1e-3)


class TestSeen:
    """What passes the coordinator."""

    def test_no_answer_holds_anything_but_a_masked_vector(self, secure, told):
        for exchanged in told.values():
            for message, reply in exchanged:
                if message.metadata.message_type in (TRAIN, EVALUATE):
                    answer = messages.unpack_reply(reply.content)
                    assert (list(answer.arrays), answer.statistics, answer.num_examples) == (["masked"], {}, 0)
                    assert answer.arrays["masked"].dtype == np.uint32

    def test_a_round_costs_a_hospital_one_message_more(self, secure, told):
        for exchanged in told.values():
            kinds = Counter(message.metadata.message_type for message, _ in exchanged)
            rounds = len(secure.rounds)
            assert kinds == {"query.statistics": 1, KEYS: 1, TRAIN: rounds, EVALUATE: 1, SHARES: 1 + rounds + 1}

    def test_where_one_drops_out_the_others_sign_who_is_left_which_is_one_more(self, federation):
        told = {hospital.name: [] for hospital in federation.hospitals}
        scripts = {name: watching(exchanged) for name, exchanged in told.items()}
        scripts["south"] = failing(lambda kind, number, _: kind == TRAIN and number == 2)
        rounds = len(federation.run(SECURE | PART, scripts).rounds)
        kinds = Counter(message.metadata.message_type for message, _ in told["north"])
        assert kinds[SHARES] == 1 + rounds + 1 + 1

    def test_masked_vectors_look_uniform_and_never_alike(self, told, secure):
        sent = [
            messages.unpack_reply(reply.content).arrays["masked"]
            for exchanged in told.values()
            for message, reply in exchanged
            if message.metadata.message_type == TRAIN
        ]
        words = np.concatenate(sent)
        counts = np.bincount(words >> np.uint32(24), minlength=256)
        expected = len(words) / 256
        assert ((counts - expected) ** 2 / expected).sum() < 255 + 6 * np.sqrt(2 * 255)
        assert len({array.tobytes() for array in sent}) == len(sent)

    def test_secrets_are_in_no_context_in_clear(self, federation):
        grid = federation.grid()
        federation.run(SECURE | {"rounds": 1}, grid=grid)
        for context in grid.contexts.values():
            data = wire.from_record(context.state.array_records["secure"])["sealed"].tobytes()
            assert b"secret" not in data
            assert b"north" not in data


class TestDropOuts:
    def test_a_hospital_that_fails_to_train_costs_its_own_update(self, federation):
        script = {"south": failing(lambda kind, number, _: kind == TRAIN and number == 2)}
        secure, plain = federation.run(SECURE | PART, script), federation.run(PART, script)
        assert close(secure, plain)
        assert [(row.hospital, row.reason) for row in secure.rounds[1].dropped] == [("south", "dropout")]
        assert secure.rounds[1].answered == ["east", "north", "west"]
        assert len(secure.rounds[2].answered) == 4

    def test_one_that_fails_after_it_sent_is_in_the_sum_and_not_in_the_next(self, federation, plain):
        script = {"south": failing(lambda kind, _, count: kind == SHARES and count == 2)}
        outcome = federation.run(SECURE | PART, script)
        assert [len(record.answered) for record in outcome.rounds] == [4, 3, 4]
        assert [row.hospital for row in outcome.rounds[1].dropped] == ["south"]

    def test_one_that_lost_its_keys_shows_new_ones_and_is_back(self, federation):
        """As a worker that was started again."""
        grid = federation.grid()

        def forget(record):
            if record.round == 1:
                del grid.contexts[3].state["secure"]

        outcome = federation.run(SECURE | PART, grid=grid, watch=forget)
        assert [len(record.answered) for record in outcome.rounds] == [4, 3, 4]
        assert [(row.hospital, row.reason) for row in outcome.rounds[1].dropped] == [("south", "session")]

    def test_one_that_shows_its_keys_late_joins_late(self, federation):
        script = {"south": failing(lambda kind, _, count: kind == KEYS and count == 1)}
        outcome = federation.run(SECURE | PART, script)
        assert [len(record.answered) for record in outcome.rounds] == [3, 4, 4]
        assert [(row.hospital, row.reason) for row in outcome.rounds[0].dropped] == [("south", "keys")]

    def test_with_too_few_the_round_fails_with_the_reason(self, federation):
        script = {name: failing(lambda kind, number, _: kind == TRAIN and number == 2) for name in ("south", "west")}
        with pytest.raises(QuorumError, match=r"round 2: 0 of 4 .*\*: secure"):
            federation.run(SECURE, script)

    def test_too_few_that_help_to_unmask_fail_it_too(self, federation):
        script = {name: failing(lambda kind, _, count: kind == SHARES and count == 2) for name in ("south", "west")}
        told = []
        with pytest.raises(QuorumError, match="round 1"):
            federation.run(SECURE, script, watch=told.append)
        assert told == []

    def test_a_further_attempt_is_made_by_all_with_new_masks(self, federation, plain):
        told = []

        def script(message, answer):
            reply = answer()
            if message.metadata.message_type == TRAIN and message.content["config"]["server-round"] == 2:
                told.append(messages.unpack_reply(reply.content).arrays["masked"])
            return reply

        scripts = {
            name: failing(lambda kind, number, count: kind == TRAIN and count == 2) for name in ("south", "west")
        }
        settings = SECURE | {"limits": {"retries": 1}}
        outcome = federation.run(settings, {**scripts, "east": script})
        assert close(outcome, plain)
        assert len(told) == 2
        assert (told[0] == told[1]).mean() < 0.01

    @pytest.mark.parametrize("array", [np.zeros(3, np.uint32), np.zeros(3, np.float32), None])
    def test_a_vector_of_another_form_costs_its_hospital_the_round(self, federation, array):
        def script(message, answer):
            reply = answer()
            if message.metadata.message_type == TRAIN and message.content["config"]["server-round"] == 1:
                reply.content["arrays"] = wire.to_record({} if array is None else {"masked": array})
            return reply

        outcome = federation.run(SECURE | PART, {"south": script})
        assert [(row.hospital, row.reason) for row in outcome.rounds[0].dropped] == [("south", "shape")]

    @pytest.mark.parametrize("signature", ["", "no base64", "AAAA", "A" * 86 + "=="])
    def test_one_that_does_not_sign_who_was_there_is_left_out(self, federation, signature):
        def script(message, answer):
            reply = answer()
            if message.metadata.message_type == TRAIN and message.content["config"]["server-round"] == 1:
                reply.content["config"][messages.SIGNATURE] = signature
            return reply

        outcome = federation.run(SECURE | PART, {"south": script})
        assert [(row.hospital, row.reason) for row in outcome.rounds[0].dropped] == [("south", "survivors")]
        assert outcome.rounds[0].answered == ["east", "north", "west"]

    def test_who_answered_but_not_when_it_was_to_sign_is_in_the_sum(self, federation):
        """One drops out of round 2, of the three others the list is signed by all; with a further one gone nothing is opened."""
        gone = failing(lambda kind, number, _: kind == TRAIN and number == 2)
        silent = failing(lambda kind, _, count: kind == SHARES and count == 3)
        with pytest.raises(QuorumError, match="round 2"):
            federation.run(SECURE | PART, {"south": gone, "west": silent})
        wide = {"secure": {"aggregation": True, "threshold": 0.51}, "limits": {"quorum": 0.5, "retries": 0}}
        five = federation.run(wide | {"rounds": 1}, {"south": gone, "west": silent})
        assert len(five.rounds[0].answered) == 4

    def test_a_coordinator_that_tells_one_hospital_another_list_gets_nothing_of_it(
        self, federation, monkeypatch, caplog
    ):
        """It says to east alone that south has dropped out, and to the others that all are there."""
        real = SecureSums._request

        def lie(sums, channel, name, closing):
            content = real(sums, channel, name, closing)
            if closing and name == "east":
                content["config"]["survivors"] = "east\nnorth\nwest"
                content["arrays"] = wire.to_record(
                    {
                        array: rows[:3] if array == "signatures" else rows
                        for array, rows in wire.from_record(content["arrays"]).items()
                    }
                )
            return content

        monkeypatch.setattr(SecureSums, "_request", lie)
        outcome = federation.run(SECURE | PART | {"rounds": 1})
        assert len(outcome.rounds[0].answered) == 4
        assert "0 hospitals have signed the list of survivors" in caplog.text

    def test_an_update_beyond_the_range_is_refused_before_anything_is_sent(self, federation):
        settings = {"secure": {"aggregation": True, "magnitude": 1e-6}}
        with pytest.raises(QuorumError, match="fixed_point"):
            federation.run(settings)

    def test_drawn_hospitals_change_from_round_to_round(self, federation):
        settings = {"selection": {"fraction": 0.75}, "rounds": 4}
        secure, plain = federation.run(SECURE | settings), federation.run(settings)
        assert close(secure, plain)
        assert len({tuple(record.asked) for record in secure.rounds}) > 1


class TestRefused:
    @pytest.mark.parametrize(
        ("settings", "match"),
        [
            ({"strategy": "median"}, "'median' has to see every update"),
            ({"strategy": "krum"}, "'krum' has to see every update"),
            ({"strategy": "flower"}, "'flower' has to see every update"),
            ({"update": {"codec": "int8"}}, "update.codec: 'int8' leaves nothing that adds"),
            ({"limits": {"update_norm": 1.0}}, "limits.update_norm: the coordinator sees no update"),
        ],
    )
    def test_what_needs_more_than_a_sum_is_refused_with_the_reason(self, federation, settings, match):
        with pytest.raises(ConfigError, match=match):
            _ = Plan(federation.config(SECURE | settings)).strategy

    def test_a_federation_of_two_is_refused(self, federation):
        with pytest.raises(ConfigError, match="2 hospitals are in the federation"):
            _ = Plan(federation.config(SECURE), cohort=("east", "west")).strategy
        with pytest.raises(QuorumError, match=r"secure"):
            federation.without("east", "north").run(SECURE)

    def test_an_odd_count_of_neighbours_is_refused(self):
        with pytest.raises(ConfigError, match=r"secure.neighbours: expected an even number"):
            SecureConfig(neighbours=3)

    def test_few_neighbours_ask_for_a_high_threshold(self):
        with pytest.raises(ConfigError, match=r"secure.threshold: with few neighbours expected 0.75 or more, got 0.66"):
            SecureConfig(neighbours=4)

    def test_without_the_setting_no_step_of_the_protocol_is_answered(self, federation):
        from common import flower

        grid = federation.grid()
        for kind in (KEYS, SHARES):
            with flower.identity(grid.run.run_id):
                content = messages.pack_request(Plan(federation.config()).text, {}, {})
                (name,) = grid.push_messages([Message(content, dst_node_id=1, message_type=kind)])
            (reply,) = grid.pull_messages([name])
            assert reply.error.reason == "session"


def test_a_run_that_goes_on_agrees_on_keys_anew_and_ends_the_same(federation, plain, tmp_path):
    def stop(record):
        if record.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        federation.run(SECURE, folder=tmp_path, watch=stop)
    assert close(federation.run(SECURE, folder=tmp_path), plain)
