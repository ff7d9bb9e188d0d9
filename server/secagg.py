"""The coordinator's side of secure aggregation: it carries cards, packages and letters between hospitals, adds what they mask, and learns the sum.

A sum costs each hospital one message beside the plain one: ``query.shares`` closes one sum and opens the next. Only where nothing was dealt in advance, in the first round and for
a further attempt, does a round begin with one more; and where hospitals dropped out the others sign first who survived, which is one more too.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray

from common.config import RunConfig
from common.errors import QuorumError, UpdateRejected
from common.keys import from_text
from common.messages import EVALUATE, KEYS, SHARES, SIGNATURE, TRAIN, Reply, unpack_request
from common.secagg import fixed, keys, protocol, shares
from common.secagg.fixed import Frame
from common.secagg.keys import Card
from common.secagg.protocol import Gathering, Sum
from common.statistics import Statistics
from common.tasks import task_of
from common.update import Update

UNSIGNED = bytes(keys.SIGNATURE)
"""Stands where a hospital's signature has not come."""
TOGETHER = "*"
"""The name of all hospitals of a sum."""
LAGGARD_SECONDS = 30.0
"""How long hospitals that were not in the last sum have to deal for the next one, while the others wait."""

Arrays = Mapping[str, NDArray[Any]]
Options = Mapping[str, bool | int | float | str]
_log = logging.getLogger(__name__)


class Channel(Protocol):
    """What a sum needs of the round loop."""

    def lay(self, arrays: Arrays, options: Options) -> RecordDict:
        """Lay out a request to train or to judge, which any number of messages can share."""

    def brief(self, arrays: Arrays, options: Options) -> RecordDict:
        """Lay out a request of the protocol's own."""

    def ask(
        self, contents: Mapping[str, RecordDict], kind: str, label: str, seconds: float
    ) -> Iterator[tuple[str, Reply | UpdateRejected]]:
        """Send each hospital its content; yield every answer, or why there is none."""

    def account(self, name: str, reply: Reply) -> None:
        """Note what a hospital says that it released, under differential privacy; raise `UpdateRejected` where it has to and does not."""

    def drop(self, name: str, error: UpdateRejected) -> None:
        """Note that a hospital's part is not in the sum."""


@dataclass(frozen=True)
class Step:
    """A sum to be made: its ``label``, of whom, by which request, over how many at least; and label and members of the one after it, for which is dealt when it ends."""

    label: str
    names: Sequence[str]
    arrays: Arrays
    options: Options
    need: int
    upcoming: str = ""
    members: Sequence[str] = ()


@dataclass(frozen=True)
class Result:
    """A sum: over whom, of which statistics and vectors."""

    survivors: list[str]
    statistics: Statistics
    vectors: list[NDArray[np.float64]]


