"""Survival after breast cancer from 39 clinical features (TCGA-BRCA; Liu et al. 2018, Cell 173:400; features of Andreux et al. 2020)."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from common import metrics_survival
from common.config import Range
from common.errors import DataError
from common.statistics import Statistics
from common.tasks.cox import Cox
from common.tasks.objective import Objective
from common.tasks.task import Column, Examples, Preparation, Records, Task, rows_of, told

FLAGS = (
    "ethnicity_not hispanic or latino",
    "ethnicity_not reported",
    "race_asian",
    "race_black or african american",
    "race_not reported",
    "race_white",
    "ajcc_pathologic_m_MX",
    "ajcc_pathologic_n_N0 (i-)",
    "ajcc_pathologic_n_N1",
    "ajcc_pathologic_n_N1a",
    "ajcc_pathologic_n_N2",
    "ajcc_pathologic_n_N2a",
    "ajcc_pathologic_stage_Stage IA",
    "ajcc_pathologic_stage_Stage IIA",
    "ajcc_pathologic_stage_Stage IIB",
    "ajcc_pathologic_stage_Stage IIIA",
    "ajcc_pathologic_stage_Stage IIIC",
    "ajcc_pathologic_t_T1c",
    "ajcc_pathologic_t_T2",
    "ajcc_pathologic_t_T3",
    "ajcc_staging_system_edition_5th",
    "ajcc_staging_system_edition_6th",
    "ajcc_staging_system_edition_7th",
    "icd_10_code_C50.9",
    "morphology_8500/3",
    "morphology_8520/3",
    "primary_diagnosis_Infiltrating duct carcinoma, NOS",
    "primary_diagnosis_Lobular carcinoma, NOS",
    "prior_malignancy_yes",
    "synchronous_malignancy_Not Reported",
    "treatment_or_therapy_not reported",
    "treatment_or_therapy_yes",
    "tumor_stage_stage i",
    "tumor_stage_stage ia",
    "tumor_stage_stage iia",
    "tumor_stage_stage iib",
    "tumor_stage_stage iiia",
    "tumor_stage_stage iiic",
)
COLUMNS = (
    Column("age_at_index", "number", "age at diagnosis", "years", 18, 100),
    *(Column(name, "category", f"{name.replace('_', ' ')}: 1 yes, 0 no", codes=(0, 1)) for name in FLAGS),
)
TIME = Column(
    "T", "number", "time to death, or to when the patient was last seen alive", "days", 0, 40_000, required=True
)


@dataclass(frozen=True)
class Survival:
    """Settings of the task."""

    model: Annotated[Literal["linear", "neural"], "Cox regression by Newton's method, or a network by gradients"] = (
        "linear"
    )
    ridge: Annotated[float, Range(1e-6, 1e9), "penalty on the squares of the linear model's coefficients"] = 6.0
    hidden: Annotated[int, Range(1, 4096), "units of the network's hidden layer"] = 16
    dropout: Annotated[float, Range(0, 0.9), "share of the hidden units dropped in training"] = 0.3

    def build(self) -> Task:
        """Return the task."""
        linear = self.model == "linear"
        neural = {"optimizer": "adam", "learning_rate": 0.003, "batch_size": 64, "epochs": 1, "weight_decay": 0.01}
        return Task(
            name="survival",
            title="Survival after breast cancer",
            columns=(*COLUMNS, TIME),
            label="E",
            classes=("alive", "died"),
            objective=COX,
            summarise=summarise,
            fit=fit,
            encode=encode,
            classify=classify,
            build=self.network,
            parts={} if linear else {"head": ("output",)},
            defaults={"rounds": 8} if linear else {"rounds": 30, "training": neural},
            learner=Cox(len(COLUMNS), self.ridge).learner() if linear else None,
        )

    def network(self, _preparation: Preparation) -> Any:
        """Return the Keras model: centred features in, the logarithm of the relative risk out."""
        import keras

        inputs = hidden = keras.Input((len(COLUMNS),), name="features")
        if self.model == "neural":
            hidden = keras.layers.Dense(self.hidden, activation="relu", name="hidden")(inputs)
            hidden = keras.layers.Dropout(self.dropout, name="dropout")(hidden)
        start = "glorot_uniform" if self.model == "neural" else "zeros"
        output = keras.layers.Dense(1, use_bias=False, kernel_initializer=start, name="output")
        return keras.Model(inputs, output(hidden), name="survival")


def summarise(records: Records) -> Statistics:
    """Return count, sum and sum of squares of every feature, over the rows where it is known."""
    values = features(records)
    known, values = ~np.isnan(values), np.nan_to_num(values, nan=0.0)
    return {
        "count": known.sum(axis=0).astype(np.float64),
        "sum": values.sum(axis=0),
        "squares": (values**2).sum(axis=0),
    }


def fit(statistics: Statistics) -> Preparation:
    """Turn summed moments into means, and the deviation of the age; flags keep their scale, so that the penalty weighs most on rare ones."""
    count = np.maximum(statistics["count"], 1.0)
    mean = statistics["sum"] / count
    variance = float(statistics["squares"][0] / count[0] - mean[0] ** 2)
    return {"mean": mean.tolist(), "scale": [variance**0.5 if variance > 1e-9 else 1.0] + [1.0] * len(FLAGS)}


def encode(records: Records, preparation: Preparation) -> Examples:
    """Centre and scale, with the federated mean where a value is missing; labels are days and whether the patient died then."""
    standard = (features(records) - np.asarray(preparation["mean"])) / np.asarray(preparation["scale"])
    return Examples(np.nan_to_num(standard, nan=0.0).astype(np.float32), outcome(records))


def features(records: Records) -> NDArray[np.float64]:
    """Return the features ``(n, columns)``, clipped to their ranges; unknown is NaN."""
    columns = [np.asarray(records[column.name], np.float64) for column in COLUMNS]
    age = np.clip(columns[0], COLUMNS[0].low, COLUMNS[0].high)
    return np.stack([age, *columns[1:]], axis=1)


def outcome(records: Records) -> NDArray[np.float32]:
    """Return days and whether the patient died then, ``(n, 2)``; a patient without a time was last seen alive on day 0, so that he bears on no risk set but that day's.

    The import refuses a row without a time; here it may be missing of patients whose outcome is not known yet.

    Raises
    ------
    DataError
        For a negative time; the message names the row.
    """
    nothing = np.zeros(rows_of(records))
    known = np.asarray(records.get(TIME.name, nothing + np.nan), np.float64)
    days = np.nan_to_num(known, nan=0.0)
    if (days < 0).any():
        raise DataError(
            f"row {int((days < 0).argmax()) + 1}, column {TIME.name!r}: expected days from 0 on, got a negative time; dates of diagnosis and last contact may be exchanged"
        )
    return np.stack([days, classify(records) * ~np.isnan(known)], axis=1).astype(np.float32)


def classify(records: Records) -> NDArray[np.int32]:
    """Return 1 for a patient who died; without that column, 0."""
    return (told(records, "E") > 0).astype(np.int32)


def partial_loss(labels: Any, outputs: Any) -> Any:
    """Return every patient's part of the negative logarithm of the partial likelihood, ``(n,)``, among the patients of the batch.

    Rows that fill a batch up are patients of the same hospital, so they belong to the risk sets; the mask takes their own parts out.
    """
    import tensorflow as tf

    days, died = labels[:, 0], labels[:, 1]
    scores = outputs[:, 0]
    at_risk = tf.where(days[None, :] >= days[:, None], scores[None, :], tf.constant(-1e9, scores.dtype))
    return died * (tf.reduce_logsumexp(at_risk, axis=1) - scores)


def _risks(outputs: NDArray[np.float32]) -> NDArray[np.float64]:
    return outputs.astype(np.float64)


COX = Objective(
    partial_loss,
    _risks,
    metrics_survival.summarise,
    metrics_survival.values,
    metrics_survival.compute,
    metrics_survival.curves,
    metrics_survival.compare,
    metrics_survival.differences,
    headline="c_index",
    shown=("c_index", "partial_loss"),
    criterion="partial_loss",
    label_dtype="float32",
    label_shape=(2,),
    width=1,
    coupled=True,
)
