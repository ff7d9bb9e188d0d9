"""Heart disease from 13 clinical features (UCI heart disease data; Detrano et al. 1989, Am J Cardiol 64:304-310)."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from common.config import Range
from common.statistics import Statistics
from common.tasks.objective import BINARY
from common.tasks.task import Column, Examples, Preparation, Records, Task, rows_of

COLUMNS = (
    Column("age", "number", "age", "years", 18, 100),
    Column("sex", "category", "sex: 1 male, 0 female", codes=(0, 1)),
    Column(
        "cp", "category", "chest pain: 1 typical angina, 2 atypical angina, 3 other pain, 4 none", codes=(1, 2, 3, 4)
    ),
    Column("trestbps", "number", "resting blood pressure", "mmHg", 60, 260, missing=(0,)),
    Column("chol", "number", "serum cholesterol", "mg/dL", 60, 700, missing=(0,)),
    Column("fbs", "category", "fasting blood sugar above 120 mg/dL", codes=(0, 1)),
    Column("restecg", "category", "resting ECG: 0 normal, 1 ST-T abnormality, 2 hypertrophy", codes=(0, 1, 2)),
    Column("thalach", "number", "maximum heart rate", "beats/min", 40, 230),
    Column("exang", "category", "angina induced by exercise", codes=(0, 1)),
    Column("oldpeak", "number", "ST depression by exercise", "mm", -5, 10),
    Column("slope", "category", "slope of the ST segment: 1 up, 2 flat, 3 down", codes=(1, 2, 3)),
    Column("ca", "number", "major vessels coloured by fluoroscopy", "vessels", 0, 3),
    Column("thal", "category", "thallium scan: 3 normal, 6 fixed defect, 7 reversible defect", codes=(3, 6, 7)),
)


@dataclass(frozen=True)
class Heart:
    """Settings of the task."""

    model: Annotated[Literal["mlp", "logistic"], "network, or logistic regression"] = "mlp"
    hidden: Annotated[int, Range(1, 4096), "units of the hidden layer"] = 16
    site_intercept: Annotated[
        bool, "each hospital keeps an intercept of its own, for its own share of ill patients"
    ] = False

    def build(self) -> Task:
        """Return the task."""
        return Task(
            name="heart",
            title="Heart disease from 13 clinical features",
            columns=COLUMNS,
            label="num",
            classes=("no disease", "disease"),
            objective=BINARY,
            summarise=summarise,
            fit=fit,
            encode=encode,
            classify=classify,
            build=self.network,
            parts={"head": ("output",), "intercept": ("output/bias",)},
            local=("intercept",) if self.site_intercept else (),
            defaults={
                "rounds": 30,
                "training": {
                    "optimizer": "sgd",
                    "learning_rate": 0.1,
                    "batch_size": 16,
                    "epochs": 2,
                    "weight_decay": 0.003,
                },
            },
            xla=True,
        )

    def network(self, preparation: Preparation) -> Any:
        """Return the Keras model: encoded features in, one logit out."""
        import keras

        inputs = keras.Input((len(preparation["mean"]) + len(COLUMNS),), name="features")
        hidden = inputs
        if self.model == "mlp":
            hidden = keras.layers.Dense(self.hidden, activation="relu", name="hidden")(inputs)
        return keras.Model(inputs, keras.layers.Dense(1, name="output")(hidden), name="heart")


def summarise(records: Records) -> Statistics:
    """Return count, sum and sum of squares of every expanded feature, over the rows where it is known."""
    features = expand(records)
    known = ~np.isnan(features)
    values = np.where(known, features, 0.0)
    return {
        "count": known.sum(axis=0).astype(np.float64),
        "sum": values.sum(axis=0),
        "squares": (values**2).sum(axis=0),
    }


def fit(statistics: Statistics) -> Preparation:
    """Turn summed moments into mean and deviation; a feature that nobody tells of is scaled by its public range, and one that never varies gets deviation 1."""
    middle, half = ranges()
    told = statistics["count"] > 0
    count = np.maximum(statistics["count"], 1.0)
    mean = statistics["sum"] / count
    variance = np.maximum(statistics["squares"] / count - mean**2, 0.0)
    scale = np.where(variance > 1e-12, np.sqrt(np.maximum(variance, 1e-12)), 1.0)
    return {"mean": np.where(told, mean, middle).tolist(), "scale": np.where(told, scale, half).tolist()}


def ranges() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the middle of every expanded feature's range, and a quarter of its width, about the deviation of what fills it."""
    ends = []
    for column in COLUMNS:
        low, high = (min(column.codes), max(column.codes)) if column.codes else (column.low, column.high)
        ends += [(0.0, 1.0)] * len(column.codes) if len(column.codes) > 2 else [(low, high)]
    low, high = np.array(ends, np.float64).T
    return (low + high) / 2, (high - low) / 4


def encode(records: Records, preparation: Preparation) -> Examples:
    """Standardise, put the federated mean where a value is missing, and append one 'is missing' flag a column."""
    features = expand(records)
    standard = (features - np.asarray(preparation["mean"])) / np.asarray(preparation["scale"])
    missing = np.stack([np.isnan(known(records, column)) for column in COLUMNS], axis=1)
    x = np.concatenate([np.nan_to_num(standard, nan=0.0), missing], axis=1).astype(np.float32)
    return Examples(x, classify(records))


def classify(records: Records) -> NDArray[np.int32]:
    """Return 1 where disease is present (``num`` from 1 to 4); without that column, 0."""
    return (np.asarray(records.get("num", np.zeros(rows_of(records)))) > 0).astype(np.int32)


def expand(records: Records) -> NDArray[np.float64]:
    """Return one column a number or two-valued category, and one a code of every other category; unknown is NaN."""
    columns = []
    for column in COLUMNS:
        values = known(records, column)
        if len(column.codes) > 2:
            columns += [np.where(np.isnan(values), np.nan, values == code) for code in column.codes]
        else:
            columns.append(values)
    return np.stack(columns, axis=1)


def known(records: Records, column: Column) -> NDArray[np.float64]:
    """Return a column's values, clipped to its range, with NaN where they were not measured."""
    values = np.asarray(records[column.name], np.float64)
    values = np.where(np.isin(values, column.missing), np.nan, values)
    return np.clip(values, column.low, column.high)
