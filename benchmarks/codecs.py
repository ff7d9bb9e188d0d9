"""What a codec saves and what it costs: bytes a round, and AUROC over the test patients, beside the plain update.

``python benchmarks/codecs.py`` runs the scenario ``pneumonia`` (its synthetic stand-in where the data are not here), or another named by ``--scenario``.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parent.parent))

from rich.console import Console
from rich.table import Table

from common import flower
from common.config import assign, merge
from server import rounds
from server.plan import Plan
from server.results import results_of
from simulations import hospitals
from simulations import scenario as scenarios
from simulations.engines import grid_of

CODECS = ("float32", "float16", "int8", "topk")


def main() -> None:
    """Print one row a codec."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", default="pneumonia")
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    table = Table(
        "codec", "kB up a hospital and round", "of plain", "AUROC", title=f"{args.scenario}, {args.rounds} rounds"
    )
    plain = 0.0
    for codec in CODECS:
        words = [f"update.codec={codec}", f"rounds={args.rounds}", "evaluation.every=0"]
        scenario = scenarios.read(merge(scenarios.find(args.scenario), assign(words)))
        population = hospitals.populate(scenario)
        with flower.identity(1):
            outcome = rounds.run(grid_of(population.seats), Plan(scenario.run))
        sent = sum(record.bytes_up for record in outcome.rounds) / sum(len(r.answered) for r in outcome.rounds) / 1000
        plain = plain or sent
        value, low, high = results_of(Plan(scenario.run).task, outcome.tests).pooled["auroc"]
        table.add_row(codec, f"{sent:,.1f}", f"{sent / plain:.3f}", f"{value:.3f} ({low:.3f} to {high:.3f})")
    Console().print(table)


if __name__ == "__main__":
    flower.quiet()
    main()
