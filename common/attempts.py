"""What must go on for as long as a process lives: an error ends one attempt at it, never the loop that makes them."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from common.errors import FedwardError

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds after an error until the next attempt; they double while there are errors."""

_log = logging.getLogger(__name__)


@dataclass
class Attempts:
    """Attempts at ``what``, words of a log: after one that failed, none is made before its pause is over."""

    what: str
    _due: float = 0.0
    _pause: float = 0.0

    def make(self, work: Callable[[], object]) -> bool:
        """Do it, unless the pause after an error is not over; say whether it was done. An error is logged."""
        if self.wait() > 0:
            return False
        try:
            work()
        except Exception as error:  # noqa: BLE001 - whatever it was, the next attempt may go well, and nobody above could do better
            self._failed(error)
            return False
        self._pause = 0.0
        return True

    def wait(self) -> float:
        """Return how many seconds there are until the next attempt."""
        return max(self._due - time.monotonic(), 0.0)

    def _failed(self, error: Exception) -> None:
        # What nobody foresaw is a defect of ours, and is found by where it came from.
        trace = None if isinstance(error, FedwardError | OSError) else error
        self._pause = min(2 * self._pause or FIRST_PAUSE, LONGEST_PAUSE)
        self._due = time.monotonic() + self._pause
        _log.error(
            "%s: %s; tried again in %g s", self.what, str(error) or type(error).__name__, self._pause, exc_info=trace
        )
