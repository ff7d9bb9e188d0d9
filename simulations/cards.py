"""A run in words: how its record is read, what may be said of its counts, the model card and the privacy statement.

Every other page about a run reads the record through the functions here, so that the form of ``run.json`` is known in one place.
"""

import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from common.config import flatten
from common.intervals import UNDEFINED, Estimate, independent_average
from simulations import words

Record = Mapping[str, Any]
"""What ``run.json`` holds, version 1. Numbers that are not defined are None."""

APPROACHES = {"local": "local only", "federated": "federated", "central": "centralised"}
COMPARED = ("local", "central")
"""The approaches that the federated model is compared with, patient by patient."""
PARTS = ("train", "validation", "test")
MEANINGS = {
    "local": "every hospital trains alone and its model is judged on its own test patients",
    "federated": "one shared model, trained by the hospitals together; patients stay where they are",
    "central": "one model trained on all patients in one place, which a real federation could not do",
}
CHOICES = {"youden": "sensitivity + specificity (Youden's J)", "f1": "F1"}
"""What is largest at a threshold that was chosen by each rule."""
LOWER_IS_BETTER = frozenset({"loss", "log_loss", "brier", "calibration_error", "mae", "rmse"})
CARD_ROWS = 40
"""Hospitals that the model card names; all are in the record."""
SMALL = 5
"""Counts of patients under this are not shown, unless the data are public."""


# --- reading -------------------------------------------------------------------------------------------------------------


def approaches(record: Record) -> list[str]:
    """Return which of local, federated and central this run has, in that order."""
    return [name for name in APPROACHES if record["results"].get(name)]


def compared(record: Record) -> list[str]:
    """Return which of local and central have paired differences from the federated model."""
    return [other for other in COMPARED if (record.get("differences") or {}).get(other)]


def hospitals(record: Record) -> list[str]:
    """Return the hospitals' names, in the order of the record, which every table and drawing keeps."""
    return [hospital["name"] for hospital in record["hospitals"]]


def metrics(record: Record) -> list[str]:
    """Return the metrics of the pooled test patients, the headline first."""
    names = list(record["results"]["federated"]["pooled"])
    return sorted(names, key=lambda name: name != record["headline"])


def estimate(record: Record, approach: str, metric: str, hospital: str | None = None) -> Estimate:
    """Return a metric of one hospital, or of all test patients pooled."""
    return _lookup(record["results"].get(approach), metric, hospital)


def difference(record: Record, other: str, metric: str, hospital: str | None = None) -> Estimate:
    """Return the paired difference federated minus ``other`` on the same test patients."""
    return _lookup((record.get("differences") or {}).get(other), metric, hospital)


def mean_of_hospitals(record: Record, approach: str, metric: str) -> Estimate:
    """Return the plain mean over the hospitals where a metric is defined."""
    return independent_average([estimate(record, approach, metric, name) for name in hospitals(record)])


def compared_metric(record: Record) -> str:
    """Return the metric whose differences are told: the headline, or another where its difference is not defined."""
    wanted: tuple[str, ...] = (record["headline"], *record["shown"])
    told = (metric for metric in wanted if any(defined(difference(record, other, metric)) for other in COMPARED))
    return next(told, wanted[0])


def defined(value: Estimate) -> bool:
    """Whether there is a value at all."""
    return math.isfinite(value.value)


def bounded(value: Estimate) -> bool:
    """Whether both ends of the interval are known."""
    return math.isfinite(value.low) and math.isfinite(value.high)


def patients(record: Record, part: str | None = None) -> int:
    """Return the count of patients in ``train``, ``validation`` or ``test``, or in all three; not to be shown as it is."""
    return sum(rows(hospital, part) for hospital in record["hospitals"])


def rows(hospital: Mapping[str, Any], part: str | None = None) -> int:
    """Return the count of one hospital's patients in a part, or in all; not to be shown as it is."""
    return sum(hospital[name]["rows"] for name in ((part,) if part else PARTS))


