"""The report of a run: one page that opens without a network, a picture, a model card and a privacy statement.

All are made from ``run.json`` and ``metrics.csv`` in the run's folder, so they can be made again at any time.
"""

import csv
import json
import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from common.config import flatten
from common.errors import DataError, UsageError
from common.intervals import Estimate
from server import models
from server.records import METRICS, RUN
from simulations import cards, paper, pictures, words
from simulations.cards import APPROACHES, PARTS, Record
from simulations.panels import Curves

SCHEMA = 1
PAGE, PICTURE, CARD, PRIVACY = "report.html", "picture.png", "model-card.md", "privacy.md"
RUNS = Path("runs")
"""Where ``fedward simulate`` leaves its runs, unless told otherwise."""
FORESTS = 3
"""Metrics that have a forest plot, at most."""
MOST_ROWS = 200
MOST_NAMES = 8


@dataclass(frozen=True)
class Table:
    """A table of texts; the first ``words`` columns hold words, the others numbers. ``note`` says what was left out."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    words: int = 1


def write_report(folder: Path) -> None:
    """Write ``report.html``, ``picture.png``, ``model-card.md`` and ``privacy.md`` into a run's folder.

    Raises
    ------
    UsageError
        When the folder holds no record of a run.
    DataError
        When the record is damaged, or of another version.
    """
    record = load(folder)
    curves = read_curves(folder / METRICS, record)
    pictures.save_picture(record, curves, folder / PICTURE)
    models.write(folder / CARD, cards.model_card(record).encode())
    models.write(folder / PRIVACY, cards.privacy_statement(record).encode())
    models.write(folder / PAGE, page(record, curves).encode())


def load(folder: Path) -> Record:
    """Return the record of the run in a folder.

    Raises
    ------
    UsageError
        When the folder holds none.
    DataError
        When it is damaged, or of another version.
    """
    path = folder / RUN
    if not path.is_file():
        raise UsageError(f"{folder}: {_not_a_run(folder)}")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        # A decoder's message may be long, but its kind says enough.
        raise DataError(
            f"{path}: expected the record of a run, got a damaged file ({type(error).__name__}); run it again"
        ) from None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        found = record.get("schema") if isinstance(record, dict) else None
        raise DataError(
            f"{path}: expected a run record of version {SCHEMA}, got {found}; read it with the Fedward that wrote it"
        )
    if "data" not in record:
        raise UsageError(f"{path}: the record of a run over real hospitals; expected that of a simulation")
    return record


def _not_a_run(folder: Path) -> str:
    """Say what a run folder is, and which ones are near."""
    from simulations.run import CONFIG

    if folder.is_file():
        return f"expected the folder of a run, got a file; its folder is {folder.parent}"
    if (folder / CONFIG).is_file():
        return f"this run is not finished; go on with it: fedward simulate --resume {folder}"
    inside = _runs_in(folder)
    if inside:
        return f"holds runs and is none itself; name them, for example: {shlex.join(map(str, inside[:3]))}"
    near = _runs_in(RUNS)
    known = f"here: {_names([str(path) for path in near])}" if near else "there is none here yet"
    return (
        f"not a run folder ({RUN} is missing). 'fedward simulate' leaves one for every run under {RUNS}/, such as "
        f"{RUNS / 'heart-0001'}; {known}"
    )


def _runs_in(folder: Path) -> list[Path]:
    """Return the folders of finished runs, those of sweeps too."""
    return sorted(path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/{RUN}"))


def read_curves(path: Path, record: Record) -> Curves:
    """Return the headline metric at every hospital by rounds of training; empty without a file.

    Round 1's row judges the model that round 1 started from, which has no round of training behind it.
    """
    if not path.exists():
        return {}
    curves: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in cards.hospitals(record)}
    with path.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            if row["metric"] == record["headline"] and row["hospital"] in curves and _is_number(row["value"]):
                rounds, values = curves[row["hospital"]]
                rounds.append(float(row["round"]) - 1)
                values.append(float(row["value"]))
    known = {name: curve for name, curve in curves.items() if curve[0]}
    if record["stopped"] == "rounds":
        # The final model is in no round's row; after an early stop it may be an earlier one, which has no place at the end.
        for name, (rounds, values) in known.items():
            rounds.append(float(record["rounds"][-1]["round"]))
            values.append(cards.estimate(record, "federated", record["headline"], name).value)
    return known


def page(record: Record, curves: Curves) -> str:
    """Return the report as one HTML page; every text in it is escaped, whoever wrote it."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((resources.files("simulations") / "report.html").read_text(encoding="utf-8"))
    return template.render(
        record=record,
        lead=cards.headline(record),
        headline=words.metric_name(record["headline"]),
        caveat=cards.CAVEAT,
        synthetic=cards.SYNTHETIC,
        protection=cards.protection(record),
        thresholds=cards.thresholds(record),
        meanings=[(APPROACHES[name], cards.MEANINGS[name]) for name in cards.approaches(record)],
        facts=facts(record),
        drawings=_drawings(record, curves),
        tables=_tables(record),
        hashes=[
            (name, [found] if isinstance(found, str) else found) for name, found in record["data"]["sha256"].items()
        ],
    )


