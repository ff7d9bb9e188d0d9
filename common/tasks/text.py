"""Text to bucket numbers: words and Chinese characters, hashed, so that no word need ever travel."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from itertools import islice

import numpy as np
from numpy.typing import NDArray

BUCKETS = 2**18
"""A vocabulary of 10,000 leaves 96 words of 100 without a chosen word in their bucket; two arrays of this size are 4 MB of float64."""

_KEY = b"fedward text buckets 1"
_DIGITS = re.compile(r"\d")
# One run of letters and digits, or one character of the CJK blocks: ideographs with extension A, compatibility ideographs, extensions B and on.
_CHINESE = "㐀-䶿一-鿿豈-﫿\U00020000-\U0003ffff"
_TOKEN = re.compile(f"[{_CHINESE}]|[^\\W_{_CHINESE}]+")


def tokens(text: object, most: int) -> list[str]:
    """Return the first tokens: lower-cased words, and single characters where the text is Chinese; anything but text has none.

    Compatibility forms are made one (NFKC), so full-width and half-width letters agree. Every digit becomes 0, so that a
    number says only how long it is: a date, a telephone or a record number is never a word of the vocabulary.

    >>> tokens("Ｂ12 deficiency，血压160 mmHg", 9)
    ['b00', 'deficiency', '血', '压', '000', 'mmhg']
    """
    if not isinstance(text, str):
        return []
    plain = unicodedata.normalize("NFKC", text).lower()
    return [_DIGITS.sub("0", match.group()) for match in islice(_TOKEN.finditer(plain), most)]


def bucket(token: str) -> int:
    """Return the bucket of a token, from 0 to `BUCKETS` - 1: the same on every computer (BLAKE2b, RFC 7693).

    >>> bucket("fever"), bucket("血")
    (59264, 97573)
    """
    digest = hashlib.blake2b(token.encode("utf-8", "surrogatepass"), digest_size=8, key=_KEY).digest()
    return int.from_bytes(digest, "big") % BUCKETS


def buckets(texts: Iterable[object], length: int) -> NDArray[np.int32]:
    """Return the buckets of every text's first tokens, int32 ``(n, length)``, with -1 after the last."""
    known: dict[str, int] = {}
    rows = []
    for text in texts:
        row = [
            known[token] if token in known else known.setdefault(token, bucket(token)) for token in tokens(text, length)
        ]
        rows.append(row + [-1] * (length - len(row)))
    return np.array(rows, np.int32).reshape(len(rows), length)
