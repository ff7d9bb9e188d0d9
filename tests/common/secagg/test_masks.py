"""Masks: bit for bit AES in counter mode, removable, and nothing shows through."""

import os

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from common.secagg import masks

ODD = masks.BLOCK // 4 + 5


def keystream(seed, words):
    data = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor().update(bytes(4 * words))
    return np.frombuffer(data, "<u4")


@pytest.mark.parametrize("words", [0, 1, 7, masks.BLOCK // 4, ODD, 3 * ODD])
def test_a_mask_is_the_ciphers_keystream_whatever_the_length(words):
    vector, seed = np.arange(words, dtype=np.uint32), os.urandom(32)
    masked = vector.copy()
    masks.apply(masked, [seed])
    np.testing.assert_array_equal(masked, vector + keystream(seed, words))


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=5), st.integers(0, 2 * ODD))
def test_what_is_added_can_be_taken_away(seeds, words):
    vector = np.arange(words, dtype=np.uint32) * np.uint32(2654435761)
    masked = vector.copy()
    masks.apply(masked, seeds[:2], seeds[2:])
    masks.apply(masked, seeds[2:], seeds[:2])
    np.testing.assert_array_equal(masked, vector)


def test_another_seed_is_another_mask():
    streams = {keystream(bytes([number]) * 32, 4).tobytes() for number in range(256)}
    assert len(streams) == 256
