"""``fedward simulate`` and ``fedward sweep``: run scenarios, and show them running."""

import argparse
import json
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.command import add
from common.config import assign, merge
from common.errors import DataError, FedwardError, UsageError

if TYPE_CHECKING:
    from simulations.scenario import Scenario

EXAMPLE = "simulate heart --rounds 10 --set strategy.name=fedprox --set strategy.mu=0.1"
SCENARIO = "a task or scenario by name, the path of a scenario file (.toml), or your own task as FILE.py:NAME"
# Options that are short for a --set, with the setting they set.
SHORT = {
    "data": (
        "simulation.dataset",
        str,
        "FILE",
        "your own data in place of the scenario's: a table, or a folder of images",
    ),
    "hospitals": ("simulation.hospitals", int, "N", "count of virtual hospitals"),
    "partition": (
        "simulation.partition",
        str,
        "KIND[:X]",
        "how patients are dealt: natural, iid, dirichlet:0.3, quantity:1, pathological:2, feature:0.1",
    ),
    "rounds": ("rounds", int, "N", "rounds of training"),
    "seed": ("seed", int, "N", "everything random follows from it"),
    "engine": ("simulation.engine", str, "E", "local, ray or deploy"),
}


def add_parsers(subparsers: Any) -> None:
    """Add the commands."""
    _add_simulate(subparsers)
    _add_sweep(subparsers)


def _add_simulate(subparsers: Any) -> None:
    parser = add(
        subparsers,
        simulate,
        "fedward",
        "train over virtual hospitals on this computer",
        EXAMPLE,
        "Train a shared model over virtual hospitals, beside local-only and centralised training; leaves a run folder with a report.",
    )
    parser.add_argument("scenario", nargs="?", help=SCENARIO)
    _add_settings(parser)
    parser.add_argument(
        "--out", type=Path, default=Path("runs"), metavar="DIR", help="where run folders are made (default: runs)"
    )
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with the run of this folder")


def _add_sweep(subparsers: Any) -> None:
    parser = add(
        subparsers,
        sweep,
        "fedward",
        "run a scenario under many settings and seeds",
        "sweep heart --grid strategy.name=fedavg,fedprox --seeds 5",
        "Run a scenario under every combination of settings, over several seeds, and compare them. The same command again goes on where it stopped.",
    )
    parser.add_argument("scenario", help=SCENARIO)
    parser.add_argument(
        "--grid", action="append", default=[], metavar="KEY=A,B", help="a setting and its values, as often as needed"
    )
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds 1 to N (default: 1)")
    _add_settings(parser, without=("seed",))
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the sweep (default: runs/sweep-SCENARIO)")


def _add_settings(parser: argparse.ArgumentParser, without: tuple[str, ...] = ()) -> None:
    for option, (_, kind, metavar, meaning) in SHORT.items():
        if option not in without:
            parser.add_argument(f"--{option}", type=kind, metavar=metavar, help=meaning)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any setting, as often as needed; see docs/settings.md",
    )


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings given on the command line, as nested tables; the short options first, then ``--set``."""
    short = [
        f"{key}={json.dumps(getattr(args, option))}"
        for option, (key, *_) in SHORT.items()
        if getattr(args, option, None) is not None
    ]
    return merge(assign(short), assign(args.set))


def simulate(args: argparse.Namespace) -> int:
    """Run ``fedward simulate``."""
    _start_flower()
    scenario, resumed = _opened(args)
    from common.tasks import task_of
    from server import models, records
    from simulations import run
    from simulations.live import Live

    folder = resumed or records.new_folder(args.out, task_of(scenario.run.task).name)
    again = shlex.join(["fedward", "simulate", str(folder / run.CONFIG)])
    command = again if resumed else shlex.join(["fedward", *sys.argv[1:]])
    with Live(quiet=args.json) as live:
        try:
            record = run.simulate(scenario, folder, command, live.begin(scenario))
        except KeyboardInterrupt:
            begun = (folder / run.CONFIG).exists()
            kept = f"what is finished is kept: go on with 'fedward simulate --resume {folder}'"
            raise FedwardError(f"stopped; {kept}" if begun else "stopped before anything was trained") from None
        except DataError as error:
            if not (folder / models.NAME).exists():
                raise
            raise DataError(f"{error}; then go on with 'fedward simulate --resume {folder}'") from None
        finally:
            with suppress(OSError):
                folder.rmdir()  # only where nothing was written into it
    if args.json:
        print(json.dumps(record, ensure_ascii=False))
    else:
        live.summarise(record, folder)
    return 0


def _start_flower() -> None:
    """Check Flower's version and forbid it to call home, before anything imports it."""
    from common import flower

    flower.check_version()
    flower.quiet()


def sweep(args: argparse.Namespace) -> int:
    """Run ``fedward sweep``."""
    _start_flower()
    from simulations import compare, compare_cli
    from simulations import scenario as scenarios
    from simulations.live import Live
    from simulations.sweep import sweep as run_all

    if args.seeds < 1:
        raise UsageError(f"--seeds {args.seeds}: expected 1 or more")
    base = merge(scenarios.find(args.scenario), settings_of(args))
    out = args.out or Path("runs") / f"sweep-{Path(args.scenario).stem}"
    command = shlex.join(["fedward", *sys.argv[1:]])
    with Live(quiet=args.json) as live:
        try:
            folders = run_all(base, args.grid, args.seeds, out, command, live.begin)
        except KeyboardInterrupt:
            raise FedwardError("stopped; what is finished is kept: the same command goes on with it") from None
    compare_cli.show(compare.compare(folders), as_json=args.json)
    return 0


def _opened(args: argparse.Namespace) -> tuple["Scenario", Path | None]:
    from simulations import scenario as scenarios

    if args.resume:
        from simulations import run

        if args.scenario or settings_of(args):
            raise UsageError("--resume goes on with the run as it is; give no scenario and no settings beside it")
        scenario = run.reopen(args.resume)
        if run.is_finished(args.resume):
            raise UsageError(f"{args.resume}: this run is finished; its report is {args.resume / 'report.html'}")
        return scenario, args.resume
    if not args.scenario:
        raise UsageError(
            f"which scenario? Known: {', '.join(scenarios.names())}; or the path of a scenario file (.toml)"
        )
    return scenarios.read(scenarios.find(args.scenario), settings_of(args)), None
