"""TensorFlow, started once in a process: quietly, and with a fixed count of threads, which keeps sums in a fixed order."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any


def start(threads: int = 1) -> None:
    """Import TensorFlow (about 4 s and 500 MB) with so many threads an operation; only a process's first call has an effect."""
    if "tensorflow" in sys.modules:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    # TensorFlow leaves oneDNN off where it sees no AVX-512; on AVX2 it still halves the time of a convolution (benchmarks/round.py).
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    with _muted(), _absent("matplotlib", "pandas", "sklearn"):
        import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


def callable_of(function: Any) -> Callable[..., Any]:
    """Trace a ``tf.function`` for its input signature; the result takes tensors alone, in that order.

    TensorFlow's own call matches arguments to traces and then to names, which costs more than the epoch of a small model.
    """
    concrete = function.get_concrete_function()
    return lambda *tensors: concrete.inference_fn.call_preflattened([*tensors, *concrete.captured_inputs])


@lru_cache(1)
def nothing() -> Any:
    """Return the empty float32 tensor, one for all: making one costs as much as a step of a small model."""
    import tensorflow as tf

    return tf.zeros([0])


@contextmanager
def _absent(*names: str) -> Iterator[None]:
    """Let packages that are not imported yet seem not to be installed: Keras imports them for wrappers and plots that nobody here uses, which costs 3 s and 120 MB."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


@contextmanager
def _muted() -> Iterator[None]:
    """Close the error stream to what TensorFlow's C++ code writes while it is loaded, before its own log level counts."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123 - the null device is no path of ours
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
