"""Bases: networks that were trained elsewhere, whose first layers turn pictures into features.

A base is a file that every site holds itself; it is neither sent nor averaged. A run names its kind and SHA-256, never a path. Its frozen layers are a part of the encoding:
they run once for each picture. Nothing here downloads, and without the file nothing is made up in its place.
"""

import hashlib
import json
import os
import random
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common import backend
from common.errors import DataError

FOLDER = "FEDWARD_WEIGHTS"
"""The environment variable that names the file of a base, or a folder that holds it."""
BATCH = 16
"""Pictures that go through the frozen layers at a time; always so many, so that a picture's features do not depend on which others there are."""
MOST_BYTES = 2**28
"""Features that a process remembers by picture; what goes beyond is computed again where it is asked for again."""


@dataclass(frozen=True)
class Kind:
    """One architecture. ``file`` is the name of its weights; ``md5`` what Keras says of its own download (empty: it has none); ``block`` the first layer of the last block, or empty for the last convolution; ``convolutions`` how many the block has."""

    title: str
    file: str
    md5: str
    block: str
    open: Callable[[Path, int], Any]
    convolutions: int = 1
    prepare: Callable[[Any], Any] = lambda pixels: pixels


def _vgg16(path: Path, side: int) -> Any:
    import keras

    model = keras.applications.VGG16(include_top=False, weights=None, input_shape=(side, side, 3))
    model.load_weights(path)
    return model


def _mobilenet(path: Path, side: int) -> Any:
    import keras

    model = keras.applications.MobileNetV3Small(include_top=False, weights=None, input_shape=(side, side, 3))
    model.load_weights(path)
    return model


def _own(path: Path, side: int) -> Any:
    """Return the layers up to the last that still has a height and a width, for another size of picture."""
    import keras

    model = keras.saving.load_model(path, safe_mode=True)
    last = [layer for layer in model.layers if len(layer.output.shape) == 4][-1]
    kept = keras.Model(model.inputs[0], last.output)
    resized = keras.models.clone_model(kept, input_tensors=keras.Input((side, side, model.input_shape[-1])))
    resized.set_weights(kept.get_weights())
    return resized


def _centred(pixels: Any) -> Any:
    """Reverse the colours and take off ImageNet's means, as VGG16 was trained."""
    return pixels[..., ::-1] - np.array([103.939, 116.779, 123.68], np.float32)


KINDS: Mapping[str, Kind] = {
    "vgg16": Kind(
        "ImageNet, by keras.applications.VGG16",
        "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
        "6d6bbae143d832006294945121d1f1fc",
        "block5_conv1",
        _vgg16,
        3,
        _centred,
    ),
    "mobilenet": Kind(
        "ImageNet, by keras.applications.MobileNetV3Small",
        "weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5",
        "d3e8ec802a04aa4fc771ee12a9a9b836",
        "conv_1",
        _mobilenet,
    ),
    "own": Kind("", "model.keras", "", "", _own),
}


@dataclass(frozen=True, eq=False)
class Base:
    """A base for pictures of one size: ``model`` ends in feature maps ``(n, height, width, channels)``; ``block`` is the first layer of its last block."""

    model: Any
    block: str
    prepare: Callable[[Any], Any]
    known: dict[tuple[bool, bytes], NDArray[np.float32]] = field(default_factory=dict)

    @cached_property
    def inputs(self) -> Any:
        """Return the tensor that enters the last block."""
        return self.model.get_layer(self.block).input

    @cached_property
    def chain(self) -> list[Any]:
        """Return the layers of the last block, in order."""
        names = [layer.name for layer in self.model.layers]
        return list(self.model.layers[names.index(self.block) :])

    def shape(self, *, whole: bool) -> tuple[int, ...]:
        """Return the shape of a picture's features: means over the picture after the whole base, or what enters its last block."""
        return (int(self.model.output.shape[-1]),) if whole else tuple(self.inputs.shape[1:])

    def features(self, images: NDArray[np.uint8], *, whole: bool) -> NDArray[np.float32]:
        """Return the features of bytes ``(n, side, side, 3)``, float32 ``(n, *shape)``; a picture that was seen before is not computed again."""
        keys = [(whole, hashlib.sha256(image.tobytes()).digest()) for image in images]
        result = np.empty((len(images), *self.shape(whole=whole)), np.float32)
        new = [place for place, key in enumerate(keys) if key not in self.known]
        for begin in range(0, len(new), BATCH):
            places = new[begin : begin + BATCH]
            batch = np.zeros((BATCH, *images.shape[1:]), np.uint8)
            batch[: len(places)] = images[places]
            result[places] = self._functions[whole](batch)[: len(places)]
        fresh = set(new)
        for place, key in enumerate(keys):
            if place not in fresh:
                result[place] = self.known[key]
            elif len(self.known) * result[place].nbytes < MOST_BYTES:
                self.known[key] = result[place].copy()
        return result

    @cached_property
    def _functions(self) -> dict[bool, Callable[[NDArray[np.uint8]], NDArray[np.float32]]]:
        import keras

        pooled = keras.layers.GlobalAveragePooling2D()(self.model.output)
        return {
            whole: self._compiled(keras.Model(self.model.inputs[0], output))
            for whole, output in ((True, pooled), (False, self.inputs))
        }

    def _compiled(self, model: Any) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
        import tensorflow as tf

        def run(images: Any) -> Any:
            pixels = tf.cast(images, tf.float32)
            if model.input_shape[-1] == 1:
                pixels = tf.image.rgb_to_grayscale(pixels)
            return model(self.prepare(pixels), training=False)

        graph = tf.function(run, autograph=False)
        return lambda images: np.asarray(graph(tf.constant(images)).numpy())

    def last_block(self, inputs: Any) -> tuple[Any, list[tuple[Any, list[NDArray[np.float32]]]]]:
        """Apply a copy of the last block to features; return its output, and each copied layer with the weights it starts from. Those that have any are called ``block_1``, ``block_2`` ...

        Normalisation by moving statistics is folded into the convolution before it: exactly the same function, without numbers that a round would average.
        """
        import keras

        outputs = inputs
        starts: list[tuple[Any, list[NDArray[np.float32]]]] = []
        for layer, following in zip(self.chain, [*self.chain[1:], None], strict=True):
            if isinstance(layer, keras.layers.BatchNormalization):
                continue
            folded = following if isinstance(following, keras.layers.BatchNormalization) else None
            weights = _folded(layer, folded)
            name = f"block_{sum(len(start) > 0 for _, start in starts) + 1}" if weights else f"block_{layer.name}"
            settings = layer.get_config() | {"name": name} | ({"use_bias": True} if folded else {})
            copy = type(layer).from_config(settings)
            outputs = copy(outputs)
            starts.append((copy, weights))
        return outputs, starts


