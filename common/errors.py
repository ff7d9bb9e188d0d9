"""The one tree of errors, and the exit code of each.

::

    FedwardError          1  something failed
    ├── UsageError        2  the command or a setting is wrong
    │   └── ConfigError   2  ... a setting of a run or scenario
    ├── DataError         1  a data file is absent, damaged or not of the expected form
    ├── RunEnded          1  Flower has ended a run, which can be gone on with
    ├── QuorumError       1  too few hospitals answered, or too few of their updates were good
    ├── UpdateRejected    1  one hospital's update is not used; ``code`` says why
    ├── PolicyRefused     3  a hospital's own rules forbid what was asked; ``code`` says which
    └── Unreachable       4  the other side did not answer

A message says what was expected, what came and what to do. It never holds a patient's value: only file, row, column or key.
"""

import difflib
from collections.abc import Iterable


class FedwardError(Exception):
    """Any error that a user can mend; shown in one line, without a traceback."""

    exit_code = 1


class UsageError(FedwardError):
    """The command was typed wrongly, or names something that does not exist."""

    exit_code = 2


class ConfigError(UsageError):
    """A setting has an unknown key, a wrong type or range, or contradicts another."""


class DataError(FedwardError):
    """A data file is absent, damaged, or not of the expected form."""


class RunEnded(FedwardError):
    """Flower has ended a run that it heard nothing of; what was finished of it is kept, and another can go on with it."""


class QuorumError(FedwardError):
    """Too few hospitals answered, or too few of their updates could be used."""


class UpdateRejected(FedwardError):
    """One update is not used. ``code`` is short and safe to show to anyone; it holds nothing of the update's content."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class PolicyRefused(FedwardError):
    """A hospital's own rules forbid what the run asks. ``code`` is short and safe to send; the message stays in the hospital."""

    exit_code = 3

    def __init__(self, message: str, code: str = "refused") -> None:
        super().__init__(message)
        self.code = code


class Unreachable(FedwardError):
    """The other side did not answer."""

    exit_code = 4


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence that names the nearest known word and all others.

    >>> nearest("fedagv", ["fedavg", "krum"])
    "did you mean 'fedavg'? Known: fedavg, krum"
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known: {', '.join(names)}"
