"""``fedward server``: make a federation, admit hospitals, run it."""

import argparse
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.config import assign, merge
from common.errors import DataError, FedwardError, UsageError

if TYPE_CHECKING:
    from server.provision import Federation

PORT = 8443
LISTEN = f"0.0.0.0:{PORT}"


def add_parsers(subparsers: Any) -> None:
    """Add the commands."""
    parser = subparsers.add_parser(
        "server",
        help="coordinate a federation of real hospitals",
        description="Make a federation, admit hospitals, and train with them. FOLDER is the federation's own.",
        epilog="example: fedward server init ./federation --host fedward.example.org",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    init = _add(
        commands,
        "init",
        initialise,
        "make a federation: authority, gateway, token",
        "./federation --host fedward.example.org",
    )
    init.add_argument("--name", help="its name (default: that of the folder)")
    init.add_argument(
        "--host",
        action="append",
        default=[],
        help="name or address by which hospitals reach it, as often as needed (default: this machine alone)",
    )
    init.add_argument("--port", type=int, default=PORT, help=f"port at which they reach it (default: {PORT})")
    admit_ = _add(commands, "admit", admit, "admit a hospital, or renew its certificate", "./federation request.json")
    admit_.add_argument("request", type=Path, help="the request.json that the hospital made")
    admit_.add_argument(
        "--out", type=Path, help="where the answer is written (default: admitted-NAME.json beside the request)"
    )
    revoke_ = _add(commands, "revoke", revoke, "take a hospital's admission back, at once", "./federation 'St Mary'")
    revoke_.add_argument("name", help="the hospital's name")
    _add_running(commands)


def _add_running(commands: Any) -> None:
    start_ = _add(
        commands,
        "start",
        start,
        "open the door to hospitals; runs until it is stopped",
        "./federation --listen 0.0.0.0:8443",
    )
    start_.add_argument(
        "--listen", default=LISTEN, metavar="HOST:PORT", help=f"where hospitals connect (default: {LISTEN})"
    )
    run_ = _add(
        commands, "run", run, "train a task with the hospitals that are connected", "./federation heart --rounds 20"
    )
    run_.add_argument("task", help="the task, by name")
    run_.add_argument("--rounds", type=int, metavar="N", help="rounds of training")
    run_.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any setting, as often as needed; see docs/settings.md",
    )
    resume_ = _add(commands, "resume", resume, "go on with a run that was interrupted", "./federation heart-0001")
    resume_.add_argument("name", help="the run's name, such as heart-0001")
    _add(commands, "status", status, "show hospitals and runs", "./federation")
    _add(commands, "stop", stop, "close the door", "./federation")


def _add(
    commands: Any, name: str, act: Callable[[argparse.Namespace], int], meaning: str, example: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=meaning,
        description=meaning[0].upper() + meaning[1:] + ".",
        epilog=f"example: fedward server {name} {example}",
    )
    parser.add_argument("folder", type=Path, help="the federation's folder")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=act)
    return parser


def initialise(args: argparse.Namespace) -> int:
    """Run ``fedward server init``."""
    from server import provision

    federation = provision.create(args.folder, args.name or args.folder.resolve().name, args.host, args.port)
    told = {"name": federation.name, "folder": str(args.folder), "fingerprint": federation.fingerprint}
    _tell(
        args,
        told,
        f"Made the federation {federation.name!r} in {args.folder}.\n\nFingerprint, to read out on the telephone:\n  {federation.fingerprint}\n\n"
        f"Next: fedward server start {args.folder}",
    )
    return 0


def admit(args: argparse.Namespace) -> int:
    """Run ``fedward server admit``."""
    from common import joining
    from server import provision

    federation = provision.open_federation(args.folder)
    answer = federation.admit(joining.read_document(args.request))
    out = args.out or args.request.with_name(f"admitted-{answer['name'].replace(' ', '-')}.json")
    try:
        out.write_bytes(joining.document_bytes(answer))
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror}); choose another place with --out") from None
    _tell(
        args,
        {"name": answer["name"], "file": str(out), "fingerprint": federation.fingerprint},
        f"Admitted {answer['name']!r}. Send it {out}; it holds no secret.\nThe hospital then types:\n"
        f"  fedward hospital join FOLDER {out.name} --fingerprint {federation.fingerprint}",
    )
    return 0


