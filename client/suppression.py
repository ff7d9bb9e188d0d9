"""Small cells: what of an answer's statistics may leave the hospital.

A cell is a count of patients; one of 1 to ``allow.smallest_cell - 1`` does not leave. What leaves is only ever summed over hospitals, so it is
altered such that sums keep their meaning:

- *Nothing or all.* A sum that can not be shown is 0, and so is every other that was computed from the same patients, its count first of all. A mean over
  hospitals is then the mean over those who show theirs; a count altered alone would shift it.
- *Totals stay.* Where patients are sorted into bins or cells whose total is large enough, each group of so many neighbours moves to the place of one of them. No
  patient is added or lost, and a bin holds nobody or enough (as in microaggregation, Domingo-Ferrer and Mateo-Sanz 2002). Which one is drawn evenly: then
  every patient counts as much as before on average. The middle one, tried first, pulls in the tails and made AUROCs look better.
- *No second draw.* It is drawn by the counts themselves under a secret of the site, so the same statistics always leave in the same form, and asking again tells nothing more,
  as averaging over fresh noise would; and nobody else can try which counts come out so.
- *Nothing but counts.* A sum of scores or losses would tell a label to the last digit, under a model that was made so that one patient alone stands out. So
  those sums are computed anew from the counts that leave, every score at the centre of its bin.

*Guarantee*: of a model's judgement nothing leaves but functions of counts, each 0 or at least ``allow.smallest_cell``; no sum of it leaves in which a patient's own score or loss stands.

*Edge cases*: a smallest cell of 1 changes nothing. Models of amounts, survival and rankings are judged by exact sums, with no counts to compute them from; those leave under a smallest cell of 1 alone. The place of a group is the bin of one of its patients, so that a model may be made to whom this shows, with
a chance of one in the group's size, that somebody of a class is in some bin; and answers for different models differ. Both are bounded by the questions that the policy allows a day. The loss of
training (``train/loss``) leaves as it is where metrics may: it never goes without the update, which is computed from the same patients' gradients and tells more of each of them than one sum of their losses; under a secure sum it lies in that sum, and
under differential privacy it is 0. The sums of columns (``task/...``) are of no model's making and leave as they are where enough patients stand behind them.
"""

import hmac
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.policy import COMPARED, COUNT, TASK, Allow, SitePolicy, refusal, shown
from common import metrics
from common.errors import PolicyRefused
from common.privacy.noise import Source

Arrays = Mapping[str, NDArray[Any]]
COUNTED = {"confusion", "histogram", "calibration", "losses"}
"""What a model of classes is judged by: counts, and sums that follow from them."""
SUMMED = ({"sums"}, {"pairs", "products", "likelihood"}, {"rows", "sums", "open", "recommended"})
"""What models of amounts, survival and rankings are judged by: exact sums over patients."""


def suppress(statistics: Arrays, policy: SitePolicy, key: bytes) -> dict[str, NDArray[Any]]:
    """Return what of an answer's statistics may leave: no cell too small, no metric that must stay; how, the module says. ``key`` is the site's own secret, by which places are drawn.

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
        kept |= prefixed(name, _SCREENS[name](group(name, statistics), policy.allow, key))
    return kept


def _counts(parts: Arrays, allow: Allow, _key: bytes) -> Arrays:
    """Screen the patients by class. An update is weighted by them, so those of training are shown as they are or not at all."""
    _require(COUNT, allow)
    if _small(parts.get("train", np.zeros(0)), allow.smallest_cell).any():
        objection = f"the run asks for the training patients by class, this hospital shows no class of fewer than {allow.smallest_cell}"
        raise refusal("smallest_cell", objection, "allow.smallest_cell")
    return {
        part: np.zeros_like(count) if _small(count, allow.smallest_cell).any() else count
        for part, count in parts.items()
    }


def _sums(parts: Arrays, allow: Allow, _key: bytes) -> Arrays:
    """Screen the sums of a task's columns: a column known of too few patients is one that nobody knows."""
    _require(TASK, allow)
    # What is known of how many patients stands in an array of the same shape as theirs; no two of these have one shape.
    small = {
        parts[name].shape: _small(parts[name], allow.smallest_cell)
        for name in ("count", "records", "ranks")
        if name in parts
    }
    if not all(value.shape in small or name == "hospitals" for name, value in parts.items()):
        raise _unknown(TASK)
    kept = {
        name: np.where(small[value.shape], 0, value) if value.shape in small else value for name, value in parts.items()
    }
    if {"count", "sum", "squares"} <= set(kept):
        kept |= _rounded_codes(kept, allow.smallest_cell)
    return kept


