"""Heart disease from 13 clinical features (UCI heart disease data; Detrano et al. 1989, Am J Cardiol 64:304-310)."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from common.config import Range
from common.tasks.objective import BINARY
from common.tasks.tabular import Tabular
from common.tasks.task import Column, Examples, Preparation, Records, Task, told

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
TABLE = Tabular(COLUMNS)


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
            summarise=TABLE.summarise,
            fit=TABLE.fit,
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

        inputs = keras.Input((TABLE.features(preparation),), name="features")
        hidden = inputs
        if self.model == "mlp":
            hidden = keras.layers.Dense(self.hidden, activation="relu", name="hidden")(inputs)
        return keras.Model(inputs, keras.layers.Dense(1, name="output")(hidden), name="heart")


def encode(records: Records, preparation: Preparation) -> Examples:
    """Standardise, put the federated mean where a value is missing, and append one 'is missing' flag a column."""
    return Examples(TABLE.encode(records, preparation), classify(records))


def classify(records: Records) -> NDArray[np.int32]:
    """Return 1 where disease is present (``num`` from 1 to 4); without that column, 0."""
    return (told(records, "num") > 0).astype(np.int32)
