"""Readmission of diabetic patients within 30 days, from a table of stays (Strack et al. 2014, BioMed Res Int 2014:781670)."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from common.config import Range
from common.tasks.objective import BINARY, REGRESSION
from common.tasks.tabular import Tabular
from common.tasks.task import Column, Examples, Preparation, Records, Task, one_class, told

DOSES = ("No", "Steady", "Up", "Down")
DRUGS = (
    "metformin",
    "repaglinide",
    "nateglinide",
    "glimepiride",
    "glipizide",
    "glyburide",
    "pioglitazone",
    "rosiglitazone",
    "acarbose",
    "insulin",
)
"""Those that one stay in 500 or more was given."""
WORDS = {
    "gender": ("Female", "Male"),
    "max_glu_serum": ("Norm", ">200", ">300"),
    "A1Cresult": ("Norm", ">7", ">8"),
    "change": ("No", "Ch"),
    "diabetesMed": ("No", "Yes"),
} | dict.fromkeys(DRUGS, DOSES)
"""What the published file writes for the codes 0, 1, ... of a category; anything else is 'not known'."""


def _category(name: str, meaning: str) -> Column:
    listed = ", ".join(f"{code} {word}" for code, word in enumerate(WORDS[name]))
    return Column(name, "category", f"{meaning}: {listed}", codes=tuple(range(len(WORDS[name]))))


BEFORE = (
    Column("age", "number", "age, middle of ten years", "years", 0, 100),
    _category("gender", "sex"),
    Column("race", "code", "race as recorded"),
    Column("admission_type_id", "code", "kind of admission"),
    Column("admission_source_id", "code", "where the patient came from"),
    Column("payer_code", "code", "who pays"),
    Column("medical_specialty", "code", "specialty of the admitting physician"),
    Column("number_outpatient", "number", "outpatient visits in the year before", "visits", 0, 50),
    Column("number_emergency", "number", "emergency visits in the year before", "visits", 0, 80),
    Column("number_inpatient", "number", "stays in hospital in the year before", "stays", 0, 25),
)
"""What is known when the stay begins."""
DAYS = Column("time_in_hospital", "number", "length of the stay", "days", 1, 14)
STAY = (
    DAYS,
    Column("discharge_disposition_id", "code", "where the patient went"),
    Column("num_lab_procedures", "number", "laboratory tests of the stay", "tests", 0, 150),
    Column("num_procedures", "number", "other procedures of the stay", "procedures", 0, 10),
    Column("num_medications", "number", "different medicines given", "medicines", 0, 100),
    Column("number_diagnoses", "number", "diagnoses recorded", "diagnoses", 0, 20),
    Column("diag_1", "code", "first diagnosis, three figures of ICD-9"),
    Column("diag_2", "code", "second diagnosis, three figures of ICD-9"),
    Column("diag_3", "code", "third diagnosis, three figures of ICD-9"),
    _category("max_glu_serum", "glucose test"),
    _category("A1Cresult", "HbA1c test"),
    *(_category(drug, f"dose of {drug}") for drug in DRUGS),
    _category("change", "diabetes medicines changed"),
    _category("diabetesMed", "diabetes medicines given"),
)
"""What is known when it ends."""
COUNTS = ("number_outpatient", "number_emergency", "number_inpatient")
"""Counts with a long tail, which become ranks."""


@dataclass(frozen=True)
class Readmission:
    """Settings of the task."""

    target: Annotated[
        Literal["readmission", "stay"], "30-day readmission; or length of stay, from what is known when it begins"
    ] = "readmission"
    model: Annotated[Literal["mlp", "logistic"], "network, or logistic regression"] = "mlp"
    hidden: Annotated[int, Range(1, 4096), "units of each of the two hidden layers"] = 64
    embedding: Annotated[int, Range(1, 1024), "learnt numbers a code, of the network"] = 4
    dropout: Annotated[float, Range(0, 0.9), "share of hidden units dropped in training"] = 0.3
    minimum_hospitals: Annotated[
        int, Range(1, 1_000_000), "hospitals that must have a code for the list to hold it"
    ] = 2
    minimum_records: Annotated[int, Range(1, 1_000_000), "records a hospital must have a code in to tell it"] = 10

    def build(self) -> Task:
        """Return the task."""
        stay = self.target == "stay"
        return Task(
            name="readmission",
            title="Length of stay of diabetic patients" if stay else "Readmission within 30 days of diabetic patients",
            columns=self.table.columns,
            label="time_in_hospital" if stay else "readmitted",
            classes=("patients",) if stay else ("no", "within 30 days"),
            objective=REGRESSION if stay else BINARY,
            summarise=self.table.summarise,
            fit=self.table.fit,
            encode=self.encode,
            classify=one_class if stay else classify,
            build=self.network,
            noised=self.table.noised,
            remarks=self.table.remarks,
            amount=DAYS if stay else None,
            parts={"head": ("output",), "embedding": ("embedding",)},
            summary=f"moments, histograms of {len(COUNTS)} counts, and every code that {self.minimum_records} or more of its records hold",
            defaults={
                "rounds": 11,
                "training": {"optimizer": "adam", "learning_rate": 0.001, "batch_size": 256, "epochs": 3},
            },
        )

    @property
    def table(self) -> Tabular:
        """Return the preprocessing."""
        columns = BEFORE if self.target == "stay" else BEFORE + STAY
        return Tabular(columns, COUNTS, self.minimum_hospitals, self.minimum_records)

    def encode(self, records: Records, preparation: Preparation) -> Examples:
        """Return encoded rows, and class numbers or days."""
        return Examples(
            self.table.encode(records, preparation), days(records) if self.target == "stay" else classify(records)
        )

    def network(self, preparation: Preparation) -> Any:
        """Return the Keras model: encoded rows in; one logit, or the days, out."""
        import keras

        inputs, hidden = self.table.inputs(preparation, self.embedding if self.model == "mlp" else 1)
        for layer in (1, 2) if self.model == "mlp" else ():
            hidden = keras.layers.Dense(self.hidden, activation="relu", name=f"hidden{layer}")(hidden)
            hidden = keras.layers.Dropout(self.dropout, name=f"dropout{layer}")(hidden)
        output = keras.layers.Dense(1, name="output")(hidden)
        if self.target == "stay":
            output = keras.layers.Rescaling(DAYS.high / 4, DAYS.high / 2, name="days")(output)
        return keras.Model(inputs, output, name="readmission")


def classify(records: Records) -> NDArray[np.int32]:
    """Return 1 where the patient came back within 30 days; without that column, 0."""
    return told(records, "readmitted").astype(np.int32)


def days(records: Records) -> NDArray[np.float32]:
    """Return the length of the stay, in days; without that column, 0."""
    return told(records, DAYS.name).astype(np.float32)
