"""Cox regression from sums is that of an optimiser on the pooled strata, and the c-index from sums that of counting pairs one by one."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import approx_fprime, minimize

from common import metrics_survival as metrics
from common.errors import DataError
from common.statistics import total
from common.tasks import cox, survival
from common.tasks.cox import Cox
from common.tasks.survival import Survival
from common.tasks.task import Examples


def patients(seed, n, columns=3):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n, columns)).astype(np.float32)
    days = np.ceil(generator.exponential(20 * np.exp(-0.8 * x[:, 0])))
    return Examples(x, np.stack([days, generator.random(n) < 0.6], axis=1).astype(np.float32))


def loss(weights, hospitals, ridge=0.0):
    """Return the stratified negative log likelihood by Breslow's rule, term by term."""
    value = ridge / 2 * float(weights @ weights)
    for examples in hospitals:
        scores = examples.x.astype(float) @ weights
        for day, died, score in zip(*examples.y.T, scores, strict=True):
            value += (np.log(np.exp(scores[examples.y[:, 0] >= day]).sum()) - score) if died else 0.0
    return value


@pytest.mark.parametrize("seed", range(3))
def test_derivatives_are_those_of_the_likelihood(seed):
    examples, weights = patients(seed, 40), np.array([0.5, -0.3, 0.1])
    gradient, hessian = cox.derivatives(examples.x.astype(float), examples.y, weights)
    np.testing.assert_allclose(gradient, approx_fprime(weights, lambda w: loss(w, [examples])), rtol=1e-4, atol=1e-4)
    numeric = approx_fprime(weights, lambda w: cox.derivatives(examples.x.astype(float), examples.y, w)[0])
    np.testing.assert_allclose(hessian, numeric, rtol=1e-3, atol=1e-3)


def test_newton_from_sums_ends_where_an_optimiser_does():
    hospitals = [patients(seed, n) for seed, n in ((1, 80), (2, 50), (3, 7))]
    learner, weights = Cox(3, 2.0).learner(), np.zeros(3, np.float32)
    for _ in range(8):
        sums = [learner.contribution(weights, examples, 0) for examples in hospitals]
        assert {len(values) for values in sums} == {learner.size(weights)}
        weights = learner.advance(weights, np.sum(sums, axis=0, dtype=np.float64), 0)
    best = minimize(loss, np.zeros(3), (hospitals, 2.0)).x
    np.testing.assert_allclose(weights, best, atol=1e-3)


def test_a_hospital_without_deaths_or_patients_sends_zeros():
    examples = patients(0, 10)
    for silent in (Examples(examples.x, examples.y * [1, 0]), Examples(examples.x[:0], examples.y[:0])):
        assert not Cox(3, 1.0).learner().contribution(np.ones(3, np.float32), silent, 0).any()


def test_a_first_step_from_far_away_does_not_overshoot():
    weights = Cox(2, 1e-6).advance(np.zeros(2, np.float32), np.array([1e6, 0, 1, 0, 1.0]), 0)
    assert np.abs(weights).max() <= cox.LARGEST


def counted(labels, scores):
    """Count concordant and comparable pairs one by one."""
    concordant = comparable = 0.0
    for first, second in itertools.permutations(range(len(labels)), 2):
        (day, died), (later, other) = labels[first], labels[second]
        if died and (later > day or (later == day and not other)):
            comparable += 1
            concordant += (scores[first] > scores[second]) + 0.5 * (scores[first] == scores[second])
    return concordant, comparable


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(0, 30))
def test_pairs_are_those_counted_one_by_one(seed, n):
    generator = np.random.default_rng(seed)
    labels = np.stack([generator.integers(0, 12, n), generator.integers(0, 2, n)], axis=1).astype(np.float32)
    scores = generator.integers(0, 5, (n, 1)).astype(float)
    np.testing.assert_allclose(metrics.summarise(labels, scores)["pairs"], counted(labels, scores[:, 0]))


def test_hospitals_statistics_add_and_a_pair_lies_within_one():
    parts = [(patients(seed, 30).y, np.random.default_rng(seed).normal(size=(30, 1))) for seed in (1, 2)]
    merged = total([metrics.summarise(*one) for one in parts])
    np.testing.assert_allclose(merged["pairs"], np.sum([counted(y, s[:, 0]) for y, s in parts], axis=0))


