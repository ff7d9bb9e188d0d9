"""Partitions: how the patients of a data set are dealt to virtual hospitals. Patients, not rows: the rows of one patient never part.

A partitioner is a function ``(facts, hospitals, x, generator)`` that returns, for every patient, the number of the hospital, from 0. It is named on the
command line as ``KIND`` or ``KIND:X``.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.config import Range
from common.errors import ConfigError, nearest
from common.tasks.task import Array
from simulations.datasets.dataset import Table

Numbers = NDArray[np.int64]
MINIMUM = 2
"""Fewest training rows that a hospital may be dealt."""
ATTEMPTS = 100


@dataclass(frozen=True)
class Facts:
    """What a partitioner may look at: the class of every patient's first row ``(n,)``, and one number a patient that says what their data look like."""

    label: Numbers
    feature: NDArray[np.float64]


Deal = Callable[[Facts, int, float, np.random.Generator], Numbers]


@dataclass(frozen=True)
class Partitioner:
    """A way to deal, and what its ``x`` means, with its limits and default; ``limits`` of None: it takes no x."""

    deal: Deal
    meaning: str = ""
    limits: Range | None = None
    default: float = 0.0
    whole: bool = False


def iid(facts: Facts, hospitals: int, _x: float, generator: np.random.Generator) -> Numbers:
    """Deal at random into equal shares."""
    return generator.permutation(np.arange(len(facts.label)) % hospitals)


def dirichlet(facts: Facts, hospitals: int, x: float, generator: np.random.Generator) -> Numbers:
    """Deal each class by shares drawn from a Dirichlet distribution with concentration ``x`` (Hsu et al. 2019, section 3.1, by class)."""
    return _by_shares(facts.label, hospitals, x, generator)


def quantity(facts: Facts, hospitals: int, x: float, generator: np.random.Generator) -> Numbers:
    """Deal at random into shares drawn from a Dirichlet distribution with concentration ``x``: hospitals differ in size alone."""
    return _by_shares(np.zeros_like(facts.label), hospitals, x, generator)


