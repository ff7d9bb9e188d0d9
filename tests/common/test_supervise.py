"""Supervised programs: started again with back-off, stopped with all they started, and gone when their supervisor is."""

import contextlib
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest

from common import attempts, supervise
from common.errors import DataError, FedwardError, UsageError
from common.supervise import Program, Supervisor, free_port, until_stopped

ROOT = Path(__file__).parents[2]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal at a parent's death is Linux's own")


def python(name, script, folder, **environment):
    return Program(name, [sys.executable, "-c", script], folder / f"{name}.log", environment)


def until(true, seconds=20.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def alive(pid):
    """Say whether a process runs; one that has ended and that nobody has asked about yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        pass
    if Path("/proc/self").exists():
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


SLEEPS = "import time; print('up', flush=True); time.sleep(600)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
)
NOTES = """
import signal, sys, time
def stop(*_):
    with open({notes!r}, "a") as file:
        file.write({name!r} + "\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("up", flush=True)
time.sleep(600)
"""
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {child!r}], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep({seconds})
"""


def says_up(program):
    return program.log.exists() and "up" in program.log.read_text()


class TestRunning:
    def test_logs_and_environment_are_the_programs_own(self, tmp_path, monkeypatch):
        monkeypatch.setenv("KEPT", "from outside")
        script = "import os, sys; print(os.environ['OWN'], os.environ['KEPT']); print('loud', file=sys.stderr)"
        one, two = (python(name, script, tmp_path, OWN=f"of {name}") for name in ("one", "two"))
        with Supervisor([one, two]):
            until(lambda: all(each.log.read_text().count("\n") == 2 for each in (one, two)))
        assert sorted(one.log.read_text().splitlines()) == ["loud", "of one from outside"]
        assert "OWN" not in os.environ

    def test_nothing_is_typed_into_them(self, tmp_path):
        program = python("reads", "import sys; print(repr(sys.stdin.read()))", tmp_path)
        with Supervisor([program]):
            until(lambda: program.log.read_text() == "''\n")

    def test_a_log_is_written_on_at_its_end(self, tmp_path):
        program = python("one", SLEEPS, tmp_path)
        program.log.write_text("from before\n")
        with Supervisor([program]):
            until(lambda: says_up(program))
        assert program.log.read_text() == "from before\nup\n"

    def test_pids_are_those_of_the_programs_that_run(self, tmp_path):
        one, two = (
            python("one", "import os; print(os.getpid(), 'up', flush=True);" + SLEEPS, tmp_path),
            python("two", "", tmp_path),
        )
        with Supervisor([one, two]) as supervisor:
            until(lambda: says_up(one))
            until(lambda: supervisor.look_after() or "two" not in supervisor.pids())
            assert supervisor.pids() == {"one": int(one.log.read_text().split()[0])}


class TestRestart:
    def test_one_that_ends_is_started_again_after_pauses_that_double(self, tmp_path, monkeypatch):
        now = [1000.0]
        monkeypatch.setattr(supervise.time, "monotonic", lambda: now[0])
        started, at = [], []
        start = supervise._start
        monkeypatch.setattr(
            supervise, "_start", lambda program: at.append(now[0]) or started.append(start(program)) or started[-1]
        )
        with Supervisor([python("ends", "", tmp_path)]) as supervisor:
            for _ in range(400):
                started[-1].wait()
                supervisor.look_after()
                now[0] += 0.5
        pauses = [round(after - before) for before, after in pairwise(at)]
        assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]

    def test_one_that_ran_well_is_started_again_soon(self, tmp_path, monkeypatch):
        now = [1000.0]
        monkeypatch.setattr(supervise.time, "monotonic", lambda: now[0])
        program = python("sleeps", SLEEPS, tmp_path)
        with Supervisor([program]) as supervisor:
            for _ in range(4):
                before = supervisor.pids()["sleeps"]
                now[0] += supervise.STEADY + 1
                os.kill(before, signal.SIGKILL)
                until(lambda: supervisor.look_after() or not supervisor.pids())
                now[0] += supervise.FIRST_PAUSE - 0.1
                supervisor.look_after()
                assert not supervisor.pids()
                now[0] += 0.2
                supervisor.look_after()
                assert supervisor.pids()["sleeps"] != before

    def test_it_is_said(self, tmp_path, caplog):
        with Supervisor([python("fails", "raise SystemExit(7)", tmp_path)]) as supervisor:
            until(lambda: supervisor.look_after() or caplog.text)
        assert "fails ended with 7; starting it again in 1 s" in caplog.text

    def test_one_that_can_not_be_started_again_is_tried_later_and_the_others_go_on(self, tmp_path, monkeypatch, caplog):
        """As while a release is being installed, and with it the program replaced."""
        now = [1000.0]
        monkeypatch.setattr(supervise.time, "monotonic", lambda: now[0])
        replaced = tmp_path / "program"
        replaced.symlink_to(sys.executable)
        one, other = python("one", SLEEPS, tmp_path), python("other", SLEEPS, tmp_path)
        with Supervisor([Program("one", [str(replaced), "-c", SLEEPS], one.log), other]) as supervisor:
            until(lambda: says_up(one) and says_up(other))
            before = supervisor.pids()
            replaced.unlink()
            os.kill(before["one"], signal.SIGKILL)
            until(lambda: supervisor.look_after() or "one" not in supervisor.pids())
            for _ in range(20):
                now[0] += 1
                supervisor.look_after()
            assert supervisor.pids() == {"other": before["other"]}
            assert alive(before["other"])
            assert [record.getMessage().rpartition("in ")[2] for record in caplog.records] == [
                "1 s",
                "2 s",
                "4 s",
                "8 s",
                "16 s",
            ]
            assert "one cannot be started ([Errno 2] No such file or directory" in caplog.text
            replaced.symlink_to(sys.executable)
            now[0] += 16
            supervisor.look_after()
            assert supervisor.pids().keys() == {"one", "other"}

    def test_an_error_of_what_is_done_in_between_ends_nothing(self, tmp_path, monkeypatch, caplog):
        monkeypatch.setattr(attempts, "FIRST_PAUSE", 0.05)
        calls, program = [], python("one", SLEEPS, tmp_path)

        def every():
            calls.append(1)
            if len(calls) == 3:
                signal.raise_signal(signal.SIGTERM)
            raise OSError(28, "No space left on device")

        with Supervisor([program]) as supervisor:
            until_stopped(supervisor, every, 0.001)
            assert alive(supervisor.pids()["one"])
        assert caplog.text.count("No space left on device; tried again in") == 3

    def test_what_it_had_started_ends_with_it(self, tmp_path):
        program = python("parent", PARENT.format(child=SLEEPS, seconds=0), tmp_path)
        with Supervisor([program]) as supervisor:
            until(lambda: program.log.read_text().endswith("\n"))
            child = int(program.log.read_text())
            until(lambda: supervisor.look_after() or not supervisor.pids())
            until(lambda: not alive(child))


class TestStop:
    def test_they_are_stopped_in_the_opposite_order(self, tmp_path):
        notes = tmp_path / "notes"
        names = ("first", "second", "third")
        programs = [python(name, NOTES.format(notes=str(notes), name=name), tmp_path) for name in names]
        with Supervisor(programs):
            until(lambda: all(map(says_up, programs)))
        assert notes.read_text().split() == ["third", "second", "first"]

    @pytest.mark.parametrize("child", [SLEEPS, STUBBORN], ids=["plain", "stubborn"])
    def test_with_them_goes_what_they_started(self, tmp_path, child):
        program = python("parent", PARENT.format(child=child, seconds=600), tmp_path)
        with Supervisor([program]) as supervisor:
            until(lambda: program.log.read_text().endswith("\n"))
            pids = [supervisor.pids()["parent"], int(program.log.read_text())]
            assert all(map(alive, pids))
        until(lambda: not any(map(alive, pids)))

    def test_one_that_does_not_listen_is_ended_all_the_same(self, tmp_path, monkeypatch):
        monkeypatch.setattr(supervise, "GRACE", 0.3)
        program = python("stubborn", STUBBORN, tmp_path)
        with Supervisor([program]) as supervisor:
            until(lambda: says_up(program))
            pid = supervisor.pids()["stubborn"]
        assert not alive(pid)

    def test_an_error_within_stops_them_too(self, tmp_path):
        program = python("one", SLEEPS, tmp_path)
        with contextlib.suppress(ZeroDivisionError), Supervisor([program]) as supervisor:
            pid = supervisor.pids()["one"]
            raise ZeroDivisionError
        assert not alive(pid)

    def test_where_one_can_not_be_started_none_stays(self, tmp_path):
        supervisor = Supervisor(
            [python("one", SLEEPS, tmp_path), Program("none", [str(tmp_path / "nowhere")], tmp_path / "none.log")]
        )
        with pytest.raises(FileNotFoundError), supervisor:
            pass
        assert not any(map(alive, supervisor.pids().values()))


SUPERVISED = """
import sys
from pathlib import Path
from common.supervise import Program, Supervisor, until_stopped
folder, script = Path(sys.argv[1]), sys.argv[2]
programs = [Program(name, [sys.executable, "-c", script], folder / (name + ".log")) for name in ("one", "two")]
with Supervisor(programs) as supervisor:
    print(*supervisor.pids().values(), flush=True)
    until_stopped(supervisor, lambda: None, 0.05)
    print("stopped", flush=True)
"""


class TestSupervisor:
    @pytest.fixture
    def supervisor(self, tmp_path):
        command = [sys.executable, "-c", SUPERVISED, str(tmp_path), SLEEPS]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            process.children = [int(pid) for pid in process.stdout.readline().split()]
            until(lambda: all((tmp_path / f"{name}.log").read_text() == "up\n" for name in ("one", "two")))
            yield process
            process.kill()
            for pid in process.children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_stops_it_and_them(self, supervisor, number):
        supervisor.send_signal(number)
        assert supervisor.stdout.readline() == "stopped\n"
        assert supervisor.wait(20) == 0
        assert not any(map(alive, supervisor.children))

    @LINUX
    def test_they_end_when_it_is_killed(self, supervisor):
        supervisor.kill()
        supervisor.wait(20)
        until(lambda: not any(map(alive, supervisor.children)))

    def test_one_that_is_killed_is_started_again(self, supervisor, tmp_path):
        os.kill(supervisor.children[0], signal.SIGKILL)
        until(lambda: (tmp_path / "one.log").read_text() == "up\nup\n")
        assert alive(supervisor.children[1])
        supervisor.send_signal(signal.SIGTERM)
        assert supervisor.wait(20) == 0

    def test_signals_do_again_what_they_did_before(self, tmp_path):
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        calls = []

        def every():
            calls.append(1)
            if len(calls) == 3:
                signal.raise_signal(signal.SIGTERM)

        with Supervisor([]) as supervisor:
            until_stopped(supervisor, every, 0.001)
        assert len(calls) == 3
        assert {number: signal.getsignal(number) for number in before} == before


def test_a_free_port_can_be_listened_on():
    import socket

    with socket.create_server(("127.0.0.1", free_port())):
        pass


HOLDS = """
import sys, time
from pathlib import Path
from common import supervise
with supervise.marked(Path(sys.argv[1])) as note:
    note({"worker": 7})
    print("held", flush=True)
    time.sleep(600)
"""


@contextlib.contextmanager
def held(folder, script=HOLDS):
    """Have another process work in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as other:
        try:
            assert other.stdout.readline() == "held\n", other.stderr.read()
            yield other
        finally:
            other.kill()


class TestLock:
    def test_who_works_in_a_folder_is_known_as_long_as_it_does(self, tmp_path):
        assert supervise.running(tmp_path) is None
        with held(tmp_path) as other:
            assert supervise.running(tmp_path) == other.pid
            assert supervise.programs(tmp_path) == {"worker": 7}
            other.kill()
            other.wait()
            assert (tmp_path / "pid").read_text().startswith(str(other.pid)), "a crash leaves the file"
            assert supervise.running(tmp_path) is None
            assert supervise.programs(tmp_path) == {}
        with supervise.marked(tmp_path):
            assert supervise.running(tmp_path) == os.getpid()
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("content", ["", "x", "1", "own", "-1", "0", "9" * 30, "\0" * 100])
    def test_a_file_that_nobody_holds_means_nothing_whatever_it_says(self, tmp_path, content):
        (tmp_path / "pid").write_text(content.replace("own", str(os.getpid())))
        assert supervise.running(tmp_path) is None
        with pytest.raises(UsageError, match="is not running"):
            supervise.stop(tmp_path)
        with supervise.marked(tmp_path):
            assert supervise.running(tmp_path) == os.getpid()

    def test_a_second_one_is_refused_with_the_advice(self, tmp_path):
        with (
            held(tmp_path) as other,
            pytest.raises(UsageError, match="is running already; stop it first"),
            supervise.marked(tmp_path, "; stop it first"),
        ):
            pass
        assert supervise.running(tmp_path) is None
        assert other.poll() is not None

    def test_of_many_at_once_exactly_one_gets_it(self, tmp_path):
        """Each holds it for longer than the others wait; looking at it meanwhile takes it from nobody."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", HOLDS.replace("600", "3"), str(tmp_path)]
        started = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
            for _ in range(5)
        ]
        end = time.monotonic() + 60
        while any(each.poll() is None for each in started):
            assert time.monotonic() < end
            supervise.running(tmp_path)
        told = [each.communicate() for each in started]
        assert sum(out == "held\n" for out, _ in told) == 1
        assert sum("is running already" in err for _, err in told) == 4

    def test_looking_does_not_keep_a_start_from_it(self, tmp_path):
        looking = True

        def look():
            while looking:
                supervise.running(tmp_path)

        thread = threading.Thread(target=look)
        thread.start()
        try:
            for _ in range(30):
                with supervise.marked(tmp_path):
                    pass
        finally:
            looking = False
            thread.join()

    def test_a_program_that_outlives_its_supervisor_does_not_hold_it(self, tmp_path):
        program = python("one", SLEEPS, tmp_path)
        with supervise.marked(tmp_path), Supervisor([program]) as supervisor:
            until(lambda: says_up(program))
            child = supervisor.pids()["one"]
            assert not any("pid" in str(fd.readlink()) for fd in Path(f"/proc/{child}/fd").iterdir())

    def test_stopping_waits_until_it_has_stopped(self, tmp_path):
        with held(tmp_path) as other:
            assert supervise.stop(tmp_path) == other.pid
            assert supervise.running(tmp_path) is None

    def test_one_that_does_not_stop_is_said(self, tmp_path):
        deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        with held(tmp_path, deaf + HOLDS), pytest.raises(FedwardError, match="has not stopped within 0.2 s"):
            supervise.stop(tmp_path, 0.2)

    def test_where_nothing_can_be_written_it_is_one_line(self, tmp_path):
        with pytest.raises(DataError, match="cannot be written"), supervise.marked(tmp_path / "nowhere"):
            pass


