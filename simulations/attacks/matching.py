"""Inversion of an image from its gradient where no layer tells it directly: an image is sought whose own gradient points the same way (Geiping et al. 2020, equation 4), with the label read off the last bias (iDLG; Zhao et al. 2020)."""

from collections.abc import Callable
from typing import Any

import numpy as np

from client import training
from common.config import RunConfig
from common.network import Network
from common.seeds import seed_for
from common.tasks.task import Task
from simulations.attacks.attack import Heard, Scores

STEPS = 400
STEP = 8.0
"""Grey levels that the first step moves a pixel."""
SMOOTH = 1e-4
"""Weight of the total variation: neighbouring pixels of a picture are alike."""
WHITE = 255.0


def applies(network: Network) -> bool:
    """Tell whether the model reads an image and answers by one logit with a bias that travels."""
    last = network.shared.entries[-1]
    return len(network.model.input_shape) == 4 and network.model.output_shape[-1] == 1 and last.shape == (1,)


def compile_search(network: Network, task: Task) -> Callable[..., Any]:
    """Return the compiled function ``(moving, fixed, wanted, label, image) -> image``, all tensors: from a first image, the one whose gradient is most like ``wanted``, the gradient laid end to end."""
    import tensorflow as tf

    def distance(moving: Any, fixed: Any, wanted: Any, label: Any, image: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(moving)
            outputs, _ = network.model.stateless_call(moving, fixed, image, training=False)
            loss = tf.reduce_sum(task.objective.loss(label, outputs))
        found = training.join(tape.gradient(loss, moving, unconnected_gradients="zero"))
        alike = tf.reduce_sum(found * wanted) / (tf.norm(found) * tf.norm(wanted) + 1e-12)
        return 1 - alike + SMOOTH * tf.reduce_sum(tf.image.total_variation(image)) / WHITE

    def search(moving: Any, fixed: Any, wanted: Any, label: Any, first: Any) -> Any:
        def step(index: Any, image: Any, slots: list[Any]) -> tuple[Any, ...]:
            with tf.GradientTape() as tape:
                tape.watch(image)
                value = distance(moving, fixed, wanted, label, image)
            gradient = tape.gradient(value, image)
            rate = STEP * (1 - tf.cast(index, tf.float32) / STEPS)
            (moved,), slots = training.OPTIMIZERS["adam"].step([image], [tf.sign(gradient)], slots, rate, index, 0.0)
            return index + 1, tf.clip_by_value(moved, 0.0, WHITE), slots

        nothing = [tf.zeros_like(first)] * 2
        return tf.while_loop(lambda index, *_: index < STEPS, step, (tf.constant(0), first, nothing))[1]

    compiled: Callable[..., Any] = tf.function(search, autograph=False)
    return compiled


def matched(search: Callable[..., Any], network: Network, heard: Heard, config: RunConfig, seed: int) -> Scores:
    """Return the image, grey levels of the model's input shape, that was sought for an update over one step on one image."""
    import tensorflow as tf

    local = tf.constant(network.vectors()[1])
    update = tf.constant(heard.update / np.float32(-config.training.learning_rate))
    moving, fixed = training.lay_out(network, tf.constant(heard.weights), local)
    moved, _ = training.lay_out(network, update, local)
    decay = config.training.weight_decay
    wanted = training.join([g - decay * w if len(w.shape) > 1 else g for g, w in zip(moved, moving, strict=True)])
    label = tf.cast(moved[-1][:1] < 0, tf.int32)  # the gradient of the last bias is the chance minus the label
    shape = (1, *network.model.input_shape[1:])
    first = np.random.default_rng(seed_for(seed, "matching")).uniform(0, WHITE, shape).astype(np.float32)
    return np.asarray(search(moving, fixed, wanted, label, tf.constant(first)).numpy()[0], np.float64)
