"""Witness: what the hospitals' audit logs promised, kept beside the members, so that a log that was rewritten or cut off is known for it.

Every answer carries a checkpoint of its hospital's log (`common.chain`), taken after the line on that very answer. `Screen` stands between the round loop and Flower: an answer without a checkpoint, with one that is not signed by the key that the hospital was admitted with, or of a log that went back or stands still, becomes a refusal with
the code ``audit``. It costs that hospital its update and nothing else.
"""

import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import chain, flower, joining, keys
from common.errors import DataError, FedwardError, UpdateRejected
from server.members import Member, Members

if TYPE_CHECKING:
    from flwr.app import Message

MOST = 128
"""Checkpoints that are held of a hospital. When there are more, every second one goes, never the newest: each stands for all lines up to its own."""

_log = logging.getLogger(__name__)


class Witness:
    """The folder of checkpoints: one file a hospital, written whole, under the lock of the members' files."""

    def __init__(self, folder: Path, members: Members) -> None:
        self._folder, self._members = folder, members

    def held(self, member: Member) -> list[dict[str, Any]]:
        """Return the checkpoints held of a hospital's log, oldest first; those under a key that it has no more count for nothing.

        Raises
        ------
        DataError
            When the file is damaged.
        """
        path = self._path(member.name)
        if not path.exists():
            return []
        document = joining.read_document(path)
        texts = document.get("checkpoints")
        found = [chain.checkpoint_from(text) for text in texts] if isinstance(texts, list) else [None]
        held = [checkpoint for checkpoint in found if checkpoint]
        if len(held) < len(found):
            raise DataError(
                f"{path}: damaged; restore it from a backup, or put it aside with: fedward server audit FOLDER NAME --put-aside"
            )
        return held if document.get("audit_key") == member.audit_key else []

    def heads(self) -> dict[str, int]:
        """Return how many lines each hospital's log was seen to have; without those whose file is damaged, which is logged."""
        heads = {}
        for member in self._members.survey()[0]:
            try:
                heads[member.name] = max(_numbers(self.held(member)), default=0)
            except DataError as error:
                _log.error("%s", error)
        return heads

    def take(self, member: Member, text: object, least: int) -> int:
        """Keep the checkpoint that came with an answer, and return how many lines it is of, ``least`` or more.

        Raises
        ------
        UpdateRejected
            With the code ``audit``, for what is no checkpoint of this hospital, and for a log that went back, stands still or is another.
        DataError
            When what is held of it is damaged.
        """
        checkpoint = chain.checkpoint_from(text)
        if checkpoint is None or not chain.is_signed(checkpoint, _key(member)):
            raise UpdateRejected(
                "audit", "expected a checkpoint of its audit log, signed by the key it was admitted with"
            )
        number = int(checkpoint["sequence"])
        with self._members.locked():
            held = self.held(member)
            known = next((each["sha256"] for each in held if each["sequence"] == number), checkpoint["sha256"])
            if number < least:
                raise UpdateRejected(
                    "audit", f"its audit log of {number} lines went back or stands still: {least} are the least"
                )
            if known != checkpoint["sha256"]:
                raise UpdateRejected("audit", f"its audit log is not the one that was promised at {number} lines")
            if number not in _numbers(held):
                self._store(member, [*held, checkpoint])
        return number

    def verify(self, member: Member, log: Path) -> int:
        """Return how many lines of a log were promised, when it holds all of them.

        Raises
        ------
        FedwardError
            For a log that does not; the message names the first line.
        """
        held = self.held(member)
        broken = chain.verify(log, _key(member), held)
        if broken:
            raise FedwardError(f"{log}: {broken}")
        return max(_numbers(held), default=0)

    def put_aside(self, member: Member) -> Path | None:
        """Begin anew with a hospital whose log has to: what was held goes into the folder ``ended``, over what was put there before."""
        path = self._path(member.name)
        aside = path.parent / "ended" / path.name
        if not path.exists():
            return None
        with self._members.locked():
            aside.parent.mkdir(mode=0o700, exist_ok=True)
            path.replace(aside)
        return aside

    def _store(self, member: Member, checkpoints: list[dict[str, Any]]) -> None:
        checkpoints.sort(key=lambda checkpoint: int(checkpoint["sequence"]))
        kept = checkpoints[::-2][::-1] if len(checkpoints) > MOST else checkpoints
        document = {"audit_key": member.audit_key, "checkpoints": [chain.checkpoint_text(each) for each in kept]}
        self._folder.mkdir(mode=0o700, exist_ok=True)
        keys.replace({self._path(member.name): joining.document_bytes(document)})

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"


def _numbers(checkpoints: Iterable[Mapping[str, Any]]) -> list[int]:
    return [int(checkpoint["sequence"]) for checkpoint in checkpoints]


def _key(member: Member) -> Any:
    return keys.load_public(member.audit_key, "audit", f"audit key of {member.name!r}")


class Screen:
    """What a run's answers pass before they are used. A node stands for the hospital in whose name its first answer was signed."""

    def __init__(self, witness: Witness, members: Members) -> None:
        self._witness, self._members = witness, members
        self._names: dict[int, str] = {}
        self._heads = witness.heads()

    def __call__(self, message: "Message") -> "Message":
        """Return the answer, or a refusal in its place."""
        if not message.has_content():
            return message
        node: int = message.metadata.src_node_id
        texts: Mapping[str, Any] = message.content.config_records.get("config", {})
        name = self._names.get(node, str(texts.get("hospital", "")))
        try:
            member = self._admitted(name)
            # An answer is written down before it promises anything, so its log has at least one line more than at the last.
            least = self._heads.get(name, 0) + 1
            self._heads[name] = self._witness.take(member, texts.get(chain.CHECKPOINT), least)
        except (UpdateRejected, DataError) as error:
            _log.warning("node %d (%r): its answer is dropped: %s", node, name[:64], error)
            return flower.refused(message, "audit")
        self._names[node] = name
        return message

    def _admitted(self, name: str) -> Member:
        with suppress(DataError):  # whose file is damaged, the gateway does not let in either
            member = self._members.read(name)
            if member and not member.revoked:
                return member
        raise UpdateRejected("audit", "it answers in the name of no admitted hospital")
