"""The Keras model behind a task, with its variables laid out as flat vectors: one that is shared, one that stays at the hospital."""

import json
import random
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from common import backend
from common.layout import Entry, Layout, Vector
from common.tasks.task import Preparation, Task


@dataclass(frozen=True)
class Network:
    """A model and the layout of its weights. ``shared`` and ``local`` split ``model.weights``, each in the model's own order."""

    model: Any
    shared: Layout
    local: Layout

    @cached_property
    def is_local(self) -> tuple[bool, ...]:
        """Tell for every one of ``model.weights`` whether it stays at the hospital."""
        paths = {entry.path for entry in self.local.entries}
        return tuple(weight.path in paths for weight in self.model.weights)

    def interleave(self, shared: list[Any], local: list[Any]) -> list[Any]:
        """Put the two kinds back into the order of ``model.weights``."""
        kinds = iter(shared), iter(local)
        return [next(kinds[is_local]) for is_local in self.is_local]

    def divide(self, weights: list[Any]) -> tuple[list[Any], list[Any]]:
        """Undo `interleave`: return the shared and the local ones."""
        pairs = list(zip(self.is_local, weights, strict=True))
        return [w for is_local, w in pairs if not is_local], [w for is_local, w in pairs if is_local]

    def vectors(self) -> tuple[Vector, Vector]:
        """Return the model's present weights as the shared and the local vector."""
        shared, local = self.divide([weight.numpy() for weight in self.model.weights])
        return self.shared.flatten(shared), self.local.flatten(local)

    def assign(self, shared: Vector, local: Vector) -> None:
        """Write two vectors into the model."""
        arrays = self.interleave(self.shared.split(shared), self.local.split(local))
        for weight, array in zip(self.model.weights, arrays, strict=True):
            weight.assign(array)


def build(task: Task, preparation: Preparation, local_parts: tuple[str, ...], seed: int) -> Network:
    """Build the model with initial weights that follow from ``seed``; parts named in ``local_parts`` stay at the hospital.

    Keras draws the seeds of its initialisers and dropout layers from Python's own generator; it is set for the building and then put back.
    """
    backend.start()
    before = random.getstate()
    random.seed(seed)
    try:
        model = task.build(preparation)
    finally:
        random.setstate(before)
    trainable = {id(weight) for weight in model.trainable_weights}
    prefixes = task.prefixes(local_parts)
    entries = [Entry(w.path, tuple(w.shape), id(w) in trainable) for w in model.weights]
    stays = [any(under(entry.path, prefix) for prefix in prefixes) for entry in entries]
    shared = tuple(entry for entry, local in zip(entries, stays, strict=True) if not local)
    local = tuple(entry for entry, local in zip(entries, stays, strict=True) if local)
    return Network(model, Layout(shared), Layout(local))


def initial(task: Task, preparation: Preparation, local_parts: tuple[str, ...], seed: int) -> tuple[Vector, Layout]:
    """Return the first shared weights of a run and their layout."""
    network = build(task, preparation, local_parts, seed)
    return network.vectors()[0], network.shared


def dumps(preparation: Preparation) -> str:
    """Write a preparation as one line of JSON, the same text for the same content."""
    return json.dumps(preparation, sort_keys=True, separators=(",", ":"))


def under(path: str, prefix: str) -> bool:
    """Tell whether a variable's path is ``prefix`` or lies below it."""
    return path == prefix or path.startswith(prefix + "/")
