"""Faults of programs, disks and data: what is killed, stopped, full or empty costs what it must, and nothing else.

The quick tests run one part each, with real processes, signals and disks; the slow ones the whole federation.
"""

import base64
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import zlib
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Context, Error, Message, RecordDict
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest, PullMessagesRequest
from flwr.proto.node_pb2 import Node

from client import policy, resident, service, stub
from client.app import guarded
from client.audit import AuditLog
from client.data import vault
from client.gate import Gate
from client.site import open_site
from common import chain, flower, keys, messages
from common.config import Choice, merge
from common.errors import DataError, PolicyRefused, QuorumError, Unreachable
from common.messages import TRAIN
from common.supervise import Program, Supervisor
from common.tasks import read_run, task_of
from common.tasks.heart import COLUMNS
from common.tasks.task import rows_of
from server import gateway, models, rounds
from server.plan import Plan
from server.records import sha256
from tests.federation import clock
from tests.federation.processes import CELL, HOSPITALS, NAME, NUMBER, at_most, here, until

ROOT = Path(__file__).parents[2]
COHORT = ("east", "north", "south", "west")
LONG = ("--set", "training.epochs=600", "--set", "training.compile=graph")
"""Some seconds of training a round."""


# Row 1: a hospital is killed.


@pytest.mark.fault(1, passes_when="a node that was killed is let in again at once")
def test_a_node_that_ended_without_a_word_is_let_in_again_at_once(door, upstream):
    enter, leave, pull = (f"/v1/fleet/{name}" for name in ("activate-node", "deactivate-node", "pull-messages"))
    key = ActivateNodeRequest(public_key=b"key", heartbeat_interval=30).SerializeToString()
    door.post(enter, content=key)
    door.post(pull, content=PullMessagesRequest(node=Node(node_id=77)).SerializeToString())
    upstream.asked.clear()
    door.post(enter, content=key)
    assert upstream.paths() == [leave, enter]
    assert DeactivateNodeRequest.FromString(upstream.asked[0]["body"]).node_id == 77
    upstream.asked.clear()
    door.post(enter, door.west, content=key)
    assert upstream.paths() == [enter]


# Row 2: all hospitals but one are killed.


class Leaving:
    """Passes on to a grid; some of its nodes are away for some questions of who is there, and do not answer meanwhile."""

    def __init__(self, grid, away, questions):
        self._grid, self._away, self.left = grid, set(away), questions

    def __getattr__(self, name):
        return getattr(self._grid, name)

    def get_node_ids(self):
        there = set(self._grid.get_node_ids())
        if len(self._away) and self.left and self.begun:
            self.left -= 1
            return sorted(there - self._away)
        return sorted(there)

    begun = False


@pytest.fixture
def leaving(federation, monkeypatch):
    """Return a run in which all but ``east`` are away from the second round on, for so many questions."""
    monkeypatch.setattr(rounds, "AGAIN_SECONDS", 0.01)

    def run(questions, settings=None, folder=None):
        def script(message, answer):
            number = message.content["config"].get("server-round", 0)
            if number == 2 and message.metadata.dst_node_id in grid._away and grid.left:
                grid.begun = True
                return Message(Error(5, "lost"), reply_to=message)
            return answer()

        inner = federation.grid(dict.fromkeys(COHORT, script))
        grid = Leaving(inner, sorted(inner.get_node_ids())[1:], questions)
        limits = {"limits": {"quorum": 0.1, "retries": 0, "wait_seconds": 30.0}}
        config = federation.config(merge(limits, settings or {}))
        with flower.identity(grid.run.run_id):
            return rounds.run(grid, Plan(config, cohort=COHORT), folder)

    return run


@pytest.mark.fault(2, passes_when="no aggregate of one is published; the run pauses and goes on")
def test_a_round_waits_for_hospitals_to_come_back_and_never_takes_one_alone(leaving, federation):
    outcome = leaving(questions=7)
    assert [len(record.answered) for record in outcome.rounds] == [4, 4, 4]
    # Those that were asked again are summed later; the numbers are the same.
    np.testing.assert_allclose(outcome.model.weights, federation.run().model.weights, atol=1e-6)


@pytest.mark.fault(2, passes_when="a run whose quorum stays away ends, with what was finished")
def test_it_waits_no_longer_than_it_was_told(leaving, tmp_path):
    begun = time.monotonic()
    with pytest.raises(QuorumError, match=r"round 2: 1 of 4 .* 2 are needed"):
        leaving(questions=10**6, settings={"limits": {"wait_seconds": 0.5}}, folder=tmp_path)
    assert 0.5 <= time.monotonic() - begun < 10
    saved = models.load(tmp_path / models.NAME)
    assert [len(record["answered"]) for record in models.history(tmp_path, saved)] == [4]


