"""A coordinator and three hospitals as real processes over mutual TLS, each with its own file, made and driven by the commands that people type."""

import contextlib
import csv
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings

import numpy as np

import fedward as command
from common import supervise
from common.supervise import free_port
from server import coordinator, provision
from simulations.datasets import DATASETS
from simulations.datasets.fetch import load
from tests.faults import MOST_STRETCHED

HOSPITALS = ("cleveland", "hungarian", "va")
NAME, NUMBER, CELL = "Xanthippe Quuxington", "77316655", "131.0173"
"""Planted in every hospital's file: a patient's name and number, and a value of a column that is learnt from."""

# Starts a coordinator whose gateway reaches Flower by another port, where a test listens in.
TAPPED = "import sys, fedward; from server import coordinator as c; real, port = c.gateway, sys.argv.pop(1)\n"
TAPPED += "c.gateway = lambda place, *rest: real(c.Place(place.folder, int(port), place.token), *rest); sys.exit(fedward.main())"


def fedward(*words, code=0, timeout=150):
    """Type a command; return what it printed, parsed where it is JSON."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "fedward", *map(str, words)], capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout) if "--json" in words and code == 0 else done.stdout + done.stderr


def here(*words, code=0):
    """Give a command in this process, which has loaded already what it needs; otherwise as `fedward`. It may end with any ``code`` that is None."""
    out, err = io.StringIO(), io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        warnings.simplefilter("ignore", DeprecationWarning)  # where Flower builds a bundle
        given = command.main(list(map(str, words)))
    assert code is None or given == code, out.getvalue() + err.getvalue()
    return json.loads(out.getvalue()) if "--json" in words and code == 0 else out.getvalue() + err.getvalue()


def write_file(path, hospital):
    """Write a hospital's patients as its own people would have them, with names and numbers."""
    table = load(DATASETS["heart"])
    rows = np.flatnonzero(table.hospital == hospital)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "patient_id", *table.records])
        for place, row in enumerate(rows):
            cells = {name: "" if np.isnan(values[row]) else values[row] for name, values in table.records.items()}
            cells["num"] = int(cells["num"] > 0)
            cells["trestbps"] = CELL if place == 0 else cells["trestbps"]
            writer.writerow([NAME, f"{NUMBER}{place}", *cells.values()])


def at_most(seconds):
    """Return how long something may take that takes so many seconds at most where nobody else uses the machine; the page of the fault matrix says so."""
    return seconds * min(max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)), MOST_STRETCHED)


def until(true, seconds, what):
    """Wait until something is true; return how long that took. ``what`` is a text, or makes one, of what is wrong otherwise; a busy machine gets more time."""
    begun = time.monotonic()
    while not true():
        assert time.monotonic() - begun < at_most(seconds), what() if callable(what) else what
        time.sleep(0.05)
    return time.monotonic() - begun


class Tap:
    """Stands between two programs on this machine, passes on what they say, and keeps all of it, by connection and direction."""

    def __init__(self, target):
        self._target, self.heard = target, []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                asker, _ = self._listener.accept()
                threading.Thread(target=self._join, args=(asker,), daemon=True).start()

    def _join(self, asker):
        target = "127.0.0.1", self._target
        with asker, contextlib.suppress(OSError), socket.create_connection(target) as asked:
            back = threading.Thread(target=self._pump, args=(asked, asker), daemon=True)
            back.start()
            self._pump(asker, asked)
            back.join()

    def _pump(self, source, target):
        kept = bytearray()
        self.heard.append(kept)
        with contextlib.suppress(OSError):
            while piece := source.recv(1 << 16):
                kept += piece
                target.sendall(piece)
            target.shutdown(socket.SHUT_WR)

    def close(self):
        self._listener.close()


