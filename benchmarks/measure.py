"""The harness: repeats and medians, the memory of a process and its children, and one table for limit, peer and ours."""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

HERE = Path(__file__).parent
MEGABYTE = 1024 * 1024
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
"""Nothing calls home while it is measured."""

HEAD = ["", "unit", "limit", "peer", "ours", "ratio", "goal", "met?"]
MORE = ("times faster than the peer", "at least")
"""Goals that a larger ratio meets."""
Kind = Literal["times the limit", "times faster than the peer", "of the peer", "at most", "at least"]


@dataclass(frozen=True)
class Row:
    """One line: what was measured, the three numbers in one unit, and the goal. ``None`` stands for what could not be measured."""

    what: str
    unit: str
    ours: float | None
    kind: Kind
    goal: float
    limit: float | None = None
    peer: float | None = None

    @property
    def ratio(self) -> float | None:
        """Return the number that the goal is about."""
        pairs = {
            "times the limit": (self.ours, self.limit),
            "times faster than the peer": (self.peer, self.ours),
            "of the peer": (self.ours, self.peer),
        }
        above, below = pairs.get(self.kind, (self.ours, 1.0))
        return above / below if above is not None and below else None

    @property
    def met(self) -> bool | None:
        """Tell whether the goal is reached."""
        if self.ratio is None:
            return None
        return self.ratio >= self.goal if self.kind in MORE else self.ratio <= self.goal


def median_ms(call: Callable[[], object], repeats: int, warmup: int = 1) -> float:
    """Return the median time of a call, in milliseconds, after ``warmup`` calls that do not count."""
    for _ in range(warmup):
        call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1000.0 * statistics.median(times)


def between_ms(moments: Sequence[float], skip: int = 2) -> float:
    """Return the median distance of successive moments (seconds), in milliseconds, without the first ``skip`` distances."""
    distances = [later - earlier for earlier, later in itertools.pairwise(moments)]
    return 1000.0 * statistics.median(distances[skip:])


@dataclass(frozen=True)
class Ran:
    """A finished program: the JSON object it printed last, its time from start to end, and the peak memory of its process tree."""

    result: dict[str, Any]
    seconds: float
    megabytes: float


def run(
    python: Path | str, script: str, *words: str, environment: Mapping[str, str] | None = None, timeout: float = 1800
) -> Ran:
    """Run a script of this folder by the given Python and read the JSON object on its last line.

    Raises
    ------
    RuntimeError
        When it fails; the message holds the end of what it wrote.
    """
    command = [str(python), str(HERE / script), *words]
    settings = os.environ | QUIET | dict(environment or {})
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=settings) as process:
        watch = _Watch(process.pid)
        watch.start()
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        finally:
            watch.stop()
    seconds = time.perf_counter() - start
    lines = out.strip().splitlines()
    if process.returncode or not lines:
        raise RuntimeError(f"{' '.join(command[1:])} failed:\n{err[-2000:]}")
    return Ran(json.loads(lines[-1]), seconds, watch.peak / MEGABYTE)


def simulate_ms(settings: str, rounds: int, words: Sequence[str] = ()) -> float:
    """Run ``fedward simulate`` on a scenario given as TOML text; return the median milliseconds of a round, as its record has them.

    The first half is left out: that is where functions are compiled and worker processes start.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "benchmark.toml"
        file.write_text(settings, encoding="utf-8")
        command = [
            sys.executable,
            "fedward.py",
            "simulate",
            str(file),
            "--rounds",
            str(rounds),
            *words,
            "--out",
            folder,
            "--json",
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=HERE.parent, env=os.environ | QUIET
        )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    record = json.loads(done.stdout.strip().splitlines()[-1])
    return 1000.0 * float(statistics.median(row["seconds"] for row in record["rounds"][rounds // 2 :]))


class _Watch(threading.Thread):
    """Samples the proportional memory of a process and all below it until stopped; pages shared by several count once."""

    def __init__(self, pid: int, every: float = 0.25) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._pid, self._every, self._done = pid, every, threading.Event()

    def run(self) -> None:
        while not self._done.wait(self._every):
            self.peak = max(self.peak, sum(_memory(pid) for pid in _tree(self._pid)))

    def stop(self) -> None:
        """End the sampling."""
        self._done.set()
        self.join()


def _tree(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            children.setdefault(_parent(entry), []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def _parent(entry: Path) -> int:
    try:
        # The name, in brackets, may hold spaces: the fields are counted after it.
        return int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _memory(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def options(text: str, extend: Callable[[argparse.ArgumentParser], object] | None = None) -> argparse.Namespace:
    """Read the options that every benchmark has: ``--json``, ``--into``, ``--repeats`` and ``--no-peers``."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--into", type=Path, metavar="FILE", help="also put the table into a Markdown file, at its mark"
    )
    parser.add_argument("--repeats", type=int, default=3, help="how often limit and ours take turns; medians are shown")
    parser.add_argument("--no-peers", action="store_true", help="leave the peers out")
    if extend:
        extend(parser)
    return parser.parse_args()


def show(mark: str, title: str, rows: Sequence[Row], args: argparse.Namespace) -> None:
    """Print the rows as one table, or as JSON, as `options` say."""
    cells = [HEAD, *(_cells(row, "-" if args.no_peers else "not installed") for row in rows)]
    if args.json:
        table = [asdict(row) | {"ratio": row.ratio, "met": row.met} for row in rows]
        print(json.dumps({"title": title, "rows": table}, indent=1))
    else:
        widths = [max(len(line[column]) for line in cells) for column in range(len(HEAD))]
        print(title)
        for line in cells:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    if args.into:
        put(args.into, mark, title, cells)


def put(path: Path, mark: str, title: str, cells: Sequence[Sequence[str]]) -> None:
    """Replace what stands between ``<!-- mark -->`` and ``<!-- /mark -->`` by a Markdown table.

    Raises
    ------
    ValueError
        When the file does not have the mark.
    """
    text = path.read_text(encoding="utf-8")
    begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    if begin not in text or end not in text:
        raise ValueError(f"{path}: expected the marks {begin} and {end}")
    lines = ["| " + " | ".join(cell.strip() or " " for cell in line) + " |" for line in cells]
    lines.insert(1, "|---" * len(HEAD) + "|")
    day = datetime.now(UTC).date()
    block = "\n".join([f"{title}; measured {day} on {os.cpu_count()} cores.", "", *lines])
    head, tail = text.partition(begin)[0], text.partition(end)[2]
    path.write_text(f"{head}{begin}\n{block}\n{end}{tail}", encoding="utf-8")


def _cells(row: Row, absent: str) -> list[str]:
    sign = "≥" if row.kind in MORE else "≤"
    goal = f"{sign} {row.goal:g}" if row.kind in ("at most", "at least") else f"{sign} {row.goal:g} {row.kind}"
    met = {True: "yes", False: "NO", None: "-"}[row.met]
    peer = absent if row.peer is None and "peer" in row.kind else _number(row.peer)
    return [row.what, row.unit, _number(row.limit), peer, _number(row.ours), _number(row.ratio), goal, met]


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def progress(text: str) -> None:
    """Say on the error stream what is being measured."""
    print(f"... {text}", file=sys.stderr, flush=True)
