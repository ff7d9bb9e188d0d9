"""A hospital's site folder: its keys, made here and staying here, and what it was given when it was admitted.

::

    keys/tls.key node.key audit.key vault.key    0600; sealed where there is a passphrase
    request.json                     to be sent to the coordinator; holds public keys only
    certificate.pem authority.pem    since the hospital joined
    federation.json                  whom it joined, and where; the hospital has joined once this is there
    approved.fab                     the code of a run that was approved last
    ledger.sqlite                    what was spent of the patients' privacy, since the worker first started
    data/ kept/                      the patients, and what is kept of runs between rounds; sealed

The hospital's rules, ``site.toml``, stand in the same folder and are read elsewhere.
"""

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from client import ledger
from common import archive, certificates, joining, keys
from common.errors import DataError, FedwardError, UsageError
from common.secagg.keys import Identity

REQUEST, FEDERATION = "request.json", "federation.json"
CERTIFICATE, AUTHORITY = "certificate.pem", "authority.pem"
VAULT_BYTES = 32
BACKUP = archive.Kind(
    "hospital",
    REQUEST,
    left_out=("run", "bundles", "ledger.sqlite-journal"),
    readings={"audit.jsonl": archive.whole_lines, ledger.NAME: ledger.whole},
)
"""What a backup of a site is; what its programs need while they run is made anew, and bundles that wait belong to a stub, which may be another user and hostile."""