def _rounded_codes(parts: Arrays, least: int) -> Arrays:
    """Round the patients in a column of noughts and ones to a multiple of the smallest cell, all of them: one left as it is would tell its neighbour."""
    count, total, squares = parts["count"], parts["sum"], parts["squares"]
    codes = (total == squares) & (total == np.rint(total)) & (total >= 0) & (total <= count)
    rounded = np.minimum(np.floor(total / least + 0.5) * least, count)
    return {"sum": np.where(codes, rounded, total), "squares": np.where(codes, rounded, squares)}


def _judged(parts: Arrays, allow: Allow, key: bytes) -> Arrays:
    """Screen how a model does on test patients; of a class with too few of them, no sum over all would hide them."""
    if not allow.metrics:
        return {}
    least = allow.smallest_cell
    if set(parts) not in (COUNTED, *SUMMED):
        raise _unknown("test")
    if least == 1:
        return parts
    # Weights made for it could have an exact sum tell of one patient, and no count stands beside these that could stand for them.
    if set(parts) in SUMMED or _small(parts["confusion"].sum(axis=1), least).any():
        return {}
    gathered = {
        name: np.apply_along_axis(_gathered, -1, parts[name], least, key) for name in ("confusion", "histogram")
    }
    histogram, (count, hits, _) = gathered["histogram"], parts["calibration"]
    # In one row, so that misses too few to stand alone join hits of like scores.
    misses, hits = np.split(_gathered(np.concatenate([count - hits, hits[::-1]]), least, key), 2)
    calibration = metrics.calibrated(histogram, np.stack([misses + hits[::-1], hits[::-1]]))
    return {**gathered, "calibration": calibration, "losses": metrics.lost(histogram)}


def _compared(parts: Arrays, allow: Allow, _key: bytes) -> Arrays:
    """Screen joint tables: their cells have no order in which to gather them, so one too small withholds all; and so does a sum that no table tells."""
    tables = {name: value for name, value in parts.items() if name != "losses"}
    if not allow.metrics or COMPARED not in allow.statistics:
        return {}
    if allow.smallest_cell == 1 or not parts:
        return parts
    if "histograms" not in tables or any(_small(table, allow.smallest_cell).any() for table in tables.values()):
        return {}
    first, second = (metrics.lost(table[None]) for table in tables["histograms"])
    # The squares of a difference are at most these; the interval is as wide as if no patient's losses under the two models went together.
    squares = np.square(np.sqrt(first[:, 1]) + np.sqrt(second[:, 1]))
    return {**tables, "losses": np.stack([first[:, 0] - second[:, 0], squares], axis=1)}


def _losses(parts: Arrays, allow: Allow, _key: bytes) -> Arrays:
    return parts if allow.metrics else {name: np.zeros_like(value) for name, value in parts.items()}


_SCREENS: dict[str, Callable[[Arrays, Allow, bytes], Arrays]] = {
    "count": _counts,
    "task": _sums,
    "test": _judged,
    "validation": _judged,
    "compare": _compared,
    "train": _losses,
}


def _small(count: NDArray[Any], least: int) -> NDArray[np.bool_]:
    return np.asarray((count > 0) & (count < least))


def _gathered(counts: NDArray[Any], least: int, key: bytes) -> NDArray[np.float64]:
    """Move each group of ``least`` or a few more neighbours to the place of one of them; there are 0 or at least so many in all.

    >>> _gathered(np.array([3.0, 0.0, 1.0, 0.0, 2.0, 6.0]), 6, b"secret")
    array([6., 0., 0., 0., 0., 6.])
    """
    size = int(counts.sum())
    places = np.repeat(np.arange(len(counts)), counts.astype(np.int64))
    groups = size // least
    bounds = np.arange(groups + 1) * size // max(groups, 1)
    starts, sizes = bounds[:-1], np.diff(bounds)
    # Keyed, since whoever knew all patients but one could otherwise try for each place of that one whether the same comes out.
    draws = Source(hmac.digest(key, counts.tobytes(), "sha256")).words(groups, np.uint32)
    chosen = starts + (draws.astype(np.uint64) * sizes.astype(np.uint64) >> np.uint64(32)).astype(np.int64)
    moved = np.bincount(places[chosen], sizes.astype(np.float64), len(counts))
    return moved.astype(np.float64, copy=False)


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
