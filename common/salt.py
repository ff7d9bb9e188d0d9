"""Names of a message's parts that nobody can foretell, and as few parts as possible.

Flower keeps every part of every message (a record, an array, 20 MB of one) under the hash of its content, for all nodes together, and believes whoever
announces it first what other parts it is made of. A hospital that knew the bytes of another's next part, as of settings or of the round's weights sent once more, could announce that part
falsely, and Flower would refuse the true one, which ends a run. So each message that goes over a network is salted: a small one is one record of bytes with a random number beside them; of a large one, arrays are encrypted under a
key that travels beside them, and every record gets a number of its own. This hides nothing from those who receive it; simulations go without.

Each part takes requests of its own at every hop, about ten of them from a coordinator's process to a worker: a small message has three parts instead of six or eight.
"""

import hashlib
import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

from common import flower
from common.errors import FedwardError

if TYPE_CHECKING:
    from flwr.app import Array, Message, RecordDict

SALT = "salt"
"""The name of what is added to a record; that of the first record of settings is the key."""
PACKED = "packed"
"""The name, in the one record of a small message, of the bytes of its content."""
SMALL = 4 << 20
"""Bytes of the largest content that is sent as one part; in a larger one its arrays travel in pieces that a slow line can bear."""
KEY_BYTES = 32
TAIL = bytes(16)
"""Behind every array, so that an empty one has a name of its own too; where it is not found again, nothing was salted."""


def salted(message: "Message") -> "Message":
    """Return the message with its content salted; one without content as it is."""
    return flower.with_content(message, salt(message.content)) if message.has_content() else message


def desalted(message: "Message") -> "Message":
    """Undo `salted`; a message that was not salted, or wrongly, stays as it is."""
    return flower.with_content(message, desalt(message.content)) if message.has_content() else message


def salt(content: "RecordDict") -> "RecordDict":
    """Return the same content under a fresh key; the record itself is not changed. There has to be a record of settings in it, in the first of which the key stands."""
    from flwr.app import ConfigRecord, RecordDict

    if _bytes_of(content) > SMALL:
        return _encrypted_arrays(content)
    packed = flower.content_bytes(content)
    return RecordDict({SALT: ConfigRecord({SALT: secrets.token_bytes(KEY_BYTES), PACKED: packed})})


def _bytes_of(content: "RecordDict") -> int:
    """Return the bytes of what may be large."""
    values: Iterator[Any] = (value for record in content.values() for value in record.values())
    return sum(len(value if isinstance(value, bytes) else getattr(value, "data", b"")) for value in values)


def _encrypted_arrays(content: "RecordDict") -> "RecordDict":
    from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

    key, first = secrets.token_bytes(KEY_BYTES), min(content.config_records)
    whole = RecordDict()
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            arrays = record or {SALT: Array("uint8", (0,), "", b"")}
            whole[name] = ArrayRecord({each: _encrypted(key, name, each, array) for each, array in arrays.items()})
        elif isinstance(record, MetricRecord):
            whole[name] = MetricRecord({**record, SALT: secrets.randbits(62)})
        else:
            whole[name] = ConfigRecord({**record, SALT: key if name == first else secrets.token_bytes(KEY_BYTES)})
    return whole


def desalt(content: "RecordDict") -> "RecordDict":
    """Undo `salt`; records that were not salted, or wrongly, stay as they are."""
    if set(content) == {SALT}:
        return _unpacked(content)
    settings = content.config_records
    key = settings[min(settings)].get(SALT) if settings else None
    return _decrypted_arrays(content, key) if isinstance(key, bytes) and len(key) == KEY_BYTES else content


def _unpacked(content: "RecordDict") -> "RecordDict":
    packed = content[SALT].get(PACKED)
    if isinstance(packed, bytes):
        with suppress(FedwardError):
            return flower.content_from(packed)
    return content


def _decrypted_arrays(content: "RecordDict", key: bytes) -> "RecordDict":
    from flwr.app import ArrayRecord, RecordDict

    plain = RecordDict()
    for name, record in content.items():
        kept: dict[str, Any] = {each: value for each, value in record.items() if each != SALT}
        if isinstance(record, ArrayRecord):
            kept = {each: _decrypted(key, name, each, array) for each, array in kept.items()}
            if None in kept.values():
                return content
        plain[name] = type(record)(kept)
    return plain


def _encrypted(key: bytes, record: str, name: str, array: "Array") -> "Array":
    stream = _stream(key, record, name)
    return type(array)(array.dtype, array.shape, array.stype, stream(array.data) + stream(TAIL))


def _decrypted(key: bytes, record: str, name: str, array: "Array") -> "Array | None":
    data = _stream(key, record, name)(array.data)
    whole = data.endswith(TAIL)
    return type(array)(array.dtype, array.shape, array.stype, data[: -len(TAIL)]) if whole else None


def _stream(key: bytes, record: str, name: str) -> Callable[[bytes], bytes]:
    """Return what adds the keystream of one array, from its start on."""
    start = hashlib.sha256(f"{record}\x1f{name}".encode()).digest()[:16]
    return Cipher(AES256(key), CTR(start)).encryptor().update
