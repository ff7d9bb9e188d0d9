"""W1: a job of twenty CNN rounds from start to end, in seconds and in memory, beside Flower's TensorFlow template.

``python benchmarks/job.py``. Memory is the peak over the whole tree of processes, pages shared by several counted once. Ours includes what the template leaves out:
the judging of the final model at a hundred hospitals, checkpoints and the report.
"""

import argparse
import statistics
import sys

import peers
from measure import Row, options, progress, run, show
from work import CNN


def main() -> None:
    """Measure and print."""

    def extend(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--rounds", type=int, default=20, help="rounds of the job")

    args = options(__doc__ or "", extend)
    progress(f"ours: {args.rounds} rounds, {args.repeats} times")
    ours = [run(sys.executable, "ours.py", "simulate", CNN.name, str(args.rounds)) for _ in range(args.repeats)]
    flower = None if args.no_peers else peers.measure(peers.FLOWER, CNN.name, args.rounds)
    seconds, megabytes = (
        statistics.median(ran.seconds for ran in ours),
        statistics.median(ran.megabytes for ran in ours),
    )
    rows = [
        Row("start to end", "s", seconds, "times faster than the peer", 8.0, peer=flower.seconds if flower else None),
        Row("peak memory", "MB", megabytes, "of the peer", 0.35, peer=flower.megabytes if flower else None),
    ]
    show("job", f"W1: a job of {args.rounds} rounds, {CNN.title}", rows, args)


if __name__ == "__main__":
    main()
