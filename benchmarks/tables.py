"""Tables: how long 100,000 rows take to encode, and what 13 to 130 virtual hospitals cost in time and memory.

``python benchmarks/tables.py`` encodes; ``--hospitals`` runs rounds over ever more hospitals of the same 101,766 stays, each count in a process of its own.
``--labs ROWS`` joins made-up MIMIC-III tables with so many laboratory values and prints the peak of memory.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT = 5.0
"""Seconds that 100,000 rows may take."""
COUNTS = (13, 26, 52, 130)
ROUNDS = 3


def encoding() -> int:
    """Print the seconds of each step of the preprocessing, best of three."""
    from common.tasks.readmission import Readmission
    from simulations.datasets import DATASETS
    from simulations.datasets.fetch import load

    task, table = Readmission().build(), load(DATASETS["diabetes130"])
    statistics = task.summarise(table.records)
    preparation = task.fit(statistics)
    tell, encode = (
        min(_timed(step) for _ in range(3))
        for step in (lambda: task.summarise(table.records), lambda: task.encode(table.records, preparation))
    )
    share = (tell + encode) / len(table) * 100_000 / LIMIT
    print(f"{len(table):,} rows x {len(task.columns)} columns: statistics {tell:.2f} s, encoding {encode:.2f} s")
    print(f"100,000 rows: {share:.2f} of the limit of {LIMIT:g} s")
    return int(share > 1)


def hospitals() -> int:
    """Print seconds and memory of rounds by the count of hospitals."""
    for count in COUNTS:
        words = [sys.executable, __file__, "--one", str(count)]
        print(subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1], flush=True)
    return 0


def one(count: int) -> int:
    """Run a few rounds over so many hospitals."""
    import json

    import fedward

    with tempfile.TemporaryDirectory() as folder:
        words = ["simulate", "readmission", "--hospitals", str(count), "--rounds", str(ROUNDS), "--out", folder]
        words += ["--set", "simulation.comparators=false", "--set", "simulation.workers=1"]
        fedward.main([*words, "--set", "training.epochs=1", "--set", "evaluation.every=0", "--json"])
        record = json.loads(next(Path(folder).glob("*/run.json")).read_text())
    # The first round compiles.
    seconds = min(row["seconds"] for row in record["rounds"][1:])
    told = f"{count} hospitals: {seconds:.2f} s a round, {1000 * seconds / count:.1f} ms a hospital"
    print(f"{told}, whole run {record['seconds']['total']:.0f} s, peak {record['peak_memory_mb']} MB")
    return 0


def labs(rows: int) -> int:
    """Join made-up tables with so many laboratory values."""
    from client.data import mimic

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _make(folder, rows)
        seconds = _timed(lambda: mimic.join(folder))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{rows:,} laboratory values of 1,000 admissions: {seconds:.1f} s, peak {peak} MB")
    return 0


def _make(folder: Path, rows: int) -> None:
    names = "ADMITTIME,DISCHTIME,ADMISSION_TYPE,ADMISSION_LOCATION,INSURANCE,MARITAL_STATUS,ETHNICITY"
    stay = "2150-03-01 10:00:00,2150-03-05 22:00:00,EMERGENCY,CLINIC,Medicare,MARRIED,WHITE,0"
    admissions = "".join(f"{number},{number},{stay}\n" for number in range(1000))
    patients = "".join(f"{number},F,2100-01-01 00:00:00\n" for number in range(1000))
    tables = {
        "ADMISSIONS": f"SUBJECT_ID,HADM_ID,{names},HOSPITAL_EXPIRE_FLAG\n{admissions}",
        "PATIENTS": f"SUBJECT_ID,GENDER,DOB\n{patients}",
        "ICUSTAYS": "HADM_ID,INTIME,FIRST_CAREUNIT\n1,2150-03-01 12:00:00,MICU\n",
        "SERVICES": "HADM_ID,TRANSFERTIME,CURR_SERVICE\n1,2150-03-01 10:01:00,MED\n",
        "PRESCRIPTIONS": "HADM_ID,STARTDATE,DRUG\n1,2150-03-01 00:00:00,Aspirin\n",
    }
    for name, text in tables.items():
        (folder / f"{name}.csv").write_text(text)
    with (folder / "LABEVENTS.csv").open("w") as file:
        file.write("HADM_ID,ITEMID,CHARTTIME,VALUENUM\n")
        file.writelines(f"{row % 1000},50983,2150-03-01 1{row % 10}:00:00,140\n" for row in range(rows))


def _timed(step: object) -> float:
    start = time.perf_counter()
    step()  # type: ignore[operator]
    return time.perf_counter() - start


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hospitals", action="store_true", help="rounds over ever more hospitals")
    parser.add_argument("--one", type=int, help="rounds over this many hospitals")
    parser.add_argument("--labs", type=int, help="join made-up tables with this many laboratory values")
    given = parser.parse_args()
    if given.hospitals:
        raise SystemExit(hospitals())
    raise SystemExit(one(given.one) if given.one else labs(given.labs) if given.labs else encoding())