class SecureSums:
    """The secure sums of one run. What it holds is public: cards, and what was dealt for the next sum."""

    def __init__(self, config: RunConfig, text: str, run_id: int, rows: Mapping[str, int]) -> None:
        self._config, self._rows = config, rows
        self._run = hashlib.sha256(keys.joined(text, str(run_id))).digest()
        self._cards: dict[str, Card] = {}
        self._told: dict[str, bytes] = {}
        self._ready: Gathering | None = None
        self._failed: dict[str, UpdateRejected] = {}

    def train(self, channel: Channel, step: Step) -> tuple[Update, list[str]]:
        """Have hospitals train; return the mean of their updates as one, and whose they are.

        Raises
        ------
        QuorumError
            When too few took part or stayed until the end; nothing was unmasked then.
        """
        controls, size = "control" in step.arrays, fixed.size_of(self._config, step.arrays["weights"])
        # Counts up to the largest that there is keep their weight, and the fixed point its precision.
        most = fixed.most_of(self._config, max(self._rows.values()))

        def frame(hospitals: int) -> Frame:
            judged = bool(step.options["evaluate"])
            return fixed.frame_of(self._config, TRAIN, hospitals, size, controls=controls, judged=judged)

        result = self._sum(channel, step, TRAIN, {"most": most}, frame)
        statistics, count = dict(result.statistics), len(result.survivors)
        examples, weight = (float(statistics.pop(name)) for name in (fixed.EXAMPLES, fixed.WEIGHT))
        if not weight:
            raise QuorumError("no hospital of the sum trained on a patient; nothing can be averaged")
        factor = 1 / count if controls else most / weight
        factor = 1.0 if task_of(self._config.task).learner else factor
        delta, *control = ((vector * factor).astype(np.float32) for vector in result.vectors)
        statistics = {name: value for name, value in statistics.items() if _is_known(name, statistics)}
        update = Update(TOGETHER, delta, int(examples), control[0] if control else None, statistics, hospitals=count)
        return update, result.survivors

    def judge(self, channel: Channel, step: Step) -> Statistics:
        """Have hospitals judge a model; return the sum of their statistics, in groups. Errors as of `train`."""

        def frame(hospitals: int) -> Frame:
            return fixed.frame_of(self._config, EVALUATE, hospitals, 0, controls=False, judged=True)

        return self._sum(channel, step, EVALUATE, {}, frame).statistics

    def _sum(self, channel: Channel, step: Step, kind: str, more: Options, frame: Any) -> Result:
        gathering, self._ready = self._ready, None
        if gathering is None or gathering.sum.label != step.label or gathering.sum.cohort != tuple(sorted(step.names)):
            gathering = self._deal(channel, step.label, step.names)
        for name, error in self._failed.items():
            channel.drop(name, error)
        need = max(step.need, gathering.sum.fewest)
        _check(len(gathering.packages), need, "dealt for the sum")
        self._gather(channel, step, kind, more, frame(len(gathering.packages)), gathering)
        _check(len(gathering.survivors), need, "sent what is summed")
        self._agree(channel, gathering)
        revealed = self._close(channel, gathering, step.upcoming, step.members)
        statistics, vectors = frame(len(gathering.packages)).read(gathering.total(revealed))
        return Result(sorted(gathering.survivors), statistics, vectors)

    def _gather(
        self, channel: Channel, step: Step, kind: str, more: Options, frame: Frame, gathering: Gathering
    ) -> None:
        """Have those who dealt answer under their masks, and add what comes."""
        present = sorted(gathering.packages)
        packages = _rows([gathering.packages[name] for name in present])
        options = {**step.options, **more, "sum": step.label, "present": "\n".join(present)}
        content = channel.lay({**step.arrays, "packages": packages}, options)
        gathering.request = unpack_request(content).digest
        seconds = self._config.limits.deadline_seconds
        for name, reply in channel.ask(dict.fromkeys(present, content), kind, step.label, seconds):
            try:
                vector = _vector(reply, frame.length)
                if kind == TRAIN and isinstance(reply, Reply):
                    channel.account(name, reply)
                gathering.add(name, vector, _signature(reply))
            except UpdateRejected as error:
                self._forget(name, error)
                channel.drop(name, error)

    def _agree(self, channel: Channel, gathering: Gathering) -> None:
        """Have survivors sign their list, where it is not the one that they signed when they sent."""
        if gathering.whole:
            return
        gathering.signatures.clear()
        names, label = gathering.survivors, gathering.sum.label
        content = channel.brief({}, {"close": label, "next": "", "survivors": "\n".join(names)})
        for name, reply in channel.ask(
            dict.fromkeys(names, content), SHARES, label, self._config.limits.deadline_seconds
        ):
            try:
                gathering.agree(name, _signature(reply))
            except UpdateRejected as error:
                _log.warning("%s does not sign who survived: %s (%s)", name, error.code, error)
        _check(len(gathering.signatures), gathering.sum.fewest, "signed the list of survivors")

    def _deal(self, channel: Channel, label: str, names: Sequence[str]) -> Gathering:
        """Open a sum for which nothing was dealt in advance."""
        self._close(channel, None, label, names)
        ready, self._ready = self._ready, None
        if ready is None:
            raise QuorumError(f"fewer than {protocol.FEWEST} hospitals showed their keys; no sum can be made of them")
        return ready

    def _close(
        self, channel: Channel, closing: Gathering | None, upcoming: str, members: Sequence[str]
    ) -> dict[str, list[bytes]]:
        """Ask for the shares of a sum that is over, and have hospitals deal for the next one; return the shares by who gave them."""
        first = closing.survivors if closing else list(members)
        deadline = self._config.limits.deadline_seconds
        self._collect(channel, members, min(deadline, LAGGARD_SECONDS) if closing else deadline)
        self._ready, self._failed = (
            self._opened(upcoming, members),
            {
                name: UpdateRejected("keys", "it has shown no keys for secure sums")
                for name in members
                if name not in self._cards
            },
        )
        revealed: dict[str, list[bytes]] = {}
        later = [name for name in (self._ready.sum.cohort if self._ready else ()) if name not in first]
        for names, seconds in ((first, deadline), (later, min(deadline, LAGGARD_SECONDS))):
            contents = {name: self._request(channel, name, closing) for name in names if name in self._cards}
            for name, reply in channel.ask(contents, SHARES, upcoming, seconds):
                self._take(name, reply, closing, revealed)
        return revealed

    def _opened(self, label: str, members: Sequence[str]) -> Gathering | None:
        cohort = tuple(sorted(name for name in members if name in self._cards))
        if not label or len(cohort) < protocol.FEWEST:
            return None
        this = Sum(protocol.digest_of(self._cards.values(), self._run), label, cohort, self._config.secure)
        return Gathering(this, {name: card.signing for name, card in self._cards.items()})

    def _collect(self, channel: Channel, names: Sequence[str], seconds: float) -> None:
        """Ask hospitals for their cards that have shown none, or forgot their keys."""
        content = channel.brief({}, {})
        missing = [name for name in names if name not in self._cards]
        for name, reply in channel.ask(dict.fromkeys(missing, content), KEYS, "keys", seconds):
            try:
                self._cards[name] = _card(reply, name, self._run)
                self._told.pop(name, None)
            except UpdateRejected as error:
                _log.warning("%s shows no keys for secure sums: %s (%s)", name, error.code, error)

    def _request(self, channel: Channel, name: str, closing: Gathering | None) -> RecordDict:
        """Lay out what closes one sum and opens the next for a hospital; where the cards have changed, with all of them."""
        arrays: dict[str, NDArray[Any]] = {}
        options: dict[str, str] = {"close": "", "next": ""}
        if closing and name in closing.survivors:
            letters = closing.letters(name)
            arrays["letters"] = _rows(list(letters.values()))
            arrays["signatures"] = _rows([closing.signatures.get(each, UNSIGNED) for each in closing.survivors])
            options |= {"close": closing.sum.label, "senders": "\n".join(letters)}
            options["survivors"] = "\n".join(closing.survivors)
        ready = self._ready
        if ready and name in ready.sum.cohort:
            options |= {"next": ready.sum.label, "members": "\n".join(ready.sum.cohort)}
            if self._told.get(name) != ready.sum.roster:
                arrays["cards"] = keys.pack(self._cards.values())
                self._told[name] = ready.sum.roster
        return channel.brief(arrays, options)

    def _take(
        self, name: str, reply: Reply | UpdateRejected, closing: Gathering | None, revealed: dict[str, list[bytes]]
    ) -> None:
        """Take from one answer the shares of the sum that is over and what is dealt for the next."""
        ready = self._ready
        try:
            arrays = _arrays(reply)
            if closing and name in closing.survivors:
                revealed[name] = _bytes(arrays, "revealed", shares.SHARE)
            if ready and name in ready.sum.cohort:
                (package,) = _bytes(arrays, "package", protocol.PACKAGE)[:1] or [b""]
                ready.take(name, package, _bytes(arrays, "letters", protocol.SEALED))
        except UpdateRejected as error:
            self._forget(name, error)
            self._failed[name] = error

    def _forget(self, name: str, error: UpdateRejected) -> None:
        """Have a hospital that lost its keys, as by a restart, show new ones before the next sum."""
        if error.code == "session":
            self._cards.pop(name, None)


