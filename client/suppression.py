"""Small cells: what of an answer's statistics may leave the hospital.

A cell is a count of patients; one of 1 to ``allow.smallest_cell - 1`` does not leave. What leaves is only ever summed over hospitals, so it is
altered such that sums keep their meaning:

- *Nothing or all.* A sum that can not be shown is 0, and so is every other that was computed from the same patients, its count first of all. A mean over
  hospitals is then the mean over those who show theirs; a count altered alone would shift it.
- *Totals stay.* Where patients are sorted into bins or cells whose total is large enough, each group of so many neighbours moves to the place of one of them. No
  patient is added or lost, and a bin holds nobody or enough (as in microaggregation, Domingo-Ferrer and Mateo-Sanz 2002). Which one is drawn evenly: then
  every patient counts as much as before on average. The middle one, tried first, pulls in the tails and made AUROCs look better.
- *No second draw.* It is drawn from a hash of the counts themselves, so the same statistics always leave in the same form, and asking again tells nothing more,
  as averaging over fresh noise would.

What it does not prevent: differences between answers for different models. Those are bounded by the rounds that the policy allows.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.policy import COMPARED, COUNT, TASK, Allow, SitePolicy, refusal, shown
from common.errors import PolicyRefused

Arrays = Mapping[str, NDArray[Any]]


def suppress(statistics: Arrays, policy: SitePolicy) -> dict[str, NDArray[Any]]:
    """Return what of an answer's statistics may leave: no cell too small, no metric that must stay; how, the module says.

    ``count/...`` and ``task/...`` keep their names and shapes. Of ``test/...``, ``validation/...`` and ``compare/...`` a group may be left out as a whole, as of
    a hospital that has no such patients. ``train/loss`` is 0 over 0 steps where metrics must stay.

    Raises
    ------
    PolicyRefused
        With the code ``smallest_cell`` where the training patients themselves are such a cell, ``statistics`` for a statistic that is not allowed or
        not known here.
    """
    from common.messages import group, prefixed

    kept: dict[str, NDArray[Any]] = {}
    for name in dict.fromkeys(key.partition("/")[0] for key in statistics):
        if name not in _SCREENS:
            raise _unknown(name)
        kept |= prefixed(name, _SCREENS[name](group(name, statistics), policy.allow))
    return kept


def _counts(parts: Arrays, allow: Allow) -> Arrays:
    """Screen the patients by class. An update is weighted by them, so those of training are shown as they are or not at all."""
    _require(COUNT, allow)
    if _small(parts.get("train", np.zeros(0)), allow.smallest_cell).any():
        objection = f"the run asks for the training patients by class, this hospital shows no class of fewer than {allow.smallest_cell}"
        raise refusal("smallest_cell", objection, "allow.smallest_cell")
    return {
        part: np.zeros_like(count) if _small(count, allow.smallest_cell).any() else count
        for part, count in parts.items()
    }


def _sums(parts: Arrays, allow: Allow) -> Arrays:
    """Screen the sums of a task's columns: a column known of too few patients is one that nobody knows."""
    _require(TASK, allow)
    count = next((parts[name] for name in ("count", "records") if name in parts), None)
    if count is None or not all(value.shape == count.shape or name == "hospitals" for name, value in parts.items()):
        raise _unknown(TASK)
    small = _small(count, allow.smallest_cell)
    kept = {name: np.where(small, 0, value) if value.shape == count.shape else value for name, value in parts.items()}
    if {"count", "sum", "squares"} <= set(kept):
        kept |= _rounded_codes(kept, allow.smallest_cell)
    return kept


def _rounded_codes(parts: Arrays, least: int) -> Arrays:
    """Round the patients in a column of noughts and ones to a multiple of the smallest cell, all of them: one left as it is would tell its neighbour."""
    count, total, squares = parts["count"], parts["sum"], parts["squares"]
    codes = (total == squares) & (total == np.rint(total)) & (total >= 0) & (total <= count)
    rounded = np.minimum(np.floor(total / least + 0.5) * least, count)
    return {"sum": np.where(codes, rounded, total), "squares": np.where(codes, rounded, squares)}


