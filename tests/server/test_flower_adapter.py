"""The adapter does what Flower's strategy does, keeps its memory in our state, and refuses what it cannot keep."""

import random

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower

from common.config import Choice
from common.errors import ConfigError, FedwardError, QuorumError
from common.flower import identity
from common.update import Update
from server.strategies import strategy_of
from server.strategies.flower import adapt
from server.strategies.strategy import Strategy

SIZE, HOSPITALS = 30, 7
WEIGHTS = np.random.default_rng(0).standard_normal(SIZE).astype(np.float32)


@pytest.fixture(autouse=True)
def no_full_collections(monkeypatch):
    """Flower's Bulyan asks for a full garbage collection at every array it reads, a tenth of a second each under pytest."""
    monkeypatch.setattr("gc.collect", lambda: 0)


def updates(seed: int, count: int = HOSPITALS) -> list[Update]:
    generator = np.random.default_rng(seed)
    return [
        Update(f"h{i}", generator.standard_normal(SIZE).astype(np.float32), int(generator.integers(1, 99)))
        for i in range(count)
    ]


def play(strategy: Strategy, rounds: int = 4) -> np.ndarray:
    state = strategy.init(WEIGHTS, HOSPITALS)
    for seed in range(rounds):
        for update in updates(seed):
            strategy.accumulate(state, update)
        strategy.finish(state)
    return state["weights"]


class Nodes:
    def get_node_ids(self) -> range:
        return range(1, HOSPITALS + 1)


def directly(strategy: flower.Strategy, rounds: int = 4) -> np.ndarray:
    """Drive one Flower strategy object through all rounds, as Flower does."""
    weights = WEIGHTS
    for number in range(1, rounds + 1):
        with identity(1):
            list(strategy.configure_train(number, ArrayRecord({"weights": Array(weights)}), ConfigRecord(), Nodes()))
            replies = []
            for update in updates(number - 1):
                content = RecordDict(
                    {
                        "arrays": ArrayRecord({"weights": Array(weights + update.delta)}),
                        "metrics": MetricRecord({"num-examples": update.num_examples}),
                    }
                )
                replies.append(Message(content, reply_to=Message(RecordDict(), dst_node_id=1, message_type="train")))
            arrays, _ = strategy.aggregate_train(number, replies)
        weights = arrays["weights"].numpy().astype(np.float32)  # as hospitals get it; FedAdam's is float64
    return weights


WHICH = (
    "Bulyan",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedMedian",
    "FedTrimmedAvg",
    "FedYogi",
    "Krum",
    "MultiKrum",
)


@pytest.mark.parametrize("which", WHICH)
def test_by_name_equals_flowers_own(which):
    ours = play(strategy_of(Choice("flower", (("which", which),))))
    np.testing.assert_array_equal(ours, directly(getattr(flower, which)()))


def test_an_object_with_momentum_is_adapted_and_not_changed():
    theirs = flower.FedAvgM(server_momentum=0.7, server_learning_rate=0.5)
    before = dict(vars(theirs))
    first = play(adapt(theirs))
    assert vars(theirs) == before
    np.testing.assert_array_equal(first, play(adapt(theirs)))
    np.testing.assert_array_equal(first, directly(theirs))


def test_arguments_reach_the_strategy():
    ours = play(strategy_of(Choice("flower", (("which", "FedAdam"), ("arguments", "eta=0.5 beta_1=0.3 tau=1")))))
    np.testing.assert_array_equal(ours, directly(flower.FedAdam(eta=0.5, beta_1=0.3, tau=1)))


@pytest.mark.parametrize(
    ("which", "arguments", "message"),
    [
        ("FedTrimmedAvg", "beat=0.1", "beta"),
        ("FedTrimmedAvg", "beta=lots", "beta must be a number"),
        ("FedTrimmedAvg", "beta=true", "beta must be a number"),
        ("FedTrimmedAvg", "beta=0.9", "range"),
        ("Krum", "num_malicious_nodes=1.5", "must be a number like 0"),
        ("FedAvg", "fraction_train=0.5", "takes no 'fraction_train'"),
        ("FedAvg", "beta", "key=value"),
    ],
)
def test_wrong_arguments_are_named(which, arguments, message):
    with pytest.raises(ConfigError, match=message):
        strategy_of(Choice("flower", (("which", which), ("arguments", arguments))))


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match=r"strategy\.which"):
        strategy_of(Choice("flower", (("which", "FedAvgg"),)))


