"""Checks of what hospitals send: what passes can be summed, and what does not is refused with a code, whoever sent it and whatever it is."""

import math
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray

from common import joining, messages, wire
from common.config import RunConfig
from common.errors import ConfigError, UpdateRejected
from common.layout import Vector
from common.messages import Reply, group
from common.privacy.events import Event, from_text
from common.statistics import Statistics
from common.tasks.objective import Objective
from common.tasks.task import Records, Task
from common.update import Update
from server.plan import Plan

MOST = 1e15
"""Largest sum over its patients that a hospital may report: far beyond any real one, and far below where sums of them overflow."""
DTYPES = {
    "number": np.float64,
    "category": np.float64,
    "code": np.object_,
    "codes": np.object_,
    "name": np.object_,
    "image": np.uint8,
    "series": np.float32,
    "sequence": np.object_,
    "text": np.object_,
}
LEAST = 1e-100
"""Smallest sum but 0: far below any real one, and far above where dividing by it overflows."""


def update_of(name: str, message: Message | None, size: int, plan: Plan, most_examples: int) -> Update:
    """Turn an answer that may come from anyone into an update, or say why not.

    Raises
    ------
    UpdateRejected
        With the code ``late``, the hospital's own code, ``missing``, ``extra``, ``shape``, ``dtype``, ``range``, ``count``, ``nan``, ``inf``, ``norm`` or ``privacy``.
    """
    reply = reply_of(message, plan.config)
    if not 0 < reply.num_examples <= most_examples:
        raise UpdateRejected("count", f"num-examples: expected 1 to {most_examples}")
    codec, control = wire.CODECS[plan.config.update.codec], None
    arrays = dict(reply.arrays)
    if plan.strategy.client.controls:
        control = codec.decode(messages.group("control", arrays), size)
        _check_values(control, 0.0)
        arrays = {name: array for name, array in arrays.items() if not name.startswith("control/")}
    delta = codec.decode(arrays, size)
    _check_values(delta, plan.config.limits.update_norm)
    _check_statistics(reply.statistics, plan.task)
    return Update(name, delta, reply.num_examples, control, reply.statistics, event_of(reply, plan.config))


def event_of(reply: Reply, config: RunConfig) -> Event | None:
    """Read what a hospital says that it released; how much noise that was, it alone decides."""
    if not config.privacy.at_hospitals:
        return None
    try:
        return from_text(reply.texts.get("event", ""))
    except ConfigError as error:
        raise UpdateRejected("privacy", str(error)) from None


def reply_of(message: Message | None, config: RunConfig) -> Reply:
    """Read an answer; raise `UpdateRejected` where there is none, or an error, or one of another form."""
    if message is None:
        raise UpdateRejected("late", f"no answer within {config.limits.deadline_seconds:g} s")
    if not message.has_content():
        raise UpdateRejected(_code(message.error.reason), "an error came in place of an answer")
    return messages.unpack_reply(message.content)


def _check_values(vector: Vector, cap: float) -> None:
    with np.errstate(all="ignore"):
        norm = math.sqrt(float(np.dot(vector, vector)))
    # One pass decides in the usual case: a finite norm means that every value is finite.
    if not math.isfinite(norm):
        if np.isnan(vector).any():
            raise UpdateRejected("nan", "the update holds NaN")
        if np.isinf(vector).any():
            raise UpdateRejected("inf", "the update holds Inf")
        raise UpdateRejected(
            "norm", "the update's norm is beyond float32; times its count of patients, it would be Inf in the sum"
        )
    if cap and norm > cap:
        raise UpdateRejected("norm", f"the update's norm {norm:.3g} is above limits.update_norm {cap:g}")


def check_enrolment(reply: Reply, task: Task) -> None:
    """Check a hospital's answer to the first question: its name, its counts, and the task's statistics."""
    if not joining.NAME.fullmatch(reply.texts.get("hospital", "")):
        raise UpdateRejected(
            "name", "expected a hospital's name of 1 to 64 letters, digits, spaces, dots, hyphens or underscores"
        )
    moments = _summarised(task)
    counts = dict.fromkeys(("train", "validation", "test"), (len(task.classes),))
    check_sums(group("task", reply.statistics), moments, -MOST)
    check_sums(group("count", reply.statistics), counts)


@lru_cache(maxsize=16)
def _summarised(task: Task) -> Mapping[str, tuple[int, ...]]:
    """Return the shapes of the statistics that a task starts from."""
    nobody: Records = {column.name: np.zeros((0, *column.shape), DTYPES[column.kind]) for column in task.columns}
    return {name: value.shape for name, value in task.summarise(nobody).items()}


def _check_statistics(statistics: Statistics, task: Task) -> None:
    shapes: dict[str, tuple[int, ...]] = {"train/loss": (2,)}
    for part in ("test", "validation"):
        if group(part, statistics):
            shapes |= {
                f"{part}/{name}": shape for name, shape in judged(task.objective, len(task.classes), part).items()
            }
    check_sums(statistics, shapes)


@lru_cache(maxsize=16)
def judged(objective: Objective, classes: int, part: str) -> Mapping[str, tuple[int, ...]]:
    """Return the shapes of the statistics that a model is judged by, or two by comparison."""
    labels, scores = objective.nobody(classes)
    empty = objective.compare(labels, scores, scores) if part == "compare" else objective.summarise(labels, scores)
    return {name: value.shape for name, value in empty.items()}


def check_sums(statistics: Statistics, shapes: Mapping[str, tuple[int, ...]], least: float = 0.0) -> None:
    """Refuse statistics that are not exactly those expected; their names are the sender's own words and stay out of the message."""
    for name, shape in shapes.items():
        if name not in statistics:
            raise UpdateRejected("missing", f"statistic {name!r} is missing")
        value = statistics[name]
        if value.shape != shape:
            raise UpdateRejected("shape", f"statistic {name!r}: expected shape {shape}, got {value.shape}")
        if value.dtype != np.float64 or not np.isfinite(value).all():
            raise UpdateRejected("dtype", f"statistic {name!r}: expected finite float64")
        if value.size and not (least <= value.min() <= value.max() <= MOST and _far_from_nothing(value)):
            raise UpdateRejected("range", f"statistic {name!r}: expected sums from {least:g} to {MOST:g}")
    if len(statistics) > len(shapes):
        raise UpdateRejected("extra", f"a statistic came that is not expected; expected: {', '.join(shapes)}")


def _far_from_nothing(value: NDArray[np.float64]) -> bool:
    return not ((value != 0) & (np.abs(value) < LEAST)).any()


def _code(reason: str | None) -> str:
    """Keep a hospital's error code only where it is one: a short word, never a sentence."""
    return reason if reason and reason.isidentifier() and len(reason) <= 32 else "error"
