"""Robust rules: equal to numpy and to a plain reading of the papers, unmoved by liars."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from common.config import Choice
from common.errors import QuorumError
from common.update import Update
from server.strategies import robust, strategy_of
from server.strategies.krum import scores, squared_distances
from server.strategies.median import middle
from server.strategies.robust import by_coordinate

FINITE = st.floats(-1e6, 1e6, width=32)


def batches(least: int, most: int = 12) -> st.SearchStrategy[np.ndarray]:
    shapes = st.tuples(st.integers(least, most), st.integers(1, 9))
    return shapes.flatmap(lambda shape: arrays(np.float32, shape, elements=FINITE))


def run(name: str, deltas: np.ndarray, counts: list[int] | None = None, **options: float) -> np.ndarray:
    strategy = strategy_of(Choice(name, tuple(options.items())))
    state = strategy.init(np.zeros(deltas.shape[1], np.float32), len(deltas))
    for index, delta in enumerate(deltas):
        strategy.accumulate(state, Update(f"h{index}", delta, counts[index] if counts else 1))
    return strategy.finish(state)


def honest_and_liars(honest: int, liars: int, size: int = 50, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return honest updates near 1, and liars far off mixed among them."""
    generator = np.random.default_rng(seed)
    good = 1 + 0.1 * generator.standard_normal((honest, size))
    bad = 1e4 * generator.standard_normal((liars, size))
    return good, generator.permutation(np.concatenate([good, bad])).astype(np.float32)


@given(batches(1))
def test_median_is_numpys_to_the_bit(deltas):
    np.testing.assert_array_equal(run("median", deltas), np.median(deltas, axis=0) + np.float32(0))


@given(batches(3, 20), st.sampled_from([0.1, 0.2, 0.29, 0.34, 0.49]))
def test_trimmed_mean_drops_the_ends(deltas, trim):
    count = len(deltas)
    if count < 1 / trim:
        with pytest.raises(QuorumError, match=str(math.ceil(1 / trim))):
            run("trimmed_mean", deltas, trim=trim)
        return
    drop = int(trim * count)
    expected = np.sort(deltas.astype(np.float64), axis=0)[drop : count - drop].mean(axis=0)
    np.testing.assert_allclose(
        run("trimmed_mean", deltas, trim=trim), expected, rtol=1e-5, atol=1e-6 * np.abs(deltas).max() + 1e-30
    )


def test_trimmed_mean_counts_shares_as_written():
    """0.29 * 100 is 28.999999999999996; 29 are meant: the middle 42 of 0..99, and the mean of a lopsided set shows it."""
    values = np.concatenate([np.zeros(29), np.arange(42.0), np.full(29, 1e6)]).astype(np.float32)[:, None]
    assert run("trimmed_mean", values, trim=0.29)[0] == pytest.approx(np.arange(42.0).mean())


def test_blocks_and_cores_do_not_change_a_bit(monkeypatch):
    deltas = np.random.default_rng(0).standard_normal((9, 1001)).astype(np.float32)
    whole = by_coordinate(list(deltas), middle)
    for block, cores in ((9, 1), (64, 3), (9 * 1001, 7)):
        monkeypatch.setattr(robust, "BLOCK", block)
        monkeypatch.setattr(robust.os, "cpu_count", lambda cores=cores: cores)
        assert by_coordinate(list(deltas), middle).tobytes() == whole.tobytes()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("median", {}),
        ("trimmed_mean", {"trim": 0.3}),
        ("krum", {"byzantine": 3}),
        ("multi_krum", {"byzantine": 3, "keep": 4}),
    ],
)
def test_a_minority_of_liars_moves_nothing_far(name, options):
    good, deltas = honest_and_liars(honest=8, liars=3)
    result = run(name, deltas, **options)
    assert np.abs(result - 1).max() <= np.abs(good - 1).max()
    assert np.abs(deltas.mean(axis=0) - 1).max() > 100


