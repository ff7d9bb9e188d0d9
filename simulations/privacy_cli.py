"""``fedward privacy``: epsilon against utility against attack, from one command; and the gate that a release has to pass."""

import argparse
import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import command
from common.config import assign, merge
from common.errors import FedwardError, UsageError, nearest

if TYPE_CHECKING:
    from simulations.attacks.attack import Pair
    from simulations.privacy_study import Cell, Line, Verdict

EXAMPLE = "privacy heart --epsilon 1,3,inf --seeds 5 --limit epsilon=3 --limit tpr=0.05"
REFUSED = 3
"""Exit code where limits were given and no model is inside them."""

FEWEST_SHADOWS = 8


def add_parsers(subparsers: Any) -> None:
    """Add the command."""
    parser = command.add(
        subparsers,
        run,
        "fedward",
        "measure what privacy costs and what attackers get",
        EXAMPLE,
        "Train a scenario without privacy and under several epsilons, with noise of each hospital, with noise shared under secure aggregation and, among many hospitals, with central noise, and attack every run; "
        "leaves a figure, privacy.csv, a table for LaTeX and privacy.md. The same command again goes on where it stopped. Exit code 3: nothing is inside the limits.",
    )
    parser.add_argument(
        "scenario", metavar="TASK", help="a task or scenario by name, or the path of a scenario file (.toml)"
    )
    parser.add_argument(
        "--epsilon", default="0.5,1,3,10,inf", metavar="A,B", help="epsilons; inf for none (default: 0.5,1,3,10,inf)"
    )
    parser.add_argument(
        "--audit",
        default="membership,inversion,canaries",
        metavar="A,B",
        help="attacks (default: membership,inversion,canaries)",
    )
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds 1 to N (default: 1)")
    parser.add_argument(
        "--shadows",
        type=int,
        default=16,
        metavar="N",
        help="shadow federations a run for membership; 0 for none (default: 16)",
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting, for all runs")
    parser.add_argument(
        "--private", action="append", default=[], metavar="KEY=VALUE", help="any setting, for the runs with noise alone"
    )
    parser.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="NAME=X",
        help="what a release is held to: epsilon, bound, tpr, auc, psnr (at most), utility (at least)",
    )
    parser.add_argument(
        "--release",
        type=Path,
        metavar="RUN",
        help="folder of a finished run with the settings of one of the study's: its model is marked releasable, or why not",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the study (default: runs/privacy-TASK)")


def run(args: argparse.Namespace) -> int:
    """Run ``fedward privacy``."""
    from common import flower

    flower.check_version()
    flower.quiet()
    from simulations import privacy_report as report
    from simulations import privacy_study, release
    from simulations import scenario as scenarios
    from simulations.datasets import dataset_of

    epsilons, audits, limits = _epsilons(args.epsilon), _audits(args.audit), _limits(args.limit)
    if args.seeds < 1:
        raise UsageError(f"--seeds {args.seeds}: expected 1 or more")
    if args.shadows and args.shadows < FEWEST_SHADOWS:
        raise UsageError(
            f"--shadows {args.shadows}: expected 0, or {FEWEST_SHADOWS} or more: with fewer, too many patients are in all of them or in none"
        )
    (base, private), given = privacy_study.settings_of(scenarios.find(args.scenario)), assign(args.set)
    private = merge(merge(private, given), assign(args.private))
    cells = privacy_study.planned(merge(base, given), private, epsilons, args.seeds)
    released = release.cell_of(args.release, cells, limits) if args.release else None
    out = args.out or Path("runs") / f"privacy-{Path(args.scenario).stem}"

    def show(cell: "Cell", pairs: "Sequence[Pair]") -> None:
        synthetic = dataset_of(cell.scenario.simulation.dataset).synthetic
        report.save_pictures(pairs, out / f"{report.PICTURES}{cell.name}.png", synthetic=synthetic)

    try:
        found = privacy_study.study(cells, audits, args.shadows, out, _tell, show)
    except KeyboardInterrupt:
        raise FedwardError("stopped; what is finished is kept: the same command goes on with it") from None
    lines = privacy_study.lines_of(found, cells[-1].scenario.run.privacy.delta)
    verdicts = privacy_study.verdicts(lines, limits)
    facts = _facts(args, cells, found, audits) | {
        "pictures": sorted(path.name for path in out.glob(f"{report.PICTURES}*.png"))
    }
    _leave(out, facts, lines, verdicts, limits)
    _show(args, out, facts, lines, verdicts, limits)
    if released:
        return REFUSED if release.mark(args.release, released, verdicts, limits, facts["command"]).reasons else 0
    refused = limits and all(each.reasons for each in verdicts)
    return REFUSED if refused or any(each.refuted for each in verdicts) else 0


def _epsilons(text: str) -> list[float]:
    try:
        found = list(dict.fromkeys(float(word) for word in text.split(",")))
    except ValueError:
        found = []
    if not found or not all(each > 0 for each in found):
        raise UsageError(f"--epsilon {text}: expected numbers above 0, or inf, for example 1,3,inf")
    return sorted(found)


def _audits(text: str) -> list[str]:
    from simulations.attacks import ATTACKS

    names = list(dict.fromkeys(filter(None, text.split(","))))
    for name in names:
        if name not in ATTACKS:
            raise UsageError(f"--audit {name}: unknown attack; {nearest(name, ATTACKS)}")
    return names


def _limits(given: Sequence[str]) -> dict[str, float]:
    from simulations.privacy_study import LIMITS

    found = {}
    for text in given:
        name, _, value = text.partition("=")
        if name not in LIMITS:
            raise UsageError(f"--limit {text}: unknown limit; {nearest(name, LIMITS)}")
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = math.nan
        if math.isnan(found[name]):
            raise UsageError(f"--limit {text}: expected NAME=number, for example {name}=0.05")
    return found


def _tell(text: str) -> None:
    print(f"fedward: {text}", file=sys.stderr)


def _facts(
    args: argparse.Namespace, cells: "Sequence[Cell]", found: Sequence[Mapping[str, Any]], audits: Sequence[str]
) -> dict[str, Any]:
    from common.privacy.events import RELATION
    from common.tasks import task_of
    from simulations.privacy_study import HOSPITAL

    run = next((cell for cell in cells if cell.arm == HOSPITAL), cells[0]).scenario.run
    how = (
        "one step a round on all rows"
        if run.privacy.method == "full"
        else f"steps on Poisson samples of {run.training.batch_size} rows on average"
    )
    return {
        "title": task_of(run.task).title,
        "command": shlex.join(["fedward", *sys.argv[1:]]),
        "unit": run.privacy.unit,
        "relation": RELATION,
        "delta": run.privacy.delta,
        "mechanism": f"the Gaussian mechanism on sums of gradients clipped row by row to {run.privacy.clip_norm:g}, {how}, rounds: {run.rounds}; composed by privacy loss distributions",
        "seeds": args.seeds,
        "shadows": args.shadows,
        "attacks": list(audits),
        "synthetic": any(facts["synthetic"] for facts in found),
        "hospitals": found[0]["hospitals"],
        "patients": found[0]["patients"],
    }


def _leave(
    out: Path,
    facts: Mapping[str, Any],
    lines: "Sequence[Line]",
    verdicts: "Sequence[Verdict]",
    limits: Mapping[str, float],
) -> None:
    from simulations import privacy_report as report
    from simulations import privacy_study

    privacy_study.write(out, report.CSV, privacy_study.as_csv(lines, synthetic=facts["synthetic"]))
    privacy_study.write(out, report.TABLE, report.as_latex(lines, facts["title"]))
    privacy_study.write(out, report.PAGE, report.as_markdown(facts, lines, verdicts, limits))
    report.save_figure(lines, out / report.FIGURE, synthetic=facts["synthetic"])


def _show(
    args: argparse.Namespace,
    out: Path,
    facts: Mapping[str, Any],
    lines: "Sequence[Line]",
    verdicts: "Sequence[Verdict]",
    limits: Mapping[str, float],
) -> None:
    from dataclasses import asdict

    from server import records
    from simulations import privacy_report as report

    if args.json:
        releasable = [{**asdict(each), "releasable": bool(limits) and not each.reasons} for each in verdicts]
        whole = {**facts, "limits": limits, "verdicts": releasable, "lines": [asdict(line) for line in lines]}
        print(json.dumps(records.finite(whole), ensure_ascii=False, allow_nan=False))
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from simulations import words

    heads, rows = report.table(lines)
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for head in heads:
        shown.add_column(Text(head))
    for row in rows:
        shown.add_row(*map(Text, row))
    console = words.console()
    console.print(shown)
    for each in verdicts if limits else ():
        end = "not releasable: " + "; ".join(each.reasons) if each.reasons else "releasable"
        console.print(Text(f"{each.arm}, epsilon {each.epsilon:g}: {end}"), soft_wrap=True)
    console.print(Text(f"Written to {out}"), soft_wrap=True)
