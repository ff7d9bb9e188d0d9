"""SitePolicy: what this hospital allows, read once from its own ``site.toml``; a run can not lower it.

Deny by default: a list that the file leaves out allows nobody and nothing, and every request passes every rule of `rules` or is refused. A
refusal is an answer: its code travels, its text stays in the hospital.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from client.audit import QUESTIONS
from common import joining, keys
from common.config import (
    POSITIVE,
    Choice,
    Range,
    RunConfig,
    as_table,
    assign,
    describe,
    dumps,
    flatten,
    loads,
    merge,
    parse,
)
from common.errors import ConfigError, DataError, PolicyRefused, nearest

COUNT, TASK, COMPARED = "count", "task", "compare"
STATISTICS_PARTS = {
    COUNT: "patients by class, for training, validation and testing",
    TASK: "the sums that the task's preparation is made from",
    COMPARED: "joint tables of two models' scores",
}
"""What ``allow.statistics`` may name."""
PREFACE = (
    "What a hospital allows stands in its `site.toml`, which `fedward hospital init` writes with safe values and comments. What the file leaves out has the default below; "
    "an empty list allows nothing. Every request must pass every rule. The code of a refusal is all that leaves the hospital."
)

_SHOWN = re.compile(r"[\w .:=*+-]{1,95}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Names(tuple[str, ...]):
    """A list of texts of ``site.toml``, held so that nothing can change it."""

    __slots__ = ()


NOBODY = Names()
COORDINATORS = ("strategy.", "selection.", "limits.", "stopping.")
"""How settings of a run begin that act at the coordinator alone."""
ELSEWHERE = ("data",)
"""Sections of ``site.toml`` that are no policy; who uses them checks them."""


@dataclass(frozen=True)
class Site:
    """The hospital itself."""

    name: Annotated[str, "name of the hospital, under which it is admitted"]
    task: Annotated[str, "task that the data is prepared for"]
    data: Annotated[str, "file or folder with the patients; it never leaves"]
    stub_group: Annotated[
        str, "group that may reach the worker's socket, where the stub runs as another user; empty for nobody"
    ] = ""

    def __post_init__(self) -> None:
        if not joining.NAME.fullmatch(self.name):
            raise ConfigError(
                "site.name: expected 1 to 64 letters, digits, spaces, dots, hyphens or underscores, a letter or digit first"
            )


@dataclass(frozen=True)
class Allow:
    """Who may ask for what. What is not named here is refused."""

    tasks: Annotated[Names, "tasks that may be trained"] = NOBODY
    bundles: Annotated[Names, "SHA-256 of the bundles that may run here; 'fedward hospital approve' adds one"] = NOBODY
    coordinators: Annotated[
        Names, "fingerprints of the authorities whose coordinator may ask; 'fedward hospital join' adds one"
    ] = NOBODY
    cohort: Annotated[
        Names,
        "hospitals that may be in the federation, each a name, or NAME@KEY with the fingerprint of its key ('fedward hospital status' shows it there), which then counts in secure sums too; "
        "empty for whomever the coordinator admits",
    ] = NOBODY
    statistics: Annotated[
        Names, "statistics that may leave: " + ", ".join(f"{name} ({what})" for name, what in STATISTICS_PARTS.items())
    ] = NOBODY
    smallest_cell: Annotated[
        int, Range(1, 1000), "smallest count of patients that a statistic may show; smaller ones are suppressed"
    ] = 5
    metrics: Annotated[bool, "whether sums over this hospital's own test patients and its training loss leave"] = False
    settings: Annotated[
        Names,
        "values that settings of a run may have, one a text, such as 'task.hidden=32', 'task.hidden=8..64', or 'task.hidden=*' for any; a setting that is named here may have no other, "
        "and the task's own settings that are not named keep their defaults; of a strategy's own only 'strategy.mu' acts here",
    ] = NOBODY

    def __post_init__(self) -> None:
        for key in ("bundles", "coordinators"):
            for value in getattr(self, key):
                if not _SHA256.fullmatch(_bare(value)):
                    raise ConfigError(f"allow.{key}: expected SHA-256 as 64 hexadecimal digits, got {shown(value)}")
        for entry in self.cohort:
            if "@" in entry and not _SHA256.fullmatch(entry.rpartition("@")[2]):
                raise ConfigError(
                    f"allow.cohort: expected NAME, or NAME@ and 64 hexadecimal digits, got {shown(entry)}"
                )
        for word in self.settings:
            _check_setting(word)
        for name in self.statistics:
            if name not in STATISTICS_PARTS:
                raise ConfigError(f"allow.statistics: unknown part {name!r}; {nearest(name, STATISTICS_PARTS)}")


@dataclass(frozen=True)
class Limits:
    """How much, how little, how often."""

    min_cohort: Annotated[int, Range(1, 1_000_000), "fewest hospitals of a federation, this one included"] = 3
    min_patients: Annotated[int, Range(1, 2**31), "fewest training patients that an update may be made from"] = 50
    min_records: Annotated[
        int,
        Range(1, 65536),
        "fewest records of a step (training.batch_size); a last step of an epoch that has fewer is left out",
    ] = 8
    min_steps: Annotated[int, Range(1, 2**31), "fewest steps of an update"] = 2
    max_steps: Annotated[int, Range(1, 2**31), "most steps of an update"] = 10_000
    max_rounds: Annotated[int, Range(1, 1_000_000), "most rounds of a run"] = 500
    max_rounds_a_day: Annotated[int, Range(1, 1_000_000), "most rounds within 24 hours, of all runs"] = 1000
    max_questions_a_day: Annotated[
        int, Range(1, 1_000_000), "most questions for statistics, metrics and comparisons within 24 hours, of all runs"
    ] = 200
    max_hours_a_day: Annotated[float, Range(0, 24, open_low=True), "most hours of training within 24 hours"] = 12.0
    max_parameters: Annotated[int, Range(1, 2**31), "largest model, in parameters"] = 50_000_000
    memory_mb: Annotated[int, Range(256, 2**24), "memory that the worker may take, in MB"] = 4096
    threads: Annotated[int, Range(1, 1024), "threads that the worker may use"] = 2

    def __post_init__(self) -> None:
        if self.min_steps > self.max_steps:
            raise ConfigError("limits.min_steps: above limits.max_steps, so that every update would be refused")
        if self.min_records > self.min_patients:
            # Otherwise all patients at once might be fewer than a step needs.
            raise ConfigError("limits.min_patients: below limits.min_records; an update is of at least one whole step")


@dataclass(frozen=True)
class Privacy:
    """What a run must offer."""

    minimum: Annotated[Literal["none", "dp"], "none, or dp: every run must be differentially private"] = "none"
    epsilon: Annotated[float, POSITIVE, "largest epsilon that a run may offer, where the minimum is dp"] = 3.0
    budget: Annotated[
        float,
        POSITIVE,
        "most epsilon that all runs together, of all studies and tasks, may ever spend of one patient's privacy",
    ] = 10.0
    delta: Annotated[
        float,
        Range(0, 0.1, open_low=True),
        "delta at which the budget is reckoned, and the largest that a private run may have",
    ] = 1e-4


@dataclass(frozen=True)
class SitePolicy:
    """What this hospital allows."""

    site: Site
    allow: Allow = field(default_factory=Allow)
    limits: Limits = field(default_factory=Limits)
    privacy: Privacy = field(default_factory=Privacy)


@dataclass(frozen=True)
class Asked:
    """What a request is. The worker fills it in: what the coordinator claims, and what the hospital itself knows.

    From the request: ``kind`` of message, ``task``, ``config``, ``round`` (0 before training), ``cohort`` the names and ``hospitals`` the number of all hospitals of
    the federation, ``epsilon`` that it offers (None for none), ``proximal`` the pull that training is to have. Checked by the hospital: ``coordinator``, the fingerprint of the authority, and ``bundle``, the SHA-256
    of the code. Its own: ``rows`` training patients, ``parameters`` of the model that came, and rounds and hours of training and questions within the last day.
    """

    kind: str
    task: Choice
    config: RunConfig
    coordinator: str
    bundle: str
    round: int = 0
    cohort: tuple[str, ...] = ()
    hospitals: int = 0
    rows: int = 0
    parameters: int = 0
    rounds_today: int = 0
    hours_today: float = 0.0
    epsilon: float | None = None
    questions_today: int = 0
    proximal: float = 0.0

    def steps(self, least: int) -> int:
        """Return the steps of one update; a last one of fewer than ``least`` records is left out, see `client.training.plan`."""
        training = self.config.training
        whole, short = divmod(self.rows, training.batch_size)
        return training.epochs * (whole + (short >= least or not whole) * bool(short))


Objection = Callable[[SitePolicy, Asked], str]
"""What speaks against a request, as a clause; empty for nothing."""


@dataclass(frozen=True)
class Rule:
    """One rule: its code, the setting that it follows, the kinds of message that it is for (none for all), and what it refuses."""

    code: str
    setting: str
    kinds: tuple[str, ...]
    refuses: str
    objection: Objection


def read_policy(path: Path) -> SitePolicy:
    """Read the policy of a site from its ``site.toml``; no other place is looked at.

    Raises
    ------
    DataError
        When the file can not be read.
    ConfigError
        For an unknown key, a wrong type, a value out of range or a contradiction; the message names file and key.
    """
    return parse_policy(text_of(path), str(path))


def text_of(path: Path) -> str:
    """Read a ``site.toml`` as text; raise DataError where that fails."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise DataError(
            f"{path}: cannot be read ({type(error).__name__}); 'fedward hospital init' writes one"
        ) from None


