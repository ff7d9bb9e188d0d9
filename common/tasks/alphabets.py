"""Alphabets of biological sequences, with the ambiguity codes of IUPAC (Cornish-Bowden 1985; IUPAC-IUB 1984), and what can be counted of a sequence."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError

Codes = NDArray[np.uint8]


@dataclass(frozen=True)
class Alphabet:
    """``letters`` stand for themselves; each of ``ambiguous`` (``R=AG``, separated by blanks) for one of several, unknown which.

    A letter's code is its place from 1, first of the letters, then of the ambiguous ones; 0 follows a sequence's end.
    """

    name: str
    letters: str
    ambiguous: str

    @cached_property
    def symbols(self) -> str:
        """Return all letters in the order of their codes."""
        return self.letters + "".join(word[0] for word in self.ambiguous.split())

    @cached_property
    def shares(self) -> NDArray[np.float32]:
        """Return what each code says, ``(1 + symbols, letters)``: 1 for its letter, or equal shares of those that it may be."""
        meant = ["", *self.letters, *(word.partition("=")[2] for word in self.ambiguous.split())]
        return np.array([[(letter in one) / max(len(one), 1) for letter in self.letters] for one in meant], np.float32)

    @cached_property
    def _code(self) -> NDArray[np.uint8]:
        code = np.zeros(256, np.uint8)
        for number, letter in enumerate(self.symbols, 1):
            code[[ord(letter), ord(letter.lower())]] = number
        return code

    def encode(self, sequences: Iterable[object], length: int) -> Codes:
        """Return the codes of every sequence's first letters, ``(n, length)``; a sequence that is None is not known, and reads as an empty one.

        Raises
        ------
        DataError
            For a letter that the alphabet does not have; the message names row and position, both from 1, and never the sequence.

        >>> DNA.encode(["ACGTN", "ac"], 4).tolist()
        [[1, 2, 3, 4], [1, 2, 0, 0]]
        """
        texts = [one if isinstance(one, str) else "" for one in sequences]
        codes = np.zeros((len(texts), length), np.uint8)
        for row, text in enumerate(texts):
            found = self._code[np.frombuffer(text.encode("latin-1", "replace"), np.uint8)]
            if not found.all():
                raise DataError(
                    f"row {row + 1}, position {int(found.argmin()) + 1}: expected a letter of the {self.name} alphabet ({self.symbols}), got another character"
                )
            codes[row, : len(found)] = found[:length]
        return codes


_BASES = "R=AG Y=CT S=CG W=AT K=GT M=AC B=CGT D=AGT H=ACT V=ACG N=ACGT"
_ACIDS = "RKNDQEHPYWSTGAMCFLVI"  # from the one that likes water best to the one that likes it least (Kyte and Doolittle 1982)
DNA = Alphabet("DNA", "ACGT", _BASES)
RNA = Alphabet("RNA", "ACGU", _BASES.replace("T", "U"))
PROTEIN = Alphabet("protein", _ACIDS, f"B=DN J=IL Z=EQ U={_ACIDS} O={_ACIDS} X={_ACIDS}")
ALPHABETS = {alphabet.name: alphabet for alphabet in (DNA, RNA, PROTEIN)}


def composition(codes: Codes, alphabet: Alphabet) -> NDArray[np.float64]:
    """Return the share of every letter in every sequence, and at the end the sequence's length, ``(n, letters + 1)``."""
    rows = np.repeat(np.arange(len(codes)), codes.shape[1])
    counts = np.bincount(rows * len(alphabet.shares) + codes.ravel(), minlength=len(codes) * len(alphabet.shares))
    counts = counts.reshape(len(codes), len(alphabet.shares))
    length = counts[:, 1:].sum(axis=1)
    shares = counts @ alphabet.shares.astype(np.float64) / np.maximum(length, 1)[:, None]
    return np.column_stack([shares, length])


def words(codes: Codes, alphabet: Alphabet, size: int) -> NDArray[np.int32]:
    """Return the number of the word of ``size`` letters at every place, ``(n, length - size + 1)``: 0 beyond the end, 1 where a letter is ambiguous.

    >>> words(DNA.encode(["AACN"], 5), DNA, 2).tolist()
    [[2, 3, 1, 0]]
    """
    windows = np.lib.stride_tricks.sliding_window_view(codes, size, axis=1).astype(np.int32)
    numbers = (windows - 1) @ (len(alphabet.letters) ** np.arange(size - 1, -1, -1)) + 2
    numbers = np.where((windows > len(alphabet.letters)).any(axis=2), 1, numbers)
    return np.where((windows == 0).any(axis=2), 0, numbers).astype(np.int32)