def classes(hospital: Mapping[str, Any]) -> list[int]:
    """Return one hospital's patients by class, over all parts; not to be shown as they are."""
    parts = [hospital[name]["classes"] for name in PARTS]
    return [sum(column) for column in zip(*parts, strict=True)]


def sorted_out(record: Record) -> bool:
    """Whether hospitals told how many patients of each class they have."""
    return all(classes(hospital) for hospital in record["hospitals"])


def gaps(record: Record, metric: str, names: Sequence[str | None]) -> bool:
    """Whether a metric is not defined at one of these hospitals (None: all test patients pooled) for one of the approaches."""
    return any(not defined(estimate(record, kind, metric, name)) for kind in approaches(record) for name in names)


def is_secure(record: Record) -> bool:
    """Whether the coordinator learnt sums alone."""
    return bool(flatten(record["config"]).get("secure.aggregation"))


def undefined(record: Record, metric: str) -> str:
    """Say where a metric has no value in the record's tables and drawings."""
    alone = f"; and of the federated model only the hospitals' sum is known, no single hospital's {words.metric_name(metric)}"
    return words.undefined(metric) + (alone if is_secure(record) else "")


def hidden(record: Record, count: float) -> bool:
    """Whether a count of patients is too small to be shown."""
    return not record["data"]["public"] and count < SMALL


def _lookup(results: Mapping[str, Any] | None, metric: str, hospital: str | None) -> Estimate:
    if not results:
        return UNDEFINED
    table = results["pooled"] if hospital is None else results["hospitals"].get(hospital) or {}
    known = table.get(metric)
    return Estimate(*(math.nan if number is None else float(number) for number in known)) if known else UNDEFINED


# --- writing counts of patients ------------------------------------------------------------------------------------------


def count(record: Record, value: int) -> str:
    """Write a count of patients; small ones only of public data."""
    return f"<{SMALL}" if hidden(record, value) else f"{value:,}"


def total(record: Record, value: int) -> str:
    """Write a sum of counts: to the nearest ten when the data are not public, so that no small count follows by subtraction."""
    return f"{value:,}" if record["data"]["public"] else f"about {round(value, -1):,}"


def row_total(record: Record, counts: Sequence[int], value: int) -> str:
    """Write the total beside counts of which some may be hidden; a hidden one must not follow by subtraction."""
    if not any(hidden(record, item) for item in counts):
        return count(record, value)
    return f"≥ {sum(item for item in counts if not hidden(record, item)):,}"


# --- the result in words ------------------------------------------------------------------------------------------------


def headline(record: Record) -> str:
    """Say the result in one sentence, with its interval and the paired differences."""
    metric = record["headline"]
    result = estimate(record, "federated", metric)
    at = f"on the pooled test patients of {words.hospitals(len(record['hospitals']))}"
    if not defined(result):
        return f"The {words.in_text(metric)} of the federated model is not defined {at}."
    # A single interval is spelt out, so that the reader knows what the brackets hold from there on.
    low, high = words.number(result.low), words.number(result.high)
    sentence = f"The federated model reached {_article(metric)} {words.in_text(metric)} of {words.number(result.value)} (95 % interval {low} to {high}) {at}"
    judged = compared_metric(record)
    verdicts = [_verdict(record, other, judged) for other in COMPARED if defined(difference(record, other, judged))]
    measure = "" if judged == metric else f"in {words.in_text(judged)} "
    return f"{sentence}; {measure}it is {' and '.join(verdicts)}." if verdicts else f"{sentence}."


def _verdict(record: Record, other: str, metric: str) -> str:
    gap = difference(record, other, metric)
    name = {"local": "local-only training", "central": "centralised training"}[other]
    ends = (
        f"95 % interval {words.number(gap.low, signed=True)} to {words.number(gap.high, signed=True)}"
        if bounded(gap)
        else "interval not defined"
    )
    measured = f"difference {words.number(gap.value, signed=True)}, {ends}"
    if not bounded(gap) or gap.low <= 0 <= gap.high:
        return f"not shown to differ from {name} ({measured})"
    better = (gap.value > 0) != (metric in LOWER_IS_BETTER)
    return f"{'better' if better else 'worse'} than {name} ({measured})"


