"""Kills a coordinator at one instant after the other, has another one go on, and prints a line of JSON for each: what was left, and what came of it.

The round loop, the checkpoints and the folder are the real ones; hospitals are in this process and answer with numbers that follow from the round. Each
coordinator is a fork, since loading TensorFlow takes seconds.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from common import flower

flower.quiet()
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tensorflow as tf  # noqa: F401 - loaded here, once, before the forks
from flwr.app import Error, Message

from client.app import Seat
from client.hospital import Hospital
from client.worker import Worker
from common import messages, wire
from common.config import merge
from common.messages import Reply
from common.seeds import seed_for
from common.tasks import read_run
from server import models, rounds
from server.plan import Plan
from server.records import sha256
from simulations.datasets import DATASETS
from simulations.datasets.fetch import load
from simulations.engines import grid_of

ROUNDS, NAMES, SEED = 12, ("east", "north", "west"), 7
SETTINGS = {"task": {"name": "heart", "hidden": 2000}, "rounds": ROUNDS, "strategy": {"name": "fedadam"}}
STEP = 0.005
"""Seconds that an answer takes at least, where the instant is a time: so it always comes before the end."""
WRITING = ("open", "os.truncate", "os.rename", "os.remove")


def instants():
    """Return twenty instants: after a time, or at the so many-th message, sum or step of writing."""
    draw = random.Random(SEED)
    times = [("time", draw.random()) for _ in range(5)]
    counted = {"mid-round": ROUNDS * len(NAMES), "aggregating": ROUNDS * (len(NAMES) + 1), "writing": ROUNDS * 3}
    return times + [(kind, draw.randrange(1, most)) for kind, most in counted.items() for _ in range(5)]


def answer(message, honest):
    """Answer as a hospital would; to training with numbers that follow from the round, the hospital and the model."""
    kind = message.metadata.message_type
    if kind == messages.STATISTICS:
        return honest()
    if kind != messages.TRAIN:
        return Message(Error(1, "left"), reply_to=message)
    request, name = messages.unpack_request(message.content), message.metadata.dst_node_id
    weights, number = request.arrays["weights"], request.options["server-round"]
    noise = np.random.default_rng(seed_for(number, name)).normal(size=len(weights)).astype(np.float32)
    arrays, _ = wire.encode_with_feedback(request.config.update, 0.1 * noise - weights / 8, None)
    statistics = {"train/loss": np.array([number, 1.0])}
    return Message(messages.pack_reply(Reply(arrays, statistics, int(name) % 5 + 1)), reply_to=message)


def coordinate(folder, told, kind="", number=0.0):
    """Train in a folder, going on where there is something; with a ``kind``, die at that instant."""
    count = Count(int(number) if kind != "time" else 0)

    def around(message, honest):
        if kind == "time":
            time.sleep(STEP)
        if kind == "mid-round" and message.metadata.message_type == messages.TRAIN:
            count.down()
        return answer(message, honest)

    def watch(record):
        if kind == "time" and record.round == 1:
            signal.setitimer(
                signal.ITIMER_REAL, max(number, 1e-4)
            )  # whose signal ends a process that does not expect it
        told.append((record.round, time.monotonic()))

    if kind == "writing":
        sys.addaudithook(
            lambda event, words: count.down() if event in WRITING and str(folder) in str(words[0]) else None
        )
    if kind == "aggregating":
        sys.setprofile(lambda frame, event, _: count.down() if event == "call" and summing(frame) else None)
    data = load(DATASETS["heart"])
    parts = {
        name: {key: values[at * 60 : at * 60 + 60] for key, values in data.records.items()}
        for at, name in enumerate(NAMES)
    }
    grid = grid_of([Seat(Worker(), Hospital(name, part, part, part), around) for name, part in parts.items()])
    with flower.identity(grid.run.run_id):
        return rounds.run(grid, Plan(read_run(merge({}, SETTINGS))), folder, watch)


def summing(frame):
    return frame.f_code.co_name in {"accumulate", "finish"} and "strategies" in frame.f_code.co_filename


class Count:
    """Dies at zero."""

    def __init__(self, left):
        self.left = left

    def down(self):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def forked(work):
    """Run in a fork, which writes what comes of it to a pipe; return that, and the signal that ended it."""
    out, into = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(into, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(into)
    with os.fdopen(out) as file:
        text = file.read()
    return json.loads(text or "null"), os.WTERMSIG(os.waitpid(child, 0)[1])


def whole(folder):
    """Run in a folder to the end; return what came of it, and how long it took to the first round."""
    told, begun = [], time.monotonic()
    outcome = coordinate(folder, told)
    times = [when for _, when in told]
    return {
        "sha256": sha256(outcome.model.weights),
        "history": [record.round for record in outcome.rounds],
        "rounds": [number for number, _ in told],
        "first": times[0] - begun if times else 0.0,
    }


def main():
    root = Path(sys.argv[1])
    undisturbed = fresh(root / "undisturbed", whole)[0]
    print(json.dumps(undisturbed), flush=True)
    for at, (kind, number) in enumerate(instants()):
        when = number * STEP * len(NAMES) * (ROUNDS - 1) if kind == "time" else number
        folder = root / str(at)
        signalled = fresh(folder, lambda place: coordinate(place, [], kind, when) and None)[1]  # noqa: B023 - called at once
        saved = models.load(folder / models.NAME)
        left = [record["round"] for record in models.history(folder, saved)] if saved else []
        files = [path.name for path in folder.iterdir()]
        after = forked(lambda: whole(folder))[0]  # noqa: B023
        row = {"instant": [kind, number], "signal": signalled, "left": left, "files": files, "after": after}
        print(json.dumps(row), flush=True)


def fresh(folder, work):
    folder.mkdir()
    return forked(lambda: work(folder))


main()
