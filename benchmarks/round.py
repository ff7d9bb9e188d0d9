"""W1: a simulated round, beside the tight TensorFlow loop, Flower's TensorFlow template and pfl-research.

``python benchmarks/round.py``; the peers' columns need ``python benchmarks/peers.py`` once. Limit, ours and peers take turns, so that a machine whose
speed drifts treats all alike. Processor time is shown beside the clock: on a machine that does other work it is the truer of the two.
"""

import argparse
import os
import statistics
import sys
from collections.abc import Sequence

import peers
from measure import Kind, Row, between_ms, options, progress, run, show, simulate_ms
from work import CNN, HEART, Work

XLA = {"heart": ["xla"]}  # the compiler under which the limit is faster; see compilers.py
WORKERS = """
[task]
name = "pneumonia"
[training]
optimizer = "sgd"
augment = false
[evaluation]
every = 0
[simulation]
dataset = "pneumonia-synthetic"
hospitals = 10
partition = "iid"
comparators = false
"""
TEMPLATE = {"cnn": 50.0, "heart": 200.0}


def limit_ms(work: Work, rounds: int) -> tuple[float, float]:
    """Return the milliseconds of a round of the tight loop on one thread, by the clock and of the processor."""
    result = run(sys.executable, "limit.py", work.name, str(rounds), "1", *XLA.get(work.name, [])).result
    return statistics.median(result["rounds"]), statistics.median(result["cpu"])


def ours_ms(work: Work, rounds: int, kind: str = "simulate", words: Sequence[str] = ()) -> tuple[float, float]:
    """Return the milliseconds of one of our rounds, by the clock and of the processor."""
    result = run(sys.executable, "ours.py", kind, work.name, str(rounds), *words).result
    return between_ms(result["moments"]), between_ms(result["cpu"])


def peer_ms(peer: peers.Peer, work: Work, rounds: int) -> float | None:
    """Return the milliseconds of one of a peer's rounds."""
    ran = peers.measure(peer, work.name, rounds)
    return between_ms(ran.result["moments"]) if ran else None


def middle(values: Sequence[float | None]) -> float | None:
    """Return the median, or ``None`` when something could not be measured."""
    found = [value for value in values if value is not None]
    return statistics.median(found) if found else None


def rows_of(work: Work, args: argparse.Namespace) -> list[Row]:
    """Measure one work; limit, ours and peers take turns, and each figure is a median of as many runs."""
    limits, ours, ours_all, flower, pfl = [], [], [], [], []
    for number in range(args.repeats):
        progress(f"{work.name}: {number + 1} of {args.repeats}")
        limits.append(limit_ms(work, args.rounds))
        ours.append(ours_ms(work, args.rounds, words=("--set", "simulation.workers=1")))
        if not args.no_peers:
            ours_all.append(ours_ms(work, args.rounds, words=("--set", f"simulation.workers={os.cpu_count()}"))[0])
            flower.append(peer_ms(peers.FLOWER, work, 6))
            pfl.append(peer_ms(peers.PFL, work, 20))
    limit, wall = (statistics.median(pair[0] for pair in pairs) for pairs in (limits, ours))
    limit_cpu, cpu = (statistics.median(pair[1] for pair in pairs) for pairs in (limits, ours))
    title = f"{work.title}: {work.steps} steps"
    rows = [
        Row(title, "ms", wall, "times the limit", 1.2, limit=limit),
        Row("  the same in processor time", "ms", cpu, "times the limit", 1.2, limit=limit_cpu),
    ]
    if not args.no_peers:
        # Both peers use all cores; so do we where that is faster, as a long job finds out by itself.
        best = min(wall, statistics.median(ours_all))
        kind: Kind = "times faster than the peer"
        template = TEMPLATE[work.name]
        rows.append(Row("  Flower's template, all cores", "ms", best, kind, template, peer=middle(flower)))
        rows.append(Row("  pfl-research, all cores", "ms", best, kind, 2.0, peer=middle(pfl)))
    return rows


def empty_rows() -> list[Row]:
    """Measure rounds whose hospitals change nothing."""
    progress("empty rounds")
    return [
        Row("empty round, 4 hospitals, 593 parameters", "ms", ours_ms(HEART, 60, "empty")[0], "at most", 2.0),
        Row("  with its checkpoint", "ms", ours_ms(HEART, 60, "empty-saved")[0], "at most", 5.0),
        Row("  10 of 100 hospitals, 346,561 parameters", "ms", ours_ms(CNN, 30, "empty")[0], "at most", 20.0),
    ]


def worker_rows(rounds: int) -> list[Row]:
    """Measure a round of 10 hospitals with one worker process and with two; the peer here is one."""
    progress("one worker and two")
    one, two = (simulate_ms(WORKERS, rounds, ("--set", f"simulation.workers={count}")) for count in (1, 2))
    return [
        Row(
            "CNN, 10 hospitals x 140 images: two workers against one",
            "ms",
            two,
            "times faster than the peer",
            1.6,
            peer=one,
        )
    ]


def main() -> None:
    """Measure and print."""

    def extend(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--rounds", type=int, default=20, help="rounds of one measurement")
        parser.add_argument("--only", choices=(CNN.name, HEART.name, "empty", "workers"), help="measure one part")

    args = options(__doc__ or "", extend)
    rows: list[Row] = []
    for work in (CNN, HEART):
        rows += rows_of(work, args) if args.only in (None, work.name) else []
    rows += empty_rows() if args.only in (None, "empty") else []
    rows += worker_rows(args.rounds) if args.only in (None, "workers") else []
    show("round", "W1: a simulated round", rows, args)


if __name__ == "__main__":
    main()