def pathological(facts: Facts, hospitals: int, x: float, generator: np.random.Generator) -> Numbers:
    """Give each hospital at most ``x`` classes, by dealing ``x`` shards of the patients sorted by class (McMahan et al. 2017, section 3)."""
    classes = np.unique(facts.label)
    per_hospital = min(int(x), len(classes))
    shards = np.array_split(np.arange(hospitals * per_hospital), len(classes))
    owner = np.tile(np.arange(hospitals), per_hospital)
    owner = np.concatenate([generator.permutation(part) for part in np.split(owner, per_hospital)])
    dealt = np.zeros(len(facts.label), np.int64)
    if len(shards[-1]) == 0:
        raise ConfigError(
            f"simulation.partition: {hospitals} hospitals of {per_hospital} classes leave no place for all {len(classes)} classes; "
            "take more hospitals or a larger x"
        )
    for number, own in zip(classes, shards, strict=True):
        patients = generator.permutation(np.flatnonzero(facts.label == number))
        dealt[patients] = owner[own[np.arange(len(patients)) * len(own) // len(patients)]]
    return dealt


def feature(facts: Facts, hospitals: int, x: float, generator: np.random.Generator) -> Numbers:
    """Deal by what the data look like: patients sorted by their feature, after a share ``x`` of them is mixed; hospitals are of one size."""
    order = np.argsort(facts.feature, kind="stable")
    mixed = np.flatnonzero(generator.random(len(order)) < x)
    order[mixed] = order[generator.permutation(mixed)]
    dealt = np.empty(len(order), np.int64)
    dealt[order] = np.arange(len(order)) * hospitals // len(order)
    return dealt


CONCENTRATION = Range(1e-6, 1e6)
PARTITIONERS: dict[str, Partitioner] = {
    "iid": Partitioner(iid),
    "dirichlet": Partitioner(dirichlet, "concentration over classes; small is skewed", CONCENTRATION, 0.5),
    "quantity": Partitioner(quantity, "concentration over sizes; small is skewed", CONCENTRATION, 1.0),
    "pathological": Partitioner(pathological, "classes of a hospital", Range(1, 1000), 2.0, whole=True),
    "feature": Partitioner(feature, "share that is mixed; 0 is sorted", Range(0, 1), 0.1),
}
NATURAL = "natural"


def deal(table: Table, spec: str, hospitals: int, generator: np.random.Generator) -> dict[str, Numbers]:
    """Deal a data set's rows to hospitals: row numbers by hospital name, ascending.

    ``natural`` takes the hospitals that the data come from, and ``hospitals`` must then be 0 or their count.

    Raises
    ------
    ConfigError
        For an unknown kind, an ``x`` out of range, or a hospital with fewer than two rows, of which those that are for testing do not count.
    """
    kind, _, x = spec.partition(":")
    # A copy, so that the advice speaks of the very draws that another count would be dealt by.
    start = copy.deepcopy(generator)
    dealt = _natural(table, x, hospitals) if kind == NATURAL else _artificial(table, kind, x, hospitals, generator)
    small = _too_small(table, dealt)
    if small:
        raise ConfigError(
            f"simulation.partition: {spec!r} over {len(dealt)} hospitals leaves {small!r} with fewer than {MINIMUM} {'rows' if table.test is None else 'training rows'}; "
            f"{_advice(table, kind, x, len(dealt), start)}"
        )
    return dealt


def split(label: Array, patient: Array, share: float, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Draw ``share`` of the patients, class by class as far as that goes; return True for their rows. Some rows always remain."""
    _, first, inverse = np.unique(patient, return_index=True, return_inverse=True)
    # Patients in random order, class by class; every so many-th is drawn, so that each class gives its share, to rounding.
    order = generator.permutation(len(first))
    order = order[np.argsort(label[first][order], kind="stable")]
    count = max(min(round(share * len(first)), len(first) - 1), 0)
    drawn = np.zeros(len(first), bool)
    drawn[order] = np.diff(np.floor(np.arange(len(first) + 1) * count / max(len(first), 1) + 0.5)) > 0
    chosen: NDArray[np.bool_] = drawn[inverse]
    return chosen


def _too_small(table: Table, dealt: dict[str, Numbers]) -> str:
    """Return the hospital with the fewest training rows, if they are too few; where the data name none, all may become some."""
    training = np.ones(len(table), bool) if table.test is None else ~table.test
    counts = {name: np.count_nonzero(training[rows]) for name, rows in dealt.items()}
    small = min(counts, key=counts.__getitem__)
    return small if counts[small] < MINIMUM else ""


def _advice(table: Table, kind: str, x: str, hospitals: int, start: np.random.Generator) -> str:
    """Say how many hospitals can be had instead, and what to type."""
    most = _most(table, "iid", "", hospitals, start)
    even = f"--partition iid --hospitals {most}" if most else ""
    if kind == NATURAL:
        return f"deal anew: {even}" if even else "the data are too few"
    fitting = _most(table, kind, x, hospitals, start)
    if not fitting:
        return f"no smaller count of hospitals fits either; take {even}" if even else "the data are too few"
    told = f"with this seed at most {fitting} can be had: take --hospitals {fitting}"
    return told if kind == "iid" or fitting >= most else f"{told}, or a more even partition: {even}"


def _most(table: Table, kind: str, x: str, hospitals: int, start: np.random.Generator) -> int:
    """Return the most hospitals, up to a count, that a partition fits, by bisection; 0 where it fits none.

    Draws differ, so a skewed partition may by luck fit some more; what is returned was tried from the same start and does fit.
    """
    low, high, most = 0, min(hospitals, len(table) // MINIMUM) + 1, 0
    while high - low > 1:
        count = (low + high) // 2
        try:
            small = _too_small(table, _artificial(table, kind, x, count, copy.deepcopy(start)))
        except ConfigError:
            low = count  # too few for all classes to find a place
            continue
        low, high, most = (low, count, most) if small else (count, high, count)
    return most


def _natural(table: Table, x: str, hospitals: int) -> dict[str, Numbers]:
    if x:
        raise ConfigError(f"simulation.partition: {NATURAL!r} takes no x, got {x!r}")
    if table.hospital is None:
        raise ConfigError(
            f"simulation.partition: this data set names no hospitals of its own; choose {', '.join(PARTITIONERS)}"
        )
    names, inverse = np.unique(table.hospital, return_inverse=True)
    if hospitals not in (0, len(names)):
        raise ConfigError(
            f"simulation.hospitals: the data come from {len(names)} hospitals, not {hospitals}; leave it out, or choose --partition iid"
        )
    return {str(name): np.flatnonzero(inverse == number) for number, name in enumerate(names)}


def _artificial(table: Table, kind: str, x: str, hospitals: int, generator: np.random.Generator) -> dict[str, Numbers]:
    if kind not in PARTITIONERS:
        raise ConfigError(f"simulation.partition: unknown kind {kind!r}; {nearest(kind, [NATURAL, *PARTITIONERS])}")
    if not hospitals:
        raise ConfigError(f"simulation.hospitals: {kind!r} needs a count of hospitals, for example --hospitals 10")
    partitioner = PARTITIONERS[kind]
    value = _number(partitioner, kind, x)
    _, first, inverse = np.unique(table.whose, return_index=True, return_inverse=True)
    facts = Facts(table.label[first], _feature(table)[first] if kind == "feature" else np.zeros(len(first)))
    training = None if table.test is None else ~table.test
    for _ in range(ATTEMPTS):
        owner = partitioner.deal(facts, hospitals, value, generator)[inverse]
        if np.bincount(owner, training, hospitals).min() >= MINIMUM:
            break
    order = np.argsort(owner, kind="stable")
    parts = np.split(order, np.searchsorted(owner[order], np.arange(1, hospitals)))
    return {f"hospital-{number:0{len(str(hospitals))}d}": part for number, part in enumerate(parts, 1)}


def _number(partitioner: Partitioner, kind: str, text: str) -> float:
    if not text:
        return partitioner.default
    if partitioner.limits is None:
        raise ConfigError(f"simulation.partition: {kind!r} takes no x, got {text!r}")
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if value not in partitioner.limits or (partitioner.whole and value != int(value)):
        number = "a whole number" if partitioner.whole else "a number"
        raise ConfigError(
            f"simulation.partition: '{kind}:{text}': expected {number} {partitioner.limits} ({partitioner.meaning})"
        )
    return value


def _by_shares(groups: Numbers, hospitals: int, x: float, generator: np.random.Generator) -> Numbers:
    dealt = np.empty(len(groups), np.int64)
    for group in np.unique(groups):
        patients = generator.permutation(np.flatnonzero(groups == group))
        ends = np.cumsum(_dirichlet(hospitals, x, generator)) * len(patients)
        # The common random start makes every hospital's expected count its share, so that a small class doesn't go to the first hospitals.
        places = np.arange(len(patients)) + generator.random()
        dealt[patients] = np.searchsorted(ends[:-1], places, side="right")
    return dealt


def _dirichlet(count: int, x: float, generator: np.random.Generator) -> NDArray[np.float64]:
    """Draw shares; in logarithms, so that a small concentration gives one hospital everything and not a division of nothing by nothing."""
    logarithms = np.log(generator.gamma(x + 1.0, size=count)) + np.log1p(-generator.random(count)) / x
    shares = np.exp(logarithms - logarithms.max())
    return np.asarray(shares / shares.sum())


def _feature(table: Table) -> NDArray[np.float64]:
    """Return one number a row: the mean brightness of an image, the length of a text, or the first principal component of a table's numbers."""
    columns = [column for name, column in table.records.items() if name != table.target]
    for column in columns:
        if column.ndim > 1:
            return np.asarray(column.reshape(len(column), -1).mean(axis=1), np.float64)
        if column.dtype.kind in "OU":
            return np.array([len(text) for text in column], np.float64)
    numbers = np.ma.masked_invalid(np.stack(columns, axis=1).astype(np.float64))
    centred = (numbers - numbers.mean(axis=0)).filled(0.0)
    scaled = centred / np.maximum(centred.std(axis=0), 1e-12)
    axis = np.linalg.svd(scaled, full_matrices=False)[2][0]
    # An axis has two directions; which of them the library returns is its own affair.
    return np.asarray(scaled @ axis * np.sign(axis[np.argmax(np.abs(axis))]))
