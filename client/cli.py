"""``fedward hospital``: prepare a hospital's data, join a federation, and answer it under the hospital's own rules."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import command
from common.command import tell
from common.errors import DataError, FedwardError, UsageError

if TYPE_CHECKING:
    from client.site import Site

PASSPHRASE = "FEDWARD_PASSPHRASE"  # noqa: S105 - the name of a variable
USER, STUB_USER = "fedward", "fedward-stub"
OTHERS_MB = 1024
"""Memory of the programs beside the worker, whose own limit stands in site.toml."""
TEST_SHARE = 0.2
EXAMPLES = {
    "init": "init ./site --data /srv/heart.csv --task heart --name 'St Mary'",
    "import": "import ./site",
    "join": "join ./site admitted.json --fingerprint 3f:9a:...",
    "approve": "approve ./site --show",
    "check": "check ./site",
    "start": "start ./site",
    "stub": "stub ./site",
    "status": "status ./site",
    "stop": "stop ./site",
    "backup": "backup ./site site.backup",
    "restore": "restore site.backup ./site",
    "service": "service ./site --out ./units",
    "audit": "audit verify ./site",
    "policy": "policy show ./site",
    "ledger": "ledger ./site",
}


def add_parsers(subparsers: Any) -> None:
    """Add the commands."""
    parser = subparsers.add_parser(
        "hospital",
        help="take part in a federation as a hospital",
        description=f"Prepare a hospital's data, join a federation, and answer it under the hospital's own rules. FOLDER is the site's own; "
        f"{PASSPHRASE} in the environment seals or opens its keys.",
        epilog="example: fedward hospital init ./site --data /srv/heart.csv --task heart --name 'St Mary'",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    init = _add(commands, "init", initialise, "make keys, policy and request, and read the data if they are given")
    init.add_argument("--name", help="the hospital's name, under which it asks to be admitted (default: the folder's)")
    init.add_argument("--task", required=True, help="the task that the data are for")
    init.add_argument(
        "--data", type=Path, help="file or folder with the patients; it is read, and a sealed copy is kept"
    )
    _add(commands, "import", import_, "read the data again, as site.toml says")
    join_ = _add(commands, "join", join, "join the federation that admitted this hospital")
    join_.add_argument("admitted", type=Path, help="the file that the coordinator sent")
    join_.add_argument("--fingerprint", required=True, help="as the coordinator read it out on the telephone")
    approve_ = _add(commands, "approve", approve, "look at the code of a run, and approve it")
    approve_.add_argument(
        "--show",
        action="store_true",
        help="print what will run, file by file, what waits, and how each differs from what was approved last",
    )
    approve_.add_argument("--sha256", metavar="HASH", help="approve the bundle with this hash")
    approve_.add_argument("--own", action="store_true", help="approve the bundle of the version that is installed here")
    _add(commands, "check", check, "look whether all is well before the start, and what to mend")
    _add(commands, "ledger", ledger, "show what was spent of the patients' privacy, and what is left")
    _add_running(commands)
    _add(commands, "audit", verify, "verify the audit log", verb="verify")
    about = "show the policy in force, or every setting and rule that there is"
    policy_ = _add(commands, "policy", policy, about, verb="show", needed=False)
    policy_.add_argument("--markdown", action="store_true", help="print every setting and rule, as in docs/policy.md")


def _add_running(commands: Any) -> None:
    start_ = _add(commands, "start", start, "answer the federation; runs until it is stopped")
    start_.add_argument(
        "--health",
        type=int,
        metavar="PORT",
        help="port of 127.0.0.1 where /health and /metrics answer (default: that of the last start, or any)",
    )
    start_.add_argument("--without-stub", action="store_true", help="leave the stub to another user; see stub")
    _add(commands, "stub", stub, "be the stub of a site, as a user that cannot read its patients and keys")
    _add(commands, "status", status, "show programs, federation, and the last request")
    _add(commands, "stop", stop, "stop answering")
    backup_ = _add(commands, "backup", backup, f"keep all of the folder in one file, sealed where {PASSPHRASE} is set")
    command.add_backup(backup_)
    _add(commands, "restore", restore, "make a folder, new or empty, of a backup")
    service_ = _add(commands, "service", service, "print units for systemd and a container file, or write them")
    service_.add_argument("--out", type=Path, metavar="DIR", help="folder to write them into")
    service_.add_argument("--user", default=USER, help=f"user that the programs run as (default: {USER})")
    service_.add_argument(
        "--stub-user",
        default=STUB_USER,
        help=f"user that the stub runs as, where site.stub_group is set (default: {STUB_USER})",
    )


def _add(
    commands: Any,
    name: str,
    act: Callable[[argparse.Namespace], int],
    meaning: str,
    *,
    verb: str = "",
    needed: bool = True,
) -> argparse.ArgumentParser:
    """Add a command on a site's folder, with the one ``verb`` that it has, if any, before it; both may be left out where they are not ``needed``."""
    parser = command.add(commands, act, "fedward hospital", meaning, EXAMPLES[name])
    if name == "restore":
        command.add_backup(parser)
    nargs = None if needed else "?"
    if verb:
        parser.add_argument("verb", choices=[verb], nargs=nargs, help="the one thing that it does")
    parser.add_argument("folder", type=Path, nargs=nargs, help="the site's folder")
    return parser


