"""``fedward simulate``: run a scenario, and show it running."""

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.config import assign, merge
from common.errors import FedwardError, UsageError

if TYPE_CHECKING:
    from server.records import RoundRecord
    from simulations.scenario import Scenario

EXAMPLE = "example: fedward simulate heart --rounds 10 --set strategy.name=fedprox --set strategy.mu=0.1"
# Options that are short for a --set, with the setting they set.
SHORT = {
    "hospitals": ("simulation.hospitals", int, "N", "count of virtual hospitals"),
    "partition": ("simulation.partition", str, "KIND[:X]", "how patients are dealt: natural, iid, dirichlet:0.3, quantity:1, pathological:2, feature:0.1"),
    "rounds": ("rounds", int, "N", "rounds of training"),
    "seed": ("seed", int, "N", "everything random follows from it"),
    "engine": ("simulation.engine", str, "E", "local or ray"),
}


def add_parsers(subparsers: Any) -> None:
    """Add ``simulate``."""
    parser = subparsers.add_parser(
        "simulate",
        help="train over virtual hospitals on this computer",
        description="Train a shared model over virtual hospitals, beside local-only and centralised training; leaves a run folder with a report.",
        epilog=EXAMPLE,
    )
    parser.add_argument("scenario", nargs="?", help="a task or scenario by name, or the path of a scenario file (.toml)")
    for option, (_, kind, metavar, meaning) in SHORT.items():
        parser.add_argument(f"--{option}", type=kind, metavar=metavar, help=meaning)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting, as often as needed; see docs/settings.md")
    parser.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="where run folders are made (default: runs)")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with the run of this folder")
    parser.add_argument("--json", action="store_true", help="print the record as JSON instead of tables")
    parser.set_defaults(run=simulate)


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings given on the command line, as nested tables; the short options first, then ``--set``."""
    short = [f"{key}={json.dumps(getattr(args, option))}" for option, (key, *_) in SHORT.items() if getattr(args, option) is not None]
    return merge(assign(short), assign(args.set))


def simulate(args: argparse.Namespace) -> int:
    """Run ``fedward simulate``."""
    scenario, folder = _opened(args)
    command = shlex.join(["fedward", *sys.argv[1:]])
    from simulations.live import Live

    with Live(scenario, quiet=args.json) as live:
        try:
            from simulations import run

            folder = folder or run.new_folder(args.out, scenario.run.task.name)
            record = run.simulate(scenario, folder, command, live.watcher)
        except KeyboardInterrupt:
            raise FedwardError(f"stopped; what is finished is kept: go on with 'fedward simulate --resume {folder}'") from None
    if args.json:
        print(json.dumps(record, ensure_ascii=False))
    else:
        live.summarise(record, folder)
    return 0


def _opened(args: argparse.Namespace) -> tuple["Scenario", Path | None]:
    from simulations import scenario as scenarios

    if args.resume:
        from simulations import run

        if args.scenario or settings_of(args):
            raise UsageError("--resume goes on with the run as it is; give no scenario and no settings beside it")
        return run.reopen(args.resume), args.resume
    if not args.scenario:
        raise UsageError(f"which scenario? Known: {', '.join(scenarios.names())}; or the path of a scenario file (.toml)")
    return scenarios.read(scenarios.find(args.scenario), settings_of(args)), None
