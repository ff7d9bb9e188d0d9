"""The stub: takes the messages of this hospital's node, hands them to the worker, and sends back its answers.

``python -m client.stub FLOWER SECRET SOCKET BUNDLES``: the address of the node's run-time service, the file of its secret, the worker's socket, and the
folder of bundles. It needs no access to patients, keys or policy, and can be run as a user that has none. The bundle that comes with a
run is not executed: the worker is told its hash, and a run of code that the hospital has not approved gets no answer but a refusal.
"""

import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from common import deployment, flower, salt
from common.deployment import Bundle, Received, Tasks
from common.errors import FedwardError

if TYPE_CHECKING:
    from flwr.app import Message

BUNDLE = "bundle"
"""Under this name the worker is told the hash of the bundle that came with the run; its policy decides."""

MOST_BUNDLES, MOST_BYTES = 16, 64 << 20
"""How many bundles are kept to be looked at, and how many bytes of them, the newest; whoever runs a federation may send as many as it likes."""

_log = logging.getLogger(__name__)


def serve(tasks: Tasks, worker: Path, bundles: Path) -> None:
    """Answer messages for ever."""
    for task in tasks.wait():
        try:
            with task.message(tasks.more) as received:
                received.reply = answer(received, worker, bundles)
        except FedwardError as error:
            _log.warning("not answered: %s", error)
        except Exception:  # noqa: BLE001 - whatever went wrong with one message, the next one is answered
            _log.exception("a message could not be answered")


def answer(received: Received, worker: Path, bundles: Path) -> "Message":
    """Return the worker's answer, or that there was none."""
    from flwr.app import Error, Message

    from client import service
    from client.app import FAILED

    received.context.node_config[BUNDLE] = received.bundle.sha256
    try:
        keep(received.bundle, bundles)
        return salt.salted(service.ask(worker, salt.desalted(received.message), received.context))
    except (FedwardError, OSError) as error:
        _log.warning("not answered: %s", error)
        return Message(Error(FAILED, "worker"), reply_to=received.message)


def keep(bundle: Bundle, bundles: Path) -> None:
    """Keep a bundle that was not seen before, to be looked at; all of it or nothing. The oldest make room: one that is approved is not needed here."""
    path = bundles / f"{bundle.sha256}.fab"
    if not path.exists():
        _make_room(bundles, len(bundle.content))
        part = path.with_suffix(".part")
        part.write_bytes(bundle.content)
        # The hospital's own user is to read it, whatever this one's mask; the folder's group is the one that both are in.
        os.chown(part, -1, bundles.stat().st_gid)
        part.chmod(0o640)
        part.replace(path)


def _make_room(bundles: Path, size: int) -> None:
    """Remove the oldest bundles until one of so many bytes fits in."""
    if size > MOST_BYTES:
        raise FedwardError(f"a bundle of {size} bytes came with a run, and {MOST_BYTES} is the most that is kept")
    for part in bundles.glob("*.part"):
        part.unlink()  # a crash left it
    kept = sorted((file.stat().st_mtime_ns, file.stat().st_size, file) for file in bundles.glob("*.fab"))
    total = sum(each for _, each, _ in kept)
    while kept and (len(kept) >= MOST_BUNDLES or total + size > MOST_BYTES):
        _, least, oldest = kept.pop(0)
        oldest.unlink()
        total -= least


def main() -> None:
    """Serve with what the command line says."""
    flower.check_version()
    flower.quiet()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    address, secret, worker, bundles = sys.argv[1:]
    # Flower's way to end a process whose task is no more, as after its node was killed; this one is started again.
    with suppress(KeyboardInterrupt):
        serve(Tasks(address, Path(secret).read_bytes(), deployment.CLIENT), Path(worker), Path(bundles))


if __name__ == "__main__":
    main()
