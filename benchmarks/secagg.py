"""W4: secure sums of a million parameters, beside the bare keystream and Flower's own utilities.

``python benchmarks/secagg.py``. The keystream that the masks are made of is the limit; Flower's pseudo-random generator, shares and adding of arrays are the peer. Limit, ours and peer take
turns. A whole round goes through the product's round loop, grid, shields and hospitals that train nothing, with a tenth of them dropping out.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import QUIET, Row, median_ms, options, progress, show

os.environ.update(QUIET)
sys.path.insert(1, str(Path(__file__).parent.parent))

import numpy as np
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from flwr.app import Error, Message
from flwr.common.secure_aggregation.crypto import shamir
from flwr.common.secure_aggregation.ndarrays_arithmetic import parameters_addition
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

from client.app import Answer, Seat
from client.hospital import Hospital
from client.worker import State, Worker
from common import flower
from common.messages import TRAIN, Reply, Request
from common.secagg import masks, shares
from common.tasks import read_run
from server.plan import Plan
from server.records import Member, Part
from server.rounds import Coordinator, Fleet
from server.secagg import SecureSums
from simulations import secagg
from simulations.engines import grid_of

PARAMETERS = 1_000_000
PEERS = (10, 100)
HOSPITALS = 100
GONE = 10
"""One in so many hospitals drops out of the round."""


def keystream(seeds: list[bytes], data: bytes, into: bytearray) -> None:
    """Make the bytes that the masks of as many seeds are, and nothing of them."""
    for seed in seeds:
        Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor().update_into(data, into)


def flowers_masks(seeds: list[bytes], vector: list[Any]) -> list[Any]:
    """Add masks as Flower's clients do."""
    for seed in seeds:
        vector = parameters_addition(vector, pseudo_rand_gen(seed, 1 << 32, [(PARAMETERS,)]))
    return vector


def in_turns(repeats: int, *calls: Callable[[], object] | None) -> list[float | None]:
    """Return the median milliseconds of calls that take turns; None for one that is left out."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, found in zip(calls, times, strict=True):
            if call:
                found.append(median_ms(call, 3))
    return [statistics.median(found) if found else None for found in times]


def masking_rows(repeats: int, peers: bool) -> list[Row]:
    """Measure the masking of one hospital's vector, for ten neighbours and for a hundred."""
    vector, data, into = np.zeros(PARAMETERS, np.uint32), bytes(4 * PARAMETERS), bytearray(4 * PARAMETERS + 16)
    rows = []
    for count in PEERS:
        progress(f"masking for {count}")
        seeds = [os.urandom(32) for _ in range(count)]
        half = count // 2
        limit, ours, flowers = in_turns(
            repeats,
            lambda seeds=seeds: keystream(seeds, data, into),  # type: ignore[misc]
            lambda seeds=seeds, half=half: masks.apply(vector, seeds[:half], seeds[half:]),  # type: ignore[misc]
            (lambda seeds=seeds: flowers_masks(seeds, [np.zeros(PARAMETERS, np.int64)])) if peers else None,  # type: ignore[misc]
        )
        rows.append(Row(f"masking for {count} neighbours", "ms", ours, "times the limit", 1.5, limit=limit))
        rows.append(Row("  Flower's", "ms", ours, "times faster than the peer", 5.0, peer=flowers))
    return rows


