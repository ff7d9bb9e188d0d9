"""The hospital's rows at rest: one encrypted file, opened in memory only.

The file is a line of magic, the header as one line of JSON, and the chunks of `common.sealing`, bound to both. Guarantee: whoever lacks the key learns the header
(task, site, counts of rows and patients) and the file's length, and can change nothing unseen. Each file has a key of its own, derived from the site's key
and a random salt (HKDF-SHA-256, RFC 5869).

Edge cases: an older vault of the same site and task, put back whole, is not noticed. Rows are in memory, in the clear, while the worker holds them.
"""

import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from client.data import schema
from client.data.deidentify import check_key, keyed
from client.data.split import PARTS, Parts
from common import sealing
from common.errors import DataError
from common.tasks.task import Array, Task

MAGIC = b"fedward vault\n"
PURPOSE = b"fedward vault 1"
VERSION = 1
ALIGN = 16
LONGEST_HEADER = 64 * 1024


@dataclass(frozen=True)
class Header:
    """What a vault says without its key. ``schema`` is the digest of the task's columns, ``key`` names the key without telling it."""

    version: int
    task: str
    schema: str
    site: str
    counts: Mapping[str, Mapping[str, int]]
    size: int
    salt: str
    key: str


def seal(path: Path, parts: Parts, task: Task, key: bytes, site: str) -> Header:
    """Write a hospital's rows, encrypted, for the owner alone (0600): the whole file or nothing, and nothing in the clear.

    Raises
    ------
    DataError
        When it cannot be written; what stood there before still does.
    UsageError
        For a key of less than 32 bytes.
    """
    check_key(key)
    buffers = _packed(parts)
    salt = secrets.token_hex(32)
    size = sum(len(buffer) for buffer in buffers)
    header = Header(VERSION, task.name, schema.digest(task), site, parts.counts(), size, salt, _name_of(key))
    start = MAGIC + json.dumps(asdict(header), ensure_ascii=False, sort_keys=True).encode() + b"\n"

    def fill(file: BinaryIO) -> None:
        file.write(start)
        sealed = sealing.Sealing(file, cipher_of(key, bytes.fromhex(salt), PURPOSE), hashlib.sha256(start).digest())
        for buffer in buffers:
            sealed.write(buffer)
        sealed.close()

    write(path, fill)
    return header


def unseal(path: Path, task: Task, key: bytes, site: str) -> Parts:
    """Decrypt a vault into memory.

    Raises
    ------
    DataError
        When there is none, it is damaged, was changed, or belongs to another key, site, task or schema; the message says which.
    """
    check_key(key)
    content = _read(path)
    header, start = _parse(path, content)
    _check(path, header, task, key, site)
    if len(content) - start != sealing.sealed_size(header.size):
        raise _damaged(path)
    opened, at, source = bytearray(header.size), 0, BytesIO(content)
    source.seek(start)
    try:
        for chunk in sealing.opened(
            source, cipher_of(key, bytes.fromhex(header.salt), PURPOSE), hashlib.sha256(content[:start]).digest()
        ):
            opened[at : at + len(chunk)] = chunk
            at += len(chunk)
    except InvalidTag:
        raise _damaged(path) from None
    return _unpacked(opened)


def cipher_of(key: bytes, salt: bytes, purpose: bytes) -> AESGCM:
    """Return the cipher of one file, by the site's key, the file's own random salt, and what the file is for."""
    return AESGCM(HKDF(SHA256(), 32, salt, purpose).derive(key))


