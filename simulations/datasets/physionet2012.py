"""First 48 hours of 4,000 stays in intensive care (PhysioNet/CinC Challenge 2012, set A), by the kind of unit."""

from pathlib import Path

import numpy as np

from common.errors import DataError
from common.tasks import series
from common.tasks.icu import HOURS, VARIABLES
from common.tasks.task import Array
from simulations.datasets.dataset import Dataset, File, Table
from simulations.datasets.tables import numbers, read_csv, read_frame

EVENTS, STAYS = "set_a_events.csv.gz", "set_a_static_outcomes.csv.gz"
UNITS = ("coronary", "cardiac-surgery", "medical", "surgical")
NOT_MEASURED = -1.0


def read(folder: Path) -> Table:
    """Lay the measurements on an hourly grid; the kind of unit, which admits its own patients, stands for the hospital."""
    columns = ("RecordID", "Age", "Gender", "Height", "ICUType", "In-hospital_death")
    stay, *values = (numbers(cells, STAYS, name) for name, cells in read_csv(folder / STAYS, columns).items())
    age, gender, height, unit, death = (np.where(column == NOT_MEASURED, np.nan, column) for column in values)
    records = {"age": age, "gender": gender, "height": height, "unit": unit, "events": _grid(folder, stay)}
    label = death.astype(np.int64)
    hospital = np.array(UNITS)[unit.astype(np.int64) - 1]
    return Table(records | {"death": label}, label, ("alive", "dead"), stay.astype(np.int64), hospital, target="death")


def _grid(folder: Path, stay: Array) -> Array:
    frame = read_frame(
        folder / EVENTS, {"RecordID": np.int64, "Time": "category", "Parameter": "category", "Value": np.float64}
    )
    place = frame["Parameter"].map({variable.name: place for place, variable in enumerate(VARIABLES)})
    known = frame[(place.notna() & (frame["Value"] != NOT_MEASURED)).to_numpy()]
    order = np.argsort(stay)
    found = np.searchsorted(stay, known["RecordID"].to_numpy(), sorter=order)
    row = np.asarray(order[found.clip(max=len(stay) - 1)], np.int64)
    if (stay[row] != known["RecordID"]).any():
        raise DataError(f"{EVENTS}: holds a stay that {STAYS} does not; delete both and get them again")
    hour = known["Time"].map(_hour).to_numpy(np.float64)
    variable = np.asarray(place[known.index], np.int64)
    return series.grid(row, hour, variable, known["Value"].to_numpy(), (len(stay), HOURS, len(VARIABLES)))


def _hour(time: str) -> float:
    """Return hours since admission from ``hh:mm``.

    >>> _hour("47:15")
    47.25
    """
    return int(time[:-3]) + int(time[-2:]) / 60


PHYSIONET2012 = Dataset(
    name="physionet2012",
    title="First 48 hours in intensive care, four kinds of unit",
    task="icu",
    origin="PhysioNet/CinC Challenge 2012 v1.0.0, set A, from github.com/AbdelrahmanManz/ICU-Mortality-Predictor at 7037a4f",
    licence="ODC-By 1.0",
    citation="Silva et al. 2012, Predicting in-hospital mortality of ICU patients, CinC 39:245-248; Goldberger et al. 2000, Circulation 101:e215",
    rows=4000,
    read=read,
    folder="physionet2012-icu",
    files=(
        File(EVENTS, 6_649_121, ("sha256:e9dfc961377464838b2af751f8b19ad357d3e23e93f48a8bd0782f6052d6368b",)),
        File(STAYS, 46_429, ("sha256:b5e84e9cef049b30d9ccef0516272408d604a02e9c226a2d60d412928a8e466d",)),
    ),
    note="4,000 files of one stay each were joined to one table, values unchanged; in this form it stands at no public address.",
)