def facts(record: Record) -> list[tuple[str, str]]:
    """Return the few numbers that stand at the top of the page."""
    return [
        (f"{len(record['hospitals']):,}", "hospitals"),
        (cards.total(record, cards.patients(record)), "patients"),
        (f"{len(record['rounds']):,}", "rounds"),
        (f"{record['parameters']:,}", "parameters"),
        (words.size(record["bytes"]["down"] + record["bytes"]["up"]), "exchanged"),
        (words.seconds(record["seconds"]["total"]), "in all"),
    ]


def pooled_table(record: Record) -> Table:
    """Return every metric over all test patients."""
    kinds, metrics = cards.approaches(record), cards.metrics(record)
    rows = [
        [words.metric_name(metric), *(words.interval(cards.estimate(record, kind, metric)) for kind in kinds)]
        for metric in metrics
    ]
    unknown = [metric for metric in metrics if cards.gaps(record, metric, [None])]
    return Table(["", *(APPROACHES[kind] for kind in kinds)], rows, _dashes(record, unknown))


def difference_table(record: Record) -> Table:
    """Return the paired differences over all test patients, of every metric that has any."""
    kinds = cards.compared(record)
    found = {
        metric: [cards.difference(record, kind, metric) for kind in kinds]
        for metric in cards.metrics(record)
        if any(cards.defined(cards.difference(record, kind, metric)) for kind in kinds)
    }
    rows = [
        [words.metric_name(metric), *(words.interval(value, signed=True) for value in values)]
        for metric, values in found.items()
    ]
    unknown = [metric for metric, values in found.items() if not _all_defined(values)]
    return Table(["", *(f"minus {APPROACHES[kind]}" for kind in kinds)], rows, _dashes(record, unknown))


def hospital_table(record: Record) -> Table:
    """Return the headline metric at every hospital, and its differences where they are defined."""
    kinds, others = cards.approaches(record), cards.compared(record)
    metric, judged = record["headline"], cards.compared_metric(record)
    shown = record["hospitals"][:MOST_ROWS]
    values = [[cards.estimate(record, kind, metric, item["name"]) for kind in kinds] for item in shown]
    gaps = _differences(record, judged, [item["name"] for item in shown])
    rows = [
        [
            item["name"],
            cards.count(record, cards.rows(item, "test")),
            *(words.interval(value) for value in line),
            *(words.interval(gap, signed=True) for gap in differences),
        ]
        for item, line, differences in zip(shown, values, gaps, strict=True)
    ]
    means = [words.interval(cards.mean_of_hospitals(record, kind, metric)) for kind in kinds]
    rows.append(["mean of hospitals", "", *means, *("" for _ in others)])
    told = "" if judged == metric else f" in {words.in_text(judged)}"
    head = ["hospital", "test patients", *(APPROACHES[kind] for kind in kinds)]
    head += [f"federated minus {APPROACHES[kind]}{told}" for kind in others]
    unknown = [name for name, table in ((metric, values), (judged, gaps)) if not all(map(_all_defined, table))]
    notes = _dashes(record, list(dict.fromkeys(unknown))), _more(len(record["hospitals"]), "hospitals")
    return Table(head, rows, " ".join(filter(None, notes)))