class Federation:
    """Folders and processes of a federation that runs."""

    def __init__(self, root):
        self.root, self.server, self.port = root, root / "fed", free_port()
        self.processes = {}

    def site(self, hospital):
        return self.root / hospital

    def prepare(self):
        made = here("server", "init", self.server, "--host", "127.0.0.1", "--port", self.port, "--json")
        self.fingerprint = made["fingerprint"]
        opened = provision.open_federation(self.server)
        self.place = coordinator.place_of(opened)
        self.tap = Tap(self.place.port)
        self.open()
        for hospital in HOSPITALS:
            self.join(hospital)
            self.start(hospital)
        self.wait_for(HOSPITALS)

    def join(self, hospital):
        """Have a hospital make its site and be admitted."""
        data, site, answer = (self.root / f"{hospital}{end}" for end in (".csv", "", ".json"))
        write_file(data, hospital)
        here("hospital", "init", site, "--name", hospital, "--task", "heart", "--data", data)
        here("server", "admit", self.server, site / "request.json", "--out", answer)
        here("hospital", "join", site, answer, "--fingerprint", self.fingerprint)
        self.allow(hospital, "min_cohort = 3", "min_cohort = 2")
        here("hospital", "approve", site, "--own")

    def open(self, **environment):
        """Start the coordinator."""
        words = ["-c", TAPPED, self.tap.port, "server", "start", self.server, "--listen", f"127.0.0.1:{self.port}"]
        self._begin("server", words, environment)

    def start(self, hospital, **environment):
        """Start a hospital."""
        self._begin(hospital, ["-m", "fedward", "hospital", "start", self.site(hospital)], environment)

    def _begin(self, name, words, environment):
        log = (self.root / f"{name}.out").open("ab")
        self.processes[name] = subprocess.Popen(
            [sys.executable, "-P", *map(str, words)],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=os.environ | environment,
        )
        log.close()

    def leave(self, hospital):
        """Stop a hospital, and put its site aside."""
        self.processes[hospital].terminate()
        self.processes[hospital].wait(60)
        self.site(hospital).rename(self.root / f"{hospital}-before")

    def kill(self, name):
        """Kill what was started under a name, as the kernel does; what it had started itself ends by itself."""
        self.processes[name].kill()
        self.processes[name].wait(10)

    def pids(self, hospital):
        """Return the numbers of a hospital's programs."""
        return supervise.programs(self.site(hospital) / "run")

    def kill_all(self, hospital):
        """Kill all of a hospital's programs in one moment, so that none of them can say a word."""
        for number in (*self.pids(hospital).values(), self.processes[hospital].pid):
            os.kill(number, signal.SIGKILL)
        self.processes[hospital].wait(10)

    def kill_program(self, hospital, program):
        os.kill(self.pids(hospital)[program], signal.SIGKILL)

    def online(self):
        return set(coordinator.online(provision.open_federation(self.server)) or ())

    def wait_for(self, hospitals, seconds=90):
        """Wait until these hospitals are connected and no other, and their workers are up."""
        until(lambda: self.online() == set(hospitals), seconds, lambda: f"only {self.online()} connected")
        until(lambda: all(map(self.answers, hospitals)), seconds, "not every worker is up")

    def answers(self, hospital):
        """Say whether somebody listens where a hospital's worker does."""
        with socket.socket(socket.AF_UNIX) as line:
            return not line.connect_ex(str(self.site(hospital) / "run" / "worker.sock"))

    def run(self, *words, rounds=2):
        """Train, in this process."""
        return here("server", "run", self.server, "heart", "--rounds", rounds, *words, "--json")

    def begin_run(self, *words, rounds, **environment):
        """Train in another process; return it. Each round is a line of its output."""
        words = ["server", "run", self.server, "heart", "--rounds", rounds, *words]
        return self.command(*words, **environment)

    def command(self, *words, **environment):
        return subprocess.Popen(
            [sys.executable, "-P", "-u", "-m", "fedward", *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | environment,
        )

    def last_run(self):
        """Return the folder of the newest run."""
        return max((self.server / "runs").iterdir())

    def record(self, folder):
        return json.loads((folder / "run.json").read_text())

    def allow(self, hospital, before, after):
        path = self.site(hospital) / "site.toml"
        text, count = re.subn(before, after, path.read_text(encoding="utf-8"))
        assert count == 1
        path.write_text(text, encoding="utf-8")

    def audit(self, hospital):
        return [json.loads(line) for line in (self.site(hospital) / "audit.jsonl").read_text().splitlines()]

    def trained(self, hospital):
        """Return run, round and attempt of every training that a hospital's log has."""
        lines = [line["fields"] for line in self.audit(hospital) if line["event"] == "trained"]
        return [(line["run"], line["round"], line["attempt"]) for line in lines]

    def files(self):
        """Return all files of the coordinator and the hospitals, and what they printed."""
        return [path for path in self.root.rglob("*") if path.is_file() and path.suffix != ".csv"]

    def stop(self):
        running = [each for each in reversed(self.processes.values()) if each.poll() is None]
        for process in running:
            process.terminate()
        for process in running:
            process.wait(60)
        self.tap.close()
