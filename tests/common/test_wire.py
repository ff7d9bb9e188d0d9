import math

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common.config import UpdateConfig
from common.errors import UpdateRejected
from common.wire import (
    BLOCK,
    CODECS,
    KINDS,
    NUMPY,
    RAW,
    encode_with_feedback,
    from_array,
    from_record,
    to_array,
    to_record,
)

LOSSY = [name for name, codec in CODECS.items() if not codec.exact]
SIZES = [0, 1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 7, 300 * BLOCK + 3]

arrays_of_any_kind = st.sampled_from(KINDS).flatmap(
    lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
)
floats = st.floats(-1e4, 1e4, width=32)
vectors = hnp.arrays(np.float32, st.integers(0, 3 * BLOCK), elements=floats, fill=floats)
any_vectors = hnp.arrays(np.float32, st.integers(0, 2 * BLOCK), elements=st.floats(width=32))


def gaussian(size, seed=0):
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def settings(codec, keep=0.02):
    return UpdateConfig(codec=codec, keep=keep)


def code_of(function, *arguments):
    with pytest.raises(UpdateRejected) as caught:
        function(*arguments)
    return caught.value.code


def attempt(function, *arguments):
    """Return the result, or the code of the refusal."""
    try:
        return function(*arguments)
    except UpdateRejected as error:
        return error.code


