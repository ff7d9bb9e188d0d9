"""Per-example gradients of a Keras model, clipped and summed, in about the time of one plain step (book-keeping; Bu et al. 2023, algorithm 1).

One forward and one backward pass give, for every layer with weights, what went in and the gradient at what came out before its activation. From these two follow the
norm of each example's gradient, mostly without the gradient itself (ghost norms; Li et al. 2022, section 4), and then the sum of the clipped gradients as one product.
Layers are watched while the model is traced, wherever they stand, also within another layer. A model with a layer that has no rule here is trained by ``vectorized_map``.

Tensors are typed Any: TensorFlow ships no types. TensorFlow is imported when a function is called.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from common.errors import ConfigError
from common.privacy.clip import Clipped

CROSSING = ("BatchNormalization", "SpectralNormalization", "SyncBatchNormalization")
"""Layers through which one example changes what another's output is, or weights move that no gradient moves: no clipping bounds that."""

Sums = Callable[[Any], list[tuple[Any, Any]]]
"""From one factor an example to the weighted sums of their gradients, as pairs of variable and sum."""
Rule = Callable[[Any, Any, Any], tuple[Any, "Use"]]
"""From a layer, its inputs and the tape to its outputs, and what the call left."""


@dataclass(frozen=True)
class Use:
    """One call of a layer: the tensors at which gradients are asked for, and from those gradients squared norms ``(n,)`` and sums."""

    points: list[Any]
    finish: Callable[[list[Any]], tuple[Any, Sums]]


def check(model: Any) -> None:
    """Refuse a model in which one example moves more than its own gradient.

    Raises
    ------
    ConfigError
        When it has a layer of `CROSSING`; the message names it.
    """
    for layer in model._flatten_layers():  # noqa: SLF001 - the only way to layers within layers
        kinds = {kind.__name__ for kind in type(layer).__mro__}
        if kinds & set(CROSSING):
            raise ConfigError(
                f"the layer {layer.name!r} ({type(layer).__name__}) mixes the patients of a batch, so no bound holds for one of them; "
                "choose a model without it (for example task.normalisation=none), or privacy.epsilon = inf"
            )


def clipped_gradients(
    model: Any,
    moving: Sequence[Any],
    fixed: Sequence[Any],
    batch: tuple[Any, Any, Any],
    loss: Callable[[Any, Any], Any],
    bound: float,
    per_unit: int,
) -> tuple[Clipped, Any]:
    """Return the sum over a batch of each row's gradient, clipped to ``bound``, with its sensitivity; and the sum of the losses.

    ``moving`` are the values of the weights that gradients move, ``fixed`` the others', both as ``stateless_call`` takes them. ``batch`` holds inputs ``(n, ...)``, labels ``(n,)`` and a
    mask ``(n,)``: a row with mask 0 adds nothing. ``loss`` gives one loss a row.

    Guarantee
    ---------
    Adding or removing the rows of one unit, at most ``per_unit`` of them, moves the sum by at most ``bound * per_unit`` in L2 over all weights together, as long as the output of a row
    depends on no other row of the batch (`check`).

    Edge cases
    ----------
    - A gradient whose norm overflows or is not a number counts as 0, whatever made it so: were it to spoil the sum, that would be a bit about one row which no noise covers.
    """
    try:
        total = _by_layers if _has_rules(model) else _one_by_one
        parts, losses = total(model, moving, fixed, batch, loss, bound)
    except _CalledAgainError:
        parts, losses = _one_by_one(model, moving, fixed, batch, loss, bound)
    return Clipped(parts, bound * per_unit), losses


class _CalledAgainError(Exception):
    """A layer is called twice in a pass, so that its gradient is no single product."""


def _by_layers(model: Any, moving: Any, fixed: Any, batch: Any, loss: Any, bound: float) -> tuple[list[Any], Any]:
    import tensorflow as tf

    x, y, mask = batch
    uses: list[Use] = []
    with tf.GradientTape() as tape, _watched(model, tape, uses):
        outputs, _ = model.stateless_call(moving, fixed, x, training=True)
        losses = tf.reduce_sum(loss(y, outputs) * mask)
    points = [use.points for use in uses]
    gradients = tape.gradient(losses, points, unconnected_gradients="zero")
    finished = [use.finish(found) for use, found in zip(uses, gradients, strict=True)]
    squared = tf.add_n([norms for norms, _ in finished])
    factor = _factors(squared, bound)
    sums = {id(variable): total for _, total_of in finished for variable, total in total_of(factor)}
    variables = model.trainable_variables
    return [tf.reshape(sums[id(v)], v.shape) if id(v) in sums else tf.zeros(v.shape) for v in variables], losses


