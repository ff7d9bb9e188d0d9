"""Admissions of MIMIC-III after their first day: death in hospital, or the length of the stay (Johnson et al. 2016, Sci Data 3:160035)."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from common.config import Range
from common.tasks.objective import BINARY, REGRESSION
from common.tasks.tabular import Tabular
from common.tasks.task import Column, Examples, Preparation, Records, Task, one_class, told

LABS = {
    50868: Column("anion_gap", "number", "anion gap", "mEq/L", 0, 60),
    50882: Column("bicarbonate", "number", "bicarbonate", "mEq/L", 0, 60),
    50902: Column("chloride", "number", "chloride", "mEq/L", 60, 160),
    50912: Column("creatinine", "number", "creatinine", "mg/dL", 0, 30),
    50931: Column("glucose", "number", "glucose", "mg/dL", 10, 1500),
    50971: Column("potassium", "number", "potassium", "mEq/L", 1, 12),
    50983: Column("sodium", "number", "sodium", "mEq/L", 90, 190),
    51006: Column("urea_nitrogen", "number", "urea nitrogen", "mg/dL", 0, 300),
    51221: Column("hematocrit", "number", "haematocrit", "%", 0, 75),
    51265: Column("platelet_count", "number", "platelets", "10^3/uL", 0, 2000),
    51301: Column("white_blood_cells", "number", "white blood cells", "10^3/uL", 0, 500),
}
"""Laboratory tests by their ``itemid``: the first value of the first day counts."""
COLUMNS = (
    Column("age", "number", "age at admission; above 89 it counts as 90", "years", 0, 90),
    Column("gender", "code", "sex"),
    Column("admission_type", "code", "kind of admission"),
    Column("admission_location", "code", "where the patient came from"),
    Column("insurance", "code", "who pays"),
    Column("marital_status", "code", "marital status"),
    Column("ethnicity", "code", "ethnicity as recorded"),
    Column("first_careunit", "code", "first intensive care unit of the first day"),
    Column("curr_service", "code", "first service"),
    Column("drugs", "number", "different drugs begun on the day of admission", "drugs", 0, 100),
    Column("earlier", "number", "earlier admissions in these tables", "admissions", 0, 100),
    *LABS.values(),
)
DAYS = Column("stay_days", "number", "length of the stay", "days", 0, 400)


@dataclass(frozen=True)
class Mimic:
    """Settings of the task."""

    target: Annotated[Literal["death", "stay"], "death in hospital, or length of the stay, known after a day"] = "death"
    model: Annotated[Literal["mlp", "logistic"], "network, or logistic regression"] = "logistic"
    hidden: Annotated[int, Range(1, 4096), "units of the hidden layer of the network"] = 32
    embedding: Annotated[int, Range(1, 1024), "learnt numbers a code, of the network"] = 4
    minimum_hospitals: Annotated[
        int, Range(1, 1_000_000), "hospitals that must have a code for the list to hold it"
    ] = 2
    minimum_records: Annotated[int, Range(1, 1_000_000), "records a hospital must have a code in to tell it"] = 3

    def build(self) -> Task:
        """Return the task."""
        stay = self.target == "stay"
        return Task(
            name="mimic",
            title="Length of stay after its first day" if stay else "Death in hospital after the first day",
            columns=COLUMNS,
            label=DAYS.name if stay else "hospital_expire_flag",
            classes=("patients",) if stay else ("discharged", "died"),
            objective=REGRESSION if stay else BINARY,
            summarise=self.table.summarise,
            fit=self.table.fit,
            encode=self.encode,
            classify=self.classify,
            build=self.network,
            noised=self.table.noised,
            remarks=self.table.remarks,
            amount=DAYS if stay else None,
            parts={"head": ("output",), "embedding": ("embedding",)},
            summary=f"moments, and every code that {self.minimum_records} or more of its records hold",
            defaults={
                "rounds": 30,
                "training": {
                    "optimizer": "adam",
                    "learning_rate": 0.01,
                    "batch_size": 32,
                    "epochs": 1,
                    "weight_decay": 0.01,
                },
            },
        )

    @property
    def table(self) -> Tabular:
        """Return the preprocessing."""
        return Tabular(COLUMNS, (), self.minimum_hospitals, self.minimum_records)

    def encode(self, records: Records, preparation: Preparation) -> Examples:
        """Return encoded rows, and class numbers or days."""
        stay = told(records, DAYS.name).astype(np.float32)
        return Examples(
            self.table.encode(records, preparation), stay if self.target == "stay" else self.classify(records)
        )

    def classify(self, records: Records) -> NDArray[np.int32]:
        """Return 1 for who died in hospital; without that column, or where days are learnt, 0."""
        return one_class(records) if self.target == "stay" else told(records, "hospital_expire_flag").astype(np.int32)

    def network(self, preparation: Preparation) -> Any:
        """Return the Keras model: encoded rows in; one logit, or the days, out."""
        import keras

        inputs, hidden = self.table.inputs(preparation, self.embedding if self.model == "mlp" else 1)
        if self.model == "mlp":
            hidden = keras.layers.Dense(self.hidden, activation="relu", name="hidden")(hidden)
        output = keras.layers.Dense(1, name="output")(hidden)
        if self.target == "stay":
            output = keras.layers.Rescaling(2.0, 8.0, name="days")(output)  # so that training starts near a usual stay
        return keras.Model(inputs, output, name="mimic")
