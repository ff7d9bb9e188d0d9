"""Death in hospital from the first 48 hours in intensive care (PhysioNet/CinC Challenge 2012; Silva et al. 2012, CinC 39:245-248)."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from common.config import Range
from common.errors import DataError
from common.statistics import Statistics
from common.tasks import series
from common.tasks.objective import BINARY
from common.tasks.task import Column, Examples, Preparation, Records, Task, told

HOURS = 48


def _variable(name: str, meaning: str, unit: str, low: float, high: float) -> Column:
    return Column(name, "number", meaning, unit, low, high)


VARIABLES = (
    _variable("ALP", "alkaline phosphatase", "IU/L", 5, 3000),
    _variable("ALT", "alanine transaminase", "IU/L", 1, 20000),
    _variable("AST", "aspartate transaminase", "IU/L", 1, 30000),
    _variable("Albumin", "serum albumin", "g/dL", 0.5, 7),
    _variable("BUN", "blood urea nitrogen", "mg/dL", 1, 300),
    _variable("Bilirubin", "bilirubin", "mg/dL", 0.1, 80),
    _variable("Cholesterol", "cholesterol", "mg/dL", 20, 700),
    _variable("Creatinine", "serum creatinine", "mg/dL", 0.1, 30),
    _variable("DiasABP", "diastolic pressure, invasive", "mmHg", 10, 200),
    _variable("FiO2", "share of oxygen in the air breathed in", "fraction", 0.2, 1),
    _variable("GCS", "Glasgow coma score", "points", 3, 15),
    _variable("Glucose", "serum glucose", "mg/dL", 10, 1500),
    _variable("HCO3", "serum bicarbonate", "mmol/L", 3, 60),
    _variable("HCT", "haematocrit", "%", 5, 75),
    _variable("HR", "heart rate", "beats/min", 10, 300),
    _variable("K", "serum potassium", "mmol/L", 1, 12),
    _variable("Lactate", "lactate", "mmol/L", 0.1, 40),
    _variable("MAP", "mean arterial pressure, invasive", "mmHg", 10, 250),
    _variable("MechVent", "mechanical ventilation: 1 where it is on", "yes or no", 0, 1),
    _variable("Mg", "serum magnesium", "mmol/L", 0.3, 10),
    _variable("NIDiasABP", "diastolic pressure, by cuff", "mmHg", 10, 200),
    _variable("NIMAP", "mean arterial pressure, by cuff", "mmHg", 10, 250),
    _variable("NISysABP", "systolic pressure, by cuff", "mmHg", 20, 300),
    _variable("Na", "serum sodium", "mmol/L", 90, 200),
    _variable("PaCO2", "arterial partial pressure of carbon dioxide", "mmHg", 5, 200),
    _variable("PaO2", "arterial partial pressure of oxygen", "mmHg", 10, 700),
    _variable("Platelets", "platelets", "cells/nL", 1, 2000),
    _variable("RespRate", "breaths", "breaths/min", 1, 100),
    _variable("SaO2", "oxygen saturation", "%", 20, 100),
    _variable("SysABP", "systolic pressure, invasive", "mmHg", 20, 300),
    _variable("Temp", "temperature", "degrees C", 25, 45),
    _variable("TroponinI", "troponin I", "ug/L", 0, 100),
    _variable("TroponinT", "troponin T", "ug/L", 0, 50),
    _variable("Urine", "urine passed since the last entry", "mL", 0, 5000),
    _variable("WBC", "white blood cells", "cells/nL", 0.05, 500),
    _variable("Weight", "weight", "kg", 20, 350),
    _variable("pH", "arterial pH", "pH", 6.5, 8),
)
SKEWED = frozenset(
    [
        *("ALP", "ALT", "AST", "BUN", "Bilirubin", "Cholesterol", "Creatinine", "Glucose", "Lactate", "PaO2"),
        *("Platelets", "TroponinI", "TroponinT", "Urine", "WBC"),
    ]
)
"""Variables that spread over powers of ten; they are read as logarithms."""
UNITS = (1, 2, 3, 4)
COLUMNS = (
    Column("age", "number", "age", "years", 15, 100),
    Column("gender", "category", "gender: 1 male, 0 female", codes=(0, 1)),
    Column("height", "number", "height", "cm", 100, 230, missing=(-1,)),
    Column("unit", "category", "unit: 1 coronary, 2 cardiac surgery, 3 medical, 4 surgical", codes=UNITS),
    Column(
        "events", "series", "measurements of the first 48 hours", shape=(HOURS, len(VARIABLES)), variables=VARIABLES
    ),
)
STATIC = (
    COLUMNS[0],
    Column("gender", "number", "1 male", "yes or no", 0, 1),
    COLUMNS[2],
    *(Column(f"unit {code}", "number", "kind of unit", "yes or no", 0, 1) for code in UNITS),
)
ALL = (*STATIC, *VARIABLES)
LOW, HIGH = (
    np.array([np.log1p(end) if column.name in SKEWED else end for column in ALL for end in [getattr(column, name)]])
    for name in ("low", "high")
)


@dataclass(frozen=True)
class Icu:
    """Settings of the task."""

    model: Annotated[Literal["gru", "lstm"], "kind of the recurrent layer"] = "gru"
    units: Annotated[int, Range(1, 4096), "units of the recurrent layer"] = 32
    hours: Annotated[int, Range(1, HOURS), "hours a step of the recurrent layer spans"] = 4
    dropout: Annotated[float, Range(0, 0.9), "share of the inputs of the output layer dropped in training"] = 0.5
    unread: Annotated[float, Range(0, 0.9), "share of the features dropped in training, each for a whole stay"] = 0.2

    def build(self) -> Task:
        """Return the task."""
        return Task(
            name="icu",
            title="Death in hospital from the first 48 hours in intensive care",
            columns=COLUMNS,
            label="death",
            classes=("alive", "dead"),
            objective=BINARY,
            summarise=summarise,
            fit=fit,
            encode=self.encode,
            classify=classify,
            build=self.network,
            parts={"head": ("output",), "recurrent": ("recurrent",)},
            summary="of how many patients each variable was measured, with the sums of their means and mean squares over time",
            defaults={
                "rounds": 24,
                "training": {
                    "optimizer": "adam",
                    "learning_rate": 0.003,
                    "learning_rate_decay": 0.95,
                    "batch_size": 32,
                    "epochs": 1,
                },
            },
        )

    def encode(self, records: Records, preparation: Preparation) -> Examples:
        """Return, float16 ``(n, steps, features)``: values, which of them are carried forward, the time since, and at every step what never changes.

        The recurrent layer computes in float32; half the bytes hold a standardised value to a thousandth.
        """
        mean, scale = (np.asarray(preparation[name], np.float32) for name in ("mean", "scale"))
        standard = [(part - m) / s for part, m, s in zip(_known(records), _cut(mean), _cut(scale), strict=True)]
        static = np.nan_to_num(standard[0], nan=0.0)
        values, seen, since = series.carried(series.steps(standard[1], self.hours))
        fixed = np.broadcast_to(static, (len(static), values.shape[1], static.shape[2]))
        unknown = np.broadcast_to(np.isnan(standard[0]), fixed.shape)
        x = np.concatenate([values, seen, since, fixed, unknown], axis=2, dtype=np.float16, casting="unsafe")
        return Examples(x, classify(records))

    def network(self, _preparation: Preparation) -> Any:
        """Return the Keras model: steps in, one logit out.

        The output layer sees the recurrent layer's last state and its mean over the stay, and of each input its mean, largest and smallest value.
        """
        import keras

        layers = keras.layers
        kind = layers.GRU if self.model == "gru" else layers.LSTM
        features = 3 * len(VARIABLES) + 2 * len(STATIC)
        inputs = keras.Input((-(-HOURS // self.hours), features), name="steps")
        read = layers.SpatialDropout1D(self.unread, name="unread")(inputs)
        states = kind(self.units, return_sequences=True, name="recurrent")(read)
        last = layers.Flatten(name="last")(layers.Cropping1D((inputs.shape[1] - 1, 0), name="crop")(states))
        spread = [
            last,
            layers.GlobalAveragePooling1D(name="mean_state")(states),
            layers.GlobalAveragePooling1D(name="mean")(read),
            layers.GlobalMaxPooling1D(name="largest")(read),
            layers.Rescaling(-1.0, name="smallest")(
                layers.GlobalMaxPooling1D(name="largest_turned")(layers.Rescaling(-1.0, name="turned")(read))
            ),
        ]
        joined = layers.Dropout(self.dropout, name="dropout")(layers.Concatenate(name="joined")(spread))
        return keras.Model(inputs, layers.Dense(1, name="output")(joined), name="icu")


def summarise(records: Records) -> Statistics:
    """Return by feature, those that never change first, the patients it is known of and the sums of their means and mean squares."""
    static, events = (series.moments(part) for part in _known(records))
    return {name: np.concatenate([static[name], events[name]]) for name in static}


def fit(statistics: Statistics) -> Preparation:
    """Turn summed moments into mean and deviation of every feature."""
    return series.scales(statistics, LOW, HIGH)


def classify(records: Records) -> NDArray[np.int32]:
    """Return 1 where the patient died in hospital; without that column, 0."""
    return (told(records, "death") > 0).astype(np.int32)


def _known(records: Records) -> tuple[series.Floats, series.Floats]:
    """Return what never changes, ``(n, 1, 7)``, and the measurements ``(n, 48, 37)``, as they are scaled; NaN where unknown."""
    events = np.asarray(records["events"], np.float32)
    if events.shape[1:] != COLUMNS[-1].shape:
        raise DataError(f"events: expected the shape (n, {HOURS}, {len(VARIABLES)}), got {events.shape}")
    unit = np.asarray(records["unit"], np.float64)
    kinds = [np.where(np.isnan(unit), np.nan, unit == code) for code in UNITS]
    static = np.stack(
        [*(np.asarray(records[name], np.float64) for name in ("age", "gender", "height")), *kinds], axis=1
    )
    return series.scaled(static[:, None], STATIC, SKEWED), series.scaled(events, VARIABLES, SKEWED)


def _cut(values: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return values[: len(STATIC)], values[len(STATIC) :]
