"""Shadow models for membership inference: 64 of the pneumonia CNN, 346,561 weights, on a process for each core.

``python benchmarks/shadows.py``. The target is one hospital with 2,000 generated images, of which 1,400 are trained on in 5 rounds of one epoch at batch 32; each shadow is another draw of as many.
Goal: 64 shadows in 60 s, with all that a study asks for: training, the round loop, and the final model judged.
"""

import os
import sys
import time
from pathlib import Path

from measure import QUIET

os.environ.update(QUIET)
sys.path.insert(1, str(Path(__file__).parent.parent))

from client.worker import Worker
from common import flower
from common.tasks.task import rows_of
from simulations import scenario as scenarios
from simulations.attacks.attack import Target, overhear
from simulations.attacks.shadows import shadows
from simulations.hospitals import populate

COUNT, GOAL = 64, 60.0
SETTINGS = {
    "task": {"name": "pneumonia"},
    "rounds": 5,
    "strategy": {"name": "fedavg"},
    "training": {"batch_size": 32, "epochs": 1},
    "simulation": {"dataset": "pneumonia-synthetic", "hospitals": 1, "partition": "iid"},
}


def main() -> None:
    """Print the seconds."""
    flower.quiet()
    scenario, worker = scenarios.read(SETTINGS), Worker()
    population = populate(scenario)
    outcome, heard = overhear(scenario.run, population.hospitals, worker, population.secret)
    target = Target(scenario, population, outcome, heard, worker, COUNT)
    begun = time.perf_counter()
    count = sum(1 for _ in shadows(target))
    taken = time.perf_counter() - begun
    rows, steps = rows_of(population.hospitals[0].train), -(-rows_of(population.hospitals[0].train) // 32) * 5
    print(
        f"{count} shadow CNNs of {rows:,} images, {steps} steps each: {taken:.1f} s ({1000 * taken / count / steps:.2f} ms a step)"
    )
    print(f"goal: {COUNT} in {GOAL:.0f} s ({'met' if taken <= GOAL else 'NOT met'})")


if __name__ == "__main__":
    main()
