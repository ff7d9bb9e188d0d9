"""Transcribed clinical notes in English, by medical specialty (mtsamples.com)."""

from pathlib import Path

from simulations.datasets.dataset import Dataset, File, Table
from simulations.datasets.tables import read_csv, text_table

FILE = "mtsamples.csv.gz"
SPECIALTIES = (
    "Cardiovascular / Pulmonary",
    "ENT - Otolaryngology",
    "Gastroenterology",
    "Hematology - Oncology",
    "Nephrology",
    "Neurology",
    "Neurosurgery",
    "Obstetrics / Gynecology",
    "Ophthalmology",
    "Orthopedic",
    "Urology",
)
"""Those with 60 notes or more."""
NOT_SPECIALTIES = {
    "Consult - History and Phy.",
    "Discharge Summary",
    "Emergency Room Reports",
    "General Medicine",
    "IME-QME-Work Comp etc.",
    "Letters",
    "Office Notes",
    "Radiology",
    "SOAP / Chart / Progress Notes",
    "Surgery",
}
"""Kinds of document. Most notes are listed under one of these and under a specialty, so that a random split would leak."""


def read(folder: Path) -> Table:
    """Drop kinds of document, then repeated notes, then small specialties; a note of two specialties counts for the first in the file."""
    cells = read_csv(folder / FILE, ("medical_specialty", "transcription"))
    pairs = zip(cells["transcription"], cells["medical_specialty"], strict=True)
    notes = [(text, specialty) for text, specialty in pairs if specialty not in NOT_SPECIALTIES]
    return text_table([text for text, _ in notes], [specialty for _, specialty in notes], SPECIALTIES)


MTSAMPLES = Dataset(
    name="mtsamples",
    title="Clinical notes in English, by medical specialty",
    task="notes",
    origin="mtsamples.com, pages cached in github.com/terrah27/spider_mtsamples.com at 7794f00",
    licence="not stated by its source",
    citation="mtsamples.com; T. Boyle 2018, Medical transcriptions, Kaggle",
    rows=1735,
    read=read,
    folder="mtsamples",
    files=(File(FILE, 5_256_091, ("sha256:e75a171239a2f856a5980fbbf5a73a290237c2be7dbcaf2d0629d8d8b4e06722",)),),
    note="It was parsed from 5,218 cached pages, and stands at no public address in this form. Ask before publishing: the copy on Kaggle is labelled CC0, its source states no licence.",
    task_settings={"classes": ",".join(SPECIALTIES)},
)
