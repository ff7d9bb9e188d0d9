"""What the tasks that recommend treatments share: settings, code lists, the objective, and what may never be recommended."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from common import ranking
from common.config import Range
from common.errors import ConfigError
from common.intervals import UNDEFINED, Estimate
from common.privacy.noise import Noise
from common.statistics import Statistics
from common.tasks import codes
from common.tasks.objective import Objective, Scores
from common.tasks.task import Array, Column, Examples, Preparation, Records, Task, one_class, rows_of
from common.tasks.text import BUCKETS

NEVER = -1e9
"""What stands for minus infinity within a model: a softmax gives it nothing, and no gradient passes."""
Rules = Mapping[int, tuple[int, ...]]
"""From the bucket of a condition to those of the treatments that it rules out."""


@dataclass(frozen=True)
class Recommender(ABC):
    """Settings that the tasks share, and the walk of a record up to its encoding. ``known`` is the column of what is known of a row, ``label`` that of the treatments to recommend.

    Guarantee
    ---------
    No code leaves a hospital that fewer than ``minimum_records`` of its patients hold, or of its records where it does not know whose they are: it reports buckets of hashed codes, as the task ``notes`` does, and what is
    said there of guessing holds here. A treatment that a line of ``contraindications`` rules out for what is known of a row is never recommended, whatever the weights
    of the model: it is closed by the hospital, in what it gives to the model.

    Edge cases
    ----------
    - A rule counts for all that is known, not only for what the model reads. A code that is written in another way is another code.
    - A treatment that was given in spite of a rule is not learnt and not counted as missed.
    """

    known: ClassVar[str]
    label: ClassVar[str]

    treatments: Annotated[int, Range(1, 4096), "largest count of treatments that can be recommended"] = 128
    codes: Annotated[int, Range(1, BUCKETS), "largest count of codes that the model reads"] = 512
    k: Annotated[int, Range(1, 1000), "length of the list that is judged"] = 10
    contraindications: Annotated[str, "a table: one CONDITION > TREATMENT a line, codes as in the records"] = ""
    minimum_hospitals: Annotated[
        int, Range(1, 1_000_000), "hospitals that must have a code for the list to keep it"
    ] = 2
    minimum_records: Annotated[int, Range(1, 1_000_000), "patients a hospital must have with a code to report it"] = 3

    @abstractmethod
    def encode(self, records: Records, preparation: Preparation) -> Examples:
        """Return what the model reads, which ends with 1 for every treatment that is closed to the row, and the treatments to learn."""

    @abstractmethod
    def network(self, preparation: Preparation) -> Any:
        """Return the Keras model."""

    def task(
        self,
        name: str,
        title: str,
        columns: tuple[Column, ...],
        loss: Any,
        parts: Mapping[str, tuple[str, ...]],
        defaults: Mapping[str, Any],
        local: tuple[str, ...] = (),
    ) -> Task:
        """Return the task; ``loss`` takes labels and what the model gives."""
        rules_of(self.contraindications)
        return Task(
            name=name,
            title=title,
            columns=columns,
            label=self.label,
            classes=("all",),
            objective=objective(self.treatments, min(self.k, self.treatments), loss),
            summarise=self.summarise,
            fit=self.fit,
            encode=self.encode,
            classify=one_class,
            build=self.network,
            noised=self.noised,
            united=self.united,
            amount=Column(self.label, "codes", "the treatments, one code a line"),
            parts=parts,
            local=local,
            defaults=defaults,
            summary=f"of how many of its patients the records hold each of {BUCKETS:,} hash buckets of codes, where {self.minimum_records} or more do",
        )

    def united(self, records: Records, patients: Array) -> Records:
        """Return one row a patient: a stay may have a row for every moment of treatment, of which each repeats what was charted before."""
        return codes.united({self.known: records[self.known], self.label: self.labels(records)}, patients)

    def summarise(self, records: Records) -> Statistics:
        """Count the records that hold each code, in what is known and among the treatments; and mark those codes, and this hospital."""
        return codes.counted([records[self.known], self.labels(records)], self.minimum_records)

    def noised(self, statistics: Statistics, noise: Noise) -> Statistics:
        """Noise the counts; see `common.tasks.codes.noised`."""
        return codes.noised(statistics, noise, self.minimum_records)

    def fit(self, statistics: Statistics) -> Preparation:
        """Return the buckets of the codes that the model reads and of the treatments to recommend, the most frequent first, and how common each of these is."""
        read, treatments = codes.kept(statistics, self.minimum_hospitals, (self.codes, self.treatments))
        common = popularity(statistics["records"][1][treatments], self.treatments)
        return {"codes": read, "treatments": treatments, "popularity": common}

    def labels(self, records: Records) -> Array:
        """Return the treatments to recommend, or nothing where the records do not tell."""
        return np.asarray(records.get(self.label, np.full(rows_of(records), "", object)))

    def open(
        self, records: Records, found: list[list[int]], preparation: Preparation, *, given: bool
    ) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """Return what is `closed` to every row whose known buckets are ``found``, and of the other treatments those to learn, both ``(n, treatments)``."""
        listed, rules = preparation["treatments"], rules_of(self.contraindications)
        shut = closed(found, listed, self.treatments, rules, given=given)
        came = codes.marked(codes.places(codes.buckets(self.labels(records)), listed), self.treatments)
        return shut, came * ~shut


def objective(width: int, k: int, loss: Any) -> Objective:
    """Return the objective of ranking a list of ``width`` treatments, judged by its first ``k``; ``loss`` takes labels and logits, tensors ``(n, width)``."""
    return Objective(
        loss=loss,
        predict=partial(_scores, width),
        summarise=partial(ranking.summarise, k=k),
        values=ranking.values,
        compute=ranking.compute,
        curves=ranking.curves,
        compare=partial(ranking.compare, k=k),
        differences=_no_differences,
        headline="recall",
        shown=("recall", "ndcg", "coverage", "log_loss"),
        label_dtype="float32",
        label_shape=(width,),
        width=width,
    )


def multinomial(labels: Any, outputs: Any) -> Any:
    """Return minus the mean log share that a softmax gives to what came next (Liang et al. 2018, WWW, section 2.1); 0 where nothing did."""
    import tensorflow as tf

    shares = tf.nn.log_softmax(outputs)
    return -tf.reduce_sum(labels * shares, axis=1) / tf.maximum(tf.reduce_sum(labels, axis=1), 1.0)


def rules_of(table: str) -> Rules:
    """Read a table of contra-indications: one ``CONDITION > TREATMENT`` a line, both codes as the records have them.

    >>> len(rules_of("diagnosis bleeding > treatment heparin"))
    1

    Raises
    ------
    ConfigError
        For a line of another form; the message names it by number.
    """
    rules: dict[int, tuple[int, ...]] = {}
    for number, line in enumerate(table.splitlines(), 1):
        condition, mark, treatment = (part.strip() for part in line.partition(">"))
        if not line.strip():
            continue
        if not (condition and mark and treatment):
            raise ConfigError(f"task.contraindications: line {number}: expected CONDITION > TREATMENT")
        (ill,), (ruled_out,) = codes.buckets([condition, treatment])
        rules[ill] = (*rules.get(ill, ()), ruled_out)
    return rules


def closed(found: list[list[int]], listed: list[int], width: int, rules: Rules, *, given: bool) -> NDArray[np.bool_]:
    """Return which of the list may not be recommended to each row, ``(n, width)``: what a contra-indication rules out, places without a treatment, and if ``given`` what the row has already.

    ``found`` are the buckets of all that is known of a row, ``listed`` those of the treatments.
    """
    out = [[treatment for code in set(cell) & set(rules) for treatment in rules[code]] for cell in found]
    barred = [cell + ruled_out if given else ruled_out for cell, ruled_out in zip(found, out, strict=True)]
    marks = codes.marked(codes.places(barred, listed), width) > 0
    marks[:, len(listed) :] = True
    return marks


def last(numbers: list[list[int]], length: int) -> NDArray[np.int32]:
    """Return the last ``length`` numbers of every row in order, int32 ``(n, length)``, with 0 after them.

    >>> last([[1, 2, 3], [4]], 2).tolist()
    [[2, 3], [4, 0]]
    """
    rows = np.zeros((len(numbers), length), np.int32)
    for row, cell in zip(rows, numbers, strict=True):
        kept = cell[-length:]
        row[: len(kept)] = kept
    return rows


def popularity(records: NDArray[np.float64], width: int) -> list[float]:
    """Return the logarithm of each listed treatment's share of all that were given, from which a model starts: it then recommends what is common; 0 in places without one."""
    shares = np.log(np.maximum(records, 1.0) / max(records.sum(), 1.0))
    return [*shares.tolist(), *[0.0] * (width - len(records))]


def _no_differences(statistics: Statistics) -> dict[str, Estimate]:
    """Return no difference: models of two federations rank lists of their own, so that a place in one is another treatment in the other."""
    return dict.fromkeys(ranking.differences(statistics), UNDEFINED)


def _scores(width: int, outputs: NDArray[np.float32]) -> Scores:
    scores = outputs[:, :width].astype(np.float64)
    return np.where(scores < NEVER / 2, -np.inf, scores)
