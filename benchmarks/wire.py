"""The wire: our encodings beside Flower's own in one run, and what the objects of a round cost.

``python -m benchmarks.wire [--megabytes 100] [--repeats 7]``. Absolute times change with the machine; the ratios are what counts.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from common import flower

flower.quiet()

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from common.config import UpdateConfig
from common.wire import CODECS, Codec, from_record, to_array, to_record

HOSPITALS = 4
EMPTY_ROUND_LIMIT_MS = 2.0
PARAMETERS = 241  # of the heart network


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=8.0, help="size of the float32 vector (default: 8)")
    parser.add_argument("--repeats", type=int, default=7, help="runs of each step; medians are printed (default: 7)")
    arguments = parser.parse_args()
    codecs(round(arguments.megabytes * 1e6 / 4), arguments.repeats)
    objects(arguments.repeats)


def codecs(size: int, repeats: int) -> None:
    """Time vector to record and back: Flower's ``np.save`` path, then each codec; runs of all are interleaved."""
    vector = np.random.default_rng(1).standard_normal(size, dtype=np.float32)
    paths: dict[str, tuple[Callable[[], ArrayRecord], Callable[[ArrayRecord], Any]]] = {
        "Flower": (lambda: ArrayRecord([vector]), lambda record: record.to_numpy_ndarrays()),
        "one copy": (lambda: ArrayRecord({"copy": Array("float32", (0,), "none", vector.tobytes())}), lambda _: None),
    }
    for name, codec in CODECS.items():
        encode = partial(codec.encode, vector, UpdateConfig(codec=name))  # type: ignore[arg-type]
        paths[name] = (partial(write, encode), partial(read, codec, size))
    times: dict[str, list[tuple[float, float, int]]] = {name: [] for name in paths}
    for _ in range(repeats):
        for name, path in paths.items():
            times[name].append(there_and_back(*path))
    rows = {name: [statistics.median(column) for column in zip(*runs, strict=True)] for name, runs in times.items()}
    flowers = rows["Flower"]
    print(f"{size:,} float32 values, medians of {repeats} runs; ratios are to Flower's own path")
    print(f"{'path':10} {'encode ms':>10} {'decode ms':>10} {'MB':>8} {'encode x':>9} {'both x':>7} {'bytes x':>8}")
    for name, (out, back, size_bytes) in rows.items():
        both = (out + back) / (flowers[0] + flowers[1])
        print(
            f"{name:10} {out:10.2f} {back:10.2f} {size_bytes / 1e6:8.2f} {out / flowers[0]:9.2f} {both:7.2f} {size_bytes / flowers[2]:8.3f}"
        )


def write(encode: Callable[[], Any]) -> ArrayRecord:
    """Encode into a record."""
    return to_record(encode())


def read(codec: Codec, size: int, record: ArrayRecord) -> Any:
    """Decode a record."""
    return codec.decode(from_record(record), size)


def there_and_back(out: Callable[[], ArrayRecord], back: Callable[[ArrayRecord], Any]) -> tuple[float, float, int]:
    """Return milliseconds to write, milliseconds to read, and bytes."""
    start = time.perf_counter()
    record = out()
    middle = time.perf_counter()
    back(record)
    return (middle - start) * 1e3, (time.perf_counter() - middle) * 1e3, record.count_bytes()


def objects(repeats: int) -> None:
    """Time the objects of a round without training, and the sum of those that a round over four hospitals needs."""
    vector = np.zeros(PARAMETERS, np.float32)
    config: dict[str, Any] = {"server-round": 1, "task": "heart", "learning-rate": 0.1, "epochs": 2, "seed": 5}
    parts = RecordDict(
        {
            "arrays": to_record({"values": vector}),
            "config": ConfigRecord(config),
            "metrics": MetricRecord({"num-examples": 5}),
        }
    )
    with flower.identity(1):
        request = flower.stamp(Message(parts, 3, "train"), "1", 1, flower.server_node())
        data = flower.message_bytes(request)
        steps: dict[str, Callable[[], Any]] = {
            "Array(values)": lambda: Array(vector),
            "to_array(values)": lambda: to_array(vector),
            "to_record(one array)": lambda: to_record({"values": vector}),
            "from_record(one array)": lambda: from_record(parts.array_records["arrays"]),
            "ConfigRecord(5)": lambda: ConfigRecord(dict(config)),
            "MetricRecord(1)": lambda: MetricRecord({"num-examples": 5}),
            "RecordDict(3)": lambda: RecordDict(dict(parts)),
            "Message(request)": lambda: flower.stamp(Message(parts, 3, "train"), "1", 1, 1),
            "Message(reply)": lambda: Message(parts, reply_to=request),
            "message_bytes": lambda: flower.message_bytes(request),
            "message_from": lambda: flower.message_from(data),
        }
        rounds = {
            "passed on as objects": lambda: empty_round(vector, config, as_bytes=False),
            "passed on as bytes": lambda: empty_round(vector, config, as_bytes=True),
        }
        print("\nobject                   us")
        for name, step in steps.items():
            print(f"{name:23} {cost(step, repeats, 500) * 1e3:6.1f}")
        print(f"\nempty round, {HOSPITALS} hospitals      ms  (limit {EMPTY_ROUND_LIMIT_MS})")
        for name, step in rounds.items():
            print(f"{name:28} {cost(step, repeats, 50):6.2f}")


def empty_round(vector: Any, config: dict[str, Any], *, as_bytes: bool) -> None:
    """Do everything of a round but the training: one request's content for all, and from every hospital a reply that is read."""
    carry = (
        (lambda message: flower.message_from(flower.message_bytes(message))) if as_bytes else (lambda message: message)
    )
    request = RecordDict({"arrays": to_record({"values": vector}), "config": ConfigRecord(dict(config))})
    for node in range(HOSPITALS):
        asked = carry(flower.stamp(Message(request, node, "train"), str(node), 1, 1))
        weights = from_record(asked.content.array_records["arrays"])
        answer = RecordDict({"arrays": to_record(weights), "metrics": MetricRecord({"num-examples": 5})})
        CODECS["float32"].decode(
            from_record(carry(Message(answer, reply_to=asked)).content.array_records["arrays"]), vector.size
        )


def cost(step: Callable[[], Any], repeats: int, times: int) -> float:
    """Return the milliseconds of one call: the median over ``repeats`` of the mean of ``times`` calls."""
    runs = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(times):
            step()
        runs.append((time.perf_counter() - start) / times * 1e3)
    return statistics.median(runs)


if __name__ == "__main__":
    main()