class TestArrays:
    @given(arrays_of_any_kind)
    def test_every_kind_and_shape_comes_back_bit_by_bit(self, values):
        back = from_array(to_array(values))
        assert back.dtype == values.dtype
        assert back.shape == values.shape
        assert back.tobytes() == values.tobytes()

    @given(arrays_of_any_kind)
    def test_flowers_own_arrays_are_read_as_numpy_reads_them(self, values):
        array = Array(np.ascontiguousarray(values).reshape(values.shape))
        back = from_array(array)
        assert back.dtype == values.dtype
        assert back.shape == values.shape
        assert back.tobytes() == array.numpy().tobytes()

    def test_what_is_read_is_a_view_and_cannot_be_written(self):
        array = to_array(gaussian(10))
        back = from_array(array)
        assert np.shares_memory(back, np.frombuffer(array.data, np.uint8))
        with pytest.raises(ValueError, match="read-only"):
            back[0] = 1

    def test_other_memory_orders_are_written_in_row_order(self):
        square = gaussian(12).reshape(3, 4)
        for values in (np.asfortranarray(square), square[:, ::2], square.T, square.astype(">f4")):
            np.testing.assert_array_equal(from_array(to_array(values)), values)

    @pytest.mark.parametrize(
        "values",
        [np.array(["a"]), np.array([None]), np.zeros(2, np.complex64), np.zeros(2, bool), np.zeros(2, np.int16)],
    )
    def test_other_kinds_are_refused_on_both_sides(self, values):
        assert code_of(to_array, values) == "dtype"
        assert code_of(from_array, Array(values.dtype.name, values.shape, RAW, values.tobytes())) == "dtype"

    @pytest.mark.parametrize(
        ("dtype", "shape", "stype", "data", "code"),
        [
            ("float32", (2,), "torch.tensor", bytes(8), "dtype"),
            ("object", (1,), RAW, bytes(8), "dtype"),
            ("<f4", (2,), RAW, bytes(8), "dtype"),
            ("float32", (3,), RAW, bytes(8), "shape"),
            ("float32", (2,), RAW, bytes(7), "shape"),
            ("float32", (), RAW, b"", "shape"),
            ("float32", (-1,), RAW, b"", "shape"),
            ("float32", (-2, -1), RAW, bytes(8), "shape"),
            ("float32", (2**62,), RAW, b"", "shape"),
            ("float32", (0, 2**62, 2**62), RAW, b"", "shape"),
            ("float32", (1,) * 100, RAW, bytes(4), "shape"),
            ("float32", (10**5000,), NUMPY, b"", "shape"),
            ("float32", (2,), NUMPY, b"", "shape"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, dtype, shape, stype, data, code):
        assert code_of(from_array, Array(dtype, shape, stype, data)) == code

    def test_a_header_that_differs_from_what_is_declared_is_refused(self):
        array = Array(gaussian(6).reshape(2, 3))
        lies = {
            "other shape": Array("float32", (3, 2), NUMPY, array.data),
            "other kind": Array("int32", (2, 3), NUMPY, array.data),
            "column order": Array(np.asfortranarray(gaussian(6).reshape(2, 3))),
            "big-endian": Array("float32", (2,), NUMPY, Array(np.zeros(2, ">f4")).data),
            "truncated": Array("float32", (2, 3), NUMPY, array.data[:-1]),
            "too long": Array("float32", (2, 3), NUMPY, array.data + b"x"),
            "other version": Array("float32", (2, 3), NUMPY, array.data[:6] + b"\x02" + array.data[7:]),
        }
        assert {name: code_of(from_array, lie) for name, lie in lies.items()} == dict.fromkeys(lies, "shape")

    @given(
        st.sampled_from(KINDS),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0),
        st.sampled_from([RAW, NUMPY]),
        st.binary(max_size=300),
    )
    def test_any_bytes_are_read_or_refused(self, dtype, shape, stype, data):
        read = attempt(from_array, Array(dtype, shape, stype, data))
        assert read == "shape" if isinstance(read, str) else read.shape == shape

    def test_records_keep_names_and_order(self):
        arrays = {"b": gaussian(3), "a": np.arange(4, dtype=np.uint32)}
        record = to_record(arrays)
        assert isinstance(record, ArrayRecord)
        back = from_record(record)
        assert list(back) == ["b", "a"]
        for name, values in arrays.items():
            np.testing.assert_array_equal(back[name], values)


@pytest.mark.parametrize("name", CODECS)
class TestEveryCodec:
    """The contract of a codec."""

    @pytest.mark.parametrize("size", SIZES)
    def test_any_length_comes_back_over_the_wire(self, name, size):
        arrays = CODECS[name].encode(gaussian(size), settings(name))
        vector = CODECS[name].decode(from_record(to_record(arrays)), size)
        assert vector.dtype == np.float32
        assert vector.shape == (size,)

    def test_it_repeats_itself(self, name):
        first, second = (CODECS[name].encode(gaussian(5000), settings(name)) for _ in range(2))
        assert {key: value.tobytes() for key, value in first.items()} == {
            key: value.tobytes() for key, value in second.items()
        }

    def test_it_leaves_its_input_alone(self, name):
        vector = gaussian(5000)
        encode_with_feedback(settings(name), vector, gaussian(5000, seed=1))
        np.testing.assert_array_equal(vector, gaussian(5000))

    def test_zeros_stay_zeros(self, name):
        zeros = np.zeros(3000, np.float32)
        np.testing.assert_array_equal(CODECS[name].decode(CODECS[name].encode(zeros, settings(name)), 3000), zeros)

    @given(vector=any_vectors)
    def test_numbers_that_are_not_finite_show_themselves(self, name, vector):
        arrays = CODECS[name].encode(vector, settings(name))
        decoded = attempt(CODECS[name].decode, arrays, vector.size)
        if isinstance(decoded, str):
            assert decoded == "range"
            assert not np.isfinite(vector).all()
        else:
            assert np.isfinite(vector).all() or not np.isfinite(decoded).all()

    def test_missing_extra_kind_and_length_are_told_apart(self, name):
        codec = CODECS[name]
        arrays = codec.encode(gaussian(2000), settings(name))
        for key, values in arrays.items():
            rest = {other: array for other, array in arrays.items() if other != key}
            assert code_of(codec.decode, rest, 2000) == "missing"
            assert code_of(codec.decode, {**arrays, key: values.astype(np.float64)}, 2000) == "dtype"
            assert code_of(codec.decode, {**arrays, key: values[:-1]}, 2000) == "shape"
            assert code_of(codec.decode, {**arrays, key: values[None]}, 2000) == "shape"
        assert code_of(codec.decode, {**arrays, "more": gaussian(1)}, 2000) == "extra"

    @given(data=st.data())
    def test_any_arrays_are_decoded_or_refused(self, name, data):
        arrays = CODECS[name].encode(gaussian(20), settings(name, keep=0.3))
        kinds = [array.dtype for array in arrays.values()] + [np.dtype(np.float64)]
        forged = st.sampled_from(kinds).flatmap(lambda kind: hnp.arrays(kind, st.integers(0, 21)))
        received = {key: data.draw(st.one_of(st.just(array), forged)) for key, array in arrays.items()}
        vector = attempt(CODECS[name].decode, received, 20)
        if isinstance(vector, str):
            assert vector in {"shape", "dtype", "range"}
        else:
            assert vector.shape == (20,)
            assert vector.dtype == np.float32


class TestPrecision:
    @given(any_vectors)
    def test_float32_loses_nothing(self, vector):
        codec = CODECS["float32"]
        assert codec.decode(codec.encode(vector, settings("float32")), vector.size).tobytes() == vector.tobytes()

    @given(vectors)
    def test_float16_is_the_nearest_half(self, vector):
        codec = CODECS["float16"]
        decoded = codec.decode(codec.encode(vector, settings("float16")), vector.size)
        assert np.all(np.abs(decoded - vector) <= np.maximum(np.abs(vector) * 2.0**-11, 2.0**-25))

    def test_float16_overflow_is_infinite(self):
        codec = CODECS["float16"]
        decoded = codec.decode(codec.encode(np.array([1e6, -1e6, 1], np.float32), settings("float16")), 3)
        np.testing.assert_array_equal(decoded, [np.inf, -np.inf, 1])

    @given(vectors, st.sampled_from([1.0, 1e-42, 1e-30, 1e34]))
    def test_int8_is_within_half_a_step_of_its_block(self, vector, unit):
        vector = (vector * np.float32(unit)).astype(np.float32)
        arrays = CODECS["int8"].encode(vector, settings("int8"))
        decoded = CODECS["int8"].decode(arrays, vector.size)
        for start in range(0, vector.size, BLOCK):
            block = slice(start, start + BLOCK)
            peak = np.abs(vector[block]).max().astype(np.float64)
            step = max(peak / 127, float(np.finfo(np.float32).tiny))
            assert arrays["scales"][start // BLOCK] == pytest.approx(step, rel=1e-6)
            error = np.abs(decoded[block].astype(np.float64) - vector[block])
            assert np.all(error <= step * (0.5 + 1e-4))

    @given(st.integers(1, 3000), st.floats(0.001, 1), st.integers(1, 60), st.integers(0, 2**32 - 1))
    def test_topk_is_the_first_of_a_stable_sort(self, size, keep, levels, seed):
        vector = np.random.default_rng(seed).integers(-levels, levels, size, endpoint=True).astype(np.float32)
        check_topk(vector, keep)

    @pytest.mark.parametrize("size", [200_000, 400_001])
    @pytest.mark.parametrize("keep", [1e-6, 0.001, 0.02, 0.5, 1.0])
    def test_topk_of_long_vectors_where_the_sample_guesses(self, size, keep):
        check_topk(gaussian(size), keep)

    @pytest.mark.parametrize("place", [0, 1])
    def test_topk_where_the_sample_misleads(self, place):
        vector = np.ones(300_000, np.float32)
        vector[place::251] = 9  # all that is sampled is large, or nothing of what is large is sampled
        check_topk(vector, 0.01)

    def test_topk_range_is_checked(self):
        values = np.ones(2, np.float32)
        for indices in ([0, 5], [1, 1], [2, 1], [0, 2**32 - 1]):
            received = {"indices": np.array(indices, np.uint32), "values": values}
            assert code_of(CODECS["topk"].decode, received, 5) == "range"
        received = {"indices": np.array([1, 4], np.uint32), "values": values}
        np.testing.assert_array_equal(CODECS["topk"].decode(received, 5), [0, 1, 0, 0, 1])

    @pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf])
    def test_int8_scales_must_be_finite(self, scale):
        received = {"values": np.ones(5, np.int8), "scales": np.array([scale], np.float32)}
        assert code_of(CODECS["int8"].decode, received, 5) == "range"

    def test_int8_overflow_on_arrival_is_infinite(self):
        received = {"values": np.array([127, 0], np.int8), "scales": np.array([3e38], np.float32)}
        np.testing.assert_array_equal(CODECS["int8"].decode(received, 2), [np.inf, 0])


