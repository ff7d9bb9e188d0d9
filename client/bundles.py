"""Bundles of code that came with runs, and what of them is looked at before one is approved; nothing in them is executed, only shown.

What runs at a hospital is what is installed there. The bundle that was approved last is kept in the site's folder, so that the next one, and the next release, can be held against it.
"""

import difflib
import hashlib
import sys
import zipfile
import zlib
from collections.abc import Collection, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from common.errors import DataError

FOLDER, APPROVED = "bundles", "approved.fab"
"""In the site's folder: the bundles that the stub kept, and the one that was approved last."""
MOST_SHOWN = 64 << 20
"""Bytes of a bundle's files that are unpacked to be shown; a small bundle may claim any number."""

Files = Mapping[str, list[str]]
"""The lines of each file."""


def waiting(site: Path) -> dict[str, bytes]:
    """Return the bundles that the stub kept, by hash; a file that is not what its name says is nothing to approve."""
    contents = {}
    for file in sorted((site / FOLDER).glob("*.fab")):
        try:
            # No links and no pipes: another user may write here, see site.stub_group.
            if file.is_file() and not file.is_symlink():
                contents[file.stem] = file.read_bytes()
        except OSError as error:
            print(f"{file}: cannot be read ({error.strerror}), and is left out", file=sys.stderr)
    return {name: content for name, content in contents.items() if hashlib.sha256(content).hexdigest() == name}


def last(site: Path, approved: Collection[str]) -> bytes | None:
    """Return the bundle that was approved last; None where none was, or it is on the list no more.

    Raises
    ------
    DataError
        When it cannot be read.
    """
    path = site / APPROVED
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); mend its rights, or delete it") from None
    return content if hashlib.sha256(content).hexdigest() in approved else None


def facts(own: bytes, kept: Mapping[str, bytes], approved: Collection[str], before: bytes | None) -> dict[str, Any]:
    """Return what is to be known before one is approved: what is installed here, how it differs from what was approved ``before``, and the same of all that is ``kept``."""
    digest, known = hashlib.sha256(own).hexdigest(), files_of(before) if before else None
    installed = files_of(own) or {}
    return {
        "own": digest,
        "own_approved": digest in approved,
        "files": {name: _facts(lines) for name, lines in sorted(installed.items())},
        "last_approved": hashlib.sha256(before).hexdigest() if before else None,
        "differs": [] if known is None else difference(installed, known, "installed", "approved"),
        "bundles": [
            {"sha256": name, "approved": name in approved, "differs": _judged(files_of(content), installed, known)}
            for name, content in kept.items()
        ],
    }


def text(found: Mapping[str, Any], *, files: bool) -> str:
    """Write `facts` for people, with or without the installed ``files``."""
    lines = [
        f"Installed here: {found['own']}  {'approved' if found['own_approved'] else 'not approved'}. This is what will run, whatever a run brings."
    ]
    if files:
        lines += [f"  {each['sha256'][:16]} {each['lines']:>5} lines  {name}" for name, each in found["files"].items()]
    if found["last_approved"] is None:
        lines.append("Nothing that was approved is kept here, so there is nothing to hold it against.")
    elif found["differs"]:
        lines += [f"It differs from what was approved last, {found['last_approved']}:", *found["differs"]]
    else:
        lines.append("It is what was approved last.")
    for row in found["bundles"]:
        lines += [f"{row['sha256']}  {'approved' if row['approved'] else 'waits'}", row["differs"]]
    return "\n".join(lines)


def _facts(lines: list[str]) -> dict[str, Any]:
    return {"lines": len(lines), "sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest()}


def _judged(new: Files | None, installed: Files, approved: Files | None) -> str:
    """Say line by line how a bundle differs from what was approved last, else from what is installed."""
    if new is None:
        return "  damaged, or too large to be shown; do not approve it"
    if new == installed:
        return "  the same as what is installed here"
    old, label = (installed, "installed") if approved is None else (approved, "approved")
    return "\n".join(difference(new, old, "run", label)) or "  the same as what was approved last"


def difference(new: Files, old: Files, name: str, before: str) -> list[str]:
    """Return the lines in which files differ; ``name`` and ``before`` stand for the two in the names of files."""
    lines: list[str] = []
    for file in sorted(new.keys() | old.keys()):
        there, here = old.get(file, []), new.get(file, [])
        lines += difflib.unified_diff(there, here, f"{before}/{file}", f"{name}/{file}", lineterm="")
    return list(map(_visible, lines))


def _visible(line: str) -> str:
    """Write out what would make a terminal hide or reorder a line: it came from the coordinator, and is about to be judged by eye."""
    return "".join(letter if letter.isprintable() or letter == "\t" else f"\\u{ord(letter):04x}" for letter in line)


def files_of(bundle: bytes) -> Files | None:
    """Return the lines of each file; None for what cannot be read, or would fill the memory."""
    try:
        with zipfile.ZipFile(BytesIO(bundle)) as archive:
            files = [file for file in archive.infolist() if not file.filename.startswith(".info/")]
            if sum(file.file_size for file in files) > MOST_SHOWN:
                return None
            return {file.filename: archive.read(file).decode("utf-8", "replace").split("\n") for file in files}
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError):
        return None
