"""W1: a job of twenty CNN rounds from start to end, in seconds and in memory, beside Flower's TensorFlow template.

``python benchmarks/job.py``. Memory is the peak over the whole tree of processes, pages shared by several counted once. Ours includes what the template leaves out:
the judging of the final model at a hundred hospitals, checkpoints and the report.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence

import peers
from measure import Ran, Row, options, progress, run, show
from work import CNN


def medians(runs: Sequence[Ran]) -> tuple[float, float]:
    """Return the medians of the seconds and of the megabytes."""
    return statistics.median(ran.seconds for ran in runs), statistics.median(ran.megabytes for ran in runs)


def main() -> None:
    """Measure and print."""

    def extend(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--rounds", type=int, default=20, help="rounds of the job")

    args = options(__doc__ or "", extend)
    ours, flower = [], []
    for number in range(args.repeats):
        progress(f"{args.rounds} rounds, {number + 1} of {args.repeats}")
        ours.append(run(sys.executable, "ours.py", "simulate", CNN.name, str(args.rounds)))
        flower.append(None if args.no_peers else peers.measure(peers.FLOWER, CNN.name, args.rounds))
    seconds, megabytes = medians(ours)
    peer_seconds, peer_megabytes = medians([ran for ran in flower if ran]) if any(flower) else (None, None)
    rows = [
        Row("start to end", "s", seconds, "times faster than the peer", 8.0, peer=peer_seconds),
        Row("peak memory", "MB", megabytes, "of the peer", 0.35, peer=peer_megabytes),
    ]
    show("job", f"W1: a job of {args.rounds} rounds, {CNN.title}", rows, args)


if __name__ == "__main__":
    main()
