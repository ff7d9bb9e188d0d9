"""Training under differential privacy at a hospital: the update is the textbook's, its noise the ledger's, and what would break the claim is refused."""

import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from client import private
from client.hospital import Hospital
from client.ledger import Budget, Ledger, read
from client.worker import Worker
from common import wire
from common.errors import ConfigError, PolicyRefused, UpdateRejected
from common.messages import STATISTICS, TRAIN, Request, group, run_text
from common.network import dumps, initial
from common.privacy import accountant
from common.privacy.accountant import epsilon
from common.privacy.events import from_text
from common.privacy.noise import Source
from common.tasks import read_run, task_of
from tests.conftest import patients

KEY = bytes(range(32))
FULL = {"epsilon": 1.0, "delta": 1e-4, "method": "full", "clip_norm": 0.5}
SGD = {"epsilon": 3.0, "delta": 1e-4}
ROWS = 60


def hospital(rows=ROWS, budget=None, ids=None, key=lambda _: KEY):
    ledger = Ledger(budget=lambda: budget, key=key)
    return Hospital("east", patients(rows, 1), patients(5, 2), patients(20, 3), ids, ledger)


@pytest.fixture
def config(federation):
    """Make settings of a run of three rounds of a linear model."""

    def of(privacy, **settings):
        task = {"name": "heart", "model": "logistic"}
        training = {
            "batch_size": 12,
            "epochs": 1,
            "weight_decay": 0.0,
            "learning_rate": 0.4,
            **settings.pop("training", {}),
        }
        return federation.config({"task": task, "rounds": 3, "privacy": privacy, "training": training, **settings})

    return of


WORKER = Worker()


def ask(config, at, number=1, kind=TRAIN, weights=None, state=None, worker=WORKER, secure=None):
    task = task_of(config.task)
    nothing = private.statistics(at, config, task, None)
    preparation = task.fit(nothing)
    weights = initial(task, preparation, (), config.seed)[0] if weights is None else weights
    options = {
        "preparation": dumps(preparation),
        "local-parts": "",
        "server-round": number,
        "attempt": 0,
        "evaluate": False,
    }
    sums = {} if secure is None else {"packages": np.zeros((len(secure), 8), np.uint8)}
    options |= {} if secure is None else {"sum": f"{number}.{len(secure)}", "present": secure, "most": len(secure)}
    request = Request(run_text(config), *(({}, {}) if kind == STATISTICS else ({"weights": weights, **sums}, options)))
    return worker.answer(kind, at, request, {} if state is None else state), weights, task.encode(at.train, preparation)


def delta_of(reply, size):
    return wire.CODECS["float32"].decode(reply.arrays, size)


def gradients(weights, examples):
    """Return each row's gradient of the logistic loss, in the layout's order: kernel, bias."""
    kernel, bias = weights[:-1].astype(np.float64), float(weights[-1])
    error = 1 / (1 + np.exp(-(examples.x @ kernel + bias))) - examples.y
    return np.concatenate([examples.x, np.ones((len(error), 1))], 1) * error[:, None]


class TestFull:
    def test_the_update_is_minus_the_rate_times_clipped_sum_and_noise_over_the_count(self, config):
        run, at = config(FULL), hospital()
        reply, weights, examples = ask(run, at)
        event = from_text(reply.texts["event"])
        each = gradients(weights, examples)
        each *= np.minimum(1, 0.5 / np.linalg.norm(each, axis=1))[:, None]
        normals = Source(KEY).normals(len(weights)).astype(np.float64)
        expected = -0.4 * (each.sum(0) + event.noise_multiplier * 0.5 * normals) / ROWS
        np.testing.assert_allclose(delta_of(reply, len(weights)), expected, atol=1e-6)
        assert (event.sampling_rate, event.count, reply.num_examples) == (1.0, 1, ROWS)

    def test_over_many_keys_the_noise_has_the_deviation_that_the_event_claims(self, config):
        run, draws = config(FULL), []
        for number in range(60):
            at = hospital(key=lambda _, n=number: n.to_bytes(32, "big"))
            reply, weights, _ = ask(run, at)
            draws.append(delta_of(reply, len(weights)))
        scale = 0.4 * from_text(reply.texts["event"]).noise_multiplier * 0.5 / ROWS
        centred = (np.array(draws) - np.mean(draws, 0)) / scale * np.sqrt(60 / 59)
        assert stats.kstest(centred.ravel(), "norm").pvalue > 0.001