def rebuilding_rows(repeats: int, peers: bool) -> list[Row]:
    """Measure how a coordinator puts a hundred hospitals' secrets together; Flower's are keys in PEM form."""
    progress("rebuilding seeds")
    needed = 66
    made = [shares.split(os.urandom(32), HOSPITALS, needed) for _ in range(HOSPITALS)]
    pem = ec.generate_private_key(ec.SECP384R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    flowers = shamir.create_shares(pem, needed, HOSPITALS)[:needed] if peers else []
    ours, one = in_turns(
        repeats,
        lambda: [shares.combine(dict(enumerate(each[:needed], 1))) for each in made],
        (lambda: shamir.combine_shares(flowers)) if peers else None,
    )
    peer = one * HOSPITALS / 1000 if one is not None else None
    seconds = ours / 1000 if ours is not None else None
    return [
        Row(f"rebuilding {HOSPITALS} hospitals' seeds", "s", seconds, "at most", 1.0),
        Row("  Flower's", "s", seconds, "times faster than the peer", 5.0, peer=peer),
    ]


class Still(Worker):
    """Trains nothing, and answers with an update that is there already."""

    def __init__(self) -> None:
        super().__init__()
        self._delta = np.random.default_rng(1).normal(0, 0.01, PARAMETERS).astype(np.float32)

    def answer(self, kind: str, hospital: Hospital, request: Request, state: State) -> Reply:
        """Answer any request to train."""
        del kind, hospital, request, state
        return Reply({"values": self._delta}, {"train/loss": np.array([0.5, 1.0])}, 100)


def round_of(neighbours: int, *, secure: bool, rounds: int = 3) -> tuple[float, int]:
    """Return the median seconds and the bytes of a round of all hospitals, a tenth of which drop out, without its first, in which keys are agreed on."""
    names = [f"hospital {number:03d}" for number in range(HOSPITALS)]
    settings = {"aggregation": secure, "neighbours": neighbours, "threshold": 0.75 if neighbours else 0.66}
    run = {"task": {"name": "heart"}, "rounds": rounds + 2, "evaluation": {"every": 0}, "secure": settings}
    plan, worker, shields = Plan(read_run(run)), Still(), secagg.shields(names, bytes(32))

    def around(message: Message, answer: Answer) -> Message:
        gone = message.metadata.message_type == TRAIN and (message.metadata.dst_node_id - 1) % GONE == 0
        return Message(Error(2, "dropout"), reply_to=message) if gone else answer()

    seats = [
        Seat(worker, Hospital(name, {}, {}, {}), around, shield) for name, shield in zip(names, shields, strict=True)
    ]
    grid = grid_of(seats)
    members = [Member(name, *(Part(100, [50, 50]),) * 3) for name in names]
    fleet = Fleet(dict(zip(names, grid.get_node_ids(), strict=True)), members, {})
    sums = SecureSums(plan.config, plan.text, grid.run.run_id, fleet.rows) if secure else None
    coordinator = Coordinator(grid, plan, fleet, "{}", "", sums)
    state = plan.strategy.init(np.zeros(PARAMETERS, np.float32), HOSPITALS)
    seconds, weighs = [], 0
    with flower.identity(grid.run.run_id):
        for number in range(1, rounds + 2):
            begun = time.perf_counter()
            record = coordinator.round(number, state)
            seconds.append(time.perf_counter() - begun)
            weighs = record.bytes_up + record.bytes_down
    return statistics.median(seconds[1:]), weighs


def round_rows() -> list[Row]:
    """Measure whole rounds, on a complete and on a sparse graph."""
    progress("rounds of 100 hospitals")
    _, plain = round_of(0, secure=False)
    rows = []
    for title, neighbours in (("everybody with everybody", 0), ("with 40 neighbours each", 40)):
        seconds, weighs = round_of(neighbours, secure=True)
        rows.append(Row(f"{HOSPITALS} hospitals, {title}, 10 % gone: a round", "s", seconds, "at most", 10.0))
        rows.append(Row("  its bytes beside a plain round's", "MB", weighs / 1e6, "of the peer", 1.1, peer=plain / 1e6))
    return rows


def main() -> None:
    """Measure and print."""
    args = options(__doc__ or "")
    rows = masking_rows(args.repeats, not args.no_peers) + rebuilding_rows(args.repeats, not args.no_peers)
    show("secagg", "W4: secure sums of 1,000,000 parameters", rows + round_rows(), args)


if __name__ == "__main__":
    main()
