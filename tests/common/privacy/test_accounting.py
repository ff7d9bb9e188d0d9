"""From events to epsilon and from epsilon to noise, held against dp-accounting, closed forms and each other."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import PrivacyConfig, TrainingConfig
from common.errors import ConfigError
from common.privacy import accountant
from common.privacy.calibrate import noise_multiplier, terms_of
from common.privacy.events import Event, from_text, to_text

EVENTS = st.builds(Event, st.floats(0.5, 50), st.sampled_from([1.0, 0.3, 0.05]), st.integers(1, 50))


class TestEvents:
    @given(EVENTS)
    def test_their_text_is_read_back(self, event):
        assert from_text(to_text(event)) == event

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "[1]",
            "[0, 1, 1]",
            "[1, 0, 1]",
            "[1, 2, 1]",
            "[1, 1, 0]",
            "[1, 1, true]",
            "[NaN, 1, 1]",
            "[1e999, 1, 1]",
            "{}",
            "[" * 9999,
            '["1", 1, 1]',
        ],
        ids=lambda text: text[:9],
    )
    def test_what_is_none_is_refused(self, text):
        with pytest.raises(ConfigError):
            from_text(text)

    def test_no_noise_is_no_event(self):
        with pytest.raises(ConfigError, match="a sum without noise has no finite epsilon"):
            Event(0.0)


class TestEpsilon:
    def test_without_sampling_it_is_that_of_one_gaussian(self):
        import dp_accounting as dp

        found = accountant.epsilon([Event(10.0, count=9), Event(5.0, count=3)], 1e-5)
        reference = dp.get_epsilon_gaussian(1 / math.sqrt(9 / 100 + 3 / 25), 1e-5)
        assert found == pytest.approx(reference, rel=1e-6)

    @pytest.mark.parametrize("delta", [1e-3, 1e-6, 1e-10])
    def test_the_closed_form_is_its_own_inverse(self, delta):
        at = accountant.gaussian_epsilon(0.7, delta)
        assert accountant.gaussian_delta(at, 0.7) <= delta < accountant.gaussian_delta(at * (1 - 1e-6), 0.7)

    def test_a_sample_costs_less_than_all_and_rdp_never_less_than_pld(self):
        sampled, whole = [Event(1.0, 0.05, 100)], [Event(1.0, 1.0, 100)]
        pld, rdp = (accountant.epsilon(sampled, 1e-5, method) for method in ("pld", "rdp"))
        assert pld <= rdp < accountant.epsilon(whole, 1e-5)
        assert pld == pytest.approx(3.5, abs=0.01)

    @settings(max_examples=8)
    @given(st.lists(EVENTS, min_size=1, max_size=3), EVENTS)
    def test_one_event_more_never_costs_less(self, events, more):
        assert accountant.epsilon([*events, more], 1e-5) >= accountant.epsilon(events, 1e-5) * (1 - 2e-3)

    def test_nothing_released_costs_nothing(self):
        assert accountant.epsilon([], 1e-5) == 0.0

    def test_delta_and_epsilon_belong_together(self):
        events = [Event(1.5, 0.1, 50)]
        assert accountant.delta(events, accountant.epsilon(events, 1e-5)) <= 1e-5 * 1.05

    @pytest.mark.parametrize("delta", [0.0, 1.0, -1.0, math.nan])
    def test_a_delta_that_is_none_is_refused(self, delta):
        with pytest.raises(ConfigError):
            accountant.epsilon([Event(1.0)], delta)


class TestCalibration:
    @pytest.mark.parametrize(
        ("target", "rate", "count"),
        [(0.1, 1.0, 60), (1.0, 1.0, 1), (6.0, 0.068, 1200), (1.0, 0.1, 300), (0.1, 0.05, 100), (50.0, 0.5, 10)],
    )
    def test_the_target_is_met_and_hardly_undercut(self, target, rate, count):
        multiplier = noise_multiplier(target, 1e-5, rate, count)
        assert 0.997 * target <= accountant.epsilon([Event(multiplier, rate, count)], 1e-5) <= target

    def test_what_was_spent_before_counts(self):
        before = (Event(10.0, count=4),)
        multiplier = noise_multiplier(1.0, 1e-5, 1.0, 10, before)
        assert 0.997 <= accountant.epsilon([*before, Event(multiplier, count=10)], 1e-5) <= 1.0
        with pytest.raises(ConfigError, match="is spent before training"):
            noise_multiplier(0.5, 1e-5, 1.0, 10, before)

    @pytest.mark.parametrize("target", [0.0, -1.0, math.inf, math.nan])
    def test_a_target_that_is_none_is_refused(self, target):
        with pytest.raises(ConfigError, match=r"privacy\.epsilon"):
            noise_multiplier(target, 1e-5, 1.0, 1)

    def test_a_target_out_of_reach_is_refused_with_the_arithmetic(self):
        with pytest.raises(
            ConfigError, match="1e-09 at delta 1e-05 over 1000000 releases would need noise of more than 1e"
        ):
            noise_multiplier(1e-9, 1e-5, 1.0, 1_000_000)


class TestTerms:
    def terms(self, units=200, rounds=10, training=None, **privacy):
        return terms_of(
            PrivacyConfig(**{"epsilon": 2.0, **privacy}),
            training or TrainingConfig(batch_size=20, epochs=2),
            rounds,
            units,
        )

    def test_each_hospital_sets_its_own_noise(self):
        small, large = self.terms(100), self.terms(1000)
        assert small.event.sampling_rate == 0.2
        assert large.event.sampling_rate == 0.02
        assert small.event.noise_multiplier > large.event.noise_multiplier
        for terms in (small, large):
            each = terms.event
            whole = Event(each.noise_multiplier, each.sampling_rate, each.count * 10)
            assert accountant.epsilon([whole], 1e-5) <= 2.0

    def test_full_is_one_release_of_all_a_round(self):
        event = self.terms(method="full").event
        assert (event.sampling_rate, event.count) == (1.0, 1)

    def test_the_rows_of_a_patient_share_one_bound(self):
        terms = self.terms(unit="patient", rows_per_patient=4, clip_norm=2.0)
        assert terms.row_bound * terms.per_unit == 2.0 == terms.clip_norm
        assert self.terms(rows_per_patient=4).per_unit == 1

    def test_delta_must_be_below_one_over_the_count(self):
        with pytest.raises(ConfigError, match=r"1e-05 is not below 1/100000 = 1e-05"):
            self.terms(100_000)


class TestMemory:
    """What is old in a history is not composed anew, and the result is the same to the last bit."""

    @given(st.lists(EVENTS, min_size=1, max_size=6), st.lists(st.integers(0, 5), min_size=1, max_size=6))
    @settings(max_examples=4, deadline=None)
    def test_it_changes_nothing(self, kinds, order):
        memory, history = accountant.Memory(), []
        for place in order:
            history.append(kinds[place % len(kinds)])
            assert accountant.epsilon(history, 1e-5, memory=memory) == accountant.epsilon(history, 1e-5)

    @pytest.mark.parametrize("runs", [3, 12])
    def test_another_charge_composes_what_is_new_alone(self, runs, monkeypatch):
        composed, real = [], accountant._distribution
        monkeypatch.setattr(accountant, "_distribution", lambda *given: composed.append(given) or real(*given))
        memory = accountant.Memory()
        history = [Event(20.0 + number, 0.1, 5) for number in range(runs)]
        for charge in range(6):
            history.append(Event(30.5, 0.1, 5))
            accountant.epsilon(history, 1e-5, memory=memory)
            accountant.epsilon(history, 1e-5, memory=memory)  # to say what is spent
            assert len(composed) == runs + 1 + charge

    @given(st.lists(EVENTS, min_size=1, max_size=4))
    @settings(max_examples=4, deadline=None)
    def test_it_composes_as_the_accountant_of_dp_accounting_does(self, events):
        import dp_accounting as dp

        oracle = dp.pld.PLDAccountant(value_discretization_interval=2.0**-9)
        for event in events:
            release = dp.GaussianDpEvent(event.noise_multiplier)
            sampled = dp.PoissonSampledDpEvent(event.sampling_rate, release)
            oracle.compose(release if event.sampling_rate == 1.0 else sampled, event.count)
        found = accountant.Memory().composed(tuple(accountant._merged(events).items()), 2.0**-9)
        assert found.get_epsilon_for_delta(1e-5) == pytest.approx(oracle.get_epsilon(1e-5), rel=1e-3, abs=1e-3)