def thresholds(record: Record) -> str:
    """Say from which score on the second class is predicted and how that was chosen; nothing where the more probable class is predicted."""
    merit = CHOICES.get(flatten(record["config"]).get("evaluation.threshold", ""))
    if merit is None:
        return ""
    told = ", ".join(
        f"{_span(record['thresholds'][kind].values())} ({APPROACHES[kind]})" for kind in approaches(record)
    )
    return (
        f"Predicted is {record['classes'][1]!r} from a score of {told} on, where each model has the largest {merit} on its own validation patients, and one half where these lack a class. "
        "Test patients choose nothing; intervals do not cover the choice."
    )


def _span(found: Iterable[float | None]) -> str:
    values = [0.5 if value is None else value for value in found]
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} to {high}"


def _article(metric: str) -> str:
    return "an" if words.in_text(metric)[0].lower() in "aeiouf" else "a"


def ending(record: Record) -> str:
    """Say what ended the training, and which round's model is kept where that is not the last."""
    why = {"rounds": "all that were set", "patience": "stopped early"}[record["stopped"]]
    return why + (f", keeping the model after {record['trained']}" if record["trained"] < len(record["rounds"]) else "")


# --- pages ---------------------------------------------------------------------------------------------------------------


CAVEAT = (
    "Intervals are 95 % and cover the draw of the test patients; they do not cover the draw of the training patients or the random start of training: "
    "repeat the run with other seeds for that. Pooled over hospitals, local-only numbers also reward each model for knowing its own hospital's share of "
    "each class; compare hospital by hospital where these shares differ."
)
SYNTHETIC = "SYNTHETIC DATA: made by a generator, not measured on patients. The results say nothing about medicine."


def markdown(text: object) -> str:
    r"""Make any text safe inside Markdown, tables and HTML included.

    >>> markdown("<b> a|b")
    '&lt;b&gt; a\\|b'
    """
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", html.escape(str(text), quote=False).replace("\n", " "))


def model_card(record: Record) -> str:
    """Return ``model-card.md`` (sections after Mitchell et al. 2019, Model cards for model reporting, FAT* 2019)."""
    sections = (_card_head, _card_results, _card_data, _card_use, _card_details)
    return "\n\n".join(section(record) for section in sections) + _kept_at_hospitals(record) + "\n"


def privacy_statement(record: Record) -> str:
    """Return ``privacy.md``: what left each hospital, who is trusted, and what is not covered."""
    sections = (_privacy_head, _privacy_left, _privacy_trust, _privacy_gaps)
    return "\n\n".join(section(record) for section in sections) + "\n"


def _kept_at_hospitals(record: Record) -> str:
    parts = record["local_parts"]
    if not parts:
        return ""
    return (
        f"\n\nOf this model, {' and '.join(parts)} stay at each hospital, and nobody else has seen them. `model.keras` holds them as they were before "
        "training: a hospital puts its own in their place, and a hospital that took no part has to train them first."
    )


def _banner(record: Record) -> str:
    return f"\n\n> **{SYNTHETIC}**" if record["synthetic"] else ""


def _card_head(record: Record) -> str:
    return f"# {markdown(record['title'])}: model card\n\nRun `{record['name']}`, {record['started'][:10]}.{_banner(record)}\n\n{headline(record)} {CAVEAT}"


