"""From MIMIC-III's tables to one row an admission: ``python -m client.data.mimic TABLES admissions.csv``.

The tables are those that PhysioNet gives out, with their own names and columns (any case, gzipped or not); what comes out is an ordinary file to import.
The large ones are read in pieces, of which only the rows of a first day stay, so that memory grows with the admissions and not with the laboratory values.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import DataError, FedwardError
from common.tasks.mimic import DAYS, LABS

if TYPE_CHECKING:
    import pandas as pd

CHUNK = 200_000
"""Rows of a table that are held at a time."""
FIRST_HOURS = 24


def join(folder: Path) -> "pd.DataFrame":
    """Return one row an admission of a day or more: its patient, the columns of the task ``mimic``, both labels.

    Raises
    ------
    DataError
        For a table or column that is not there, or a cell of another form: table, row (the header being row 1) and column are named.
    """
    rows = _whole(folder, "ADMISSIONS", ("subject_id", "hadm_id", "admittime", "dischtime", "admission_type", "admission_location", "insurance", "marital_status", "ethnicity", "hospital_expire_flag"))  # fmt: skip
    if rows.empty:
        raise DataError(f"{folder}: the table ADMISSIONS has no rows; copy it again")
    rows = rows.merge(_whole(folder, "PATIENTS", ("subject_id", "gender", "dob")), on="subject_id", how="left")
    rows = rows.sort_values(["subject_id", "admittime"], kind="stable", ignore_index=True)
    rows["earlier"] = rows.groupby("subject_id").cumcount()
    # Dates of birth of those above 89 were moved by centuries, past what a difference of times can hold.
    years = rows["admittime"].dt.year - rows["dob"].dt.year
    before = rows["admittime"].dt.day_of_year < rows["dob"].dt.day_of_year
    rows["age"] = (years - before).clip(0, 90)
    rows[DAYS.name] = (rows["dischtime"] - rows["admittime"]).dt.total_seconds() / 86_400
    rows = rows[rows[DAYS.name] >= FIRST_HOURS / 24].set_index("hadm_id")
    begin = rows["admittime"]
    rows["first_careunit"] = _first(folder, "ICUSTAYS", "intime", "first_careunit", begin)
    rows["curr_service"] = _first(folder, "SERVICES", "transfertime", "curr_service", begin)
    rows["drugs"] = _drugs(folder, begin).reindex(rows.index, fill_value=0)
    labs = _labs(folder, begin)
    for item, column in LABS.items():
        rows[column.name] = labs[labs.index.get_level_values("itemid") == item].droplevel("itemid")
    return rows.drop(columns=["admittime", "dischtime", "dob"])


def _first(folder: Path, table: str, time: str, column: str, begin: "pd.Series[Any]") -> "pd.Series[Any]":
    """Return an admission's first value of a column within the first day."""
    rows = _whole(folder, table, ("hadm_id", time, column))
    rows = _early(rows, time, begin).sort_values(time, kind="stable")
    return rows.groupby("hadm_id")[column].first()


def _drugs(folder: Path, begin: "pd.Series[Any]") -> "pd.Series[Any]":
    import pandas as pd

    kept = []
    for piece in _pieces(folder, "PRESCRIPTIONS", ("hadm_id", "startdate", "drug")):
        day = piece["hadm_id"].map(begin).dt.normalize()
        kept.append(piece.loc[piece["startdate"] == day, ["hadm_id", "drug"]].drop_duplicates())
    return pd.Series(pd.concat(kept).drop_duplicates().groupby("hadm_id").size())


def _labs(folder: Path, begin: "pd.Series[Any]") -> "pd.Series[Any]":
    """Return the first value of each test in the first day, by admission and test."""
    import pandas as pd

    kept = pd.DataFrame()
    for piece in _pieces(folder, "LABEVENTS", ("hadm_id", "itemid", "charttime", "valuenum")):
        known = piece[piece["itemid"].isin(list(LABS)) & piece["valuenum"].notna()]
        kept = pd.concat([kept, _early(known, "charttime", begin)]).sort_values("charttime", kind="stable")
        kept = kept.drop_duplicates(["hadm_id", "itemid"])
    return kept.set_index(["hadm_id", "itemid"])["valuenum"]


def _early(rows: "pd.DataFrame", time: str, begin: "pd.Series[Any]") -> "pd.DataFrame":
    import pandas as pd

    since = rows[time] - rows["hadm_id"].map(begin)
    return rows[(since >= pd.Timedelta(hours=-6)) & (since < pd.Timedelta(hours=FIRST_HOURS))]


def _whole(folder: Path, table: str, columns: tuple[str, ...]) -> "pd.DataFrame":
    import pandas as pd

    return pd.concat(_pieces(folder, table, columns), ignore_index=True)


def _pieces(folder: Path, table: str, columns: tuple[str, ...]) -> Iterator["pd.DataFrame"]:
    """Yield a table's pieces with the named columns in their types."""
    import pandas as pd

    path = next((path for end in (".csv.gz", ".csv") if (path := folder / f"{table}{end}").is_file()), None)
    if path is None:
        raise DataError(
            f"{folder}: {table}.csv.gz or {table}.csv is missing; expected the tables as PhysioNet names them"
        )
    try:
        header = {name.casefold(): name for name in pd.read_csv(path, nrows=0).columns}
        absent = [name for name in columns if name not in header]
        if absent:
            raise DataError(f"{path.name}: column {absent[0]!r} is missing")
        wanted = [header[name] for name in columns]
        with pd.read_csv(path, usecols=wanted, dtype=str, chunksize=CHUNK, keep_default_na=False) as pieces:
            for piece in pieces:
                plain = piece.rename(columns=str.casefold)
                yield pd.DataFrame({name: _typed(plain[name], path.name) for name in columns})
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path.name}: cannot be read as CSV ({type(error).__name__}); copy it again") from None


def _typed(cells: "pd.Series[Any]", file: str) -> "pd.Series[Any]":
    """Return a column as numbers, times or texts, by its name."""
    import pandas as pd

    name = str(cells.name)
    if name.endswith("_id") or name in ("itemid", "valuenum", "hospital_expire_flag"):
        values, form = pd.to_numeric(cells, errors="coerce"), "a number"
    elif name.endswith("time") or name in ("dob", "startdate"):
        # In milliseconds, which reach further than the years that MIMIC's dates were moved by.
        values = pd.to_datetime(cells.str.slice(0, 19), errors="coerce", format="ISO8601").dt.as_unit("ms")
        form = "a date and time"
    else:
        return cells
    bad = values.isna() & (cells.str.strip() != "")
    if bad.any():
        raise DataError(
            f"{file}: row {cells.index[int(bad.to_numpy().argmax())] + 2}, column {name!r}: expected {form} or nothing"
        )
    return values


def main(arguments: list[str]) -> int:
    """Join the tables of a folder into a CSV file."""
    if len(arguments) != 2:
        print("usage: python -m client.data.mimic TABLES admissions.csv", file=sys.stderr)
        return 2
    try:
        rows = join(Path(arguments[0]))
        rows.rename(columns={"subject_id": "patient"}).to_csv(arguments[1], index=False)
    except OSError as error:
        print(f"fedward: {arguments[1]}: cannot be written ({type(error).__name__}); name a file in a folder that is there", file=sys.stderr)  # fmt: skip
        return 1
    except FedwardError as error:
        print(f"fedward: {error}", file=sys.stderr)
        return 1
    print(f"{len(rows)} admissions of {rows['subject_id'].nunique()} patients")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
