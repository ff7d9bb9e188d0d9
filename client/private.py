"""Local training under differential privacy: samples, clipped gradients and noise, a whole round as one compiled function.

A step's sample has as many rows as chance gives it. It is cut into batches of one width, filled up with rows that count nothing; their clipped sums are added up, and where a sample
ends the noise is added and the step is taken. So no sample is ever too large, one shape serves all, and nothing is traced twice.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client import training
from client.hospital import Hospital
from client.training import Epochs, Method, learning_rate
from common import backend
from common.config import RunConfig
from common.errors import ConfigError
from common.layout import Vector
from common.messages import Reply, Request
from common.network import Network
from common.privacy.accountant import epsilon
from common.privacy.calibrate import Terms, statistics_event, terms_of
from common.privacy.clip import Clipped
from common.privacy.events import Event
from common.privacy.noise import Noise, Source
from common.secagg import fixed
from common.statistics import Statistics
from common.tasks import task_of
from common.tasks.task import Array, Task, rows_of, take

LARGEST = 1e3
"""Largest weight of a model that is trained under differential privacy."""
NOBODY = np.zeros(0, np.int64)
WIDEST = 64
"""Rows of one batch where all rows make one step."""
CHARGE = "charge"
"""The text by which an answer says, to the gate and not beyond it, which charge its noise belongs to."""
TAIL = 8
"""Standard deviations of the sum's noise that the ring has to hold."""
LEAST_LEVELS = 32
"""Least deviation of the noise that a hospital adds in whole levels; the delta of a discrete Gaussian is above the continuous one's by 0.2 % at most from there on."""
MOST_NUMBERS = 2**28
"""Numbers of noise that a round may need; they are drawn before it begins."""


@dataclass(frozen=True)
class Samples:
    """A round's batches: int32 ``rows`` of shape ``(batches, width)``, of which -1 stands for none, and whether a step ``ends`` with each."""

    rows: training.Plan
    ends: NDArray[np.bool_]


@dataclass(frozen=True)
class Bounds:
    """What is compiled in: rows are clipped to ``row``, and a unit has at most ``per_unit`` of them."""

    row: float
    per_unit: int


def units_of(hospital: Hospital, config: RunConfig) -> list[Array]:
    """Return the rows of each protected unit: of each record, or of each patient the most that the run trains on, always the same ones.

    Raises
    ------
    ConfigError
        When patients are to be protected and the hospital does not know whose each row is.
    """
    if (
        config.privacy.unit == "record"
        and hospital.patients is not None
        and len(set(hospital.patients.tolist())) < len(hospital.patients)
    ):
        raise ConfigError(
            "privacy.unit: some patients have several rows, of which 'record' protects one alone; set it to 'patient'"
        )
    if config.privacy.unit == "record":
        return list(np.arange(rows_of(hospital.train))[:, None])
    if hospital.patients is None:
        raise ConfigError(
            "privacy.unit: 'patient' needs to know whose each row is, and these data do not say; name the patients' column in [data], or protect the 'record'"
        )
    order = np.argsort(hospital.patients, kind="stable")
    starts = np.flatnonzero(np.diff(hospital.patients[order])) + 1
    return [rows[: config.privacy.rows_per_patient] for rows in np.split(order, starts)]


def first_event(config: RunConfig, task: Task) -> Event | None:
    """Return what the answer to the first question releases, where it holds noised sums."""
    return statistics_event(config.privacy) if task.noised else None


