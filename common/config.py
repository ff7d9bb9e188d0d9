"""Settings: typed, frozen, parsed once from TOML and ``key=value`` words.

A setting is a field of a frozen dataclass, annotated with its limits and its meaning::

    rounds: Annotated[int, Range(1, 100_000), "rounds of training"] = 20

``parse`` turns a TOML table into such a dataclass, or says which key is wrong and what was expected. Tasks and strategies
declare their own settings the same way, so that a new one needs no line here.
"""

import json
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from common.errors import ConfigError, nearest

T = TypeVar("T")
Table = Mapping[str, Any]
Scalar = bool | int | float | str


@dataclass(frozen=True)
class Range:
    """Limits of a number. ``low`` is allowed unless ``open_low``; ``high`` is allowed."""

    low: float = float("-inf")
    high: float = float("inf")
    open_low: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        return above and value <= self.high

    def __str__(self) -> str:
        return f"{'above' if self.open_low else 'from'} {_plain(self.low)} to {_plain(self.high)}"


POSITIVE = Range(0, 1e9, open_low=True)
FRACTION = Range(0, 1)


@dataclass(frozen=True)
class Choice:
    """A named part of a run (a task, a strategy) and its own settings, checked where the part is built."""

    name: str
    options: tuple[tuple[str, Scalar], ...] = ()

    def resolve(self, kinds: Mapping[str, type[T]], path: str) -> T:
        """Return the settings object of the named kind; raise `ConfigError` for an unknown name or option."""
        if self.name not in kinds:
            raise ConfigError(f"{path}.name: unknown {path} {self.name!r}; {nearest(self.name, kinds)}")
        for key, _ in self.options:
            others = [name for name, kind in kinds.items() if key in _annotations(kind)]
            if others and self.name not in others:
                raise ConfigError(
                    f"{path}.{key}: {self.name!r} has no such setting, and {' or '.join(others)} has; set {path}.name too"
                )
        return parse(kinds[self.name], dict(self.options), path)


@dataclass(frozen=True)
class TrainingConfig:
    """How a hospital trains between two rounds. Settings of the task stand in for what is not given."""

    optimizer: Annotated[
        Literal["sgd", "momentum", "adam"], "the hospital's own optimiser, started afresh every round"
    ] = "sgd"
    learning_rate: Annotated[float, POSITIVE, "step size"] = 0.1
    learning_rate_decay: Annotated[float, Range(0, 1, open_low=True), "factor on the step size after every round"] = 1.0
    momentum: Annotated[float, FRACTION, "momentum of the optimiser 'momentum'"] = 0.9
    weight_decay: Annotated[float, Range(0, 10), "L2 penalty on the weights, as a gradient term"] = 0.0
    batch_size: Annotated[int, Range(1, 65536), "patients a step; the last short batch is padded and masked"] = 32
    epochs: Annotated[int, Range(1, 10_000), "passes over the hospital's patients in a round"] = 1
    augment: Annotated[bool, "random changes to the inputs, where the task has any"] = True
    class_weights: Annotated[
        Literal["none", "balanced"],
        "how much a patient counts in the loss: all alike, or by the rarity of the class over all hospitals, from 0.1 to 10 times",
    ] = "none"
    compile: Annotated[Literal["auto", "graph", "xla"], "compiler of the local epoch; auto takes the task's own"] = (
        "auto"
    )


@dataclass(frozen=True)
class SelectionConfig:
    """Which hospitals take part in a round."""

    fraction: Annotated[float, Range(0, 1, open_low=True), "share of the hospitals drawn every round"] = 1.0
    minimum: Annotated[int, Range(1, 1_000_000), "never draw fewer than this, nor start with fewer"] = 1


@dataclass(frozen=True)
class LimitsConfig:
    """What a round waits for, and which updates it refuses."""

    quorum: Annotated[
        float, Range(0, 1, open_low=True), "share of the drawn hospitals whose good updates a round needs"
    ] = 0.5
    deadline_seconds: Annotated[float, Range(0, 1e7, open_low=True), "how long a round waits for answers"] = 600.0
    retries: Annotated[
        int, Range(0, 1000), "how often a round without a quorum is asked again at once, before the run waits or stops"
    ] = 3
    wait_seconds: Annotated[
        float,
        Range(0, 1e7),
        "how long a round without a quorum waits for hospitals to come back before the run stops; with real hospitals 600 unless it is set",
    ] = 0.0
    update_norm: Annotated[float, Range(0, 1e12), "largest L2 norm of an update; 0 for none"] = 0.0
    examples: Annotated[int, Range(1, 2**31), "largest count of patients that one hospital may claim"] = 10_000_000


