"""Differential privacy of whole hospitals: bounded, equally weighted, noised once, and accounted for apart from what hospitals spend."""

from dataclasses import replace

import numpy as np
import pytest

from common.config import Choice
from common.errors import ConfigError, UpdateRejected
from common.messages import Reply
from common.privacy.accountant import epsilon
from common.privacy.calibrate import statistics_event
from common.privacy.events import Event, from_text, to_text
from common.update import Update
from server import checks, privacy
from server.plan import Plan
from server.records import Member, Part, RoundRecord

KEY = bytes(range(32))
SIZE, MANY = 5, 1000


@pytest.fixture
def plan(federation):
    def of(strategy="fedavg", fraction=1.0, **settings):
        base = {"strategy": {"name": strategy}, "selection": {"fraction": fraction}, "rounds": 4}
        return Plan(
            federation.config({**base, "privacy": {"unit": "hospital", "epsilon": 8.0, **settings}}), noise_key=KEY
        )

    return of


def updates(scale=3.0, count=20):
    draw = np.random.default_rng(0)
    return [
        Update(f"{n:02}", (scale * draw.standard_normal(SIZE)).astype(np.float32), int(draw.integers(1, 500)))
        for n in range(count)
    ]


def round_of(strategy, state, given):
    for update in given:
        strategy.accumulate(state, update)
    return strategy.finish(state)


class TestTheMean:
    def test_it_is_of_clipped_updates_over_the_expected_cohort_with_noise(self, plan):
        made = plan(clip_norm=2.0, fraction=0.5)
        state = made.strategy.init(np.zeros(SIZE, np.float32), 40)
        noise = float(state["privacy/noise"]) * 2.0
        found = round_of(made.strategy, state, updates())
        clipped = sum(u.delta * min(1, 2.0 / np.linalg.norm(u.delta)) for u in updates())
        expected = made.hospital_privacy._source("noise", 1).normals(SIZE) * noise
        np.testing.assert_allclose(found, (clipped + expected) / 20, rtol=1e-5)

    def test_the_noise_has_the_deviation_that_is_accounted_for(self, plan):
        made = plan(clip_norm=2.0)
        state = made.strategy.init(np.zeros(100_000, np.float32), MANY)
        assert made.strategy.finish(state).std() == pytest.approx(float(state["privacy/noise"]) * 2.0 / MANY, rel=0.02)

    @pytest.mark.parametrize("strategy", ["fedavgm", "fedadam", "fedprox", "fedyogi"])
    def test_any_strategy_that_takes_a_mean_goes_on_with_the_noised_one(self, plan, strategy):
        made = plan(strategy)
        state = made.strategy.init(np.zeros(SIZE, np.float32), 20)
        for _ in range(2):
            assert np.isfinite(round_of(made.strategy, state, updates())).all()
        assert not {name for name in state if name.endswith(("/sum", "/below"))}

    def test_a_round_of_nobody_is_noise_alone(self, plan):
        made = plan()
        state = made.strategy.init(np.zeros(SIZE, np.float32), 20)
        assert made.strategy.finish(state).any()

    def test_no_hospital_moves_the_sum_beyond_the_bound(self, plan):
        sums = []
        for left_out in (None, 7):
            made = plan(clip_norm=0.5)
            state = made.strategy.init(np.zeros(SIZE, np.float32), 20)
            given = [u for n, u in enumerate(updates(1e4)) if n != left_out]
            sums.append(round_of(made.strategy, state, given) * 20)
        assert np.linalg.norm(sums[0] - sums[1]) <= 0.5 * (1 + 1e-4)


class TestAdaptiveBound:
    def test_it_comes_to_the_quantile(self, plan):
        made = plan(adaptive=0.5, epsilon=200.0, clip_norm=50.0)
        strategy = made.strategy
        state = strategy.init(np.zeros(SIZE, np.float32), 200)
        given = updates(count=200)
        for _ in range(60):
            round_of(strategy, state, given)
        median = np.median([np.linalg.norm(update.delta) for update in given])
        assert float(state["privacy/clip"]) == pytest.approx(median, rel=0.2)

    def test_a_cohort_that_is_too_small_to_count_in_is_refused(self, plan):
        with pytest.raises(ConfigError, match=r"privacy\.adaptive: counting unclipped updates takes noise of"):
            plan(adaptive=0.5, epsilon=1.0).strategy.init(np.zeros(SIZE, np.float32), 4)


