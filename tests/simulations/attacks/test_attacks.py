"""The contract of every attack, and what single updates tell: all where they travel as they are, nothing under a mask."""

import numpy as np
import pytest

from client.worker import Worker
from common.errors import UpdateRejected
from common.messages import TRAIN, Request, run_text
from simulations import workers
from simulations.attacks import ATTACKS, inversion, membership, shadows
from simulations.attacks.attack import Target, overhear
from simulations.hospitals import populate
from simulations.scenario import read

BASE = {
    "task": {"name": "heart"},
    "rounds": 2,
    "training": {"compile": "graph"},
    "simulation": {"dataset": "heart", "comparators": False},
}
NOISED = {"privacy": {"epsilon": 1.0, "delta": 1e-4, "method": "full"}}
WAYS = {"plain": {}, "noised": NOISED, "masked": {"secure": {"aggregation": True}}}
WORKER = Worker()


def attacked(over, shadows=0):
    scenario = read(BASE, over)
    population = populate(scenario)
    outcome, heard = overhear(scenario.run, population.hospitals, WORKER, population.secret)
    return Target(scenario, population, outcome, heard, WORKER, shadows)


@pytest.fixture(scope="module", params=WAYS)
def way(request):
    return request.param, attacked(WAYS[request.param])


@pytest.fixture(scope="module")
def plain():
    return attacked({}, shadows=3)


class TestEveryAttack:
    @pytest.mark.parametrize("name", ATTACKS)
    def test_its_findings_are_named_and_can_be_put_together(self, way, name, monkeypatch):
        monkeypatch.setattr(inversion, "TRIES", 1)
        found = ATTACKS[name].run(way[1])
        assert len({(each.view, each.measure) for each in found}) == len(found)
        for each in found:
            assert each.attack == name
            assert np.isfinite(each.value)
            if each.kind == "share":
                assert each.value == each.hits / each.trials

    @pytest.mark.parametrize("name", ATTACKS)
    def test_the_same_run_gives_the_same_findings(self, plain, name, monkeypatch):
        monkeypatch.setattr(inversion, "TRIES", 1)
        assert ATTACKS[name].run(plain) == ATTACKS[name].run(plain)


class TestUpdates:
    def test_what_is_overheard_is_what_moved_the_model(self):
        target = attacked({"rounds": 1})
        rows = np.array([len(h.train["age"]) for h in target.population.hospitals])
        mean = np.average([heard.update for heard in target.heard], axis=0, weights=rows)
        moved = target.outcome.model.weights - target.heard[0].weights
        np.testing.assert_allclose(mean, moved, atol=1e-6)

    def test_a_record_is_read_from_a_plain_update_and_not_from_a_noised_or_masked_one(self, way):
        name, target = way
        network = inversion.networks.build(
            target.outcome.coordinator.plan.task,
            inversion.json.loads(target.outcome.model.preparation),
            (),
            1,
        )
        values = inversion._attacked(target, network, 1, 0)
        assert len(values) == 4
        assert min(values) > 60 if name == "plain" else max(values) < 20

    def test_more_records_a_step_are_harder_to_tell_apart(self, plain):
        found = [each.value for each in inversion.run(plain)][1:]
        assert found == sorted(found, reverse=True)

    def test_a_masked_update_says_nothing_about_its_patients(self):
        target = attacked({"secure": {"aggregation": True}, "rounds": 1})
        found = {each.view: each.value for each in membership.run(target) if each.measure == "AUC"}
        assert found["loss, single update"] == pytest.approx(0.5, abs=0.06)  # 0.023 is its standard deviation
        values = np.concatenate([heard.update for heard in target.heard])
        assert np.abs(values).mean() > 1.0  # of a range of 2 * 16 * 4, where true updates are below 0.1