def _one_by_one(model: Any, moving: Any, fixed: Any, batch: Any, loss: Any, bound: float) -> tuple[list[Any], Any]:
    """Compute each example's gradient whole; ten times slower, for whatever layers there are. All examples drop the same units."""
    import tensorflow as tf

    def one(example: tuple[Any, Any, Any]) -> tuple[Any, ...]:
        x, y, mask = (part[None] for part in example)
        with tf.GradientTape() as tape:
            tape.watch(moving)
            outputs, _ = model.stateless_call(moving, fixed, x, training=True)
            value = tf.reduce_sum(loss(y, outputs) * mask)
        gradients = tape.gradient(value, moving, unconnected_gradients="zero")
        return value, [tf.convert_to_tensor(g) for g in gradients]

    losses, gradients = tf.vectorized_map(one, batch)
    squared = tf.add_n([_squares(g) for g in gradients])
    factor = _factors(squared, bound)
    return [_summed(g, factor) for g in gradients], tf.reduce_sum(losses)


def _factors(squared: Any, bound: float) -> Any:
    """Return what each example's gradient is multiplied by: ``min(1, bound / norm)``, and 0 where the norm is no number."""
    import tensorflow as tf

    within = bound / tf.maximum(tf.sqrt(tf.maximum(squared, 0.0)), bound)
    return tf.where(tf.math.is_finite(squared), within, 0.0)


# --- which layers have a rule --------------------------------------------------------------------------------------------


def _own(layer: Any) -> list[Any]:
    """Return the weights that a layer itself has and gradients move; those of a recurrent layer's cell are the layer's."""
    import keras

    if isinstance(layer, keras.layers.LSTM | keras.layers.GRU):
        return list(layer.trainable_variables)
    return [v for v in layer._trainable_variables if v.trainable] if layer.trainable else []  # noqa: SLF001


def _weighted(model: Any) -> list[Any]:
    layers = model._flatten_layers()  # noqa: SLF001
    cells = {id(layer.cell) for layer in layers if hasattr(layer, "cell")}
    return [layer for layer in layers if id(layer) not in cells and _own(layer)]


def _has_rules(model: Any) -> bool:
    """Tell whether every layer with weights has a rule and is called once."""
    import keras

    layers = _weighted(model)
    known = {id(v) for layer in layers for v in _own(layer)}
    recurrent = any(isinstance(layer, keras.layers.RNN) for layer in layers)
    every = model._flatten_layers()  # noqa: SLF001
    masked = any(getattr(layer, "mask_zero", False) or isinstance(layer, keras.layers.Masking) for layer in every)
    whole = known == {id(v) for v in model.trainable_variables} and not (recurrent and masked)
    return whole and all(_rule(layer) is not None and _takes_one(layer) for layer in layers)


def _takes_one(layer: Any) -> bool:
    """Tell whether a layer has one input at most in the model's own graph: no first state, no second call."""
    nodes = layer._inbound_nodes  # noqa: SLF001
    return len(nodes) <= 1 and all(len(node.input_tensors) == 1 for node in nodes)


def _rule(layer: Any) -> Rule | None:
    import keras

    rules: list[tuple[Any, Rule, Callable[[Any], bool]]] = [
        (keras.layers.Dense, _dense, lambda it: not it.lora_enabled and it.quantization_mode is None),
        (
            keras.layers.Conv2D,
            _convolution,
            lambda it: it.groups == 1 and it.data_format == "channels_last" and not it.lora_enabled,
        ),
        (keras.layers.Embedding, _embedding, lambda it: not it.lora_enabled),
        (keras.layers.EinsumDense, _einsum, _splits),
        (keras.layers.LayerNormalization, _normalisation, lambda it: not it.rms_scaling),
        (keras.layers.LSTM, _lstm, _plainly_recurrent),
        (keras.layers.GRU, _gru, lambda it: _plainly_recurrent(it) and it.cell.reset_after),
    ]
    return next((rule for kind, rule, fits in rules if type(layer) is kind and fits(layer)), None)


