"""Canaries: a lower bound of epsilon, measured in one run (Steinke, Nasr and Jagielski 2023). Where it exceeds the epsilon that is claimed, the claim is false.

Records that nobody could tell more of are trained on by the product's own worker, under the privacy settings of the run that is audited: each canary is in by a fair coin, moves a
weight of its own, and always by the whole clipping norm. So all that is left between the attacker and the truth is the noise. What is audited is the mechanism, with its clipping, sampling, noise,
secure sum and accounting; the run's own patients have no part in it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from client import private
from client.hospital import Hospital
from client.ledger import Ledger
from client.worker import Worker
from common import tasks
from common.config import Choice, EvaluationConfig, LimitsConfig, Range, RunConfig, SelectionConfig, UpdateConfig
from common.errors import ConfigError
from common.privacy import accountant
from common.secagg.protocol import FEWEST
from common.seeds import seed_for
from common.tasks.objective import BINARY
from common.tasks.task import Column, Examples, Task, one_class, rows_of
from simulations.attacks.attack import Attack, Finding, Target, train
from simulations.hospitals import noise_key, seats_of

NAME = "canaries"
CONFIDENCE = 0.95
STEEP = 1000.0
"""The gradient of every canary before it is clipped."""
MOST_UNITS = 0.8
"""Canaries at one hospital, over 1 / delta: claims are made for delta below 1 over the units alone."""

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Canaries:
    """The task of canaries: a linear model in which each has a weight of its own."""

    count: Annotated[int, Range(2, 10_000_000), "canaries"] = 2

    def build(self) -> Task:
        """Return the task."""
        return Task(
            name=NAME,
            title="Canaries",
            columns=(Column("number", "number", "which canary"),),
            label="label",
            classes=("no", "yes"),
            objective=replace(BINARY, loss=lambda _labels, outputs: -STEEP * outputs[:, 0]),
            summarise=lambda records: {"count": np.array([rows_of(records)], np.float64)},
            fit=lambda _statistics: {},
            encode=lambda records, _: Examples(np.asarray(records["number"], np.int32)[:, None], one_class(records)),
            classify=one_class,
            build=self.network,
        )

    def network(self, _preparation: Any) -> Any:
        """Return the model."""
        import keras

        inputs = keras.Input((1,), dtype="int32")
        weights = keras.layers.Embedding(self.count, 1, embeddings_initializer="zeros", name="canaries")(inputs)
        return keras.Model(inputs, keras.layers.Flatten()(weights))


@contextmanager
def _known() -> Iterator[None]:
    """Make the task known to the worker of this process. No hospital is ever to be asked for it, so it has no lasting place among the tasks."""
    tasks.TASKS[NAME] = Canaries
    try:
        yield
    finally:
        del tasks.TASKS[NAME]


# --- the audit ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Audit:
    """What came of an audit: of ``canaries``, ``guesses`` were made, of which ``right`` were right; and the lower bound of epsilon that follows."""

    canaries: int
    guesses: int
    right: int
    epsilon: float


def audit(config: RunConfig, worker: Worker, count: int = 10_000, seed: int = 1, rows: int = 0) -> Audit:
    """Measure a lower bound, with a confidence of 95 %, of the epsilon that runs of these settings have at ``privacy.delta``.

    ``rows`` is how many units the audited hospital has: with sampling, canaries are sampled with the same chance. With noise that is shared out, canaries are dealt to as many hospitals as a
    secure sum needs at least, and what is attacked is the sum; else it is one hospital, whose every update is seen.

    Raises
    ------
    ConfigError
        When the run has no differential privacy of records, so that there is no claim.
    """
    if not config.privacy.at_hospitals:
        raise ConfigError("privacy.epsilon: nothing is claimed that canaries could audit; set privacy.epsilon")
    count = min(count, int(2 * MOST_UNITS / config.privacy.delta))
    generator = np.random.default_rng(seed_for(seed, NAME))
    inside = generator.random(count) < 0.5
    drawn = [part[inside[part]] for part in np.array_split(generator.permutation(count), _hospitals(config))]
    settings = _settings(config, count, len(drawn[0]), rows)
    secret = seed_for(seed, NAME, "secret").generate_state(8).tobytes()
    with _known():
        hospitals = [_hospital(f"canaries-{number}", part, seed) for number, part in enumerate(drawn)]
        scores = train(settings, seats_of(hospitals, worker, secret)).model.weights
        terms = private.terms(hospitals[0], settings, tasks.task_of(settings.task))
    events = [replace(terms.event, count=terms.event.count * settings.rounds)]
    sensitivity = accountant.about({(e.noise_multiplier, e.sampling_rate): e.count for e in events})
    guesses = guesses_for(round(sensitivity, 3), count, config.privacy.delta)
    right = hits(scores.astype(np.float64), inside, guesses)
    return Audit(count, guesses, right, bound(count, guesses, right, config.privacy.delta))


def _hospitals(config: RunConfig) -> int:
    return FEWEST if config.privacy.shared else 1


def _settings(config: RunConfig, count: int, units: int, rows: int) -> RunConfig:
    """Return the settings of the audit: the privacy and the rounds of the run, and nothing else that would move weights."""
    training = config.training
    width = round(training.batch_size * units / rows) if rows else training.batch_size
    training = replace(
        training,
        optimizer="sgd",
        learning_rate=1.0,
        learning_rate_decay=1.0,
        weight_decay=0.0,
        batch_size=max(width, 1),
        augment=False,
        compile="graph",
    )
    secure = replace(config.secure, examples=max(config.secure.examples, count)) if config.privacy.shared else None
    return replace(
        config,
        task=Choice(NAME, (("count", count),)),
        strategy=Choice("fedavg"),
        training=training,
        privacy=replace(config.privacy, unit="record"),
        secure=secure or replace(config.secure, aggregation=False),
        limits=LimitsConfig(),
        selection=SelectionConfig(),
        update=UpdateConfig(),
        evaluation=EvaluationConfig(every=0),
    )


def _hospital(name: str, canaries: NDArray[np.int64], seed: int) -> Hospital:
    def records(numbers: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        return {"number": numbers, "label": np.zeros_like(numbers)}

    nobody = records(canaries[:0])
    ledger = Ledger(key=lambda question: noise_key(seed, name, question))
    return Hospital(name, records(canaries), nobody, records(canaries[:1]), ledger=ledger)


# --- the bound ----------------------------------------------------------------------------------------------------------


def hits(scores: Values, inside: NDArray[np.bool_], guesses: int) -> int:
    """Return how many guesses are right: that the half with the largest scores are in, and the half with the smallest out.

    >>> hits(np.array([2.0, 1.0, 0.0, -1.0]), np.array([True, False, True, False]), 2)
    2
    """
    order = np.argsort(scores, kind="stable")
    half = guesses // 2
    return int(inside[order[len(order) - half :]].sum() + (~inside[order[:half]]).sum())


def bound(canaries: int, guesses: int, right: int, delta: float) -> float:
    """Return the largest epsilon that so many right guesses refute at `CONFIDENCE`; 0 where they refute none.

    Source
    ------
    Steinke, Nasr and Jagielski 2023, theorem 5.2: with (epsilon, delta), the count of right guesses exceeds a binomial one of chance ``e**epsilon / (1 + e**epsilon)`` hardly ever, up to what
    delta allows. Runs that are independent are one run with all their canaries.
    """
    low, high = 0.0, 30.0
    if _chance(0.0, canaries, guesses, right, delta) > 1 - CONFIDENCE:
        return 0.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (
            (middle, high) if _chance(middle, canaries, guesses, right, delta) < 1 - CONFIDENCE else (low, middle)
        )
    return low


def _chance(epsilon: float, canaries: int, guesses: int, right: int, delta: float) -> float:
    """Return the largest chance of so many right guesses under (epsilon, delta)."""
    from scipy.stats import binom

    chance = 1 / (1 + np.exp(-epsilon))
    if not right:
        return 1.0
    below = np.cumsum(binom.pmf(np.arange(right - 1, -1, -1), guesses, chance)) / np.arange(1, right + 1)
    return min(1.0, float(binom.sf(right - 1, guesses, chance) + 2 * canaries * delta * below.max(initial=0.0)))


@lru_cache(maxsize=64)
def guesses_for(sensitivity: float, canaries: int, delta: float) -> int:
    """Return how many guesses to make, chosen without looking at the run: those that tell most of a Gaussian of this sensitivity."""
    generator = np.random.default_rng(seed_for("guesses", sensitivity, canaries))
    inside = generator.random((8, canaries)) < 0.5
    scores = inside * sensitivity + generator.normal(size=inside.shape)
    tried = sorted({max(2, 2 * round(canaries * share / 2)) for share in np.geomspace(0.002, 1.0, 12)})

    def told(guesses: int) -> float:
        each = [hits(row, members, guesses) for row, members in zip(scores, inside, strict=True)]
        return bound(canaries, guesses, int(np.mean(each)), delta)

    return int(max(tried, key=told))


# --- the attack ---------------------------------------------------------------------------------------------------------


def run(target: Target) -> list[Finding]:
    """Audit the settings of a run; nothing where it claims nothing."""
    config = target.scenario.run
    if not config.privacy.at_hospitals:
        return []
    rows = max(rows_of(hospital.train) for hospital in target.population.hospitals)
    found = audit(config, target.worker, seed=config.seed, rows=rows)
    view = "sum of all updates" if config.privacy.shared else "all updates of a hospital"
    counts = {"hits": found.right, "trials": found.guesses, "canaries": found.canaries}
    return [Finding(NAME, view, "lower bound of epsilon", found.epsilon, "bound", **counts, limit="bound")]


def joined(findings: Sequence[Finding], delta: float) -> float:
    """Return the lower bound that the audits of several runs of the same settings give together."""
    canaries, guesses, right = (
        sum(getattr(each, name) for each in findings) for name in ("canaries", "trials", "hits")
    )
    return bound(canaries, guesses, right, delta)


CANARIES = Attack(NAME, "canaries", run)
