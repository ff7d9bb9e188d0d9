"""The ledger: no charge is ever missing, whatever moment the process dies in, and nothing beyond the budget is allowed."""

import json
import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest

import client.ledger
import fedward
from client import site
from client.ledger import Budget, Ledger, Question, read, whole
from common.errors import DataError, PolicyRefused
from common.privacy import accountant
from common.privacy.accountant import epsilon
from common.privacy.events import Event

EVENT = Event(2.0, 0.1, 5)
LIFETIME = Budget(2.0, 1e-5)


def question(number=1, run="run", asked=b"weights", study="", task="heart"):
    return Question(run, number, asked, study, task, "record")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


class TestCharges:
    def test_epsilon_is_that_of_all_events_together(self, path):
        ledger = Ledger(path)
        for number in range(4):
            ledger.reserve(question(number), EVENT)
        assert ledger.spent(1e-5) == epsilon([Event(2.0, 0.1, 20)], 1e-5)

    def test_the_same_question_has_the_same_key_and_one_charge(self, path):
        ledger = Ledger(path)
        first = ledger.reserve(question(), EVENT)
        ledger.commit(question())
        assert Ledger(path).reserve(question(), EVENT) == first
        assert [row.charges for row in ledger.table(1e-5)] == [1]

    @pytest.mark.parametrize(
        "other", [question(asked=b"other weights"), question(number=2), question(run="another")], ids=str
    )
    def test_any_other_question_has_another_key_and_is_charged(self, path, other):
        ledger = Ledger(path)
        first = ledger.reserve(question(), EVENT)
        assert ledger.reserve(other, EVENT) != first
        assert sum(row.charges for row in ledger.table(1e-5)) == 2

    def test_keys_of_earlier_rounds_are_erased_from_the_disk(self, path):
        ledger = Ledger(path)
        first = ledger.reserve(question(), EVENT)
        assert first in path.read_bytes()
        ledger.reserve(question(2), EVENT)
        assert first not in path.read_bytes()
        # Asked again it is charged again, since the noise that it had is gone.
        assert ledger.reserve(question(), EVENT) != first
        assert [row.charges for row in ledger.table(1e-5)] == [3]

    def test_when_a_run_ends_its_keys_are_erased_and_those_of_other_runs_are_not(self, path):
        ledger = Ledger(path)
        first, other = ledger.reserve(question(), EVENT), ledger.reserve(question(run="other"), EVENT)
        ledger.finish("run")
        assert first not in path.read_bytes()
        assert ledger.reserve(question(run="other"), EVENT) == other
        assert ledger.spent(1e-5) == epsilon([EVENT, EVENT], 1e-5)
        assert ledger.reserve(question(), EVENT) != first

    def test_keys_of_runs_that_nobody_ended_are_erased_after_a_week(self, path, monkeypatch):
        ledger = Ledger(path)
        first = ledger.reserve(question(), EVENT)
        ledger.forget()
        assert ledger.reserve(question(), EVENT) == first
        monkeypatch.setattr(client.ledger, "KEY_DAYS", -1)
        ledger.forget()
        assert first not in path.read_bytes()

    def test_a_charge_composes_nothing_of_earlier_runs_anew(self, path, monkeypatch):
        composed, real = [], accountant._distribution
        monkeypatch.setattr(accountant, "_distribution", lambda *given: composed.append(given) or real(*given))
        ledger = Ledger(path, lambda: Budget(50.0, 1e-5))
        for run in range(10):
            ledger.reserve(question(run=f"earlier {run}"), Event(20.0 + run, 0.1, 5))
        before = len(composed)
        for number in range(5):
            ledger.reserve(question(number), Event(31.0, 0.1, 5))
            ledger.spent(1e-5)
        assert len(composed) - before == 5
        assert Ledger(path).spent(1e-5) == ledger.spent(1e-5)

    def test_it_spans_runs_and_tells_studies_and_tasks_apart(self, path):
        Ledger(path).reserve(question(study="sepsis"), EVENT)
        ledger = Ledger(path)
        ledger.reserve(question(run="later", task="notes"), EVENT)
        ledger.commit(question(run="later", task="notes"))
        rows = [(row.study, row.task, row.charges, row.unused) for row in ledger.table(1e-5)]
        assert rows == [("", "notes", 1, 0), ("sepsis", "heart", 1, 1)]

    def test_only_the_owner_may_read_it(self, path):
        Ledger(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def test_a_file_that_is_no_ledger_is_refused(self, path):
        path.write_bytes(b"no ledger" * 1000)
        with pytest.raises(DataError, match="cannot be read or written"):
            Ledger(path)


class TestBudget:
    def test_the_next_charge_that_would_exceed_is_refused_with_the_arithmetic(self, path):
        ledger, charged = Ledger(path, lambda: LIFETIME), 0
        while epsilon([Event(5.0, count=charged + 1)], 1e-5) <= LIFETIME.epsilon:
            ledger.reserve(question(charged), Event(5.0))
            charged += 1
        said = r"spent 1\.\d+ of epsilon 2 at delta 1e-05, and with what is asked 2\."
        with pytest.raises(PolicyRefused, match=said) as refused:
            ledger.reserve(question(charged), Event(5.0))
        assert refused.value.code == "budget"
        assert [row.charges for row in ledger.table(1e-5)] == [charged]
        assert 0 < ledger.spent(1e-5) <= LIFETIME.epsilon

    def test_what_was_answered_is_answered_again_when_nothing_is_left(self, path):
        budgets = [None]
        ledger = Ledger(path, lambda: budgets[0])
        key = ledger.reserve(question(), EVENT)
        budgets[0] = Budget(1e-6, 1e-5)
        assert ledger.reserve(question(), EVENT) == key
        with pytest.raises(PolicyRefused):
            ledger.reserve(question(2), EVENT)

    def test_a_look_ahead_writes_nothing(self, path):
        ledger = Ledger(path, lambda: LIFETIME)
        ledger.check([Event(5.0)], "run")
        with pytest.raises(PolicyRefused):
            ledger.check([Event(5.0, count=1000)], "run")
        assert ledger.table(1e-5) == []

    def test_a_run_that_goes_on_is_not_held_against_itself(self, path):
        ledger = Ledger(path, lambda: Budget(1.0, 1e-5))
        whole = Event(12.0, count=6)
        ledger.reserve(question(1), whole)
        ledger.check([whole], question(1).run)
        with pytest.raises(PolicyRefused):
            ledger.check([whole], "another run")

    def test_one_that_is_over_and_asked_again_is(self, path):
        ledger = Ledger(path, lambda: Budget(1.0, 1e-5))
        whole = Event(12.0, count=6)
        ledger.reserve(question(1), whole)
        ledger.finish(question(1).run)
        with pytest.raises(PolicyRefused):
            ledger.check([whole], question(1).run)

    def test_nor_does_its_end_give_a_run_its_allowance_again(self, path):
        ledger = Ledger(path, lambda: Budget(10.0, 1e-5, run=epsilon([Event(5.0, count=3)], 1e-5)))
        ledger.reserve(question(1), Event(5.0, count=2))
        ledger.finish(question().run)
        ledger.check([Event(5.0)], question().run)
        for ask in (
            lambda: ledger.check([Event(5.0, count=2)], question().run),
            lambda: ledger.reserve(question(2), Event(5.0, count=2)),
        ):
            with pytest.raises(PolicyRefused, match="than one run may spend"):
                ask()
        ledger.reserve(question(2), Event(5.0))

    def test_one_run_spends_no_more_than_a_run_may_and_the_next_begins_anew(self, path):
        ledger = Ledger(path, lambda: Budget(10.0, 1e-5, run=epsilon([Event(5.0, count=3)], 1e-5)))
        for number in range(3):
            ledger.reserve(question(asked=bytes([number])), Event(5.0))
        with pytest.raises(PolicyRefused, match="than one run may spend") as refused:
            ledger.reserve(question(asked=b"one more"), Event(5.0))
        assert refused.value.code == "budget"
        ledger.check([Event(5.0, count=3)], question().run)
        with pytest.raises(PolicyRefused, match="than one run may spend"):
            ledger.check([Event(5.0, count=4)], "another run")
        ledger.reserve(question(run="another run"), Event(5.0))

    def test_threads_cannot_overspend_together(self, path):
        ledger, allowed = Ledger(path, lambda: Budget(1.0, 1e-5)), []

        def ask(number):
            with suppress(PolicyRefused):
                allowed.append(Ledger(path, lambda: Budget(1.0, 1e-5)).reserve(question(number), Event(8.0)))

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ledger.spent(1e-5) <= 1.0
        assert [row.charges for row in ledger.table(1e-5)] == [len(allowed)]


WRITER = """
import sys
from pathlib import Path
from client.ledger import Ledger, Question
from common.privacy.events import Event
ledger = Ledger(Path(sys.argv[1]))
first = int(sys.argv[2])
print("ready", flush=True)
for number in range(first, first + 100_000):
    question = Question("run", number, b"", "", "heart", "record")
    ledger.reserve(question, Event(2.0))
    print(number, flush=True)  # from here on the patients' rows may have been used
    ledger.commit(question)
"""


@pytest.mark.parametrize(
    "instants", [8, pytest.param(50, marks=pytest.mark.slow)], ids=["eight instants", "fifty instants"]
)
def test_however_the_process_is_killed_no_charge_is_missing(path, instants):
    draw, used = random.Random(4), set()
    for kill in range(instants):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(1000 * kill)], stdout=subprocess.PIPE, text=True
        ) as process:
            process.stdout.readline()
            time.sleep(draw.random() * 0.05)
            os.kill(process.pid, signal.SIGKILL)
            used |= {int(line) for line in process.stdout if line.endswith("\n")}
    ledger = Ledger(path)
    written = {number for (number,) in ledger._file.execute("SELECT round FROM charges")}
    assert used
    assert used <= written
    # At most one charge a kill was written and not used: it counts as spent.
    assert len(written - used) <= instants
    assert ledger.spent(1e-5) == epsilon([Event(2.0, count=len(written))], 1e-5)


