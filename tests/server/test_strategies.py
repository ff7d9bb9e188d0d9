"""One contract for every strategy, and oracles: numpy in float64 and Flower's own strategies."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import Choice
from common.errors import ConfigError, QuorumError, UpdateRejected
from common.flower import identity
from common.layout import Vector
from common.update import Update
from server.strategies import STRATEGIES, strategy_of
from server.strategies.average import EVEN, SHORT, add, mean
from server.strategies.strategy import State, Strategy

SIZE, POPULATION, HOSPITALS = 40, 10, 7


@pytest.fixture(autouse=True)
def no_full_collections(monkeypatch):
    """Flower's Bulyan asks for a full garbage collection at every array it reads, a tenth of a second each under pytest."""
    monkeypatch.setattr("gc.collect", lambda: 0)


def named(name: str, **options: float | str) -> Strategy:
    return strategy_of(Choice(name, tuple(options.items())))


def updates(seed: int, count: int = HOSPITALS, size: int = SIZE, scale: float = 1.0) -> list[Update]:
    generator = np.random.default_rng(seed)

    def vector() -> Vector:
        return (scale * generator.standard_normal(size)).astype(np.float32)

    return [Update(f"h{i}", vector(), int(generator.integers(1, 500)), vector()) for i in range(count)]


def start(strategy: Strategy, seed: int = 0, size: int = SIZE) -> State:
    return strategy.init(np.random.default_rng(seed).standard_normal(size).astype(np.float32), POPULATION)


def play(strategy: Strategy, state: State, seeds: range) -> Vector:
    for seed in seeds:
        for update in updates(seed):
            strategy.accumulate(state, update)
        strategy.finish(state)
    return state["weights"]


def saved_and_loaded(state: State) -> State:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **state)
    buffer.seek(0)
    with np.load(buffer, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


every_strategy = pytest.mark.parametrize("name", STRATEGIES)
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


@every_strategy
def test_state_is_arrays_and_keeps_nothing_of_a_closed_round(name):
    strategy = named(name)
    state = start(strategy)
    between = set(state)
    play(strategy, state, range(3))
    assert all(isinstance(value, np.ndarray) for value in state.values())
    assert {key for key in state if not key.startswith("flower/")} == between
    assert state["weights"].dtype == np.float32
    assert state["weights"].shape == (SIZE,)


@every_strategy
def test_runs_are_bit_equal(name):
    first, second = (play(named(name), start(named(name)), range(3)) for _ in range(2))
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in STRATEGIES), *(("flower", {"which": which}) for which in WHICH)]
)
def test_a_saved_run_goes_on_bit_equal(name, options):
    straight, resumed = named(name, **options), named(name, **options)
    expected = start(straight)
    play(straight, expected, range(5))
    state = start(straight)
    play(straight, state, range(2))
    state = saved_and_loaded(state)
    play(resumed, state, range(2, 5))
    assert {key: value.tobytes() for key, value in state.items()} == {
        key: value.tobytes() for key, value in expected.items()
    }


@every_strategy
def test_updates_of_zero_leave_the_model(name):
    strategy = named(name)
    state = start(strategy)
    before = state["weights"].copy()
    for update in updates(1, scale=0.0):
        strategy.accumulate(state, update)
    tolerance = 1e-6 if name == "flower" else 0.0  # Flower averages whole models, which rounds
    np.testing.assert_allclose(strategy.finish(state), before, rtol=tolerance, atol=0)


@every_strategy
def test_returned_weights_are_the_states_and_are_never_written_again(name):
    strategy = named(name)
    state = start(strategy)
    initial = state["weights"]
    kept = {"initial": (initial, initial.copy())}
    for seed in range(3):
        returned = play(strategy, state, range(seed, seed + 1))
        assert returned is state["weights"]
        kept |= {f"{seed}/{key}": (value, value.copy()) for key, value in state.items()}
    for array, copy in kept.values():
        np.testing.assert_array_equal(array, copy)


@every_strategy
def test_updates_are_not_written_into(name):
    strategy = named(name)
    state = start(strategy)
    given_updates = updates(1)
    for update in given_updates:
        update.delta.flags.writeable = False
        strategy.accumulate(state, update)
    strategy.finish(state)
    for update, same in zip(given_updates, updates(1), strict=True):
        np.testing.assert_array_equal(update.delta, same.delta)


@every_strategy
def test_a_round_with_too_few_updates_is_refused(name):
    strategy = named(name)
    state = start(strategy)
    for update in updates(1)[: strategy.minimum_updates - 1]:
        strategy.accumulate(state, update)
    with pytest.raises(QuorumError):
        strategy.finish(state)


@pytest.mark.parametrize("name", ["median", "trimmed_mean", "krum", "multi_krum", "flower"])
def test_rules_that_see_single_updates_say_so(name):
    assert named(name).single_updates


def test_averages_do_not_need_single_updates():
    averages = {"fedavg", "fedavgm", "fedprox", "scaffold", "fedadam", "fedyogi", "fedadagrad", "fedbn", "personal"}
    assert {name for name in STRATEGIES if not named(name).single_updates} == averages


