"""Text classification: a note or a patient's question to one of several classes; English, Chinese or both."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from common.config import Range
from common.errors import ConfigError, DataError
from common.privacy.noise import Noise
from common.statistics import Statistics
from common.tasks import text
from common.tasks.objective import MULTICLASS
from common.tasks.task import Column, Examples, Preparation, Records, Task, told

ABOVE = 4.75
"""Standard deviations of its noise that a count stands above: of all buckets that no record has, one in four hospitals then keeps one."""
COLUMNS = (Column("text", "text", "the note or question"),)


@dataclass(frozen=True)
class Notes:
    """Settings of the task.

    Guarantee
    ---------
    No word leaves a hospital. Every token is hashed to one of 262,144 buckets, and a hospital reports a bucket only where at
    least ``minimum_records`` of its records hold a token of it: how many they are, and that it has it. So the bucket of a name
    that stands in fewer records is absent from what leaves. Buckets that fewer than ``minimum_hospitals`` hospitals reported
    are not in the vocabulary, and numbers are never words: every digit is read as 0.

    Edge cases
    ----------
    - Records are counted, not patients: a patient with ``minimum_records`` notes can bring a name over the minimum.
    - A rare word may share its bucket with a common one (about 4 in 100 do): it is then counted and encoded as that word. The
      report shows at most a slightly larger count.
    - Hashing hides words from a reader, not from a guesser: the key is public, so whoever sees one hospital's report can test any
      word he thinks of, and learns in how many records it (or its bucket) is. What protects there is ``minimum_records``; a secure sum
      shows the coordinator only the sums. Nothing here is differential privacy: counts are exact.
    - ``minimum_hospitals`` is applied to the sum, by the coordinator: it shapes the vocabulary that is kept and shared, and is no
      protection from the coordinator. With fewer hospitals than that, all must have the bucket; with one, it alone decides.
    - Word order and rare words still shape the model's update, which this does not protect.
    """

    classes: Annotated[str, "names of the classes, in the order of their numbers, separated by commas"] = "no,yes"
    model: Annotated[Literal["lstm", "attention"], "attention over a recurrent layer, or over the words themselves"] = (
        "lstm"
    )
    vocabulary: Annotated[
        int, Range(3, text.BUCKETS), "largest count of words, padding and the unknown word among them"
    ] = 10_000
    length: Annotated[int, Range(1, 10_000), "words read, from the start of a text"] = 50
    embedding: Annotated[int, Range(1, 4096), "numbers a word"] = 64
    units: Annotated[int, Range(1, 4096), "units of the recurrent or attention layer"] = 64
    dropout: Annotated[float, Range(0, 0.9), "share of the inputs of the output layer dropped in training"] = 0.2
    minimum_hospitals: Annotated[
        int, Range(1, 1_000_000), "hospitals that must have a word for the vocabulary to keep it"
    ] = 2
    minimum_records: Annotated[int, Range(1, 1_000_000), "records a hospital must have a word in to report it"] = 3

    def build(self) -> Task:
        """Return the task."""
        return Task(
            name="notes",
            title="Class of a clinical text",
            columns=COLUMNS,
            label="label",
            classes=self.names(),
            objective=MULTICLASS,
            summarise=self.summarise,
            fit=self.fit,
            encode=self.encode,
            classify=self.classify,
            build=self.network,
            noised=self.noised,
            parts={"head": ("output",), "embedding": ("embedding",)},
            summary=f"in how many of its records each of {text.BUCKETS:,} hash buckets of words occurs, where {self.minimum_records} or more do; "
            "whoever sees one hospital's counts can test any word he thinks of",
            defaults={
                "rounds": 30,
                "training": {"optimizer": "adam", "learning_rate": 0.01, "batch_size": 32, "epochs": 1},
            },
        )

    def names(self) -> tuple[str, ...]:
        """Return the names of the classes; raise `ConfigError` unless there are two or more, all different."""
        names = tuple(name.strip() for name in self.classes.split(","))
        if len(names) < 2 or len(set(names)) < len(names) or not all(names):
            raise ConfigError(
                f"task.classes: expected two or more different names separated by commas, got {self.classes!r}"
            )
        return names

    def summarise(self, records: Records) -> Statistics:
        """Count, for every bucket, the records that have it, from ``minimum_records`` on; and mark those buckets, and this hospital."""
        found = np.sort(text.buckets(records["text"], self.length), axis=1)
        first = np.diff(found, axis=1, prepend=-1) > 0
        counts = np.bincount(found[first], minlength=text.BUCKETS)
        counts[counts < self.minimum_records] = 0
        return {
            "records": counts.astype(np.float64),
            "present": (counts > 0).astype(np.float64),
            "hospitals": np.ones(1),
        }

    def noised(self, statistics: Statistics, noise: Noise) -> Statistics:
        """Noise the counts and keep those that stand out of the noise, so that hardly any bucket is kept that no record has.

        One record moves the count of at most ``length`` buckets, each by 1, or by ``minimum_records`` where it brings it over the minimum.
        """
        sensitivity = self.minimum_records * math.sqrt(self.length)
        counts = np.rint(noise(statistics["records"], sensitivity))
        counts[counts < max(self.minimum_records, ABOVE * noise.multiplier * sensitivity)] = 0
        return {"records": counts, "present": (counts > 0).astype(np.float64), "hospitals": np.ones(1)}

    def fit(self, statistics: Statistics) -> Preparation:
        """Return the buckets of the vocabulary, the most frequent first, of equally frequent ones the lower number first."""
        enough = min(self.minimum_hospitals, int(statistics["hospitals"][0]))
        shared = np.where(statistics["present"] >= max(enough, 1), statistics["records"], 0.0)
        order = np.argsort(-shared, kind="stable")[: self.vocabulary - 2]
        return {"buckets": order[shared[order] > 0].tolist()}

    def encode(self, records: Records, preparation: Preparation) -> Examples:
        """Return word numbers, int32 ``(n, length)``: 0 after the text's end, 1 for a word outside the vocabulary."""
        kept = np.asarray(preparation["buckets"], np.int64)
        numbers = np.ones(text.BUCKETS + 1, np.int32)
        numbers[kept] = np.arange(2, 2 + len(kept))
        numbers[-1] = 0  # text.buckets pads with -1
        return Examples(numbers[text.buckets(records["text"], self.length)], self.classify(records))

    def classify(self, records: Records) -> NDArray[np.int32]:
        """Return the class numbers; without a column ``label``, 0. Raise `DataError` for a number that is no class."""
        label = told(records, "label")
        wrong = np.flatnonzero(~np.isin(label, np.arange(len(self.names()))))
        if len(wrong):
            raise DataError(
                f"label: expected class numbers from 0 to {len(self.names()) - 1}; {len(wrong)} rows have others, first row {wrong[0]}"
            )
        return label.astype(np.int32)

    def network(self, preparation: Preparation) -> Any:
        """Return the Keras model: word numbers in, one logit a class out.

        Words, for ``lstm`` read in order by a recurrent layer, are summed by learnt weights (Yang et al. 2016, section 2.2). Padding gets
        weight 0, and stands at the end, where the recurrent layer reaches it after the last word: so it changes no output.
        """
        import keras

        inputs = keras.Input((self.length,), dtype="int32", name="words")
        words = keras.layers.Embedding(len(preparation["buckets"]) + 2, self.embedding, name="embedding")(inputs)
        if self.model == "lstm":
            words = keras.layers.LSTM(self.units, return_sequences=True, name="lstm")(words)
        hidden = keras.layers.Dense(self.units, activation="tanh", name="attention")(words)
        scores = keras.layers.Flatten(name="scores")(keras.layers.Dense(1, use_bias=False, name="score")(hidden))
        weights = keras.layers.Softmax(name="weights")(scores, mask=keras.ops.not_equal(inputs, 0))
        summary = keras.layers.Dot(1, name="summary")([weights, hidden])
        summary = keras.layers.Dropout(self.dropout, name="dropout")(summary)
        return keras.Model(inputs, keras.layers.Dense(len(self.names()), name="output")(summary), name="notes")