def parse_policy(text: str, origin: str = "site.toml") -> SitePolicy:
    """Read a policy from TOML text; errors as of `read_policy`."""
    tables = {section: table for section, table in loads(text, origin).items() if section not in ELSEWHERE}
    try:
        return parse(SitePolicy, {section: _listed(section, table) for section, table in tables.items()})
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None


def default_policy(name: str, task: str, data: str) -> SitePolicy:
    """Return the policy of a new site: its own task and the sums that training needs are allowed; bundles and coordinators are not, yet."""
    allow = Allow(tasks=Names([task]), statistics=Names([COUNT, TASK]), metrics=True)
    return SitePolicy(Site(name, task, data), allow)


def template(name: str, task: str, data: str) -> str:
    """Return the commented ``site.toml`` of a new site; what it says is `default_policy`."""
    policy = default_policy(name, task, data)
    lines = [
        "# What this hospital allows. Nothing that a coordinator sends can change it.",
        "# Changes count from the next message on; stub_group, memory_mb and threads from the next 'fedward hospital start' on, and so does which last step of an epoch is too short.",
    ]
    for section in fields(SitePolicy):
        part = getattr(policy, section.name)
        lines += ["", f"# {part.__doc__}", f"[{section.name}]"]
        values = as_table(part)
        for key, _, meaning in describe(type(part)):
            lines += [f"# {meaning}", dumps({key: values[key]}).rstrip("\n")]
    return "\n".join(lines) + "\n"