def terms(hospital: Hospital, config: RunConfig, task: Task) -> Terms:
    """Return the terms under which a hospital trains in a run; errors as of `terms_of` and `units_of`."""
    rows, most = rows_of(hospital.train), config.secure.examples
    if config.privacy.shared and rows > most:
        raise ConfigError(
            f"secure.examples: {rows} training patients would weigh as {most}, and noise that is shared takes equal weights for all; raise it above the largest hospital"
        )
    first, units = first_event(config, task), units_of(hospital, config)
    found = terms_of(config.privacy, config.training, config.rounds, len(units), (first,) if first else ())
    moved = config.training.learning_rate * found.event.noise_multiplier * found.clip_norm / found.sample
    if moved > LARGEST:
        raise ConfigError(
            f"privacy.epsilon: {config.privacy.epsilon:g} takes noise of {found.event.noise_multiplier:.3g} times privacy.clip_norm {found.clip_norm:g} over {found.sample:.3g} {config.privacy.unit}s,"
            f" by which a step of {config.training.learning_rate:g} would move every weight by about {moved:.3g}; a private model's lie within {LARGEST:g} of 0."
            " Take a larger epsilon, fewer rounds or a smaller training.learning_rate"
        )
    return found


def shared_noise(hospital: Hospital, request: Request, reply: Reply, fewest: int) -> fixed.Noise | None:
    """Return this hospital's part of a sum's noise, which is added to its update in whole levels before it is masked; None where the run shares none.

    Guarantee
    ---------
    Each part is a discrete Gaussian with one ``fewest``-th of the variance, and no sum of fewer hospitals is ever opened. So the sum's noise is at least the noise multiplier times the
    sensitivity, which rounding the update to levels raises by the root of its length. A sum of discrete Gaussians is one, up to ``exp(-pi**2 sigma**2)`` (Kairouz et al. 2021, theorem 1).

    Edge cases
    ----------
    - Hospitals that work with the coordinator take their parts off: of ``f`` parts, ``c`` leave ``f - c``.
    - Epsilon is reckoned as that of the continuous Gaussian. Below `LEAST_LEVELS` the two differ, and the update is refused.
    - Gradients are added up in float32. That one row more may round the sum of the others otherwise is not counted.

    Raises
    ------
    ConfigError
        For what would make parts unequal, and for noise of too few levels.
    """
    config = request.config
    if not config.privacy.shared or request.options.get("server-round") is None:
        return None
    if "control" in request.arrays or request.options["local-parts"]:
        raise ConfigError(
            "privacy.noise: 'shared' covers one vector that is summed, and control variates or local parts are more than that"
        )
    agreed = terms(hospital, config, task_of(config.task))
    source = Source(hospital.ledger.key(reply.texts[CHARGE]))
    length = math.sqrt(len(request.arrays["weights"]))
    rate = learning_rate(config, int(request.options["server-round"]))
    rounding = _rounding(request.arrays["weights"], rate * agreed.clip_norm, rate * config.training.weight_decay)
    moved = rate * agreed.clip_norm / config.secure.examples

    def levels(count: int, scale: float) -> NDArray[np.int64]:
        sigma = agreed.event.noise_multiplier * (moved * scale + length * (1.0 + rounding * scale)) / math.sqrt(fewest)
        if TAIL * sigma * math.sqrt(fixed.HOSPITALS) > fixed.ROOM:
            raise ConfigError(
                f"secure.magnitude: noise with a deviation of {sigma:.3g} levels, {TAIL} times that of a sum of {fixed.HOSPITALS} hospitals, would not fit the {fixed.ROOM:,} levels that there are; take a larger secure.magnitude, or less noise"
            )
        if sigma < LEAST_LEVELS:
            raise ConfigError(
                f"secure.magnitude: the noise has a deviation of {sigma:.3g} levels, below {LEAST_LEVELS}; take a smaller secure.magnitude or secure.examples"
            )
        return source.discrete_gaussian(count, sigma)

    return levels


def _rounding(weights: Vector, step: float, decay: float) -> float:
    """Return by how much a value of an update may be off because weights are float32: it is the difference of two, of which a step of this norm, and decay, may have made one larger than it came."""
    largest = float(np.abs(weights).max(initial=1.0)) * (1.0 + decay) + step
    return float(np.spacing(np.float32(largest)))


def whole_run(hospital: Hospital, config: RunConfig, task: Task) -> list[Event]:
    """Return all that the run will release of a hospital."""
    each, first = terms(hospital, config, task).event, first_event(config, task)
    rounds = replace(each, count=each.count * config.rounds)
    return [first, rounds] if first else [rounds]