def initialise(args: argparse.Namespace) -> int:
    """Run ``fedward hospital init``."""
    from client import policy, site
    from client.resident import POLICY
    from common import joining, keys

    data = str(args.data.resolve()) if args.data else ""
    name = joining.check_name("--name", args.folder.resolve().name if args.name is None else args.name)
    # An unknown task is refused here, before there is a folder.
    text = policy.template(name, args.task, data) + _data_section(args.task)
    made = site.create(args.folder, name, args.task, keys.passphrase())
    keys.replace({args.folder / POLICY: text.encode()})
    told = (
        _import(made)
        if args.data
        else f"No data yet: name the file in {args.folder / POLICY}, then: fedward hospital import {args.folder}"
    )
    request = args.folder / site.REQUEST
    tell(
        args,
        {"name": made.name, "folder": str(args.folder), "request": str(request), "data": told},
        f"{told}\n\nMade the site of {made.name!r} in {args.folder}; its private keys never leave {args.folder / 'keys'}.\n"
        f"Read {args.folder / POLICY}: what is not allowed there is refused.\nNext: send {request} to the coordinator.",
    )
    return 0


def import_(args: argparse.Namespace) -> int:
    """Run ``fedward hospital import``."""
    told = _import(_opened(args.folder))
    tell(args, {"data": told}, told)
    return 0


def _import(site: "Site") -> str:
    """Read, check, de-identify, split and seal the hospital's file; return the reports."""
    from client import resident
    from client.data import deidentify, reading, schema, split, vault
    from client.policy import read_policy
    from common.config import Choice, loads
    from common.tasks import task_of

    path = site.folder / resident.POLICY
    task = task_of(Choice(site.task))
    source = read_policy(path).site.data
    if not source:
        raise UsageError(f"{path}: site.data: expected the file or folder with the patients")
    mapping = schema.mapping_of(loads(path.read_text(encoding="utf-8"), str(path)).get("data", {}), task)
    imported = reading.read(Path(source), task, mapping)
    if imported.report.refused:
        print(imported.report.text(), file=sys.stderr)
        raise DataError(
            f"the data were not taken; mend the file, or say in {path} how it is written, then: fedward hospital import {site.folder}"
        )
    clean = deidentify.deidentify(imported, task, site.vault_key())
    parts = split.split(clean, task, site.vault_key(), test=TEST_SHARE)
    sealed = resident.sealed(site.folder, site.task)
    sealed.parent.mkdir(mode=0o700, exist_ok=True)
    vault.seal(sealed, parts, task, site.vault_key(), site.name)
    counts = ", ".join(f"{name} {count['rows']}" for name, count in parts.counts().items())
    return f"{imported.report.text()}\n{clean.found.text()}\nSealed in {sealed}: {counts}."


def _data_section(task: str) -> str:
    from client.data import schema
    from common.config import Choice
    from common.tasks import task_of

    return "\n" + schema.commented(task_of(Choice(task)))


