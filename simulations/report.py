"""The report of a run: one page that opens without a network, a picture, a model card and a privacy statement.

All are made from ``run.json`` and ``metrics.csv`` in the run's folder, so they can be made again at any time.
"""

import csv
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from common.errors import DataError
from server import models
from simulations import cards, pictures
from simulations.cards import APPROACHES, Record

SCHEMA = 1
PAGE = "report.html"
FORESTS = ("auroc", "accuracy", "macro_f1")
MOST_ROWS = 200
MOST_NAMES = 8
PARTS = ("train", "validation", "test")


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
    DataError
        When the folder holds no record of a run, or one of another version.
    """
    record = load(folder)
    curves = read_curves(folder / "metrics.csv", record)
    pictures.save_picture(record, curves, folder / "picture.png")
    models.write(folder / "model-card.md", cards.model_card(record).encode())
    models.write(folder / "privacy.md", cards.privacy_statement(record).encode())
    models.write(folder / PAGE, page(record, curves).encode())


def load(folder: Path) -> Record:
    """Return the record of the run in a folder.

    Raises
    ------
    DataError
        When there is none, or one of another version.
    """
    path = folder / "run.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: expected the record of a run, got {error}; name the folder of a finished run"
        ) from None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        found = record.get("schema") if isinstance(record, dict) else None
        raise DataError(
            f"{path}: expected a run record of version {SCHEMA}, got {found}; read it with the Fedward that wrote it"
        )
    return record


def read_curves(path: Path, record: Record) -> pictures.Curves:
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


def page(record: Record, curves: pictures.Curves) -> str:
    """Return the report as one HTML page; every text in it is escaped, whoever wrote it."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((resources.files("simulations") / "report.html").read_text(encoding="utf-8"))
    return template.render(
        record=record,
        lead=cards.headline(record),
        headline=cards.metric_name(record["headline"]),
        caveat=cards.CAVEAT,
        synthetic=cards.SYNTHETIC,
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
        (cards.size(record["bytes"]["down"] + record["bytes"]["up"]), "exchanged"),
        (cards.seconds(record["seconds"]["total"]), "in all"),
    ]


def pooled_table(record: Record) -> Table:
    """Return every metric over all test patients."""
    kinds = cards.approaches(record)
    rows = [
        [cards.metric_name(metric), *(cards.interval(cards.estimate(record, kind, metric)) for kind in kinds)]
        for metric in cards.metrics(record)
    ]
    return Table(["", *(APPROACHES[kind] for kind in kinds)], rows)


def difference_table(record: Record) -> Table:
    """Return the paired differences of every metric over all test patients."""
    kinds = _compared(record)
    rows = [
        [
            cards.metric_name(metric),
            *(cards.interval(cards.difference(record, kind, metric), signed=True) for kind in kinds),
        ]
        for metric in cards.metrics(record)
        if any(cards.defined(cards.difference(record, kind, metric)) for kind in kinds)
    ]
    return Table(["", *(f"minus {APPROACHES[kind]}" for kind in kinds)], rows)


def hospital_table(record: Record) -> Table:
    """Return the headline metric at every hospital, and its differences where they are defined."""
    kinds, metric, compared = cards.approaches(record), record["headline"], cards.compared_metric(record)
    rows = [
        [
            item["name"],
            cards.count(record, cards.rows(item, "test")),
            *(cards.interval(cards.estimate(record, kind, metric, item["name"])) for kind in kinds),
            *(
                cards.interval(cards.difference(record, kind, compared, item["name"]), signed=True)
                for kind in _compared(record)
            ),
        ]
        for item in record["hospitals"][:MOST_ROWS]
    ]
    note = "" if compared == metric else f" in {cards.in_text(compared)}"
    head = ["hospital", "test patients", *(APPROACHES[kind] for kind in kinds)]
    head += [f"federated minus {APPROACHES[kind]}{note}" for kind in _compared(record)]
    return Table(head, rows, _more(len(record["hospitals"]), "hospitals"))