def added(text: str, key: str, value: str) -> str:
    """Return the text of a ``site.toml`` with one more value in a list of ``[allow]``; comments and all else stay.

    Raises
    ------
    ConfigError
        When the list does not stand on one line, or the value does not fit.
    """
    before = parse_policy(text)
    names: Names = getattr(before.allow, key)
    if value in names:
        return text
    more = Names([*names, value])
    line = dumps({key: more}).rstrip("\n")
    changed = re.sub(rf"(?m)^[ \t]*{key}[ \t]*=[ \t]*\[[^\]\n]*\](?=[ \t]*(#.*)?$)", lambda _: line, text, count=1)
    after = parse_policy(changed)
    if as_table(after) != merge(as_table(before), {"allow": {key: more}}):
        raise ConfigError(
            f"site.toml: allow.{key} is not a list on one line of its own; add {shown(value)} to it by hand"
        )
    return changed


def add(path: Path, key: str, value: str) -> None:
    """Add one more value to a list of ``[allow]`` in a site's file; all of it is written or nothing.

    Raises
    ------
    DataError
        When the file cannot be read or written.
    ConfigError
        As of `added`, and for a policy that is none.
    """
    read_policy(path)
    text = path.read_text(encoding="utf-8")
    changed = added(text, key, value)
    if changed != text:
        keys.replace({path: changed.encode()})


