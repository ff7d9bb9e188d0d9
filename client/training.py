"""Local training: a whole local epoch, or several, as one compiled function from weights to weights.

The order of the batches is made outside as a plan of row numbers, so that one compiled function serves every hospital, whatever
its size: short batches are filled up with other rows that have no weight, and no new size is ever traced.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common import backend
from common.config import RunConfig, TrainingConfig
from common.layout import Layout, Vector
from common.network import Network, under
from common.tasks.task import Task

Plan = NDArray[np.int32]


@dataclass(frozen=True)
class Method:
    """What is compiled into the step; numbers that change from round to round are arguments instead."""

    optimizer: str
    momentum: float
    weight_decay: float
    augment: bool
    proximal: bool
    controls: bool
    xla: bool
    resting: bool = False
    weighted: bool = False


@dataclass(frozen=True)
class Trained:
    """What training leaves: both weight vectors, and the sum over ``steps`` batches of their mean losses."""

    shared: Vector
    local: Vector
    loss: float
    steps: int


def learning_rate(config: RunConfig, number: int) -> float:
    """Return the step size of a round."""
    return config.training.learning_rate * config.training.learning_rate_decay ** (number - 1)


def method_of(task: Task, training: TrainingConfig, number: int = 1, *, proximal: bool, controls: bool) -> Method:
    """Choose what is compiled for a run's settings in round ``number``."""
    xla = task.xla if training.compile == "auto" else training.compile == "xla"
    augment = training.augment and task.augment is not None
    resting = bool(task.rates) and number <= task.resting
    weighted = training.class_weights != "none"
    terms = (training.optimizer, training.momentum, training.weight_decay)
    return Method(*terms, augment, proximal, controls, xla, resting, weighted)


