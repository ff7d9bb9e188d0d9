"""The hospital: one holder of patients. A real one is opened from its files, a virtual one is made from arrays; the class is the same."""

from dataclasses import dataclass, field

from common.tasks.task import Records


@dataclass(frozen=True, eq=False)
class Hospital:
    """A hospital's raw rows. Compared by identity. No patient is in two of the three parts; ``validation`` is empty unless the run stops early."""

    name: str
    train: Records = field(repr=False)
    validation: Records = field(repr=False)
    test: Records = field(repr=False)
