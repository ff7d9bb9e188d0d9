"""SYNTHETIC clinical notes: sentences put together from a seed, no patient. For trying things out where nothing can be downloaded."""

from pathlib import Path

import numpy as np
from numpy.random import Generator

from simulations.datasets.dataset import Dataset, Table
from simulations.datasets.tables import text_table

ROWS = 1200
SEED = 11
SPECIALTIES = {
    "cardiology": (
        "Chest pressure on climbing stairs.",
        "Palpitations in the evening.",
        "Ankle swelling by the end of the day.",
        "ECG with ST depression in V4 to V6.",
        "Ejection fraction reduced on echocardiography.",
        "Systolic murmur at the apex.",
        "Bisoprolol was increased.",
        "Troponin was not raised.",
    ),
    "gastroenterology": (
        "Heartburn after meals.",
        "Cramps in the lower abdomen.",
        "Loose stools for two weeks.",
        "Tenderness in the right upper quadrant.",
        "Colonoscopy showed two small polyps.",
        "Raised transaminases.",
        "Pantoprazole was started.",
        "Weight loss of four kilograms.",
    ),
    "neurology": (
        "Headache on one side with nausea.",
        "Numbness of the left hand.",
        "One seizure of two minutes, witnessed.",
        "Reflexes brisker on the right.",
        "MRI with small white matter lesions.",
        "Gait unsteady on turning.",
        "Levetiracetam was started.",
        "Double vision when looking left.",
    ),
    "pulmonology": (
        "Cough with yellow sputum.",
        "Wheezing at night.",
        "Breathless on level ground.",
        "Crackles over the right base.",
        "FEV1 at 62 percent of predicted.",
        "Smoked one pack a day for thirty years.",
        "Salbutamol inhaler as needed.",
        "Infiltrate on the chest film.",
    ),
}
COMMON = (
    "Sleeps poorly.",
    "Appetite is normal.",
    "No known allergies.",
    "No fever.",
    "Blood pressure is well controlled.",
    "Takes metformin for type 2 diabetes.",
    "Laboratory results are pending.",
    "Lives alone and manages well.",
    "Feels more tired than usual.",
    "Family history is unremarkable.",
    "Medication list was reviewed.",
    "Return in four weeks.",
)
SHARES = (0.35, 0.3, 0.2, 0.15)


def read(_folder: Path) -> Table:
    """Write notes of 5 to 11 sentences: most fit any patient, some point to the specialty, a few to another one."""
    rng = np.random.default_rng(SEED)
    names = list(SPECIALTIES)
    labels = [names[number] for number in rng.choice(len(names), ROWS, p=SHARES)]
    return text_table([_note(label, rng) for label in labels], labels, names)


def _note(specialty: str, rng: Generator) -> str:
    opening = f"{rng.integers(19, 95)}-year-old {rng.choice(['woman', 'man'])}."
    return " ".join([opening, *(_sentence(specialty, rng) for _ in range(rng.integers(5, 12)))])


def _sentence(specialty: str, rng: Generator) -> str:
    draw = rng.random()
    if draw < 0.65:
        return str(rng.choice(COMMON))
    source = specialty if draw < 0.87 else str(rng.choice(list(SPECIALTIES)))
    return str(rng.choice(SPECIALTIES[source]))


NOTES_SYNTHETIC = Dataset(
    name="notes-synthetic",
    title="SYNTHETIC clinical notes, written by a program",
    task="notes",
    origin="generator in this package",
    licence="Apache-2.0",
    citation="none: results on it say nothing about patients",
    rows=ROWS,
    read=read,
    synthetic=True,
    task_settings={"classes": ",".join(SPECIALTIES)},
)
