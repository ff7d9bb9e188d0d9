"""Preflight: what would keep a folder's programs from running well, looked for by trying it, and said in one line with what to mend."""

import os
import platform
import shutil
import stat
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from common import certificates, flower
from common.errors import FedwardError

HEALTH = "/fedward/health"
"""The gateway's route that says it is well, to members alone."""
RELEASE, CLOCK = "fedward-release", "fedward-clock"
"""Headers of its answer: the coordinator's release of Fedward, and its time in seconds since 1970."""
LEAST_DISK_MB, GOOD_DISK_MB = 200, 2000
NEEDED_MB = 1000
"""Memory that either side takes: a hospital's worker of the heart task 720 MB and the programs beside it 300 MB; a coordinator with its model about as much."""

Level = Literal["ok", "warn", "FAIL"]


@dataclass(frozen=True)
class Finding:
    """What one check found: how bad it is, and in one line what it is and, unless all is well, what to mend."""

    level: Level
    text: str


Check = Callable[[], Finding]
Findings = dict[str, Finding]
"""By the check's name, in the order in which they were looked at."""


def ok(text: str) -> Finding:
    """Return that all is well."""
    return Finding("ok", text)


def warn(text: str) -> Finding:
    """Return what does not keep the programs from running."""
    return Finding("warn", text)


def fail(text: str) -> Finding:
    """Return what does."""
    return Finding("FAIL", text)


def look(checks: Mapping[str, Check], *, until_failure: bool = False) -> Findings:
    """Make checks, one after another; ``until_failure`` where each rests on those before it. An error that a check raises is its failure."""
    found: Findings = {}
    for name, check in checks.items():
        try:
            found[name] = check()
        except (FedwardError, OSError) as error:
            found[name] = fail(str(error))
        if until_failure and found[name].level == "FAIL":
            break
    return found


def exit_code(found: Findings) -> int:
    """Return 0 where nothing failed, else 1."""
    return int(any(finding.level == "FAIL" for finding in found.values()))


def text(found: Findings) -> str:
    """Write findings for people, one a line."""
    return "\n".join(f"{finding.level:4}  {name:12}  {finding.text}" for name, finding in found.items())


def facts(found: Findings) -> dict[str, Any]:
    """Write findings for machines."""
    return {
        "ok": not exit_code(found),
        "checks": [{"check": name, **asdict(finding)} for name, finding in found.items()],
    }


def folder(path: Path) -> Finding:
    """Look whether this user, and no other, can write into a folder."""
    try:
        facts, user = path.stat(), os.geteuid()
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        return fail(f"{path}: cannot be written into ({error.strerror}); free space, or mend its rights or its disk")
    mode = stat.S_IMODE(facts.st_mode)
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        return fail(f"{path}: others may change what is in it (mode {mode:o}); mend it with: chmod 700 {path}")
    if facts.st_uid != user:
        return warn(f"{path}: belongs to user {facts.st_uid}, and this is user {user}; check and run it as its owner")
    if mode & (stat.S_IRGRP | stat.S_IRWXO):
        return warn(f"{path}: others may look into it (mode {mode:o}); mend it with: chmod 700 {path}")
    return ok(f"{path}: this user's alone")


def disk(path: Path, least: int = LEAST_DISK_MB, good: int = GOOD_DISK_MB) -> Finding:
    """Look for free space, in MB."""
    free = shutil.disk_usage(path).free // 10**6
    told = f"{free} MB are free"
    if free < least:
        return fail(f"{told}, and below {least} MB the next files would be lost; free space")
    return warn(f"{told}; logs and models grow, so have {good} MB or more") if free < good else ok(told)


def memory(needed: int, most: int, *, running: bool) -> Finding:
    """Look for free memory, in MB: what the programs need, unless they have it already, and the most that they may take."""
    free = available_mb()
    told = f"{free} MB are free"
    if running or free >= most:
        return ok(told + (", beside the programs that run" if running else ""))
    if free < needed:
        return fail(f"{told}, and {needed} MB are needed; end other programs, or add memory")
    return warn(
        f"{told}, and up to {most} MB may be taken: the system could end any program then; add memory, or lower the limit"
    )


def available_mb(machine: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the memory that can be had, in MB: the machine's, or that of the container that this runs in where it has less."""
    rows = (line.split() for line in machine.read_text(encoding="ascii").splitlines())
    free = next(int(row[1]) for row in rows if row[0] == "MemAvailable:") * 1024
    try:
        limit, used = ((group / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return free // 10**6
    return (free if limit == "max" else min(free, int(limit) - int(used))) // 10**6


def versions() -> Finding:
    """Look for the one Flower that fits."""
    flower.check_version()
    return ok(f"Fedward {version('fedward')}, Flower {version('flwr')}, Python {platform.python_version()}")


def lifetime(pem: bytes, early: timedelta, soon: str, over: str) -> Finding:
    """Look how long a certificate still counts; ``soon`` and ``over`` say what to mend when less than ``early`` is left, or nothing."""
    certificate, now = certificates.load(pem, "certificate"), certificates.now()
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < begin:
        return fail(f"counts from {begin:%Y-%m-%d %H:%M} UTC on, and here it is {now:%Y-%m-%d %H:%M}; set this clock")
    if end < now:
        return fail(f"expired at {end:%Y-%m-%d %H:%M} UTC, and here it is {now:%Y-%m-%d %H:%M}; {over}")
    told = f"made {(now - begin).days} days ago, {(end - now).days} days left"
    return warn(f"{told}; {soon}") if end - now < early else ok(told)
