"""Who is admitted: one file a hospital, written whole and under a lock, read from memory as long as the file is the one last read."""

import fcntl
import os
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from common import joining, keys
from common.errors import DataError


@dataclass(frozen=True)
class Member:
    """An admitted hospital. Keys are lines in OpenSSH's form, serial numbers hexadecimal, times in UTC as ISO 8601."""

    name: str
    task: str
    tls_key: str
    node_key: str
    audit_key: str
    serials: tuple[str, ...]
    admitted: str
    revoked: str | None = None
    barred: tuple[str, ...] = ()
    """Keys that this hospital had when it was revoked. They never come back, under no name."""
    ends: str | None = None
    """Until when the newest of its certificates counts; not known of a member that an earlier release wrote down."""

    @property
    def public_keys(self) -> frozenset[str]:
        """Return all of its present public keys."""
        return frozenset((self.tls_key, self.node_key, self.audit_key))


class Members:
    """The folder of the members' files. A change by another process is seen at the next reading."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: dict[str, tuple[tuple[int, ...], Member]] = {}

    def all(self) -> list[Member]:
        """Return all hospitals that ever were admitted, in the order of their names.

        Raises
        ------
        DataError
            When the file of one is damaged.
        """
        members, damaged = self.survey()
        if damaged:
            raise damaged[0]
        return members

    def survey(self) -> tuple[list[Member], list[DataError]]:
        """Return all hospitals whose files can be read, and what is wrong with the others."""
        members, damaged = list[Member](), list[DataError]()
        for path in sorted(self._folder.glob("*.json")):
            try:
                member = self.read(path.stem)
            except DataError as error:
                damaged.append(error)
            else:
                members += [member] if member else []
        return members, damaged

    def read(self, name: str) -> Member | None:
        """Return a hospital; None where there is none. Costs one look at the time of a file where that has not changed.

        Raises
        ------
        DataError
            When its file is damaged.
        """
        if not joining.NAME.fullmatch(name):
            return None
        path = self._folder / f"{name}.json"
        try:
            facts = path.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None
        # A file is never written into but replaced, so a change within one tick of the file system's clock shows in its number.
        state = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
        known = self._seen.get(name)
        if known and known[0] == state:
            return known[1]
        member = _member(path)
        self._seen[name] = (state, member)
        return member

    def store(self, member: Member) -> None:
        """Write a hospital's file, whole or not at all; only within `locked`."""
        keys.replace({self._folder / f"{member.name}.json": joining.document_bytes(asdict(member))})

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process from writing: a renewal that read before a revocation would undo it."""
        path = self._folder / ".lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise DataError(f"{path}: cannot be opened ({error.strerror}); mend the rights of the folder") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def alike(name: str) -> str:
    """Return what names that a reader may take for one another have in common: width, case and blanks do not count.

    >>> alike("St. Mary") == alike("ST.  MARY")
    True
    """
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def _readable(document: Mapping[str, Any]) -> bool:
    """Tell whether a member's keys are keys: what is admitted under others would end whoever meets them."""
    kinds: tuple[keys.Kind, ...] = ("tls", "node", "audit")
    try:
        for kind in kinds:
            keys.load_public(document[f"{kind}_key"], kind, "")
    except DataError:
        return False
    return True


def _member(path: Path) -> Member:
    document = {"ends": None, **joining.read_document(path)}
    names, lists = {item.name for item in fields(Member)}, {"serials", "barred"}
    good = (
        document.keys() == names
        and document["name"] == path.stem
        and all(isinstance(document[name], str) for name in names - lists - {"revoked", "ends"})
        and all(isinstance(document[name], str | None) for name in ("revoked", "ends"))
        and all(isinstance(document[name], list) for name in lists)
        and all(isinstance(text, str) for name in lists for text in document[name])
    )
    if not good or not _readable(document):
        raise DataError(f"{path}: damaged; restore it from a backup, or delete it and admit the hospital again")
    return Member(**(document | {name: tuple(document[name]) for name in lists}))
