"""The documents by which a hospital joins a federation: its request, and what is checked in any document from the other side."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from common import certificates, keys
from common.errors import DataError, UsageError

NAME = re.compile(r"\w[\w .-]{0,63}")
"""A hospital's or federation's name; also at most `NAME_BYTES` in UTF-8, the most that a certificate's common name is read with."""
NAME_BYTES = 64
TASK = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):([0-9]{1,5})")
LARGEST = 64 * 1024
"""Bytes that a document may have at most."""
SIGNED = b"fedward request 1\n"


def check_name(noun: str, name: object) -> str:
    """Return a hospital's or federation's name where it is a good one.

    Raises
    ------
    UsageError
        When it is not.
    """
    if isinstance(name, str) and NAME.fullmatch(name) and len(name.encode()) <= NAME_BYTES:
        return name
    raise UsageError(
        f"{noun}: expected a name of 1 to 64 letters, digits, spaces, dots, hyphens or underscores that begins with a letter or digit"
        f" (at most {NAME_BYTES} bytes, which is 21 Chinese characters), got {str(name)[:80]!r}"
    )


def check_task(task: str) -> str:
    """Return a task's name where it could be one; whether there is such a task is not known here."""
    if TASK.fullmatch(task):
        return task
    raise UsageError(
        f"task: expected a name of 1 to 64 letters, digits, dots, hyphens or underscores, got {task[:80]!r}"
    )


def check_address(noun: str, address: object) -> str | None:
    """Return the gateway's address where it is one, or None where none is given.

    Raises
    ------
    UsageError
        When it is something else.
    """
    if address is None:
        return None
    found = ADDRESS.fullmatch(address) if isinstance(address, str) else None
    if found and 0 < int(found[1]) < 2**16:
        return found[0]
    raise UsageError(f'{noun}: expected "host:port", got {str(address)[:80]!r}')


@dataclass(frozen=True)
class JoinRequest:
    """What a hospital asks to be admitted with, checked. Keys are lines in OpenSSH's form."""

    name: str
    task: str
    csr: x509.CertificateSigningRequest
    tls_key: str
    node_key: str
    audit_key: str


def make_request(
    name: str, task: str, key: ec.EllipticCurvePrivateKey, node_key: str, audit_key: str
) -> dict[str, str]:
    """Make the document by which a hospital asks to be admitted; the TLS key signs the whole of it."""
    fields = {
        "fedward": version("fedward"),
        "name": check_name("name of the hospital", name),
        "task": check_task(task),
        "csr": certificates.signing_request(name, key).decode(),
        "node_key": node_key,
        "audit_key": audit_key,
    }
    signature = key.sign(_canonical(fields), ec.ECDSA(hashes.SHA256()))
    return {**fields, "signature": keys.to_text(signature)}


def check_request(document: Mapping[str, Any], what: str = "request") -> JoinRequest:
    """Read what `make_request` wrote, and check that all of its parts were signed together by the key that it asks a certificate for.

    Raises
    ------
    FedwardError
        When a part is missing, damaged or altered; ``what`` names the document.
    """
    name, task, csr, node_key, audit_key, signature = texts(
        document, ("name", "task", "csr", "node_key", "audit_key", "signature"), what
    )
    request = certificates.load_request(csr.encode("utf-8", "replace"))
    signed = {key: value for key, value in document.items() if key != "signature"}
    try:
        certificates.tls_key(request).verify(keys.from_text(signature), _canonical(signed), ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError, TypeError, RecursionError):
        raise DataError(f"{what}: altered after it was signed; ask the hospital to send it again") from None
    if certificates.common_name(request) != name:
        raise DataError(f"{what}: its signing request is for another name; ask the hospital to make it again")
    keys.load_public(node_key, "node", f"{what}: node_key")
    keys.load_public(audit_key, "audit", f"{what}: audit_key")
    return JoinRequest(
        check_name(f"{what}: name", name),
        check_task(task),
        request,
        certificates.tls_line(request),
        node_key,
        audit_key,
    )


def texts(document: Any, names: Sequence[str], what: str) -> list[str]:
    """Return the texts of these names from a document.

    Raises
    ------
    DataError
        When it is no mapping, or one of them is missing or no text.
    """
    if not isinstance(document, Mapping):
        raise DataError(f"{what}: expected a JSON object with {', '.join(names)}")
    for name in names:
        if not isinstance(document.get(name), str):
            raise DataError(f"{what}: {name!r} is missing or no text; expected {', '.join(names)}. Have it sent again")
    return [document[name] for name in names]


def read_document(path: Path) -> dict[str, Any]:
    """Read a JSON object of at most `LARGEST` bytes.

    Raises
    ------
    DataError
        When there is none.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        document = json.loads(content) if len(content) <= LARGEST else None
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise DataError(f"{path}: expected a JSON object of at most {LARGEST} bytes; have it made or sent again")
    return document


def document_bytes(document: Mapping[str, Any]) -> bytes:
    """Write a JSON object for a file."""
    return json.dumps(document, ensure_ascii=False, indent=1).encode() + b"\n"


def _canonical(fields: Mapping[str, Any]) -> bytes:
    return SIGNED + json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
