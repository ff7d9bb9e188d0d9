"""The hospital's side of secure aggregation: what leaves in a run with secure sums is masked, and each step of the protocol is answered once.

A `Shield` stands where the hospital's answer is complete, after its policy has screened it: what a real hospital's gate, or a virtual one's seat, would send is given to
`answer`, which lets it pass, masks it, or refuses.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from flwr.app import Context, Message
from numpy.typing import NDArray

from common.errors import UpdateRejected
from common.keys import to_text
from common.messages import COMPARE, EVALUATE, KEYS, SHARES, SIGNATURE, TRAIN, Reply, Request
from common.secagg import fixed, keys
from common.secagg.fixed import Noise
from common.secagg.keys import Identity
from common.secagg.protocol import Session, refused
from common.tasks import task_of

MOST_RUNS = 8
"""Runs whose keys are held at a time, the newest."""


class Sessions(Protocol):
    """Where a hospital keeps its secrets of a run between messages."""

    def load(self, message: Message, context: Context) -> Session | None:
        """Return what was kept of the run that a message is of."""

    def keep(self, message: Message, context: Context, session: Session) -> None:
        """Keep it for the next message."""


@dataclass
class InMemory:
    """A real hospital's: in the worker's memory alone, so that a restart forgets them and nothing can be asked twice; keys are then agreed on anew."""

    _held: dict[int, Session] = field(default_factory=dict, repr=False)

    def load(self, message: Message, _context: Context) -> Session | None:
        """Return what was kept of the run that a message is of."""
        return self._held.get(message.metadata.run_id)

    def keep(self, message: Message, _context: Context, session: Session) -> None:
        """Keep it for the next message."""
        self._held.pop(message.metadata.run_id, None)
        self._held[message.metadata.run_id] = session
        while len(self._held) > MOST_RUNS:
            del self._held[next(iter(self._held))]


@dataclass(frozen=True)
class Shield:
    """Who the hospital is among the others, where its secrets of a run are, and the noise that is added to an update before it is masked.

    ``noise`` finds it from the request, the whole answer, and how many hospitals a sum is opened over at least.
    """

    identity: Callable[[], Identity]
    sessions: Sessions
    noise: Callable[[Request, Reply, int], Noise | None] = lambda *_: None


@dataclass(frozen=True)
class Terms:
    """What a hospital's own policy asks of a sum: ``least`` hospitals in it, and only those ``known``, where any are named."""

    least: int = 0
    known: tuple[str, ...] = ()


NO_TERMS = Terms()


def answer(
    shield: Shield | None,
    message: Message,
    context: Context,
    request: Request,
    clear: Callable[[], Reply],
    terms: Terms = NO_TERMS,
) -> Reply:
    """Return what may leave: ``clear()`` where the run asks for no secure sums, else a step of the protocol, or what ``clear()`` gives under a mask.

    Raises
    ------
    PolicyRefused
        For a step that the protocol does not allow, and for a question whose answer would be this hospital's alone.
    UpdateRejected
        With the code ``fixed_point`` for an update that a sum cannot hold; nothing of it is sent.
    """
    kind = message.metadata.message_type
    if not request.config.secure.aggregation:
        if kind in (KEYS, SHARES):
            raise refused("session", "the run's settings ask for no secure aggregation")
        return clear()
    if kind == COMPARE:
        raise refused("alone", "a comparison of models would tell the figures of this hospital alone")
    if kind not in (KEYS, SHARES, TRAIN, EVALUATE):
        return clear()
    if shield is None:
        raise refused("session", "this hospital has no identity to agree on keys with")
    run = hashlib.sha256(keys.joined(request.run, str(message.metadata.run_id))).digest()
    held = shield.sessions.load(message, context)
    session = held if held and held.run == run else None
    if kind == KEYS:
        begun, card = Session.begin(shield.identity(), run)
        shield.sessions.keep(message, context, begun)
        return Reply({"card": keys.pack([card])})
    if session is None:
        raise refused("session", "this hospital holds no keys of this run; they have to be agreed on anew")
    try:
        step = _covered if kind in (TRAIN, EVALUATE) else _revealed
        return step(shield, session, kind, request, clear, terms)
    finally:
        shield.sessions.keep(message, context, session)  # also what a refusal has ended