def test_a_model_with_a_layer_to_catch_patients_in_is_refused_by_the_hospital(plain):
    """An imprint layer (Fowl et al. 2022) is one more than the task has; the hospital builds the model itself, and only weights that fit it are taken."""
    outcome, hospital = plain.outcome, plain.population.hospitals[0]
    options = {
        "preparation": outcome.model.preparation,
        "local-parts": "",
        "server-round": 1,
        "attempt": 0,
        "evaluate": False,
    }
    weights = outcome.model.weights
    imprint = Request(run_text(plain.scenario.run), {"weights": np.concatenate([weights, weights])}, options)
    with pytest.raises(UpdateRejected) as refused:
        WORKER.answer(TRAIN, hospital, imprint, {})
    assert refused.value.code == "layout"
    renamed = Request(run_text(plain.scenario.run), {"weights": weights}, {**options, "layout": "0" * 64})
    with pytest.raises(UpdateRejected) as refused:
        WORKER.answer(TRAIN, hospital, renamed, {})
    assert refused.value.code == "layout"


class TestShadows:
    def test_each_is_another_draw_of_as_many_patients(self, plain):
        made = list(shadows.shadows(plain))
        inside = np.array([flags for _, flags in made])
        sizes = sum(len(h.train["age"]) for h in plain.population.hospitals)
        assert (inside.sum(axis=1) == sizes).all()
        assert len({weights.tobytes() for weights, _ in made}) == len(made)
        assert 0.5 < np.mean(inside[0] == inside[1]) < 0.7  # 0.58 where each is in with a chance of 0.7

    def test_processes_of_their_own_train_the_same_ones(self, plain, monkeypatch):
        here = list(shadows.shadows(plain))
        monkeypatch.setattr(workers, "cores", lambda: 2)
        monkeypatch.setattr(workers, "WORTH_SECONDS", 0.0)
        for (weights, inside), (theirs, members) in zip(here, shadows.shadows(plain), strict=True):
            np.testing.assert_array_equal(weights, theirs)
            np.testing.assert_array_equal(inside, members)

    def test_they_leave_nothing_behind_at_the_worker(self, plain):
        list(shadows.shadows(plain))
        assert len({hospital for hospital, _ in plain.worker._held}) < 40

    def test_an_attack_on_few_patients_whom_a_large_model_remembers_finds_them(self):
        """The positive control: a model that is trained far too long gives its patients away."""
        target = attacked(
            {
                "task": {"name": "heart", "hidden": 256},
                "rounds": 20,
                "training": {"epochs": 20, "learning_rate": 0.4, "weight_decay": 0.0},
                "simulation": {"test": 0.8},
            }
        )
        found = {each.view: each.value for each in membership.run(target) if each.measure == "AUC"}
        assert found["loss, final model"] > 0.6  # 0.5 and five standard deviations


IMAGES = {
    "task": {"name": "pneumonia", "width": 4},
    "rounds": 1,
    "strategy": {"name": "fedavg"},
    "training": {"epochs": 1, "compile": "graph"},
    "simulation": {"dataset": "pneumonia-synthetic", "hospitals": 3, "partition": "iid"},
}


@pytest.fixture(scope="module")
def images():
    found = {}
    for way, over in WAYS.items():
        scenario = read(IMAGES, over)
        population = populate(scenario)
        outcome, heard = overhear(scenario.run, population.hospitals, WORKER, population.secret)
        target = Target(scenario, population, outcome, heard, WORKER)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(inversion, "MATCHED", 1)
            found[way] = {each.view: each.value for each in inversion.run(target)}
    return found


class TestImages:
    def test_one_is_found_again_by_its_gradient(self, images):
        plain = images["plain"]
        assert plain["1 record a step"] > plain["no update, the mean patient"] + 3

    @pytest.mark.parametrize("way", ["noised", "masked"])
    def test_under_noise_or_a_mask_it_is_not(self, images, way):
        assert images[way]["1 record a step"] < images[way]["no update, the mean patient"]
