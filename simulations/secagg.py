"""Secure sums among virtual hospitals: an authority made in the process for the run, and a place for secrets that every process of the run can reach.

Any process may answer for a virtual hospital, so its session travels in the node's context, sealed under the run's secret. That secret, from which the identities follow too, is drawn when the
population is dealt and goes to worker processes over their own lines; it is never written down, so a run that goes on agrees on keys anew.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from flwr.app import Context, Message

from client.secagg import Shield
from common import certificates, wire
from common.certificates import Issuer
from common.secagg.keys import Identity, derive
from common.secagg.protocol import Session

KEPT = "secure"
"""The record of a node's state that holds its sealed session."""


@dataclass(frozen=True)
class Sealed:
    """Sessions in the context of their node, encrypted and authenticated."""

    secret: bytes = field(repr=False)

    def load(self, _message: Message, context: Context) -> Session | None:
        """Return what was kept, None where there is nothing, or of another run's secret."""
        if KEPT not in context.state:
            return None
        data = wire.from_record(context.state.array_records[KEPT])["sealed"].tobytes()
        try:
            return Session.load(self._cipher(context).decrypt(data[:12], data[12:], None))
        except InvalidTag:
            return None

    def keep(self, _message: Message, context: Context, session: Session) -> None:
        """Keep it for the next message."""
        nonce = os.urandom(12)
        data = nonce + self._cipher(context).encrypt(nonce, session.dump(), None)
        context.state[KEPT] = wire.to_record({"sealed": np.frombuffer(data, np.uint8)})

    def _cipher(self, context: Context) -> AESGCM:
        return AESGCM(derive(self.secret, f"sealed sessions of node {context.node_id}".encode()))


def shields(names: Sequence[str], secret: bytes) -> list[Shield]:
    """Return the shield of each virtual hospital; the same secret gives the same identities in every process."""
    return [Shield(lambda name=name: _identity(name, secret), Sealed(secret)) for name in names]  # type: ignore[misc]


@lru_cache(maxsize=100_000)
def _identity(name: str, secret: bytes) -> Identity:
    issuer, authority = _authority(secret)
    key = _key(secret, f"hospital {name}")
    request = certificates.load_request(certificates.signing_request(name, key))
    return Identity(name, key, issuer.client(request, name), authority)


@lru_cache(maxsize=4)
def _authority(secret: bytes) -> tuple[Issuer, bytes]:
    key = _key(secret, "authority")
    authority = certificates.make_authority("simulation", key)
    return Issuer(certificates.load(authority, "authority"), key), authority


def _key(secret: bytes, purpose: str) -> ec.EllipticCurvePrivateKey:
    # Below the curve's order, which is a little less than 2**256, and above 0.
    return ec.derive_private_key(int.from_bytes(derive(secret, purpose.encode())) >> 1 | 1, ec.SECP256R1())