@pytest.mark.fault(2)
def test_a_federation_of_several_does_not_start_with_one(federation):
    config = federation.config({"limits": {"deadline_seconds": 1.0}})
    grid = federation.without("north", "south", "west").grid()
    with flower.identity(grid.run.run_id), pytest.raises(QuorumError, match="1 hospitals are here, .* takes 2"):
        rounds.run(grid, Plan(config, cohort=COHORT))


# Row 3: the coordinator is killed.


@pytest.mark.fault(3, passes_when="20 instants: no file torn, nothing done twice, bit-equal")
@pytest.mark.timeout(300)
def test_a_coordinator_killed_at_any_instant_goes_on_and_ends_with_the_same_bits(tmp_path):
    script = Path(__file__).with_name("killed.py")
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, cwd=ROOT, timeout=280)
    assert done.returncode == 0, done.stderr
    undisturbed, *rows = map(json.loads, done.stdout.splitlines())
    assert [row["signal"] in {signal.SIGKILL, signal.SIGALRM} for row in rows] == [True] * 20
    for row in rows:
        whole = undisturbed["history"]
        assert row["left"] == whole[: len(row["left"])], row
        assert row["after"]["rounds"] == whole[len(row["left"]) :], row
        assert (row["after"]["history"], row["after"]["sha256"]) == (whole, undisturbed["sha256"]), row
        assert row["after"]["first"] < at_most(10), row
    assert len({len(row["left"]) for row in rows}) > 5
    assert any(".checkpoint.npz.part" in row["files"] for row in rows), "none died while it wrote"


# Row 13: the disk is full, or read-only.


@contextmanager
def full_at(folder, size):
    """Have a disk of so many bytes at a folder; where that takes rights that this user has not, have no file grow beyond them."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], capture_output=True)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if mounted.returncode:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))

    def more():
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        if not mounted.returncode:
            subprocess.run(["mount", "-o", f"remount,size={100 * size}", folder], check=True)

    try:
        yield more
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        if not mounted.returncode:
            subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def read_only(tmp_path):
    """Give a folder in which nothing can be written, and the way to change that."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "none", folder], capture_output=True).returncode == 0

    def allow(yes):
        if mounted:
            subprocess.run(["mount", "-o", f"remount,{'rw' if yes else 'ro'}", folder], check=True)
        else:
            folder.chmod(0o700 if yes else 0o500)

    try:
        yield folder, allow
    finally:
        allow(True)
        if mounted:
            subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.fault(
    13, passes_when="coordinator: the run ends with a clear error and goes on bit-equal when there is space"
)
def test_a_coordinator_whose_disk_is_full_says_so_and_goes_on_when_there_is_space(federation, tmp_path):
    settings = {"task": {"hidden": 64}, "rounds": 60, "evaluation": {"every": 0}}
    with full_at(tmp_path, 40 << 10) as more:
        with pytest.raises(DataError, match=r"cannot be written .*; free space"):
            federation.run(settings, folder=tmp_path)
        saved = models.load(tmp_path / models.NAME)
        records = (tmp_path / models.HISTORY).read_bytes()
        assert {path.name for path in tmp_path.iterdir()} == {models.NAME, models.HISTORY}
        assert records.endswith(b"\n")
        assert len(models.history(tmp_path, saved)) == saved.facts["rounds"] < 60
        more()
        outcome = federation.run(settings, folder=tmp_path)
    assert sha256(outcome.model.weights) == sha256(federation.run(settings).model.weights)


@pytest.mark.fault(13)
def test_a_coordinator_whose_disk_is_read_only_says_so(federation, read_only):
    folder, allow = read_only
    federation.run({"rounds": 1}, folder=folder)
    allow(False)
    with pytest.raises(DataError, match="cannot be written"):
        models.save(folder / models.NAME, models.Checkpoint({}))
    with pytest.raises(DataError, match="cannot be written"):
        models.append(folder / models.HISTORY, 0, b"{}")
    assert models.load(folder / models.NAME).facts["rounds"] == 1
    assert len(list(folder.iterdir())) == 2


@pytest.mark.fault(13, passes_when="hospital: no line of the audit log is half written")
def test_an_audit_log_on_a_full_disk_keeps_whole_lines_and_goes_on_when_there_is_space(tmp_path):
    key, path = Ed25519PrivateKey.generate(), tmp_path / "audit.jsonl"
    with full_at(tmp_path, 16 << 10) as more:
        with AuditLog(path, key) as log:
            entries = ({"kind": "train", "round": number} for number in range(1000))
            with pytest.raises(DataError, match="cannot be written"):
                list(map(log.append, repeat("allowed"), entries))
            whole = path.read_bytes()
            assert whole.endswith(b"\n")
            more()
            log.append("refused", {"kind": "train", "code": "bundle"})
        assert path.read_bytes().startswith(whole)
        assert chain.verify(path, key.public_key()) is None
        AuditLog(path, key).close()


