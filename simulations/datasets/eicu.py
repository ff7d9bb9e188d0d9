"""Diagnoses and treatments of stays in intensive care, by the region of the hospital (eICU demo): what comes next, and what suits whom."""

from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.tasks.task import Array, Records, take
from simulations.datasets.dataset import Dataset, File, Table
from simulations.datasets.tables import distinct, read_frame

if TYPE_CHECKING:
    import pandas as pd

PATIENTS, HOSPITALS, DIAGNOSES, TREATMENTS = (
    f"{name}.csv.gz" for name in ("patient", "hospital", "diagnosis", "treatment")
)
LEVELS = {"diagnosis": 2, "treatment": 3}
"""Of the levels of a code, 'cardiovascular|shock|vasopressors|norepinephrine', those that count."""
DAY = 1440
"""Minutes."""


def read_next(folder: Path) -> Table:
    """Make a row of every moment of a stay at which treatments were charted that it had not had: those, and what was charted before.

    Diagnoses of the same moment stand before it; treatments do not. A stay's moments are rows of one patient, who may also have several stays.
    """
    stays, charted = _stays(folder), _charted(folder)
    admission = stays["admission"].to_dict()
    rows: list[tuple[str, str, str]] = []
    events: list[list[Any]] = charted[["stay", "time", "kind", "code"]].to_numpy().tolist()
    for stay, of_stay in groupby(events, key=itemgetter(0)):
        before = [admission[stay]]
        for _, moment in groupby(of_stay, key=itemgetter(1)):
            parted: dict[str, list[str]] = {"diagnosis": [], "treatment": []}
            for _, _, kind, code in moment:
                parted[kind].append(code)
            before += parted["diagnosis"]
            if parted["treatment"]:
                rows.append((stay, "\n".join(before), "\n".join(parted["treatment"])))
            before += parted["treatment"]
    stay, history, came = (_objects(column) for column in zip(*rows, strict=True))
    return _table(stays.loc[list(stay)], {"history": history, "next": came}, "next")


def read_match(folder: Path) -> Table:
    """Make a row of every stay with treatments: all of them, and as its features what was known at admission and diagnosed in the first day."""
    stays, charted = _stays(folder), _charted(folder)
    of_kind = {kind: events.groupby("stay")["code"].agg("\n".join) for kind, events in charted.groupby("kind")}
    early = charted[(charted["kind"] == "diagnosis") & (charted["time"] <= DAY)].groupby("stay")["code"].agg("\n".join)
    given = of_kind["treatment"]
    admission = stays["admission"]
    features = ["\n".join([admission[stay], *early.get(stay, "").splitlines()]) for stay in given.index]
    names = [f"stay {stay}" for stay in given.index]
    records = {"stay": _objects(names), "features": _objects(features), "given": _objects(given)}
    return _table(stays.loc[given.index], records, "given")


def _stays(folder: Path) -> "pd.DataFrame":
    """Return by stay its patient, region and what is known at admission, as codes."""
    columns = (
        "patientunitstayid",
        "gender",
        "age",
        "hospitalid",
        "apacheadmissiondx",
        "unittype",
        "unitadmitsource",
        "uniquepid",
    )
    stays = read_frame(folder / PATIENTS, dict.fromkeys(columns, "str")).set_index("patientunitstayid")
    region = read_frame(folder / HOSPITALS, {"hospitalid": "str", "region": "str"}).set_index("hospitalid")["region"]
    age = stays["age"].str.replace("> 89", "90", regex=False).str.replace(r"\d$", "0", regex=True)
    known = {
        "age": age,
        "gender": stays["gender"],
        "unit": stays["unittype"],
        "from": stays["unitadmitsource"],
        "admitted for": stays["apacheadmissiondx"],
    }
    told = [(f"{name} " + values).fillna("") for name, values in known.items()]
    stays["admission"] = ["\n".join(filter(None, codes)) for codes in zip(*told, strict=True)]
    stays["region"] = stays["hospitalid"].map(region).fillna("unknown")
    return stays[["uniquepid", "region", "admission"]]


def _charted(folder: Path) -> "pd.DataFrame":
    """Return the first time, in minutes from admission, of every diagnosis and treatment of a stay, in order of time."""
    import pandas as pd

    parts = []
    for file, kind in ((DIAGNOSES, "diagnosis"), (TREATMENTS, "treatment")):
        columns = {"patientunitstayid": "str", f"{kind}offset": np.float64, f"{kind}string": "str"}
        table = read_frame(folder / file, columns)[list(columns)].set_axis(["stay", "time", "code"], axis=1)
        table["code"] = f"{kind} " + table["code"].str.split("|").str[: LEVELS[kind]].str.join("|")
        parts.append(table.assign(kind=kind))
    charted = pd.concat(parts).sort_values(["stay", "time", "kind", "code"], kind="stable")
    return charted.drop_duplicates(["stay", "code"])


def _objects(values: object) -> Array:
    return np.array(list(values), object)  # type: ignore[call-overload]


def _table(stays: "pd.DataFrame", records: Records, target: str) -> Table:
    """Return the rows, without those that repeat another of the region in all that is known."""
    told = [column for name, column in records.items() if name != "stay"]
    kept = distinct(list(zip(stays["region"], *told, strict=True)))
    patient = np.unique(stays["uniquepid"].to_numpy(str), return_inverse=True)[1][kept]
    hospital = stays["region"].to_numpy(str)[kept]
    label = np.zeros(len(kept), np.int64)
    repeated = len(stays) - len(kept)
    return Table(take(records, kept), label, ("all",), patient, hospital, duplicates_removed=repeated, target=target)


EICU_NEXT = Dataset(
    name="eicu-next",
    title="Stays in intensive care and the treatments that came next, by region",
    task="treatment-next",
    rows=3281,
    read=read_next,
    origin="eICU Collaborative Research Database Demo v2.0 (PhysioNet), tables of github.com/eth-mds/eicu-demo at 6666c2b",
    licence="ODbL 1.0",
    citation="Pollard et al. 2018, The eICU Collaborative Research Database, Sci Data 5:180178; Goldberger et al. 2000, Circulation 101:e215",
    folder="eicu-demo",
    files=(
        File(PATIENTS, 133_538, ("sha256:97d04ec58895219406f9e571b65d0474c850cf4d33d4496981c27a98936d7b89",)),
        File(HOSPITALS, 780, ("sha256:23531ec3692a756be5559259917c9244e550d34eaadf637f18f1ec34c83147dd",)),
        File(DIAGNOSES, 352_200, ("sha256:a295dcd12b38f2c8f550de069a4f8fd2350a94f2c8c5c2a630c8307b5c81f8e3",)),
        File(TREATMENTS, 458_989, ("sha256:a3aaee033aee140d66da6aca0df3f9e291d9975279bf1bc78a92779c2b8b13d9",)),
    ),
    note="The files were turned from R's fst form into gzipped CSV; in this form they stand at no public address. 186 hospitals of four regions, and of none that is told.",
)
EICU_MATCH = replace(
    EICU_NEXT,
    name="eicu-match",
    title="Patients in intensive care and their treatments, by region",
    task="treatment-match",
    rows=1900,
    read=read_match,
)
