"""Bytes of any length, encrypted in chunks of AES-256-GCM (NIST SP 800-38D): numbered, the last one marked (STREAM, Hoang et al. 2015), each bound to what stands before them.

*Guarantee.* Whoever lacks the key learns the length, and can change nothing unseen: chunks that were altered, moved, left out, cut off or taken from elsewhere are refused.
*Edge cases.* A key must never seal twice, because a chunk's nonce is its number; whoever calls derives one from a random salt. No bytes at all are one empty chunk. What comes
out before the last chunk is genuine, and may be the beginning of something that was cut off: only the end says that all of it was there.
"""

from collections.abc import Iterator
from typing import BinaryIO

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

CHUNK, TAG = 1 << 20, 16
"""Bytes of a chunk, and by how many it is longer when it is sealed."""


class Sealing:
    """Writes to a file what is written to it, sealed; ``bound`` is what the chunks belong to, such as a header."""

    def __init__(self, out: BinaryIO, cipher: AESGCM, bound: bytes) -> None:
        self._out, self._cipher, self._bound = out, cipher, bound
        self._number, self._rest = 0, bytearray()

    def write(self, data: bytes | memoryview) -> None:
        """Take bytes; they are written when there are enough for a chunk and one more."""
        for begin in range(0, len(data), CHUNK):
            self._rest += data[begin : begin + CHUNK]
            while len(self._rest) > CHUNK:
                self._seal(bytes(self._rest[:CHUNK]), last=False)
                del self._rest[:CHUNK]

    def close(self) -> None:
        """Write the last chunk."""
        self._seal(bytes(self._rest), last=True)

    def _seal(self, chunk: bytes, *, last: bool) -> None:
        self._out.write(self._cipher.encrypt(_nonce(self._number, last=last), chunk, self._bound))
        self._number += 1


def opened(file: BinaryIO, cipher: AESGCM, bound: bytes) -> Iterator[bytes]:
    """Yield what was sealed from here to the file's end, chunk by chunk, each once it is found to be as it was written.

    Raises
    ------
    InvalidTag
        When the rest is not what was sealed under this key, bound to this.
    """
    number, chunk = 0, file.read(CHUNK + TAG)
    while chunk or not number:
        after = file.read(CHUNK + TAG)
        yield cipher.decrypt(_nonce(number, last=not after), chunk, bound)
        number, chunk = number + 1, after


def sealed_size(size: int) -> int:
    """Return how many bytes so many are when they are sealed."""
    return size + TAG * max(1, -(-size // CHUNK))


def _nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])