def _judged(parts: Arrays, allow: Allow) -> Arrays:
    """Screen how a model does on test patients; of a class with too few of them, no sum over all would hide them."""
    if not allow.metrics:
        return {}
    if set(parts) == {"rows", "sums", "open", "recommended"}:
        return _ranked(parts, allow.smallest_cell)
    if set(parts) != {"confusion", "histogram", "calibration", "losses"}:
        raise _unknown("test")
    least = allow.smallest_cell
    if _small(parts["confusion"].sum(axis=1), least).any():
        return {}
    return {
        "confusion": np.apply_along_axis(_gathered, -1, parts["confusion"], least),
        "histogram": np.apply_along_axis(_gathered, -1, parts["histogram"], least),
        "calibration": _merged(parts["calibration"], least),
        "losses": parts["losses"],
    }


def _ranked(parts: Arrays, least: int) -> Arrays:
    """Screen how well treatments were ranked: one that was open, or recommended, to too few patients is one that nobody was offered."""
    if _small(parts["rows"], least).any():
        return {}
    return {
        name: np.where(_small(value, least), 0.0, value) if name in ("open", "recommended") else value
        for name, value in parts.items()
    }


def _compared(parts: Arrays, allow: Allow) -> Arrays:
    """Screen joint tables: their cells have no order in which to gather them, so one too small withholds all."""
    tables = [value for name, value in parts.items() if name not in ("losses", "sums")]
    if not allow.metrics or COMPARED not in allow.statistics:
        return {}
    return {} if any(_small(table, allow.smallest_cell).any() for table in tables) else parts


def _losses(parts: Arrays, allow: Allow) -> Arrays:
    return parts if allow.metrics else {name: np.zeros_like(value) for name, value in parts.items()}


_SCREENS: dict[str, Callable[[Arrays, Allow], Arrays]] = {
    "count": _counts,
    "task": _sums,
    "test": _judged,
    "validation": _judged,
    "compare": _compared,
    "train": _losses,
}


def _small(count: NDArray[Any], least: int) -> NDArray[np.bool_]:
    return np.asarray((count > 0) & (count < least))


def _gathered(counts: NDArray[Any], least: int) -> NDArray[np.float64]:
    """Move each group of ``least`` or a few more neighbours to the place of one of them; there are 0 or at least so many in all.

    >>> _gathered(np.array([3.0, 0.0, 1.0, 0.0, 2.0, 6.0]), 6)
    array([6., 0., 0., 0., 0., 6.])
    """
    size = int(counts.sum())
    places = np.repeat(np.arange(len(counts)), counts.astype(np.int64))
    groups = size // least
    bounds = np.arange(groups + 1) * size // max(groups, 1)
    starts, sizes = bounds[:-1], np.diff(bounds)
    draws = np.frombuffer(hashlib.shake_256(counts.tobytes()).digest(4 * groups), np.uint32)
    chosen = starts + (draws.astype(np.uint64) * sizes.astype(np.uint64) >> np.uint64(32)).astype(np.int64)
    moved = np.bincount(places[chosen], sizes.astype(np.float64), len(counts))
    return moved.astype(np.float64, copy=False)


def _merged(calibration: NDArray[Any], least: int) -> NDArray[np.float64]:
    """Merge neighbouring bins of patients, hits and sums of scores until each holds enough, and gather hits and misses within each."""
    merged = np.zeros_like(calibration, np.float64)
    for columns in _runs(calibration[0], least):
        count, hits, scores = calibration[:, columns].sum(axis=1)
        hits = _gathered(np.array([count - hits, hits]), least)[1]
        merged[:, columns[int(np.argmax(calibration[0, columns]))]] = count, hits, scores
    return merged


def _runs(counts: NDArray[Any], least: int) -> list[list[int]]:
    """Divide the places where anyone is into runs of neighbours with enough of them; what is left at the end joins the last."""
    runs: list[list[int]] = []
    run: list[int] = []
    for place in np.flatnonzero(counts):
        run.append(int(place))
        if counts[run].sum() >= least:
            runs.append(run)
            run = []
    return [*runs[:-1], runs[-1] + run] if runs else []


def _require(part: str, allow: Allow) -> None:
    if part not in allow.statistics:
        objection = (
            f"the run asks for the statistics {part!r}, this hospital allows {', '.join(allow.statistics) or 'none'}"
        )
        raise refusal("statistics", objection, "allow.statistics")


def _unknown(part: str) -> PolicyRefused:
    objection = (
        f"the answer would hold statistics {shown(part)} of a form that this hospital cannot screen for small cells"
    )
    return refusal("statistics", objection, "")
