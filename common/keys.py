"""Private keys, and the files and folders that only their owner may read.

A key is made where it is used and stays there. Sealed by a passphrase, its file holds a first line that says so, and one line of JSON: the parameters and salt of Argon2id
(RFC 9106, second recommended choice), and the AES-256-GCM ciphertext. Three kinds of key: ``tls`` (EC P-256), ``node`` (EC P-384, which Flower asks of a node)
and ``audit`` (Ed25519, signs the audit log). A public key is written as one line in OpenSSH's form, without a comment.
"""

import base64
import fcntl
import json
import os
import shutil
import ssl
import stat
import tempfile
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, overload

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.x509 import InvalidVersion

from common.errors import DataError, UsageError

Kind = Literal["tls", "node", "audit"]
PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey

PASSPHRASE, CREDENTIALS = "FEDWARD_PASSPHRASE", "CREDENTIALS_DIRECTORY"
"""Variables: the passphrase itself, or the folder with a file ``passphrase``, as systemd's LoadCredential and containers' secrets give it."""
SEALED = b"fedward sealed key 1\n"
COST: Mapping[str, int] = {"memory_kib": 64 * 1024, "iterations": 3, "lanes": 4}
MOST: Mapping[str, int] = {"memory_kib": 1024 * 1024, "iterations": 64, "lanes": 64}
"""Largest cost that a sealed file may ask for, so that a damaged one is an error and not a machine without memory."""
LARGEST = 64 * 1024
"""Bytes that a file of a key may have at most."""
OTHERS = stat.S_IRWXG | stat.S_IRWXO


@overload
def generate(kind: Literal["tls", "node"]) -> ec.EllipticCurvePrivateKey: ...
@overload
def generate(kind: Literal["audit"]) -> ed25519.Ed25519PrivateKey: ...
def generate(kind: Kind) -> PrivateKey:
    """Make a new private key."""
    if kind == "audit":
        return ed25519.Ed25519PrivateKey.generate()
    return ec.generate_private_key(ec.SECP256R1() if kind == "tls" else ec.SECP384R1())


def private_bytes(key: PrivateKey) -> bytes:
    """Write a private key without encryption: a node's in OpenSSH's form, which Flower reads, others as PKCS #8 PEM."""
    form = serialization.PrivateFormat.OpenSSH if _is(key, "node") else serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def load_private(data: bytes, kind: Kind, what: str) -> Any:
    """Undo `private_bytes`; ``what`` names the key in errors.

    Raises
    ------
    DataError
        When it is damaged or of another kind.
    """
    load = serialization.load_ssh_private_key if kind == "node" else serialization.load_pem_private_key
    with readable(what):
        return _expect(load(data, None), kind)


