"""Certificates: the authority of a federation, the gateway's, the hospitals'.

A federation has one authority. It signs the gateway's certificate and one for every hospital, and its fingerprint, read out on the telephone, is all that a hospital has to
trust. A certificate says what the authority was told by its own operator; of a hospital's signing request only the public key and the name are taken.
"""

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common import keys
from common.errors import DataError, UsageError

LABEL = "[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
HOST = re.compile(rf"(?=.{{1,253}}$)(?!(?:.*\.)?[0-9]+$){LABEL}(?:\.{LABEL})*")

AUTHORITY_LIFE = timedelta(days=3653)
SERVER_LIFE = timedelta(days=365)
LIFE = timedelta(days=90)
RENEW_BEFORE = timedelta(days=30)
"""A certificate with less than this to live is to be renewed."""
BACKDATED = timedelta(hours=1)
"""A certificate is valid from a little before it was made, for clocks that are behind."""
LARGEST = 64 * 1024
"""Bytes of a certificate or signing request that are looked at."""


def now() -> datetime:
    """Return the time of day in UTC."""
    return datetime.now(UTC)


def timestamp() -> str:
    """Return the time of day in UTC as ISO 8601, to the second."""
    return now().isoformat(timespec="seconds")


def fingerprint(pem: bytes) -> str:
    """Return the SHA-256 of a certificate in DER, as 32 lower-case pairs of hexadecimal digits with colons."""
    return load(pem, "certificate").fingerprint(hashes.SHA256()).hex(":")


def same_fingerprint(typed: str, real: str) -> bool:
    """Say whether two fingerprints are the same, whatever their case, spaces and colons; both must be whole.

    >>> same_fingerprint("AB" * 32, "ab " * 32), same_fingerprint("abab", "abab")
    (True, False)
    """
    one, other = ("".join(text.replace(":", " ").split()).lower() for text in (typed, real))
    return bool(re.fullmatch("[0-9a-f]{64}", one)) and hmac.compare_digest(one.encode(), other.encode())


def load(pem: bytes, what: str) -> x509.Certificate:
    """Read one certificate; ``what`` names it in errors.

    Raises
    ------
    DataError
        When it is damaged.
    """
    with keys.readable(what):
        return x509.load_pem_x509_certificate(pem[: LARGEST + 1])


def pem_of(certificate: x509.Certificate) -> bytes:
    """Write a certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def expires_in(pem: bytes) -> timedelta:
    """Return how long a certificate is still valid; negative when it has expired."""
    return load(pem, "certificate").not_valid_after_utc - now()


def common_name(certificate: x509.Certificate | x509.CertificateSigningRequest) -> str | None:
    """Return the one name in the subject; None where there is no or more than one."""
    try:
        found = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except ValueError:
        return None
    return str(found[0].value) if len(found) == 1 else None


def is_valid(certificate: x509.Certificate) -> bool:
    """Say whether a certificate is in its time."""
    return certificate.not_valid_before_utc <= now() <= certificate.not_valid_after_utc


def is_authority(certificate: x509.Certificate) -> bool:
    """Say whether a certificate is a self-signed authority's."""
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return False
    return constraints.ca and is_issued_by(certificate, certificate)


def is_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Say whether this authority signed a certificate."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def is_for_clients(certificate: x509.Certificate) -> bool:
    """Say whether a certificate is for a client's side of TLS."""
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return False
    return ExtendedKeyUsageOID.CLIENT_AUTH in usage


def make_authority(name: str, key: ec.EllipticCurvePrivateKey) -> bytes:
    """Make a federation's self-signed authority, which may sign hospitals and gateways but no other authority."""
    subject = _subject(name)
    builder = _builder(subject, subject, key.public_key(), key.public_key(), now() + AUTHORITY_LIFE)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    return pem_of(builder.sign(key, hashes.SHA256()))