class TestForPeople:
    def site(self, tmp_path, capsys):
        folder = tmp_path / "site"
        assert fedward.main(["hospital", "init", str(folder), "--name", "East", "--task", "heart"]) == 0
        capsys.readouterr()
        return folder

    def test_the_command_shows_spent_and_left(self, tmp_path, capsys):
        folder = self.site(tmp_path, capsys)
        assert fedward.main(["hospital", "ledger", str(folder)]) == 0
        assert "0 is spent and 10 left" in capsys.readouterr().out
        assert not (folder / "ledger.sqlite").exists()
        Ledger(folder / "ledger.sqlite").reserve(question(study="sepsis"), Event(5.0, count=4))
        assert fedward.main(["hospital", "ledger", str(folder), "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["spent"] == epsilon([Event(5.0, count=4)], 1e-4)
        assert facts["left"] == 10.0 - facts["spent"]
        assert facts["studies"][0]["study"] == "sepsis"
        assert facts["relation"] == "add or remove one"

    def test_a_backup_has_its_whole_charges(self, tmp_path, path):
        ledger = Ledger(path)
        ledger.reserve(question(), EVENT)
        with whole(path) as (content, size):
            copy = content.read()
        assert len(copy) == size
        (tmp_path / "copy").write_bytes(copy)
        with read(tmp_path / "copy") as opened:
            assert opened.spent(1e-5) == ledger.spent(1e-5)
        assert site.BACKUP.readings[path.name] is whole

    def test_a_backup_has_no_key(self, path):
        ledger = Ledger(path)
        key = ledger.reserve(question(), EVENT)
        with whole(path) as (content, _):
            assert key not in content.read()
        assert key in path.read_bytes()
        assert ledger.reserve(question(), EVENT) == key

    def test_what_is_no_ledger_has_no_backup(self, path):
        path.write_bytes(b"no ledger" * 1000)
        with pytest.raises(DataError, match="cannot be read"), whole(path):
            pass