@lru_cache(maxsize=8)
def run_epsilon(hospital: Hospital, config: RunConfig) -> float:
    """Return the epsilon, at ``privacy.delta``, of all that a run will release of a hospital, by its own count of units and its own noise."""
    return epsilon(whole_run(hospital, config, task_of(config.task)), config.privacy.delta)


def statistics(hospital: Hospital, config: RunConfig, task: Task, source: Source | None) -> Statistics:
    """Return the task's sums with noise from ``source``; zeros where that is None, computed of nobody."""
    if source is None or task.noised is None or (event := first_event(config, task)) is None:
        return {name: np.zeros_like(value) for name, value in task.summarise(take(hospital.train, NOBODY)).items()}
    units = units_of(hospital, config)
    per_unit = config.privacy.rows_per_patient if config.privacy.unit == "patient" else 1
    told = task.summarise(take(hospital.train, np.concatenate(units)))
    return task.noised(told, Noise(source, event.noise_multiplier * per_unit))


def samples(units: list[Array], terms: Terms, source: Source) -> Samples:
    """Draw the samples of a round: in every step each unit is in by its own chance, with all its rows."""
    expected = terms.sample * terms.per_unit
    width = math.ceil((expected + 2 * math.sqrt(expected)) / 8) * 8
    width = min(width, WIDEST) if terms.event.sampling_rate == 1 else width
    batches, ends = [], []
    for _ in range(terms.event.count):
        drawn = np.flatnonzero(source.chosen(len(units), terms.event.sampling_rate))
        rows = np.concatenate([units[unit] for unit in drawn]) if drawn.size else np.zeros(0, np.int64)
        count = max(-(-rows.size // width), 1)
        batches.append(np.pad(rows, (0, count * width - rows.size), constant_values=-1).reshape(count, width))
        ends += [False] * (count - 1) + [True]
    return Samples(np.concatenate(batches).astype(np.int32), np.array(ends))


def widened(drawn: Samples, normals: Vector) -> tuple[Array, Array, Vector]:
    """Lengthen rows, ends and noise to powers of two; XLA compiles anew for every shape, and what is added is never used."""
    rows = training.widened(drawn.rows)
    more = (1 << (len(normals) - 1).bit_length()) - len(normals)
    return rows, np.pad(drawn.ends, (0, len(rows) - len(drawn.ends))), np.pad(normals, ((0, more), (0, 0)))


def numbers(network: Network, steps: int) -> int:
    """Return how many numbers of noise a round of so many steps takes: one a step for every weight that gradients move.

    Raises
    ------
    ConfigError
        When they would not fit into memory.
    """
    count = steps * _size(network)
    if count > MOST_NUMBERS:
        raise ConfigError(
            f"privacy: {steps} steps of {_size(network):,} weights need {count * 4 / 2**30:.1f} GiB of noise in a round, and {MOST_NUMBERS * 4 / 2**30:.0f} GiB are the most; "
            "take fewer steps (a larger training.batch_size, fewer epochs), or privacy.method = 'full'"
        )
    return count


def _size(network: Network) -> int:
    return sum(entry.size for entry in (*network.shared.entries, *network.local.entries) if entry.trainable)


def compile_fit(network: Network, task: Task, method: Method, bounds: Bounds, dtype: Any) -> Callable[..., Any]:
    """Return the compiled function ``(shared, local, x, y, rows, ends, normals, draw, pace, correction) -> (shared, local)``, all tensors.

    As `training.compile_fit`, but for: ``rows`` and ``ends`` as of `Samples`; ``normals`` standard ones, float32 ``(steps, P)``; ``draw`` int32 ``(seed, seed, batches)``; ``pace`` float32
    ``(rate, proximal, noise multiplier, sample)``.

    Guarantee
    ---------
    The gradient of step t is ``(sum of clipped gradients + noise multiplier * sensitivity * normals[t]) / sample``. All that follows (weight decay, proximal term, control
    variate, momentum, Adam) is computed from that, from the weights that came and from what was released before, and so costs no further privacy.

    Raises
    ------
    ConfigError
        When the model mixes the rows of a batch.
    """
    import tensorflow as tf

    from common.privacy import dpsgd

    dpsgd.check(network.model)
    signature = [
        tf.TensorSpec([network.shared.size], tf.float32),
        tf.TensorSpec([network.local.size], tf.float32),
        tf.TensorSpec([None, *network.model.input_shape[1:]], dtype),
        tf.TensorSpec([None, *task.objective.label_shape], task.objective.label_dtype),
        tf.TensorSpec([None, None], tf.int32),
        tf.TensorSpec([None], tf.bool),
        tf.TensorSpec([None, _size(network)], tf.float32),
        tf.TensorSpec([3], tf.int32),
        tf.TensorSpec([4], tf.float32),
        tf.TensorSpec([None], tf.float32),
    ]
    run = partial(_run, Epochs(network, task, method), bounds)
    return backend.callable_of(tf.function(run, input_signature=signature, jit_compile=method.xla, autograph=False))


def _run(
    epochs: Epochs,
    bounds: Bounds,
    shared: Any,
    local: Any,
    x: Any,
    y: Any,
    rows: Any,
    ends: Any,
    normals: Any,
    draw: Any,
    pace: Any,
    correction: Any,
) -> tuple[Any, Any]:
    import tensorflow as tf

    network, optimizer = epochs.network, training.OPTIMIZERS[epochs.method.optimizer]
    rate, proximal, multiplier, sample = tf.unstack(pace)
    start = training.weights_of(network, shared, local)
    moving, fixed = (training.pick(start, epochs.moves, kind=kind) for kind in (True, False))
    pulls, nothing = epochs.pulls(start, proximal, correction), [tf.zeros_like(w) for w in moving]

    def step(index: Any, taken: Any, moving: list[Any], slots: list[Any], summed: list[Any]) -> tuple[Any, ...]:
        batch = epochs.batch(x, y, rows[index], draw[:2] + tf.stack([index, 0]))
        clipped = _clipped(epochs, bounds, moving, fixed, batch)
        clipped += Clipped(summed, clipped.sensitivity)

        def move() -> tuple[Any, ...]:
            noised = clipped.noised(_laid_out(normals[taken], moving), multiplier)
            gradients = [pull(g / sample, w) for pull, g, w in zip(pulls, noised, moving, strict=True)]
            moved, kept = optimizer.step(moving, gradients, slots, rate, taken, epochs.method.momentum)
            return taken + 1, epochs.paced(moving, moved), kept, nothing

        return index + 1, *tf.cond(ends[index], move, lambda: (taken, moving, slots, list(clipped.parts)))

    begin = (tf.constant(0), tf.constant(0), moving, nothing * optimizer.slots, nothing)
    _, _, moved, _, _ = tf.while_loop(lambda index, *_: index < draw[2], step, begin)
    kinds = {True: iter(moved), False: iter(fixed)}
    ours, theirs = network.divide([next(kinds[moves]) for moves in epochs.moves])
    return training.join(ours), training.join(theirs)


def _clipped(epochs: Epochs, bounds: Bounds, moving: list[Any], fixed: list[Any], batch: tuple[Any, ...]) -> Clipped:
    import tensorflow as tf

    from common.privacy import dpsgd

    x, y, mask, seed = batch
    model = epochs.network.model
    inputs = tf.cast(x, model.inputs[0].dtype)
    if inputs.dtype.is_floating:
        inputs = tf.where(tf.math.is_finite(inputs), inputs, 0.0)  # no row may make the sum of all not a number
    states = training.with_seeds(model, fixed, seed)
    clipped, _ = dpsgd.clipped_gradients(
        model, moving, states, (inputs, y, mask), epochs.task.objective.loss, bounds.row, bounds.per_unit
    )
    return clipped


def _laid_out(vector: Any, like: list[Any]) -> list[Any]:
    import tensorflow as tf

    parts = tf.split(vector, [math.prod(tensor.shape) for tensor in like])
    return [tf.reshape(part, tensor.shape) for part, tensor in zip(parts, like, strict=True)]
