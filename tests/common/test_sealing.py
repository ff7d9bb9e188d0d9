"""Sealed chunks come out as they went in, or not at all."""

import io

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from common import sealing

CIPHER, BOUND, CHUNK = AESGCM(bytes(range(32))), b"header", 64
PIECES = st.lists(st.binary(max_size=200), max_size=8)


@pytest.fixture(autouse=True, scope="module")
def _small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sealing, "CHUNK", CHUNK)
        yield


def sealed(pieces, bound=BOUND):
    out = io.BytesIO()
    sink = sealing.Sealing(out, CIPHER, bound)
    for piece in pieces:
        sink.write(piece)
    sink.close()
    return out.getvalue()


def opened(content, bound=BOUND):
    return b"".join(sealing.opened(io.BytesIO(content), CIPHER, bound))


@given(PIECES)
def test_what_is_sealed_is_opened_again_however_it_was_written(pieces):
    whole = b"".join(pieces)
    content = sealed(pieces)
    assert content == sealed([memoryview(whole)])
    assert len(content) == sealing.sealed_size(len(whole))
    assert opened(content) == whole


@given(PIECES)
def test_every_chunk_is_what_the_cipher_makes_of_it_under_its_number(pieces):
    whole, content = b"".join(pieces), sealed(pieces)
    chunks = [whole[at : at + CHUNK] for at in range(0, len(whole), CHUNK)] or [b""]
    nonces = [number.to_bytes(11, "big") + bytes([number == len(chunks) - 1]) for number in range(len(chunks))]
    assert content == b"".join(CIPHER.encrypt(nonce, chunk, BOUND) for nonce, chunk in zip(nonces, chunks, strict=True))


@given(st.data())
def test_nothing_that_was_changed_is_opened(data):
    content = sealed([data.draw(st.binary(max_size=300))])
    size = CHUNK + sealing.TAG
    place = data.draw(st.integers(0, len(content) - 1))
    first = data.draw(st.integers(0, len(content) // size))
    chunks = [content[at : at + size] for at in range(0, len(content), size)]
    changed = data.draw(
        st.sampled_from(
            [
                content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :],
                content[:place],
                content + b"x",
                content + content,
                b"".join(chunks[:first] + chunks[first + 1 :]),
                b"".join(chunks[:-1]),
            ]
        )
    )
    if changed != content:
        with pytest.raises(InvalidTag):
            opened(changed)
    with pytest.raises(InvalidTag):
        opened(content, b"another")