def _card_results(record: Record) -> str:
    headline, named = record["headline"], hospitals(record)[:CARD_ROWS]
    more = len(record["hospitals"]) - len(named)
    means = ", ".join(
        f"{APPROACHES[kind]} {words.interval(mean_of_hospitals(record, kind, headline))}" for kind in approaches(record)
    )
    return "\n\n".join(
        [
            "## Results\n\nPooled test patients.",
            _card_table(record, "metric", [(words.metric_name(metric), metric, None) for metric in metrics(record)]),
            *([markdown(thresholds(record))] if thresholds(record) else []),
            f"{words.metric_name(headline)} at each hospital.",
            _card_table(record, "hospital", [(markdown(name), headline, name) for name in named]),
            f"Mean of hospitals: {means}.",
            *([f"{words.hospitals(more)} more: see `run.json`."] if more else []),
        ]
    )


def _card_table(record: Record, corner: str, asked: Sequence[tuple[str, str, str | None]]) -> str:
    """Return a table of rows (label, metric, hospital), a column each approach; a line under it says what a dash means."""
    present = approaches(record)
    body = [
        [label, *(words.interval(estimate(record, kind, metric, name)) for kind in present)]
        for label, metric, name in asked
    ]
    unknown = dict.fromkeys(metric for _, metric, name in asked if gaps(record, metric, [name]))
    notes = [f"{words.DASH}: {undefined(record, metric)}." for metric in unknown]
    return "\n\n".join([_table([corner, *(APPROACHES[kind] for kind in present)], body), *notes])


def _card_data(record: Record) -> str:
    data = record["data"]
    parts = [f"{part} {total(record, patients(record, part))}" for part in PARTS]
    lines = [
        f"{markdown(data['title'])}; {total(record, data['rows'])} rows at {words.hospitals(len(record['hospitals']))} ({', '.join(parts)}).",
        f"- Origin: {markdown(data['origin'])}",
        f"- Licence: {markdown(data['licence'])}",
        f"- Citation: {markdown(data['citation'])}",
        f"- Classes: {', '.join(markdown(name) for name in record['classes']) or 'none'}",
        f"- Duplicates removed before splitting: {data['duplicates_removed']}",
    ]
    return "## Data\n\n" + lines[0] + "\n\n" + "\n".join(lines[1:])


def _card_use(record: Record) -> str:
    return (
        "## Use and limits\n\n"
        "- For research on federated learning. It is not a medical device and no one has tested it in care: do not decide about a patient with it.\n"
        f"- Judged only on patients of the {words.hospitals(len(record['hospitals']))} named here. Elsewhere, expect it to do worse until shown otherwise.\n"
        "- Not examined: fairness between groups of patients, drift over time, effect on decisions.\n"
        "- What the training lets others learn about patients: see `privacy.md`.\n"
        f"- {_release(record)}"
    )


def _release(record: Record) -> str:
    """Say whether the model may be released: what `simulations.release` marked it by."""
    release = record.get("release")
    if not release:
        return "**Not marked releasable**: no study of privacy was held to limits for it (`fedward privacy --release`)."
    held = ", ".join(f"{name} {limit:g}" for name, limit in release["limits"].items())
    if release["releasable"]:
        return f"**Releasable**: {release['protection']}, inside these limits: {held}. Shown by `{release['study']}`."
    return f"**Not releasable**: {'; '.join(release['reasons'])}. Held to these limits by `{release['study']}`: {held}."


def _card_details(record: Record) -> str:
    settings, versions = flatten(record["config"]), record["versions"]
    return (
        "## Details\n\n"
        f"- Model: `model.keras`, {record['parameters']:,} parameters; SHA-256 of the weights `{record['weights_sha256']}`\n"
        f"- Strategy: {markdown(settings.get('strategy.name', 'unknown'))}; rounds run: {len(record['rounds'])} ({ending(record)}); seed {record['seed']}{'; rare classes weigh more in the loss, as `class_weights` of `run.json` says' if record.get('class_weights') else ''}\n"
        f"- Made with {', '.join(f'{markdown(name)} {version}' for name, version in versions.items())}\n"
        f"- Inputs: as the task `{record['task']}` of Fedward {versions['fedward']} encodes them\n\n"
        f"To repeat it:\n\n```\n{record['command']}\n```"
    )


