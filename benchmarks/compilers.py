"""Which compiler suits each task's local epoch: plain TensorFlow graph or XLA. What this prints is what a task's ``xla`` says.

``python benchmarks/compilers.py``. Data: what comes with the package, dealt to four hospitals.
"""

import argparse
import statistics

from measure import Row, options, progress, show, simulate_ms

DATASETS = {"heart": "heart", "pneumonia": "pneumonia-synthetic", "notes": "notes-synthetic"}
SETTINGS = """
[task]
name = "{task}"
[evaluation]
every = 0
[simulation]
dataset = "{dataset}"
hospitals = 4
partition = "iid"
comparators = false
workers = 1
"""


def main() -> None:
    """Measure and print."""

    def extend(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("tasks", nargs="*", default=list(DATASETS), help="tasks by name")
        parser.add_argument("--rounds", type=int, default=10, help="rounds of one measurement")

    args = options(__doc__ or "", extend)
    rows = []
    for task in args.tasks:
        settings = SETTINGS.format(task=task, dataset=DATASETS[task])
        taken: dict[str, list[float]] = {"auto": [], "graph": [], "xla": []}
        for number in range(args.repeats):
            progress(f"{task}: {number + 1} of {args.repeats}")
            for compiler, found in taken.items():
                found.append(simulate_ms(settings, args.rounds, ("--set", f"training.compile={compiler}")))
        times = {compiler: statistics.median(found) for compiler, found in taken.items()}
        best = min(times["graph"], times["xla"])
        what = f"{task}: graph {times['graph']:.1f}, XLA {times['xla']:.1f}; the task's own choice"
        rows.append(Row(what, "ms", times["auto"], "times the limit", 1.2, limit=best))
    show("compilers", "The compiler of the local epoch (the limit is the faster of the two)", rows, args)


if __name__ == "__main__":
    main()
