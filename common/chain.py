"""The chain of an audit log's lines, and what its owner signs of it: what a hospital writes and a coordinator checks.

Each line ends with the SHA-256 of its own bytes up to there, and names that of the line before, so the digest of one line stands for all lines up to it. A
checkpoint is the number of a line and its digest, signed by the hospital's audit key; it travels with every answer, and the coordinator keeps it. A log that is presented
later has to hold every line that it was signed for.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from common.errors import DataError

EVERY = 1000
"""Each line with a number that this divides is a signed checkpoint."""
ORIGIN = "0" * 64
"""What the first line has for the line before it."""
CHECKPOINT = "audit"
"""Under this name an answer carries the checkpoint of its hospital's log, as `checkpoint_text` writes it."""
_TEXT = re.compile(r"([0-9]{1,18}) ([0-9a-f]{64}) ([0-9a-f]{128})")

How = Literal["altered", "missing", "out of order", "torn tail"]


@dataclass(frozen=True)
class Break:
    """The first line that is not as it was written: its number from 1, how it is broken, and in words."""

    line: int
    how: How
    text: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.how}: {self.text}"


@dataclass(frozen=True)
class Line:
    """A line that fits those before it, and where it ends in the file."""

    number: int
    digest: str
    end: int
    content: Mapping[str, Any] = field(repr=False)


def verify(
    path: Path, public_key: Ed25519PublicKey, known: Iterable[Mapping[str, Any]] = (), every: int = EVERY
) -> Break | None:
    """Return the first broken line of a log, or None. ``known`` are checkpoints that the coordinator holds.

    Lines after the last checkpoint, within the file or held by the coordinator, are as good as whoever could write the file: they may have been rewritten together, or
    cut off. Where a checkpoint does not fit, some line since the one before it was altered, and the first of those is named.

    Raises
    ------
    DataError
        When the file can not be read, or a checkpoint in ``known`` was not signed by this site.
    """
    held = _held(known, public_key)
    last = told = signed = 0
    try:
        with path.open("rb") as file:
            for line in follow(file):
                if isinstance(line, Break):
                    return (
                        line
                        if line.how != "torn tail" or line.line > max(held, default=0)
                        else _cut_off(line.line, held)
                    )
                last = line.number
                if held.get(last, {line.digest}) != {line.digest}:
                    return _rewritten(told + 1, last, "that the coordinator holds a checkpoint of")
                if not _signed_where_due(line, public_key, every):
                    return _rewritten(max(told, signed) + 1, last, "that the site's key signed")
                told = last if last in held else told
                # What it signs; the rest of its own line is as good as the next checkpoint.
                signed = last - 1 if last % every == 0 else signed
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    return _cut_off(last + 1, held) if last < max(held, default=0) else None


def checkpoint_text(checkpoint: Mapping[str, Any]) -> str:
    """Write a checkpoint as it travels."""
    return f"{checkpoint['sequence']} {checkpoint['sha256']} {checkpoint['signature']}"


def checkpoint_from(text: object) -> dict[str, Any] | None:
    """Undo `checkpoint_text`; None for anything else, which may come from anyone. Whether it is signed, `is_signed` tells.

    >>> checkpoint_from("7 of 9") is None
    True
    """
    found = _TEXT.fullmatch(text) if isinstance(text, str) else None
    return {"sequence": int(found[1]), "sha256": found[2], "signature": found[3]} if found else None


def is_signed(checkpoint: Mapping[str, Any], public_key: Ed25519PublicKey) -> bool:
    """Tell whether a checkpoint, which may come from anyone, was signed by the site with this key."""
    try:
        number, digest = checkpoint["sequence"], checkpoint["sha256"]
        public_key.verify(bytes.fromhex(checkpoint["signature"]), statement(number, digest))
    except (KeyError, TypeError, ValueError, InvalidSignature):
        return False
    return type(number) is int and number >= 0 and isinstance(digest, str)


def _held(known: Iterable[Mapping[str, Any]], public_key: Ed25519PublicKey) -> dict[int, set[str]]:
    held: dict[int, set[str]] = {}
    for number, checkpoint in enumerate(known, 1):
        if not is_signed(checkpoint, public_key):
            raise DataError(f"checkpoint {number} of those given was not signed with this site's key")
        held.setdefault(checkpoint["sequence"], set()).add(checkpoint["sha256"])
    held.pop(0, None)
    return held


def _signed_where_due(line: Line, public_key: Ed25519PublicKey, every: int) -> bool:
    """Tell whether a line is a checkpoint of the line before it if, and only if, one is due."""
    event, fields = line.content["event"], line.content["fields"]
    if event != "checkpoint" or line.number % every:
        return event != "checkpoint" and line.number % every != 0
    about = (fields.get("sequence"), fields.get("sha256"))
    return about == (line.number - 1, line.content["previous"]) and is_signed(fields, public_key)


def _rewritten(first: int, last: int, which: str) -> Break:
    lines = f"lines {first} to {last}" if first < last else f"line {first}"
    return Break(first, "altered", f"{lines} as they stand are not those {which}")


def _cut_off(line: int, held: Mapping[int, set[str]]) -> Break:
    return Break(line, "missing", f"the log ends before it, and the coordinator holds a checkpoint of line {max(held)}")


def follow(file: BinaryIO) -> Iterator[Line | Break]:
    """Yield every line up to the first broken one, and that one as a `Break`."""
    previous, end = ORIGIN, 0
    for number, raw in enumerate(file, 1):
        if not raw.endswith(b"\n"):
            yield Break(number, "torn tail", f"{len(raw)} bytes of a line that was not written to its end")
            return
        line = raw[:-1]
        content = _parsed(line)
        if content is None:
            yield Break(number, "altered", "its bytes are not those that were written")
            return
        if content["sequence"] != number:
            yield _displaced(file, number, content["sequence"])
            return
        if content["previous"] != previous:
            # Its own bytes are whole, so it is the line before that was written anew.
            before = max(number - 1, 1)
            yield Break(before, "altered", f"line {number} was written after another line {number - 1}")
            return
        previous, end = sha256(line), end + len(raw)
        yield Line(number, previous, end, content)


def _displaced(file: BinaryIO, expected: int, found: int) -> Break:
    """Tell a line that was moved or repeated from one that was taken out, by looking for it in the rest."""
    later = (_parsed(raw.rstrip(b"\n")) for raw in file)
    if found < expected or any(content and content["sequence"] == expected for content in later):
        return Break(expected, "out of order", f"line {found} stands in its place")
    return Break(expected, "missing", f"line {found} follows line {expected - 1}")


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Read a line whose bytes are those that were written, else None."""
    body, mark, _ = line.rpartition(b',"sha256":"')
    if not mark or sealed(body) != line:
        return None
    try:
        content = json.loads(line)
        fits = (
            type(content["sequence"]) is int
            and type(content["monotonic"]) is float
            and isinstance(content["previous"], str)
            and isinstance(content["event"], str)
            and isinstance(content["fields"], dict)
            and datetime.fromisoformat(content["time"]).tzinfo is not None
        )
    except (ValueError, KeyError, TypeError):
        return None
    return content if fits else None


def sealed(body: bytes) -> bytes:
    """Close a line with the digest of what stands before it."""
    return body + b',"sha256":"' + sha256(body).encode() + b'"}'


def sha256(data: bytes) -> str:
    """Return the SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


def statement(sequence: int, digest: str) -> bytes:
    """Return the bytes of a checkpoint that are signed."""
    return f"fedward audit checkpoint 1\n{sequence} {digest}".encode()
