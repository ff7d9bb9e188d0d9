"""Memory and time of a round over the count of virtual hospitals, up to 10,000 of 16 patients, of which 4 train in a round.

``python benchmarks/scale.py``. What grows is one context and one set of rows a hospital; the model, TensorFlow and the compiled step are there once.
"""

import argparse
import sys

from measure import Ran, Row, between_ms, options, progress, run, show
from work import HEART

ROUNDS = 12


def measured(hospitals: int) -> Ran:
    """Run a short job over so many hospitals."""
    progress(f"{hospitals} hospitals")
    return run(
        sys.executable, "ours.py", "simulate", HEART.name, str(ROUNDS), "--hospitals", str(hospitals), "--rows", "16"
    )


def main() -> None:
    """Measure and print."""

    def extend(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--hospitals",
            type=int,
            nargs="+",
            default=[10, 100, 1_000, 10_000],
            help="counts of hospitals, the smallest first",
        )

    args = options(__doc__ or "", extend)
    runs = {count: measured(count) for count in args.hospitals}
    least = runs[args.hospitals[0]].megabytes
    rows = []
    for count, ran in runs.items():
        rows.append(Row(f"{count:,} hospitals: peak memory", "MB", ran.megabytes, "times the limit", 1.5, limit=least))
        rows.append(Row("  a round", "ms", between_ms(ran.result["moments"]), "at most", 50.0))
        rows.append(Row("  start to end", "s", ran.seconds, "at most", 60.0))
    show("scale", "Virtual hospitals in one process (the limit is the smallest federation)", rows, args)


if __name__ == "__main__":
    main()