def join(args: argparse.Namespace) -> int:
    """Run ``fedward hospital join``."""
    from client import policy
    from client.resident import POLICY
    from common import joining

    site = _opened(args.folder)
    site.join(joining.read_document(args.admitted), args.fingerprint)
    joined = site.federation or {}
    policy.add(args.folder / POLICY, "coordinators", joined["fingerprint"])
    tell(
        args,
        dict(joined),
        f"Joined {joined['federation']!r} at {joined.get('address') or 'an address that is not known yet'}.\n"
        f"Next: fedward hospital approve {args.folder} --own, then: fedward hospital start {args.folder}",
    )
    return 0


def approve(args: argparse.Namespace) -> int:
    """Run ``fedward hospital approve``."""
    from client import bundles, policy
    from client.resident import POLICY
    from common import deployment, flower, keys

    flower.check_version()
    flower.quiet()
    own, path = deployment.bundle(), _unopened(args.folder).folder / POLICY
    known, waiting = policy.read_policy(path).allow.bundles, bundles.waiting(args.folder)
    chosen = own.sha256 if args.own else args.sha256
    if chosen:
        if not args.own and chosen not in waiting:
            raise UsageError(
                f"{chosen[:80]!r}: no run asked for such a bundle; 'fedward hospital approve {args.folder} --show' prints those that wait"
            )
        policy.add(path, "bundles", chosen)
        # After it: only what is on the list counts as approved.
        keys.replace({args.folder / bundles.APPROVED: {**waiting, own.sha256: own.content}[chosen]})
        tell(args, {"approved": chosen}, f"Approved {chosen}.")
        return 0
    facts = bundles.facts(own.content, waiting, known, bundles.last(args.folder, known))
    tell(args, facts, bundles.text(facts, files=args.show))
    return 0


def check(args: argparse.Namespace) -> int:
    """Run ``fedward hospital check``."""
    from client import preflight as hospital
    from common import flower, preflight

    flower.quiet()
    found = hospital.check(_opened(args.folder))
    tell(args, preflight.facts(found), preflight.text(found))
    return preflight.exit_code(found)


def start(args: argparse.Namespace) -> int:
    """Run ``fedward hospital start``."""
    from client import programs
    from common import flower, keys

    flower.check_version()
    flower.quiet()
    site = _opened(args.folder)
    for name in (keys.PASSPHRASE, keys.CREDENTIALS):
        os.environ.pop(name, None)  # the programs that need it are given it; Flower's node and the stub are not
    programs.start(
        site, lambda text: tell(args, {"connected": text}, text), stub=not args.without_stub, health_port=args.health
    )
    tell(args, {"stopped": str(args.folder)}, "stopped")
    return 0


def stub(args: argparse.Namespace) -> int:
    """Run ``fedward hospital stub``."""
    from client import programs

    programs.serve_stub(args.folder, lambda text: tell(args, {"answering": text}, text))
    return 0


def status(args: argparse.Namespace) -> int:
    """Run ``fedward hospital status``."""
    from client import status as states

    facts = states.facts(_unopened(args.folder))
    tell(args, facts, states.text(facts))
    return 0


def stop(args: argparse.Namespace) -> int:
    """Run ``fedward hospital stop``."""
    from client import programs
    from common import supervise

    pid = supervise.stop(_unopened(args.folder).folder / programs.RUN)
    tell(args, {"stopped": pid}, "Stopped.")
    return 0


def backup(args: argparse.Namespace) -> int:
    """Run ``fedward hospital backup``."""
    from client import site
    from common import archive, keys

    made, secret = _unopened(args.folder), keys.passphrase()
    sealed = keys.is_sealed(args.folder / "keys" / "tls.key")
    if sealed and secret is not None:
        _opened(args.folder)  # a passphrase that was mistyped would open nothing later
    count = archive.write(args.folder, args.file, site.BACKUP, made.name, secret)
    tell(args, *archive.told(args.file, count, sealed=secret is not None, bare_keys=not sealed))
    return 0


