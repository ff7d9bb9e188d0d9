"""What a study of privacy leaves: one figure, a table for LaTeX, and a page in plain words with the verdict on a release."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.intervals import Estimate
from server import models
from simulations import paper, words
from simulations.attacks import ATTACKS
from simulations.attacks.attack import Pair
from simulations.attacks.matching import WHITE
from simulations.compare import latex_row
from simulations.privacy_study import (
    ARMS,
    CENTRAL,
    ENOUGH,
    HOSPITAL,
    LIMITS,
    MASKED,
    NONE,
    SHARED,
    UTILITY,
    Line,
    Verdict,
)

FIGURE, CSV, TABLE, PAGE, PICTURES = "privacy.png", "privacy.csv", "privacy.tex", "privacy.md", "inversion-"
COLOURS = {HOSPITAL: "#0072b2", SHARED: "#d55e00", NONE: "#808790", MASKED: "#009e73", CENTRAL: "#cc79a7"}
MARKERS = {HOSPITAL: "o", SHARED: "s", NONE: "D", MASKED: "^", CENTRAL: "v"}


# --- the table ----------------------------------------------------------------------------------------------------------


def chosen(lines: Sequence[Line]) -> list[tuple[str, str, str]]:
    """Return the quantities that have a column in short tables: utility, membership at 1 % and its AUC, inversion of single records, and the measured epsilon."""
    wanted = ("loss, final model", "loss, single update", "LiRA, final model", "1 record a step")
    keys = dict.fromkeys((line.attack, line.view, line.measure) for line in lines)
    return [
        key
        for key in keys
        if key[0] in (UTILITY, "canaries") or (key[1] in wanted and not key[2].startswith("TPR at 0.1"))
        if key[0] != "canaries"
    ] + [("canaries", "", "lower bound of epsilon")] * any(key[0] == "canaries" for key in keys)


def table(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows, one row a way to protect and an epsilon."""
    keys = chosen(lines)
    found = {(line.arm, line.epsilon, *_key(line)): line.estimate for line in lines}
    rows = [
        [
            ARMS[arm],
            "∞" if math.isinf(epsilon) else f"{epsilon:g}",
            *(_cell(found.get((arm, epsilon, *key)), 1 if key[0] == "inversion" else 3) for key in keys),
        ]
        for arm, epsilon in dict.fromkeys((line.arm, line.epsilon) for line in lines)
    ]
    return ["protection", "epsilon", *(_head(key) for key in keys)], rows


def _key(line: Line) -> tuple[str, str, str]:
    return (line.attack, "" if line.attack == "canaries" else line.view, line.measure)


def _head(key: tuple[str, str, str]) -> str:
    attack, view, measure = key
    if attack == UTILITY:
        return f"{words.metric_name(measure)}, {view}"
    return f"{measure}{f', {view}' if view else ''}"


def _cell(estimate: Estimate | None, digits: int) -> str:
    if estimate is None or math.isnan(estimate.value):
        return words.DASH
    return f"≥ {words.number(estimate.value, 2)}" if _is_bound(estimate) else words.interval(estimate, digits)


def _is_bound(estimate: Estimate) -> bool:
    return estimate.low == estimate.value and math.isnan(estimate.high)