def check_topk(vector, keep):
    arrays = CODECS["topk"].encode(vector, settings("topk", keep))
    count = max(1, round(keep * vector.size))
    expected = np.sort(np.argsort(-np.abs(vector), kind="stable")[:count])
    np.testing.assert_array_equal(arrays["indices"], expected)
    np.testing.assert_array_equal(arrays["values"], vector[expected])


class TestErrorFeedback:
    @pytest.mark.parametrize("name", LOSSY)
    @given(rounds=st.integers(1, 8), size=st.integers(1, 3000), seed=st.integers(0, 2**32 - 1))
    def test_what_arrived_is_what_was_given_less_what_is_owed(self, name, rounds, size, seed):
        generator, residual = np.random.default_rng(seed), None
        given_, arrived = np.zeros(size), np.zeros(size)
        for _ in range(rounds):
            vector = generator.standard_normal(size).astype(np.float32)
            arrays, residual = encode_with_feedback(settings(name), vector, residual)
            given_ += vector
            arrived += CODECS[name].decode(arrays, size)
        np.testing.assert_allclose(arrived + residual, given_, rtol=0, atol=1e-5 * rounds)

    def test_it_recovers_what_topk_alone_never_sends(self):
        vector, residual = np.array([1.0, 0.4, 0.3], np.float32), None
        sent = np.zeros(3)
        for _ in range(100):
            arrays, residual = encode_with_feedback(settings("topk", keep=0.34), vector, residual)
            assert arrays["indices"].size == 1
            sent += CODECS["topk"].decode(arrays, 3)
        np.testing.assert_allclose(sent / 100, vector, atol=0.05)

    def test_an_exact_codec_owes_nothing_and_pays_debts(self):
        arrays, residual = encode_with_feedback(
            settings("float32"), np.ones(3, np.float32), np.full(3, 0.5, np.float32)
        )
        assert residual is None
        np.testing.assert_array_equal(arrays["values"], [1.5, 1.5, 1.5])

    @pytest.mark.parametrize("name", LOSSY)
    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_a_diverged_round_does_not_poison_the_next(self, name, bad):
        owed = gaussian(10)
        _, residual = encode_with_feedback(settings(name), np.full(10, bad, np.float32), owed)
        np.testing.assert_array_equal(residual, owed)

    def test_half_precision_overflow_does_not_poison_the_next_round(self):
        owed = gaussian(3)
        _, residual = encode_with_feedback(settings("float16"), np.full(3, 1e6, np.float32), owed)
        np.testing.assert_array_equal(residual, owed)
