"""The comparators are fair: the same code and as much training as the federation had, with nothing lost on a wire that is not there."""

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Error, Message

from common import flower, messages
from common.balance import weights_of
from common.errors import QuorumError
from common.tasks.task import rows_of
from server import rounds
from server.records import sha256
from server.results import differences_of, results_of
from simulations import baselines
from simulations.hospitals import populate
from simulations.scenario import read

SETTINGS = {"task": {"model": "logistic"}}
# How often each hospital's update is used in the three rounds: one is never there, and one leaves after the first.
TOOK_PART = {"east": 1, "north": 0, "south": 3, "west": 3}


def absent(until=0):
    """Return a script that fails in every round after ``until``."""

    def script(message, answer):
        trains = message.metadata.message_type == messages.TRAIN
        if trains and message.content["config"]["server-round"] > until:
            return Message(Error(2, "failed"), reply_to=message)
        return answer()

    return script


@pytest.fixture(scope="module")
def population(federation):
    """Return the tiny federation's hospitals as a population; of the data set only the names are used."""
    tables = {"task": {"name": "heart"}, "simulation": {"dataset": "heart"}}
    return replace(
        populate(read(tables)), hospitals=federation.hospitals, seats=federation.seats(), worker=federation.worker
    )


@pytest.fixture(scope="module")
def federated(federation):
    outcome = federation.run(SETTINGS, {"east": absent(1), "north": absent()})
    assert {name: sum(name in row.answered for row in outcome.rounds) for name in TOOK_PART} == TOOK_PART
    return outcome


@pytest.fixture(autouse=True)
def _within_a_run():
    """Comparators are trained while Flower still holds the federated run."""
    with flower.identity(1):
        yield


@pytest.fixture
def trained(monkeypatch):
    """Return the list of all runs that comparators make from now on."""
    outcomes, run = [], rounds.run

    def recorded(*arguments):
        outcomes.append(run(*arguments))
        return outcomes[-1]

    monkeypatch.setattr(rounds, "run", recorded)
    return outcomes


def alone(federation, name, number, settings=None):
    """Train one hospital by itself, by hand."""
    others = [other for other in TOOK_PART if other != name]
    return federation.without(*others).run({**SETTINGS, "rounds": number, **(settings or {})}).model


def models_of(train, *words):
    """Take all models that a comparator gives, by hospital."""
    return {name: model for part in train(*words) for name, model in part.items()}


def bits(models):
    return {name: sha256(model.weights) for name, model in models.items()}


class TestLocalOnly:
    def test_it_is_the_hospital_trained_by_itself_bit_for_bit(self, federation, population, federated):
        models = models_of(baselines.local_only, population, federation.config(SETTINGS), federated)
        by_hand = {name: alone(federation, name, max(count, 1)) for name, count in TOOK_PART.items()}
        assert bits(models) == bits(by_hand)
        assert len(set(bits(models).values())) == len(models)

    def test_each_trains_for_as_many_rounds_as_its_updates_were_used(self, federation, population, federated, trained):
        """And for one where they never were, so that there is a model to compare with."""
        models_of(baselines.local_only, population, federation.config(SETTINGS), federated)
        counts = {outcome.members[0].name: len(outcome.rounds) for outcome in trained}
        assert counts == {name: max(count, 1) for name, count in TOOK_PART.items()}
        assert all(len(outcome.members) == 1 for outcome in trained)

    def test_class_weights_are_each_hospitals_own(self, federation, population, federated):
        config = federation.config({**SETTINGS, "training": {"class_weights": "balanced"}})
        models = models_of(baselines.local_only, population, config, federated)
        for member in federated.members:
            assert models[member.name].class_weights == weights_of(np.array(member.train.classes))

    def test_one_model_is_held_at_a_time(self, federation, population, federated, trained):
        parts = baselines.local_only(population, federation.config(SETTINGS), federated)
        assert not trained
        for number, part in enumerate(parts, 1):
            assert len(part) == 1
            assert len(trained) == number


class TestCentralised:
    def test_it_sees_as_many_examples_as_the_federation_did(self, federation, population, federated, trained):
        models_of(baselines.centralised, population, federation.config(SETTINGS), federated)
        (outcome,) = trained
        everyone = sum(rows_of(hospital.train) for hospital in population.hospitals)
        seen = sum(row.examples for row in federated.rounds)
        assert seen % everyone, "with this split every rounding would do"
        assert {row.examples for row in outcome.rounds} == {everyone}
        assert abs(len(outcome.rounds) * everyone - seen) <= everyone / 2

    def test_it_trains_on_the_patients_of_all_hospitals(self, federation, population, federated, trained):
        models_of(baselines.centralised, population, federation.config(SETTINGS), federated)
        (member,) = trained[0].members
        for part in ("train", "validation", "test"):
            parts = [getattr(each, part) for each in federated.members]
            assert getattr(member, part).rows == sum(each.rows for each in parts)
            assert getattr(member, part).classes == list(np.sum([each.classes for each in parts], axis=0))

    def test_every_hospital_is_given_the_same_model(self, federation, population, federated):
        models = models_of(baselines.centralised, population, federation.config(SETTINGS), federated)
        assert list(models) == population.names
        assert len({id(model) for model in models.values()}) == 1