def as_latex(lines: Sequence[Line], title: str) -> str:
    r"""Return the short table for LaTeX; it needs ``\usepackage{booktabs}``."""
    heads, rows = table(lines)
    body = [[cell.replace("∞", "inf").replace("≥", "at least") for cell in row] for row in rows]
    return "\n".join(
        [
            f"% {title}: mean over seeds with 95 % intervals",
            rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
            r"\toprule",
            latex_row(heads),
            r"\midrule",
            *(latex_row(row) for row in body),
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


# --- the figure ---------------------------------------------------------------------------------------------------------


def save_figure(lines: Sequence[Line], path: Path, *, synthetic: bool) -> None:
    """Draw utility, membership inference, inversion and measured epsilon against the epsilon that is claimed, 180 mm wide at 300 dpi."""
    with paper.style():
        figure = paper.sheet(180, 118)
        panels = _panels(lines)
        handles: dict[str, Any] = {}
        for place, (title, key, baseline) in enumerate(panels):
            axes = paper.place(figure, 15 + 60 * (place % 3), 66 - 53 * (place // 3), 43, 38)
            handles |= _draw(axes, [line for line in lines if _key(line) == key], baseline, title)
            paper.write(figure, "abcdef"[place], 4 + 60 * (place % 3), 110 - 53 * (place // 3), fontsize=9)
        if handles:
            figure.legend(handles=list(handles.values()), loc="upper center", ncols=4, frameon=False)
        if synthetic:
            paper.write(figure, "SYNTHETIC DATA", 3, 3, color=paper.COLOURS["central"])
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=paper.DPI, metadata={"Software": None})
    models.write(path, content.getbuffer())


Panel = tuple[str, tuple[str, str, str], float | None]


def _panels(lines: Sequence[Line]) -> list[Panel]:
    """Return what is drawn: title, key, and where an attacker stands who knows nothing."""
    keys = dict.fromkeys(_key(line) for line in lines)
    metric = next(line.measure for line in lines if line.attack == UTILITY)
    blind = [line.estimate.value for line in lines if line.view.startswith("no update")]
    lira = "LiRA, final model" if ("membership", "LiRA, final model", "AUC") in keys else "loss, final model"
    panels: list[Panel] = [
        (f"{words.metric_name(metric)}, mean of hospitals", (UTILITY, "mean of hospitals", metric), None),
        (f"AUC, {lira}", ("membership", lira, "AUC"), 0.5),
        (f"TPR at 1 % FPR, {lira}", ("membership", lira, "TPR at 1 % FPR"), 0.01),
        ("AUC, loss, single update", ("membership", "loss, single update", "AUC"), 0.5),
        ("PSNR (dB), 1 record a step", ("inversion", "1 record a step", "PSNR (dB)"), blind[0] if blind else None),
        ("measured epsilon, at least", ("canaries", "", "lower bound of epsilon"), None),
    ]
    return [panel for panel in panels if panel[1] in keys]


def _draw(axes: Any, lines: Sequence[Line], baseline: float | None, title: str) -> dict[str, Any]:
    """Draw one quantity by epsilon; runs without noise stand at the right end."""
    finite = sorted({line.epsilon for line in lines if math.isfinite(line.epsilon)})
    places = {epsilon: place for place, epsilon in enumerate([*finite, math.inf])}
    handles = {}
    for arm in dict.fromkeys(line.arm for line in lines):
        own = sorted((line for line in lines if line.arm == arm), key=lambda line: line.epsilon)
        shift = 0.07 if arm in (MASKED, SHARED) else -0.07
        x = [places[line.epsilon] + shift for line in own]
        errors = [[max(_reach(line.estimate, side), 0.0) for line in own] for side in (-1, 1)]
        handles[arm] = axes.errorbar(
            x,
            [line.estimate.value for line in own],
            errors,
            color=COLOURS[arm],
            marker=MARKERS[arm],
            markersize=3,
            linewidth=0.8,
            elinewidth=0.7,
            label=ARMS[arm],
        )
    if baseline is not None:
        axes.axhline(baseline, color=paper.MUTED, linewidth=0.6, linestyle=(0, (3, 2)))
    if lines and lines[0].attack == "canaries":
        axes.plot(range(len(finite)), finite, color=paper.MUTED, linewidth=0.6, linestyle=(0, (3, 2)))
        axes.set_yscale("symlog", linthresh=1)
        axes.set_yticks([0, *finite], ["0", *(f"{epsilon:g}" for epsilon in finite)])
        axes.set_ylim(bottom=0)
    if title.startswith("AUC"):
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, 0.45), max(high, 0.6))
    has_infinite = any(math.isinf(line.epsilon) for line in lines)
    axes.set_xticks(range(len(finite) + has_infinite), [*(f"{e:g}" for e in finite), *["none"] * has_infinite])
    axes.minorticks_off()
    axes.set_xlim(-0.4, len(finite) + has_infinite - 0.6)
    axes.set_xlabel("epsilon claimed")
    axes.set_title(title, loc="left")
    return handles


def _reach(estimate: Estimate, side: int) -> float:
    end = estimate.high if side > 0 else estimate.low
    return 0.0 if math.isnan(end) else side * (end - estimate.value)


def save_pictures(pairs: Sequence[Pair], path: Path, *, synthetic: bool) -> None:
    """Draw images above what an attacker made of their updates, 30 mm each."""
    with paper.style():
        figure = paper.sheet(20 + 34 * len(pairs), 78)
        for column, pair in enumerate(pairs):
            for row, image in enumerate(pair):
                axes = paper.place(figure, 18 + 34 * column, 42 - 36 * row, 30, 30)
                axes.imshow(np.squeeze(image), cmap="gray", vmin=0, vmax=WHITE)
                axes.set_axis_off()
        for row, name in enumerate(("original", "found")):
            paper.write(figure, name, 2, 56 - 36 * row)
        if synthetic:
            paper.write(figure, "SYNTHETIC DATA", 2, 2, color=paper.COLOURS["central"])
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=paper.DPI, metadata={"Software": None})
    models.write(path, content.getbuffer())


# --- the page -----------------------------------------------------------------------------------------------------------


def as_markdown(
    facts: Mapping[str, Any], lines: Sequence[Line], found: Sequence[Verdict], limits: Mapping[str, float]
) -> str:
    """Return ``privacy.md``; ``facts`` are what the study is about: title, command, unit, relation, delta, mechanism, seeds, patients, shadows, attacks, synthetic."""
    heads, rows = table(lines)
    parts = [
        f"# What privacy costs, and what attackers get: {facts['title']}"
        + ("\n\n**SYNTHETIC DATA**" if facts["synthetic"] else ""),
        _promise(facts),
        "## What was measured\n\n" + _table(heads, rows) + "\n\nValues are means over "
        f"{facts['seeds']} seed{'s' if facts['seeds'] != 1 else ''}; in brackets, 95 % intervals: of Student's t over seeds, and for true positive rates of Clopper and Pearson over all patients of all seeds, "
        f"taken as independent, which those of the same patients are not quite. All that was measured is in `{CSV}`, and drawn in `{FIGURE}`, where dashes are an attacker who knows nothing (and, for epsilon, the claim).",
        _attacks(facts),
        _bound(lines),
        _gaps(facts),
        gate(found, limits),
        f"Made by `{facts['command']}`.",
    ]
    return "\n\n".join(parts) + "\n"


def _promise(facts: Mapping[str, Any]) -> str:
    return (
        "## What is promised\n\n"
        f"- **Unit**: one {facts['unit']}. **Neighbours**: {facts['relation']}.\n"
        f"- **Epsilon and delta**: whatever leaves in a whole run is at most e^epsilon times as likely with the unit as without it, up to a chance of delta = {facts['delta']:g}. Epsilon stands in the table; without noise (∞) nothing is promised.\n"
        f"- **Mechanism**: {facts['mechanism']}.\n"
        f"- **Central noise**: {_central(facts)}\n"
        "- **Who is trusted**: with *noise of each hospital*, each hospital with its own patients, and nobody else. With *noise shared under secure aggregation*, also that no so many hospitals work with the coordinator that too few parts of the noise are left. "
        "With *secure aggregation, no noise*, the coordinator with the sums. With *no privacy*, the coordinator with every update.\n"
        "- **What composes**: all rounds of one run, which the epsilon covers together. Runs of other seeds and settings, also those of this study, would add up where they were trained on real patients; the ledger of a hospital holds all of them.\n"
        "- **A simulation** draws its noise from its seed: it says what real hospitals would get, and protects nobody itself."
    )


def _central(facts: Mapping[str, Any]) -> str:
    if facts["hospitals"] < ENOUGH:
        return f"not measured. It protects whole hospitals, and among {facts['hospitals']} of them its noise leaves nothing of a model; from {ENOUGH} hospitals on it is."
    return (
        "the coordinator bounds each hospital's update and noises their mean. Its epsilon is for one *hospital* added or removed, so it is not to be compared with the others' as a number; "
        "and the coordinator is trusted with every update."
    )


def _attacks(facts: Mapping[str, Any]) -> str:
    told = {
        "membership": "**Membership inference** tells patients that were trained on from test patients: by the loss under the final model; by how far a step along a single hospital's update, as it can be read off the wire, changes "
        f"that loss; and by RMIA and LiRA with {facts['shadows']} shadow federations of the same settings, whose patients are dealt anew. The attacker knows the records and the settings, and not who is in. An AUC of 0.5, and as many true as false positives, is guessing.",
        "inversion": "**Gradient inversion** reads records off the first dense layer of an update over one step; the guess nearest to the truth counts, which favours the attacker. 100 dB is exact to the last bits."
        + (
            f" Images beside what was found: {', '.join(f'`{name}`' for name in facts['pictures'])}."
            if facts["pictures"]
            else ""
        ),
        "canaries": "**Canaries** are records made to be found, trained on by the same code under the same settings; from how well they are told apart in one run follows a lower bound of epsilon, at 95 % confidence (Steinke et al. 2023).",
    }
    return "## The attacks\n\n" + "\n".join(f"- {told[name]}" for name in ATTACKS if name in facts["attacks"])


def _bound(lines: Sequence[Line]) -> str:
    found = [line for line in lines if line.attack == "canaries"]
    if not found:
        return "## The measured lower bound\n\nNone: no claim was audited."
    rows = [
        f"- {ARMS[line.arm]}, epsilon {line.epsilon:g} claimed: at least {line.estimate.value:.2f} measured"
        + (". **The claim is false**" if line.estimate.value > line.epsilon else "")
        for line in found
    ]
    return (
        "## The measured lower bound\n\n"
        + "\n".join(rows)
        + "\n\nThe truth lies between what is measured and what is claimed. A lower bound that stays below proves no claim; one above refutes it."
    )


def _gaps(facts: Mapping[str, Any]) -> str:
    return (
        "## What is not covered\n\n"
        "- Attacks stronger than these. What an attack does not find may still be there; only epsilon bounds what all of them can.\n"
        "- How many patients a hospital has, and metrics over test patients, which are told without noise.\n"
        "- The choice of settings by results on the same patients.\n"
        "- Hospitals that send false updates.\n"
        f"- How the parts were dealt: {facts['hospitals']} hospitals of {facts['patients']:,} training patients in all. Fewer patients are easier to find."
    )


def gate(found: Sequence[Verdict], limits: Mapping[str, float]) -> str:
    """Return the verdict on a release."""
    if not limits:
        return "## Release\n\n**Not releasable**: no limits were given, so there is nothing that a model was held to. Give them with `--limit`."
    held = "\n".join(f"- `{name}` {limit:g}: {LIMITS[name]}" for name, limit in limits.items())
    told = "\n".join(
        f"- {ARMS[each.arm]}, epsilon {each.epsilon:g}: "
        + ("**not releasable**: " + "; ".join(each.reasons) if each.reasons else "**releasable**")
        for each in found
    )
    return f"## Release\n\nHeld to these limits:\n\n{held}\n\nThe verdict on models of these settings:\n\n{told}"


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *("---:" for _ in head[1:])], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
