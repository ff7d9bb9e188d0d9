"""Which treatments suit a patient in intensive care: an embedding of the patient and one of each treatment, joined by a small network (He et al. 2017, WWW, section 3.3)."""

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from common.config import Range
from common.tasks import codes, recommend
from common.tasks.task import Column, Examples, Preparation, Records, Task
from common.tasks.text import bucket

COLUMNS = (
    Column("stay", "name", "the hospital's own name of the stay, or nothing; it stays in the hospital"),
    Column("features", "codes", "what is known of the patient: admission and diagnoses, one code a line"),
)


@dataclass(frozen=True)
class TreatmentMatch(recommend.Recommender):
    """Settings of the task.

    A patient is the embedding of his stay plus that of his features. The first is a row of a table that is kept at the hospital (the part ``patients``): it starts at nought, so a
    stay that was never trained on has none, and a new patient is known by his features alone. In training it is dropped from some stays, so that these learn to do without.

    Guarantee
    ---------
    No embedding of a patient leaves the hospital: the part ``patients`` is local, in every strategy and engine. Treatment embeddings are shared. Of code lists and
    contra-indications holds what `Recommender` says.

    Edge cases
    ----------
    - Two stays whose names hash to the same of the ``patients`` rows share an embedding; with 1,000 stays in 8,192 rows, about one in nine does.
    - What the shared weights tell of a patient is bounded by differential privacy alone, as in every task.
    """

    known, label = "features", "given"

    patients: Annotated[int, Range(1, 2**20), "rows of the table of patients that each hospital keeps"] = 8192
    embedding: Annotated[int, Range(1, 4096), "numbers a patient, and a treatment"] = 16
    stranger: Annotated[float, Range(0, 0.9), "share of the stays that are trained as if new"] = 0.5
    dropout: Annotated[float, Range(0, 0.9), "share of a patient's features dropped in training"] = 0.2
    negatives: Annotated[
        float, Range(0.01, 1), "share of the treatments not given that a step learns from, drawn anew"
    ] = 0.25

    def build(self) -> Task:
        """Return the task."""
        return self.task(
            "treatment-match",
            "Treatments that suit a patient in intensive care",
            COLUMNS,
            loss=self.loss,
            parts={"head": ("output",), "patients": ("patients",), "treatments": ("treatments",)},
            local=("patients",),
            defaults={
                "rounds": 20,
                "training": {"optimizer": "adam", "learning_rate": 0.01, "batch_size": 32, "epochs": 3},
            },
        )

    def encode(self, records: Records, preparation: Preparation) -> Examples:
        """Return int32 ``(n, 1 + codes + treatments)``: the stay's row in the table of patients, 1 for every code that it has, 1 for every treatment that is closed to it."""
        found = codes.buckets(records["features"])
        stay = [[1 + bucket(name) % self.patients if isinstance(name, str) and name else 0] for name in records["stay"]]
        features = codes.marked(codes.places(found, preparation["codes"]), len(preparation["codes"]))
        closed, came = self.open(records, found, preparation, given=False)
        numbers = np.array(stay, np.int32).reshape(-1, 1)
        x = np.concatenate([numbers, features, closed], axis=1, dtype=np.int32, casting="unsafe")
        return Examples(x, came)

    def network(self, preparation: Preparation) -> Any:
        """Return the Keras model: a stay, its codes and closed treatments in; out, one logit a treatment, then which of them this step learns from where they were not given."""
        import keras

        layers, ops, width = keras.layers, keras.ops, self.treatments
        known = len(preparation["codes"])
        inputs = keras.Input((1 + known + width,), dtype="int32", name="patient")
        stay, features, shut = inputs[:, :1], inputs[:, 1 : 1 + known], inputs[:, 1 + known :]
        own = layers.Embedding(self.patients + 1, self.embedding, embeddings_initializer="zeros", name="patients")(stay)
        own = layers.Dropout(self.stranger, noise_shape=(None, 1), name="stranger")(layers.Flatten(name="own")(own))
        told = layers.Dropout(self.dropout, name="dropout")(ops.cast(features, "float32"))
        patient = layers.Add(name="patient_embedding")([own, layers.Dense(self.embedding, name="told")(told)])
        each = layers.Embedding(width, self.embedding, name="treatments")(ops.cumsum(ops.ones_like(shut), axis=1) - 1)
        pairs = layers.Concatenate(name="pairs")([layers.RepeatVector(width, name="repeated")(patient), each])
        hidden = layers.Dense(128, activation="relu", name="hidden_1")(pairs)
        hidden = layers.Dense(64, activation="relu", name="hidden_2")(hidden)
        fitting = layers.Flatten(name="fitting")(layers.Dense(1, name="output")(hidden))
        logits = fitting + np.asarray(preparation["popularity"], np.float32)
        drawn = layers.Dropout(1.0 - self.negatives, name="negatives")(ops.cast(ops.ones_like(shut), "float32"))
        closed = ops.cast(shut, "float32") * recommend.NEVER
        return keras.Model(inputs, layers.Concatenate(name="answer")([logits + closed, drawn]), name="treatment_match")

    def loss(self, labels: Any, outputs: Any) -> Any:
        """Return the cross-entropy of a sigmoid a treatment, over those given and a draw of the others, by the count of those given."""
        import tensorflow as tf

        logits, drawn = outputs[:, : self.treatments], outputs[:, self.treatments :]
        each = tf.nn.sigmoid_cross_entropy_with_logits(labels, logits)
        learnt = labels + (1.0 - labels) * tf.cast(drawn > 0, labels.dtype)
        return tf.reduce_sum(each * learnt, axis=1) / tf.maximum(tf.reduce_sum(labels, axis=1), 1.0)
