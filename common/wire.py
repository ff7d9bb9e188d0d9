"""The wire: how vectors travel as Flower records, in both directions.

``vector -> encode -> named arrays -> to_record -> Flower -> from_record -> named arrays -> decode -> vector``

What arrives is checked before a byte is allocated for it, and nothing is ever unpickled or evaluated. An array goes out with
one copy and comes in with none, where Flower's ``Array(ndarray)`` and ``Array.numpy()`` copy it two or three times.
"""

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from common.config import UpdateConfig
from common.errors import UpdateRejected
from common.layout import Vector

if TYPE_CHECKING:
    from flwr.app import Array, ArrayRecord

Arrays = Mapping[str, NDArray[Any]]

RAW = "fedward.raw"
"""Serialisation type of our arrays: the numbers, little-endian, in row order, and nothing else."""
NUMPY = "numpy.ndarray"
"""Flower's own serialisation type: a ``.npy`` file."""
KINDS = ("float16", "float32", "float64", "int8", "int32", "int64", "uint8", "uint16", "uint32")
"""The kinds of numbers that may travel."""

BLOCK = 1024
"""How many numbers share a scale in the codec 'int8'."""

_DTYPES = {name: np.dtype(name).newbyteorder("<") for name in KINDS}
_NPY_MAGIC = b"\x93NUMPY\x01\x00"
_MOST_DIMENSIONS = 8
_MOST_NUMBERS = 2**40

_PIECE = 2**17  # numbers that one pass works on at a time: they stay in the processor's cache
_TINY = np.finfo(np.float32).tiny
_SAMPLED = (
    251  # one number in so many is sampled; a prime, so that the sample doesn't march in step with a layer's rows
)
_MAGNITUDE = np.uint32(0x7FFF_FFFF)


def to_array(values: NDArray[Any]) -> "Array":
    """Write an array of any shape for the wire, with one copy.

    Raises
    ------
    UpdateRejected
        ``dtype`` for a kind of number that is not among `KINDS`.
    """
    from flwr.app import Array

    name = values.dtype.name
    return Array(name, values.shape, RAW, values.astype(_dtype(name), copy=False).tobytes())


def from_array(array: "Array") -> NDArray[Any]:
    """Return a read-only view of what arrived, ours or Flower's own, without a copy.

    Raises
    ------
    UpdateRejected
        ``dtype`` for a serialisation or a kind of number that is not allowed; ``shape`` when shape and length of the bytes disagree.
    """
    dtype, shape = _dtype(array.dtype), array.shape
    _check_shape(shape)
    start = _start(array, dtype)
    if math.prod(shape) * dtype.itemsize != len(array.data) - start:
        raise UpdateRejected("shape", "the length of an array's bytes does not fit its shape")
    return np.ndarray(shape, dtype, array.data, start)


def _check_shape(shape: tuple[int, ...]) -> None:
    # A zero counts as one here: numpy refuses a shape whose other dimensions multiply to too much.
    if (
        len(shape) > _MOST_DIMENSIONS
        or min(shape, default=0) < 0
        or math.prod(max(n, 1) for n in shape) > _MOST_NUMBERS
    ):
        raise UpdateRejected("shape", "the shape of an array has too many, negative or too large dimensions")


def to_record(arrays: Arrays) -> "ArrayRecord":
    """Write named arrays as one record."""
    from flwr.app import ArrayRecord

    record = ArrayRecord()
    for name, values in arrays.items():
        record[name] = to_array(values)
    return record


def from_record(record: "ArrayRecord") -> dict[str, NDArray[Any]]:
    """Read every array of a record; raise what `from_array` raises."""
    return {name: from_array(array) for name, array in record.items()}


def pack(arrays: Arrays) -> bytes:
    """Lay named arrays end to end behind one line that describes them.

    Flower moves every array by requests of its own, of which a deployed round would make hundreds.
    """
    parts = [(name, np.asarray(values, _dtype(values.dtype.name))) for name, values in arrays.items()]
    head = json.dumps([[name, values.dtype.name, values.shape] for name, values in parts]).encode() + b"\n"
    return b"".join([head, *(values.tobytes() for _, values in parts)])


def unpack(packed: bytes) -> dict[str, NDArray[Any]]:
    """Undo `pack`; the arrays are read-only views of what arrived.

    Raises
    ------
    UpdateRejected
        ``dtype`` where the line in front is not that of `pack`, ``shape`` where it does not fit the bytes behind it.
    """
    head, _, data = packed.partition(b"\n")
    try:
        described = [(str(name), _dtype(kind), tuple(shape)) for name, kind, shape in json.loads(head)]
    except (ValueError, TypeError, RecursionError):
        raise UpdateRejected("dtype", "packed arrays: expected a line that describes them") from None
    for *_, shape in described:
        if not all(type(side) is int for side in shape):
            raise UpdateRejected("shape", "packed arrays: expected whole numbers as dimensions")
        _check_shape(shape)
    sizes = [math.prod(shape) * dtype.itemsize for _, dtype, shape in described]
    if sum(sizes) != len(data) or len({name for name, *_ in described}) < len(described):
        raise UpdateRejected("shape", "packed arrays: the bytes do not fit their description")
    starts = itertools.accumulate(sizes, initial=0)
    return {
        name: np.ndarray(shape, dtype, data, start)
        for (name, dtype, shape), start in zip(described, starts, strict=False)
    }


