"""The federation's folder: its authority, the gateway's certificate, and who is admitted.

::

    federation.toml            name, address, the gateway's hosts; commented, to be edited
    ca/key.pem, certificate.pem        the authority
    gateway/key.pem, certificate.pem   what the gateway shows to hospitals
    members/NAME.json          one file a hospital; written whole, so that a running gateway sees every change at the next request
    token                      the operator's own, for the routes on loopback

Admission is a list of those who may, not of those who may not: a certificate counts only while its serial number stands in a member's file and that member is not revoked.
"""

import json
import re
import secrets
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cryptography import x509

from common import archive, certificates, joining, keys
from common.certificates import Issuer
from common.errors import ConfigError, DataError, FedwardError, UsageError, nearest
from common.joining import JoinRequest
from server.members import Member, Members, alike
from server.witness import Screen, Witness

SETTINGS = "federation.toml"
DEFAULT_PORT = 8443
BACKUP = archive.Kind(
    "federation",
    SETTINGS,
    left_out=("run",),
    kept=("run/flower.db", "run/port", "run/secret"),
    readings={"run/flower.db": archive.database},
)
"""What a backup of a federation is; what else its programs need while they run is made anew."""
SERIALS = 8
"""Certificates of a hospital that count at a time, the newest; older ones are overtaken long before they expire."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
TEMPLATE = """\
# A Fedward federation. Keep this folder to yourself and in your backups: whoever holds ca/key.pem decides who is a hospital.

# The federation's name. It stands in the authority's certificate, so it cannot be changed.
name = {name}

# Where hospitals reach the gateway, as "host:port"; it is written into what they are sent when they are admitted.
{address}