WRITES = """
import time
for number in range(20_000):
    print(f"{number:07} " + "x" * 91, flush=True)
while True:
    print("up", flush=True)
    time.sleep(0.05)
"""


class TestLogs:
    def test_they_stay_below_their_bound_and_nothing_is_written_into_a_hole(self, tmp_path, monkeypatch):
        """What is written between the copy and the cut is lost; all else stands in one of the two, whole and in order."""
        monkeypatch.setattr(supervise, "LARGEST_LOG", 100_000)
        program = python("talks", WRITES, tmp_path)
        old, largest = tmp_path / "talks.log.1", 0
        with Supervisor([program]) as supervisor:
            until(lambda: supervisor.look_after() or program.log.read_bytes().endswith(b"up\n"))
            largest = program.log.stat().st_size
        assert largest < 1_000_000
        kept = [old.read_bytes(), program.log.read_bytes()]
        assert b"\0" not in b"".join(kept)
        # A cut may go through a line, so the first and the last of a file may be torn.
        lines = [line for content in kept for line in content.split(b"\n")[1:-1] if line != b"up"]
        assert all(len(line) == 99 for line in lines)
        assert lines == sorted(lines)

    def test_on_a_full_disk_they_are_bounded_all_the_same(self, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(supervise, "LARGEST_LOG", 10)
        monkeypatch.setattr(supervise.shutil, "copy", full)
        program = python("one", SLEEPS, tmp_path)
        with Supervisor([program]) as supervisor:
            until(lambda: says_up(program))
            program.log.write_text("x" * 100)
            supervisor.look_after()
            assert program.log.read_text() == ""

    def test_they_are_their_owners_alone_and_so_is_what_a_program_writes(self, tmp_path):
        program = python("one", f"open({str(tmp_path / 'made')!r}, 'w');" + SLEEPS, tmp_path)
        program.log.write_text("of an earlier release\n")
        program.log.chmod(0o644)
        with Supervisor([program]):
            until(lambda: says_up(program))
        assert stat.S_IMODE(program.log.stat().st_mode) == 0o600
        assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == 0o600


def test_a_signal_before_the_programs_are_looked_after_counts(tmp_path):
    with supervise.stopping() as stopped:
        signal.raise_signal(signal.SIGTERM)
        with Supervisor([]) as supervisor:
            until_stopped(supervisor, lambda: pytest.fail("it goes on"), stopped=stopped)
    assert stopped == [signal.SIGTERM]
