"""The Plan: what is fixed before round 1."""

from dataclasses import dataclass
from functools import cached_property

from common import messages
from common.config import RunConfig
from common.errors import ConfigError
from common.layout import Vector
from common.secagg import fixed
from common.secagg.protocol import FEWEST
from common.tasks import task_of
from common.tasks.task import Task
from server.privacy import HospitalPrivacy
from server.strategies import fitted, strategy_of
from server.strategies.strategy import Strategy


@dataclass(frozen=True)
class Plan:
    """What is fixed before round 1. ``personal`` is false for comparators: then no part of the model stays at a hospital.

    ``cohort`` names the hospitals that may take part, for those who want to know in whose company they are; empty where nobody asks. ``expected`` is how many
    are waited for before the run begins, where that is known. ``noise_key`` makes the coordinator's noise repeatable, in simulations alone.
    """

    config: RunConfig
    personal: bool = True
    cohort: tuple[str, ...] = ()
    expected: int = 0
    noise_key: bytes = b""

    @cached_property
    def task(self) -> Task:
        """Return the task."""
        return task_of(self.config.task)

    @cached_property
    def strategy(self) -> Strategy:
        """Return the strategy.

        Raises
        ------
        ConfigError
            When the strategy keeps a part at the hospital that the task's model does not have, or needs another optimiser.
        """
        strategy = strategy_of(self.config.strategy)
        for part in strategy.client.local_parts:
            if not self.task.parts.get(part):
                raise ConfigError(
                    f"strategy.name: {self.config.strategy.name!r} keeps the part {part!r} of the model at each hospital, "
                    f"and this task's model has none; its parts: {', '.join(self.task.parts) or 'none'}"
                )
        kept = (*self.task.local, *strategy.client.local_parts)
        if self.personal and kept and self.config.stopping.patience:
            raise ConfigError(
                f"stopping.patience: the best round's model would be put together with the parts of the last round that stay at the hospitals ({', '.join(kept)}); "
                "set it to 0, or choose settings that keep no part at the hospital"
            )
        if strategy.client.controls and self.task.rates:
            raise ConfigError(
                f"strategy.name: {self.config.strategy.name!r} reads a hospital's drift from steps of one size, and this task moves {', '.join(self.task.rates)} slower; take another strategy"
            )
        if strategy.client.controls and self.config.training.optimizer != "sgd":
            raise ConfigError(
                f"training.optimizer: {self.config.strategy.name!r} reads a hospital's drift from its steps, which must be those of 'sgd', "
                f"not {self.config.training.optimizer!r}; add --set training.optimizer=sgd"
            )
        if self.config.privacy.shared and (strategy.client.controls or kept):
            raise ConfigError(
                f"privacy.noise: 'shared' covers one vector that is summed, and {self.config.strategy.name!r} has hospitals keep or send more; take another strategy, or set privacy.noise to 'hospital'"
            )
        _check_classes(self.config, self.task)
        if self.config.secure.aggregation:
            _check_secure(self.config, strategy, len(self.cohort) or self.expected)
        if self.task.learner:
            _check_learner(self.config)
            return fitted.by_sums(self.task.learner, self.config.seed)
        if self.task.objective.coupled and self.config.privacy.at_hospitals:
            raise ConfigError(
                "privacy.unit: this task's loss compares patients with each other, so no clipping bounds what one of them does to a step; set it to 'hospital', or privacy.epsilon to inf"
            )
        return self.hospital_privacy.around(strategy) if self.config.privacy.at_coordinator else strategy

    @cached_property
    def hospital_privacy(self) -> HospitalPrivacy:
        """Return how whole hospitals are protected, where the run says so."""
        return HospitalPrivacy(self.config, self.noise_key)

    def size_of(self, weights: Vector) -> int:
        """Return the length of the vectors that hospitals send back for these weights."""
        return fixed.size_of(self.config, weights)

    @property
    def fewest(self) -> int:
        """Return how many updates a new model is made of at least: with differential privacy of hospitals, perhaps none. Where there are several hospitals, no sum is ever one hospital's own update."""
        return 0 if self.config.privacy.at_coordinator else max(self.strategy.minimum_updates, min(2, len(self.cohort)))

    @cached_property
    def local_parts(self) -> tuple[str, ...]:
        """Return the parts that stay at the hospital."""
        return (*self.task.local, *self.strategy.client.local_parts) if self.personal else ()

    @cached_property
    def text(self) -> str:
        """Return the settings as they travel."""
        return messages.run_text(self.config)


def _check_classes(config: RunConfig, task: Task) -> None:
    """Refuse what is for tasks that sort into classes, of others; raise `ConfigError`."""
    if config.evaluation.threshold != "half" and not (task.objective.sorts and len(task.classes) == 2):
        raise ConfigError(
            f"evaluation.threshold: one score decides between two classes, and {task.name!r} does not sort patients into two here; set it to 'half'"
        )
    weighted = config.training.class_weights != "none"
    if weighted and task.learner:
        raise ConfigError(
            f"training.class_weights: {task.name!r} fits this model by sums over patients, in which all count alike; set it to 'none', or choose another task.model"
        )
    if weighted and not task.objective.sorts:
        raise ConfigError(
            f"training.class_weights: {task.name!r} does not sort patients into classes here, so none can count more; set it to 'none'"
        )


def _check_learner(config: RunConfig) -> None:
    """Refuse what needs updates that move a model; raise `ConfigError`."""
    objections = {
        f"strategy.name: {config.strategy.name!r} is a rule for averages; take 'fedavg'": config.strategy.name
        != "fedavg",
        f"update.codec: {config.update.codec!r} would change sums; take 'float32'": config.update.codec != "float32",
        "limits.update_norm: sums grow with a hospital's patients; set it to 0": config.limits.update_norm > 0,
        "privacy.epsilon: no noise is added to these sums, so no epsilon holds; set it to inf": config.privacy.epsilon
        < float("inf"),
    }
    for objection, holds in objections.items():
        if holds:
            raise ConfigError(
                f"{objection}, or choose another task.model; {config.task.name!r} fits this one by sums over patients"
            )


def _check_secure(config: RunConfig, strategy: Strategy, hospitals: int) -> None:
    """Refuse what needs more than a sum; raise `ConfigError`."""
    name = config.strategy.name
    objections = {
        f"strategy.name: {name!r} has to see every update by itself": strategy.single_updates,
        f"update.codec: {config.update.codec!r} leaves nothing that adds; masks need 'float32'": config.update.codec
        != "float32",
        "privacy.unit: 'hospital' bounds every update by itself, and the coordinator sees none": config.privacy.at_coordinator,
        "limits.update_norm: the coordinator sees no update whose norm it could hold against a limit; set it to 0": config.limits.update_norm
        > 0,
        f"secure.aggregation: {hospitals} hospitals are in the federation, and of a sum of fewer than {FEWEST} each knows the others' part": 0
        < hospitals
        < FEWEST,
    }
    for objection, holds in objections.items():
        if holds:
            raise ConfigError(
                f"{objection}; or set secure.aggregation to false, under which the coordinator learns sums alone"
            )
