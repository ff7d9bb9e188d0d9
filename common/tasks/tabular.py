"""Tables: how columns become numbers by statistics that add, so that no hospital shows a row. Tasks over tables declare their columns and share all of this."""

import hashlib
import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.privacy.noise import Noise
from common.statistics import Statistics
from common.tasks.task import Array, Column, Preparation, Records

BUCKETS = 2**12
"""Places for the codes of a column: of 300 codes 7 in 100 share theirs with another and count as one code with it."""
BINS = 256
WORDS = 4
"""The first 12 bytes of a code travel as so many whole numbers below 2**24: sums over half a billion hospitals stay exact."""
MISSING, UNSEEN, FIRST = 0, 1, 2
"""Code numbers of a column: not known; known and in no list; the first of the list."""
ABOVE = 4.75
"""Standard deviations of its noise that a count of records stands above, as in notes."""
SHOWN = 20
RANK_SCALE = math.sqrt(1 / 12)


@dataclass(frozen=True)
class Tabular:
    """The federated preprocessing of a table.

    A number becomes its distance from the federated mean in deviations, and a flag that says where it is missing; a category with known ``codes`` becomes
    a column a code (or one, where there are two). A number named in ``ranked`` first becomes its rank among all patients, from a histogram over its public range,
    for counts whose tail would drown the rest. A column of the kind ``code`` becomes the number of the code in a list that the hospitals agree on.

    Guarantee
    ---------
    A code leaves a hospital only where at least ``minimum_records`` of its records hold it: how many, and its first 12 bytes. Codes that fewer than
    ``minimum_hospitals`` hospitals told are not in the list.

    Edge cases
    ----------
    - Records are counted, not patients; a code that names a patient passes where he has enough records.
    - With fewer hospitals than ``minimum_hospitals`` all must have a code; with one it alone decides.
    - ``minimum_records`` is a setting of the run, which a hospital holds to the task's default by ``allow.settings``.
    - Codes that share a place: each must reach the minimum by itself, and the text is the most frequent one's.
    - The first rule is applied by the hospital; the second is applied to the sum by the coordinator, and is no protection from it.
    - Under differential privacy counts of codes are told with noise, and neither moments, ranks nor texts: the public ranges stand in.
    """

    columns: tuple[Column, ...]
    ranked: tuple[str, ...] = ()
    minimum_hospitals: int = 2
    minimum_records: int = 10

    @property
    def measured(self) -> tuple[Column, ...]:
        """Return the columns that hold numbers, or codes that the schema knows."""
        return tuple(column for column in self.columns if column.kind != "code")

    @property
    def coded(self) -> tuple[Column, ...]:
        """Return the columns whose codes are agreed on."""
        return tuple(column for column in self.columns if column.kind == "code")

    def summarise(self, records: Records) -> Statistics:
        """Return count, sum and sum of squares of every feature over the rows where it is known; a histogram of the ranked; and of every code its records and its text."""
        features = self.expand(records)
        known = ~np.isnan(features)
        values = np.where(known, features, 0.0)
        statistics = {
            "count": known.sum(axis=0).astype(np.float64),
            "sum": values.sum(axis=0),
            "squares": (values**2).sum(axis=0),
        }
        if self.ranked:
            statistics["ranks"] = np.stack([_histogram(values, column) for values, column in self._ranked(records)])
        return {**statistics, **(self._codes(records) if self.coded else {})}

    def fit(self, statistics: Statistics) -> Preparation:
        """Turn summed moments into mean and deviation, histograms into ranks, and counts of codes into lists.

        A feature that nobody tells of is scaled by its public range, and one that never varies gets deviation 1.
        """
        middle, half = self.ranges()
        told = statistics["count"] > 0
        count = np.maximum(statistics["count"], 1.0)
        mean = statistics["sum"] / count
        variance = np.maximum(statistics["squares"] / count - mean**2, 0.0)
        scale = np.where(variance > 1e-12, np.sqrt(np.maximum(variance, 1e-12)), 1.0)
        preparation = {"mean": np.where(told, mean, middle).tolist(), "scale": np.where(told, scale, half).tolist()}
        if self.ranked:
            preparation["ranks"] = [_cumulated(row).tolist() for row in statistics["ranks"]]
        return {**preparation, **(self._lists(statistics) if self.coded else {})}

    def encode(self, records: Records, preparation: Preparation) -> Array:
        """Return float32 ``(n, width)``: features in deviations from their mean (0 where missing), a flag a measured column, and a number a coded column."""
        features = self.expand(records)
        standard = (features - np.asarray(preparation["mean"])) / np.asarray(preparation["scale"])
        places = [self._places()[name] for name in self.ranked]
        for (values, column), place, ranks in zip(
            self._ranked(records), places, preparation.get("ranks", ()), strict=True
        ):
            edges = np.linspace(column.low, column.high, BINS + 1)
            standard[:, place] = (np.interp(values, edges, ranks) - 0.5) / RANK_SCALE
        missing = np.stack([np.isnan(known(records, column)) for column in self.measured], axis=1)
        numbers = [
            numbered(records[column.name], column.name, listed)[:, None]
            for column, listed in zip(self.coded, preparation.get("codes", ()), strict=True)
        ]
        return np.concatenate([np.nan_to_num(standard, nan=0.0), missing, *numbers], axis=1).astype(np.float32)

    def noised(self, statistics: Statistics, noise: Noise) -> Statistics:
        """Noise the counts of codes and keep those that stand out of the noise; one record moves one count a coded column. Nothing else is told."""
        told: dict[str, NDArray[np.float64]] = {name: np.zeros_like(value) for name, value in statistics.items()}
        if self.coded:
            sensitivity = self.minimum_records * math.sqrt(len(self.coded))
            counts = np.rint(noise(statistics["records"], sensitivity))
            counts[counts < max(self.minimum_records, ABOVE * noise.multiplier * sensitivity)] = 0
            told |= {"records": counts, "present": (counts > 0).astype(np.float64), "hospitals": np.ones(1)}
        return told

    def remarks(self, preparation: Preparation) -> list[str]:
        """Say, by column and code, where the hospitals' lists of codes differ."""
        lines = []
        for column, codes in zip(self.coded, preparation.get("unshared", ()), strict=False):
            if codes:
                more = f" and {len(codes) - SHOWN} more" if len(codes) > SHOWN else ""
                lines.append(
                    f"column {column.name!r}: too few hospitals have the codes {', '.join(codes[:SHOWN])}{more}; they count as unseen. "
                    f"Do all hospitals write this column alike?"
                )
        return lines

    def expand(self, records: Records) -> NDArray[np.float64]:
        """Return one column a number or two-valued category, and one a code of every other category; unknown is NaN."""
        columns = []
        for column in self.measured:
            values = known(records, column)
            if len(column.codes) > 2:
                columns += [np.where(np.isnan(values), np.nan, values == code) for code in column.codes]
            else:
                columns.append(values)
        return np.stack(columns, axis=1)

    def ranges(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the middle of every feature's range, and a quarter of its width, about the deviation of what fills it."""
        ends = []
        for column in self.measured:
            low, high = (min(column.codes), max(column.codes)) if column.codes else (column.low, column.high)
            ends += [(0.0, 1.0)] * len(column.codes) if len(column.codes) > 2 else [(low, high)]
        low, high = np.array(ends, np.float64).T
        return (low + high) / 2, (high - low) / 4

    def features(self, preparation: Preparation) -> int:
        """Return how many encoded columns are features and flags; the coded columns stand after them."""
        return len(preparation["mean"]) + len(self.measured)

    def inputs(self, preparation: Preparation, embedding: int) -> tuple[Any, Any]:
        """Return a Keras input for encoded rows, and the same with ``embedding`` learnt numbers in place of every code."""
        import keras

        plain = self.features(preparation)
        inputs = keras.Input((plain + len(self.coded),), name="features")
        if not self.coded:
            return inputs, inputs
        sizes = [FIRST + len(listed) for listed in preparation["codes"]]
        starts = np.cumsum([0, *sizes[:-1]]).astype(np.float32).tolist()
        codes = keras.layers.Rescaling(1.0, starts, name="places")(inputs[:, plain:])
        vectors = keras.layers.Embedding(sum(sizes), embedding, name="embedding")(codes)
        joined = keras.layers.Concatenate(name="joined")(
            [inputs[:, :plain], keras.layers.Flatten(name="codes")(vectors)]
        )
        return inputs, joined

    def _places(self) -> Mapping[str, int]:
        """Return the feature of every column, the first where it has several."""
        widths = [len(column.codes) if len(column.codes) > 2 else 1 for column in self.measured]
        return {
            column.name: place - width
            for column, width, place in zip(self.measured, widths, np.cumsum(widths).tolist(), strict=True)
        }

    def _ranked(self, records: Records) -> Iterator[tuple[NDArray[np.float64], Column]]:
        columns = {column.name: column for column in self.columns}
        for name in self.ranked:
            yield known(records, columns[name]), columns[name]

    def _codes(self, records: Records) -> Statistics:
        counts, most = np.zeros((2, len(self.coded), BUCKETS))
        words = np.zeros((WORDS, *counts.shape))
        for number, column in enumerate(self.coded):
            codes, rows = distinct(records[column.name])
            per_code = np.bincount(rows, minlength=len(codes))
            for code, count in zip(codes, per_code.tolist(), strict=True):
                if code and count >= self.minimum_records:
                    place = bucket(column.name, code)
                    # Of two codes in one place the more frequent gives its name.
                    if count > most[number, place]:
                        words[:, number, place], most[number, place] = packed(code), count
                    counts[number, place] += count
        texts = {f"text{part}": word for part, word in enumerate(words)}
        return {"records": counts, "present": (counts > 0).astype(np.float64), "hospitals": np.ones(1)} | texts

    def _lists(self, statistics: Statistics) -> Preparation:
        present = statistics["present"]
        enough = max(min(self.minimum_hospitals, int(statistics["hospitals"][0])), 1)
        texts = np.stack([statistics[f"text{part}"] for part in range(WORDS)])
        few = [np.flatnonzero((row > 0) & (row < enough)) for row in present]
        return {
            "codes": [np.flatnonzero(row >= enough).tolist() for row in present],
            "unshared": [
                sorted(unpacked(texts[:, number, place] / present[number, place]) for place in places)
                for number, places in enumerate(few)
            ],
        }


def known(records: Records, column: Column) -> NDArray[np.float64]:
    """Return a column's values, clipped to its range, with NaN where they were not measured."""
    values = np.asarray(records[column.name], np.float64)
    values = np.where(np.isin(values, column.missing), np.nan, values)
    return np.clip(values, column.low, column.high)


def plain(code: object) -> str:
    """Return a code as it is compared, without case, outer spaces and full-width forms; what is no text is no code.

    >>> plain(" Ｖ27 "), plain(None)
    ('v27', '')
    """
    return unicodedata.normalize("NFKC", code).strip().casefold() if isinstance(code, str) else ""


def distinct(cells: Sequence[object] | Array) -> tuple[list[str], NDArray[np.int64]]:
    """Return the codes of a column in the order of their coming, and the place of every row's code in that list. Each kind of cell is looked at once."""
    cells = list(cells)  # one NaN is found again only as the same object
    places = {cell: place for place, cell in enumerate(dict.fromkeys(cells))}
    return [plain(cell) for cell in places], np.fromiter((places[cell] for cell in cells), np.int64, len(cells))


def numbered(cells: Array, column: str, listed: Sequence[int]) -> NDArray[np.int64]:
    """Return the number of every row's code: its place in the list from `FIRST` on, `UNSEEN` where it is in no list, `MISSING` where there is none."""
    codes, rows = distinct(cells)
    places = {place: number for number, place in enumerate(listed, FIRST)}
    numbers = [places.get(bucket(column, code), UNSEEN) if code else MISSING for code in codes]
    return np.array(numbers, np.int64)[rows]


@lru_cache(maxsize=2**16)
def bucket(column: str, code: str) -> int:
    """Return the place of a code among those of its column: the same on every computer (BLAKE2b, RFC 7693).

    >>> bucket("sex", "f"), bucket("race", "f")
    (1746, 4040)
    """
    digest = hashlib.blake2b(f"{column}\0{code}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % BUCKETS


def packed(code: str) -> NDArray[np.float64]:
    """Return the first bytes of a code as whole numbers.

    >>> unpacked(packed("nephrology"))
    'nephrology'
    """
    text = code.encode("utf-8", "replace")[: 3 * WORDS].ljust(3 * WORDS, b"\0")
    return np.array([int.from_bytes(text[at : at + 3], "big") for at in range(0, len(text), 3)], np.float64)


def unpacked(words: NDArray[np.float64]) -> str:
    """Return the text of a code; a question mark where hospitals told different ones, or something else than text."""
    if not all(0 <= word < 2**24 and word == int(word) for word in words.tolist()):
        return "?"
    text = b"".join(int(word).to_bytes(3, "big") for word in words.tolist())
    shown = text.rstrip(b"\0").decode("utf-8", "ignore")
    return shown if shown.isprintable() and shown else "?"


def _histogram(values: NDArray[np.float64], column: Column) -> NDArray[np.float64]:
    return np.histogram(values[~np.isnan(values)], BINS, (column.low, column.high))[0].astype(np.float64)


def _cumulated(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of patients below every edge of the bins; where nobody is told of, ranks are even over the range."""
    counts = counts if counts.any() else np.ones_like(counts)
    return np.concatenate([[0.0], np.cumsum(counts) / counts.sum()])
