"""The next treatments in intensive care from the history of a stay: diagnoses and treatments in the order in which they were charted."""

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from common.config import Range
from common.tasks import codes, recommend
from common.tasks.task import Column, Examples, Preparation, Records, Task

COLUMNS = (
    Column(
        "history", "codes", "what was charted before, in order: admission, diagnoses and treatments, one code a line"
    ),
)


@dataclass(frozen=True)
class TreatmentNext(recommend.Recommender):
    """Settings of the task; guarantee and edge cases are those of `Recommender`."""

    known, label = "history", "next"

    length: Annotated[int, Range(1, 512), "codes read, from the end of the history"] = 32
    embedding: Annotated[int, Range(1, 4096), "numbers a code"] = 32
    units: Annotated[int, Range(1, 4096), "units of the recurrent and the attention layer"] = 32
    dropout: Annotated[float, Range(0, 0.9), "share of the inputs of the output layer dropped in training"] = 0.3

    def build(self) -> Task:
        """Return the task."""
        return self.task(
            "treatment-next",
            "Next treatments in intensive care",
            COLUMNS,
            loss=recommend.multinomial,
            parts={"head": ("output",), "embedding": ("embedding",)},
            defaults={
                "rounds": 25,
                "training": {"optimizer": "adam", "learning_rate": 0.005, "batch_size": 32, "epochs": 2},
            },
        )

    def encode(self, records: Records, preparation: Preparation) -> Examples:
        """Return int32 ``(n, length + treatments)``: the last codes by number, 0 after them, then 1 for every treatment that is closed to the row."""
        found = codes.buckets(records["history"])
        numbers = recommend.last(codes.places(found, preparation["codes"], start=1), self.length)
        closed, came = self.open(records, found, preparation, given=True)
        return Examples(np.concatenate([numbers, closed], axis=1, dtype=np.int32), came)

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
