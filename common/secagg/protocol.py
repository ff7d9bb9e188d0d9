"""The protocol of a secure sum, both sides, without a way to travel: `Session` is a hospital's, `Gathering` the coordinator's.

It is that of Bonawitz et al. 2017 (figure 4) on the graph of Bell et al. 2020, arranged so that a sum costs one message more than a plain one:

1. once a run, every hospital shows its card (`common.secagg.keys`) and gets all others';
2. *deal*: for one sum each makes a new key for masks and a new seed for a mask of its own, splits both among its neighbours, sealed, and signs the public part;
3. *cover*: it adds the mask that it shares with each neighbour who dealt, one of the two adding what the other takes away, and its own, and signs the list of those who dealt as that of those who survive;
4. *agree*, only where somebody dropped out since: told who survived, it signs that list instead;
5. *reveal*: shown a list of survivors that enough hospitals have signed, it gives of every neighbour one share: of the seed of one that survived, of the key of one that dropped out. What is dealt for the next sum travels with it.

Everything a hospital reveals is of one sum and of no other: keys and seeds are new each time, and forgotten after it.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from common import certificates
from common.config import SecureConfig
from common.errors import PolicyRefused, QuorumError, UpdateRejected
from common.secagg import graph, keys, masks, shares
from common.secagg.keys import Card, Identity, joined
from common.secagg.masks import Words
from common.secagg.shares import Draw

FEWEST = 3
"""Hospitals that a secure sum has at least: of two, each knows the other's part from the sum."""
ROUNDING = 1e-9
PACKAGE = keys.PUBLIC + 32 + keys.SIGNATURE
"""Bytes of what a hospital deals in public: a key, the digest of a seed, a signature."""
SEALED = 2 * shares.SHARE + keys.SEAL
"""Bytes of what it deals to one neighbour: a share of its key and one of its seed."""

Bytes = NDArray[np.uint8]


