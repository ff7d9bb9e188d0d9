"""Rounds between real processes: coordinator, gateway, and four hospitals with mutual TLS on loopback, beside stock Flower's SuperLink and SuperNodes.

``python benchmarks/deployed.py``. Ours is what ``fedward server run`` does from its first line on, over hospitals that are up; a round holds its training. The peer has
neither TLS nor a gateway, a policy or a log.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parent.parent))

import peers
from measure import QUIET, Kind, Row, between_ms, options, progress, show
from ours import dataset, settings
from work import FOUR, HEART, LARGE, Work

from common.config import flatten
from common.tasks import task_of
from simulations import deploy, hospitals, scenario
from simulations.datasets import DATASETS

CASES = {HEART: 3000.0, FOUR: 3000.0, LARGE: 10_000.0}
"""Works, with the milliseconds that a round may take."""
PROGRAMS = {"the worker": ("client.resident", 1200.0), "the stub": ("client.stub", 150.0)}


@dataclass(frozen=True)
class Measured:
    """What one federation showed: seconds to its first round, milliseconds of a later one, and the peak memory of its programs in MB."""

    first: float
    round: float
    memory: Mapping[str, float]


def ours(work: Work, rounds: int) -> Measured:
    """Bring up a federation, run it by the command that people type, and look at its programs."""
    DATASETS[f"benchmark-{work.name}"] = dataset(work)
    plan = scenario.read(settings(work, rounds))
    with deploy.running(hospitals.populate(plan), task_of(plan.run.task)) as federation:
        _wait_until_ready(federation.folder.parent, work.hospitals)
        words = [f"{name}={_toml(value)}" for name, value in _asked(work, rounds)]
        command = [
            "server",
            "run",
            str(federation.folder),
            work.task,
            *(word for each in words for word in ("--set", each)),
        ]
        begun = time.monotonic()
        with subprocess.Popen(
            [sys.executable, "-m", "fedward", *command],
            cwd=Path(__file__).parent.parent,
            env=os.environ | QUIET,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            ends = [time.monotonic() for line in process.stdout or () if line.startswith("round ")]
        if process.returncode:
            raise RuntimeError(f"fedward {' '.join(command)} failed")
        (record,) = federation.folder.glob("runs/*/run.json")
        seconds = [row["seconds"] for row in json.loads(record.read_text())["rounds"]]
        return Measured(
            ends[0] - seconds[0] - begun, 1000 * statistics.median(seconds[2:]), _memory(federation.folder.parent)
        )


def _asked(work: Work, rounds: int) -> list[tuple[str, object]]:
    """Return the settings of the work but those of the simulation."""
    return [
        each
        for each in flatten(settings(work, rounds)).items()
        if not each[0].startswith("simulation.") and each[0] != "task.name"
    ]


def _toml(value: object) -> str:
    return json.dumps(value)


def _wait_until_ready(folder: Path, count: int) -> None:
    """Wait until every worker holds its patients."""
    while sum("ready" in path.read_text() for path in folder.glob("*/run/worker.log")) < count:
        time.sleep(0.1)


def _memory(folder: Path) -> dict[str, float]:
    """Return the largest peak of resident memory of each kind of program below a folder."""
    found = dict.fromkeys(PROGRAMS, 0.0)
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command, status = (process / "cmdline").read_text(), (process / "status").read_text()
        except OSError:
            continue
        for name, (module, _) in PROGRAMS.items():
            if module in command and str(folder) in command:
                peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
                found[name] = max(found[name], peak / 1024)
    return found


def rows_of(work: Work, rounds: int, *, with_peer: bool) -> list[Row]:
    """Measure one work."""
    progress(f"{work.name}: ours")
    measured = ours(work, rounds)
    ran = peers.measure(peers.FLOWER, work.name, 4, "peer_flower_deployed.py") if with_peer else None
    peer = between_ms(ran.result["moments"], skip=1) if ran else None
    faster: Kind = "times faster than the peer"
    return [
        Row(f"{work.title}: a round", "ms", measured.round, "at most", CASES[work]),
        Row("  Flower's SuperLink and SuperNodes", "ms", measured.round, faster, 1.0, peer=peer),
        Row("  from the command to the first round", "s", measured.first, "at most", 10.0),
        *(
            Row(f"  memory of {name}", "MB", measured.memory[name], "at most", most)
            for name, (_, most) in PROGRAMS.items()
        ),
    ]


def main() -> None:
    """Measure and print."""

    def extend(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--rounds", type=int, default=8, help="rounds of one measurement")
        parser.add_argument("--only", choices=[work.name for work in CASES], help="measure one work")

    args = options(__doc__ or "", extend)
    chosen = [work for work in CASES if args.only in (None, work.name)]
    rows = [row for work in chosen for row in rows_of(work, args.rounds, with_peer=not args.no_peers)]
    show("deployed", "Rounds between processes", rows, args)


if __name__ == "__main__":
    main()