def _revealed(
    shield: Shield, session: Session, _kind: str, request: Request, _clear: Callable[[], Reply], terms: Terms
) -> Reply:
    """Help to unmask the sum that is over, and deal for the next, with new cards where any came; or sign alone who survived."""
    options, arrays = request.options, request.arrays
    reply: dict[str, NDArray[np.uint8]] = {}
    if options["close"]:
        label, survivors = str(options["close"]), _names(options["survivors"])
        if "letters" not in arrays:
            return Reply(texts={SIGNATURE: to_text(session.agree(label, survivors, terms.least))})
        letters = dict(zip(_names(options["senders"]), _rows(arrays["letters"]), strict=True))
        signatures = dict(zip(survivors, _rows(arrays["signatures"]), strict=True))
        reply["revealed"] = _array(session.reveal(label, survivors, signatures, letters, terms.least))
    if "cards" in arrays:
        session.join(keys.unpack(arrays["cards"]), shield.identity().authority, terms.least, terms.known)
    if options["next"]:
        cohort, settings = _names(options["members"]), request.config.secure
        package, dealt = session.deal(str(options["next"]), cohort, settings, terms.least)
        reply |= {"package": _array([package]), "letters": _array(dealt)}
    elif session.final:
        session.end()
    return Reply(reply)


def _covered(
    shield: Shield, session: Session, kind: str, request: Request, clear: Callable[[], Reply], _terms: Terms
) -> Reply:
    """Lay the whole answer into one vector and mask it."""
    options = request.options
    present = _names(options["present"])
    packages = dict(zip(present, _rows(request.arrays["packages"]), strict=True))
    session.check(str(options["sum"]), packages)
    if len(set(present)) < len(present):
        raise refused("session", "a hospital is named twice among those that dealt")
    plain = clear()
    vectors = [plain.arrays[name] for name in ("values", "control/values") if name in plain.arrays]
    controls = "control" in request.arrays
    frame = fixed.frame_of(
        request.config,
        kind,
        len(present),
        fixed.size_of(request.config, request.arrays["weights"]),
        controls=controls,
        judged=bool(options.get("evaluate", True)),
    )
    most = fixed.most_of(request.config, int(options.get("most", 1)))
    counted = min(plain.num_examples, most)
    counts = {fixed.EXAMPLES: np.array(plain.num_examples, np.float64), fixed.WEIGHT: np.array(counted, np.float64)}
    noise = shield.noise(request, plain, session.fewest)
    if request.config.privacy.shared and kind == TRAIN and noise is None:
        raise refused("session", "the run has hospitals share the noise, and this one has none to add")
    weight = 1.0 if controls or task_of(request.config.task).learner else counted / most
    words = frame.write({**plain.statistics, **counts}, vectors, weight, noise)
    signature = session.cover(str(options["sum"]), packages, words, request.digest)
    session.final = kind == EVALUATE  # a final model is judged once training is over
    # What was released of how many patients is public, as their count is.
    told = {name: text for name, text in plain.texts.items() if name == "event"}
    return Reply({"masked": words}, texts={SIGNATURE: to_text(signature), **told})


def _names(text: object) -> list[str]:
    return list(filter(None, str(text).split("\n")))


def _rows(array: NDArray[np.uint8]) -> list[bytes]:
    if array.ndim != 2 or array.dtype != np.uint8:
        raise UpdateRejected("shape", "packages and letters come as rows of bytes")
    return [row.tobytes() for row in array]


def _array(rows: list[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), -1)