def write(path: Path, fill: Callable[[BinaryIO], None]) -> None:
    """Write a file that only its owner may read: beside it under another name, flushed to disk, then renamed over it.

    Raises
    ------
    DataError
        When it cannot be written; what stood there before still does.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.unlink(missing_ok=True)
        # Made anew, never followed, and closed to others from the first byte on.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        with suppress(OSError):  # on a disk that is read-only not even that
            temporary.unlink(missing_ok=True)
        raise DataError(f"{path}: cannot be written ({error.strerror}); free space or choose another folder") from None


def header_of(path: Path) -> Header:
    """Return what a vault says without its key; only `unseal` proves it.

    Raises
    ------
    DataError
        When there is none or it is no vault.
    """
    return _parse(path, _read(path))[0]


def _check(path: Path, header: Header, task: Task, key: bytes, site: str) -> None:
    if header.key != _name_of(key):
        raise DataError(
            f"{path}: sealed with another key; use the key folder of the site {header.site!r}, or import the data anew"
        )
    if header.site != site:
        raise DataError(f"{path}: expected the data of site {site!r}, this is of {header.site!r}; import the data anew")
    if (header.task, header.schema) != (task.name, schema.digest(task)):
        changed = "with other columns" if header.task == task.name else f"task {header.task!r}"
        raise DataError(
            f"{path}: expected data for the task {task.name!r}, this is for {changed}; import the data anew"
        )


def _parse(path: Path, content: bytes) -> tuple[Header, int]:
    """Return a vault's header, and where its chunks begin."""
    line = re.match(re.escape(MAGIC) + rb"([^\n]{2,%d})\n" % LONGEST_HEADER, content)
    if line is None:
        raise DataError(f"{path}: not a vault; import the data anew")
    try:
        table = json.loads(line.group(1))
        header = Header(**table)
    except (ValueError, TypeError):
        raise _damaged(path) from None
    if header.version != VERSION:
        raise DataError(
            f"{path}: a vault of version {header.version}, this release reads {VERSION}; import the data anew"
        )
    texts = (header.task, header.schema, header.site, header.salt, header.key)
    whole = all(isinstance(text, str) for text in texts) and re.fullmatch("[0-9a-f]{64}", header.salt)
    if not whole or type(header.size) is not int or not 0 <= header.size <= len(content):
        raise _damaged(path)
    return header, line.end()


def _packed(parts: Parts) -> list[bytes | memoryview]:
    """Return the rows as buffers: the length of a table of contents, the table as JSON, then every array, each begun at a multiple of 16."""
    table: list[dict[str, Any]] = []
    arrays: list[bytes | memoryview] = []
    for part in PARTS:
        for name, values in (*parts.records[part].items(), ("", parts.patients[part])):
            entry, buffer = _array(values)
            table.append({"part": part, "name": name, "bytes": len(buffer), **entry})
            arrays += [buffer, bytes(-len(buffer) % ALIGN)]
    contents = json.dumps({"duplicates": parts.duplicates, "arrays": table}).encode()
    contents += b" " * (-len(contents) % ALIGN)
    return [len(contents).to_bytes(ALIGN, "big"), contents, *arrays]


def _array(values: Array) -> tuple[dict[str, Any], bytes | memoryview]:
    if values.dtype == object:
        return {"kind": "texts"}, json.dumps(values.tolist()).encode()
    kind = values.dtype.newbyteorder("<")
    plain = np.ascontiguousarray(values, kind).reshape(-1).view(np.uint8)
    return {"kind": kind.str, "shape": values.shape}, plain.data


def _unpacked(opened: bytearray) -> Parts:
    """Undo `_packed`; what is opened here has been proved to be as it was sealed."""
    begin = ALIGN + int.from_bytes(opened[:ALIGN], "big")
    contents = json.loads(opened[ALIGN:begin])
    records: dict[str, dict[str, Array]] = {part: {} for part in PARTS}
    patients: dict[str, Array] = {}
    for entry in contents["arrays"]:
        values = _values(entry, memoryview(opened)[begin : begin + entry["bytes"]])
        begin += entry["bytes"] + -entry["bytes"] % ALIGN
        if entry["name"]:
            records[entry["part"]][entry["name"]] = values
        else:
            patients[entry["part"]] = values
    return Parts(records, patients, contents["duplicates"])


def _values(entry: Mapping[str, Any], buffer: memoryview) -> Array:
    if entry["kind"] != "texts":
        return np.frombuffer(buffer, np.dtype(entry["kind"])).reshape(entry["shape"])
    texts = json.loads(bytes(buffer))
    values = np.empty(len(texts), object)
    values[:] = texts
    return values


def _name_of(key: bytes) -> str:
    return keyed(key, "vault key", b"")[:8].hex()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: there is no vault; import the data with: fedward hospital init") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _sync(folder: Path) -> None:
    """Flush a folder to disk, so that a renamed file keeps its new name if the power fails."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _damaged(path: Path) -> DataError:
    return DataError(f"{path}: damaged or changed since it was sealed; import the data anew")
