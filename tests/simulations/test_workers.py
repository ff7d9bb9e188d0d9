"""Worker processes start where they pay, and no more of them than there is work for."""

import pytest

from simulations.workers import TELLING_ROUNDS, WORTH_SECONDS, Crew


class Counting(Crew):
    """A crew that says how many processes it would start."""

    count = 0

    def grow(self, count):
        self.count = count
        self._threads = object()


@pytest.fixture
def crew(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    return Counting([], "", b"")


def told(crew, seconds, left, asked):
    for _ in range(TELLING_ROUNDS):
        crew.grow_if_worth(seconds, left, asked)
    return crew.count


def test_a_long_job_takes_every_core(crew):
    assert told(crew, 1.0, WORTH_SECONDS + 1, asked=100) == 8


def test_no_more_processes_than_hospitals_are_asked_in_a_round(crew):
    assert told(crew, 1.0, WORTH_SECONDS + 1, asked=3) == 3
    assert told(Counting([], "", b""), 1.0, WORTH_SECONDS + 1, asked=1) == 0


def test_a_short_job_starts_none(crew):
    assert told(crew, 1.0, WORTH_SECONDS - 1, asked=100) == 0


def test_first_rounds_which_also_compile_decide_nothing(crew):
    crew.grow_if_worth(100.0, 1000, 100)
    crew.grow_if_worth(100.0, 1000, 100)
    assert crew.count == 0
    crew.grow_if_worth(0.001, 100, 100)
    assert crew.count == 0


def test_processes_are_started_once(crew):
    assert told(crew, 1.0, 1000, asked=4) == 4
    assert told(crew, 1.0, 1000, asked=8) == 4
