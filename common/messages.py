"""What coordinator and hospital say to each other, as Flower records.

========================  =============================================  ==============================================
message type              the coordinator sends                          the hospital answers
========================  =============================================  ==============================================
``query.statistics``      the task                                       its name, its counts, the task's statistics
``train``                 weights, preparation, run settings, round      update, count of patients, statistics
``evaluate``              weights, preparation                           statistics of the test patients
``query.compare``         two models, perhaps a threshold of each        joint statistics of both on the test patients
``query.keys``            that secure sums are to be made                a card with its keys for the run, signed
``query.shares``          who survived the last sum, who is in the next  shares of the last sum's masks, what it deals for the next
``query.shares``          who survived, where not all did                its signature of that
========================  =============================================  ==============================================

Requests are plain records: texts and numbers under ``config``, arrays under ``arrays``. Settings travel as JSON text that stays the
same object from round to round, so that a hospital parses it once. Under secure aggregation ``train`` and ``evaluate`` are answered by one masked vector.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from common import wire
from common.config import RunConfig, as_table, parse
from common.errors import ConfigError, UpdateRejected

STATISTICS, TRAIN, EVALUATE, COMPARE = "query.statistics", "train", "evaluate", "query.compare"
KEYS, SHARES = "query.keys", "query.shares"
SIGNATURE = "signature"
"""The text by which a hospital signs a list of survivors."""

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Request:
    """One request to one hospital. ``options`` are whole numbers, fractions, truth values or texts."""

    run: str
    arrays: Arrays = field(default_factory=dict)
    options: Mapping[str, bool | int | float | str] = field(default_factory=dict)

    @property
    def config(self) -> RunConfig:
        """Return the run's settings."""
        return run_config(self.run)

    @property
    def digest(self) -> bytes:
        """Return the SHA-256 of all of it."""
        told = hashlib.sha256(json.dumps([self.run, sorted(self.options.items())]).encode())
        for name, array in sorted(self.arrays.items()):
            told.update(f"{name}\x1f{array.dtype}{array.shape}".encode())
            told.update(np.ascontiguousarray(array).tobytes())
        return told.digest()


@dataclass(frozen=True)
class Reply:
    """One answer: arrays of the update as the codec wrote them, statistics that add, the count of patients, and texts."""

    arrays: Arrays = field(default_factory=dict)
    statistics: Arrays = field(default_factory=dict)
    num_examples: int = 0
    texts: Mapping[str, str] = field(default_factory=dict)


PACKED = "packed"
"""The name under which an answer's statistics stand, as bytes: to Flower an array is three things that travel by requests of their own, and this is one."""


def run_text(config: RunConfig) -> str:
    """Write a run's settings as they travel."""
    return json.dumps(as_table(config), sort_keys=True)


@lru_cache(maxsize=16)
def run_config(text: str) -> RunConfig:
    """Read a run's settings as they travel."""
    try:
        return parse(RunConfig, json.loads(text))
    except (ValueError, RecursionError):
        raise ConfigError("the run's settings cannot be read: expected JSON") from None


def pack_request(run: str, arrays: Arrays, options: Mapping[str, bool | int | float | str]) -> RecordDict:
    """Lay a request out as Flower records, which any number of messages can share."""
    return RecordDict({"arrays": wire.to_record(arrays), "config": ConfigRecord({"run": run, **options})})


def unpack_request(content: RecordDict) -> Request:
    """Read a request."""
    options = dict(content["config"])
    return Request(str(options.pop("run")), _arrays(content, "arrays"), options)  # type: ignore[arg-type]


def pack_reply(reply: Reply) -> RecordDict:
    """Lay an answer out as Flower records."""
    return RecordDict(
        {
            "arrays": wire.to_record(reply.arrays),
            "statistics": pack_statistics(reply.statistics),
            "metrics": MetricRecord({"num-examples": reply.num_examples}),
            "config": ConfigRecord(dict(reply.texts)),
        }
    )