@dataclass(frozen=True)
class Codec:
    """One encoding of a vector of shape ``(P,)``.

    ``encode(vector, settings)`` gives named arrays and never raises: numbers that aren't finite arrive as such, or are refused on arrival.
    ``decode(arrays, P)`` gives the float32 vector, perhaps read-only, or raises `UpdateRejected` with code ``missing``, ``extra``,
    ``dtype``, ``shape`` or ``range``. ``exact`` says that nothing is lost.
    """

    encode: Callable[[Vector, UpdateConfig], dict[str, NDArray[Any]]]
    decode: Callable[[Arrays, int], Vector]
    exact: bool = False


def encode_with_feedback(
    settings: UpdateConfig, vector: Vector, residual: Vector | None
) -> tuple[dict[str, NDArray[Any]], Vector | None]:
    """Encode ``vector`` plus what earlier rounds lost; return the arrays and what is lost now (None when nothing can be).

    Over rounds, what was decoded is the sum of what was given less the last residual (error feedback: Seide et al. 2014, section 3; Karimireddy et al. 2019,
    algorithm 2). An update that doesn't arrive finite is going to be refused, so what was owed before it stays owed.
    """
    codec = CODECS[settings.codec]
    with np.errstate(over="ignore", invalid="ignore"):
        whole = np.asarray(vector, np.float32) if residual is None else vector + residual
    arrays = codec.encode(whole, settings)
    if codec.exact:
        return arrays, None
    if not np.isfinite(whole).all():
        return arrays, residual
    lost = whole - codec.decode(arrays, whole.size)
    return arrays, lost if np.isfinite(lost).all() else residual


def _encode_float32(vector: Vector, _settings: UpdateConfig) -> dict[str, NDArray[Any]]:
    return {"values": np.asarray(vector, np.float32)}


def _decode_float32(arrays: Arrays, size: int) -> Vector:
    return _expect(arrays, {"values": ("float32", size)})[0]


def _encode_float16(vector: Vector, _settings: UpdateConfig) -> dict[str, NDArray[Any]]:
    """Round to half precision; above 65504 this is infinite, and the round refuses the update."""
    with np.errstate(over="ignore", invalid="ignore"):
        return {"values": vector.astype(np.float16)}


def _decode_float16(arrays: Arrays, size: int) -> Vector:
    (values,) = _expect(arrays, {"values": ("float16", size)})
    with np.errstate(invalid="ignore"):  # a signalling NaN
        return values.astype(np.float32)