def _all_defined(values: Sequence[Estimate]) -> bool:
    return all(map(cards.defined, values))


def _dashes(record: Record, metrics: Sequence[str]) -> str:
    """Say what a dash in a table means, for the metrics that have one."""
    return f"{words.DASH}: {'; '.join(cards.undefined(record, metric) for metric in metrics)}." if metrics else ""


def split_table(record: Record) -> Table:
    """Return every hospital's patients by part and class."""
    rows = [_split_row(record, item) for item in record["hospitals"][:MOST_ROWS]]
    head = ["hospital", *PARTS, *(_numbered(record["classes"]) if cards.sorted_out(record) else []), "all"]
    return Table(head, rows, _more(len(record["hospitals"]), "hospitals"))


def _split_row(record: Record, item: Mapping[str, Any]) -> list[str]:
    counts = cards.classes(item)
    parts = [cards.count(record, cards.rows(item, part)) for part in PARTS]
    # A class that is too small to be shown must not follow from the counts around it.
    if any(cards.hidden(record, count) for count in counts):
        parts = [words.DASH] * len(PARTS)
    classes = [cards.count(record, count) for count in counts]
    return [item["name"], *parts, *classes, cards.row_total(record, counts, cards.rows(item))]


def confusion_table(record: Record) -> Table | None:
    """Return the federated model's predictions against the truth, over all test patients."""
    confusion = ((record.get("curves") or {}).get("federated") or {}).get("confusion")
    if not confusion:
        return None
    rows = [
        [name, *(cards.count(record, int(count)) for count in line)]
        for name, line in zip(_numbered(record["classes"]), confusion, strict=True)
    ]
    return Table(["truth \\ predicted", *_numbered(record["classes"])], rows)


def rounds_table(record: Record) -> Table:
    """Return what every round asked, got, dropped and cost; of very many, the last ones."""
    rounds, metric = record["rounds"][-MOST_ROWS:], words.metric_name(record["headline"])
    head = [
        "round",
        "answered",
        "not used",
        "patients",
        "training loss",
        "update norm",
        metric,
        "sent",
        "received",
        "time",
    ]
    rows = [_round_row(record, item) for item in rounds]
    unknown = any(row[head.index(metric)] == words.DASH for row in rows)
    notes = (
        f"{words.DASH} for {metric}: not judged in that round, or not defined." if unknown else "",
        _more(len(record["rounds"]), "earlier rounds"),
    )
    return Table(head, rows, " ".join(filter(None, notes)), words=3)


def drops_table(record: Record) -> Table | None:
    """Return how often each hospital did not answer, or was dropped and why; None when all was well."""
    reasons: Counter[tuple[str, str]] = Counter()
    for item in record["rounds"]:
        reasons.update((entry["hospital"], f"{entry['reason']}: {entry['message']}") for entry in item["dropped"])
        reasons.update((name, "no answer") for name in _silent(item))
    rows = [[name, reason, f"{times:,}"] for (name, reason), times in reasons.most_common(MOST_ROWS)]
    return Table(["hospital", "reason", "rounds"], rows, _more(len(reasons), "reasons"), words=2) if rows else None


def settings_table(record: Record) -> Table:
    """Return every setting of the run."""
    return Table(
        ["setting", "value"], [[name, str(value)] for name, value in flatten(record["config"]).items()], words=2
    )


def origin_table(record: Record) -> Table:
    """Return what made the run, so that it can be made again."""
    machine, spent, after = record["machine"], record["seconds"], record["continued_after"]
    rows = [
        ["started", record["started"] + (f", after round {after} of a run begun before" if after else "")],
        ["seed", str(record["seed"])],
        ["engine", record["engine"]],
        ["rounds run", f"{len(record['rounds']):,}, {cards.ending(record)}"],
        ["weights, SHA-256", record["weights_sha256"]],
        ["layout, SHA-256", record["layout_sha256"]],
        ["machine", ", ".join(f"{value} {name}" if name == "cores" else str(value) for name, value in machine.items())],
        [
            "peak memory of this process",
            words.size(1e6 * record["peak_memory_mb"]) if record["peak_memory_mb"] else words.DASH,
        ],
        *([f"time, {name}", words.seconds(value)] for name, value in spent.items() if value is not None),
        ["bytes to hospitals", f"{record['bytes']['down']:,}"],
        ["bytes from hospitals", f"{record['bytes']['up']:,}"],
        *([name, str(version)] for name, version in record["versions"].items()),
    ]
    return Table(["", ""], rows, words=2)