def test_the_interval_is_that_of_leaving_patients_out_one_by_one():
    examples = patients(4, 120)
    scores = (examples.x[:, :1] + np.random.default_rng(0).normal(size=(120, 1))).astype(float)
    value, low, high = metrics.compute(metrics.summarise(examples.y, scores))["c_index"]
    kept = [np.delete(np.arange(120), row) for row in range(120)]
    without = [metrics.values(metrics.summarise(examples.y[rows], scores[rows]))["c_index"] for rows in kept]
    jackknife = np.sqrt(119 / 120 * np.sum((np.array(without) - np.mean(without)) ** 2))
    assert high - low == pytest.approx(2 * 1.96 * jackknife, rel=0.1)
    assert low < value < high


def test_a_model_beside_itself_differs_by_nothing_and_a_better_one_by_more():
    examples = patients(5, 150)
    good, bad = examples.x[:, :1].astype(float), np.random.default_rng(1).normal(size=(150, 1))
    same = metrics.differences(metrics.compare(examples.y, good, good))["c_index"]
    np.testing.assert_allclose(same, 0, atol=0.02)  # the two sides of Wilson's interval differ
    value, low, _ = metrics.differences(metrics.compare(examples.y, good, bad))["c_index"]
    each = [metrics.values(metrics.summarise(examples.y, one))["c_index"] for one in (good, bad)]
    assert value == pytest.approx(each[0] - each[1])
    assert low > 0


def test_of_nobody_nothing_is_defined():
    nobody = metrics.summarise(np.zeros((0, 2), np.float32), np.zeros((0, 1)))
    assert metrics.values(nobody) == {"c_index": None, "partial_loss": None}
    assert np.isnan(metrics.compute(nobody)["c_index"].value)
    assert np.isnan(
        metrics.differences(metrics.compare(np.zeros((0, 2), np.float32), np.zeros((0, 1)), np.zeros((0, 1))))[
            "c_index"
        ].value
    )


def test_a_diverged_model_is_named():
    with pytest.raises(DataError, match="finite risks"):
        metrics.summarise(np.ones((2, 2), np.float32), np.array([[np.nan], [1.0]]))


def test_the_network_s_loss_is_the_partial_likelihood_of_the_batch():
    import tensorflow as tf

    examples, weights = patients(6, 25), np.array([0.4, -0.2, 0.3])
    scores = (examples.x @ weights)[:, None].astype(np.float32)
    parts = survival.partial_loss(tf.constant(examples.y), tf.constant(scores)).numpy()
    assert parts.sum() == pytest.approx(loss(weights, [examples]), rel=1e-4)
    judged = metrics.summarise(examples.y, scores.astype(float))["likelihood"]
    assert judged == pytest.approx([parts.sum(), examples.y[:, 1].sum()], rel=1e-4)


def test_a_negative_time_is_refused_by_its_row():
    task = Survival().build()
    records = {column.name: np.zeros(3) for column in task.columns} | {"E": np.ones(3), "T": np.array([1.0, 2.0, -3.0])}
    with pytest.raises(DataError, match=r"row 3, column 'T': expected days from 0 on") as caught:
        task.encode(records, task.fit(task.summarise(records)))
    assert "-3" not in str(caught.value)


def test_a_patient_without_a_time_did_not_die_on_day_0():
    records = {"E": np.ones(2), "T": np.array([np.nan, 5.0])}
    assert survival.outcome({column.name: np.zeros(2) for column in survival.COLUMNS} | records).tolist() == [
        [0, 0],
        [5, 1],
    ]


def test_a_hospital_smaller_than_a_batch_has_every_patient_once_in_the_risk_sets():
    import tensorflow as tf

    from client import training

    examples, weights = patients(7, 40), np.array([0.4, -0.2, 0.3])
    width = training.width(Survival("neural").build(), 64, 40)
    rows = training.plan(40, width, 1, np.random.default_rng(0))
    own, people = (rows >= 0).ravel(), np.where(rows >= 0, rows, -1 - rows).ravel()
    scores = (examples.x[people] @ weights)[:, None].astype(np.float32)
    parts = survival.partial_loss(tf.constant(examples.y[people]), tf.constant(scores)).numpy()
    assert parts[own].sum() == pytest.approx(loss(weights, [examples]), rel=1e-4)