def permits(policy: SitePolicy, asked: Asked) -> None:
    """Return when the policy allows what is asked.

    Raises
    ------
    PolicyRefused
        By the first rule that is broken; its code may travel, its text may not.
    """
    for rule in rules():
        if not rule.kinds or asked.kind in rule.kinds:
            objection = rule.objection(policy, asked)
            if objection:
                raise refusal(rule.code, objection, rule.setting)


def holds(policy: SitePolicy, epsilon: float) -> None:
    """Return when the policy allows a run of which this hospital would release so much, by its own reckoning; raise as `permits`, with the code ``privacy``."""
    most = policy.privacy.epsilon
    if policy.privacy.minimum != "none" and epsilon > most:
        objection = (
            f"what the run releases here comes to an epsilon of {epsilon:.4g}, this hospital demands {most:g} or less"
        )
        raise refusal("privacy", objection, "privacy.minimum")


@cache
def rules() -> tuple[Rule, ...]:
    """Return every rule, in the order in which they are tried."""
    from common.messages import COMPARE, EVALUATE, KEYS, SHARES, STATISTICS, TRAIN

    fit, models = (STATISTICS, TRAIN), (TRAIN, EVALUATE, COMPARE)
    kinds = (STATISTICS, *models, KEYS, SHARES)
    # What would be refused in training is refused at the first question too, before anything is told.
    return (
        Rule("coordinator", "allow.coordinators", (), "a coordinator of another authority", _coordinator),
        Rule("bundle", "allow.bundles", (), "a run whose bundle is not approved", _bundle),
        Rule("kind", "", (), "a message of another kind", lambda _, asked: _kind(asked, kinds)),
        Rule("task", "allow.tasks", (), "a task that is not named, or not the one of the run's settings", _task),
        Rule(
            "settings",
            "allow.settings",
            (),
            "another value of a setting that is named, or of one of the task's own than its default",
            _settings,
        ),
        Rule(
            "cohort", "allow.cohort", (), "a federation with a hospital that is not named, or of unnamed ones", _cohort
        ),
        Rule("min_cohort", "limits.min_cohort", (), "a federation of fewer hospitals", _min_cohort),
        Rule("privacy", "privacy.minimum", (), "a run without the privacy demanded", _privacy),
        Rule(
            "statistics",
            "allow.statistics",
            (STATISTICS,),
            "the first question, unless `count` and `task` are allowed",
            _statistics,
        ),
        Rule("metrics", "allow.metrics", (EVALUATE, COMPARE), "judging models on this hospital's patients", _metrics),
        Rule("compare", "allow.statistics", (COMPARE,), "comparing two models, unless `compare` is allowed", _compare),
        Rule("min_patients", "limits.min_patients", fit, "an update of fewer patients", _min_patients),
        Rule("min_records", "limits.min_records", fit, "fewer records a step", _min_records),
        Rule("min_steps", "limits.min_steps", fit, "fewer steps an update", _min_steps),
        Rule("max_steps", "limits.max_steps", fit, "more steps an update", _max_steps),
        Rule("max_rounds", "limits.max_rounds", fit, "a run of more rounds", _max_rounds),
        Rule("round", "", (TRAIN,), "a round that the run does not have", _round),
        Rule("max_rounds_a_day", "limits.max_rounds_a_day", (TRAIN,), "one more round within 24 hours", _rounds_today),
        Rule(
            "max_hours_a_day",
            "limits.max_hours_a_day",
            (TRAIN,),
            "training after so many hours within 24",
            _hours_today,
        ),
        Rule("max_questions_a_day", "limits.max_questions_a_day", QUESTIONS, "one question more", _questions_today),
        Rule("max_parameters", "limits.max_parameters", models, "a larger model", _max_parameters),
    )


