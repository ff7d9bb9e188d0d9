"""What the tasks that recommend treatments share: the objective, code lists, and what may never be recommended."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common import ranking
from common.errors import ConfigError
from common.intervals import UNDEFINED, Estimate
from common.statistics import Statistics
from common.tasks import codes
from common.tasks.objective import Objective, Scores

NEVER = -1e9
"""What stands for minus infinity within a model: a softmax gives it nothing, and no gradient passes."""
Rules = Mapping[int, tuple[int, ...]]
"""From the bucket of a condition to those of the treatments that it rules out."""


def objective(width: int, k: int, loss: Any) -> Objective:
    """Return the objective of ranking a list of ``width`` treatments, judged by its first ``k``; ``loss`` takes labels and logits, tensors ``(n, width)``."""
    return Objective(
        loss=loss,
        predict=partial(_scores, width),
        summarise=partial(ranking.summarise, k=k),
        values=ranking.values,
        compute=ranking.compute,
        curves=ranking.curves,
        compare=partial(ranking.compare, k=k),
        differences=_no_differences,
        headline="recall",
        shown=("recall", "ndcg", "coverage", "log_loss"),
        label_dtype="float32",
        label_shape=(width,),
        width=width,
    )


def multinomial(labels: Any, outputs: Any) -> Any:
    """Return minus the mean log share that a softmax gives to what came next (Liang et al. 2018, WWW, section 2.1); 0 where nothing did."""
    import tensorflow as tf

    shares = tf.nn.log_softmax(outputs)
    return -tf.reduce_sum(labels * shares, axis=1) / tf.maximum(tf.reduce_sum(labels, axis=1), 1.0)


def rules_of(table: str) -> Rules:
    """Read a table of contra-indications: one ``CONDITION > TREATMENT`` a line, both codes as the records have them.

    >>> len(rules_of("diagnosis bleeding > treatment heparin"))
    1

    Raises
    ------
    ConfigError
        For a line of another form; the message names it by number.
    """
    rules: dict[int, tuple[int, ...]] = {}
    for number, line in enumerate(table.splitlines(), 1):
        condition, mark, treatment = (part.strip() for part in line.partition(">"))
        if not line.strip():
            continue
        if not (condition and mark and treatment):
            raise ConfigError(f"task.contraindications: line {number}: expected CONDITION > TREATMENT")
        (ill,), (ruled_out,) = codes.buckets([condition, treatment])
        rules[ill] = (*rules.get(ill, ()), ruled_out)
    return rules


def closed(found: list[list[int]], listed: list[int], width: int, rules: Rules, *, given: bool) -> NDArray[np.bool_]:
    """Return which of the list may not be recommended to each row, ``(n, width)``: what a contra-indication rules out, places without a treatment, and if ``given`` what the row has already.

    ``found`` are the buckets of all that is known of a row, ``listed`` those of the treatments.
    """
    out = [[treatment for code in set(cell) & set(rules) for treatment in rules[code]] for cell in found]
    barred = [cell + ruled_out if given else ruled_out for cell, ruled_out in zip(found, out, strict=True)]
    marks = codes.marked(codes.places(barred, listed), width) > 0
    marks[:, len(listed) :] = True
    return marks


def last(numbers: list[list[int]], length: int) -> NDArray[np.int32]:
    """Return the last ``length`` numbers of every row in order, int32 ``(n, length)``, with 0 after them.

    >>> last([[1, 2, 3], [4]], 2).tolist()
    [[2, 3], [4, 0]]
    """
    rows = np.zeros((len(numbers), length), np.int32)
    for row, cell in zip(rows, numbers, strict=True):
        kept = cell[-length:]
        row[: len(kept)] = kept
    return rows


def popularity(records: NDArray[np.float64], width: int) -> list[float]:
    """Return the logarithm of each listed treatment's share of all that were given, from which a model starts: it then recommends what is common; 0 in places without one."""
    shares = np.log(np.maximum(records, 1.0) / max(records.sum(), 1.0))
    return [*shares.tolist(), *[0.0] * (width - len(records))]


def _no_differences(statistics: Statistics) -> dict[str, Estimate]:
    """Return no difference: models of two federations rank lists of their own, so that a place in one is another treatment in the other."""
    return dict.fromkeys(ranking.differences(statistics), UNDEFINED)


def _scores(width: int, outputs: NDArray[np.float32]) -> Scores:
    scores = outputs[:, :width].astype(np.float64)
    return np.where(scores < NEVER / 2, -np.inf, scores)