class TestDraws:
    def test_each_is_drawn_by_its_own_chance_and_the_same_by_the_same_key(self, plan):
        made, names = plan(fraction=0.3), [f"{n}" for n in range(MANY)]
        first = made.hospital_privacy.sample(names, 1)
        assert first == made.hospital_privacy.sample(names, 1)
        assert first != made.hospital_privacy.sample(names, 2)
        assert 220 < len(first) < 380

    def test_without_a_key_no_two_are_the_same(self, plan):
        made = replace(plan(fraction=0.5), noise_key=b"")
        names = [f"{n}" for n in range(MANY)]
        assert made.hospital_privacy.sample(names, 1) != made.hospital_privacy.sample(names, 1)


class TestRefused:
    @pytest.mark.parametrize("strategy", ["median", "krum", "scaffold", "fedbn"])
    def test_strategies_that_need_more_than_a_mean(self, plan, strategy):
        with pytest.raises(ConfigError, match=r"strategy\.name"):
            _ = plan(strategy).strategy

    def test_a_delta_that_is_not_below_one_over_the_hospitals(self, plan):
        with pytest.raises(ConfigError, match=r"0\.01 is not below 1/200 = 0\.005"):
            plan(delta=0.01).strategy.init(np.zeros(SIZE, np.float32), 200)


def round_record(events):
    told = {name: to_text(event) for name, event in events.items()}
    return RoundRecord(1, [], [], [], 0, 0, 0.0, 1, None, None, 0.0, events=told)


class TestAccount:
    def test_what_hospitals_say_they_released_is_composed_for_each(self, federation):
        plan = Plan(federation.config({"privacy": {"epsilon": 2.0}, "rounds": 3}))
        outcome = federation.run({"privacy": {"epsilon": 2.0, "delta": 1e-4}, "rounds": 2})
        account = privacy.spent(plan.config, outcome.rounds, outcome.members)
        assert account["unit"] == "record"
        assert account["relation"] == "add or remove one"
        for name, spent in account["spent"].items():
            events = [from_text(record.events[name]) for record in outcome.rounds]
            assert spent["epsilon"] == epsilon(events, 1e-5)
            assert spent["rounds"] == 2

    def test_sums_that_prepared_the_data_with_noise_are_composed_too_also_of_who_never_trained(self, federation):
        config = federation.config({"privacy": {"epsilon": 2.0, "statistics": 0.25}})
        plan = Plan(replace(config, task=Choice("notes")))
        first, later = statistics_event(plan.config.privacy), Event(3.0, 0.5, 2)
        members = [Member(name, *(Part(1, [1]),) * 3) for name in ("east", "west")]
        rounds = [round_record({"east": later}), round_record({"east": later, "gone": later})]
        account = privacy.spent(plan.config, rounds, members)["spent"]
        assert {name: row["rounds"] for name, row in account.items()} == {"east": 2, "gone": 1, "west": 0}
        assert account["east"]["epsilon"] == epsilon([first, later, later], 1e-5)
        assert account["gone"]["epsilon"] == epsilon([first, later], 1e-5) > epsilon([later], 1e-5)
        assert account["west"]["epsilon"] == pytest.approx(0.5, rel=2e-3)
        assert account["west"]["events"] == [to_text(first)]
        without = replace(plan.config, privacy=replace(plan.config.privacy, statistics=0.0))
        assert "west" not in privacy.spent(without, rounds, members)["spent"]

    def test_the_coordinators_own_is_apart(self, federation, plan):
        outcome = federation.run({"privacy": {"unit": "hospital", "epsilon": 8.0}, "rounds": 2})
        account = privacy.spent(plan().config, outcome.rounds, outcome.members)
        assert account["noise_by"] == "the coordinator"
        assert list(account["spent"]) == ["*"]
        assert not any(record.events for record in outcome.rounds)

    def test_without_privacy_there_is_none(self, federation):
        assert privacy.spent(federation.config(), [], []) == {}

    @pytest.mark.parametrize("text", ["", "[0, 1, 1]", "nonsense"])
    def test_a_hospital_that_does_not_say_what_it_released_is_dropped(self, federation, text):
        config = federation.config({"privacy": {"epsilon": 2.0}})
        with pytest.raises(UpdateRejected) as refused:
            checks.event_of(Reply(texts={"event": text}), config)
        assert refused.value.code == "privacy"
        assert checks.event_of(Reply(texts={"event": "[1.5, 0.1, 4]"}), config) == Event(1.5, 0.1, 4)