def markdown() -> str:
    """Return the page of the documentation: every setting and every rule."""
    lines = ["# Site policy", "", PREFACE, "", "## Settings", "", "| setting | default | meaning |", "|---|---|---|"]
    lines += [f"| `{key}` | `{default}` | {meaning} |" for key, default, meaning in describe(SitePolicy)]
    lines += ["", "## Rules", "", "| code | setting | messages | refuses |", "|---|---|---|---|"]
    for rule in rules():
        kinds = ", ".join(f"`{kind}`" for kind in rule.kinds) or "all"
        lines.append(
            f"| `{rule.code}` | {f'`{rule.setting}`' if rule.setting else 'none'} | {kinds} | {rule.refuses} |"
        )
    lines.append(
        "| `smallest_cell` | `allow.smallest_cell` | `query.statistics` | counts of training patients with a class of fewer |"
    )
    lines.append(
        "| `budget` | `privacy.budget` | `query.statistics`, `train` | a private run, or a round of one, that would spend more of the patients' privacy than is left |"
    )
    return "\n".join(lines)


def _coordinator(policy: SitePolicy, asked: Asked) -> str:
    known = map(_bare, policy.allow.coordinators)
    who = shown(asked.coordinator)
    return (
        ""
        if _bare(asked.coordinator) in known
        else f"the coordinator's authority is {who}, which this hospital does not know"
    )


def _bundle(policy: SitePolicy, asked: Asked) -> str:
    known = map(_bare, policy.allow.bundles)
    what = shown(asked.bundle)
    return "" if _bare(asked.bundle) in known else f"the run's bundle is {what}, which this hospital has not approved"


def _kind(asked: Asked, kinds: tuple[str, ...]) -> str:
    return (
        "" if asked.kind in kinds else f"the run asks for {shown(asked.kind)}, this hospital answers {', '.join(kinds)}"
    )


def _task(policy: SitePolicy, asked: Asked) -> str:
    if asked.task != asked.config.task:
        return "the request and the run's settings name different tasks, this hospital allows one"
    return _named("the task", [asked.task.name], policy.allow.tasks)


def _settings(policy: SitePolicy, asked: Asked) -> str:
    named: dict[str, list[str]] = {}
    for word in policy.allow.settings:
        key, _, text = word.partition("=")
        named.setdefault(key, []).append(text)
    defaults = _defaults(asked.task.name)
    # The pull towards the model that came acts here, so what counts is the one that is asked for, not the one that the run's settings tell.
    pull = {"strategy.mu": asked.proximal} if asked.proximal else {}
    for key, value in (defaults | flatten(as_table(asked.config)) | pull).items():
        good = [*named.get(key, ())]
        if good and not any(_fits(text, value) for text in good):
            return f"the run asks for the setting {shown(key)} at {shown(str(value))}, this hospital allows {', '.join(good)}"
        if not good and key.startswith("task.") and key != "task.name" and not _same(value, defaults.get(key)):
            return f"the run asks for the setting {shown(key)} at {shown(str(value))}, this hospital allows its default"
    return ""


def _defaults(task: str) -> dict[str, Any]:
    """Return the settings of a task's own as they are where a run does not give them."""
    from common.tasks import TASKS

    return flatten({"task": as_table(TASKS[task]())}) if task in TASKS else {}