def _privacy_head(record: Record) -> str:
    return (
        f"# Privacy statement of run {markdown(record['name'])}{_banner(record)}\n\n{_privacy_claim(record)}\n\n"
        "The run was a simulation: the hospitals were virtual and ran on the researcher's own computers. This page says what would have crossed a hospital's "
        "border in a real federation with the same settings."
    )


def protection(record: Record) -> str:
    """Say in a sentence what protected the patients beside that their rows stayed where they were."""
    account, secure = record.get("privacy") or {}, is_secure(record)
    learnt = (
        "the coordinator learnt sums over the hospitals of a round, no single hospital's update, training loss or test figures"
        if secure
        else f"the coordinator saw the {'noised ' if account.get('noise_by') == 'each hospital' else ''}update of every single hospital"
    )
    if account:
        most = max((each["epsilon"] for each in account["spent"].values()), default=0.0)
        used = f"Training was differentially private, epsilon {most:.3g} at delta {account['delta']:g} for one {account['unit']}, {'with' if secure else 'without'} secure aggregation"
    elif secure:
        used = "In this run secure aggregation was used, and no differential privacy"
    else:
        used = "In this run no differential privacy and no secure aggregation was used"
    return f"{used}: {learnt}."


def _privacy_claim(record: Record) -> str:
    """Say what was done for privacy: secure sums or none; and of differential privacy unit, relation, epsilon, delta, mechanism and who drew the noise."""
    account = record.get("privacy") or {}
    if not account:
        secure = is_secure(record)
        only = "" if secure else ", and that is the only protection"
        return (
            f"**{protection(record)}** Patient rows stayed at the hospitals{only}. "
            f"Nothing bounds what {'the sums' if secure else 'the updates'} or the model tell about one patient."
        )
    settings = flatten(record["config"])
    steps = (
        "one step a round on all rows"
        if settings["privacy.method"] == "full"
        else "steps on Poisson samples of the rows"
    )
    how = {
        "each hospital": f"Gradients were clipped row by row and noised at each hospital ({steps}), before the update left. The coordinator is not trusted with them",
        "all hospitals together": f"Gradients were clipped row by row ({steps}), and each hospital added a part of the noise to its update before it was masked: the sum is private, one update alone is not, and nobody saw one",
        "the coordinator": "Updates were clipped, summed and noised by the coordinator, which saw them as they were and is trusted with them",
    }[account["noise_by"]]
    rounds = max((each["rounds"] for each in account["spent"].values()), default=0)
    return (
        f"**{protection(record)}** Neighbours: {account['relation']}; target: epsilon {account['target']:g}. {how}. "
        f"The noise is Gaussian, and composed over {rounds:,} rounds by privacy loss distributions. "
        "A simulation draws its noise from its seed, so that it can be repeated: these numbers say what real hospitals would get, and this run itself protects nobody.\n\n"
        "Covered: the updates of all rounds, the model, and the sums that prepare the data, where any are told. Not covered: how many patients each hospital trained on, which counts as known; "
        "the metrics, which are computed from test patients without noise; and the choice of settings, if it was made by looking at results on the same patients."
    )


def _privacy_left(record: Record) -> str:
    settings, answers = flatten(record["config"]), sum(len(item["answered"]) for item in record["rounds"])
    controls = (
        "- **Changes of its control variate**, as many numbers again in every round: its mean gradient.\n"
        if record["control_variates"]
        else ""
    )
    masked = (
        "Updates and what the models are judged by left under masks, with the count of patients trained on, and only their sum over the round's hospitals could be read. How many patients each hospital has, it told once before.\n\n"
        if is_secure(record)
        else ""
    )
    codec = settings.get("update.codec", "float32")
    written = "as whole numbers modulo 2^32, masked" if is_secure(record) else f"as {codec}"
    return (
        f"## What left each hospital\n\n{masked}"
        f"- **Update vectors**: in every round it took part in, how its training changed the shared model: {'up to ' * (codec == 'topk')}{record['parameters']:,} numbers, "
        f"written {written}. {answers:,} answers in {len(record['rounds']):,} rounds.\n"
        f"{controls}"
        f"{_privacy_sums(record, settings)}"
        f"{_privacy_judged(record)}\n\n"
        f"Bytes: {words.size(record['bytes']['up'])} from the hospitals, {words.size(record['bytes']['down'])} to them. No patient row, image or text left.\n\n"
        "The centralised comparator of this report needs all patients in one place. It exists only because this is a simulation."
    )