@pytest.mark.parametrize(
    "theirs",
    [
        flower.DifferentialPrivacyClientSideFixedClipping(flower.FedAvg(), 1.0, 1.0, 2),
        flower.DifferentialPrivacyServerSideFixedClipping(flower.FedAvg(), 1.0, 1.0, 2),
        flower.DifferentialPrivacyClientSideAdaptiveClipping(flower.FedAvg(), 0.1, 100),
        flower.DifferentialPrivacyServerSideAdaptiveClipping(flower.FedAvg(), 0.1, 100),
        flower.FedXgbBagging(),
        flower.FedXgbCyclic(),
        flower.QFedAvg(0.1),
    ],
    ids=lambda strategy: type(strategy).__name__,
)
def test_what_is_more_than_a_rule_for_weights_is_refused(theirs):
    with pytest.raises(ConfigError, match="cannot be used here"):
        adapt(theirs)


def test_fedprox_asks_hospitals_for_its_pull():
    assert adapt(flower.FedProx(proximal_mu=0.25)).client.proximal == pytest.approx(0.25)


class Counting(flower.FedAvg):
    """A user's own, with a number and an array for a memory."""

    calls = 0
    last: np.ndarray | None = None

    def aggregate_train(self, server_round, replies):
        self.calls += 1
        self.last = np.full(3, self.calls)
        return super().aggregate_train(server_round, replies)


def test_a_users_own_strategy_keeps_its_memory_in_our_state():
    strategy = adapt(Counting())
    state = strategy.init(WEIGHTS, HOSPITALS)
    for seed in range(3):
        for update in updates(seed):
            strategy.accumulate(state, update)
        strategy.finish(state)
    assert int(state["flower/calls/number/"]) == 3
    np.testing.assert_array_equal(state["flower/last/array/"], [3, 3, 3])


class Summing(flower.FedAvg):
    """A user's own, whose array changes in place."""

    def __init__(self):
        super().__init__()
        self.sum = np.zeros(3)

    def aggregate_train(self, server_round, replies):
        self.sum += server_round
        return super().aggregate_train(server_round, replies)


def test_what_changes_in_place_is_kept_too_and_not_in_the_users_object():
    own = Summing()
    strategy = adapt(own)
    state = strategy.init(WEIGHTS, HOSPITALS)
    for seed in range(3):
        for update in updates(seed):
            strategy.accumulate(state, update)
        strategy.finish(state)
    np.testing.assert_array_equal(state["flower/sum/array/"], [6, 6, 6])
    np.testing.assert_array_equal(own.sum, np.zeros(3))


class Remembering(flower.FedAvg):
    """A user's own, with a memory that no checkpoint can hold."""

    def aggregate_train(self, server_round, replies):
        self.secret = object()
        return super().aggregate_train(server_round, replies)


def test_a_memory_that_cannot_be_saved_is_refused():
    with pytest.raises(FedwardError, match="secret"):
        play(adapt(Remembering()), rounds=1)


def test_too_few_updates_for_flowers_rule():
    strategy = adapt(flower.Bulyan(num_malicious_nodes=1))
    state = strategy.init(WEIGHTS, HOSPITALS)
    for update in updates(0, count=6):
        strategy.accumulate(state, update)
    with pytest.raises(QuorumError, match="Bulyan"):
        strategy.finish(state)


def test_one_hospital_is_no_reason_to_wait():
    """Flower would wait for its `min_train_nodes` for ever."""
    strategy = adapt(flower.FedAvgM(min_train_nodes=50, min_available_nodes=60))
    state = strategy.init(WEIGHTS, 1)
    strategy.accumulate(state, updates(0)[0])
    np.testing.assert_allclose(strategy.finish(state), WEIGHTS + updates(0)[0].delta, rtol=1e-6)


def test_drawing_hospitals_is_not_flowers_business():
    """Its draw for instructions that nobody sends must not move the process's random numbers."""
    random.seed(7)
    state = random.getstate()
    play(adapt(flower.FedAvg()), rounds=1)
    assert random.getstate() == state