@pytest.mark.parametrize("name", baselines.COMPARATORS)
def test_all_are_judged_on_the_same_patients(federation, population, federated, name):
    models = models_of(baselines.COMPARATORS[name].train, population, federation.config(SETTINGS), federated)
    tests, _ = federated.coordinator.judge(models)
    assert set(tests) == set(federated.tests) == set(TOOK_PART)
    for member in federated.members:
        # A row of the confusion matrix counts the patients that are of one class, whatever the model takes them for.
        labels = tests[member.name]["confusion"].sum(axis=1)
        assert list(labels) == list(federated.tests[member.name]["confusion"].sum(axis=1)) == member.test.classes


@pytest.mark.parametrize("name", baselines.COMPARATORS)
def test_each_model_is_judged_at_its_own_threshold_and_compared_at_it(federation, population, name):
    settings = {**SETTINGS, "evaluation": {"validation": 0.2, "threshold": "youden"}}
    federated = federation.run(settings)
    coordinator = federated.coordinator
    models = models_of(baselines.COMPARATORS[name].train, population, federation.config(settings), federated)
    tests, decided = coordinator.judge(models)
    thresholds = [decided[each].threshold for each in population.names]
    assert len(set(thresholds)) == (1 if name == "central" else len(thresholds))
    assert federated.model.threshold not in thresholds
    task, joint = coordinator.plan.task, coordinator.compare(federated.model, decided)
    differences = differences_of(task, joint)
    ours, theirs = (results_of(task, found) for found in (federated.tests, tests))
    for metric in ("accuracy", "recall", "specificity", "macro_f1", "brier"):
        expected = ours.pooled[metric][0] - theirs.pooled[metric][0]
        assert differences["pooled"][metric][0] == pytest.approx(expected), metric
    for hospital, parts in joint.items():
        np.testing.assert_array_equal(parts["predictions"].sum(axis=2), federated.tests[hospital]["confusion"])
        np.testing.assert_array_equal(parts["predictions"].sum(axis=1), tests[hospital]["confusion"])


def test_a_hospital_alone_decides_by_its_own_validation_patients(federation, population):
    settings = {**SETTINGS, "evaluation": {"validation": 0.2, "threshold": "f1"}}
    federated = federation.run(settings)
    models = models_of(baselines.local_only, population, federation.config(settings), federated)
    _, decided = federated.coordinator.judge(models)
    _, alone = federated.coordinator.judge({"south": models["south"]})
    assert decided["south"].threshold == alone["south"].threshold


# Settings of the federated run that have no place in a comparator.
OVER = {
    "codec": {"update": {"codec": "int8"}},
    "selection": {"selection": {"minimum": 2}, "limits": {"deadline_seconds": 0.5}},
    "limit on updates": {"limits": {"update_norm": 1e-6}},
    "limit on examples": {"limits": {"examples": 1}},
    "strategy": {"strategy": {"name": "fedprox", "mu": 10.0}, "training": {"epochs": 3}},
}


@pytest.mark.parametrize("case", OVER)
def test_nothing_is_lost_to_what_only_a_federation_needs(federation, population, federated, case):
    base = {"training": OVER[case].get("training", {})}
    plain, burdened = (federation.config({**SETTINGS, **settings}) for settings in (base, {**base, **OVER[case]}))
    for comparator in baselines.COMPARATORS.values():
        expected = models_of(comparator.train, population, plain, federated)
        assert bits(models_of(comparator.train, population, burdened, federated)) == bits(expected)


@pytest.mark.parametrize("case", OVER)
def test_those_settings_do_cost_a_federation_something(federation, case):
    """Otherwise the test above could not fail."""
    base = {"training": {**federation.base["training"], **OVER[case].get("training", {})}}
    honest = sha256(alone(federation, "south", 3, base).weights)
    try:
        burdened = sha256(alone(federation, "south", 3, {**OVER[case], **base}).weights)
    except QuorumError:
        return
    assert burdened != honest


def test_a_comparator_stops_early_as_the_federation_does(federation, population, federated, trained):
    """No gain after the first round counts as one here, so the second is the last, and what is kept is the start."""
    stopping = {"evaluation": {"validation": 0.2}, "stopping": {"patience": 1, "min_delta": 1e5}}
    config = federation.config({**SETTINGS, **stopping})
    models = models_of(baselines.local_only, population, config, federated)
    counts = {outcome.members[0].name: len(outcome.rounds) for outcome in trained}
    assert counts == {name: min(max(count, 1), 2) for name, count in TOOK_PART.items()}
    by_hand = {name: alone(federation, name, max(count, 1), stopping) for name, count in TOOK_PART.items()}
    assert bits(models) == bits(by_hand)


def test_pooled_patients_keep_their_columns(population):
    pooled = baselines._pool([hospital.train for hospital in population.hospitals])
    for name, column in pooled.items():
        np.testing.assert_array_equal(column, np.concatenate([h.train[name] for h in population.hospitals]))
