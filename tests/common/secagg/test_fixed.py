"""Fixed point: sums come back, what does not fit is refused before anything is sent, and noise adds exactly."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common.config import SecureConfig
from common.errors import UpdateRejected
from common.secagg import fixed
from common.secagg.fixed import Frame, scale_of

SETTINGS = SecureConfig(magnitude=4.0)


def frame(hospitals=3, shapes=None, size=50, parts=1, settings=SETTINGS):
    return Frame(settings, hospitals, {"n": (), "counts": (2, 3)} if shapes is None else shapes, size, parts)


values = hnp.arrays(np.float32, (3, 50), elements=st.floats(-4, 4, width=32))
counts = hnp.arrays(np.float64, (3, 2, 3), elements=st.integers(0, 2**39 // 3).map(float))


@given(values, counts)
def test_the_sum_of_vectors_is_the_vector_of_sums_up_to_half_a_level_each(updates, tables):
    written = [frame().write({"counts": table}, [update], 1.0) for update, table in zip(updates, tables, strict=True)]
    statistics, (total,) = frame().read(np.sum(written, axis=0, dtype=np.uint32))
    np.testing.assert_array_equal(statistics["counts"], tables.sum(axis=0))
    assert statistics["n"] == 0
    level = 1 / scale_of(SETTINGS, 3)
    np.testing.assert_allclose(total, updates.astype(np.float64).sum(axis=0), atol=3 * (0.5 + 2**5) * level)


@given(hnp.arrays(np.float64, 7, elements=st.floats(0, 2.0**30)))
def test_fractions_add_to_a_millionth(fractions):
    place = frame(shapes={"loss": (7,)}, size=0, parts=0)
    statistics, _ = place.read(3 * place.write({"loss": fractions}, [], 1.0))
    np.testing.assert_allclose(statistics["loss"], 3 * fractions, rtol=1e-15, atol=3e-6)


@pytest.mark.parametrize("value", [4.01, -4.01, np.inf, -np.inf, np.nan])
def test_a_value_beyond_the_range_is_refused_with_the_arithmetic(value):
    update = np.zeros(50, np.float32)
    update[7] = value
    with pytest.raises(
        UpdateRejected, match=r"beyond 4 \(secure.magnitude\) after its weight of 1: .* among 3 hospitals"
    ) as raised:
        frame().write({}, [update], 1.0)
    assert raised.value.code == "fixed_point"


def test_the_weight_counts_before_the_range():
    update = np.full(50, 8.0, np.float32)
    _, (total,) = frame().read(frame().write({}, [update], 0.5))
    np.testing.assert_allclose(total, 4.0, rtol=1e-6)


@pytest.mark.parametrize("value", [-1.0, 2.0**40, np.inf, np.nan])
def test_a_statistic_beyond_the_range_is_refused(value):
    with pytest.raises(UpdateRejected, match="a statistic is not between 0 and"):
        frame().write({"n": np.array(value)}, [np.zeros(50, np.float32)], 1.0)


@pytest.mark.parametrize("hospitals", [3, 100, fixed.HOSPITALS])
def test_the_largest_sum_of_as_many_hospitals_does_not_wrap(hospitals):
    place = frame(hospitals, {"n": (2,)})
    top = place.write({"n": np.array([2.0**40 - 1, 1.0])}, [np.full(50, 4.0, np.float32)], 1.0)
    statistics, (total,) = place.read(np.uint32(hospitals) * top)
    np.testing.assert_array_equal(statistics["n"], [hospitals * (2.0**40 - 1), hospitals])
    np.testing.assert_allclose(total, 4.0 * hospitals, rtol=1e-5)


@given(hnp.arrays(np.int64, (3, 50), elements=st.integers(-(2**26), 2**26)))
def test_whatever_whole_noise_is_added_adds_exactly(noise):
    """What hospitals add to their values before they are masked is in the sum to the last level."""
    scale, asked = scale_of(SETTINGS, 3), []

    def drawn(number):
        return lambda count, levels: asked.append((count, levels)) or noise[number]

    zero = np.zeros(50, np.float32)
    written = [frame().write({}, [zero], 1.0, drawn(number)) for number in range(3)]
    _, (total,) = frame().read(np.sum(written, axis=0, dtype=np.uint32))
    np.testing.assert_array_equal(np.rint(total * scale).astype(np.int64), noise.sum(axis=0))
    assert asked == [(50, scale)] * 3


def test_two_parts_lie_one_behind_the_other():
    place = frame(parts=2)
    one, other = np.full(50, 1.0, np.float32), np.full(50, -2.0, np.float32)
    _, found = place.read(place.write({}, [one, other], 1.0))
    np.testing.assert_allclose(found, [one, other], rtol=1e-6)