@dataclass(frozen=True)
class Issuer:
    """An authority's certificate and private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def server(self, hosts: Sequence[str], public: ec.EllipticCurvePublicKey, life: timedelta = SERVER_LIFE) -> bytes:
        """Sign a certificate for whoever answers at these DNS names and IP addresses."""
        names = x509.SubjectAlternativeName([_host(host) for host in hosts])
        return self._sign("gateway", public, life, ExtendedKeyUsageOID.SERVER_AUTH, names)

    def client(self, request: x509.CertificateSigningRequest, name: str, life: timedelta = LIFE) -> bytes:
        """Sign a hospital's certificate: of the request only its public key counts. ``name`` is what the operator admitted."""
        public = request.public_key()
        if not isinstance(public, ec.EllipticCurvePublicKey):
            raise DataError("signing request: expected an EC key on the curve P-256; make the request again")
        return self._sign(name, public, life, ExtendedKeyUsageOID.CLIENT_AUTH)

    def _sign(
        self,
        name: str,
        public: ec.EllipticCurvePublicKey,
        life: timedelta,
        purpose: x509.ObjectIdentifier,
        hosts: x509.SubjectAlternativeName | None = None,
    ) -> bytes:
        end = min(now() + life, self.certificate.not_valid_after_utc)
        builder = _builder(_subject(name), self.certificate.subject, public, self.key.public_key(), end)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        builder = builder.add_extension(hosts, critical=False) if hosts else builder
        return pem_of(builder.sign(self.key, hashes.SHA256()))


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    signer: ec.EllipticCurvePublicKey,
    end: datetime,
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now() - BACKDATED).not_valid_after(end)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    return builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False)


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def hosts(typed: Sequence[str]) -> frozenset[x509.GeneralName]:
    """Return DNS names and IP addresses as they stand in certificates.

    Raises
    ------
    UsageError
        When one is neither.
    """
    return frozenset(_host(host) for host in typed)


def hosts_of(pem: bytes) -> frozenset[x509.GeneralName]:
    """Return the hosts that a certificate is for."""
    try:
        return frozenset(load(pem, "certificate").extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return frozenset()


def _host(host: str) -> x509.GeneralName:
    if "%" not in host:
        with suppress(ValueError):
            return x509.IPAddress(ipaddress.ip_address(host))
    if HOST.fullmatch(host):
        return x509.DNSName(host)
    raise UsageError(
        f"host: expected a DNS name (in its xn-- form where it is not ASCII) or an IP address, without port or wildcard, got {host[:80]!r}"
    )


def signing_request(name: str, key: ec.EllipticCurvePrivateKey) -> bytes:
    """Make the PEM by which a hospital asks for a certificate of its public key."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(_subject(name))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def load_request(pem: bytes) -> x509.CertificateSigningRequest:
    """Read a signing request and check that whoever made it holds the key in it.

    Raises
    ------
    DataError
        When it is damaged, its signature is wrong, or its key is not one that Fedward makes.
    """
    with keys.readable("signing request"):
        request = x509.load_pem_x509_csr(pem[: LARGEST + 1])
        keys.public_line(tls_key(request))
        if not request.is_signature_valid:
            raise ValueError("signature")
    return request


def tls_line(request: x509.CertificateSigningRequest | x509.Certificate) -> str:
    """Return the public key of a signing request or certificate as one line in OpenSSH's form."""
    with keys.readable("certificate"):
        return keys.public_line(tls_key(request))


def key_fingerprint(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of a certificate's public key as OpenSSH writes it, in hex; it stays the same when the certificate is renewed."""
    return hashlib.sha256(tls_line(certificate).encode()).hexdigest()


def tls_key(request: x509.CertificateSigningRequest | x509.Certificate) -> ec.EllipticCurvePublicKey:
    """Return the public key of a signing request or certificate; raise ValueError when it is not of the kind that Fedward makes."""
    public = request.public_key()
    if isinstance(public, ec.EllipticCurvePublicKey) and isinstance(public.curve, ec.SECP256R1):
        return public
    raise ValueError("expected an EC key on the curve P-256")