def _check_setting(word: str) -> None:
    """Refuse what names no setting, or one that acts at the coordinator alone: it would be a rule that never counts."""
    from common.tasks import TASKS

    key, equals, text = word.partition("=")
    known = {name for name, _, _ in describe(RunConfig) if not name.startswith(COORDINATORS)} | {"strategy.mu"}
    known |= {f"task.{item.name}" for task in TASKS.values() for item in fields(task)}  # type: ignore[arg-type]
    if not equals or not text or key not in known:
        raise ConfigError(
            "allow.settings: expected a setting that acts at this hospital and a value, such as 'task.hidden=32',"
            f" got {shown(word)}; {nearest(key, sorted(known)) if equals else 'the value is missing'}"
        )
    if ".." in text and _bounds(text) is None:
        raise ConfigError(f"allow.settings: {key}: expected two numbers, such as 8..64, got {shown(text)}")


def _bounds(text: str) -> Range | None:
    """Return the range that a text such as ``8..64`` is; None for any other text."""
    low, dots, high = text.partition("..")
    try:
        return Range(float(low), float(high)) if dots else None
    except ValueError:
        return None


def _fits(text: str, value: Any) -> bool:
    """Tell whether a value is the one that a text stands for, or in its range; ``*`` stands for any.

    >>> _fits("8..64", 16), _fits("16", 16), _fits("mlp", "mlp"), _fits("1", True)
    (True, True, True, False)
    """
    bounds = _bounds(text)
    if bounds is None:
        return text == "*" or _same(value, assign([f"value={text}"])["value"])
    return isinstance(value, int | float) and not isinstance(value, bool) and value in bounds


def _same(value: Any, other: Any) -> bool:
    """Tell equal values that are not a truth value and a number."""
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)


def _cohort(policy: SitePolicy, asked: Asked) -> str:
    allowed = Names(entry.partition("@")[0] for entry in policy.allow.cohort)
    if not allowed:
        return ""
    if len(set(asked.cohort)) < max(asked.hospitals, 1):
        return "the run does not name all hospitals of the federation, this hospital allows only those that it names"
    return _named("a federation with", [name for name in asked.cohort if name != policy.site.name], allowed)


def _min_cohort(policy: SitePolicy, asked: Asked) -> str:
    # Whoever claims more hospitals than it names is taken at the smaller word.
    size = min(asked.hospitals, len(set(asked.cohort))) if asked.cohort else asked.hospitals
    return _at_least(size, "hospitals in the federation", policy.limits.min_cohort)


def _privacy(policy: SitePolicy, asked: Asked) -> str:
    most = policy.privacy.epsilon
    if policy.privacy.minimum == "none":
        return ""
    if asked.epsilon is None:
        return f"the run offers no differential privacy, this hospital demands an epsilon of {most:g} or less"
    if asked.config.privacy.delta > policy.privacy.delta:
        return f"the run offers a delta of {asked.config.privacy.delta:g}, this hospital demands {policy.privacy.delta:g} or less"
    if 0 < asked.epsilon <= most:
        return ""
    return f"the run offers an epsilon of {asked.epsilon:g}, this hospital demands {most:g} or less, above 0"


def _statistics(policy: SitePolicy, _asked: Asked) -> str:
    return _named("the statistics", [COUNT, TASK], policy.allow.statistics)


def _metrics(policy: SitePolicy, _asked: Asked) -> str:
    return "" if policy.allow.metrics else "the run asks for metrics of this hospital alone, this hospital sends none"


def _compare(policy: SitePolicy, _asked: Asked) -> str:
    return _named("the statistics", [COMPARED], policy.allow.statistics)


def _min_patients(policy: SitePolicy, asked: Asked) -> str:
    # How many there are is a small count, which is for no log.
    least = policy.limits.min_patients
    return (
        ""
        if asked.rows >= least
        else f"the run asks for an update of the patients here, this hospital allows {least} or more and has fewer"
    )


