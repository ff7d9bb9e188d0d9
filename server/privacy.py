"""Privacy as the coordinator sees it: what hospitals say they spent, and differential privacy of whole hospitals, which is its own work.

The two are never added: one protects a patient from everybody, the coordinator included; the other protects a hospital from whoever gets the model, and trusts the coordinator.
"""

import hashlib
import math
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.config import PrivacyConfig, RunConfig
from common.errors import ConfigError
from common.layout import Vector
from common.privacy.accountant import epsilon
from common.privacy.calibrate import noise_multiplier, statistics_event
from common.privacy.clip import factors
from common.privacy.events import RELATION, Event, from_text, to_text
from common.privacy.noise import Source
from common.tasks import task_of
from common.update import Update
from server.records import Member, RoundRecord
from server.strategies.strategy import State, Strategy

PACE = 0.2
"""How fast an adaptive bound follows the quantile (Andrew et al. 2021, section 3.1)."""
COUNTING = 20.0
"""The noise of the count of unclipped updates is the expected cohort over this (same place)."""


def spent(config: RunConfig, rounds: Sequence[RoundRecord], members: Sequence[Member]) -> dict[str, Any]:
    """Return the run's account of differential privacy for its record; empty where there is none. Each epsilon is computed from the events beside it.

    What prepared the data counts first, at every hospital that was asked for it: its noise follows from the run's settings alone.
    """
    privacy = config.privacy
    if math.isinf(privacy.epsilon):
        return {}
    events: dict[str, list[Event]] = defaultdict(list)
    if privacy.at_hospitals:
        first = statistics_event(privacy) if task_of(config.task).noised else None
        trained = dict.fromkeys(name for record in rounds for name in record.events)
        events |= {name: [first] for name in (*(member.name for member in members), *trained) if first}
        for record in rounds:
            for name, text in record.events.items():
                events[name].append(from_text(text))
        who = "all hospitals together" if privacy.shared else "each hospital"
    else:
        events["*"] = [_event(config, len(members))] * len(rounds)
        who = "the coordinator"
    account = {
        name: {
            "epsilon": epsilon(each, privacy.delta),
            "events": [to_text(event) for event in dict.fromkeys(each)],
            "rounds": sum(name in record.events for record in rounds) if privacy.at_hospitals else len(rounds),
        }
        for name, each in sorted(events.items())
    }
    return {
        "target": privacy.epsilon,
        "delta": privacy.delta,
        "unit": privacy.unit,
        "relation": RELATION,
        "noise_by": who,
        "spent": account,
    }


@dataclass(frozen=True)
class HospitalPrivacy:
    """Differential privacy of whole hospitals: updates are bounded, summed with equal weights, and the sum is noised once (McMahan et al. 2018, algorithm 1).

    ``key`` makes noise and draws repeatable in simulations; a real run gives none, and they come from the operating system.

    Guarantee
    ---------
    The models of all rounds together are (epsilon, delta)-differentially private for one hospital added or removed; each is drawn into a round by its own chance, ``selection.fraction``.

    Edge cases
    ----------
    - The coordinator sees the updates as they are, and is trusted with them.
    - What prepares the data, and metrics, are not covered.
    - The sum is divided by the cohort that is expected, never by the one that came.
    """

    config: RunConfig
    key: bytes = b""

    def sample(self, names: list[str], number: int) -> list[str]:
        """Draw a round's hospitals, perhaps none."""
        drawn = self._source("sample", number).chosen(len(names), self.config.selection.fraction)
        return [name for name, is_in in zip(names, drawn, strict=True) if is_in]

    def around(self, inner: Strategy) -> Strategy:
        """Return a strategy that gives ``inner`` one update a round: the noised mean.

        Raises
        ------
        ConfigError
            For one that needs more than a mean.
        """
        if inner.single_updates or inner.client.controls or inner.client.local_parts:
            raise ConfigError(
                f"strategy.name: with privacy.unit 'hospital' a strategy gets one noised mean a round, and {self.config.strategy.name!r} needs more; take fedavg, fedavgm, fedprox or fedadam"
            )

        def init(weights: Vector, population: int) -> State:
            check = _event(self.config, population)  # refused before anything is trained
            begun = {"privacy/clip": np.array(self.config.privacy.clip_norm), "privacy/round": np.array(0)}
            return inner.init(weights, population) | begun | {"privacy/noise": np.array(check.noise_multiplier)}

        def accumulate(state: State, update: Update) -> None:
            bound = float(state["privacy/clip"])
            norm = float(np.linalg.norm(update.delta))
            clipped = update.delta * np.float32(factors(norm, bound))
            state["privacy/sum"] = state.get("privacy/sum", 0.0) + clipped
            state["privacy/below"] = state.get("privacy/below", np.array(0.0)) + (0.5 if norm <= bound else -0.5)

        def finish(state: State) -> Vector:
            inner.accumulate(state, Update("*", self._noised(state), 1))
            return inner.finish(state)

        return Strategy(init, accumulate, finish, inner.client, minimum_updates=0)

    def _noised(self, state: State) -> Vector:
        """Take the sum of the round out of the state, noise it, and let the bound follow its quantile."""
        privacy, number = self.config.privacy, int(state["privacy/round"]) + 1
        cohort = self.config.selection.fraction * float(state["population"])
        bound, multiplier = float(state["privacy/clip"]), float(state["privacy/noise"])
        source = self._source("noise", number)
        if privacy.adaptive:
            counting = cohort / COUNTING
            below = float(state.get("privacy/below", 0.0)) + counting * float(source.normals(1)[0])
            state["privacy/clip"] = np.array(bound * math.exp(-PACE * (below / cohort + 0.5 - privacy.adaptive)))
            multiplier = (multiplier**-2 - (2 * counting) ** -2) ** -0.5
        total = state.pop("privacy/sum", np.zeros_like(state["weights"]))
        state.pop("privacy/below", None)
        state["privacy/round"] = np.array(number)
        noise = source.normals(total.size) * np.float32(multiplier * bound)
        return np.asarray((total + noise) / np.float32(cohort), np.float32)

    def _source(self, purpose: str, number: int) -> Source:
        seed = self.key or os.urandom(32)
        return Source(hashlib.sha256(seed + f"{purpose} {number}".encode()).digest())


def _event(config: RunConfig, hospitals: int) -> Event:
    """Return what one round of differential privacy of hospitals releases.

    Raises
    ------
    ConfigError
        When delta is not below 1 over the count of hospitals, or the cohort is too small for an adaptive bound.
    """
    privacy: PrivacyConfig = config.privacy
    if privacy.delta * hospitals >= 1:
        raise ConfigError(
            f"privacy.delta: {privacy.delta:g} is not below 1/{hospitals} = {1 / hospitals:.3g}, one over the count of hospitals"
        )
    rate = config.selection.fraction
    multiplier = noise_multiplier(privacy.epsilon, privacy.delta, rate, config.rounds)
    if privacy.adaptive and 2 * rate * hospitals / COUNTING <= multiplier:
        raise ConfigError(
            f"privacy.adaptive: counting unclipped updates takes noise of {rate * hospitals / COUNTING:.3g} hospitals, and the target of {multiplier:.3g} leaves none for the sum below {COUNTING / 2 * multiplier:.3g}"
            " hospitals a round; set it to 0, or take more hospitals"
        )
    return Event(multiplier, rate)
