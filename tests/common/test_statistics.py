import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common.statistics import Total, total

numbers = st.integers(-(2**40), 2**40).map(float) | st.floats(-1e6, 1e6, allow_subnormal=False)
parts = st.dictionaries(
    st.text("abc", min_size=1, max_size=3),
    st.fixed_dictionaries(
        {"a": hnp.arrays(np.float64, 3, elements=numbers), "b": hnp.arrays(np.float64, (), elements=numbers)}
    ),
    min_size=1,
    max_size=6,
)


def summed(parts, order):
    running = Total()
    for key in order:
        running.add(key, parts[key])
    return running.result()


class TestTotal:
    @given(parts, st.data())
    def test_no_bit_depends_on_the_order(self, parts, data):
        shuffled = data.draw(st.permutations(list(parts)))
        one, other = summed(parts, sorted(parts)), summed(parts, shuffled)
        for name in ("a", "b"):
            assert one[name].tobytes() == other[name].tobytes()

    @given(parts)
    def test_it_is_the_sum(self, parts):
        for name, value in summed(parts, parts).items():
            np.testing.assert_allclose(value, total(parts.values())[name], rtol=1e-9, atol=1e-6)

    def test_whole_numbers_are_not_kept(self):
        running = Total()
        for key in map(str, range(100)):
            running.add(key, {"n": np.arange(4.0)})
        assert not running._waiting
        assert running.result()["n"].tolist() == [0, 100, 200, 300]