# Names and addresses that the gateway's certificate is for. After a change it is made anew at the next start.
hosts = {hosts}
"""


@dataclass(frozen=True)
class Federation:
    """An opened federation folder. Settings are as they were when it was opened; members, keys and token are read whenever they are asked for."""

    folder: Path
    name: str
    fingerprint: str
    """Of the authority's certificate: what a hospital is told on the telephone."""
    authority: bytes
    """The authority's certificate as PEM."""
    address: str | None
    hosts: tuple[str, ...]
    _book: Members = field(repr=False, compare=False)

    def admit(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Admit a hospital, or renew the certificate of one that is admitted with these keys; return what to send it.

        Raises
        ------
        FedwardError
            When the request is damaged or altered, its name is taken by another key, or one of its keys belongs to another hospital or was revoked.
        """
        checked = joining.check_request(request)
        with self._book.locked():
            known = _match(self.members(), checked)
            barred = known.barred if known else ()
            if known and known.revoked:
                # Under new keys the name begins anew; what the old keys were given counts no more.
                known = None
            pem = self._issue(checked.csr, checked.name)
            member = Member(
                name=checked.name,
                task=checked.task,
                tls_key=checked.tls_key,
                node_key=checked.node_key,
                audit_key=checked.audit_key,
                serials=_with(known.serials if known else (), pem),
                admitted=known.admitted if known else certificates.timestamp(),
                barred=barred,
                ends=_end(pem),
            )
            self._book.store(member)
        return self._answer(member, pem)

    def renew(self, name: str, csr: bytes, shown: bytes = b"") -> bytes:
        """Sign a new certificate over the key that a hospital was admitted with; return it as PEM. The one that it ``shown`` (DER) goes on counting, since the answer may be lost.

        Raises
        ------
        FedwardError
            When nobody is admitted under this name, the hospital is revoked, or the request is for another key or name.
        """
        request = certificates.load_request(csr)
        with self._book.locked():
            member = self._book.read(name)
            if member is None:
                raise FedwardError(f"no hospital {name!r} is admitted; only an admitted one can renew its certificate")
            _refuse_revoked(member)
            if certificates.tls_line(request) != member.tls_key or certificates.common_name(request) != name:
                raise FedwardError(
                    f"the request is not for the key and name that hospital {name!r} was admitted with; it renews over the same key only"
                )
            pem = self._issue(request, name)
            seen = _examined(shown, self.authority)
            self._book.store(
                replace(member, serials=_with(member.serials, pem, seen.serial if seen else None), ends=_end(pem))
            )
        return pem

    def revoke(self, name: str) -> Member:
        """Take a hospital's admission back, for good as far as its present keys go; a second time changes nothing.

        Raises
        ------
        UsageError
            When nobody is admitted under this name.
        """
        with self._book.locked():
            member = self._book.read(name)
            if member is None:
                names = [other.name for other in self.members()]
                raise UsageError(f"no hospital {name!r} is admitted; {nearest(name, names)}")
            if not member.revoked:
                barred = tuple(sorted({*member.barred, *member.public_keys}))
                member = replace(member, revoked=certificates.timestamp(), barred=barred)
                self._book.store(member)
        return member

    def members(self) -> list[Member]:
        """Return all hospitals that ever were admitted, in the order of their names.

        Raises
        ------
        DataError
            When the file of one is damaged.
        """
        return self._book.all()

    def survey(self) -> tuple[list[Member], list[DataError]]:
        """Return all hospitals whose files can be read, and what is wrong with the others, for whom one damaged file is no reason to end."""
        return self._book.survey()

    @property
    def witness(self) -> Witness:
        """Return what the hospitals' audit logs promised."""
        return Witness(self.folder / "checkpoints", self._book)

    def screen(self) -> Screen:
        """Return what the answers of a run have to pass."""
        return Screen(self.witness, self._book)

    def member_of(self, certificate: bytes) -> Member | None:
        """Return whose certificate (DER) this is; None unless it is ours, in its time, still on its hospital's list, and that hospital not revoked.

        Once a certificate has been seen, this costs one look at the time of a file.
        """
        seen = _examined(certificate, self.authority)
        if seen is None or not seen.begin <= certificates.now() <= seen.end:
            return None
        try:
            member = self._book.read(seen.name)
        except DataError:
            return None
        return member if member and not member.revoked and seen.serial in member.serials else None

    def token(self) -> str:
        """Return the operator's token: 64 hexadecimal digits.

        Raises
        ------
        DataError
            When its file is absent, damaged, or others may read it.
        """
        path = self.folder / "token"
        text = keys.read(path).decode("ascii", "replace").strip()
        if not re.fullmatch("[0-9a-f]{64}", text):
            raise DataError(f"{path}: expected 64 hexadecimal digits; restore it from a backup")
        return text

    @property
    def gateway_key(self) -> Path:
        """Return the file of the gateway's private key."""
        return self.folder / "gateway" / "key.pem"

    @property
    def gateway_certificate(self) -> Path:
        """Return the file of the gateway's certificate."""
        return self.folder / "gateway" / "certificate.pem"

    def refresh_gateway(self, before: timedelta = certificates.RENEW_BEFORE) -> bool:
        """Make the gateway's certificate anew, over the same key, where it has less than ``before`` to live or is for other hosts; say whether it was."""
        path = self.gateway_certificate
        pem = path.read_bytes() if path.exists() else None
        if (
            pem
            and certificates.hosts_of(pem) == certificates.hosts(self.hosts)
            and certificates.expires_in(pem) > before
        ):
            return False
        key = keys.load_private(keys.read(self.gateway_key), "tls", str(self.gateway_key))
        keys.replace({path: self._issuer().server(self.hosts, key.public_key())})
        return True

    def _issuer(self) -> Issuer:
        path = self.folder / "ca" / "key.pem"
        key = keys.load_private(keys.read(path), "tls", str(path))
        return Issuer(certificates.load(self.authority, "authority"), key)

    def _issue(self, request: x509.CertificateSigningRequest, name: str) -> bytes:
        return self._issuer().client(request, name)

    def _answer(self, member: Member, pem: bytes) -> dict[str, Any]:
        address = {"address": self.address} if self.address else {}
        return {
            "fedward": version("fedward"),
            "federation": self.name,
            **address,
            "name": member.name,
            "certificate": pem.decode(),
            "authority": self.authority.decode(),
        }


def create(folder: Path, name: str, hosts: Sequence[str] = (), port: int = DEFAULT_PORT) -> Federation:
    """Make a federation in a folder that is new or empty: authority, gateway, token; ``hosts`` are how hospitals reach the gateway, loopback when empty.

    Raises
    ------
    UsageError
        When the name or a host is none, or there is something in the folder already.
    """
    joining.check_name("name of the federation", name)
    with keys.new_folder(folder):
        ca, gateway = keys.generate("tls"), keys.generate("tls")
        authority = certificates.make_authority(name, ca)
        issuer = Issuer(certificates.load(authority, "authority"), ca)
        shown = issuer.server(tuple(hosts) or LOOPBACK, gateway.public_key())
        (folder / "members").mkdir(mode=0o700)
        keys.write(folder / "ca" / "key.pem", keys.private_bytes(ca))
        keys.write(folder / "ca" / "certificate.pem", authority)
        keys.write(folder / "gateway" / "key.pem", keys.private_bytes(gateway))
        keys.write(folder / "gateway" / "certificate.pem", shown)
        keys.write(folder / "token", f"{secrets.token_hex(32)}\n".encode())
        # Last, since a folder with it counts as a federation.
        keys.write(folder / SETTINGS, _settings(name, hosts, port).encode())
    return open_federation(folder)


def open_federation(folder: Path) -> Federation:
    """Open a federation's folder.

    Raises
    ------
    UsageError
        When it is none.
    ConfigError
        When federation.toml has a wrong setting; the message names it.
    DataError
        When a file is damaged.
    """
    settings = _read_settings(folder)
    path = folder / "ca" / "certificate.pem"
    try:
        authority = certificates.load(path.read_bytes(), str(path))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); restore it from a backup") from None
    name = str(settings["name"])
    if certificates.common_name(authority) != name:
        raise ConfigError(
            f"{folder / SETTINGS}: name: the authority was made for {certificates.common_name(authority)!r}, so it stays that"
        )
    pem = certificates.pem_of(authority)
    return Federation(
        folder,
        name,
        certificates.fingerprint(pem),
        pem,
        settings.get("address"),
        tuple(settings.get("hosts") or LOOPBACK),
        Members(folder / "members"),
    )


