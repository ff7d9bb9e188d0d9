"""Noise has its distribution, to the tails; a sum carries the sensitivity that its noise is scaled by."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from common.privacy.clip import Clipped, clipped_sum, factors
from common.privacy.noise import Source

KEY = bytes(range(32))


class TestNormals:
    def test_they_are_normal(self):
        values = Source(KEY).normals(1_000_001)
        assert values.dtype == np.float32
        assert len(values) == 1_000_001
        assert stats.kstest(values, "norm").pvalue > 0.01
        assert stats.kurtosis(values) == pytest.approx(0.0, abs=0.02)

    @pytest.mark.parametrize("lag", [1, 2, 2**14, 2**15])
    def test_neighbours_and_halves_of_a_pair_do_not_correlate(self, lag):
        values = Source(KEY).normals(400_000)
        for change in (np.abs, np.asarray):
            assert abs(np.corrcoef(change(values[lag:]), change(values[:-lag]))[0, 1]) < 4 / np.sqrt(len(values))

    def test_the_tails_have_their_share(self):
        values = np.abs(Source(KEY).normals(8_000_000))
        for at in (3.0, 4.0, 4.5):
            expected = 2 * stats.norm.sf(at) * len(values)
            assert abs((values > at).sum() - expected) < 4 * np.sqrt(expected)

    def test_tails_go_beyond_what_32_bits_reach(self):
        class Low(Source):
            """Words that are all 0: the most extreme draw."""

            def words(self, count, dtype=np.uint64):
                return np.zeros(count, dtype)

        assert 9.0 < Low(KEY).normals(1)[0] < 10.0

    def test_a_key_repeats_and_another_does_not(self):
        np.testing.assert_array_equal(Source(KEY).normals(9), Source(KEY).normals(9))
        assert not np.array_equal(Source(KEY).normals(9), Source(bytes(32)).normals(9))
        assert not np.array_equal(Source().normals(9), Source().normals(9))


class TestSamples:
    @pytest.mark.parametrize("chance", [0.01, 0.3, 0.999])
    def test_each_is_in_by_its_chance(self, chance):
        drawn = Source(KEY).chosen(200_000, chance).sum()
        assert stats.binomtest(int(drawn), 200_000, chance).pvalue > 0.001

    def test_all_are_in_a_sample_of_all(self):
        assert Source(KEY).chosen(1000, 1.0).all()


class TestDiscreteGaussian:
    @pytest.mark.parametrize("sigma", [0.4, 1.0, 7.5, 300.0])
    def test_it_has_its_distribution(self, sigma):
        values = Source(KEY).discrete_gaussian(100_000, sigma)
        assert values.dtype == np.int64
        reach = np.arange(-int(12 * sigma) - 3, int(12 * sigma) + 4)
        weights = np.exp(-(reach.astype(float) ** 2) / (2 * sigma**2))
        cumulative = np.cumsum(weights / weights.sum())
        found = np.searchsorted(np.sort(values), reach, side="right") / len(values)
        assert np.abs(found - cumulative).max() < 1.95 / np.sqrt(len(values))  # Kolmogorov and Smirnov at 0.001


class TestClipped:
    VECTORS = arrays.arrays(np.float64, (7, 3), elements=st.floats(-1e3, 1e3))

    @given(VECTORS, st.floats(0.01, 100), st.integers(0, 6))
    def test_one_row_less_moves_the_sum_by_its_sensitivity_at_most(self, vectors, bound, row):
        whole = clipped_sum(vectors, bound)
        less = clipped_sum(np.delete(vectors, row, 0), bound)
        assert np.linalg.norm(whole.parts[0] - less.parts[0]) <= whole.sensitivity * (1 + 1e-9)

    @given(VECTORS, st.floats(0.01, 100))
    def test_the_rows_of_one_unit_together_move_it_by_no_more(self, vectors, bound):
        whole = clipped_sum(vectors, bound, per_unit=3)
        less = clipped_sum(vectors[3:], bound, per_unit=3)
        assert np.linalg.norm(whole.parts[0] - less.parts[0]) <= whole.sensitivity * (1 + 1e-9)

    @given(st.floats(0, 1e6), st.floats(1e-6, 1e6))
    def test_short_vectors_are_left_as_they_are(self, norm, bound):
        assert factors(norm, bound) == (1.0 if norm <= bound else bound / norm)

    def test_noise_is_scaled_by_what_was_clipped_to(self):
        small, large = (Clipped([np.zeros(3)], sensitivity) for sensitivity in (0.5, 2.0))
        normals = [np.ones(3)]
        np.testing.assert_array_equal(small.noised(normals, 4.0)[0], [2.0] * 3)
        np.testing.assert_array_equal(large.noised(normals, 4.0)[0], [8.0] * 3)