def _plainly_recurrent(layer: Any) -> bool:
    cell = layer.cell
    return not (layer.go_backwards or layer.stateful or layer.return_state or cell.dropout or cell.recurrent_dropout)


@contextmanager
def _watched(model: Any, tape: Any, uses: list[Use]) -> Iterator[None]:
    """Within, a call of a layer that has weights is computed by its rule, which writes down its use."""
    layers = [(layer, rule) for layer in _weighted(model) if (rule := _rule(layer))]
    called: set[int] = set()

    def instead(layer: Any, rule: Rule) -> Callable[..., Any]:
        def call(inputs: Any, **_named: Any) -> Any:
            if id(layer) in called:
                raise _CalledAgainError(layer.name)
            called.add(id(layer))
            outputs, use = rule(layer, inputs, tape)
            uses.append(use)
            return outputs

        return call

    for layer, rule in layers:
        layer.call = instead(layer, rule)
    try:
        yield
    finally:
        for layer, _ in layers:
            del layer.call


# --- products: what went in, times the gradient at what came out ----------------------------------------------------------


def _squares(values: Any) -> Any:
    """Return the sum of squares of each example, ``(n,)``."""
    import tensorflow as tf

    return tf.reduce_sum(tf.square(values), axis=list(range(1, values.shape.rank)))


def _weigh(values: Any, factor: Any) -> Any:
    """Multiply each example by its factor; one with the factor 0 is 0, whatever it was."""
    import tensorflow as tf

    return tf.math.multiply_no_nan(values, tf.reshape(factor, [-1] + [1] * (values.shape.rank - 1)))


def _summed(each: Any, factor: Any) -> Any:
    """Return the sum over examples, each times its factor."""
    import tensorflow as tf

    return tf.reduce_sum(_weigh(each, factor), 0)


def _finite(values: Any) -> Any:
    import tensorflow as tf

    return tf.where(tf.math.is_finite(values), values, tf.zeros_like(values))


def _product(variable: Any, a: Any, g: Any) -> tuple[Any, Sums]:
    """Handle gradients that are, for each example, the sum over places ``t`` of ``a[t]`` times ``g[t]``: ``a (n, i)`` or ``(n, t, i)``, ``g`` with ``j`` alike.

    With places, the norm comes from the two Gram matrices (``t * t * (i + j)`` products) or from the gradients themselves (``t * i * j``), whichever is less work.
    """
    import tensorflow as tf

    if a.shape.rank == 2:
        return _squares(a) * _squares(g), lambda factor: [
            (variable, tf.matmul(_weigh(a, factor), _finite(g), transpose_a=True))
        ]
    places, i, j = a.shape[1], a.shape[2], g.shape[2]
    if places * (i + j) < i * j:
        wide_a, wide_g = (
            tf.cast(a, tf.float64),
            tf.cast(g, tf.float64),
        )  # terms may cancel, and what is left has to be right
        grams = tf.matmul(wide_a, wide_a, transpose_b=True) * tf.matmul(wide_g, wide_g, transpose_b=True)
        flat = tf.reshape(_finite(a), [-1, i])
        return tf.cast(tf.reduce_sum(grams, [1, 2]), tf.float32), lambda factor: [
            (variable, tf.matmul(flat, tf.reshape(_weigh(g, factor), [-1, j]), transpose_a=True))
        ]
    each = tf.matmul(a, g, transpose_a=True)
    return _squares(each), lambda factor: [(variable, _summed(each, factor))]


def _bias(variable: Any, g: Any) -> tuple[Any, Sums]:
    """Handle gradients that are the sum of ``g`` over all places but the last axis."""
    import tensorflow as tf

    each = tf.reduce_sum(tf.reshape(g, [tf.shape(g)[0], -1, g.shape[-1]]), 1) if g.shape.rank > 2 else g
    return _squares(each), lambda factor: [(variable, _summed(each, factor))]


def _both(pieces: Sequence[tuple[Any, Sums]]) -> tuple[Any, Sums]:
    squared = pieces[0][0] if len(pieces) == 1 else sum(norms for norms, _ in pieces)
    return squared, lambda factor: [pair for _, total in pieces for pair in total(factor)]


def _placed(values: Any, last: int) -> Any:
    """Return ``(n, last)`` or ``(n, places, last)``."""
    import tensorflow as tf

    sides = values.shape[1:]
    places = sides.num_elements() // last
    return tf.reshape(values, [-1, last] if places == 1 else [-1, places, last])