def revoke(args: argparse.Namespace) -> int:
    """Run ``fedward server revoke``."""
    from server import provision

    member = provision.open_federation(args.folder).revoke(args.name)
    _tell(
        args,
        {"name": member.name, "revoked": member.revoked},
        f"{member.name!r} is revoked; its next request is refused.",
    )
    return 0


def start(args: argparse.Namespace) -> int:
    """Run ``fedward server start``."""
    from common import flower
    from server import coordinator, provision

    flower.check_version()
    flower.quiet()
    federation = provision.open_federation(args.folder)
    coordinator.start(federation, *_address(args.listen))
    return 0


def _address(listen: str) -> tuple[str, int]:
    """Return host and port."""
    host, _, port = listen.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 2**16:
        raise UsageError(f"--listen {listen}: expected an address and a port, such as {LISTEN}")
    return host.strip("[]"), int(port)


def run(args: argparse.Namespace) -> int:
    """Run ``fedward server run``."""
    from common.tasks import read_run
    from server import runs

    federation = _opened(args.folder)
    short = {"task": {"name": args.task}} | ({"rounds": args.rounds} if args.rounds is not None else {})
    config = read_run(merge(short, assign(args.set)))
    return _train(args, federation, runs.new_folder(federation.folder / "runs", config.task.name), config)


def resume(args: argparse.Namespace) -> int:
    """Run ``fedward server resume``."""
    from server import runs

    federation = _opened(args.folder)
    folder = federation.folder / "runs" / args.name
    return _train(args, federation, folder, runs.reopen(folder))


def _train(args: argparse.Namespace, federation: "Federation", folder: Path, config: Any) -> int:
    from server import coordinator, runs

    def show(record: Any) -> None:
        if not args.json:
            print(runs.line(record), flush=True)

    command = f"fedward server resume {args.folder} {folder.name}"
    here = None if args.json else coordinator.online(federation)
    if here is not None:
        print(f"{folder.name}: connected {', '.join(here) or 'nobody yet'}", flush=True)
    try:
        record = runs.run(federation, config, folder, show)
    except KeyboardInterrupt:
        kept = f"what is finished is kept: go on with '{command}'" if folder.exists() else "no round was finished yet"
        raise FedwardError(f"stopped; {kept}") from None
    _tell(args, record, f"\n{runs.summary(record)}\n\nThe run is in {folder}")
    return 0


def status(args: argparse.Namespace) -> int:
    """Run ``fedward server status``."""
    from server import coordinator, runs

    federation = _opened(args.folder)
    online = coordinator.online(federation)
    facts = {
        "name": federation.name,
        "running": online is not None,
        "hospitals": [
            {
                "name": member.name,
                "task": member.task,
                "online": member.name in (online or ()),
                "revoked": member.revoked or None,
            }
            for member in federation.members()
        ],
        "runs": runs.listed(federation.folder / "runs"),
    }
    _tell(args, facts, _status_text(facts))
    return 0


def _status_text(facts: dict[str, Any]) -> str:
    lines = [f"{facts['name']}: {'running' if facts['running'] else 'not running'}"]
    for row in facts["hospitals"]:
        state = "revoked" if row["revoked"] else "connected" if row["online"] else "not connected"
        lines.append(f"  hospital  {row['name']:24} {row['task']:12} {state}")
    lines += [
        f"  run       {row['name']:24} {row['state']:12} {row['rounds']} of {row['of']} rounds" for row in facts["runs"]
    ]
    return "\n".join(lines)


def stop(args: argparse.Namespace) -> int:
    """Run ``fedward server stop``."""
    from server import coordinator

    pid = coordinator.running(_opened(args.folder))
    if pid is None:
        raise UsageError(f"{args.folder}: is not running")
    os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + 30
    while coordinator.running(_opened(args.folder)):
        if time.monotonic() > end:
            raise FedwardError(f"{args.folder}: process {pid} has not stopped within 30 s; look at the logs under run/")
        time.sleep(0.1)
    _tell(args, {"stopped": pid}, "Stopped.")
    return 0


def _opened(folder: Path) -> "Federation":
    from common import flower
    from server import provision

    flower.check_version()
    flower.quiet()
    return provision.open_federation(folder)


def _tell(args: argparse.Namespace, facts: Any, text: str) -> None:
    print(json.dumps(facts, ensure_ascii=False) if args.json else text)
    sys.stdout.flush()
