"""Which compiler suits each task's local epoch: plain TensorFlow graph or XLA. What this prints is what a task's ``xla`` says.

``python benchmarks/compilers.py``. Data: what comes with the package, by a round over the scenario's own hospitals.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import HERE, Row, options, progress, show

SCENARIOS = ("heart", "pneumonia-synthetic", "notes-synthetic")


def round_ms(scenario: str, compiler: str, rounds: int) -> float:
    """Return the median milliseconds of a round, the first three left out, as the run's own record has them."""
    words = ["--rounds", str(rounds), "--set", f"training.compile={compiler}", "--set", "simulation.comparators=false"]
    words += ["--set", "evaluation.every=0", "--set", "simulation.workers=1"]
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            str(HERE.parent / "fedward.py"),
            "simulate",
            scenario,
            *words,
            "--out",
            folder,
            "--json",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(folder))
    record = json.loads(done.stdout.strip().splitlines()[-1])
    return 1000.0 * float(statistics.median(row["seconds"] for row in record["rounds"][3:]))


def main() -> None:
    """Measure and print."""

    def extend(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("scenarios", nargs="*", default=SCENARIOS, help="scenarios by name")
        parser.add_argument("--rounds", type=int, default=10, help="rounds of one measurement")

    args = options(__doc__ or "", extend)
    rows = []
    for scenario in args.scenarios:
        times = {}
        for compiler in ("auto", "graph", "xla"):
            progress(f"{scenario}: {compiler}")
            times[compiler] = round_ms(scenario, compiler, args.rounds)
        best = min(times["graph"], times["xla"])
        what = f"{scenario}: graph {times['graph']:.1f}, XLA {times['xla']:.1f}; the task's own choice"
        rows.append(Row(what, "ms", times["auto"], "times the limit", 1.2, limit=best))
    show("The compiler of the local epoch (the limit is the faster of the two)", rows, as_json=args.json)


if __name__ == "__main__":
    main()