def test_averages_hold_one_sum_whatever_the_number_of_updates():
    strategy = named("fedavg")
    state = start(strategy)
    sizes = set()
    for update in updates(1):
        strategy.accumulate(state, update)
        sizes.add(sum(value.nbytes for value in state.values()))
    assert len(sizes) == 1
    assert sizes.pop() < 2 * state["weights"].nbytes + 64


def test_what_hospitals_are_asked():
    assert named("fedprox", mu=0.3).client.proximal == pytest.approx(0.3)
    assert named("scaffold").client.controls
    assert named("fedbn").client.local_parts == ("normalisation",)
    assert named("personal").client.local_parts == ("head",)


@pytest.mark.parametrize(
    ("name", "options", "key"),
    [
        ("fedprox", {"mu": -1.0}, "strategy.mu"),
        ("fedavg", {"mu": 1.0}, "strategy.mu"),
        ("fedavgm", {"momentum": 1.0}, "strategy.momentum"),
        ("fedadam", {"beta_2": 1.5}, "strategy.beta_2"),
        ("fedadam", {"tau": 0.0}, "strategy.tau"),
        ("trimmed_mean", {"trim": 0.5}, "strategy.trim"),
        ("trimmed_mean", {"trim": 0.0}, "strategy.trim"),
        ("krum", {"byzantine": -1}, "strategy.byzantine"),
        ("multi_krum", {"keep": 0}, "strategy.keep"),
        ("fedagv", {}, "strategy.name"),
    ],
)
def test_wrong_settings_are_named(name, options, key):
    with pytest.raises(ConfigError, match=key):
        named(name, **options)


@given(
    size=st.sampled_from([1, 7, 33, SHORT, SHORT + 1, EVEN + SHORT + 5]),
    counts=st.lists(st.integers(1, 10_000_000), min_size=1, max_size=12),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_streamed_mean_equals_numpy_in_float64(size, counts, seed):
    vectors = np.random.default_rng(seed).standard_normal((len(counts), size)).astype(np.float32)
    state: State = {}
    for vector, count in zip(vectors, counts, strict=True):
        add(state, "delta", vector, count)
    expected = np.average(vectors.astype(np.float64), axis=0, weights=counts)
    np.testing.assert_allclose(mean(state), expected, rtol=0, atol=2e-6)
    assert not state


SUMS = """
import hashlib
import numpy as np
from server.strategies.average import EVEN, add, mean
generator, state = np.random.default_rng(0), {}
for weight in (3, 700, 1_000_003):
    add(state, "delta", generator.standard_normal(2 * EVEN + 31_337, dtype=np.float32), weight)
print(hashlib.sha256(mean(state)).hexdigest())
"""


def test_sums_do_not_depend_on_the_count_of_threads():
    def digest(threads: int) -> str:
        environment = os.environ | {"OPENBLAS_NUM_THREADS": str(threads), "PYTHONPATH": str(Path(__file__).parents[2])}
        return subprocess.run(
            [sys.executable, "-c", SUMS], env=environment, check=True, capture_output=True, text=True
        ).stdout

    assert len({digest(threads) for threads in (1, 2, 3)}) == 1


def test_mean_without_a_patient_is_refused():
    strategy = named("fedavg")
    state = start(strategy)
    strategy.accumulate(state, Update("a", np.ones(SIZE, np.float32), 0))
    with pytest.raises(QuorumError):
        strategy.finish(state)


def expected_mean(batch: list[Update]) -> np.ndarray:
    return np.average(
        [update.delta.astype(np.float64) for update in batch], axis=0, weights=[update.num_examples for update in batch]
    )


def follow(strategy: Strategy, step: Callable[[np.ndarray], np.ndarray]) -> None:
    """Hold a strategy to its formula in float64, from mean update to step, for six rounds."""
    state = start(strategy)
    expected = state["weights"].astype(np.float64)
    for seed in range(6):
        expected = expected + step(expected_mean(updates(seed)))
        np.testing.assert_allclose(play(strategy, state, range(seed, seed + 1)), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "fedbn", "personal"])
def test_plain_averages_follow_the_paper(name):
    follow(named(name), lambda delta: delta)


def test_fedavgm_follows_the_paper():
    velocity = np.zeros(SIZE)

    def step(delta):
        nonlocal velocity
        velocity = 0.7 * velocity + delta
        return 0.5 * velocity

    follow(named("fedavgm", momentum=0.7, server_learning_rate=0.5), step)


SECOND_MOMENTS = {
    "fedadam": lambda v, d: 0.95 * v + 0.05 * d**2,
    "fedyogi": lambda v, d: v - 0.05 * d**2 * np.sign(v - d**2),
    "fedadagrad": lambda v, d: v + d**2,
}


@pytest.mark.parametrize("name", SECOND_MOMENTS)
def test_adaptive_strategies_follow_the_paper(name):
    beta_1, betas = (0.0, {}) if name == "fedadagrad" else (0.8, {"beta_1": 0.8, "beta_2": 0.95})
    m, v = np.zeros(SIZE), np.full(SIZE, 0.01**2)

    def step(delta):
        nonlocal m, v
        m = beta_1 * m + (1 - beta_1) * delta
        v = SECOND_MOMENTS[name](v, delta)
        return 0.03 * m / (np.sqrt(v) + 0.01)

    follow(named(name, server_learning_rate=0.03, tau=0.01, **betas), step)