def plan(rows: int, batch_size: int, epochs: int, generator: np.random.Generator, least: int = 1) -> Plan:
    """Draw the batches: int32 row numbers of shape ``(steps, batch_size)``, every row once an epoch.

    A last batch of fewer than ``least`` rows is left out, as long as there are others; other rows are in it at the next epoch. Where a batch is short, ``-1 - row`` names a row that has no weight in the loss but stands in the statistics of a BatchNorm layer,
    which of copies of one row would have no variance.

    >>> plan(3, 2, 1, np.random.default_rng(0))
    array([[ 2,  0],
           [ 1, -3]], dtype=int32)
    """
    short = rows % batch_size
    kept = rows - short if short < least and rows > batch_size else rows
    steps = -(-kept // batch_size)
    batches = np.empty((epochs, steps * batch_size), np.int32)
    for epoch in batches:
        epoch[:kept] = generator.permutation(rows)[:kept]
    batches[:, kept:] = -1 - batches[:, np.arange(steps * batch_size - kept) % rows]
    return batches.reshape(epochs * steps, batch_size)


def width(task: Task, batch_size: int, rows: int) -> int:
    """Return the rows of a batch: no more than there are where patients bear on each other's loss, as a repeat would stand in the risk sets."""
    return max(min(batch_size, rows), 1) if task.objective.coupled else batch_size


def widened(rows: Plan) -> Plan:
    """Lengthen a plan to a power of two of batches; XLA compiles anew for every shape, and the added batches are never run."""
    more = (1 << (len(rows) - 1).bit_length()) - len(rows)
    return np.concatenate([rows, np.full((more, rows.shape[1]), -1, np.int32)])


def compile_fit(network: Network, task: Task, method: Method, dtype: Any) -> Callable[..., Any]:
    """Return the compiled function ``(shared, local, x, y, rows, draw, pace, correction, balance) -> (shared, local, loss)``, all tensors.

    ``x`` has the data's own ``dtype``; ``rows`` is a `Plan`, of which ``steps`` batches count; ``draw`` is int32 ``(seed, seed, steps)``; ``pace`` float32
    ``(rate, proximal)``, the step size and FedProx's mu (Li et al. 2020, section 3.2); ``correction`` SCAFFOLD's ``c - c_i`` over the shared weights (Karimireddy et al.
    2020, equation 3), or empty; ``balance`` float32 the weight of each class, or empty. The loss is the sum of the batch means.
    """
    import tensorflow as tf

    signature = [
        tf.TensorSpec([network.shared.size], tf.float32),
        tf.TensorSpec([network.local.size], tf.float32),
        tf.TensorSpec([None, *network.model.input_shape[1:]], dtype),
        tf.TensorSpec([None, *task.objective.label_shape], task.objective.label_dtype),
        tf.TensorSpec([None, None], tf.int32),
        tf.TensorSpec([3], tf.int32),
        tf.TensorSpec([2], tf.float32),
        tf.TensorSpec([None], tf.float32),
        tf.TensorSpec([None], tf.float32),
    ]
    graph = tf.function(
        Epochs(network, task, method).run, input_signature=signature, jit_compile=method.xla, autograph=False
    )
    return backend.callable_of(graph)


@dataclass(frozen=True)
class Epochs:
    """The graph of local training; every method is called once, while it is traced. Tensors are typed Any: TensorFlow ships no types."""

    network: Network
    task: Task
    method: Method

    @cached_property
    def moves(self) -> list[bool]:
        """Tell for every weight whether gradients move it."""
        return moves_of(self.network)

    def run(
        self, shared: Any, local: Any, x: Any, y: Any, rows: Any, draw: Any, pace: Any, correction: Any, balance: Any
    ) -> Any:
        """Train, as `compile_fit` says."""
        import tensorflow as tf

        seed, steps = draw[:2], draw[2]
        rate, proximal = pace[0], pace[1]

        network, method = self.network, self.method
        start = weights_of(network, shared, local)
        pulls = self.pulls(start, proximal, correction)

        def step(index: Any, weights: list[Any], slots: list[Any], losses: Any) -> tuple[Any, ...]:
            batch = self.batch(x, y, rows[index], seed + tf.stack([index, 0]))
            gradients, fixed, loss = self.gradients(weights, batch, balance)
            moving = pick(weights, self.moves, kind=True)
            gradients = [pull(g, w) for pull, g, w in zip(pulls, gradients, moving, strict=True)]
            moved, slots = OPTIMIZERS[method.optimizer].step(moving, gradients, slots, rate, index, method.momentum)
            moved = self.paced(moving, moved)
            kinds = {True: iter(moved), False: iter(fixed)}
            return index + 1, [next(kinds[moves]) for moves in self.moves], slots, losses + loss

        slots = [
            tf.zeros_like(w)
            for _ in range(OPTIMIZERS[method.optimizer].slots)
            for w in pick(start, self.moves, kind=True)
        ]
        begin = (tf.constant(0), start, slots, tf.constant(0.0))
        _, weights, _, losses = tf.while_loop(lambda index, *_: index < steps, step, begin)
        ours, theirs = network.divide(list(weights))
        return join(ours), join(theirs), losses

    def batch(self, x: Any, y: Any, chosen: Any, seed: Any) -> tuple[Any, Any, Any, Any]:
        """Gather the rows of one batch; a row number below 0 gives a row with mask 0."""
        import tensorflow as tf

        taken = tf.maximum(chosen, -1 - chosen)
        inputs = tf.gather(x, taken)
        if self.method.augment and self.task.augment is not None:
            inputs = self.task.augment(inputs, seed)
        return inputs, tf.gather(y, taken), tf.cast(chosen >= 0, tf.float32), seed

    def gradients(
        self, weights: list[Any], batch: tuple[Any, Any, Any, Any], balance: Any
    ) -> tuple[list[Any], list[Any], Any]:
        """Return the gradients of the weights that move, the new values of the others, and the mean loss of the batch: the sum over its rows, however weighted, by their count."""
        import tensorflow as tf

        x, y, mask, seed = batch
        model = self.network.model
        moving, fixed = (pick(weights, self.moves, kind=kind) for kind in (True, False))
        with tf.GradientTape() as tape:
            tape.watch(moving)
            inputs = tf.cast(x, model.inputs[0].dtype)
            outputs, states = model.stateless_call(moving, with_seeds(model, fixed, seed), inputs, training=True)
            losses = self.task.objective.loss(y, outputs)
            if self.method.weighted:
                losses *= tf.gather(balance, y)
            loss = tf.reduce_sum(losses * mask) / tf.maximum(tf.reduce_sum(mask), 1.0)
        gradients = tape.gradient(loss, moving, unconnected_gradients="zero")
        return [tf.convert_to_tensor(g) for g in gradients], pick(states, _seeded(model), kind=False), loss

    @cached_property
    def factors(self) -> list[float]:
        """Return, for every weight that moves, the task's factor on its step size."""
        paths = [weight.path for weight in pick(self.network.model.weights, self.moves, kind=True)]
        rates = dict.fromkeys(self.task.rates, 0.0) if self.method.resting else self.task.rates
        slow = [(factor, self.task.prefixes((part,))) for part, factor in rates.items()]
        return [
            math.prod(factor for factor, prefixes in slow if any(under(path, each) for each in prefixes))
            for path in paths
        ]

    def paced(self, before: list[Any], after: list[Any]) -> list[Any]:
        """Shorten the steps of weights that the task wants to move slower; every optimiser's step is in proportion to its rate."""
        return [
            new if factor == 1 else old + factor * (new - old)
            for old, new, factor in zip(before, after, self.factors, strict=True)
        ]

    def pulls(self, start: list[Any], proximal: Any, correction: Any) -> list[Callable[[Any, Any], Any]]:
        """Return, for every weight that moves, what is added to its gradient: weight decay, FedProx's pull, SCAFFOLD's correction."""
        import tensorflow as tf

        network, method = self.network, self.method
        nothing = [tf.zeros_like(w) for w in split(tf.zeros([network.local.size]), network.local)]
        shift = network.interleave(split(correction, network.shared), nothing) if method.controls else start

        def pull(anchor: Any, toward: Any) -> Callable[[Any, Any], Any]:
            def add(gradient: Any, weight: Any) -> Any:
                if method.weight_decay and len(weight.shape) > 1:
                    gradient = gradient + method.weight_decay * weight
                if method.proximal:
                    gradient = gradient + proximal * (weight - anchor)
                return gradient + toward if method.controls else gradient

            return add

        anchors, shifts = pick(start, self.moves, kind=True), pick(shift, self.moves, kind=True)
        return [pull(anchor, toward) for anchor, toward in zip(anchors, shifts, strict=True)]


@dataclass(frozen=True)
class Optimizer:
    """One step ``(weights, gradients, slots, rate, index, momentum) -> (weights, slots)``; ``slots`` zero tensors a weight at the start."""

    slots: int
    step: Callable[..., tuple[list[Any], list[Any]]]


def _sgd(
    weights: list[Any], gradients: list[Any], slots: list[Any], rate: Any, _index: Any, _momentum: float
) -> tuple[list[Any], list[Any]]:
    return [w - rate * g for w, g in zip(weights, gradients, strict=True)], slots


def _momentum(
    weights: list[Any], gradients: list[Any], slots: list[Any], rate: Any, _index: Any, momentum: float
) -> tuple[list[Any], list[Any]]:
    slots = [momentum * v + g for v, g in zip(slots, gradients, strict=True)]
    return [w - rate * v for w, v in zip(weights, slots, strict=True)], slots


def _adam(
    weights: list[Any], gradients: list[Any], slots: list[Any], rate: Any, index: Any, _momentum: float
) -> tuple[list[Any], list[Any]]:
    """Kingma and Ba 2015, algorithm 1, in the form of the end of section 2."""
    import tensorflow as tf

    time = tf.cast(index + 1, tf.float32)
    rate = rate * tf.sqrt(1.0 - tf.pow(0.999, time)) / (1.0 - tf.pow(0.9, time))
    half = len(weights)
    first = [0.9 * m + 0.1 * g for m, g in zip(slots[:half], gradients, strict=True)]
    second = [0.999 * v + 0.001 * g * g for v, g in zip(slots[half:], gradients, strict=True)]
    moved = [w - rate * m / (tf.sqrt(v) + 1e-7) for w, m, v in zip(weights, first, second, strict=True)]
    return moved, first + second


OPTIMIZERS = {"sgd": Optimizer(0, _sgd), "momentum": Optimizer(1, _momentum), "adam": Optimizer(2, _adam)}


def lay_out(network: Network, shared: Any, local: Any) -> tuple[list[Any], list[Any]]:
    """Return, from the two vectors, the weights that gradients move and those that they do not, as Keras's ``stateless_call`` takes them."""
    weights, moves = weights_of(network, shared, local), moves_of(network)
    return pick(weights, moves, kind=True), pick(weights, moves, kind=False)


def weights_of(network: Network, shared: Any, local: Any) -> list[Any]:
    """Return all weights in the model's order, from the two vectors."""
    return network.interleave(split(shared, network.shared), split(local, network.local))


def moves_of(network: Network) -> list[bool]:
    """Tell for every weight of the model whether gradients move it."""
    trainable = {id(weight) for weight in network.model.trainable_weights}
    return [id(weight) in trainable for weight in network.model.weights]


def split(vector: Any, layout: Layout) -> list[Any]:
    """Return the variables that lie in a vector."""
    import tensorflow as tf

    if not layout.entries:
        return []
    parts = tf.split(vector, [entry.size for entry in layout.entries])
    return [tf.reshape(part, entry.shape) for part, entry in zip(parts, layout.entries, strict=True)]


def join(parts: list[Any]) -> Any:
    """Lay tensors end to end."""
    import tensorflow as tf

    return tf.concat([tf.reshape(part, [-1]) for part in parts], 0) if parts else tf.zeros([0])


def pick(items: Sequence[Any], flags: Sequence[bool], *, kind: bool) -> list[Any]:
    """Return the items whose flag is ``kind``."""
    return [item for item, flag in zip(items, flags, strict=True) if flag is kind]


def _seeded(model: Any) -> list[bool]:
    """Tell which of the model's non-trainable variables are states of random generators (dropout) and no weights."""
    weights = {id(weight) for weight in model.non_trainable_weights}
    return [id(variable) not in weights for variable in model.non_trainable_variables]


def with_seeds(model: Any, fixed: list[Any], seed: Any) -> list[Any]:
    """Lay the weights that don't move and fresh states of the random generators in the order that ``stateless_call`` expects."""
    import tensorflow as tf

    values, variables = iter(fixed), model.non_trainable_variables
    return [
        tf.cast(seed + tf.constant([0, number]), variable.dtype) if is_seed else next(values)
        for number, (variable, is_seed) in enumerate(zip(variables, _seeded(model), strict=True))
    ]
