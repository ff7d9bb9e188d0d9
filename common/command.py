"""What the sub-commands of the command line have in common; imports nothing heavy."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from common.archive import Kind


def add(
    commands: Any,
    act: Callable[[argparse.Namespace], int],
    prefix: str,
    meaning: str,
    example: str,
    description: str = "",
) -> argparse.ArgumentParser:
    """Add the command that ``example`` begins with, which does ``act``; ``prefix`` is what stands before it, as in ``fedward server``. Without a ``description`` its page begins with the meaning."""
    parser: argparse.ArgumentParser = commands.add_parser(
        example.split(maxsplit=1)[0],
        help=meaning,
        description=description or f"{meaning[0].upper()}{meaning[1:]}.",
        epilog=f"example: {prefix} {example}",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=act)
    return parser


def tell(args: argparse.Namespace, facts: Any, text: str) -> None:
    """Print what a command found out: ``facts`` where JSON is asked for, ``text`` otherwise."""
    print(json.dumps(facts, ensure_ascii=False, default=list) if args.json else text)
    sys.stdout.flush()


def restored(args: argparse.Namespace, kind: "Kind", what: str, start: str) -> int:
    """Make the folder ``args.folder`` of the backup ``args.file``; ``kind`` as the backup was written with, ``what`` and ``start`` for what is told."""
    from common import archive, keys

    name = archive.restore(args.file, args.folder, kind, keys.passphrase())
    text = f"Restored {what} {name!r} in {args.folder}.\nNext: {start} {args.folder}"
    tell(args, {"name": name, "folder": str(args.folder)}, text)
    return 0


def add_backup(parser: argparse.ArgumentParser) -> None:
    """Add the file that a backup is written to, or read from."""
    parser.add_argument("file", type=Path, help="the backup")