@dataclass(frozen=True)
class Site:
    """An opened site folder. Keys are read when they are asked for."""

    folder: Path
    name: str
    task: str
    passphrase: str | None = field(default=None, repr=False, compare=False)

    def tls_key(self) -> ec.EllipticCurvePrivateKey:
        """Return the key of the hospital's certificate."""
        key: ec.EllipticCurvePrivateKey = self._key("tls")
        return key

    def node_key(self) -> bytes:
        """Return the key by which Flower knows the hospital's node, in OpenSSH's form without a passphrase, for a short-lived file of mode 0600."""
        path = _path(self.folder, "node")
        content = keys.read(path, self.passphrase)
        keys.load_private(content, "node", str(path))
        return content

    def audit_key(self) -> ed25519.Ed25519PrivateKey:
        """Return the key that signs the audit log."""
        key: ed25519.Ed25519PrivateKey = self._key("audit")
        return key

    def vault_key(self) -> bytes:
        """Return the 32 bytes under which the hospital's data are sealed."""
        path = _path(self.folder, "vault")
        secret = keys.read(path, self.passphrase)
        if len(secret) != VAULT_BYTES:
            raise DataError(f"{path}: expected {VAULT_BYTES} bytes; restore it from a backup")
        return secret

    def identity(self) -> Identity:
        """Return who the hospital is among the others of its federation.

        Raises
        ------
        FedwardError
            When the hospital has not joined, or a file is damaged.
        """
        return Identity(self.name, self.tls_key(), self._read(self.certificate), self._read(self.authority))

    def csr(self) -> bytes:
        """Return a signing request (PEM) over the hospital's key, to renew its certificate with."""
        return certificates.signing_request(self.name, self.tls_key())

    @property
    def federation(self) -> Mapping[str, Any] | None:
        """Return whom the hospital has joined (``federation``, ``address``, ``fingerprint``, ``joined``); None before.

        Raises
        ------
        DataError
            When the file is damaged.
        """
        path = self.folder / FEDERATION
        if not path.exists():
            return None
        document = joining.read_document(path)
        joining.texts(document, ("federation", "fingerprint", "joined"), str(path))
        return document

    @property
    def certificate(self) -> Path:
        """Return the file of the hospital's certificate."""
        return self.folder / CERTIFICATE

    @property
    def authority(self) -> Path:
        """Return the file of the authority's certificate."""
        return self.folder / AUTHORITY

    def join(self, admitted: Mapping[str, Any], fingerprint: str) -> None:
        """Join the federation that sent this, if its authority has the fingerprint that the coordinator read out.

        A crash leaves the hospital as one that has not joined, or that has joined this federation; done once more, it has.

        Raises
        ------
        FedwardError
            When the fingerprint is another, the certificate is not for this hospital's key and name or not from that authority, or the hospital is in another federation already.
        """
        name, pem, certificate = joining.texts(admitted, ("federation", "authority", "certificate"), "admitted")
        address = joining.check_address("admitted: address", admitted.get("address"))
        authority = certificates.load(pem.encode("utf-8", "replace"), "admitted: authority")
        real = certificates.fingerprint(certificates.pem_of(authority))
        _check_fingerprint(fingerprint, real)
        if not certificates.is_authority(authority) or certificates.common_name(authority) != name:
            raise FedwardError(f"admitted: its authority is not that of federation {name[:80]!r}; have it sent again")
        own = self._check(certificates.load(certificate.encode("utf-8", "replace"), "admitted: certificate"), authority)
        if self.federation and self.federation["fingerprint"] != real:
            raise FedwardError(
                f"{self.folder}: this site has joined federation {self.federation['federation']!r} already; make another folder for {name!r}"
                f" with: fedward hospital init, or delete {FEDERATION} to leave the first"
            )
        facts = {"federation": name, "address": address, "fingerprint": real, "fedward": version("fedward")}
        facts["joined"] = certificates.timestamp()
        keys.replace(
            {
                # Written out anew, so that nothing else in what came, a second authority for instance, is ever trusted.
                self.authority: certificates.pem_of(authority),
                self.certificate: certificates.pem_of(own),
                # Last, since the hospital has joined once it is there.
                self.folder / FEDERATION: joining.document_bytes(facts),
            }
        )

    def renewed(self, certificate: bytes) -> None:
        """Put a renewed certificate (PEM) in the place of the present one.

        Raises
        ------
        FedwardError
            When it is not for this hospital's key and name, not from the authority it joined, or not in its time; the present one stays.
        """
        authority = certificates.load(self._read(self.authority), str(self.authority))
        own = self._check(certificates.load(certificate, "renewed certificate"), authority)
        keys.replace({self.certificate: certificates.pem_of(own)})

    def tls_context(self) -> ssl.SSLContext:
        """Return a context that shows this hospital's certificate and trusts its federation's authority alone.

        Raises
        ------
        FedwardError
            When the hospital has not joined, or a file is damaged.
        """
        authority, certificate = self._read(self.authority), self._read(self.certificate)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        pem = certificates.pem_of(certificates.load(authority, str(self.authority)))
        context.load_verify_locations(cadata=pem.decode())
        keys.load_chain(context, certificate, self.tls_key())
        return context

    def _check(self, certificate: x509.Certificate, authority: x509.Certificate) -> x509.Certificate:
        """Return a certificate where it is this hospital's own, from this authority."""
        if not certificates.is_issued_by(certificate, authority):
            raise FedwardError("the certificate is not signed by the federation's authority; have it sent again")
        if certificates.tls_line(certificate) != keys.public_line(self.tls_key()):
            raise FedwardError(
                f"the certificate is not for the key in {self.folder}; have the request of this folder admitted"
            )
        if certificates.common_name(certificate) != self.name or not certificates.is_for_clients(certificate):
            raise FedwardError(
                f"the certificate is not one for hospital {self.name!r}; have its request admitted again"
            )
        if not certificates.is_valid(certificate):
            raise FedwardError(
                f"the certificate is valid from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} to {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
                f" and it is {certificates.now():%Y-%m-%d %H:%M}; set this computer's clock, or have the request admitted again"
            )
        return certificate

    def _key(self, kind: keys.Kind) -> Any:
        path = _path(self.folder, kind)
        return keys.load_private(keys.read(path, self.passphrase), kind, str(path))

    def _read(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise FedwardError(
                f"{path}: cannot be read ({error.strerror}); this hospital has not joined yet: fedward hospital join {self.folder} admitted.json"
            ) from None


def create(folder: Path, name: str, task: str, passphrase: str | None = None) -> Site:
    """Make a site in a folder that is new or empty, with keys of its own, and the request to be sent to the coordinator.

    Raises
    ------
    UsageError
        When the name or task is none, the passphrase is empty, or there is something in the folder already.
    """
    joining.check_name("name of the hospital", name)
    joining.check_task(task)
    with keys.new_folder(folder):
        tls, node, audit = keys.generate("tls"), keys.generate("node"), keys.generate("audit")
        for kind, key in (("tls", tls), ("node", node), ("audit", audit)):
            keys.write(_path(folder, kind), keys.private_bytes(key), passphrase)
        keys.write(_path(folder, "vault"), os.urandom(VAULT_BYTES), passphrase)
        request = joining.make_request(name, task, tls, keys.public_line(node), keys.public_line(audit))
        # Last, since a folder with it counts as a site.
        keys.replace({folder / REQUEST: joining.document_bytes(request)})
    return Site(folder, name, task, passphrase)


def open_site(folder: Path, passphrase: str | None = None) -> Site:
    """Open a site's folder. A passphrase is tried at once; without one, a sealed site opens too, and its keys do not.

    Raises
    ------
    UsageError
        When it is none, or the passphrase is wrong.
    DataError
        When its request is damaged.
    """
    path = folder / REQUEST
    if not path.exists():
        raise UsageError(
            f"{folder}: no site here ({REQUEST} is missing); make one with: fedward hospital init {folder}"
        )
    request = joining.check_request(joining.read_document(path), str(path))
    site = Site(folder, request.name, request.task, passphrase)
    if passphrase is not None and keys.public_line(site.tls_key()) != request.tls_key:
        raise DataError(f"{path}: is not for the key in this folder; restore both from a backup")
    return site


def _path(folder: Path, kind: str) -> Path:
    return folder / "keys" / f"{kind}.key"


def _check_fingerprint(typed: str, real: str) -> None:
    # The one that came is not shown: it would be typed in next, and that would make the check void.
    if not certificates.same_fingerprint(typed, real):
        raise FedwardError(
            f"admitted: its authority does not have the fingerprint {typed[:96]!r}, 32 pairs of hexadecimal digits; ask the coordinator on the"
            " telephone for theirs, type all of it, and if it still is refused have admitted.json sent again another way"
        )