def _min_records(policy: SitePolicy, asked: Asked) -> str:
    return _at_least(asked.config.training.batch_size, "records a step", policy.limits.min_records)


def _min_steps(policy: SitePolicy, asked: Asked) -> str:
    return _at_least(asked.steps(policy.limits.min_records), "steps an update", policy.limits.min_steps)


def _max_steps(policy: SitePolicy, asked: Asked) -> str:
    return _at_most(asked.steps(policy.limits.min_records), "steps an update", policy.limits.max_steps)


def _max_rounds(policy: SitePolicy, asked: Asked) -> str:
    return _at_most(asked.config.rounds, "rounds", policy.limits.max_rounds)


def _round(_policy: SitePolicy, asked: Asked) -> str:
    last = asked.config.rounds
    return (
        ""
        if 1 <= asked.round <= last
        else f"the run asks for round {asked.round}, this hospital allows 1 to {last}, those of the run"
    )


def _rounds_today(policy: SitePolicy, asked: Asked) -> str:
    return _at_most(asked.rounds_today + 1, "rounds within 24 hours", policy.limits.max_rounds_a_day)


def _hours_today(policy: SitePolicy, asked: Asked) -> str:
    most = policy.limits.max_hours_a_day
    if asked.hours_today < most:
        return ""
    return (
        f"the run asks for training after {asked.hours_today:.1f} hours of it within 24, this hospital allows {most:g}"
    )


def _questions_today(policy: SitePolicy, asked: Asked) -> str:
    most = policy.limits.max_questions_a_day
    return _at_most(asked.questions_today + 1, "questions within 24 hours", most)


def _max_parameters(policy: SitePolicy, asked: Asked) -> str:
    return _at_most(asked.parameters, "parameters", policy.limits.max_parameters)


def _at_least(number: float, noun: str, least: float) -> str:
    return "" if number >= least else f"the run asks for {_counted(number, noun)}, this hospital allows {least} or more"


def _at_most(number: float, noun: str, most: float) -> str:
    return "" if number <= most else f"the run asks for {_counted(number, noun)}, this hospital allows {most} or fewer"


def _counted(number: float, noun: str) -> str:
    """Count in words.

    >>> _counted(1, "records a step"), _counted(2, "rounds")
    ('1 record a step', '2 rounds')
    """
    first, space, rest = noun.partition(" ")
    return f"{number} {first.removesuffix('s') if number == 1 else first}{space}{rest}"


def _named(noun: str, names: list[str], allowed: Names) -> str:
    unknown = next((name for name in names if name not in allowed), None)
    if unknown is None:
        return ""
    return f"the run asks for {noun} {shown(unknown)}, this hospital allows {', '.join(allowed) or 'none'}"


def refusal(code: str, objection: str, setting: str) -> PolicyRefused:
    """Return a refusal by the rule with this code; ``setting`` is what may be changed, or empty."""
    section = setting.partition(".")[0]
    remedy = f"Change [{section}] in site.toml, or ask the coordinator." if section else "Ask the coordinator."
    return PolicyRefused(f"REFUSED policy.{code}: {objection}. {remedy}", code)


def shown(text: str) -> str:
    """Quote a text that came from outside, unless it could break the line that it stands in."""
    return repr(text) if _SHOWN.fullmatch(text) else "(a text that is not shown)"


def _bare(digest: str) -> str:
    """Return a fingerprint without its colons and in small letters."""
    return digest.replace(":", "").lower()


def _listed(section: str, table: Any) -> Any:
    """Turn the lists of a section into `Names`, each where one is expected."""
    kinds = {item.name: item.type for item in fields(SitePolicy)}
    if section not in kinds or not isinstance(table, Mapping):
        return table
    wanted = [key for key, kind in get_type_hints(kinds[section]).items() if kind is Names]
    values = dict(table)
    for key in wanted:
        value = values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ConfigError(f'{section}.{key}: expected a list of texts, such as ["a", "b"]')
    return values | {key: Names(values[key]) for key in wanted if key in values}
