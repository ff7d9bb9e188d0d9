"""The next treatments in intensive care from the history of a stay: diagnoses and treatments in the order in which they were charted."""

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from common.config import Range
from common.privacy.noise import Noise
from common.statistics import Statistics
from common.tasks import codes, recommend
from common.tasks.task import Column, Examples, Preparation, Records, Task, rows_of
from common.tasks.text import BUCKETS

COLUMNS = (
    Column(
        "history", "codes", "what was charted before, in order: admission, diagnoses and treatments, one code a line"
    ),
)


@dataclass(frozen=True)
class TreatmentNext:
    """Settings of the task.

    Guarantee
    ---------
    No code leaves a hospital that fewer than ``minimum_records`` of its records hold: it reports buckets of hashed codes, as the task ``notes`` does, and what is
    said there of guessing holds here. A treatment that a line of ``contraindications`` rules out for what a history holds is never recommended, whatever the weights
    of the model: it is closed by the hospital, in what it gives to the model.

    Edge cases
    ----------
    - A rule counts for all that is charted, not only for the last ``length`` codes that the model reads. A code that is written in another way is another code.
    - A treatment that was given in spite of a rule is not learnt and not counted as missed.
    """

    treatments: Annotated[int, Range(1, 4096), "largest count of treatments that can be recommended"] = 128
    codes: Annotated[int, Range(1, BUCKETS), "largest count of codes that a history is read in"] = 512
    length: Annotated[int, Range(1, 512), "codes read, from the end of the history"] = 32
    k: Annotated[int, Range(1, 1000), "length of the list that is judged"] = 10
    embedding: Annotated[int, Range(1, 4096), "numbers a code"] = 32
    units: Annotated[int, Range(1, 4096), "units of the recurrent and the attention layer"] = 32
    dropout: Annotated[float, Range(0, 0.9), "share of the inputs of the output layer dropped in training"] = 0.3
    contraindications: Annotated[str, "a table: one CONDITION > TREATMENT a line, codes as in the records"] = ""
    minimum_hospitals: Annotated[
        int, Range(1, 1_000_000), "hospitals that must have a code for the list to keep it"
    ] = 2
    minimum_records: Annotated[int, Range(1, 1_000_000), "records a hospital must have a code in to report it"] = 3

    def build(self) -> Task:
        """Return the task."""
        recommend.rules_of(self.contraindications)
        return Task(
            name="treatment-next",
            title="Next treatments in intensive care",
            columns=COLUMNS,
            label="next",
            classes=("all",),
            objective=recommend.objective(self.treatments, min(self.k, self.treatments), recommend.multinomial),
            summarise=self.summarise,
            fit=self.fit,
            encode=self.encode,
            classify=classify,
            build=self.network,
            noised=self.noised,
            parts={"head": ("output",), "embedding": ("embedding",)},
            summary=f"in how many of its records each of {BUCKETS:,} hash buckets of codes occurs, where {self.minimum_records} or more do",
            defaults={
                "rounds": 25,
                "training": {"optimizer": "adam", "learning_rate": 0.005, "batch_size": 32, "epochs": 2},
            },
        )

    def summarise(self, records: Records) -> Statistics:
        """Count the records that hold each code, in the history and in what came next; and mark those codes, and this hospital."""
        return codes.counted([records["history"], upcoming(records)], self.minimum_records)

    def noised(self, statistics: Statistics, noise: Noise) -> Statistics:
        """Noise the counts; see `common.tasks.codes.noised`."""
        return codes.noised(statistics, noise, self.minimum_records)

    def fit(self, statistics: Statistics) -> Preparation:
        """Return the buckets of the codes that histories are read in and of the treatments to recommend, the most frequent first, and how common each of these is."""
        history, treatments = codes.kept(statistics, self.minimum_hospitals, (self.codes, self.treatments))
        popularity = recommend.popularity(statistics["records"][1][treatments], self.treatments)
        return {"codes": history, "treatments": treatments, "popularity": popularity}

    def encode(self, records: Records, preparation: Preparation) -> Examples:
        """Return int32 ``(n, length + treatments)``: the last codes by number, 0 after them, then 1 for every treatment that is closed to the row."""
        found, width = codes.buckets(records["history"]), self.treatments
        numbers = recommend.last(codes.places(found, preparation["codes"], start=1), self.length)
        rules = recommend.rules_of(self.contraindications)
        closed = recommend.closed(found, preparation["treatments"], width, rules, given=True)
        came = codes.marked(codes.places(codes.buckets(upcoming(records)), preparation["treatments"]), width)
        return Examples(np.concatenate([numbers, closed], axis=1, dtype=np.int32), came * ~closed)

    def network(self, preparation: Preparation) -> Any:
        """Return the Keras model: codes and closed treatments in, one logit a treatment out.

        The codes, read in order by a recurrent layer, are summed by learnt weights (Yang et al. 2016, section 2.2); padding has none. It starts from how common each treatment is.
        """
        import keras

        layers, ops = keras.layers, keras.ops
        inputs = keras.Input((self.length + self.treatments,), dtype="int32", name="history")
        numbers, shut = inputs[:, : self.length], inputs[:, self.length :]
        words = layers.Embedding(len(preparation["codes"]) + 1, self.embedding, name="embedding")(numbers)
        states = layers.GRU(self.units, return_sequences=True, name="recurrent")(words)
        hidden = layers.Dense(self.units, activation="tanh", name="attention")(
            layers.Concatenate(name="read")([states, words])
        )
        scores = layers.Flatten(name="scores")(layers.Dense(1, use_bias=False, name="score")(hidden))
        there = ops.cast(ops.not_equal(numbers, 0), "float32")
        # A history without a known code has weights all the same, times nothing.
        weights = layers.Softmax(name="weights")(scores + (1.0 - there) * -1e4) * there
        summary = layers.Dropout(self.dropout, name="dropout")(layers.Dot(1, name="summary")([weights, hidden]))
        common = keras.initializers.Constant(np.asarray(preparation["popularity"], np.float32))
        outputs = layers.Dense(self.treatments, bias_initializer=common, name="output")(summary)
        return keras.Model(inputs, outputs + ops.cast(shut, "float32") * recommend.NEVER, name="treatment_next")


def upcoming(records: Records) -> NDArray[np.object_]:
    """Return what came next, or nothing where the records do not tell."""
    return np.asarray(records.get("next", np.full(rows_of(records), "", object)))


def classify(records: Records) -> NDArray[np.int32]:
    """Return 0 for every row: there are no classes."""
    return np.zeros(rows_of(records), np.int32)
