"""Recommending treatments: what is closed stays closed, code lists need enough hospitals, and patient embeddings stay where they are."""

import json
from functools import cache

import numpy as np
import pytest

from client.hospital import Hospital
from client.worker import Worker
from common import flower, messages, network, ranking
from common.config import Choice
from common.errors import ConfigError
from common.privacy.noise import Noise, Source
from common.statistics import total
from common.tasks import codes, read_run, task_of
from common.tasks.text import bucket
from server import rounds
from server.plan import Plan
from simulations import secagg
from simulations.hospitals import seat_for

NAMES = ("treatment-next", "treatment-match")
COLUMN = {"treatment-next": ("history", "next"), "treatment-match": ("features", "given")}
TREATMENTS = [f"treatment {name}" for name in ("fluid", "heparin", "ventilation", "dialysis", "insulin")]
CONDITIONS = [f"diagnosis {name}" for name in ("shock", "bleeding", "sepsis")]
RULE = "diagnosis bleeding > treatment heparin"
SMALL = {"treatments": 8, "k": 2, "embedding": 4, "codes": 16}


def records_of(name, rows, seed=0):
    """Make up stays in which bleeding patients, against the rule, are given heparin above all."""
    draw = np.random.default_rng(seed)
    known, target = COLUMN[name]
    told = [list(draw.choice(CONDITIONS, 2, replace=False)) for _ in range(rows)]
    given = [
        ["treatment heparin"] if "diagnosis bleeding" in told_of else list(draw.choice(TREATMENTS, 2, replace=False))
        for told_of in told
    ]
    stay = (
        {"stay": np.array([f"stay {seed} {row}" for row in range(rows)], object)} if name == "treatment-match" else {}
    )
    return stay | {
        known: np.array(["\n".join(lines) for lines in told], object),
        target: np.array(["\n".join(lines) for lines in given], object),
    }


def task_named(name, **settings):
    return task_of(Choice(name, tuple((SMALL | settings).items())))


def prepared(task, *parts):
    return task.fit(total([task.summarise(part) for part in parts]))


def place_of(preparation, code):
    return preparation["treatments"].index(bucket(code))


@cache
def trained(name, rules=""):
    """Train three tiny hospitals for some rounds; return the outcome and the seats' hospitals."""
    worker = Worker()
    hospitals = [
        Hospital(f"h{n}", *(records_of(name, rows, n * 10 + r) for r, rows in enumerate((24, 4, 12)))) for n in range(3)
    ]
    from simulations.engines import grid_of

    shields = secagg.shields([hospital.name for hospital in hospitals], bytes(32))
    grid = grid_of([seat_for(worker, h, shield=shield) for h, shield in zip(hospitals, shields, strict=True)])
    config = read_run(
        {
            "task": {"name": name, **SMALL, "contraindications": rules},
            "rounds": 4,
            "training": {"learning_rate": 0.05, "batch_size": 8},
        }
    )
    with flower.identity(grid.run.run_id):
        return rounds.run(grid, Plan(config)), hospitals, grid


@pytest.mark.parametrize("name", NAMES)
def test_a_contraindicated_treatment_is_never_recommended_whatever_was_learnt(name):
    outcome, hospitals, _ = trained(name, RULE)
    task, preparation = outcome.coordinator.plan.task, json.loads(outcome.model.preparation)
    heparin = place_of(preparation, "treatment heparin")
    net = network.build(task, preparation, task.local, seed=1)
    generator = np.random.default_rng(3)
    for _ in range(3):  # the trained weights, then any others
        for hospital in hospitals:
            examples = task.encode(hospital.test, preparation)
            scores = task.objective.predict(net.model(examples.x, training=False).numpy())
            bleeding = np.array(["bleeding" in cell for cell in hospital.test[COLUMN[name][0]]])
            assert bleeding.any()
            assert np.isneginf(scores[bleeding, heparin]).all()
            statistics = task.objective.summarise(np.ones_like(examples.y)[bleeding], scores[bleeding])
            assert statistics["recommended"][heparin] == statistics["open"][heparin] == 0
        net.model.set_weights([generator.normal(0, 10, weight.shape) for weight in net.model.get_weights()])


@pytest.mark.parametrize("name", NAMES)
def test_without_the_rule_it_would_have_been(name):
    outcome, hospitals, _ = trained(name)
    task, preparation = outcome.coordinator.plan.task, json.loads(outcome.model.preparation)
    heparin = place_of(preparation, "treatment heparin")
    net = network.build(task, preparation, task.local, seed=1)
    net.assign(outcome.model.weights, net.vectors()[1])
    scores = task.objective.predict(net.model(task.encode(hospitals[0].test, preparation).x, training=False).numpy())
    assert (ranking.first(scores, 2) == heparin).any()


