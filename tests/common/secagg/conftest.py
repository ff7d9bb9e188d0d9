"""Hospitals of one authority, and a coordinator that only carries what they say."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from common import certificates
from common import keys as identities
from common.certificates import Issuer
from common.config import SecureConfig
from common.secagg import keys, protocol
from common.secagg.protocol import Gathering, Session, Sum

RUN = b"a run of a test"


def authority(name="federation"):
    key = identities.generate("tls")
    pem = certificates.make_authority(name, key)
    return Issuer(certificates.load(pem, "authority"), key), pem


def identity(name, issuer, pem):
    key = identities.generate("tls")
    request = certificates.load_request(certificates.signing_request(name, key))
    return keys.Identity(name, key, issuer.client(request, name), pem)


@dataclass
class Play:
    """A run among hospitals; ``vectors`` are what each would have summed."""

    identities: list
    settings: SecureConfig = field(default_factory=SecureConfig)
    words: int = 40

    def __post_init__(self):
        begun = [Session.begin(each, RUN) for each in self.identities]
        self.sessions = {session.name: session for session, _ in begun}
        self.cards = [card for _, card in begun]
        for session in self.sessions.values():
            session.join(self.cards, self.identities[0].authority)
        self.signed = {}
        draw = np.random.default_rng(1)
        self.vectors = {name: draw.integers(0, 2**32, self.words, np.uint32) for name in self.sessions}

    @property
    def names(self):
        return list(self.sessions)

    def sum(self, label, cohort=None):
        roster = protocol.digest_of(self.cards, RUN)
        return Sum(roster, label, tuple(sorted(cohort or self.names)), self.settings)

    def deal(self, label="1.0", without=()):
        gathering = Gathering(self.sum(label), {card.name: card.signing for card in self.cards})
        for name, session in self.sessions.items():
            if name not in without:
                gathering.take(name, *session.deal(label, self.names, self.settings))
        return gathering

    def cover(self, gathering, name):
        vector = self.vectors[name].copy()
        self.signed[name] = self.sessions[name].cover(gathering.sum.label, gathering.packages, vector)
        return vector

    def send(self, gathering, *names):
        for name in names:
            gathering.add(name, self.cover(gathering, name), self.signed[name])

    def agree(self, gathering, survivors=None, names=None):
        """Have hospitals sign a list of survivors; return the signatures."""
        survivors = survivors or gathering.survivors
        label = gathering.sum.label
        return {name: self.sessions[name].agree(label, survivors) for name in names or survivors}

    def reveal(self, gathering, name, survivors=None, signatures=None, **terms):
        survivors, letters = survivors or gathering.survivors, gathering.letters(name)
        signatures = gathering.signatures if signatures is None else signatures
        return self.sessions[name].reveal(gathering.sum.label, survivors, signatures, letters, **terms)

    def add_up(self, label="1.0", undealt=(), unsent=(), silent=()):
        """Make a sum in which hospitals drop out at every stage; return it and what it ought to be."""
        gathering = self.deal(label, undealt)
        self.send(gathering, *(name for name in self.names if name not in (*undealt, *unsent)))
        if not gathering.whole:
            gathering.signatures.update(self.agree(gathering))
        revealed = {name: self.reveal(gathering, name) for name in gathering.survivors if name not in silent}
        ought = np.sum([self.vectors[name] for name in gathering.survivors], axis=0, dtype=np.uint32)
        return gathering.total(revealed), ought


@pytest.fixture(scope="session")
def admitted():
    """Twelve hospitals of one authority."""
    issuer, pem = authority()
    return [identity(f"h{number:02}", issuer, pem) for number in range(12)]


@pytest.fixture
def play(admitted):
    return lambda count=5, **words: Play(admitted[:count], **words)
