"""Masks: keystreams that look uniform, added to and taken from vectors of uint32 modulo 2**32.

*Guarantee*: a vector under the mask of a seed that is known to nobody else is indistinguishable from uniform, as AES-256 in counter mode is. *Edge cases*: a
seed serves for one vector only, since its counter starts at 0; who makes seeds keeps to that (`common.secagg.protocol` makes all of them anew for every sum).
"""

from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

Words = NDArray[np.uint32]
SEED = 32
"""Bytes of a seed."""
BLOCK = 1 << 17
"""Bytes of keystream that are made at a time: they and the words they are added to stay in the processor's cache."""

_ZEROS = bytes(BLOCK)


def apply(vector: Words, plus: Sequence[bytes], minus: Sequence[bytes] = ()) -> None:
    """Add to ``vector``, shape ``(n,)``, in place, the masks of the seeds ``plus``, and take away those of ``minus``."""
    streams = [(_stream(seed), np.add) for seed in plus] + [(_stream(seed), np.subtract) for seed in minus]
    data = np.empty(BLOCK + 16, np.uint8)  # the cipher wants room for one block of its own beyond the last
    for start in range(0, len(vector), BLOCK // 4):
        piece = vector[start : start + BLOCK // 4]
        zeros, keystream = memoryview(_ZEROS)[: 4 * len(piece)], data[: 4 * len(piece)].view("<u4")
        for stream, combine in streams:
            stream.update_into(zeros, data)
            combine(piece, keystream, out=piece)


def _stream(seed: bytes):  # type: ignore[no-untyped-def]  # noqa: ANN202 - cryptography does not name the type
    return Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor()
