"""Keys of a run: who agreed with whom, signed by the identities under which the hospitals were admitted.

A `Card` is what a hospital shows of itself once a run: two public keys that are made for the run, its certificate, and a signature by the certificate's key over all of
that and the run. Who has checked all cards shares a secret with every other hospital that the coordinator, which carries the cards, cannot know.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np
from cryptography import x509
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from common import certificates, keys
from common.errors import DataError, UpdateRejected

PUBLIC, SIGNATURE, TAG, NONCE = 32, 64, 16, 12
SEAL = NONCE + TAG
"""Bytes of a public key, of a signature by `sign`, and what `seal` adds."""
_CARD = b"fedward secure aggregation card 1"


@dataclass(frozen=True)
class Identity:
    """Who a hospital is: its key and certificate (PEM) as it was admitted, and the authority's certificate (PEM)."""

    name: str
    key: ec.EllipticCurvePrivateKey
    certificate: bytes
    authority: bytes


@dataclass(frozen=True)
class Card:
    """What a hospital shows of itself for one run. Keys are raw, the certificate is PEM."""

    name: str
    agreement: bytes
    signing: bytes
    certificate: bytes
    signature: bytes

    def content(self, run: bytes) -> bytes:
        """Return what is signed."""
        return joined(_CARD, run, self.name, self.agreement, self.signing)


def show(identity: Identity, run: bytes, agreement: bytes, signing: bytes) -> Card:
    """Make a hospital's card of the public keys that it made for a run."""
    unsigned = Card(identity.name, agreement, signing, identity.certificate, b"")
    signature = identity.key.sign(unsigned.content(run), ec.ECDSA(hashes.SHA256()))
    return Card(identity.name, agreement, signing, identity.certificate, signature)


def check(card: Card, run: bytes, authority: bytes) -> x509.Certificate:
    """Check that a card was signed for this run by a hospital that the authority (PEM) admitted under this name; return its certificate.

    Raises
    ------
    UpdateRejected
        With the code ``identity``.
    """
    certificate = check_signature(card, run)
    if not (_is_members(card, authority) and certificates.is_valid(certificate)):
        raise UpdateRejected("identity", "a hospital's card holds no valid certificate of this federation for its name")
    return certificate


@lru_cache(maxsize=4096)  # a harness looks at each card as every hospital
def _is_members(card: Card, authority: bytes) -> bool:
    certificate = certificates.load(card.certificate, "card")
    return (
        certificates.is_issued_by(certificate, certificates.load(authority, "authority"))
        and certificates.is_for_clients(certificate)
        and certificates.common_name(certificate) == card.name
    )


@lru_cache(maxsize=4096)
def check_signature(card: Card, run: bytes) -> x509.Certificate:
    """Check that whoever holds the key of the certificate signed a card for this run; return the certificate, of which nothing else is known yet. Errors as of `check`."""
    try:
        certificate = certificates.load(card.certificate, "card")
        key = certificates.tls_key(certificate)
        key.verify(card.signature, card.content(run), ec.ECDSA(hashes.SHA256()))
        for public in (card.agreement, card.signing):
            X25519PublicKey.from_public_bytes(public)  # both kinds are 32 bytes
    except (DataError, ValueError, InvalidSignature):
        raise UpdateRejected(
            "identity", "a hospital's card is not signed for this run by the key of its certificate"
        ) from None
    return certificate


def joined(*parts: bytes | str) -> bytes:
    """Return parts as one, each with its length before it, so that no two lists of parts give the same.

    >>> joined("ab", b"") == joined("a", b"b")
    False
    """
    encoded = [part.encode() if isinstance(part, str) else part for part in parts]
    return b"".join(len(part).to_bytes(4) + part for part in encoded)


def pack(cards: Iterable[Card]) -> NDArray[np.uint8]:
    """Write cards as bytes ``(n,)``."""
    rows = [
        {name: value if isinstance(value, str) else keys.to_text(value) for name, value in asdict(card).items()}
        for card in cards
    ]
    return np.frombuffer(json.dumps(rows).encode(), np.uint8)


def unpack(packed: NDArray[np.uint8]) -> list[Card]:
    """Undo `pack`; raise `UpdateRejected` (``identity``) for anything else."""
    try:
        return [
            Card(str(row.pop("name")), **{name: keys.from_text(text) for name, text in row.items()})
            for row in json.loads(packed.tobytes())
        ]
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        raise UpdateRejected("identity", "cards came in another form than that of hospitals' cards") from None


def agree(private: bytes, public: bytes, purpose: bytes) -> bytes:
    """Return the 32 bytes that two holders of keys share for a purpose; both get the same (X25519 and HKDF, RFC 7748 and RFC 5869).

    Raises
    ------
    ValueError
        For a public key that would make them known to everybody.
    """
    shared = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    return derive(shared, purpose)


def derive(secret: bytes, purpose: bytes) -> bytes:
    """Return 32 bytes that follow from a secret for one purpose, and tell nothing of it."""
    return HKDF(hashes.SHA256(), 32, None, purpose).derive(secret)


def public_of(private: bytes) -> bytes:
    """Return the public key for agreement of a private one."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def signer_of(private: bytes) -> bytes:
    """Return the public key for signatures of a private one."""
    return Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def sign(private: bytes, content: bytes) -> bytes:
    """Sign with the key that a hospital made for the run."""
    return Ed25519PrivateKey.from_private_bytes(private).sign(content)


@lru_cache(maxsize=4096)
def is_signed(public: bytes, content: bytes, signature: bytes) -> bool:
    """Tell whether the holder of a hospital's key for the run signed this."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, content)
    except (InvalidSignature, ValueError):
        return False
    return True


def seal(secret: bytes, purpose: bytes, content: bytes) -> bytes:
    """Encrypt for the one other holder of a secret, for a ``purpose``; `SEAL` bytes longer than the content."""
    nonce = os.urandom(NONCE)
    return nonce + AESGCM(derive(secret, purpose)).encrypt(nonce, content, None)


def unseal(secret: bytes, purpose: bytes, sealed: bytes) -> bytes | None:
    """Undo `seal`; None for what was not sealed with this secret for this purpose."""
    try:
        return AESGCM(derive(secret, purpose)).decrypt(sealed[:NONCE], sealed[NONCE:], None)
    except (InvalidTag, ValueError):
        return None