def _linear(layer: Any, tape: Any, a: Any, z: Any, kernel: Any, width: int) -> tuple[Any, Use]:
    """Finish a layer that is a product, a bias and an activation; ``a`` is what the kernel was multiplied with."""
    tape.watch(z)

    def finish(gradients: list[Any]) -> tuple[Any, Sums]:
        g = _placed(gradients[0], width)
        pieces = [_product(kernel, a, g)]
        return _both([*pieces, _bias(layer.bias, g)] if layer.bias is not None else pieces)

    return layer.activation(z) if layer.activation is not None else z, Use([z], finish)


def _dense(layer: Any, inputs: Any, tape: Any) -> tuple[Any, Use]:
    import tensorflow as tf

    z = tf.tensordot(inputs, layer.kernel.value, 1) if inputs.shape.rank > 2 else tf.matmul(inputs, layer.kernel.value)
    z = z + layer.bias.value if layer.bias is not None else z
    return _linear(layer, tape, _placed(inputs, inputs.shape[-1]), z, layer.kernel, layer.units)


def _convolution(layer: Any, inputs: Any, tape: Any) -> tuple[Any, Use]:
    """Take a convolution as the product with patches, which are cut out for the norms alone."""
    import tensorflow as tf

    rates, strides, padding = layer.dilation_rate, layer.strides, layer.padding.upper()
    z = tf.nn.conv2d(inputs, layer.kernel.value, strides, padding, dilations=rates)
    z = z + layer.bias.value if layer.bias is not None else z
    height, width, depth, _ = layer.kernel.shape
    patches = tf.image.extract_patches(inputs, [1, height, width, 1], [1, *strides, 1], [1, *rates, 1], padding)
    return _linear(layer, tape, _placed(patches, height * width * depth), z, layer.kernel, layer.filters)


def _splits(layer: Any) -> bool:
    """Tell whether an equation multiplies the last axes of the input with the first of the kernel, as those of attention do."""
    left, _, out = layer.equation.partition("->")
    into, _, kernel = left.partition(",")
    shared = [axis for axis in kernel if axis in into]
    count = len(shared)
    return (
        "." not in layer.equation
        and not layer.lora_enabled
        and kernel[:count] == into[len(into) - count :]
        and out == into[: len(into) - count] + kernel[count:]
        and (layer.bias is None or tuple(layer.bias.shape) == tuple(layer.kernel.shape[count:]))
    )


def _einsum(layer: Any, inputs: Any, tape: Any) -> tuple[Any, Use]:
    import tensorflow as tf

    into, _, kernel = layer.equation.partition("->")[0].partition(",")
    count = sum(axis in into for axis in kernel)
    shape = layer.kernel.shape
    z = tf.einsum(layer.equation, inputs, layer.kernel.value)
    z = z + layer.bias.value if layer.bias is not None else z
    inner, outer = (tf.TensorShape(part).num_elements() for part in (shape[:count], shape[count:]))
    return _linear(layer, tape, _placed(inputs, inner), z, layer.kernel, outer)


def _embedding(layer: Any, inputs: Any, tape: Any) -> tuple[Any, Use]:
    """Count places of one example that hold the same word together: its gradient is the sum over them."""
    import tensorflow as tf

    words = tf.cast(inputs, tf.int32)
    z = tf.gather(layer.embeddings.value, words)
    tape.watch(z)

    def finish(gradients: list[Any]) -> tuple[Any, Sums]:
        g, places = _placed(gradients[0], layer.output_dim), tf.reshape(words, [tf.shape(words)[0], -1])
        g = g if g.shape.rank == 3 else g[:, None]
        wide = tf.cast(g, tf.float64)
        same = tf.cast(places[:, :, None] == places[:, None, :], wide.dtype)
        squared = tf.cast(tf.reduce_sum(tf.matmul(wide, wide, transpose_b=True) * same, [1, 2]), tf.float32)
        flat = tf.reshape(places, [-1])
        return squared, lambda factor: [
            (
                layer.embeddings,
                tf.math.unsorted_segment_sum(
                    tf.reshape(_weigh(g, factor), [-1, layer.output_dim]), flat, layer.input_dim
                ),
            )
        ]

    return z, Use([z], finish)