def public_line(key: PrivateKey | PublicKey) -> str:
    """Write a public key, or that of a private one, as one line in OpenSSH's form."""
    public = key.public_key() if isinstance(key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) else key
    return public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def load_public(line: str, kind: Kind, what: str) -> Any:
    """Undo `public_line`.

    Raises
    ------
    DataError
        When it is damaged, of another kind, or not exactly what `public_line` writes: two spellings of one key would be taken for two keys.
    """
    with readable(what):
        key = _expect(serialization.load_ssh_public_key(line.encode()), kind)
        if public_line(key) != line:
            raise ValueError(line)
        return key


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Turn what is raised for malformed keys and certificates into one error that holds nothing of them."""
    try:
        yield
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidVersion):
        raise DataError(f"{what}: damaged, or of another kind than expected; have it made or sent again") from None


def _expect(key: Any, kind: Kind) -> Any:
    if not _is(key, kind):
        raise ValueError(kind)
    return key


def _is(key: Any, kind: Kind) -> bool:
    if kind == "audit":
        return isinstance(key, ed25519.Ed25519PrivateKey | ed25519.Ed25519PublicKey)
    if not isinstance(key, ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey):
        return False
    return isinstance(key.curve, ec.SECP256R1 if kind == "tls" else ec.SECP384R1)


def passphrase() -> str | None:
    """Return the passphrase of the environment, or of the file that a service manager gives as a credential; None where there is neither.

    Raises
    ------
    DataError
        When the file cannot be read.
    """
    given, folder = os.environ.get(PASSPHRASE), os.environ.get(CREDENTIALS)
    if given is not None or folder is None:
        return given
    path = Path(folder) / "passphrase"
    try:
        return path.read_text(encoding="utf-8").rstrip("\r\n") if path.exists() else None
    except (OSError, UnicodeError) as error:
        raise DataError(f"{path}: the passphrase cannot be read ({type(error).__name__})") from None


def write(path: Path, secret: bytes, passphrase: str | None = None) -> None:
    """Write a secret into a new file of mode 0600, its folder of mode 0700; sealed where there is a passphrase.

    Raises
    ------
    DataError
        When there is a file already, or it cannot be written.
    UsageError
        When the passphrase is empty.
    """
    content = secret if passphrase is None else seal(secret, passphrase)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _create(path, content)
        _sync(path.parent)
    except OSError as error:
        raise _unwritten(path, error) from None


def read(path: Path, passphrase: str | None = None) -> bytes:
    """Read what `write` wrote.

    Raises
    ------
    UsageError
        When the passphrase is wrong, missing, or given for a file that is not sealed (somebody may have put it there).
    DataError
        When the file is absent, damaged, or others than its owner may read it.
    """
    content = _content(path)
    sealed = content.startswith(SEALED)
    if not sealed and passphrase is not None:
        raise UsageError(
            f"{path}: a passphrase was given, but this key is not sealed by any; open it without, or restore it from a backup"
        )
    if sealed and passphrase is None:
        raise UsageError(f"{path}: this key is sealed by a passphrase, and none was given")
    return content if passphrase is None else unseal(content, passphrase, str(path))


def is_sealed(path: Path) -> bool:
    """Say whether a key needs a passphrase."""
    return _content(path).startswith(SEALED)


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); restore it from a backup, or make the folder anew"
        ) from None
    if os.name == "posix" and mode & OTHERS:
        raise DataError(
            f"{path}: a key that only its owner may read has mode {stat.S_IMODE(mode):o}; mend it with: chmod 600 {path}"
        )
    if not 0 < len(content) <= LARGEST:
        raise DataError(f"{path}: expected a key of 1 to {LARGEST} bytes; restore it from a backup")
    return content


def seal(secret: bytes, passphrase: str) -> bytes:
    """Encrypt under a passphrase; equal secrets give different bytes each time."""
    if not passphrase:
        raise UsageError("the passphrase is empty; type one, or leave it out to keep keys unsealed")
    salt, nonce = os.urandom(16), os.urandom(12)
    header = {"kdf": "argon2id", **COST, "cipher": "aes-256-gcm", "salt": to_text(salt), "nonce": to_text(nonce)}
    sealed = AESGCM(derive(passphrase, salt, COST)).encrypt(nonce, secret, _authenticated(header))
    return SEALED + json.dumps({**header, "sealed": to_text(sealed)}).encode() + b"\n"


def unseal(content: bytes, passphrase: str, what: str) -> bytes:
    """Undo `seal`; ``what`` names the secret in errors."""
    try:
        header = json.loads(content.removeprefix(SEALED))
        cost = cost_of(header)
        sealed, salt, nonce = from_text(header.pop("sealed")), from_text(header["salt"]), from_text(header["nonce"])
        return AESGCM(derive(passphrase, salt, cost)).decrypt(nonce, sealed, _authenticated(header))
    except InvalidTag:
        raise UsageError(f"{what}: wrong passphrase, or the file is damaged; type it again") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(f"{what}: damaged; restore it from a backup") from None


def cost_of(header: Mapping[str, Any]) -> Mapping[str, int]:
    """Return the cost that the head of something sealed asks for; raise ValueError for one beyond `MOST`."""
    cost = {name: header[name] for name in COST}
    if all(type(cost[name]) is int and 0 < cost[name] <= MOST[name] for name in COST):
        return cost
    raise ValueError("cost")


def derive(passphrase: str, salt: bytes, cost: Mapping[str, int]) -> bytes:
    """Return the 32 bytes that belong to a passphrase and a salt."""
    # One passphrase has several spellings in Unicode, and keyboards differ in which they type.
    typed = unicodedata.normalize("NFC", passphrase).encode("utf-8", "surrogatepass")
    try:
        kdf = Argon2id(
            salt=salt, length=32, iterations=cost["iterations"], lanes=cost["lanes"], memory_cost=cost["memory_kib"]
        )
    except UnsupportedAlgorithm:
        raise UsageError(
            "sealing keys needs Argon2id, which this build of cryptography lacks; install it from its wheel: pip install --force-reinstall cryptography"
        ) from None
    return kdf.derive(typed)


def _authenticated(header: Mapping[str, Any]) -> bytes:
    return SEALED + json.dumps(header, sort_keys=True).encode()


def to_text(data: bytes) -> str:
    """Write bytes as base64."""
    return base64.b64encode(data).decode()


def from_text(text: str) -> bytes:
    """Undo `to_text`; raise ValueError for anything else, also for another spelling of the same bytes."""
    data = base64.b64decode(text, validate=True)
    if to_text(data) != text:
        raise ValueError("base64")
    return data


def load_chain(context: ssl.SSLContext, certificate: bytes, key: PrivateKey) -> None:
    """Put a certificate (PEM) and its private key into a TLS context.

    Python reads them from files only. These are gone when this returns, and the key in them is encrypted under a password that was never written.
    """
    password = os.urandom(32).hex().encode()
    encryption = serialization.BestAvailableEncryption(password)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    with tempfile.TemporaryDirectory() as folder:
        chain = Path(folder) / "chain.pem"
        write(chain, certificate + b"\n" + pem)
        try:
            context.load_cert_chain(chain, password=password)
        except ssl.SSLError:
            raise DataError("the certificate is damaged, or not for this key; have it issued again") from None


def replace(files: Mapping[Path, bytes]) -> None:
    """Write files of mode 0600 over what stood there, each whole: they get their names one after another, in the order given, when all are on disk.

    On a disk that is full, what stood there before still does. A crash between two names leaves the first files new and the others as they were, so the one by whose
    presence it is known that all are there comes last, and doing the same once more mends it.

    Raises
    ------
    DataError
        When one cannot be written, for example on a full disk.
    """
    parts = {path: path.with_name(f".{path.name}.part") for path in files}
    path = Path()
    try:
        for path, content in files.items():
            parts[path].unlink(missing_ok=True)
            _create(parts[path], content)
        for path, part in parts.items():
            part.replace(path)
        for folder in {path.parent for path in files}:
            _sync(folder)
    except OSError as error:
        for part in parts.values():
            with suppress(OSError):
                part.unlink(missing_ok=True)
        raise _unwritten(path, error) from None


def complete(folder: Path, contents: Mapping[str, Callable[[], bytes]]) -> None:
    """Make those files of a folder, of mode 0600, that are missing or empty, each whole; of processes that do so at once, the first makes them and the others find them.

    Raises
    ------
    DataError
        When one cannot be written; what is missing is made by the next call.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        for name, made in contents.items():
            path = folder / name
            # Empty is what a power cut leaves of a file.
            if not path.exists() or not path.stat().st_size:
                replace({path: made()})
    finally:
        os.close(descriptor)


@contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Within, fill a folder that is new or empty, of mode 0700 where it is new; when an error ends it, everything in it is removed again.

    Raises
    ------
    UsageError
        When there is something in it already, or it is no folder.
    """
    made = not folder.exists()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        occupied = any(folder.iterdir())
    except OSError as error:
        raise UsageError(f"{folder}: cannot be made a folder ({error.strerror}); choose another") from None
    if occupied:
        raise UsageError(f"{folder}: exists and is not empty; choose another folder, so that no key is overwritten")
    try:
        yield
        _sync(folder)
    except BaseException:  # whatever ended it, Ctrl-C too, half a folder would be taken for a whole one
        _clear(folder, also_itself=made)
        raise


def share(path: Path, group: str, mode: int) -> None:
    """Give a group the rights of ``mode`` to a file or folder of this user.

    Raises
    ------
    UsageError
        When there is no such group, or this user may not give it anything.
    """
    import grp

    try:
        os.chown(path, -1, grp.getgrnam(group).gr_gid)
        path.chmod(mode)
    except (KeyError, OSError):
        raise UsageError(
            f"{path}: cannot be given to the group {group[:40]!r}; make the group, and have this user be a member of it"
        ) from None


def _clear(folder: Path, *, also_itself: bool) -> None:
    with suppress(OSError):
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        if also_itself:
            folder.rmdir()


def _create(path: Path, content: bytes) -> None:
    """Write a file that nobody else may read from its first moment on, and see it to the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:  # whatever ended it, Ctrl-C too, half a secret may not stay under the name of a whole one
        path.unlink(missing_ok=True)
        raise


def _sync(folder: Path) -> None:
    """See a folder's names to the disk: a revocation must outlast the power cut that follows it."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _unwritten(path: Path, error: OSError) -> DataError:
    return DataError(
        f"{path}: cannot be written ({error.strerror}); free space or mend its folder's rights, then try again"
    )