@dataclass(frozen=True)
class UpdateConfig:
    """How an update is written on the wire."""

    codec: Annotated[Literal["float32", "float16", "int8", "topk"], "encoding of the update"] = "float32"
    keep: Annotated[float, Range(0, 1, open_low=True), "share of the values that the codec 'topk' sends"] = 0.02


@dataclass(frozen=True)
class EvaluationConfig:
    """How models are judged."""

    every: Annotated[
        int, Range(0, 100_000), "judge the incoming model on test patients every so many rounds; 0 for the end only"
    ] = 1
    validation: Annotated[
        float, Range(0, 0.5), "share of the training patients kept for early stopping and for choosing a threshold"
    ] = 0.0
    threshold: Annotated[
        Literal["half", "youden", "f1"],
        "score from which on the final model says class 1, of two: one half, or where validation patients have the largest sensitivity + specificity, or F1",
    ] = "half"


@dataclass(frozen=True)
class StoppingConfig:
    """Early stopping on the loss over validation patients."""

    patience: Annotated[int, Range(0, 100_000), "stop after so many rounds without improvement; 0 for never"] = 0
    min_delta: Annotated[float, Range(0, 1e6), "smallest fall of the loss that counts as improvement"] = 0.0


SPARSE = 0.75
"""Smallest ``secure.threshold`` where hospitals share masks with some others only."""


@dataclass(frozen=True)
class SecureConfig:
    """Secure aggregation: the coordinator learns sums over hospitals, and no hospital's update or statistics."""

    aggregation: Annotated[bool, "hospitals mask what they send, so that only their sum can be read"] = False
    neighbours: Annotated[
        int, Range(0, 100_000), "with how many others a hospital shares masks; an even number, or 0 for all"
    ] = 0
    threshold: Annotated[
        float,
        Range(0.5, 1, open_low=True),
        "share of the hospitals that must stay until the end of a round; with fewer, nobody can unmask anything",
    ] = 0.66
    magnitude: Annotated[
        float, Range(1e-6, 1e6), "largest magnitude of a value of an update, after its weight of at most 1"
    ] = 16.0
    examples: Annotated[
        int, Range(1, 2**31), "count of patients from which on a hospital weighs no more in the mean"
    ] = 10_000

    def __post_init__(self) -> None:
        if self.neighbours % 2:
            raise ConfigError(
                f"secure.neighbours: expected an even number, half on either side of a ring, got {self.neighbours}"
            )
        if self.neighbours and self.threshold < SPARSE:
            # A coordinator that shows different lists of survivors could otherwise part one hospital from all its neighbours.
            raise ConfigError(
                f"secure.threshold: with few neighbours expected {SPARSE:g} or more, got {self.threshold:g}; or set secure.neighbours to 0, for all"
            )


@dataclass(frozen=True)
class PrivacyConfig:
    """Differential privacy of what training releases. Neighbours differ by one unit added or removed; how many units a hospital has counts as known."""

    epsilon: Annotated[
        float,
        Range(0, float("inf"), open_low=True),
        "most that a whole run may tell about one unit; inf for no differential privacy",
    ] = float("inf")
    delta: Annotated[
        float, Range(0, 0.1, open_low=True), "chance that more is told; below 1 over the count of units"
    ] = 1e-5
    unit: Annotated[
        Literal["record", "patient", "hospital"],
        "what is protected: a row, all rows of a patient, or (by noise of the coordinator) all that a hospital sends",
    ] = "record"
    method: Annotated[
        Literal["sgd", "full"], "steps on random samples of the rows, or one step a round on all of them"
    ] = "sgd"
    clip_norm: Annotated[float, POSITIVE, "largest L2 norm of what one unit adds to a sum"] = 1.0
    noise: Annotated[
        Literal["hospital", "shared"],
        "hospital: each hospital's update is private by itself; shared: their sum is, which needs secure aggregation",
    ] = "hospital"
    rows_per_patient: Annotated[
        int, Range(1, 1000), "most rows of one patient that are trained on, with the unit 'patient'"
    ] = 1
    statistics: Annotated[
        float,
        Range(0, 0.9),
        "share of epsilon for the sums that prepare the data, which are noised; 0 sends none, and public ranges stand in where the task has them",
    ] = 0.0
    study: Annotated[str, "name under which hospitals account for what the run spends"] = ""
    adaptive: Annotated[
        float,
        Range(0, 1),
        "share of the hospitals whose updates are left unclipped, with the unit 'hospital'; 0 keeps clip_norm",
    ] = 0.0

    @property
    def at_hospitals(self) -> bool:
        """Whether hospitals train under differential privacy of their records or patients."""
        return self.epsilon < float("inf") and self.unit != "hospital"

    @property
    def shared(self) -> bool:
        """Whether hospitals share the noise out among themselves, so that only their sum is private."""
        return self.at_hospitals and self.noise == "shared"

    @property
    def at_coordinator(self) -> bool:
        """Whether the coordinator makes the model differentially private for whole hospitals."""
        return self.epsilon < float("inf") and self.unit == "hospital"


