"""Models that are fitted by sums: the same bits from any hospitals, in any order, masked or not, resumed or not; and what contradicts them is refused."""

import numpy as np
import pytest

from client.hospital import Hospital
from client.worker import Worker
from common import flower
from common.errors import ConfigError, QuorumError
from common.tasks import read_run, task_of
from common.tasks.survival import COLUMNS
from server import plan as plans
from server import rounds
from server.plan import Plan
from simulations.engines import grid_of
from simulations.hospitals import seats_of

FOREST = {"task": {"name": "splice", "trees": 5, "depth": 4, "length": 12, "positions": 12}, "rounds": 4}
COX = {"task": {"name": "survival"}, "rounds": 4}
RUNS = {"forest": FOREST, "cox": COX}


def records_of(name, rows, seed):
    generator = np.random.default_rng(seed)
    if name == "forest":
        texts = ["".join(generator.choice([*"ACGT"], 12)) for _ in range(rows)]
        label = np.array([(text[5] == "A") + (text[6] in "CG") for text in texts])
        return {"sequence": np.array(texts, object), "label": label}
    columns = {column.name: generator.integers(0, 2, rows).astype(float) for column in COLUMNS}
    columns["age_at_index"] = generator.uniform(30, 80, rows)
    days = generator.exponential(300 * np.exp(-columns["race_white"]))
    return columns | {"T": days, "E": generator.integers(0, 2, rows)}


def grid_for(name, sizes=(40, 25, 31)):
    hospitals = [
        Hospital(f"h{n}", records_of(name, size, n), records_of(name, 0, 9), records_of(name, 12, n + 50))
        for n, size in enumerate(sizes)
    ]
    return grid_of(seats_of(hospitals, Worker(), bytes(32)))


def run(name, over=None, **more):
    return run_over(grid_for(name), Plan(read_run(RUNS[name] | (over or {}))), **more)


def run_over(grid, plan, **more):
    with flower.identity(grid.run.run_id):
        return rounds.run(grid, plan, **more)


@pytest.fixture(scope="module", params=RUNS)
def fitted(request):
    return request.param, run(request.param)


def test_a_secure_sum_gives_the_same_bits(fitted):
    name, plain = fitted
    secure = run(name, {"secure": {"aggregation": True}})
    assert secure.model.weights.tobytes() == plain.model.weights.tobytes()


def test_a_run_that_is_resumed_ends_with_the_same_bits(fitted, tmp_path):
    name, plain = fitted

    class Killed(Exception):
        pass

    def stop(record):
        if record.round == 3:
            raise Killed

    with pytest.raises(Killed):
        run(name, folder=tmp_path, watch=stop)
    again = run(name, folder=tmp_path)
    assert again.model.weights.tobytes() == plain.model.weights.tobytes()
    assert len(again.rounds) == 4


def test_hospitals_together_fit_what_one_with_all_their_patients_does():
    """For the forest to the bit; its preparation is empty, so that it is the same everywhere."""
    parts = [records_of("forest", size, n) for n, size in enumerate((40, 25, 31))]
    pool = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    one = Hospital("all", pool, records_of("forest", 0, 9), records_of("forest", 12, 50))
    central = run_over(grid_of(seats_of([one], Worker(), bytes(32))), Plan(read_run(FOREST)))
    assert central.model.weights.tobytes() == run("forest").model.weights.tobytes()


def test_the_model_learns(fitted):
    _, outcome = fitted
    task = task_of(outcome.coordinator.config.task)
    last = task.objective.values(
        {key: sum(part[key] for part in outcome.tests.values()) for key in outcome.tests["h0"]}
    )
    assert last[task.objective.headline] > 0.6


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"strategy": {"name": "fedavgm"}}, "strategy.name: 'fedavgm' is a rule for averages"),
        ({"strategy": {"name": "fedprox"}}, "strategy.name: 'fedprox'"),
        ({"strategy": {"name": "scaffold"}, "training": {"optimizer": "sgd"}}, "strategy.name: 'scaffold'"),
        ({"update": {"codec": "float16"}}, "update.codec: 'float16' would change sums"),
        ({"limits": {"update_norm": 5.0}}, "limits.update_norm"),
        ({"privacy": {"epsilon": 3.0}}, "privacy.epsilon: no noise is added"),
    ],
)
def test_what_needs_updates_that_move_a_model_is_refused_in_one_line(setting, words):
    with pytest.raises(ConfigError, match=words) as caught:
        _ = Plan(read_run(FOREST | setting)).strategy
    assert "\n" not in str(caught.value)


def test_a_coordinator_that_does_not_refuse_it_gets_no_sums_under_differential_privacy(monkeypatch):
    monkeypatch.setattr(plans, "_check_learner", lambda _config: None)
    with pytest.raises(QuorumError, match="h0: privacy"):
        run("forest", {"privacy": {"epsilon": 3.0}, "limits": {"retries": 0}})


def test_a_loss_that_compares_patients_has_no_epsilon_of_records():
    settings = {"task": {"name": "survival", "model": "neural"}, "privacy": {"epsilon": 3.0}}
    with pytest.raises(ConfigError, match=r"privacy\.unit: this task's loss compares patients"):
        _ = Plan(read_run(settings)).strategy
    private = {"epsilon": 3.0, "unit": "hospital"}
    assert Plan(read_run({"task": settings["task"], "privacy": private, "training": {"optimizer": "sgd"}})).strategy