def restore(args: argparse.Namespace) -> int:
    """Run ``fedward hospital restore``."""
    from client import site

    return command.restored(args, site.BACKUP, "the site of", "fedward hospital start")


def service(args: argparse.Namespace) -> int:
    """Run ``fedward hospital service``."""
    from client.policy import read_policy
    from client.resident import POLICY
    from common import keys, services

    site, folder = _unopened(args.folder), args.folder.resolve()
    policy = read_policy(folder / POLICY)
    group, memory = policy.site.stub_group, policy.limits.memory_mb + OTHERS_MB
    joined = site.federation or {}
    main = services.Service(
        "fedward-hospital",
        f"Fedward, hospital {site.name}",
        ["hospital", "start", str(folder), *(["--without-stub"] if group else [])],
        args.user,
        folder,
        memory_mb=memory,
        addresses=services.addresses_of(joined.get("address") or ""),
        credential="/etc/fedward/passphrase" if keys.is_sealed(folder / "keys" / "tls.key") else "",
    )
    apart = services.Service(
        "fedward-stub",
        f"Fedward, stub of hospital {site.name}",
        ["hospital", "stub", str(folder)],
        args.stub_user,
        folder / "bundles",
        group,
        512,
        ["localhost"],
        "AF_UNIX AF_INET",
        hidden=[folder / "data", folder / "keys"],
        after="fedward-hospital.service",
    )
    files = {f"{each.name}.service": services.unit(each) for each in (main, *([apart] if group else []))}
    options = f"--memory {memory}m --volume {folder}:/site"
    files["Containerfile.hospital"] = services.containerfile("hospital", "/site", ["start", "/site"], options)
    tell(args, files, services.told(files, args.out))
    return 0


def verify(args: argparse.Namespace) -> int:
    """Run ``fedward hospital audit verify``."""
    from client.resident import AUDIT
    from common import chain

    path = args.folder / AUDIT
    broken = chain.verify(path, _opened(args.folder).audit_key().public_key())
    if broken:
        raise FedwardError(f"{path}: {broken}")
    count = len(path.read_bytes().splitlines())
    tell(args, {"lines": count, "intact": True}, f"{path}: {count} lines, none of them changed.")
    return 0


def ledger(args: argparse.Namespace) -> int:
    """Run ``fedward hospital ledger``."""
    from dataclasses import asdict

    from client.ledger import NAME, read
    from client.policy import read_policy
    from client.resident import POLICY
    from common.privacy.events import RELATION

    _unopened(args.folder)
    privacy = read_policy(args.folder / POLICY).privacy
    with read(args.folder / NAME) as opened:
        spent, rows = opened.spent(privacy.delta), opened.table(privacy.delta)
    left = max(privacy.budget - spent, 0.0)
    facts = {"budget": privacy.budget, "delta": privacy.delta, "relation": RELATION, "spent": spent, "left": left}
    lines = [
        f"Of epsilon {privacy.budget:g} at delta {privacy.delta:g} ({RELATION}), {spent:.3g} is spent and {left:.3g} left.",
        *(
            f"  {row.study or 'no study'}, {row.task}, unit {row.unit}: epsilon {row.epsilon:.3g} in {row.charges} charges, {row.unused} of them never marked as used"
            for row in rows
        ),
    ]
    tell(args, facts | {"studies": [asdict(row) for row in rows]}, "\n".join(lines))
    return 0


def policy(args: argparse.Namespace) -> int:
    """Run ``fedward hospital policy``."""
    from client.policy import markdown, read_policy
    from client.resident import POLICY
    from common.config import as_table, dumps

    if args.markdown:
        print(markdown())
        return 0
    if args.folder is None:
        raise UsageError("expected: fedward hospital policy show FOLDER, or --markdown for every setting and rule")
    table = as_table(read_policy(_unopened(args.folder).folder / POLICY))
    tell(args, table, dumps(table))
    return 0


def _opened(folder: Path) -> "Site":
    from client.site import open_site
    from common import keys

    return open_site(folder, keys.passphrase())


def _unopened(folder: Path) -> "Site":
    """Return a site of which no key is asked for."""
    from client.site import open_site

    return open_site(folder)