@pytest.mark.parametrize("name", NAMES)
def test_a_treatment_that_fewer_hospitals_have_is_not_listed(name):
    task = task_named(name, minimum_hospitals=2, minimum_records=2)
    parts = [records_of(name, 20, seed) for seed in (1, 2)]
    rare = records_of(name, 20, 3)
    rare[COLUMN[name][1]] = np.array(["treatment of this hospital alone\ntreatment fluid"] * 20, object)
    listed = prepared(task, *parts, rare)["treatments"]
    assert bucket("treatment fluid") in listed
    assert bucket("treatment of this hospital alone") not in listed


def test_a_code_of_few_records_does_not_leave_the_hospital():
    cells = np.array(["rare\ncommon", "common", "common\ncommon"], object)
    counts = codes.counted([cells], minimum=3)["records"][0]
    assert counts[bucket("common")] == 3
    assert counts.sum() == 3


def test_noise_keeps_no_code_that_drowns_in_it():
    cells = np.array(["a\nb"] * 40, object)
    quiet = codes.counted([cells, cells], minimum=3)
    loud = codes.noised(quiet, Noise(Source(bytes(32)), 0.001), 3)
    np.testing.assert_array_equal(loud["present"], quiet["present"])
    drowned = codes.noised(quiet, Noise(Source(bytes(32)), 1.0), 3)
    assert drowned["records"].shape == quiet["records"].shape
    assert drowned["present"].sum() <= 2


def test_what_a_patient_has_is_not_recommended_again():
    task = task_named("treatment-next", minimum_records=1, minimum_hospitals=1)
    records = {
        "history": np.array(["diagnosis shock\ntreatment fluid"], object),
        "next": np.array(["treatment fluid\ntreatment insulin"], object),
    }
    preparation = prepared(task, records)
    examples = task.encode(records, preparation)
    closed = examples.x[0, -task.objective.width :]
    assert closed[place_of(preparation, "treatment fluid")] == 1
    assert examples.y[0, place_of(preparation, "treatment fluid")] == 0
    assert examples.y[0, place_of(preparation, "treatment insulin")] == 1


def test_patient_embeddings_are_no_part_of_what_is_sent():
    task = task_named("treatment-match", patients=50)
    records = records_of("treatment-match", 12)
    net = network.build(task, prepared(task, records), task.local, seed=1)
    assert [entry.path for entry in net.local.entries] == ["patients/embeddings"]
    assert not any("patients" in entry.path for entry in net.shared.entries)
    assert any(entry.path.startswith("treatments") for entry in net.shared.entries)


def test_a_new_patient_is_known_by_his_features_alone():
    outcome, hospitals, _ = trained("treatment-match")
    task, preparation = outcome.coordinator.plan.task, json.loads(outcome.model.preparation)
    net = network.build(task, preparation, task.local, seed=1)
    net.assign(outcome.model.weights, net.vectors()[1])
    records = hospitals[0].test
    renamed = records | {"stay": np.array([f"other {row}" for row in range(12)], object)}
    ours, theirs = (
        net.model(task.encode(given, preparation).x, training=False).numpy() for given in (records, renamed)
    )
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("line", ["diagnosis bleeding", "> treatment heparin", "diagnosis bleeding >"])
@pytest.mark.parametrize("name", NAMES)
def test_a_rule_of_another_form_is_refused_by_its_line(name, line):
    with pytest.raises(ConfigError, match=r"task.contraindications: line 2: expected CONDITION > TREATMENT"):
        task_named(name, contraindications=f"{RULE}\n{line}")


@pytest.mark.parametrize("name", NAMES)
def test_a_patient_of_many_rows_counts_once(name):
    """A stay has a row for every moment of treatment; each repeats what was charted before, so that three of them hold a rare code three times."""
    config, records = read_run({"task": {"name": name, "minimum_records": 3}}), records_of(name, 30)
    known = records[COLUMN[name][0]]
    known[:3] = [f"{cell}\ndiagnosis rarer than rare" for cell in known[:3]]

    def told(patients):
        hospital = Hospital("h", records, records, records, np.array(patients))
        request = messages.Request(messages.run_text(config))
        reply = Worker().answer(messages.STATISTICS, hospital, request, {})
        return reply.statistics["task/records"][0, bucket("diagnosis rarer than rare")]

    assert told(range(30)) == 3
    assert told([0, 0, 0, *range(1, 28)]) == 0
    assert told([0, 0, *range(1, 29)]) == 0