def _settings(name: str, hosts: Sequence[str], port: int) -> str:
    quoted = [json.dumps(text, ensure_ascii=False) for text in hosts or LOOPBACK]
    example = hosts[0] if hosts else "fedward.example.org"
    host = f"[{example}]" if ":" in example else example
    address = f'{"" if hosts else "# "}address = "{host}:{port}"'
    return TEMPLATE.format(name=json.dumps(name, ensure_ascii=False), address=address, hosts=f"[{', '.join(quoted)}]")


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / SETTINGS
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UsageError(
            f"{folder}: no federation here ({SETTINGS} cannot be read); make one with: fedward server init {folder}"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML ({error})") from None
    for key in settings.keys() - {"name", "address", "hosts"}:
        raise ConfigError(f"{path}: unknown setting {key!r}; {nearest(key, ('name', 'address', 'hosts'))}")
    hosts = settings.get("hosts", [])
    joining.check_address(f"{path}: address", settings.get("address"))
    if not isinstance(hosts, list) or not all(isinstance(host, str) for host in hosts):
        raise ConfigError(f'{path}: hosts: expected a list such as ["fedward.example.org"], got {hosts!r}')
    certificates.hosts(hosts)
    joining.check_name(f"{path}: name", settings.get("name"))
    return settings


@dataclass(frozen=True)
class _Seen:
    """What does not change about a certificate of ours."""

    name: str
    serial: str
    begin: datetime
    end: datetime


@lru_cache(maxsize=1024)
def _examined(der: bytes, authority: bytes) -> _Seen | None:
    """Return what a certificate says, when this authority signed it for a client."""
    try:
        with keys.readable("certificate"):
            certificate = x509.load_der_x509_certificate(der)
    except DataError:
        return None
    if not certificates.is_issued_by(certificate, certificates.load(authority, "authority")):
        return None
    name = certificates.common_name(certificate)
    if name is None or not certificates.is_for_clients(certificate):
        return None
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return _Seen(name, _serial(certificate), begin, end)


def _serial(certificate: x509.Certificate) -> str:
    return f"{certificate.serial_number:x}"


def _end(pem: bytes) -> str:
    return certificates.load(pem, "certificate").not_valid_after_utc.isoformat(timespec="seconds")


def _with(serials: tuple[str, ...], pem: bytes, used: str | None = None) -> tuple[str, ...]:
    """Add a certificate's number to a hospital's; of more than count, the oldest goes that is not the one in use."""
    kept = [used] if used in serials and used is not None else []
    others = [each for each in (*serials, _serial(certificates.load(pem, "certificate"))) if each not in kept]
    return (*kept, *others[len(kept) - SERIALS :])


def _match(members: Sequence[Member], request: JoinRequest) -> Member | None:
    """Return the hospital that has the request's name, and refuse a request that would take anything from another."""
    wanted = {request.tls_key, request.node_key, request.audit_key}
    known = None
    for member in members:
        if member.barred and wanted & set(member.barred):
            raise FedwardError(
                f"a key of this request was revoked with hospital {member.name!r}; to come back it makes new ones with: fedward hospital init"
            )
        if member.name == request.name:
            known = member
        elif alike(member.name) == alike(request.name):
            raise FedwardError(
                f"the name {request.name!r} looks like that of hospital {member.name!r}; the new one has to choose another"
            )
        elif wanted & member.public_keys:
            raise FedwardError(
                f"a key of this request belongs to hospital {member.name!r}; every hospital makes its own with: fedward hospital init"
            )
    if known and not known.revoked and known.public_keys != wanted:
        raise FedwardError(
            f"the name {request.name!r} is taken by another key; if the hospital lost its keys, revoke it first with: fedward server revoke"
        )
    return known


def _refuse_revoked(member: Member) -> None:
    if member.revoked:
        raise FedwardError(
            f"hospital {member.name!r} was revoked at {member.revoked}; to come back it makes new keys with: fedward hospital init"
        )