@pytest.mark.parametrize("name", ["median", "trimmed_mean", "krum", "multi_krum"])
def test_claimed_patients_buy_no_weight(name):
    _, deltas = honest_and_liars(honest=8, liars=1)
    np.testing.assert_array_equal(run(name, deltas, [1] * 9), run(name, deltas, [10**6, *range(1, 9)]))


def plain_scores(deltas: np.ndarray, byzantine: int) -> list[float]:
    """Blanchard et al. 2017, section 4, word by word."""
    wide = deltas.astype(np.float64)
    return [
        sum(
            sorted(float(((wide[i] - wide[j]) ** 2).sum()) for j in range(len(wide)) if j != i)[
                : len(wide) - byzantine - 2
            ]
        )
        for i in range(len(wide))
    ]


@given(batches(5), st.integers(0, 1))
def test_krum_scores_are_the_papers(deltas, byzantine):
    expected = plain_scores(deltas, byzantine)
    np.testing.assert_allclose(
        scores(list(deltas), byzantine), expected, rtol=1e-6, atol=1e-9 * float(np.abs(deltas).max()) ** 2 + 1e-30
    )


@pytest.mark.parametrize(("count", "byzantine", "keep"), [(5, 1, 1), (7, 2, 3), (12, 0, 10), (12, 4, 6)])
def test_krum_takes_the_updates_with_the_lowest_scores(count, byzantine, keep):
    deltas = np.random.default_rng(count).standard_normal((count, 30)).astype(np.float32)
    best = np.argsort(plain_scores(deltas, byzantine), kind="stable")[:keep]
    result = run("multi_krum", deltas, byzantine=byzantine, keep=keep)
    np.testing.assert_allclose(result, deltas[best].mean(axis=0), rtol=1e-5, atol=1e-6)
    if keep == 1:
        np.testing.assert_array_equal(run("krum", deltas, byzantine=byzantine), result)


@pytest.mark.parametrize(
    ("name", "options", "needed"),
    [
        ("krum", {"byzantine": 2}, 7),
        ("multi_krum", {"byzantine": 1, "keep": 2}, 5),
        ("multi_krum", {"byzantine": 1, "keep": 6}, 9),
        ("trimmed_mean", {"trim": 0.1}, 10),
        ("trimmed_mean", {"trim": 0.3}, 4),
    ],
)
def test_the_fewest_updates_follow_from_the_settings(name, options, needed):
    assert strategy_of(Choice(name, tuple(options.items()))).minimum_updates == needed
    deltas = np.random.default_rng(0).standard_normal((needed, 4)).astype(np.float32)
    run(name, deltas, **options)
    with pytest.raises(QuorumError, match=f"at least {needed} updates"):
        run(name, deltas[1:], **options)


def test_distances_keep_their_digits_when_updates_are_nearly_equal():
    deltas = (1000 + 1e-3 * np.random.default_rng(0).standard_normal((5, 4000))).astype(np.float32)
    wide = deltas.astype(np.float64)
    exact = ((wide[:, None] - wide[None]) ** 2).sum(axis=2)
    np.testing.assert_allclose(squared_distances(list(deltas)), exact, rtol=1e-9, atol=1e-12)


def test_distances_over_several_blocks(monkeypatch):
    deltas = np.random.default_rng(0).standard_normal((5, 1003)).astype(np.float32)
    expected = squared_distances(list(deltas))
    monkeypatch.setattr("server.strategies.krum.BLOCK", 100)
    np.testing.assert_allclose(squared_distances(list(deltas)), expected, rtol=1e-12, atol=1e-9)


@given(st.integers(1, 6), st.integers(0, 3))
@settings(max_examples=20)
def test_equal_updates_are_kept_as_they_are(value, byzantine):
    deltas = np.full((9, 5), value / 3, np.float32)
    for name, options in (("median", {}), ("trimmed_mean", {}), ("krum", {"byzantine": byzantine})):
        np.testing.assert_allclose(run(name, deltas, **options), deltas[0], rtol=1e-6)