def unpack_reply(content: RecordDict) -> Reply:
    """Read an answer that may come from anyone.

    Raises
    ------
    UpdateRejected
        With the code ``missing``, ``extra``, ``count`` or ``dtype``, for records that are not exactly those of `pack_reply`.
    """
    wanted = {"arrays": ArrayRecord, "statistics": ConfigRecord, "metrics": MetricRecord, "config": ConfigRecord}
    _only(content, wanted, "record")
    for name, kind in wanted.items():
        if not isinstance(content[name], kind):
            raise UpdateRejected("dtype", f"record {name!r}: expected a {kind.__name__}")
    metrics = content["metrics"]
    _only(metrics, ("num-examples",), "metric")
    count = metrics["num-examples"]
    if type(count) is not int:
        raise UpdateRejected("count", "num-examples: expected a whole number")
    texts = {name: text for name, text in content["config"].items() if isinstance(text, str)}
    return Reply(_arrays(content, "arrays"), unpack_statistics(content["statistics"]), count, texts)  # type: ignore[arg-type]


def pack_statistics(statistics: Arrays) -> ConfigRecord:
    """Lay statistics out as one Flower value."""
    return ConfigRecord({PACKED: wire.pack({name: _narrow(value) for name, value in statistics.items()})})


def unpack_statistics(record: ConfigRecord) -> dict[str, NDArray[Any]]:
    """Undo `pack_statistics`; raise as `unpack_reply` does."""
    _only(record, (PACKED,), "value among the statistics")
    packed = record[PACKED]
    if not isinstance(packed, bytes):
        raise UpdateRejected("dtype", "statistics: expected bytes")
    return {
        name: value.astype(np.float64) if value.dtype.kind == "u" else value
        for name, value in wire.unpack(packed).items()
    }


def bytes_of(content: RecordDict) -> int:
    """Return the bytes of all arrays and statistics in a message, as they travel."""
    records = [record for record in content.values() if isinstance(record, ArrayRecord)]
    statistics = content.get("statistics")
    packed = statistics.get(PACKED, b"") if isinstance(statistics, ConfigRecord) else b""
    return sum(len(array.data) for record in records for array in record.values()) + len(packed)  # type: ignore[arg-type]


def _arrays(content: RecordDict, name: str) -> dict[str, NDArray[Any]]:
    record = content[name]
    if not isinstance(record, ArrayRecord):
        raise UpdateRejected("dtype", f"record {name!r}: expected arrays")
    return wire.from_record(record)


def _narrow(values: NDArray[Any]) -> NDArray[Any]:
    """Return the same whole numbers in the fewest bytes: most statistics are histograms, whose counts are small."""
    if values.dtype != np.float64 or not values.size or not (values.min() >= 0 and values.max() < 2**32):
        return values
    whole = values.astype(np.min_scalar_type(int(values.max())))
    return whole if np.array_equal(whole, values) else values


def _only(found: Mapping[str, Any], wanted: Any, what: str) -> None:
    extra, missing = sorted(set(found) - set(wanted)), sorted(set(wanted) - set(found))
    if missing:
        raise UpdateRejected("missing", f"{what} {missing[0]!r} is missing")
    if extra:
        # Its name is the sender's own words, which stay out of the records.
        raise UpdateRejected("extra", f"a {what} came that is not expected; expected: {', '.join(sorted(wanted))}")


def prefixed(prefix: str, arrays: Arrays) -> dict[str, NDArray[Any]]:
    """Name arrays as belonging to one group.

    >>> prefixed("test", {"n": np.zeros(1)})
    {'test/n': array([0.])}
    """
    return {f"{prefix}/{name}": array for name, array in arrays.items()}


def group(prefix: str, arrays: Arrays) -> dict[str, NDArray[Any]]:
    """Undo `prefixed`: return the arrays of one group under their own names."""
    return {name.removeprefix(prefix + "/"): array for name, array in arrays.items() if name.startswith(prefix + "/")}