@dataclass(frozen=True)
class RunConfig:
    """The settings of one run."""

    task: Annotated[Choice, "what is learnt"]
    seed: Annotated[int, Range(0, 2**32 - 1), "everything random in a run follows from it"] = 1
    rounds: Annotated[int, Range(1, 1_000_000), "rounds of training"] = 20
    strategy: Annotated[Choice, "from updates to the next model"] = Choice("fedavg")
    training: TrainingConfig = field(default_factory=TrainingConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    update: UpdateConfig = field(default_factory=UpdateConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    stopping: StoppingConfig = field(default_factory=StoppingConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    secure: SecureConfig = field(default_factory=SecureConfig)

    def __post_init__(self) -> None:
        _check_privacy(self)
        if self.evaluation.threshold != "half" and not self.evaluation.validation:
            raise ConfigError(
                "evaluation.threshold: it is chosen on validation patients; set evaluation.validation, for example to 0.2, or the threshold to 'half'"
            )
        if self.stopping.patience and not self.evaluation.validation:
            raise ConfigError(
                "stopping.patience: early stopping needs validation patients; set evaluation.validation, for example to 0.2"
            )
        if self.stopping.patience and not self.evaluation.every:
            raise ConfigError(
                "stopping.patience: early stopping judges the model every evaluation.every rounds; set that to 1 or more"
            )


def _check_privacy(run: RunConfig) -> None:
    """Refuse settings with which what is claimed of a run's privacy would not hold."""
    privacy = run.privacy
    of_units = {"adaptive": "hospital", "rows_per_patient": "patient"}
    for name, unit in of_units.items():
        if getattr(privacy, name) != getattr(PrivacyConfig, name) and privacy.unit != unit:
            raise ConfigError(
                f"privacy.{name}: has a meaning with privacy.unit {unit!r} alone, and the run protects the {privacy.unit!r}; leave it out, or set the unit"
            )
    if privacy.statistics and privacy.unit == "hospital":
        raise ConfigError(
            "privacy.statistics: noise of the coordinator covers updates, and not the sums that prepare the data; set it to 0, or protect the 'record'"
        )
    if (privacy.at_hospitals or privacy.at_coordinator) and run.stopping.patience:
        raise ConfigError(
            "stopping.patience: which round is kept would be chosen by validation patients without noise, and no epsilon covers that; set it to 0, or privacy.epsilon to inf"
        )
    if (privacy.at_hospitals or privacy.at_coordinator) and run.evaluation.threshold != "half":
        raise ConfigError(
            "evaluation.threshold: it would be chosen on validation patients without noise, and no epsilon covers that; set it to 'half', or privacy.epsilon to inf"
        )
    if privacy.at_hospitals and run.training.class_weights != "none":
        raise ConfigError(
            "training.class_weights: they follow from how many patients of each class there are, and no noise covers that; set it to 'none', or privacy.epsilon to inf"
        )
    if privacy.at_hospitals and privacy.method == "full" and run.training.optimizer != "sgd":
        raise ConfigError(
            f"training.optimizer: privacy.method 'full' is one plain step a round, which {run.training.optimizer!r} would scale anew; add --set training.optimizer=sgd"
        )
    if privacy.shared:
        for setting, reason in _against_sharing(run).items():
            raise ConfigError(f"{setting}: {reason}; or set privacy.noise to 'hospital'")


def _against_sharing(run: RunConfig) -> dict[str, str]:
    """Return the settings under which noise that is shared out would not add up to what is claimed, each with the reason."""
    objections = {
        "privacy.method": (
            "'shared' noise adds up over one sum a round, and 'sgd' takes steps between sums; add --set privacy.method=full",
            run.privacy.method != "full",
        ),
        "privacy.noise": (
            "'shared' noise protects only the sum, and without secure aggregation the coordinator sees every update; add --set secure.aggregation=true",
            not run.secure.aggregation,
        ),
        "privacy.unit": (
            "'shared' noise takes a record to move the sum as far at every hospital, which a patient with several rows does not",
            run.privacy.unit != "record",
        ),
        "secure.neighbours": (
            "'shared' noise takes masks among all, so that no hospital can be parted from the others' noise; set it to 0",
            run.secure.neighbours > 0,
        ),
    }
    return {setting: reason for setting, (reason, holds) in objections.items() if holds}


def parse(kind: type[T], table: Table, path: str = "") -> T:
    """Turn a TOML table into the frozen dataclass ``kind``.

    Raises
    ------
    ConfigError
        For an unknown key, a wrong type, a value out of range or a missing key; the message names the key.
    """
    if not isinstance(table, Mapping):
        raise ConfigError(f"{path}: expected a table of settings, got {_named(table)}")
    known = _annotations(kind)
    check_keys(table, known, path)
    for item in fields(kind):  # type: ignore[arg-type]
        if item.name not in table and item.default is MISSING and item.default_factory is MISSING:
            raise ConfigError(f"{_join(path, item.name)}: this setting is required")
    values = {key: _convert(known[key], value, _join(path, key)) for key, value in table.items()}
    return kind(**values)


def check_keys(table: Table, known: Collection[str], path: str = "") -> None:
    """Raise `ConfigError` for a key that is not known; the message names the nearest one that is."""
    for key in table:
        if key not in known:
            raise ConfigError(f"{_join(path, key)}: unknown key; {nearest(key, known)}")


def loads(text: str, origin: str = "configuration") -> dict[str, Any]:
    """Read TOML text into nested tables; an error names the line."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{origin}: not valid TOML: {error}") from None


def merge(base: Table, over: Table) -> dict[str, Any]:
    """Lay ``over`` on ``base``, table by table.

    >>> merge({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"c": 4}})
    {'a': 1, 'b': {'c': 4, 'd': 3}}
    """
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        # A part that is exchanged for another leaves its own options behind.
        exchanged = both and "name" in value and "name" in below and value["name"] != below["name"]  # type: ignore[operator,index]
        merged[key] = merge(below, value) if both and not exchanged else value  # type: ignore[arg-type]
    return merged


def assign(words: list[str]) -> dict[str, Any]:
    """Turn words such as ``strategy.name=fedprox`` into nested tables; values are TOML, or plain text.

    >>> assign(["strategy.mu=0.1", "strategy.name=fedprox"])
    {'strategy': {'mu': 0.1, 'name': 'fedprox'}}
    """
    tables: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(f"--set {word}: expected key=value, for example strategy.name=fedprox")
        nested: Any = _value(text)
        for part in reversed(key.split(".")):
            nested = {part: nested}
        tables = merge(tables, nested)
    return tables


def as_table(settings: Any) -> dict[str, Any]:
    """Turn a settings dataclass back into the nested tables it was parsed from, with every default spelt out."""
    table: dict[str, Any] = {}
    for item in fields(settings):
        value = getattr(settings, item.name)
        if isinstance(value, Choice):
            table[item.name] = {"name": value.name, **dict(value.options)}
        elif is_dataclass(value):
            table[item.name] = as_table(value)
        else:
            table[item.name] = value
    return table


def flatten(table: Table, path: str = "") -> dict[str, Any]:
    """Return nested tables as one, by dotted keys.

    >>> flatten({"rounds": 3, "task": {"name": "heart"}})
    {'rounds': 3, 'task.name': 'heart'}
    """
    flat: dict[str, Any] = {}
    for key, value in table.items():
        name = _join(path, key)
        flat |= flatten(value, name) if isinstance(value, Mapping) else {name: value}
    return flat


def dumps(table: Table, path: str = "") -> str:
    """Write nested tables as TOML, plain values before tables.

    >>> print(dumps({"rounds": 3, "task": {"name": "heart"}}))
    rounds = 3
    <BLANKLINE>
    [task]
    name = "heart"
    <BLANKLINE>
    """
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    lines = [f"{key} = {_literal(value)}" for key, value in plain.items()]
    if path:
        lines = ["", f"[{path}]", *lines]
    text = "\n".join(lines) + "\n" if lines else ""
    return text + "".join(dumps(value, _join(path, key)) for key, value in table.items() if isinstance(value, Mapping))


def describe(kind: type, path: str = "") -> list[tuple[str, str, str]]:
    """List every setting as (key, default, meaning with its limits), for the docs."""
    rows = []
    for item in fields(kind):
        annotation = _annotations(kind)[item.name]
        bare, extras = _unwrap(annotation)
        key = _join(path, item.name)
        if is_dataclass(bare) and bare is not Choice:
            rows += describe(bare, key)  # type: ignore[arg-type]
            continue
        default = "required" if item.default is MISSING else _literal(getattr(item.default, "name", item.default))
        rows.append((f"{key}.name" if bare is Choice else key, default, _meaning(bare, extras)))
    return rows


def _meaning(bare: Any, extras: tuple[Any, ...]) -> str:
    words = [extra for extra in extras if isinstance(extra, str)]
    limits = [str(extra) for extra in extras if isinstance(extra, Range)]
    if get_origin(bare) is Literal:
        limits = ["one of " + ", ".join(map(str, get_args(bare)))]
    return "; ".join(words + limits)


def _convert(annotation: Any, value: Any, path: str) -> Any:
    bare, extras = _unwrap(annotation)
    if bare is Choice:
        return _choice(value, path)
    if is_dataclass(bare):
        return parse(bare, value, path)  # type: ignore[arg-type]
    value = _typed(bare, value, path)
    for extra in extras:
        if isinstance(extra, Range) and value not in extra:
            raise ConfigError(f"{path}: expected a number {extra}, got {value}")
    return value


def _choice(value: Any, path: str) -> Choice:
    if isinstance(value, str):
        return Choice(value)
    if isinstance(value, Mapping) and value and "name" not in value:
        for key in value:
            if get_close_matches(key, ["name"]):
                raise ConfigError(f"{path}.{key}: unknown key; did you mean '{path}.name'?")
        raise ConfigError(
            f"{path}.name: expected the name of the {path} that has {' and '.join(value)}; set it beside {path}.{next(iter(value))}"
        )
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise ConfigError(f"{path}.name: expected the name of a {path}, got {_named(value)}")
    for key, item in value.items():
        if not isinstance(item, Scalar):
            raise ConfigError(f"{path}.{key}: expected a number, text, true or false, got {_named(item)}")
    # Sorted, so that the same options are the same choice, in whatever order they were written.
    return Choice(value["name"], tuple(sorted((key, item) for key, item in value.items() if key != "name")))


def _typed(kind: Any, value: Any, path: str) -> Any:
    if get_origin(kind) is Literal:
        if value in get_args(kind):
            return value
        raise ConfigError(f"{path}: got {_named(value)}; {nearest(str(value), map(str, get_args(kind)))}")
    if get_origin(kind) in (Union, UnionType):
        return value if value is None else _typed(get_args(kind)[0], value, path)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if value != value:  # noqa: PLR0124 - only nan differs from itself
        raise ConfigError(f"{path}: expected a number, got nan, which is none")
    if type(value) is not kind:
        names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        raise ConfigError(f"{path}: expected {names.get(kind, kind)}, got {_named(value)}")
    return value


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # JSON writes texts as TOML does, but for one character.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return repr(value)


def _plain(number: float) -> str:
    return str(int(number)) if float(number).is_integer() else str(number)


def _named(value: Any) -> str:
    return f"{value!r} ({type(value).__name__})"


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _unwrap(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    if get_origin(annotation) is Annotated:
        bare, *extras = get_args(annotation)
        return bare, tuple(extras)
    return annotation, ()


def _annotations(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {item.name: hints[item.name] for item in fields(kind)}