class TestRange:
    def test_weights_that_would_make_a_row_overflow_are_refused_before_anything_is_charged(self, config):
        run, at = config(FULL), hospital()
        _, weights, _ = ask(run, hospital())
        for value in (1e30, np.inf, np.nan):
            with pytest.raises(UpdateRejected, match="within 1000 of 0"):
                ask(run, at, weights=np.full_like(weights, value))
        assert at.ledger.table(1e-4) == []

    def test_patients_with_several_rows_are_not_taken_for_records(self, config):
        with pytest.raises(ConfigError, match="set it to 'patient'"):
            ask(config(FULL), hospital(ids=np.arange(ROWS) // 2))


class TestShared:
    """Noise that hospitals share out: each adds a part in whole levels, after training without any."""

    PRIVACY = {**FULL, "noise": "shared"}
    SCALE = 2.0**20

    def asked(self, config, at=None, **settings):
        run = config(self.PRIVACY, secure={"aggregation": True, "examples": 100, **settings})
        at = at or hospital()
        reply, weights, examples = ask(run, at)
        request = Request(run_text(run), {"weights": weights}, {"server-round": 1, "local-parts": ""})
        return at, request, reply, examples

    def test_the_update_itself_has_no_noise(self, config):
        _, request, reply, examples = self.asked(config)
        weights = request.arrays["weights"]
        each = gradients(weights, examples)
        each *= np.minimum(1, 0.5 / np.linalg.norm(each, axis=1))[:, None]
        np.testing.assert_allclose(delta_of(reply, len(weights)), -0.4 * each.sum(0) / ROWS, atol=1e-6)

    def test_the_parts_of_the_fewest_add_up_to_the_noise_that_the_event_claims(self, config):
        """One patient more moves the weighted update by rate times bound over ``secure.examples``, and rounding by a level a value."""
        total, count = 0, 3000
        for number in range(3):
            at, request, reply, _ = self.asked(config, hospital(key=lambda _, n=number: n.to_bytes(32, "big")))
            total = total + private.shared_noise(at, request, reply, 3)(count, self.SCALE)
        moved = 0.4 * 0.5 / 100 * self.SCALE + len(request.arrays["weights"]) ** 0.5
        sigma = from_text(reply.texts["event"]).noise_multiplier * moved
        assert stats.kstest(total / sigma, "norm").pvalue > 0.001

    def test_the_rounding_that_is_counted_is_that_of_the_weights_after_the_step(self):
        """Weights that are sent just below a power of two are coarser once they are trained."""
        largest = np.nextafter(np.float32(2), np.float32(0))
        for step, decay in ((0.1, 0.0), (0.0, 0.1)):
            assert private._rounding(np.array([-largest, 0]), step, decay) == np.spacing(np.float32(2))
        assert private._rounding(np.array([largest]), 0.0, 0.0) == np.spacing(np.float32(1))

    def test_it_is_the_same_for_the_same_charge(self, config):
        at, request, reply, _ = self.asked(config)
        first, second = (private.shared_noise(at, request, reply, 3)(50, self.SCALE) for _ in range(2))
        np.testing.assert_array_equal(first, second)

    def test_without_sharing_there_is_none(self, config):
        run, at = config(FULL), hospital()
        reply, weights, _ = ask(run, at)
        request = Request(run_text(run), {"weights": weights}, {"server-round": 1, "local-parts": ""})
        assert private.shared_noise(at, request, reply, 3) is None

    def test_parts_that_would_not_be_equal_are_refused(self, config):
        at, request, reply, _ = self.asked(config)
        for changed in (
            replace(request, arrays=request.arrays | {"control": request.arrays["weights"]}),
            replace(request, options={**request.options, "local-parts": "head"}),
        ):
            with pytest.raises(ConfigError, match="more than that"):
                private.shared_noise(at, changed, reply, 3)

    def test_noise_of_few_levels_is_refused_because_it_is_reckoned_as_continuous(self, config):
        at, request, reply, _ = self.asked(config)
        with pytest.raises(ConfigError, match=r"levels, below 32; take a smaller secure\.magnitude"):
            private.shared_noise(at, request, reply, 10**6)(5, 1.0)

    @pytest.mark.parametrize("shift", [1, 7, 32, 90])
    def test_from_the_least_levels_on_the_delta_of_a_discrete_gaussian_is_that_of_a_continuous_one(self, shift):
        sigma = private.LEAST_LEVELS
        x = np.arange(-40 * sigma, 40 * sigma + 1)
        here, there = -(x**2) / (2 * sigma**2), -((x - shift) ** 2) / (2 * sigma**2)
        for at in (0.1, 1.0, 4.0):
            gained = np.exp(there) * np.maximum(0.0, -np.expm1(np.minimum(at + here - there, 0.0)))
            exact, reckoned = gained.sum() / np.exp(here).sum(), accountant.gaussian_delta(at, shift / sigma)
            assert exact <= reckoned * 1.002 + 1e-12

    @pytest.mark.parametrize(
        ("privacy", "secure", "named"),
        [
            ({}, {"aggregation": False}, "privacy.noise"),
            ({"method": "sgd"}, {}, "privacy.method"),
            ({"unit": "patient"}, {}, "privacy.unit"),
            ({}, {"neighbours": 2, "threshold": 0.8}, "secure.neighbours"),
        ],
    )
    def test_what_does_not_add_up_is_refused_by_name(self, config, privacy, secure, named):
        with pytest.raises(ConfigError, match=rf"^{named}: .* or set privacy.noise to 'hospital'$"):
            config({**self.PRIVACY, **privacy}, secure={"aggregation": True, **secure})


class TestSteps:
    def test_they_are_those_of_a_plain_loop_with_the_same_samples_and_noise(self, config):
        run, at = config(SGD), hospital()
        reply, weights, examples = ask(run, at)
        terms = private.terms(at, run, task_of(run.task))
        source = Source(KEY)
        drawn = private.samples(private.units_of(at, run), terms, source)
        normals = source.normals(terms.event.count * len(weights)).reshape(-1, len(weights))
        at_end, moved = np.flatnonzero(drawn.ends), weights.astype(np.float64)
        for step, (first, last) in enumerate(zip([0, *at_end[:-1] + 1], at_end, strict=True)):
            rows = drawn.rows[first : last + 1].ravel()
            each = gradients(moved, examples)[rows[rows >= 0]]
            each *= np.minimum(1, 1 / np.linalg.norm(each, axis=1))[:, None]
            moved -= 0.4 * (each.sum(0) + terms.event.noise_multiplier * normals[step]) / 12
        np.testing.assert_allclose(delta_of(reply, len(weights)), moved - weights, atol=1e-4)

    def test_every_unit_is_in_a_sample_by_its_own_chance_and_with_all_its_rows(self, config):
        run = config({**SGD, "unit": "patient", "rows_per_patient": 2})
        at = hospital(ids=np.repeat(np.arange(ROWS // 3), 3))
        units = private.units_of(at, run)
        assert [len(rows) for rows in units] == [2] * (ROWS // 3)
        terms = private.terms(at, run, task_of(run.task))
        drawn = private.samples(units, terms, Source(KEY))
        assert drawn.ends.sum() == terms.event.count
        for batch in np.split(drawn.rows, np.flatnonzero(drawn.ends)[:-1] + 1):
            rows = set(batch[batch >= 0].tolist())
            assert all(set(unit.tolist()) <= rows or not set(unit.tolist()) & rows for unit in units)

    def test_a_large_sample_is_cut_and_none_of_it_lost(self, config):
        run, at = config(FULL), hospital(200)
        drawn = private.samples(private.units_of(at, run), private.terms(at, run, task_of(run.task)), Source(KEY))
        assert drawn.rows.shape == (4, private.WIDEST)
        assert sorted(drawn.rows[drawn.rows >= 0]) == list(range(200))
        assert drawn.ends.tolist() == [False, False, False, True]

    @pytest.mark.parametrize("optimizer", ["momentum", "adam"])
    def test_other_optimisers_only_see_noised_gradients(self, config, optimizer):
        """A plain loop that gives them the noised mean, and nothing else, ends at the same weights."""
        run, at = config(SGD, training={"optimizer": optimizer}), hospital()
        reply, weights, examples = ask(run, at)
        terms, source = private.terms(at, run, task_of(run.task)), Source(KEY)
        drawn = private.samples(private.units_of(at, run), terms, source)
        normals = source.normals(terms.event.count * len(weights)).reshape(-1, len(weights))
        at_end, moved = np.flatnonzero(drawn.ends), weights.astype(np.float64)
        first, second = np.zeros_like(moved), np.zeros_like(moved)
        for step, (start, last) in enumerate(zip([0, *at_end[:-1] + 1], at_end, strict=True)):
            rows = drawn.rows[start : last + 1].ravel()
            each = gradients(moved, examples)[rows[rows >= 0]]
            each *= np.minimum(1, 1 / np.linalg.norm(each, axis=1))[:, None]
            noised = (each.sum(0) + terms.event.noise_multiplier * normals[step]) / 12
            if optimizer == "momentum":
                first = run.training.momentum * first + noised
                moved -= 0.4 * first
            else:
                first, second = 0.9 * first + 0.1 * noised, 0.999 * second + 0.001 * noised**2
                unbiased = np.sqrt(1 - 0.999 ** (step + 1)) / (1 - 0.9 ** (step + 1))
                moved -= 0.4 * unbiased * first / (np.sqrt(second) + 1e-7)
        np.testing.assert_allclose(delta_of(reply, len(weights)), moved - weights, atol=2e-3)


class TestWhatLeaves:
    def test_no_loss_no_class_counts_and_no_sums_of_the_training_patients(self, config):
        at = hospital()
        reply, _, _ = ask(config(FULL), at)
        np.testing.assert_array_equal(reply.statistics["train/loss"], [0.0, 0.0])
        told, _, _ = ask(config(FULL), at, kind=STATISTICS)
        assert not any(value.any() for value in group("task", told.statistics).values())
        np.testing.assert_array_equal(told.statistics["count/train"], [ROWS / 2, ROWS / 2])

    def test_the_same_question_has_the_same_answer_and_is_charged_once(self, config):
        run, at = config(FULL), hospital(key=Ledger()._key)
        first, weights, _ = ask(run, at)
        again, _, _ = ask(run, at, worker=Worker())
        np.testing.assert_array_equal(delta_of(first, len(weights)), delta_of(again, len(weights)))
        other, _, _ = ask(run, at, weights=weights + 1)
        assert not np.array_equal(delta_of(first, len(weights)), delta_of(other, len(weights)))
        assert [row.charges for row in at.ledger.table(1e-4)] == [2]

    def test_a_further_attempt_at_a_secure_sum_of_private_updates_is_the_same_question(self, config):
        for noise, charges in (("hospital", 1), ("shared", 2)):
            at = hospital(key=Ledger()._key)
            run = config({**FULL, "noise": noise}, secure={"aggregation": True})
            for present in ("abcd", "abc"):
                ask(run, at, secure=present)
            assert [row.charges for row in at.ledger.table(1e-4)] == [charges], noise

    def test_other_patients_never_have_the_same_noise(self, config):
        run, keys = config(FULL), []
        for rows in (ROWS, ROWS - 1):
            ask(run, hospital(rows, key=lambda question: keys.append(question.identity) or KEY))
        assert len(set(keys)) == 2

    def test_a_budget_below_the_run_is_refused_before_anything_is_told(self, config):
        at = hospital(budget=Budget(0.5, 1e-4))
        with pytest.raises(
            PolicyRefused, match=r"spent 0 of epsilon 0\.5 at delta 0\.0001, and with what is asked 1$"[:-1]
        ):
            ask(config(FULL), at, kind=STATISTICS)
        assert at.ledger.table(1e-4) == []

    def test_a_budget_below_one_round_is_refused_before_training(self, config):
        at = hospital(budget=Budget(0.1, 1e-4))
        with pytest.raises(PolicyRefused, match="more of the patients' privacy than is left"):
            ask(config(FULL), at)


class TestRefused:
    @pytest.mark.parametrize(
        ("privacy", "settings", "message"),
        [
            ({"epsilon": 0}, {}, r"privacy\.epsilon: expected a number above 0 to inf"),
            ({"epsilon": -1}, {}, r"privacy\.epsilon"),
            ({"epsilon": 1, "delta": 0}, {}, r"privacy\.delta"),
            ({"epsilon": 1, "delta": 1}, {}, r"privacy\.delta"),
            ({**FULL, "noise": "shared"}, {}, r"privacy\.noise: 'shared' noise protects only the sum"),
            ({**SGD, "noise": "shared"}, {}, r"privacy\.method: 'shared' noise adds up over one sum a round"),
            ({"epsilon": 1, "method": "full"}, {"training": {"optimizer": "adam"}}, r"training\.optimizer"),
            ({"epsilon": 1}, {"stopping": {"patience": 2}, "evaluation": {"validation": 0.2}}, r"stopping\.patience"),
        ],
    )
    def test_by_the_settings_alone(self, config, privacy, settings, message):
        with pytest.raises(ConfigError, match=message):
            config(privacy, **settings)

    def test_a_delta_that_is_not_below_one_over_the_patients(self, config):
        with pytest.raises(ConfigError, match=r"0\.05 is not below 1/60 = 0\.0167"):
            ask(config({"epsilon": 1, "delta": 0.05}), hospital(), kind=STATISTICS)

    def test_patients_that_nobody_can_tell_apart(self, config):
        with pytest.raises(ConfigError, match=r"privacy\.unit: 'patient' needs to know whose each row is"):
            ask(config({**FULL, "unit": "patient"}), hospital(), kind=STATISTICS)

    def test_weights_that_would_not_be_equal_where_the_noise_is_shared(self, config):
        run = config({**FULL, "noise": "shared"}, secure={"aggregation": True, "examples": ROWS - 1})
        at = hospital()
        with pytest.raises(ConfigError, match=rf"secure\.examples: {ROWS} training patients would weigh as {ROWS - 1}"):
            ask(run, at)
        assert at.ledger.table(1e-4) == []

    def test_noise_that_would_not_fit_into_memory(self, config, monkeypatch):
        monkeypatch.setattr(private, "MOST_NUMBERS", 100)
        with pytest.raises(ConfigError, match="GiB of noise in a round"):
            ask(config(SGD), hospital())


CHILD = """
import sys
from pathlib import Path
from client.ledger import Ledger
from tests.client.test_private import ask, endless, hospital, replace
at = replace(hospital(), ledger=Ledger(Path(sys.argv[1]), key=lambda _: bytes(32)))
ask(endless(), at)
"""


def endless():
    """Return settings of a run whose rounds take long, charged as one of many steps."""
    training = {"batch_size": 12, "epochs": 10_000, "learning_rate": 0.01, "compile": "graph"}
    task = {"name": "heart", "model": "logistic"}
    return read_run({"task": task, "rounds": 3, "privacy": SGD, "training": training})


def test_a_worker_that_is_killed_while_it_trains_leaves_the_charge_as_spent(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + 120
        charges = []
        while not charges and time.monotonic() < end:
            assert process.poll() is None
            time.sleep(0.1)
            charges = charges_of(path)
        time.sleep(0.5)  # it draws and trains by now
        assert process.poll() is None
        process.kill()
    ledger = Ledger(path)
    (row,) = ledger.table(1e-4)
    assert (row.charges, row.unused) == (1, 1)
    event = private.terms(hospital(), endless(), task_of(endless().task)).event
    assert ledger.spent(1e-4) == row.epsilon == epsilon([event], 1e-4) > 0


def charges_of(path):
    if not path.exists():
        return []
    with read(path) as opened:
        return opened.table(1e-4)
