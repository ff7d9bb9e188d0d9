"""Faults that a scenario declares: each does what its setting says, as often as it says, and follows from the seed."""

import json
from collections import Counter

import numpy as np
import pytest
from flwr.app import Message

from common import flower, messages, wire
from common.messages import Reply
from server.records import sha256
from simulations.attacks.attack import Tap, train
from simulations.hospitals import SCALE, populate, seat_for, seats_of
from simulations.scenario import FaultsConfig, read

SEED = 5


def scripts(federation, seed=SEED, **faults):
    return {
        hospital.name: seat_for(federation.worker, hospital, FaultsConfig(**faults), seed).around
        for hospital in federation.hospitals
    }


def dropped(outcome):
    return [(record.round, row.hospital, row.reason) for record in outcome.rounds for row in record.dropped]


def outcomes(federation, rounds=400, seed=SEED, attempt=0, kind=messages.TRAIN, hospital=0, **faults):
    """Return what becomes of one hospital's answers in many rounds, without any training."""
    around = seat_for(federation.worker, federation.hospitals[hospital], FaultsConfig(**faults), seed).around
    seen = []
    with flower.identity(1):
        for number in range(1, rounds + 1):
            asked = Message(
                messages.pack_request("{}", {}, {"server-round": number, "attempt": attempt}),
                dst_node_id=1,
                message_type=kind,
            )
            flower.stamp(asked, str(number), 1, flower.server_node())
            update = Reply({"values": np.ones(3, np.float32)}, num_examples=1)
            answer = around(
                asked, lambda asked=asked, update=update: Message(messages.pack_reply(update), reply_to=asked)
            )
            if not answer.has_content():
                seen.append(answer.error.reason)
            else:
                (values,) = wire.from_record(answer.content["arrays"]).values()
                seen.append("nan" if np.isnan(values).any() else "good")
    return seen


def test_a_hospital_that_poisons_sends_its_update_turned_round_and_ten_times_as_large(federation):
    """Half of the hospitals, the same ones in every round; the others send what they have."""

    def deltas(**faults):
        seats = seats_of(federation.hospitals, federation.worker, bytes(32), FaultsConfig(**faults), SEED)
        heard = [Tap(seat, hospital.name) for seat, hospital in zip(seats, federation.hospitals, strict=True)]
        train(federation.config({"rounds": 1}), heard)
        return {tap.name: tap.heard[0].update for tap in heard}

    honest, poisoned = deltas(), deltas(scaled_updates=0.5)
    turned = [name for name in honest if np.allclose(poisoned[name], SCALE * honest[name], rtol=1e-5)]
    assert len(turned) == 2
    for name in set(honest) - set(turned):
        np.testing.assert_array_equal(poisoned[name], honest[name])


@pytest.mark.parametrize(("fault", "reason"), [("dropouts", "dropout"), ("stragglers", "late"), ("nan_updates", "nan")])
class TestEach:
    def test_it_happens_as_often_as_declared(self, federation, fault, reason):
        counts = Counter(outcomes(federation, **{fault: 0.3}))
        assert set(counts) == {"good", reason}
        assert counts[reason] == pytest.approx(0.3 * 400, abs=4 * (400 * 0.3 * 0.7) ** 0.5)
        assert set(outcomes(federation, rounds=20, **{fault: 1.0})) == {reason}
        assert set(outcomes(federation, rounds=20)) == {"good"}

    def test_it_follows_from_seed_hospital_round_and_attempt(self, federation, fault, reason):
        one = outcomes(federation, **{fault: 0.5})
        assert one == outcomes(federation, **{fault: 0.5})
        assert one != outcomes(federation, seed=SEED + 1, **{fault: 0.5})
        assert one != outcomes(federation, hospital=1, **{fault: 0.5})
        assert one != outcomes(federation, attempt=1, **{fault: 0.5})

    def test_only_training_is_spoilt(self, federation, fault, reason):
        for kind in (messages.STATISTICS, messages.EVALUATE, messages.COMPARE):
            assert set(outcomes(federation, rounds=20, kind=kind, **{fault: 1.0})) == {"good"}

    def test_a_run_drops_those_updates_and_goes_on(self, federation, fault, reason):
        settings = {"rounds": 3, "limits": {"quorum": 0.01, "retries": 20}}
        outcome = federation.run(settings, scripts(federation, **{fault: 0.5}))
        codes = {code for *_, code in dropped(outcome)}
        assert codes == {reason}
        assert len(outcome.rounds) == 3
        assert np.isfinite(outcome.model.weights).all()
        again = federation.run(settings, scripts(federation, **{fault: 0.5}))
        assert (dropped(again), sha256(again.model.weights)) == (dropped(outcome), sha256(outcome.model.weights))
        other = federation.run(settings, scripts(federation, seed=SEED + 1, **{fault: 0.5}))
        assert dropped(other) != dropped(outcome)


def test_each_fault_is_drawn_on_its_own(federation):
    counts = Counter(outcomes(federation, dropouts=0.5, stragglers=0.5, nan_updates=0.5))
    for reason, share in {"dropout": 1 / 2, "late": 1 / 4, "nan": 1 / 8, "good": 1 / 8}.items():
        assert counts[reason] == pytest.approx(400 * share, abs=4 * (400 * share * (1 - share)) ** 0.5)


@pytest.mark.parametrize(("codec", "code"), [("float16", "nan"), ("int8", "range"), ("topk", "nan")])
def test_nan_updates_are_dropped_whatever_the_codec(federation, codec, code):
    faulty = {"south": scripts(federation, nan_updates=1.0)["south"]}
    outcome = federation.run({"rounds": 1, "update": {"codec": codec}}, faulty)
    assert dropped(outcome) == [(1, "south", code)]


def test_no_fault_is_no_change(federation):
    assert sha256(federation.run({}, scripts(federation)).model.weights) == sha256(federation.run({}).model.weights)


class TestLabelFlips:
    def hospitals(self, share, seed=1):
        simulation = {"dataset": "heart", "faults": {"label_flips": share}}
        return populate(
            read({"task": "heart", "seed": seed, "evaluation": {"validation": 0.2}, "simulation": simulation})
        ).hospitals

    def flipped(self, share, seed=1):
        """Return the hospitals whose training labels are turned, after comparing all the rest."""
        turned = []
        for honest, other in zip(self.hospitals(0.0, seed), self.hospitals(share, seed), strict=True):
            for part in ("train", "validation", "test"):
                for name, column in getattr(honest, part).items():
                    if (part, name) != ("train", "num"):
                        np.testing.assert_array_equal(column, getattr(other, part)[name])
            ill, told = (np.asarray(hospital.train["num"]) > 0 for hospital in (honest, other))
            if (ill != told).any():
                assert (ill == ~told).all()
                turned.append(honest.name)
        return turned

    def test_so_many_hospitals_train_on_turned_labels_and_are_judged_on_true_ones(self):
        assert [len(self.flipped(share)) for share in (0.25, 0.5, 1.0)] == [1, 2, 4]

    def test_who_it_is_follows_from_the_seed(self):
        assert self.flipped(0.5) == self.flipped(0.5)
        assert len({json.dumps(self.flipped(0.5, seed)) for seed in range(1, 7)}) > 1