def test_scaffold_follows_the_paper_with_hospitals_drawn():
    strategy = named("scaffold", server_learning_rate=0.5)
    state = start(strategy)
    weights, control = state["weights"].astype(np.float64), np.zeros(SIZE)
    for seed in range(4):
        drawn = updates(seed)[: 3 + seed]
        weights = weights + 0.5 * np.mean([update.delta for update in drawn], axis=0, dtype=np.float64)
        control = control + np.sum([update.control for update in drawn], axis=0, dtype=np.float64) / POPULATION
        for update in drawn:
            strategy.accumulate(state, update)
        np.testing.assert_allclose(strategy.finish(state), weights, atol=1e-5)
        np.testing.assert_allclose(state["control"], control, atol=1e-5)


def test_scaffolds_control_is_the_mean_of_all_hospitals_controls():
    """Whoever was drawn, and however many patients they have."""
    strategy, generator = named("scaffold"), np.random.default_rng(3)
    state, controls = start(strategy), np.zeros((POPULATION, SIZE))
    for _ in range(20):
        for index in sorted(generator.choice(POPULATION, 4, replace=False)):
            change = generator.standard_normal(SIZE).astype(np.float32)
            controls[index] += change
            patients = int(generator.integers(1, 900))
            strategy.accumulate(state, Update(f"h{index}", np.zeros(SIZE, np.float32), patients, change))
        strategy.finish(state)
    np.testing.assert_allclose(state["control"], controls.mean(axis=0), atol=1e-5)


def test_scaffold_refuses_an_update_without_control_and_stays_as_it_was():
    strategy = named("scaffold")
    state = start(strategy)
    with pytest.raises(UpdateRejected) as caught:
        strategy.accumulate(state, Update("a", np.ones(SIZE, np.float32), 3))
    assert caught.value.code == "control-missing"
    assert set(state) == set(start(strategy))


class Nodes:
    def get_node_ids(self) -> range:
        return range(1, HOSPITALS + 1)


def flowers_round(strategy: flower.Strategy, number: int, weights: Vector, batch: list[Update]) -> Vector:
    """Run one round of a Flower strategy on the models that the updates stand for."""
    with identity(1):
        list(strategy.configure_train(number, ArrayRecord({"w": Array(weights)}), ConfigRecord(), Nodes()))
        replies = []
        for node, update in enumerate(batch, start=1):
            arrays, metrics = (
                ArrayRecord({"w": Array(weights + update.delta)}),
                MetricRecord({"num-examples": update.num_examples}),
            )
            request = Message(RecordDict(), dst_node_id=node, message_type="train")
            replies.append(Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=request))
        arrays, _ = strategy.aggregate_train(number, replies)
    assert arrays is not None
    return arrays["w"].numpy()


def agree(ours: Strategy, theirs: flower.Strategy, before: Callable[[int], None] = lambda number: None) -> None:
    state = start(ours)
    weights = state["weights"].copy()
    for number in range(1, 6):
        before(number)
        weights = flowers_round(theirs, number, weights, updates(number))
        np.testing.assert_allclose(play(ours, state, range(number, number + 1)), weights, rtol=5e-5, atol=5e-5)


PAIRS = {
    "fedavg": (lambda: named("fedavg"), flower.FedAvg),
    "fedavgm": (
        lambda: named("fedavgm", momentum=0.6, server_learning_rate=0.4),
        lambda: flower.FedAvgM(server_momentum=0.6, server_learning_rate=0.4),
    ),
    "median": (lambda: named("median"), flower.FedMedian),
    "trimmed_mean": (lambda: named("trimmed_mean", trim=0.3), lambda: flower.FedTrimmedAvg(beta=0.3)),
    "krum": (lambda: named("krum", byzantine=2), lambda: flower.Krum(num_malicious_nodes=2)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_equals_flowers(name):
    ours, theirs = PAIRS[name]
    agree(ours(), theirs())


@pytest.mark.parametrize("name", ["fedyogi", "fedadagrad"])
def test_equals_flowers_that_starts_where_the_paper_does(name):
    theirs = {"fedyogi": flower.FedYogi, "fedadagrad": flower.FedAdagrad}[name](eta=0.05, tau=0.01)
    theirs.v_t = {"w": np.full(SIZE, 0.01**2, np.float32)}
    agree(named(name, server_learning_rate=0.05, tau=0.01), theirs)


def test_fedadam_equals_flowers_without_its_start_correction():
    theirs = flower.FedAdam(tau=0.01)
    theirs.v_t = {"w": np.full(SIZE, 0.01**2, np.float32)}

    def take_the_correction_out(number: int) -> None:
        theirs.eta = 0.05 * (1 - 0.9 ** (number + 1)) / np.sqrt(1 - 0.99 ** (number + 1))

    agree(named("fedadam", server_learning_rate=0.05, tau=0.01), theirs, take_the_correction_out)