def _folded(layer: Any, following: Any) -> list[NDArray[np.float32]]:
    """Return a convolution's weights with the normalisation that follows it in them; without one, a layer's own."""
    weights = [np.asarray(weight) for weight in layer.get_weights()]
    if following is None:
        return weights
    names = {weight.path.rsplit("/", 1)[-1]: weight.numpy() for weight in following.weights}
    factor = names.get("gamma", np.float32(1)) / np.sqrt(names["moving_variance"] + following.epsilon)
    bias = weights[1] if len(weights) > 1 else np.zeros(weights[0].shape[-1], np.float32)
    return [weights[0] * factor, (bias - names["moving_mean"]) * factor + names.get("beta", np.float32(0))]


def block_of(name: str) -> tuple[str, ...]:
    """Return the names of the layers with weights in a base's last block, as `Base.last_block` copies them.

    >>> block_of("vgg16")
    ('block_1', 'block_2', 'block_3')
    """
    return tuple(f"block_{number}" for number in range(1, KINDS[name].convolutions + 1))


def find(name: str) -> Path:
    """Return the file of a base on this computer: what ``FEDWARD_WEIGHTS`` names, or Keras's own download, if its checksum is Keras's.

    Raises
    ------
    DataError
        When it is not here, or damaged; the message says what to do.
    """
    kind, named = KINDS[name], os.environ.get(FOLDER, "")
    if named:
        path = Path(named) / kind.file if Path(named).is_dir() else Path(named)
        if path.is_file():
            return path
        raise DataError(
            f"{path}: the weights of the base {name!r} are not there; {FOLDER} names the file, or a folder that holds it"
        )
    cache = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "models" / kind.file
    if kind.md5 and cache.is_file():
        if _md5(cache) != kind.md5:
            raise DataError(
                f"{cache}: damaged or another version (its MD5 is not Keras's {kind.md5}); delete it and have Keras fetch it again"
            )
        return cache
    raise DataError(_absence(name, kind))


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def _absence(name: str, kind: Kind) -> str:
    if not kind.md5:
        return f"the base {name!r} has no file; set {FOLDER} to the model.keras of a run of Fedward on public data"
    call = kind.title.rpartition(" ")[2]
    return (
        f"the weights of the base {name!r} are not here, and nothing takes their place: run 'python -c \"import keras; {call}(include_top=False)\"' where there is internet, "
        f"or set {FOLDER} to a copy of {kind.file}; or train a base with Fedward and take --set task.base=own"
    )


def digest(name: str) -> str:
    """Return the SHA-256, in hex, of a base's file on this computer; raise as `find`."""
    path = find(name)
    state = path.stat()
    return _digest(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=8)
def _digest(path: Path, _size: int, _changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def trained_on(name: str) -> str:
    """Say what a base on this computer was trained on; of a model that Fedward trained, the record of its run tells it, if it lies beside; of one of Keras's, its MD5. Raise as `find`."""
    kind = KINDS[name]
    if kind.md5:
        return kind.title if _md5(find(name)) == kind.md5 else "not told: the file is not the one that Keras publishes"
    try:
        data = json.loads((find(name).parent / "run.json").read_text(encoding="utf-8"))["data"]
        return f"{data['name']}: {data['title']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "not told: no run.json lies beside the file"


def load(name: str, sha256: str, side: int) -> Base:
    """Return a base for pictures of ``side`` pixels, once in a process.

    Raises
    ------
    DataError
        When its file is not here, is another than the run's, or cannot be read as such a network.
    """
    here = digest(name)
    if here != sha256:
        raise DataError(
            f"{find(name)}: its SHA-256 is {here}, and the run's base {name!r} has {sha256}; all sites need the same file, ask the coordinator for theirs"
        )
    return _load(name, find(name), sha256, side)


@lru_cache(maxsize=2)
def _load(name: str, path: Path, _sha256: str, side: int) -> Base:
    backend.start()
    kind, drawn = KINDS[name], random.getstate()
    try:
        model = kind.open(path, side)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: is no network of the kind {name!r} for pictures of {side} pixels ({type(error).__name__}); take the file that Keras publishes as {kind.file}, or with the base 'own' the model.keras of a run of Fedward's"
        ) from None
    finally:
        # Keras draws the seeds of initial weights that are overwritten here; those of the model being built must not depend on whether this was done before.
        random.setstate(drawn)
    import keras

    convolutions = [layer.name for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    if model.input_shape[-1] not in (1, 3) or not convolutions:
        raise DataError(f"{path}: expected a network with convolutions over grey or coloured pictures")
    return Base(model, kind.block or convolutions[-1], kind.prepare)
