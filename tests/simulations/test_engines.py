"""Engines: the same scenario and seed give the same weights, wherever the work is done."""

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from client.ledger import Ledger
from common import flower
from common.config import merge
from common.privacy.events import from_text
from server import coordinator, rounds
from server.plan import Plan
from server.records import sha256
from simulations import deploy
from simulations.engines import ENGINES
from simulations.hospitals import contexts, populate
from simulations.local_grid import LocalGrid
from simulations.scenario import read

TABLES = {
    "task": {"name": "heart", "hidden": 4},
    "rounds": 2,
    "strategy": "scaffold",
    "training": {"epochs": 1, "compile": "graph"},
    "simulation": {"dataset": "heart", "workers": 1, "comparators": False},
}


def play(folder, engine="local", population=None, **over):
    scenario = read(TABLES, over)
    outcomes, rounds = [], []
    ENGINES[engine](
        scenario, population or populate(scenario), Plan(scenario.run), folder, rounds.append, outcomes.append
    )
    (outcome,) = outcomes
    assert [record.round for record in rounds] == [1, 2]
    return outcome


@pytest.fixture(scope="module")
def population():
    return populate(read(TABLES))


@pytest.fixture(scope="module")
def local(population, tmp_path_factory):
    return play(tmp_path_factory.mktemp("local"), population=population)


class TestSeed:
    def test_the_same_scenario_and_seed_give_the_same_weights(self, local, tmp_path):
        again = play(tmp_path)
        assert sha256(again.model.weights) == sha256(local.model.weights)
        assert [record.metrics for record in again.rounds] == [record.metrics for record in local.rounds]

    def test_another_seed_gives_others(self, local, tmp_path):
        assert sha256(play(tmp_path, seed=2).model.weights) != sha256(local.model.weights)

    def test_hospitals_are_in_the_order_of_their_names(self, local, population):
        assert [member.name for member in local.members] == population.names == sorted(population.names)


class TestResume:
    def test_stopped_and_started_again_it_ends_with_the_same_bits(self, population, local, tmp_path):
        """SCAFFOLD's control variates at the hospitals have to come back too."""
        scenario, told, outcomes = read(TABLES), [], []

        def stop(record):
            told.append(record.round)
            if told == [1, 2]:
                raise KeyboardInterrupt

        run = ENGINES["local"]
        with pytest.raises(KeyboardInterrupt):
            run(scenario, population, Plan(scenario.run), tmp_path, stop, outcomes.append)
        run(scenario, population, Plan(scenario.run), tmp_path, stop, outcomes.append)
        assert told == [1, 2, 2]
        assert sha256(outcomes[0].model.weights) == sha256(local.model.weights)


class TestLocalGrid:
    def grid(self):
        asked = []

        def ask(message, context):
            return lambda: asked.append(context.node_id) or message

        return LocalGrid(ask, contexts(3)), asked

    def message(self, grid, node):
        from flwr.app import RecordDict

        return grid.create_message(RecordDict(), "train", node, "1")

    def test_every_message_goes_to_its_node_and_its_answer_can_be_pulled_once(self):
        grid, asked = self.grid()
        assert grid.get_node_ids() == [1, 2, 3]
        with flower.identity(grid.run.run_id):
            names = grid.push_messages([self.message(grid, node) for node in (3, 1)])
        assert len(set(names)) == 2
        assert asked == []  # nothing is done before someone waits for it
        assert len(grid.pull_messages([names[1]])) == 1
        assert asked == [1]
        assert grid.pull_messages([names[1], "unknown"]) == []
        assert len(grid.pull_messages(names)) == 1
        assert asked == [1, 3]

    def test_contexts_are_as_flower_makes_them(self):
        made = contexts(2)
        assert {node: dict(context.node_config) for node, context in made.items()} == {
            1: {"partition-id": 0, "num-partitions": 2},
            2: {"partition-id": 1, "num-partitions": 2},
        }


@pytest.mark.slow
def test_worker_processes_give_the_same_bits(local, tmp_path):
    outcome = play(tmp_path, simulation={**TABLES["simulation"], "workers": 2})
    assert sha256(outcome.model.weights) == sha256(local.model.weights)
    assert [replace(record, seconds=0.0) for record in outcome.rounds] == [
        replace(record, seconds=0.0) for record in local.rounds
    ]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install 'fedward[ray]'")
@pytest.mark.filterwarnings("ignore")
def test_ray_and_local_agree(local, tmp_path):
    outcome = play(tmp_path, "ray")
    np.testing.assert_allclose(outcome.model.weights, local.model.weights, atol=1e-5)
    assert [record.asked for record in outcome.rounds] == [record.asked for record in local.rounds]


SECURE = {
    "task": {"name": "heart", "model": "logistic"},
    "strategy": "fedavg",
    "secure": {"aggregation": True, "examples": 300},
}


KEPT = {
    "task": {"name": "heart", "model": "logistic", "site_intercept": True},
    "strategy": "scaffold",
    "update": {"codec": "topk", "keep": 0.5},
}
"""Hospitals keep a part of the model, a control variate and what was not sent."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_hospitals_keep_over_real_processes_gives_the_bits_of_one_process(tmp_path_factory):
    over = merge(TABLES, KEPT)
    here, there = (play(tmp_path_factory.mktemp(engine), engine, **over) for engine in ("local", "deploy"))
    assert sha256(here.model.weights) == sha256(there.model.weights)
    assert not any(record.dropped for record in there.rounds)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_noise_that_is_shared_over_real_processes_is_that_much_and_charged_at_each_hospital(tmp_path):
    """Hospitals draw it from their systems: two such sums differ by twice the variance that the events claim."""
    privacy = {"epsilon": 1.0, "delta": 1e-4, "method": "full", "noise": "shared"}
    training = {"optimizer": "sgd", "learning_rate": 0.4, "compile": "graph", "weight_decay": 0.0}
    scenario = read(merge(TABLES, SECURE), {"rounds": 1, "privacy": privacy, "training": training})
    population = populate(scenario)
    plan = Plan(scenario.run, cohort=tuple(population.names))
    local = []
    ENGINES["local"](scenario, population, plan, tmp_path, lambda _: None, local.append)
    with (
        deploy.running(population, plan.task) as federation,
        coordinator.grid(coordinator.place_of(federation), plan) as grid,
    ):
        outcome = rounds.run(grid, plan)
        spent = [
            opened.table(1e-4) for path in federation.folder.parent.glob("*/ledger.sqlite") for opened in [Ledger(path)]
        ]
    assert [[(row.charges, row.unused) for row in table] for table in spent] == [[(1, 0)]] * len(population.names)
    (events,) = [record.events for record in outcome.rounds]
    assert sorted(events) == population.names
    difference = outcome.model.weights.astype(np.float64) - local[0].model.weights
    moved = 0.4 / 300 + len(difference) ** 0.5 * len(population.names) * 16 / 2**30
    patients = sum(member.train.rows for member in outcome.members)
    sigma = from_text(events[population.names[0]]).noise_multiplier * moved * (4 / 3) ** 0.5 * 300 / patients
    assert stats.kstest(difference / (sigma * 2**0.5), "norm").pvalue > 0.001