def _encode_int8(vector: Vector, _settings: UpdateConfig) -> dict[str, NDArray[Any]]:
    """Round to the nearest of 255 steps from ``-max|x|`` to ``max|x|`` of each block; ties go to the even step.

    The scale is at least the smallest normal float32, so that zero blocks need no case of their own.
    """
    values = np.empty(vector.size, np.int8)
    scales = np.empty(_blocks(vector.size), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for where, rows in _pieces(vector.size):
            block = vector[where].reshape(rows.stop - rows.start, -1)
            peak = np.maximum(block.max(axis=1), -block.min(axis=1))
            scales[rows] = np.maximum(peak / np.float32(127), _TINY)
            steps = block * (1 / scales[rows, None])
            values[where] = np.rint(steps, out=steps).reshape(-1)
    return {"values": values, "scales": scales}


def _decode_int8(arrays: Arrays, size: int) -> Vector:
    values, scales = _expect(arrays, {"values": ("int8", size), "scales": ("float32", _blocks(size))})
    if not np.isfinite(scales).all():
        raise UpdateRejected("range", "a block's scale is not a finite number")
    vector = np.empty(size, np.float32)
    with np.errstate(over="ignore"):
        for where, rows in _pieces(size):
            block = vector[where].reshape(rows.stop - rows.start, -1)
            block[...] = values[where].reshape(block.shape)
            block *= scales[rows, None]
    return vector


def _encode_topk(vector: Vector, settings: UpdateConfig) -> dict[str, NDArray[Any]]:
    """Send the share ``keep`` of the values that is largest by magnitude, at least one."""
    vector = np.asarray(vector, np.float32)
    chosen = _largest(vector, min(vector.size, max(1, round(settings.keep * vector.size))))
    return {"indices": chosen.astype(np.uint32), "values": vector[chosen]}


def _decode_topk(arrays: Arrays, size: int) -> Vector:
    indices, values = _expect(arrays, {"indices": ("uint32", None), "values": ("float32", None)})
    if indices.size != values.size:
        raise UpdateRejected("shape", f"{indices.size} indices came with {values.size} values")
    if indices.size and (indices[-1] >= size or (indices[1:] <= indices[:-1]).any()):
        raise UpdateRejected("range", f"the indices do not rise strictly within {size} values")
    vector = np.zeros(size, np.float32)
    vector[indices] = values
    return vector


CODECS: Mapping[str, Codec] = {
    "float32": Codec(_encode_float32, _decode_float32, exact=True),
    "float16": Codec(_encode_float16, _decode_float16),
    "int8": Codec(_encode_int8, _decode_int8),
    "topk": Codec(_encode_topk, _decode_topk),
}
"""The one place where a setting ``update.codec`` becomes an encoding."""


def _largest(vector: Vector, count: int) -> NDArray[np.int64]:
    """Return the places, rising, of exactly the ``count`` largest magnitudes; among equals the earlier places.

    Without the sign bit, floats order by magnitude as whole numbers do, NaN above all, so that a diverged update shows itself. A
    threshold guessed from an even sample leaves few candidates to order; when it leaves too few, all values are candidates. So the
    sample decides the time taken and never the answer.
    """
    bits = vector.view(np.uint32)
    found = _at_least(bits, _guess(bits, count))
    if found.size < count:
        found = np.arange(bits.size)
    if not count:
        return found
    magnitudes = bits[found] & _MAGNITUDE
    least = np.partition(magnitudes, -count)[-count]
    keep, ties = magnitudes >= least, np.flatnonzero(magnitudes == least)
    surplus = np.count_nonzero(keep) - count
    keep[ties[ties.size - surplus :]] = False
    chosen: NDArray[np.int64] = found[keep]
    return chosen


def _guess(bits: NDArray[np.uint32], count: int) -> np.uint32:
    """Return a magnitude that a tenth more than ``count`` values should reach, judged by a sample."""
    sample = bits[::_SAMPLED] & _MAGNITUDE
    rank = int(1.1 * count / _SAMPLED) + 20
    return np.uint32(np.partition(sample, -rank)[-rank]) if rank <= sample.size else np.uint32(0)


def _at_least(bits: NDArray[np.uint32], least: np.uint32) -> NDArray[np.int64]:
    reached = np.empty(bits.size, np.bool_)
    for start in range(0, bits.size, _PIECE):
        piece = slice(start, start + _PIECE)
        np.greater_equal(bits[piece] & _MAGNITUDE, least, out=reached[piece])
    return np.flatnonzero(reached)


def _blocks(size: int) -> int:
    return -(-size // BLOCK)


def _pieces(size: int) -> Iterator[tuple[slice, slice]]:
    """Cut a vector into pieces of whole blocks that fit the cache, the short last block alone; yield values' and blocks' slices."""
    whole = size // BLOCK
    step = _PIECE // BLOCK
    for first in range(0, whole, step):
        last = min(first + step, whole)
        yield slice(first * BLOCK, last * BLOCK), slice(first, last)
    if size % BLOCK:
        yield slice(whole * BLOCK, size), slice(whole, whole + 1)


def _expect(arrays: Arrays, expected: Mapping[str, tuple[str, int | None]]) -> list[NDArray[Any]]:
    """Return the expected one-dimensional arrays, in that order, after checking name, kind and, where one is given, length."""
    for name, (kind, length) in expected.items():
        if name not in arrays:
            raise UpdateRejected("missing", f"the update has no array {name!r}")
        array = arrays[name]
        if array.dtype != kind:
            raise UpdateRejected("dtype", f"the array {name!r} is not of the kind {kind}")
        if array.ndim != 1 or length not in (None, array.size):
            raise UpdateRejected(
                "shape", f"the array {name!r} has shape {array.shape}, expected {length or 'one dimension'}"
            )
    if len(arrays) > len(expected):
        raise UpdateRejected("extra", f"the update holds more than the arrays {', '.join(expected)}")
    return [arrays[name] for name in expected]


def _dtype(name: str) -> np.dtype[Any]:
    if name not in _DTYPES:
        raise UpdateRejected(
            "dtype", f"an array holds numbers of a kind that is not allowed; allowed: {', '.join(KINDS)}"
        )
    return _DTYPES[name]


def _start(array: "Array", dtype: np.dtype[Any]) -> int:
    """Return where the numbers begin in the bytes.

    A ``.npy`` header is compared with the only one that the declared dtype and shape allow, instead of being evaluated as ``np.load`` does.
    """
    if array.stype == RAW:
        return 0
    if array.stype != NUMPY:
        raise UpdateRejected("dtype", f"an array is serialised in a way that is not known; known: {RAW}, {NUMPY}")
    start = 10 + int.from_bytes(array.data[8:10], "little")
    header = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': {array.shape}, }}"
    if array.data[:8] != _NPY_MAGIC or array.data[10:start].rstrip(b" \n") != header.encode():
        raise UpdateRejected(
            "shape", "the .npy header of an array is not that of its declared dtype and shape, in row order"
        )
    return start