def _tables(record: Record) -> Mapping[str, Table | None]:
    return {
        "pooled": pooled_table(record),
        "differences": difference_table(record),
        "hospitals": hospital_table(record),
        "split": split_table(record),
        "confusion": confusion_table(record),
        "rounds": rounds_table(record),
        "drops": drops_table(record),
        "settings": settings_table(record),
        "origin": origin_table(record),
    }


def _drawings(record: Record, curves: Curves) -> Mapping[str, Any]:
    from markupsafe import Markup

    # Matplotlib escapes the texts of a drawing, so drawings are the only part that enters the page as they are.
    drawn, known, judged = paper.drawn_hospitals(record), cards.metrics(record), cards.compared_metric(record)
    forests = [
        (
            words.metric_name(metric),
            Markup(pictures.forest_svg(record, metric)),  # noqa: S704
            _missing(record, "mark", metric, cards.gaps(record, metric, drawn)),
        )
        for metric in list(dict.fromkeys((record["headline"], *record["shown"])))[:FORESTS]
        if metric in known
    ]
    unpaired = not all(_all_defined(line) for line in _differences(record, judged, drawn))
    return {
        "forests": forests,
        "differences": Markup(pictures.differences_svg(record)) if cards.compared(record) else "",  # noqa: S704
        "no_difference": _missing(record, "mark", judged, unpaired),
        "training": Markup(pictures.training_svg(record, curves)),  # noqa: S704
        "no_line": _missing(record, "line", record["headline"], bool(curves) and not {*drawn} <= {*curves}),
        "split": Markup(pictures.split_svg(record)),  # noqa: S704
        "roc": Markup(pictures.roc_svg(record)),  # noqa: S704
        "calibration": Markup(pictures.calibration_svg(record)),  # noqa: S704
        "limited": len(record["hospitals"]) > paper.MOST,
        "most": paper.MOST,
    }


def _missing(record: Record, what: str, metric: str, gaps: bool) -> str:
    return f" No {what}: {cards.undefined(record, metric)}." if gaps else ""


def _differences(record: Record, metric: str, names: Sequence[str]) -> list[list[Estimate]]:
    """Return the paired differences of a metric: a line each hospital, a column each way of training that is compared."""
    others = cards.compared(record)
    return [[cards.difference(record, other, metric, name) for other in others] for name in names]


def _round_row(record: Record, item: Mapping[str, Any]) -> list[str]:
    value = item["metrics"].get(record["headline"])
    return [
        str(item["round"]),
        _answered(item),
        _names([f"{entry['hospital']} ({entry['reason']})" for entry in item["dropped"]]) or words.DASH,
        cards.total(record, item["examples"]),
        words.number(item["train_loss"]),
        words.number(item["update_norm"]),
        words.number(value),
        words.size(item["bytes_down"]),
        words.size(item["bytes_up"]),
        words.seconds(item["seconds"]),
    ]


def _answered(item: Mapping[str, Any]) -> str:
    asked, silent = len(item["asked"]), _silent(item)
    if not silent:
        return f"all {asked:,}"
    return f"{len(item['answered']):,} of {asked:,}; silent: {_names(silent)}"


def _silent(item: Mapping[str, Any]) -> list[str]:
    heard = {*item["answered"], *(entry["hospital"] for entry in item["dropped"])}
    return [name for name in item["asked"] if name not in heard]


def _names(names: Sequence[str]) -> str:
    rest = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {rest:,} more" if rest > 0 else "")


def _numbered(names: Sequence[str]) -> list[str]:
    """Return the classes' names, with the numbers that stand for them in a picture where no font has their letters."""
    if all(paper.drawable(name) for name in names):
        return list(names)
    return [f"{number} {name}" for number, name in enumerate(names, 1)]


def _more(amount: int, what: str) -> str:
    return f"{amount - MOST_ROWS:,} more {what}: see run.json." if amount > MOST_ROWS else ""


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