def _check(count: int, need: int, what: str) -> None:
    if count < need:
        raise QuorumError(f"{count} hospitals {what}, and {need} are needed")


def _is_known(name: str, statistics: Statistics) -> bool:
    """Tell whether anybody's patients are in the group of a statistic; where nobody has any, or shows them, there is nothing to be judged by."""
    part = name.partition("/")[0]
    return part == "train" or any(value.any() for key, value in statistics.items() if key.startswith(part + "/"))


def _arrays(reply: Reply | UpdateRejected) -> Arrays:
    if isinstance(reply, UpdateRejected):
        raise reply
    if reply.statistics or reply.num_examples:
        raise UpdateRejected("extra", "an answer of a secure sum holds something beside it")
    return reply.arrays


def _vector(reply: Reply | UpdateRejected, length: int) -> NDArray[np.uint32]:
    """Return a masked vector of this length; raise `UpdateRejected` for anything else."""
    arrays = _arrays(reply)
    if set(arrays) != {"masked"} or arrays["masked"].dtype != np.uint32 or arrays["masked"].shape != (length,):
        raise UpdateRejected("shape", f"expected one array 'masked' of {length} uint32")
    return arrays["masked"]


def _signature(reply: Reply | UpdateRejected) -> bytes:
    """Return a hospital's signature of a list of survivors; who signs it wrongly has none."""
    if isinstance(reply, UpdateRejected):
        raise reply
    try:
        return from_text(reply.texts.get(SIGNATURE, ""))
    except ValueError:
        return b""


def _bytes(arrays: Arrays, name: str, length: int) -> list[bytes]:
    """Return the rows of an array of bytes, each of this length."""
    array = arrays.get(name)
    if array is None or array.dtype != np.uint8 or array.ndim != 2 or array.shape[1] != length:
        raise UpdateRejected("shape", f"expected an array {name!r} of rows of {length} bytes")
    return [row.tobytes() for row in array]


def _card(reply: Reply | UpdateRejected, name: str, run: bytes) -> Card:
    """Return the card that a hospital shows. Whether the authority knows it is for the others to check; one that is not even its own would have all of them refuse."""
    array = _arrays(reply).get("card", np.zeros(0, np.uint8))
    cards = keys.unpack(array)
    if len(cards) != 1 or cards[0].name != name:
        raise UpdateRejected("identity", "expected one card, with the name under which the hospital takes part")
    keys.check_signature(cards[0], run)
    return cards[0]


def _rows(rows: Sequence[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), -1)