@pytest.mark.fault(13, passes_when="hospital: the sealed patients are the old ones or the new ones")
def test_patients_are_sealed_whole_or_not_at_all(tmp_path, make_patients):
    task, key, path = task_of(Choice("heart")), os.urandom(32), tmp_path / "heart.sealed"

    def seal(rows):
        parts = {name: make_patients(rows, 1) for name in vault.PARTS}
        vault.seal(path, vault.Parts(parts, {name: np.arange(rows) for name in parts}), task, key, "east")

    with full_at(tmp_path, 64 << 10) as more:
        seal(20)
        before = path.read_bytes()
        with pytest.raises(DataError, match="cannot be written|No space|too large"):
            seal(2000)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]
        more()
        seal(2000)
        assert rows_of(vault.unseal(path, task, key, "east").records["train"]) == 2000


# Row 14: memory runs out.

GREEDY = """
import sys, time
from pathlib import Path
from client import resident, service
from flwr.app import Message
kept = []
def answer(message, context):
    if message.metadata.message_id == "greedy":
        kept.append(b"x" * (400 << 20))
        time.sleep(60)
    return Message(message.content, reply_to=message)
resident._end_above(resident._resident_mb() + 200)
service.serve(Path(sys.argv[1]), answer, lambda: None, 600.0)
"""


@pytest.mark.fault(14, passes_when="a worker that takes too much ends at once and says so; started again, it answers")
def test_a_worker_that_takes_too_much_memory_ends_and_the_next_one_answers(tmp_path):
    path, log = tmp_path / "socket", tmp_path / "worker.log"
    words = [sys.executable, "-c", GREEDY, str(path)]
    context = Context(7, 3, {}, RecordDict(), {})
    with Supervisor([Program("worker", words, log, {"PYTHONPATH": str(ROOT)})]) as supervisor:
        until(path.exists, 60, "it does not listen")
        begun = time.monotonic()
        with pytest.raises(Unreachable):
            service.ask(path, question(name="greedy"), context)
        assert time.monotonic() - begun < 30, "it slept for 60 s, so the limit did not end it"
        until(lambda: not supervisor.states()["worker"].running, 10, "it lives")
        assert "took more than limits.memory_mb" in log.read_text()

        def answers():
            supervisor.look_after()
            with suppress(Unreachable):
                return service.ask(path, question(), context).has_content()

        until(answers, 60, "it was not started again")
        assert supervisor.states()["worker"].restarts == 1


# Row 15: training that hangs.

HANGS = """
import os, signal, sys, time
from pathlib import Path
from client import service
def answer(message, context):
    print(time.monotonic(), flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
service.serve(Path(sys.argv[1]), answer, lambda: print("ready", flush=True), float(sys.argv[2]))
"""


def question(deadline=None, name="1"):
    run = "{}" if deadline is None else json.dumps({"task": "heart", "limits": {"deadline_seconds": deadline}})
    with flower.identity(7):
        made = Message(messages.pack_request(run, {}, {}), dst_node_id=3, message_type=TRAIN)
    return flower.stamp(made, name, 7, flower.server_node())