def _privacy_judged(record: Record) -> str:
    """Say what the metrics were computed from."""
    if "auroc" in record["results"]["federated"]["pooled"]:
        return (
            "- **Histograms of predicted scores** by class and counts of right and wrong predictions, for the metrics."
        )
    names = ", ".join(words.in_text(metric) for metric in record["shown"])
    return f"- **Sums over its test patients**, from which the metrics were computed ({names})."


def _privacy_sums(record: Record, settings: Mapping[str, Any]) -> str:
    if (record.get("privacy") or {}).get("unit") in ("record", "patient"):
        share = settings.get("privacy.statistics") or 0.0
        told = (
            f"{markdown(record['statistics'])}, noised, for {share:.0%} of epsilon"
            if share
            else "none; public ranges stood in"
        )
        return (
            "- **Counts**: how many patients it trained on; not how many of each class, of which equal shares are shown.\n"
            f"- **Sums for preparing the data**: {told}.\n"
        )
    told_loss = any(item["train_loss"] is not None for item in record["rounds"])
    return (
        "- **Counts**: how many patients it trained on, and how many of each class.\n"
        f"- **Sums for preparing the data**, once before round 1: {markdown(record['statistics'])}.\n"
        + ("- **Training loss** of every round, as a mean over its patients.\n" if told_loss else "")
    )


def _privacy_trust(record: Record) -> str:
    return (
        "## Who is trusted\n\n"
        f"- **The coordinator**{_coordinator_trust(record)}\n"
        f"- **The other hospitals** ({len(record['hospitals']):,} in all): each receives the shared model every round, and could compare two rounds.\n"
        f"- **Whoever gets the final model**: it may hold traces of single patients{', within epsilon' if record.get('privacy') else ''}.\n"
        "- **The network**, not at all, in a deployment with mutual TLS. This simulation had no network between hospitals."
    )


def _coordinator_trust(record: Record) -> str:
    noised = (record.get("privacy") or {}).get("unit") in ("record", "patient")
    if is_secure(record):
        known = (
            "each hospital's name and count of patients"
            if noised
            else "each hospital's name, counts by class and sums for preparing the data, which it sees as they are"
        )
        return f", with the sums of each round{', which are noised' if noised else ''}, and with {known}. Together with other hospitals it could take their parts out of a sum."
    if noised:
        return ": it sees every hospital's noised updates, and its metrics without noise."
    return ", fully: it sees every hospital's update and statistics as they are, and could try to rebuild patients from them."


def _privacy_gaps(record: Record) -> str:
    account = record.get("privacy") or {}
    attacks = (
        f"- Gradient inversion and membership inference: epsilon bounds what they can tell of one {account['unit']}, and does not exclude them.\n"
        if account
        else "- Gradient inversion: rebuilding a patient's record from an update. It is easiest with few patients a hospital and few local steps.\n"
        "- Membership inference: telling whether a patient was in the training data, from updates or from the final model.\n"
    )
    shown = (
        "Counts are shown as they are, because the data are public."
        if record["data"]["public"]
        else f"Counts under {SMALL} are shown as <{SMALL}."
    )
    return (
        f"## What is not covered\n\n{attacks}"
        "- Small hospitals: a metric or histogram over few patients can tell about one of them.\n"
        "- A hospital that sends false updates on purpose, beyond the checks of form and size.\n"
        f"- This report itself. {shown}\n\n"
        "No attack was run against this model, so this page makes no claim about how much an attacker would really get."
    )


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *("---:" for _ in head[1:])], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