def split_table(record: Record) -> Table:
    """Return every hospital's patients by part and class."""
    rows = []
    for item in record["hospitals"][:MOST_ROWS]:
        counts = cards.classes(item)
        parts = [cards.count(record, cards.rows(item, part)) for part in PARTS]
        # A class that is too small to be shown must not follow from the counts around it.
        if any(cards.hidden(record, count) for count in counts):
            parts = ["–"] * len(PARTS)
        rows.append(
            [
                item["name"],
                *parts,
                *(cards.count(record, count) for count in counts),
                cards.row_total(record, counts, cards.rows(item)),
            ]
        )
    return Table(
        ["hospital", *PARTS, *_numbered(record["classes"]), "all"], rows, _more(len(record["hospitals"]), "hospitals")
    )


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
    rounds = record["rounds"][-MOST_ROWS:]
    head = [
        "round",
        "answered",
        "not used",
        "patients",
        "training loss",
        "update norm",
        cards.metric_name(record["headline"]),
        "sent",
        "received",
        "time",
    ]
    return Table(
        head, [_round_row(record, item) for item in rounds], _more(len(record["rounds"]), "earlier rounds"), words=3
    )


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
    return Table(["setting", "value"], [[name, str(value)] for name, value in cards.flatten(record["config"])], words=2)


def origin_table(record: Record) -> Table:
    """Return what made the run, so that it can be made again."""
    machine, spent = record["machine"], record["seconds"]
    rows = [
        ["started", record["started"]],
        ["seed", str(record["seed"])],
        ["engine", record["engine"]],
        ["rounds run", f"{len(record['rounds']):,}, {cards.ending(record)}"],
        ["weights, SHA-256", record["weights_sha256"]],
        ["layout, SHA-256", record["layout_sha256"]],
        ["machine", ", ".join(f"{value} {name}" if name == "cores" else str(value) for name, value in machine.items())],
        ["peak memory", cards.size(1e6 * record["peak_memory_mb"]) if record["peak_memory_mb"] else "–"],
        *([f"time, {name}", cards.seconds(value)] for name, value in spent.items() if value is not None),
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


def _drawings(record: Record, curves: pictures.Curves) -> Mapping[str, Any]:
    from markupsafe import Markup

    known = set(cards.metrics(record))
    forests = [metric for metric in dict.fromkeys((record["headline"], *FORESTS)) if metric in known]
    # Matplotlib escapes the texts of a drawing, so drawings are the only part that enters the page as they are.
    return {
        "forests": [(cards.metric_name(metric), Markup(pictures.forest_svg(record, metric))) for metric in forests],  # noqa: S704
        "differences": Markup(pictures.differences_svg(record)) if _compared(record) else "",  # noqa: S704
        "training": Markup(pictures.training_svg(record, curves)),  # noqa: S704
        "split": Markup(pictures.split_svg(record)),  # noqa: S704
        "roc": Markup(pictures.roc_svg(record)),  # noqa: S704
        "calibration": Markup(pictures.calibration_svg(record)),  # noqa: S704
        "limited": len(record["hospitals"]) > pictures.MOST,
        "most": pictures.MOST,
    }


def _round_row(record: Record, item: Mapping[str, Any]) -> list[str]:
    value = item["metrics"].get(record["headline"])
    return [
        str(item["round"]),
        _answered(item),
        _names([f"{entry['hospital']} ({entry['reason']})" for entry in item["dropped"]]) or "–",
        cards.total(record, item["examples"]),
        _optional(item["train_loss"]),
        _optional(item["update_norm"]),
        _optional(value),
        cards.size(item["bytes_down"]),
        cards.size(item["bytes_up"]),
        cards.seconds(item["seconds"]),
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
    if all(pictures.drawable(name) for name in names):
        return list(names)
    return [f"{number} {name}" for number, name in enumerate(names, 1)]


def _compared(record: Record) -> list[str]:
    return [kind for kind in ("local", "central") if (record.get("differences") or {}).get(kind)]


def _more(amount: int, what: str) -> str:
    return f"{amount - MOST_ROWS:,} more {what}: see run.json." if amount > MOST_ROWS else ""


def _optional(value: float | None) -> str:
    return cards.number(math.nan if value is None else value)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