def _normalisation(layer: Any, inputs: Any, tape: Any) -> tuple[Any, Use]:
    import keras
    import tensorflow as tf

    axes = [axis % inputs.shape.rank for axis in (layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis])]
    shape = [size if axis in axes else 1 for axis, size in enumerate(inputs.shape)]
    others = [axis for axis in range(1, inputs.shape.rank) if axis not in axes]
    standard = keras.ops.layer_normalization(inputs, None, None, layer.axis, layer.epsilon)
    z = standard * tf.reshape(layer.gamma.value, shape) if layer.scale else standard
    z = z + tf.reshape(layer.beta.value, shape) if layer.center else z
    tape.watch(z)

    def finish(gradients: list[Any]) -> tuple[Any, Sums]:
        parts = [(layer.gamma, gradients[0] * standard)] if layer.scale else []
        parts += [(layer.beta, gradients[0])] if layer.center else []
        return _both([_plain(variable, tf.reduce_sum(values, others)) for variable, values in parts])

    return z, Use([z], finish)


def _plain(variable: Any, each: Any) -> tuple[Any, Sums]:

    return _squares(each), lambda factor: [(variable, _summed(each, factor))]


# --- recurrent layers, unrolled ------------------------------------------------------------------------------------------


def _recurrent(layer: Any, outputs: list[Any]) -> Any:
    import tensorflow as tf

    return tf.stack(outputs, 1) if layer.return_sequences else outputs[-1]


def _lstm(layer: Any, inputs: Any, tape: Any) -> tuple[Any, Use]:
    """Watch what goes into the gates in one piece for all steps: the recurrent part is added to it, so both have the same gradient."""
    import tensorflow as tf

    cell, units = layer.cell, layer.cell.units
    z = tf.tensordot(inputs, cell.kernel.value, 1)
    z = z + cell.bias.value if cell.use_bias else z
    tape.watch(z)
    h = c = tf.zeros([tf.shape(inputs)[0], units])
    before, outputs = [], []
    for step in tf.unstack(z, axis=1):
        before.append(h)
        i, f, o_in, o = tf.split(step + tf.matmul(h, cell.recurrent_kernel.value), 4, 1)
        c = cell.recurrent_activation(f) * c + cell.recurrent_activation(i) * cell.activation(o_in)
        h = cell.recurrent_activation(o) * cell.activation(c)
        outputs.append(h)

    def finish(gradients: list[Any]) -> tuple[Any, Sums]:
        pieces = [
            _product(cell.kernel, inputs, gradients[0]),
            _product(cell.recurrent_kernel, tf.stack(before, 1), gradients[0]),
        ]
        return _both([*pieces, _bias(cell.bias, gradients[0])] if cell.use_bias else pieces)

    return _recurrent(layer, outputs), Use([z], finish)


def _gru(layer: Any, inputs: Any, tape: Any) -> tuple[Any, Use]:
    """Watch the recurrent part by itself, step by step, because the reset gate multiplies it."""
    import tensorflow as tf

    cell, units = layer.cell, layer.cell.units
    biases = tf.unstack(cell.bias.value) if cell.use_bias else (0.0, 0.0)
    z = tf.tensordot(inputs, cell.kernel.value, 1) + biases[0]
    tape.watch(z)
    h = tf.zeros([tf.shape(inputs)[0], units])
    before, recurrent, outputs = [], [], []
    for step in tf.unstack(z, axis=1):
        before.append(h)
        r = tf.matmul(h, cell.recurrent_kernel.value) + biases[1]
        tape.watch(r)
        recurrent.append(r)
        (update, reset, new), (update_r, reset_r, new_r) = tf.split(step, 3, 1), tf.split(r, 3, 1)
        gate = cell.recurrent_activation(update + update_r)
        fresh = cell.activation(new + cell.recurrent_activation(reset + reset_r) * new_r)
        h = gate * h + (1.0 - gate) * fresh
        outputs.append(h)

    def finish(gradients: list[Any]) -> tuple[Any, Sums]:
        into, back = gradients[0], tf.stack(gradients[1:], 1)
        pieces = [_product(cell.kernel, inputs, into), _product(cell.recurrent_kernel, tf.stack(before, 1), back)]
        if cell.use_bias:
            pieces.append(_plain(cell.bias, tf.stack([tf.reduce_sum(into, 1), tf.reduce_sum(back, 1)], 1)))
        return _both(pieces)

    return _recurrent(layer, outputs), Use([z, *recurrent], finish)