@pytest.mark.fault(15, passes_when="a worker that is stopped ends at its deadline")
@pytest.mark.parametrize(("most", "deadline"), [(1.0, None), (1.0, 600.0), (600.0, 1.0)])
def test_a_worker_that_can_not_even_look_at_the_clock_is_ended_at_the_deadline(tmp_path, most, deadline):
    path = tmp_path / "socket"
    words = [sys.executable, "-c", HANGS, str(path), str(most)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            with pytest.raises(Unreachable):
                service.ask(path, question(deadline), Context(7, 3, {}, RecordDict(), {}))
            assert 1.0 <= time.monotonic() - float(process.stdout.readline()) < at_most(3.0)
            assert process.wait(5) == -signal.SIGKILL
        finally:
            process.kill()


# Row 18: data that are none, or not what they were.


def written(path, rows, label=None, columns=None, cells=None):
    """Write a hospital's file: so many made-up patients, with a name and number each."""
    names = columns or [*(column.name for column in COLUMNS), "num"]
    draw = np.random.default_rng(5)
    lines = [",".join(["name", "patient_id", *names])]
    for row in range(rows):
        values = {
            column.name: str(draw.choice(column.codes) if column.codes else int(max(column.low, 1)))
            for column in COLUMNS
        }
        values["num"] = str(row % 2 if label is None else label)
        values |= (cells or {}).get(row, {})
        lines.append(",".join([NAME, f"{NUMBER}{row}", *(values.get(name, "1") for name in names)]))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def told(site, file, code):
    """Make a site of a file; return all that this said and wrote in the clear."""
    said = here("hospital", "init", site, "--name", "east", "--task", "heart", "--data", file, code=code)
    kept = [path.read_bytes() for path in site.rglob("*") if path.is_file()] if site.exists() else []
    return said, b"\n".join([said.encode(), *kept])


DRIFTED = [column.name for column in COLUMNS if column.name != "chol"] + ["cholesterol_total", "num"]


@pytest.mark.fault(18, passes_when="an unusable file is refused; nothing of a patient is told")
@pytest.mark.parametrize(
    ("words", "because"),
    [
        ({"rows": 0}, "no rows|empty|no patients"),
        ({"rows": 40, "columns": DRIFTED}, "chol"),
        ({"rows": 40, "cells": {3: {"thal": NAME}}}, "thal"),
        ({"rows": 40, "cells": {3: {"trestbps": "1310173"}}}, "trestbps"),
    ],
)
def test_a_table_that_is_empty_or_has_drifted_is_refused_without_a_word_of_a_patient(tmp_path, words, because):
    file = written(tmp_path / "heart.csv", **words)
    said, everything = told(tmp_path / "site", file, code=1)
    assert re.search(because, said)
    for planted in (NAME, NUMBER, "1310173"):
        assert planted.encode() not in everything
    assert not list((tmp_path / "site").rglob("*.sealed"))


@pytest.mark.fault(18, passes_when="too few patients, or of one class: the policy decides")
@pytest.mark.parametrize(("rows", "label", "code"), [(1, None, "min_patients"), (50, 1, "min_patients"), (200, 1, "")])
def test_a_table_of_one_patient_or_one_class_is_a_matter_of_policy(tmp_path, rows, label, code):
    site = tmp_path / "site"
    said, everything = told(site, written(tmp_path / "heart.csv", rows, label), code=None)
    assert NAME.encode() not in everything
    if rows == 1 and "no patient is left for training" in said:
        return  # the hospital's key has drawn the one for the test
    opened = open_site(site)
    hospital = vault.unseal(
        resident.sealed(site, "heart"), task_of(Choice("heart")), opened.vault_key(), "east"
    ).hospital("east")
    rules = policy.read_policy(site / resident.POLICY)
    allow = replace(
        rules.allow,
        tasks=policy.Names(["heart"]),
        bundles=policy.Names(["b" * 64]),
        coordinators=policy.Names(["c" * 64]),
    )
    asked = policy.Asked(
        TRAIN,
        Choice("heart"),
        read_run({"task": "heart", "training": {"epochs": 5}}),
        "c" * 64,
        "b" * 64,
        round=1,
        cohort=COHORT,
        hospitals=4,
        rows=rows_of(hospital.train),
        parameters=500,
        rounds_today=0,
        hours_today=0.0,
    )
    try:
        policy.permits(replace(rules, allow=allow), asked)
        refused = ""
    except PolicyRefused as error:
        refused = error.code
    assert refused == code


@pytest.mark.fault(18, passes_when="a hospital of one class trains with the others, and its lone counts stay inside")
def test_a_hospital_of_one_class_does_no_harm_to_the_others(federation, tmp_path):
    """Two of its test patients are of the other class, fewer than the smallest cell of its rules."""

    def of_one_class(hospital):
        ill = np.arange(rows_of(hospital.test)) < 2
        train = {**hospital.train, "num": np.zeros(rows_of(hospital.train))}
        return replace(hospital, train=train, test={**hospital.test, "num": ill.astype(np.float64)})

    west = of_one_class(next(each for each in federation.hospitals if each.name == "west"))
    changed = replace(federation, hospitals=[west if each.name == "west" else each for each in federation.hospitals])
    (tmp_path / "site.toml").write_text(rules("west", smallest_cell=5), encoding="utf-8")
    context = Context(7, 3, {stub.BUNDLE: "b" * 64}, RecordDict(), {})
    own, left = [], []
    with AuditLog(tmp_path / "audit.jsonl", keys.generate("audit")) as log:
        gate = Gate(west, None, tmp_path / "site.toml", log, "c" * 64)

        def script(message, answer):
            gate.worker = lambda _message, _context: own.append(answer()) or own[-1]
            left.append(guarded(gate)(message, context))
            return left[-1]

        grid = changed.grid({"west": script})
        with flower.identity(grid.run.run_id):
            outcome = rounds.run(grid, Plan(changed.config(), cohort=COHORT))
    assert [sorted(record.answered) for record in outcome.rounds] == [list(COHORT)] * 3
    assert np.isfinite(outcome.model.weights).all()
    assert len(own) == len(left) > 3
    assert {"count/test", "test/confusion"} <= set().union(*map(lone_counts, own)), "the search finds them"
    assert [name for answer in left for name in lone_counts(answer)] == []


def rules(name, smallest_cell):
    """Return a hospital's rules under which it takes part in a tiny federation."""
    text = policy.template(name, "heart", "heart.csv").replace("min_patients = 50", "min_patients = 8")
    text = re.sub("smallest_cell = .*", f"smallest_cell = {smallest_cell}", text)
    for key, value in (("settings", "task.hidden=4"), ("bundles", "b" * 64), ("coordinators", "c" * 64)):
        text = policy.added(text, key, value)
    return text


def lone_counts(answer):
    """Return the names of all statistics of an answer in which a cell counts one to four patients."""
    statistics = messages.unpack_reply(answer.content).statistics
    counted = {"count", "task/count", "task/records", "confusion", "histogram"}
    return [
        name
        for name, values in statistics.items()
        if counted & {name, name.partition("/")[0], name.rpartition("/")[2]} and ((values > 0) & (values < 5)).any()
    ]


# What nobody may find.


def encodings(value):
    """Return the ways in which a text, or a number that is written as one, may stand among bytes."""
    text = value.encode()
    found = {
        text,
        text.hex().encode(),
        text[::-1],
        *(value.encode(f"utf-{bits}-{end}") for bits in (16, 32) for end in ("le", "be")),
    }
    found |= {base64.b64encode(bytes(shift) + text)[(shift * 8 + 5) // 6 :].rstrip(b"=")[:-1] for shift in range(3)}
    found |= {
        form
        for kind in (hashlib.md5, hashlib.sha1, hashlib.sha256)
        for form in (kind(text).digest(), kind(text).hexdigest().encode())
    }
    with suppress(ValueError):
        number = float(value)
        found |= {np.array(number, order + kind).tobytes() for order in "<>" for kind in ("f4", "f8")}
        found |= {np.array(int(number), f"{order}i8").tobytes() for order in "<>" if number.is_integer()}
    return found


PACKED = re.compile(rb"\x78[\x01\x5e\x9c\xda]|\x1f\x8b\x08|PK\x03\x04")
CHUNK = re.compile(rb"\r\n[0-9a-fA-F]+\r\n")


def layers(content):
    """Yield bytes as they are, without the frames of HTTP's pieces, and whatever is packed in them."""
    yield content
    yield CHUNK.sub(b"", content)
    for match in PACKED.finditer(content):
        begin, window = match.start(), 47
        if match[0] == b"PK\x03\x04":
            begin += 30 + sum(np.frombuffer(content[begin + 26 : begin + 30], "<u2").tolist())
            window = -15
        with suppress(zlib.error):
            yield zlib.decompressobj(window).decompress(content[begin : begin + (64 << 20)], 64 << 20)


def cells(path):
    """Yield all that a database holds, value by value: a page may divide one."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
        for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for row in database.execute(f'SELECT * FROM "{table}"'):
                yield from (value if isinstance(value, bytes) else str(value).encode() for value in row)


def holds(content, forms):
    return any(form in layer for layer in layers(content) for form in forms)


@pytest.mark.fault(18, passes_when="the search finds every encoding that it looks for")
def test_the_search_finds_what_is_there(tmp_path):
    for value in (NAME, NUMBER, CELL):
        for form in encodings(value):
            around = os.urandom(50) + form + os.urandom(50)
            packers = (bytes, zlib.compress, lambda data: b"4\r\n" + data[:52] + b"\r\n3a\r\n" + data[52:])
            assert all(holds(pack(around), encodings(value)) for pack in packers)
    text = f"x{NUMBER}y".encode()
    assert all(holds(base64.b64encode(b"z" * shift + text), encodings(NUMBER)) for shift in range(3))
    assert not holds(os.urandom(1 << 20), encodings(NAME))
    path = tmp_path / "some.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE t (a, b)")
        database.execute("INSERT INTO t VALUES (?, ?)", (NAME, np.float64(CELL).tobytes()))
    assert any(holds(each, encodings(NAME)) for each in cells(path))
    assert any(holds(each, encodings(CELL)) for each in cells(path))


# Row 20: many rounds.


@pytest.mark.slow
@pytest.mark.fault(20, passes_when="500 rounds in one process: memory, descriptors and threads stay")
@pytest.mark.timeout(600)
def test_five_hundred_rounds_leave_nothing_behind(federation):
    seen = {}

    def watch(record):
        if record.round in {200, 500}:
            resident_mb = resident._resident_mb()
            seen[record.round] = resident_mb, len([*Path("/proc/self/fd").iterdir()]), threading.active_count()

    federation.run({"rounds": 500, "evaluation": {"every": 0}}, watch=watch)
    (early, *before), (late, *after) = seen[200], seen[500]
    assert late - early < 3.0, "more than 1 MB in 100 rounds"
    assert after == before


# The whole federation.


def lines(path):
    """Return the records of the rounds of a run that is under way."""
    text = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in text[: text.rfind(b"\n") + 1].splitlines()]


class Run:
    """A run in a process of its own, and the records of its rounds as they come; used as a context, at whose end it is stopped as a user would."""

    def __init__(self, running, *words, rounds=200, **environment):
        folders, self.said = running.server / "runs", []
        before = set(folders.glob("*"))
        self.process = running.begin_run(*words, rounds=rounds, **environment)
        self._listening = threading.Thread(target=lambda: self.said.extend(self.process.stdout))
        self._listening.start()
        until(lambda: set(folders.glob("*")) - before, 60, lambda: f"no run began: {self.said}")
        (self.folder,) = set(folders.glob("*")) - before

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)
        self._listening.join(10)
        self.process.stdout.close()

    @property
    def rounds(self):
        return lines(self.folder / models.HISTORY)

    def wait_for(self, true, seconds, what):
        """Wait for a round that is not finished yet; return it."""
        begun = len(self.rounds)
        until(
            lambda: any(map(true, self.rounds[begun:])),
            seconds,
            lambda: f"{what}: {self.rounds[begun:]} {self.said[-5:]}",
        )
        return next(row for row in self.rounds[begun:] if true(row))


def training(running, hospital, after):
    """Wait until a hospital has begun to train in a round after so many lines of its log; return how many it has then."""

    def began():
        return any(
            line["event"] == "allowed" and line["fields"]["kind"] == "train" for line in running.audit(hospital)[after:]
        )

    until(began, 60, f"{hospital} does not train")
    return len(running.audit(hospital))


def finished(running, hospital):
    """Return when a hospital sent its last answer, in seconds of the clock."""
    sent = [line["time"] for line in running.audit(hospital) if line["event"] == "sent"]
    return datetime.fromisoformat(sent[-1]).timestamp()


@pytest.mark.slow
@pytest.mark.fault(
    1,
    passes_when="the round ends within 2 s of the loss being known; back in a later round; each training is in the log once",
)
@pytest.mark.timeout(600)
def test_a_hospital_killed_in_any_way_costs_its_update_and_comes_back(running):
    with Run(running, *LONG) as run:
        for what in ("worker", "node", "hospital", "everything"):
            run.wait_for(lambda row: "va" in row["answered"], 90, f"va was not there before its {what} was killed")
            training(running, "va", len(running.audit("va")))
            if what == "hospital":
                running.kill("va")
            elif what == "everything":
                running.kill_all("va")
            else:
                running.kill_program("va", what)
            killed = time.time()
            row = run.wait_for(lambda row: "va" not in row["answered"], 75, f"the round waits for the killed {what}")
            ended, others = time.time(), [finished(running, name) for name in ("cleveland", "hungarian")]
            assert {each["reason"] for each in row["dropped"]} <= {"worker", "lost"}, row["dropped"]
            # A worker's end is known at once, since its socket closes; that of all programs, when nothing comes from there any more.
            known = {"worker": killed, "everything": killed + gateway.LOST_SECONDS}.get(what)
            print(f"{what}: the round ended {ended - killed:.1f} s after")
            if known:
                assert ended - max(known, *others) < at_most(2.5)
            if what in {"hospital", "everything"}:
                running.start("va")
            run.wait_for(lambda row: "va" in row["answered"], 90, f"va did not come back after its {what} was killed")
    for hospital in HOSPITALS:
        trained = running.trained(hospital)
        assert len(trained) == len(set(trained)), "a training stands in the log twice"
    counted = [row["round"] for row in run.rounds if "va" in row["answered"]]
    (number,) = {each for each, *_ in running.trained("va")[-1:]}
    assert set(counted) <= {number_of for flower_run, number_of, _ in running.trained("va") if flower_run == number}


@pytest.mark.slow
@pytest.mark.fault(1, passes_when="killed before the run: in it from the first round on")
def test_a_hospital_whose_worker_is_killed_before_a_run_is_in_it_all_the_same(running):
    running.kill_program("va", "worker")
    record = running.run(rounds=1)
    assert record["rounds"][0]["answered"] == list(HOSPITALS)


@pytest.mark.slow
@pytest.mark.fault(2, passes_when="no aggregate of one; the run pauses, and goes on when the quorum is back")
@pytest.mark.timeout(600)
def test_a_run_of_which_one_hospital_is_left_pauses_until_there_are_two(running):
    with Run(running, *LONG) as run:
        run.wait_for(lambda row: len(row["answered"]) == 3, 90, "no round")
        for hospital in ("hungarian", "va"):
            running.kill(hospital)
        until(lambda: any("waits for" in line for line in run.said), 90, "it does not wait")
        alone = len(run.rounds)
        time.sleep(5)
        assert len(run.rounds) == alone
        running.start("va")
        run.wait_for(lambda row: row["answered"] == ["cleveland", "va"], 60, "it does not go on")
    running.start("hungarian")
    assert min(len(row["answered"]) for row in run.rounds) >= 2
    running.wait_for(HOSPITALS)


@pytest.fixture(scope="module")
def reference(running):
    """Return the weights of an undisturbed run of six rounds."""
    return running.run(*LONG, rounds=6)["weights_sha256"]


@pytest.mark.slow
@pytest.mark.fault(3, passes_when="the round loop killed: resumed within 10 s, bit-equal")
@pytest.mark.parametrize("moment", ["before the first round", "sending a round", "within a round"])
@pytest.mark.timeout(600)
def test_a_run_whose_process_was_killed_goes_on_at_once_and_ends_with_the_same_bits(running, reference, moment):
    before = len(running.audit("cleveland"))
    with Run(running, *LONG, rounds=6) as run:
        if moment != "before the first round":
            run.wait_for(lambda row: row["round"] == 2, 90, "no round")
            before = len(running.audit("cleveland"))
        if moment != "sending a round":
            training(running, "cleveland", before)
        run.process.kill()
    killed, asked = time.monotonic(), len(running.audit("va"))
    resumed = running.command("server", "resume", running.server, run.folder.name)
    until(lambda: any(line["event"] == "asked" for line in running.audit("va")[asked:]), 60, "nobody was asked")
    took = time.monotonic() - killed
    print(f"{moment}: asked again after {took:.1f} s")
    said, _ = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, said
    assert took < at_most(10)
    record = running.record(run.folder)
    assert [row["round"] for row in record["rounds"]] == [1, 2, 3, 4, 5, 6]
    assert record["weights_sha256"] == reference


@pytest.mark.slow
@pytest.mark.fault(3, passes_when="Flower and the gateway killed: started again, the run goes on by itself, bit-equal")
@pytest.mark.timeout(600)
def test_a_run_outlives_the_programs_of_the_coordinator(running, reference):
    with Run(running, *LONG, rounds=6) as run:
        run.wait_for(lambda row: row["round"] == 2, 90, "no round")
        running.kill("server")
        running.open()
        run.process.wait(at_most(150))
    assert run.process.returncode == 0, run.said[-5:]
    record = running.record(run.folder)
    assert record["weights_sha256"] == reference, [row["dropped"] for row in record["rounds"]]
    running.wait_for(HOSPITALS)


@pytest.fixture
def turned(tmp_path):
    """Give a clock that a test can turn."""
    if not clock.possible():
        pytest.skip("needs Linux and a C compiler")
    return clock.Clock(tmp_path)


def restarted(running, name, **environment):
    """Stop what was started under a name as a user would, and start it again."""
    running.processes[name].terminate()
    running.processes[name].wait(60)
    (running.open if name == "server" else partial(running.start, name))(**environment)
    running.wait_for(HOSPITALS, 150)


@pytest.mark.slow
@pytest.mark.fault(
    12,
    passes_when="a hospital's clock jumps 10 minutes ahead in a run: it is left out, the others go on, and it is back when its clock is right",
)
@pytest.mark.timeout(900)
def test_a_hospital_whose_clock_jumps_is_out_until_it_is_right(running, turned):
    restarted(running, "va", **turned.environment)
    with Run(running, *LONG) as run:
        run.wait_for(lambda row: "va" in row["answered"], 90, "va was not there")
        turned.set(600)
        row = run.wait_for(lambda row: "va" not in row["answered"], 120, "its clock does not matter")
        assert row["answered"] == ["cleveland", "hungarian"]
        assert {each["reason"] for each in row["dropped"]} == {"lost"}
        run.wait_for(lambda row: row["answered"] == ["cleveland", "hungarian"], 60, "the others do not go on")
        turned.set(0)
        run.wait_for(lambda row: "va" in row["answered"], 150, "va does not come back")
    assert "none of them changed" in here("hospital", "audit", "verify", running.site("va"))
    assert len(running.trained("va")) == len(set(running.trained("va")))
    restarted(running, "va")


@pytest.mark.slow
@pytest.mark.fault(
    12,
    passes_when="all clocks of the coordinator jump 4 minutes ahead and back in a run that takes everybody: no deadline passes, the weights are equal bit for bit",
)
@pytest.mark.timeout(900)
def test_a_coordinator_whose_clock_jumps_ends_with_the_same_bits(running, reference, turned):
    restarted(running, "server", **turned.environment)
    begun = time.monotonic()
    with Run(running, *LONG, "--set", "limits.quorum=1.0", rounds=6, **turned.environment) as run:
        for seconds in (240, 0):
            run.wait_for(lambda row: True, 120, "no round")
            turned.set(seconds)
        run.process.wait(at_most(300))
    record = running.record(run.folder)
    assert record["weights_sha256"] == reference, [row["dropped"] for row in record["rounds"]]
    assert 0 < sum(row["seconds"] for row in record["rounds"]) < time.monotonic() - begun
    assert "late" not in {each["reason"] for row in record["rounds"] for each in row["dropped"]}
    restarted(running, "server")


@pytest.fixture
def newer(tmp_path):
    """Give another release: the same code, in which one line is new, so that its bundle has another hash."""
    for name in ("client", "common", "server", "simulations"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "fedward.py", tmp_path)
    with (tmp_path / "common" / "__init__.py").open("a") as file:
        file.write("# Another release.\n")
    return {"PYTHONPATH": str(tmp_path)}


@pytest.mark.slow
@pytest.mark.fault(
    19,
    passes_when="the coordinator is upgraded in a run: hospitals refuse until they have approved it, and it goes on; rolled back in the same run, it goes on again, bit-equal",
)
@pytest.mark.timeout(900)
def test_a_run_outlives_an_upgrade_and_a_rollback(running, reference, newer):
    def resumed(**environment):
        process = running.command("server", "resume", running.server, run.folder.name, **environment)
        said, _ = process.communicate(timeout=at_most(150))
        return process.returncode, said

    with Run(running, *LONG, rounds=6) as run:
        run.wait_for(lambda row: row["round"] == 2, 90, "no round")
        run.process.kill()
    done = len(run.rounds)
    code, said = resumed(**newer)
    assert code != 0
    assert "left out for bundle" in said
    assert len(run.rounds) == done

    approved = {name: approve_what_waits(running, name) for name in HOSPITALS}
    assert len({*map(tuple, approved.values())}) == 1, "they were asked for different bundles"
    process = running.command("server", "resume", running.server, run.folder.name, **newer)
    until(lambda: len(run.rounds) > done, 120, "the new release does not go on")
    process.kill()
    process.communicate()

    code, said = resumed()
    assert code == 0, said
    record = running.record(run.folder)
    assert [row["round"] for row in record["rounds"]] == [1, 2, 3, 4, 5, 6]
    assert record["weights_sha256"] == reference


def approve_what_waits(running, name):
    """Approve at a hospital the bundles that it was asked for and does not know; return their hashes."""
    shown = here("hospital", "approve", running.site(name), "--show", "--json")
    waiting = [row["sha256"] for row in shown["bundles"] if not row["approved"]]
    for sha256_ in waiting:
        here("hospital", "approve", running.site(name), "--sha256", sha256_)
    return waiting


@pytest.mark.slow
@pytest.mark.fault(15, passes_when="the round ends at its deadline; the next run is not delayed")
@pytest.mark.timeout(600)
def test_a_hospital_that_hangs_is_left_out_at_the_deadline_and_back_in_the_next_run(running):
    before, worker = len(running.audit("va")), running.pids("va")["worker"]
    with Run(running, *LONG, "--set", "limits.deadline_seconds=12", rounds=2) as run:
        training(running, "va", before)
        os.kill(worker, signal.SIGSTOP)
        run.process.wait(90)
    dropped = [(each["hospital"], each["reason"]) for row in run.rounds for each in row["dropped"]]
    assert dropped
    assert set(dropped) <= {("va", "late"), ("va", "worker")}
    assert worker != running.pids("va").get("worker")
    begun = time.monotonic()
    assert running.run(rounds=1)["rounds"][0]["answered"] == list(HOSPITALS)
    assert time.monotonic() - begun < at_most(45)


@pytest.mark.slow
@pytest.mark.fault(
    18, passes_when="no planted value in any file, log, database, or in what passed between gateway and Flower"
)
def test_nothing_of_a_patient_is_in_any_file_or_in_what_was_sent(running):
    record = running.run(rounds=2)
    folder = running.server / "runs" / record["name"]
    saved = models.load(folder / models.NAME)
    preparation = saved.facts["preparation"]
    place = [column.name for column in COLUMNS].index("trestbps")
    patients = {column.name: np.array([float(CELL)]) for column in COLUMNS}
    encoded = task_of(Choice("heart")).encode(patients | {"num": np.zeros(1)}, preparation).x[0]
    forms = set().union(*map(encodings, (NAME, *NAME.split(), NUMBER, CELL)))
    # As the model sees it, with what stands beside it.
    forms |= {
        encoded[at : at + 2].astype("<f4").tobytes() for at in np.flatnonzero(np.isclose(encoded, encoded[place]))
    }
    sent = [bytes(each) for each in running.tap.heard]
    files = {str(path): path.read_bytes() for path in running.files()}
    database = list(cells(running.place.folder / "flower.db"))
    assert not [number for number, each in enumerate(sent) if holds(each, forms)]
    assert not [name for name, each in files.items() if holds(each, forms)]
    assert not [each[:80] for each in database if holds(each, forms)]
    # What was sent, written and stored is what was searched: the model as it travels, a hospital's name, the moments.
    weights = np.asarray(saved.state["weights"], "<f4")
    assert any(holds(each, {weights[:8].tobytes()}) for each in sent)
    assert any(holds(each, encodings("cleveland")) for each in database)
    assert any(holds(each, {b'"mean"'}) for each in files.values())
    assert sum(map(len, sent)) > 100_000