def needed_of(count: int, settings: SecureConfig) -> int:
    """Return how many of so many must be there, more than half in any case: then no two lists of survivors can open both secrets of a hospital.

    >>> [needed_of(count, SecureConfig()) for count in (3, 4, 10, 100)]
    [2, 3, 7, 66]
    """
    return max(ceil(settings.threshold * count - ROUNDING), count // 2 + 1)


def digest_of(cards: Iterable[Card], run: bytes) -> bytes:
    """Return what stands for the hospitals of a run and all their keys."""
    ordered = sorted(cards, key=lambda card: card.name)
    return _hash("roster", *(card.content(run) for card in ordered))


@dataclass(frozen=True)
class Sum:
    """Which sum is made: of which hospitals, under which terms. ``roster`` is the digest of all keys of the run, ``label`` names the sum within it."""

    roster: bytes
    label: str
    cohort: tuple[str, ...]
    settings: SecureConfig

    def neighbours(self, name: str) -> tuple[str, ...]:
        """Return with whom a hospital shares masks."""
        return graph.neighbours(name, self.cohort, self.settings.neighbours, _hash("graph", self.roster, self.label))

    def holders(self, name: str) -> list[str]:
        """Return who holds shares of a hospital's secrets, itself among them."""
        return sorted((*self.neighbours(name), name))

    @property
    def fewest(self) -> int:
        """Return how many must survive, and have signed the list of those who do."""
        return max(needed_of(len(self.cohort), self.settings), 2)

    def package(self, name: str, content: bytes) -> bytes:
        """Return what a hospital signs of what it deals, for whom and under which terms."""
        return self._purpose("package", name, content, self._terms)

    def survival(self, told: bytes, survivors: Iterable[str]) -> bytes:
        """Return what a hospital signs of who survived; ``told`` is the digest of what its own vector was covered for."""
        return self._purpose("survivors", told, joined(*sorted(survivors)), self._terms)

    def signed_by(
        self, told: bytes, survivors: Sequence[str], signatures: Mapping[str, bytes], signers: Mapping[str, bytes]
    ) -> list[str]:
        """Return who of the survivors has signed the list of them."""
        content = self.survival(told, survivors)
        return [name for name in survivors if keys.is_signed(signers[name], content, signatures.get(name, b""))]

    def letter(self, sender: str, receiver: str) -> bytes:
        """Return for what purpose shares are sealed."""
        return self._purpose("share", sender, receiver)

    def pair(self, one: str, other: str, request: bytes) -> bytes:
        """Return for what purpose two hospitals agree on a mask: for answers to one and the same request."""
        return self._purpose("mask", *sorted((one, other)), request)

    @property
    def _terms(self) -> bytes:
        return joined(json.dumps(vars(self.settings), sort_keys=True), *self.cohort)

    def _purpose(self, *parts: bytes | str) -> bytes:
        return joined("fedward secure sum 2", self.roster, self.label, *parts)


@dataclass
class Dealt:
    """What a hospital keeps of what it dealt for one sum.

    ``present`` are those whose packages its vector was covered for, none before that, and ``told`` is the digest of them and the request; ``survivors`` is the list that it
    signed after it heard that not all of them survived.
    """

    sum: Sum
    key: bytes = field(repr=False)
    seed: bytes = field(repr=False)
    own: bytes = field(repr=False)
    present: tuple[str, ...] = ()
    told: bytes = b""
    survivors: tuple[str, ...] = ()


@dataclass
class Session:
    """A hospital's side of a run. Everything in it but ``name`` and ``run`` is the hospital's secret or was checked by it.

    *Guarantee*: a vector that leaves is covered by a seed of its own and by a mask with each neighbour, both made for this one vector. Of a neighbour's two secrets it reveals a share of one, once, and
    only for a list of survivors that ``t = needed_of(n)`` hospitals have signed, of whom each was asked the same and told the same of who dealt, and signed but two lists: that all of those survive,
    and one other. So in a complete graph of which ``c`` hospitals work with the coordinator, where ``2 t > n + c``, one list alone is opened, whatever the coordinator tells whom: it never has both
    secrets of a hospital, and learns the sum over the ``t`` or more of that list and nothing else (Bonawitz et al. 2017, figure 4, round 3).

    *Edge cases*: what is asked out of turn, twice, with unknown names, too few survivors or too few signatures is a `PolicyRefused` and changes nothing.
    """

    name: str
    run: bytes
    agreement: bytes = field(repr=False)
    signing: bytes = field(repr=False)
    roster: bytes = b""
    secrets: dict[str, bytes] = field(default_factory=dict, repr=False)
    signers: dict[str, bytes] = field(default_factory=dict)
    dealt: Dealt | None = None
    covered: list[str] = field(default_factory=list)
    final: bool = False

    @classmethod
    def begin(cls, identity: Identity, run: bytes) -> tuple[Self, Card]:
        """Make a run's keys; return them and the card to be shown."""
        session = cls(identity.name, run, os.urandom(32), os.urandom(32))
        return session, keys.show(identity, run, keys.public_of(session.agreement), keys.signer_of(session.signing))

    def join(self, cards: Sequence[Card], authority: bytes, least: int = 0, known: Sequence[str] = ()) -> None:
        """Check everybody's card, and agree with each on a secret.

        ``known`` are those who may be among them, as names or ``NAME@KEY`` with the fingerprint of a key, where it is not for the authority alone to say.
        """
        names = [card.name for card in cards]
        own = (self.name, keys.public_of(self.agreement), keys.signer_of(self.signing))
        if len(set(names)) < len(names) or own not in [(card.name, card.agreement, card.signing) for card in cards]:
            raise refused("identity", "the cards are not one of each hospital, this one's own among them")
        _at_least(len(cards), max(FEWEST, least), "hospitals")
        for card in cards:
            certificate = keys.check(card, self.run, authority)
            entry = f"{card.name}@{certificates.key_fingerprint(certificate)}"
            if known and card.name != self.name and not {card.name, entry} & set(known):
                raise refused(
                    "cohort", "there is a card of a hospital that is not named in allow.cohort, or has another key"
                )
        roster = digest_of(cards, self.run)
        self.secrets = {card.name: self._agreed(card, roster) for card in cards if card.name != self.name}
        self.roster, self.signers = roster, {card.name: card.signing for card in cards}
        self.dealt = None

    def deal(
        self, label: str, cohort: Sequence[str], settings: SecureConfig, least: int = 0, draw: Draw = os.urandom
    ) -> tuple[bytes, list[bytes]]:
        """Make new secrets for one sum; return the signed package, and what each neighbour gets, in the order of their names. What was dealt before is forgotten."""
        if not self.roster or not {self.name} <= set(cohort) <= set(self.signers) or len(set(cohort)) < len(cohort):
            raise refused("session", "this hospital has not agreed on keys with those that the sum is made of")
        if label in self.covered:
            # Shares of one deal would otherwise open what is covered in the name of another.
            raise refused("session", "this hospital has covered a vector for a sum of this name already")
        _at_least(len(cohort), max(FEWEST, least), "hospitals in the sum")
        this = Sum(self.roster, label, tuple(sorted(cohort)), settings)
        key, seed, holders = draw(32), draw(shares.SECRET), this.holders(self.name)
        split = [shares.split(secret, len(holders), needed_of(len(holders), settings), draw) for secret in (key, seed)]
        pairs = {holder: b"".join(pair) for holder, *pair in zip(holders, *split, strict=True)}
        self.dealt = Dealt(this, key, seed, pairs.pop(self.name))
        content = keys.public_of(key) + hashlib.sha256(seed).digest()
        signed = content + keys.sign(self.signing, this.package(self.name, content))
        letters = [keys.seal(self.secrets[name], this.letter(self.name, name), pair) for name, pair in pairs.items()]
        return signed, letters

    def check(self, label: str, packages: Mapping[str, bytes]) -> None:
        """Refuse what `cover` would refuse."""
        dealt = self._turn(label, covered=False)
        this, present = dealt.sum, tuple(sorted(packages))
        if not {self.name} <= set(present) <= set(this.cohort):
            raise refused("session", "the packages are not of this sum's hospitals, this one among them")
        _at_least(len(present), this.fewest, "hospitals with packages")
        for name in this.neighbours(self.name):
            if name in packages and not is_package(this, name, packages[name], self.signers[name]):
                raise refused(
                    "identity", "a package is not signed for this sum by the hospital that it is said to be of"
                )

    def cover(self, label: str, packages: Mapping[str, bytes], vector: Words, request: bytes = b"") -> bytes:
        """Mask a vector, shape ``(n,)``, in place, for those who dealt; return this hospital's signature of their list, as of that of the survivors.

        ``request`` stands for all that it answers, so that masks on answers to different requests do not cancel.
        """
        self.check(label, packages)
        dealt = self._turn(label, covered=False)
        this, told = dealt.sum, told_of(packages, request)
        seeds = {
            name: self._mask(dealt, packages[name][: keys.PUBLIC], this.pair(self.name, name, told))
            for name in this.neighbours(self.name)
            if name in packages
        }
        dealt.present, dealt.told = tuple(sorted(packages)), told
        self.covered.append(label)
        plus = [seed for name, seed in seeds.items() if self.name < name]
        masks.apply(vector, [*plus, dealt.seed], [seed for name, seed in seeds.items() if self.name > name])
        return keys.sign(self.signing, this.survival(told, packages))

    def agree(self, label: str, survivors: Sequence[str], least: int = 0) -> bytes:
        """Sign the list of who survived, where not all of those who dealt did; one list for one sum."""
        dealt = self._surviving(label, survivors, least)
        dealt.survivors = tuple(sorted(survivors))
        return keys.sign(self.signing, dealt.sum.survival(dealt.told, survivors))

    def reveal(
        self,
        label: str,
        survivors: Sequence[str],
        signatures: Mapping[str, bytes],
        letters: Mapping[str, bytes],
        least: int = 0,
    ) -> list[bytes]:
        """Give one share of every neighbour who dealt and of itself, in the order of their names, by who survived; `shares.NONE` where its letter cannot be read.

        ``signatures`` are the survivors' own of their list, by their names.
        """
        dealt = self._surviving(label, survivors, least)
        this = dealt.sum
        signed = this.signed_by(dealt.told, survivors, signatures, self.signers)
        if len(signed) < this.fewest:
            raise refused(
                "survivors",
                f"{len(signed)} hospitals have signed the list of survivors, and {this.fewest} or more are needed so that nobody is shown another one",
            )
        self.dealt = None
        return [
            _one_of(dealt.own if name == self.name else self._read(this, name, letters), survived=name in survivors)
            for name in this.holders(self.name)
            if name in dealt.present
        ]

    def end(self) -> None:
        """Forget all keys of the run."""
        self.agreement = self.signing = self.roster = b""
        self.secrets, self.dealt = {}, None

    @property
    def fewest(self) -> int:
        """Return over how many hospitals the sum that was dealt for is opened at least."""
        return self.dealt.sum.fewest if self.dealt else 0

    def dump(self) -> bytes:
        """Write all secrets as text, for those who keep it sealed."""
        return json.dumps(self, default=lambda item: item.hex() if isinstance(item, bytes) else vars(item)).encode()

    @classmethod
    def load(cls, data: bytes) -> Self:
        """Undo `dump`."""
        facts: dict[str, Any] = json.loads(data)
        raw = {name: bytes.fromhex(facts[name]) for name in ("run", "agreement", "signing", "roster")}
        books = {name: _unhexed(facts[name]) for name in ("secrets", "signers")}
        return cls(**{**facts, **raw, **books, "dealt": _dealt(facts["dealt"])})

    def _agreed(self, card: Card, roster: bytes) -> bytes:
        try:
            return keys.agree(self.agreement, card.agreement, joined("fedward secure letters 1", roster))
        except ValueError:
            raise refused("identity", "a hospital's card holds a key on which nobody can agree in secret") from None

    def _mask(self, dealt: Dealt, public: bytes, purpose: bytes) -> bytes:
        try:
            return keys.agree(dealt.key, public, purpose)
        except ValueError:
            raise refused("identity", "a hospital dealt a key on which nobody can agree in secret") from None

    def _turn(self, label: str, *, covered: bool) -> Dealt:
        dealt = self.dealt
        if dealt is None or dealt.sum.label != label or bool(dealt.present) != covered:
            raise refused("session", "this is not the next step of the sum that this hospital dealt for")
        return dealt

    def _surviving(self, label: str, survivors: Sequence[str], least: int) -> Dealt:
        """Return what was dealt for a sum whose survivors can be these; refuse any other list than one that was signed before."""
        dealt = self._turn(label, covered=True)
        this, chosen = dealt.sum, set(survivors)
        if not {self.name} <= chosen <= set(dealt.present) or len(chosen) < len(survivors):
            raise refused(
                "survivors", "the list of survivors leaves this hospital out, or names one that was not there"
            )
        if dealt.survivors and chosen != set(dealt.survivors):
            raise refused("survivors", "this hospital has signed another list of survivors of this sum")
        _at_least(len(chosen), max(this.fewest, least), "survivors")
        holders = this.holders(self.name)
        _at_least(len(chosen.intersection(holders)), needed_of(len(holders), this.settings), "survivors around it")
        return dealt

    def _read(self, this: Sum, name: str, letters: Mapping[str, bytes]) -> bytes:
        pair = keys.unseal(self.secrets[name], this.letter(name, self.name), letters.get(name, b""))
        return pair if pair is not None and len(pair) == 2 * shares.SHARE else 2 * shares.NONE


class Gathering:
    """The coordinator's side of one sum: who dealt, who sent, and the running total."""

    def __init__(self, this: Sum, signers: Mapping[str, bytes]) -> None:
        self.sum = this
        self.packages: dict[str, bytes] = {}
        self.request = b""
        self.survivors: list[str] = []
        self.signatures: dict[str, bytes] = {}
        self._signers = signers
        self._letters: dict[str, dict[str, bytes]] = {name: {} for name in this.cohort}
        self._total: Words | None = None

    def take(self, name: str, package: bytes, letters: Sequence[bytes]) -> None:
        """Take what a hospital dealt.

        Raises
        ------
        UpdateRejected
            With the code ``package``: whoever got it would refuse the sum.
        """
        receivers = self.sum.neighbours(name)
        good = len(letters) == len(receivers) and all(len(letter) == SEALED for letter in letters)
        if not good or not is_package(self.sum, name, package, self._signers[name]):
            raise UpdateRejected(
                "package", "what it dealt is not signed for this sum, or not a letter to each neighbour"
            )
        self.packages[name] = package
        for receiver, letter in zip(receivers, letters, strict=True):
            self._letters[receiver][name] = letter

    def add(self, name: str, vector: Words, signature: bytes) -> None:
        """Add a hospital's covered vector to the total; what cannot be added never comes here.

        Raises
        ------
        UpdateRejected
            With the code ``survivors``, as of `agree`; nothing is added then.
        """
        self._check(name, sorted(self.packages), signature)
        self._total = vector.copy() if self._total is None else np.add(self._total, vector, out=self._total)
        self.survivors.append(name)
        self.signatures[name] = signature

    @property
    def whole(self) -> bool:
        """Return whether all who dealt survived; their list is signed then."""
        return len(self.survivors) == len(self.packages)

    def agree(self, name: str, signature: bytes) -> None:
        """Take a survivor's signature of the list of survivors, where it is not that of all who dealt.

        Raises
        ------
        UpdateRejected
            With the code ``survivors``: no other hospital would believe it.
        """
        self._check(name, self.survivors, signature)
        self.signatures[name] = signature

    def _check(self, name: str, survivors: Sequence[str], signature: bytes) -> None:
        if not keys.is_signed(self._signers[name], self.sum.survival(self._told, survivors), signature):
            raise UpdateRejected("survivors", "it has not signed the list of survivors that it was shown")

    @property
    def _told(self) -> bytes:
        return told_of(self.packages, self.request)

    def letters(self, name: str) -> dict[str, bytes]:
        """Return what others who dealt sealed for a hospital, by the senders' names."""
        return {sender: letter for sender, letter in self._letters[name].items() if sender in self.packages}

    def total(self, revealed: Mapping[str, Sequence[bytes]]) -> Words:
        """Take the masks off; ``revealed`` are the shares that survivors gave, in the order in which `Session.reveal` gives them.

        Raises
        ------
        QuorumError
            When too few gave their shares of a secret that is needed, or shares do not fit what was dealt.
        """
        places = {
            name: {holder: place for place, holder in enumerate(self.sum.holders(name), 1)} for name in self.packages
        }
        found: dict[str, dict[int, bytes]] = {name: {} for name in self.packages}
        for giver, given in revealed.items():
            owners = [name for name in self.sum.holders(giver) if name in self.packages]
            for owner, share in zip(owners, given, strict=False):
                if shares.is_share(share):
                    found[owner][places[owner][giver]] = share
        if self._total is None:
            raise QuorumError("no hospital sent a vector; there is nothing to be summed")
        plus, minus = self._seeds(found)
        masks.apply(self._total, plus, minus)
        return self._total

    def _seeds(self, found: Mapping[str, Mapping[int, bytes]]) -> tuple[list[bytes], list[bytes]]:
        """Return the seeds of the masks that are to be added and taken away: those that survivors share with who dropped out, and the survivors' own."""
        plus, minus = list[bytes](), [self._secret(name, found[name], survived=True) for name in self.survivors]
        for gone in sorted(set(self.packages) - set(self.survivors)):
            left = sorted(set(self.sum.neighbours(gone)) & set(self.survivors))
            key = self._secret(gone, found[gone], survived=False) if left else b""
            for name in left:
                seed = keys.agree(key, self.packages[name][: keys.PUBLIC], self.sum.pair(gone, name, self._told))
                (minus if name < gone else plus).append(seed)
        return plus, minus

    def _secret(self, name: str, found: Mapping[int, bytes], *, survived: bool) -> bytes:
        """Put a hospital's seed or key together, and compare it with what it dealt."""
        needed = needed_of(len(self.sum.holders(name)), self.sum.settings)
        if len(found) < needed:
            raise QuorumError(
                f"{len(found)} hospitals gave their shares of what {name!r} dealt, and {needed} are needed to unmask the sum"
            )
        package = self.packages[name]
        public, digest = package[: keys.PUBLIC], package[keys.PUBLIC : keys.PUBLIC + 32]
        try:
            secret = shares.combine(dict(sorted(found.items())[:needed]))
            fits = hashlib.sha256(secret).digest() == digest if survived else keys.public_of(secret) == public
        except ValueError:
            fits = False
        if not fits:
            raise QuorumError(f"the shares of what {name!r} dealt do not fit it; a hospital gave a wrong one")
        return secret


def told_of(packages: Iterable[str], request: bytes) -> bytes:
    """Return what stands for a request and for who dealt, as its receiver was told."""
    return _hash("request", joined(*sorted(packages)), request)


def is_package(this: Sum, name: str, package: bytes, signer: bytes) -> bool:
    """Tell whether a hospital signed this package for this sum."""
    content, signature = package[: -keys.SIGNATURE], package[-keys.SIGNATURE :]
    return len(package) == PACKAGE and keys.is_signed(signer, this.package(name, content), signature)


def refused(code: str, objection: str) -> PolicyRefused:
    """Return a hospital's refusal of a step that the protocol does not allow."""
    return PolicyRefused(f"REFUSED secure.{code}: {objection}. Nothing was sent.", code)


def _at_least(count: int, least: int, noun: str) -> None:
    if count < least:
        raise refused("min_cohort", f"{count} {noun}, and {least} or more are needed so that a sum hides its parts")


def _one_of(pair: bytes, *, survived: bool) -> bytes:
    """Return of two shares the one of the seed, or the one of the key."""
    return pair[shares.SHARE :] if survived else pair[: shares.SHARE]


def _hash(*parts: bytes | str) -> bytes:
    return hashlib.sha256(joined(*parts)).digest()


def _unhexed(book: Mapping[str, str]) -> dict[str, bytes]:
    return {name: bytes.fromhex(text) for name, text in book.items()}


def _dealt(facts: dict[str, Any] | None) -> Dealt | None:
    if facts is None:
        return None
    this = facts["sum"]
    settings, roster = SecureConfig(**this["settings"]), bytes.fromhex(this["roster"])
    key, seed, own = (bytes.fromhex(facts[name]) for name in ("key", "seed", "own"))
    again = Sum(roster, this["label"], tuple(this["cohort"]), settings)
    told = bytes.fromhex(facts["told"])
    return Dealt(again, key, seed, own, tuple(facts["present"]), told, tuple(facts["survivors"]))
