"""``fedward server``: make a federation, admit hospitals, run it."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import command
from common.command import tell
from common.config import assign, merge
from common.errors import DataError, FedwardError, UsageError, nearest

if TYPE_CHECKING:
    from server.provision import Federation

PORT = 8443
LISTEN = f"0.0.0.0:{PORT}"
USER = "fedward"
PATIENT = {"limits": {"wait_seconds": 600.0}}
"""Settings of runs with real hospitals, which come back, where nothing else is set."""


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
    check_ = _add(
        commands, "check", check, "look whether all is well before the start, and what to mend", "./federation"
    )
    check_.add_argument("--listen", default=LISTEN, metavar="HOST:PORT", help=f"as of start (default: {LISTEN})")
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
    start_.add_argument(
        "--health",
        type=int,
        metavar="PORT",
        help="port of 127.0.0.1 where /health and /metrics answer (default: that of the last start, or any)",
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
    audit_ = _add(
        commands,
        "audit",
        audit,
        "show what the hospitals' audit logs promised, or hold a log against it",
        "./federation 'St Mary' --log audit.jsonl",
    )
    audit_.add_argument("hospital", nargs="?", help="one hospital's name (default: all)")
    audit_.add_argument("--log", type=Path, help="the hospital's audit log, to be held against what it promised")
    audit_.add_argument(
        "--put-aside", action="store_true", help="keep what it promised elsewhere and begin anew, as its log does"
    )
    _add(commands, "stop", stop, "close the door", "./federation")
    _add_keeping(commands)


def _add_keeping(commands: Any) -> None:
    backup_ = _add(
        commands,
        "backup",
        backup,
        "keep all of the folder in one file, sealed where FEDWARD_PASSPHRASE is set",
        "./federation federation.backup",
    )
    command.add_backup(backup_)
    _add(
        commands,
        "restore",
        restore,
        "make a folder, new or empty, of a backup",
        "federation.backup ./federation",
    )
    service_ = _add(
        commands,
        "service",
        service,
        "print a unit for systemd and a container file, or write them",
        "./federation --out ./units",
    )
    service_.add_argument("--listen", default=LISTEN, metavar="HOST:PORT", help=f"as of start (default: {LISTEN})")
    service_.add_argument("--out", type=Path, metavar="DIR", help="folder to write them into")
    service_.add_argument("--user", default=USER, help=f"user that the programs run as (default: {USER})")


def _add(
    commands: Any, name: str, act: Callable[[argparse.Namespace], int], meaning: str, example: str
) -> argparse.ArgumentParser:
    parser = command.add(commands, act, "fedward server", meaning, f"{name} {example}")
    if name == "restore":
        command.add_backup(parser)
    parser.add_argument("folder", type=Path, help="the federation's folder")
    return parser


def initialise(args: argparse.Namespace) -> int:
    """Run ``fedward server init``."""
    from server import provision

    federation = provision.create(args.folder, args.name or args.folder.resolve().name, args.host, args.port)
    told = {"name": federation.name, "folder": str(args.folder), "fingerprint": federation.fingerprint}
    tell(
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
    tell(
        args,
        {"name": answer["name"], "file": str(out), "fingerprint": federation.fingerprint},
        f"Admitted {answer['name']!r}. Send it {out}; it holds no secret.\nThe hospital then types, with the fingerprint that you read out on the telephone,"
        f" since whoever alters what you send would alter it there too:\n  fedward hospital join FOLDER {out.name} --fingerprint {federation.fingerprint}",
    )
    return 0


def revoke(args: argparse.Namespace) -> int:
    """Run ``fedward server revoke``."""
    from server import provision

    member = provision.open_federation(args.folder).revoke(args.name)
    tell(
        args,
        {"name": member.name, "revoked": member.revoked},
        f"{member.name!r} is revoked; its next request is refused.",
    )
    return 0


def check(args: argparse.Namespace) -> int:
    """Run ``fedward server check``."""
    from common import flower, preflight
    from server import preflight as coordinator
    from server import provision

    flower.quiet()
    found = coordinator.check(provision.open_federation(args.folder), *_address(args.listen))
    tell(args, preflight.facts(found), preflight.text(found))
    return preflight.exit_code(found)


def start(args: argparse.Namespace) -> int:
    """Run ``fedward server start``."""
    from common import flower
    from server import coordinator, provision

    flower.check_version()
    flower.quiet()
    federation = provision.open_federation(args.folder)
    coordinator.start(federation, *_address(args.listen), lambda text: tell(args, {"open": text}, text), args.health)
    tell(args, {"stopped": str(args.folder)}, "stopped")
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
    from server import records

    federation = _opened(args.folder)
    short = {"task": {"name": args.task}} | ({"rounds": args.rounds} if args.rounds is not None else {})
    config = read_run(merge(merge(PATIENT, short), assign(args.set)))
    return _train(
        args, federation, records.new_folder(federation.folder / "runs", config.task.name, mode=0o700), config
    )


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

    again = f"fedward server resume {args.folder} {folder.name}"
    here = None if args.json else coordinator.online(federation)
    if here is not None:
        print(f"{folder.name}: connected {', '.join(here) or 'nobody yet'}", flush=True)
    try:
        record = runs.run(federation, config, folder, show)
    except KeyboardInterrupt:
        kept = f"what is finished is kept: go on with '{again}'" if folder.exists() else "no round was finished yet"
        raise FedwardError(f"stopped; {kept}") from None
    tell(args, record, f"\n{runs.summary(record)}\n\nThe run is in {folder}")
    return 0


def audit(args: argparse.Namespace) -> int:
    """Run ``fedward server audit``."""
    from server import provision

    federation = provision.open_federation(args.folder)
    known, damaged = federation.survey()
    members = [member for member in known if args.hospital in (None, member.name)]
    if args.hospital is None and (args.log or args.put_aside):
        raise UsageError("--log and --put-aside are for one hospital; expected its name")
    if args.hospital and not members:
        names = [member.name for member in known]
        raise UsageError(f"no hospital {args.hospital!r} is admitted; {nearest(args.hospital, names)}")
    witness = federation.witness
    if args.log:
        lines = witness.verify(members[0], args.log)
        text = f"{args.log}: holds all {lines} lines that {args.hospital!r} promised."
        tell(args, {"hospital": args.hospital, "promised": lines, "intact": True}, text)
    elif args.put_aside:
        aside = witness.put_aside(members[0])
        text = (
            f"What {args.hospital!r} promised is in {aside} now." if aside else f"{args.hospital!r} promised nothing."
        )
        tell(args, {"hospital": args.hospital, "put_aside": aside and str(aside)}, text)
    else:
        lines_of = witness.heads()
        rows = [
            f"{member.name:24} {f'{lines_of[member.name]} lines promised' if member.name in lines_of else 'DAMAGED'}"
            for member in members
        ]
        rows += [f"DAMAGED {error}" for error in damaged]
        tell(args, {member.name: lines_of.get(member.name) for member in members}, "\n".join(rows))
    return 0


def status(args: argparse.Namespace) -> int:
    """Run ``fedward server status``."""
    from server import coordinator, runs

    federation = _opened(args.folder)
    online = coordinator.online(federation)
    members, damaged = federation.survey()
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
            for member in members
        ],
        "damaged": [str(error) for error in damaged],
        "runs": runs.listed(federation.folder / "runs"),
    }
    tell(args, facts, _status_text(facts))
    return 0


def _status_text(facts: dict[str, Any]) -> str:
    lines = [f"{facts['name']}: {'running' if facts['running'] else 'not running'}"]
    for row in facts["hospitals"]:
        state = "revoked" if row["revoked"] else "connected" if row["online"] else "not connected"
        lines.append(f"  hospital  {row['name']:24} {row['task']:12} {state}")
    lines += [f"  DAMAGED   {text}" for text in facts["damaged"]]
    lines += [
        f"  run       {row['name']:24} {row['state']:12} {row['rounds']} of {row['of']} rounds" for row in facts["runs"]
    ]
    return "\n".join(lines)


def stop(args: argparse.Namespace) -> int:
    """Run ``fedward server stop``."""
    from common import supervise
    from server import coordinator, provision

    pid = supervise.stop(provision.open_federation(args.folder).folder / coordinator.RUN)
    tell(args, {"stopped": pid}, "Stopped.")
    return 0


def backup(args: argparse.Namespace) -> int:
    """Run ``fedward server backup``."""
    from common import archive, keys
    from server import provision

    federation, secret = provision.open_federation(args.folder), keys.passphrase()
    count = archive.write(args.folder, args.file, provision.BACKUP, federation.name, secret)
    tell(args, *archive.told(args.file, count, sealed=secret is not None, bare_keys=True))
    return 0


def restore(args: argparse.Namespace) -> int:
    """Run ``fedward server restore``."""
    from server import provision

    return command.restored(args, provision.BACKUP, "the federation", "fedward server start")


def service(args: argparse.Namespace) -> int:
    """Run ``fedward server service``."""
    from common import services
    from server import provision

    federation, folder = provision.open_federation(args.folder), args.folder.resolve()
    host, port = _address(args.listen)
    main = services.Service(
        "fedward-server",
        f"Fedward, federation {federation.name}",
        ["server", "start", str(folder), "--listen", args.listen],
        args.user,
        folder,
        low_port=port < 1024,
    )
    inside = ["start", "/federation", "--listen", f"{host}:{port}"]
    options = f"--publish {port}:{port} --volume {folder}:/federation"
    files = {
        f"{main.name}.service": services.unit(main),
        "Containerfile.server": services.containerfile("server", "/federation", inside, options),
    }
    tell(args, files, services.told(files, args.out))
    return 0


def _opened(folder: Path) -> "Federation":
    from common import flower
    from server import provision

    flower.check_version()
    flower.quiet()
    return provision.open_federation(folder)
