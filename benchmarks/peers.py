"""The peers' environments: each framework in a virtual environment of its own, never in the product's.

``python benchmarks/peers.py`` makes them (minutes, and about 4 GB); the benchmarks print 'not installed' where one is missing. They lie in
``$FEDWARD_PEERS``, or in the user's cache folder.
"""

import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

from measure import Ran, progress, run


@dataclass(frozen=True)
class Peer:
    """A framework to compare with: what to install, and the script of this folder that does the work with it."""

    name: str
    packages: tuple[str, ...]
    script: str

    @property
    def python(self) -> Path:
        """Return the Python of its environment."""
        cache = os.environ.get("FEDWARD_PEERS") or Path.home() / ".cache" / "fedward" / "peers"
        return Path(cache) / self.name / "bin" / "python"

    @property
    def installed(self) -> bool:
        """Tell whether the environment is complete."""
        return (self.python.parent.parent / "complete").exists()


FLOWER = Peer("flower", ("flwr[simulation]==1.41.*", "tensorflow==2.21.*"), "peer_flower.py")
PFL = Peer("pfl", ("pfl==0.6.*", "torch==2.13.*"), "peer_pfl.py")


def install(peer: Peer) -> bool:
    """Make the peer's environment, and say whether it worked."""
    if peer.installed:
        return True
    folder = peer.python.parent.parent
    progress(f"installing {', '.join(peer.packages)} in {folder}")
    venv.create(folder, with_pip=True, clear=True)
    done = subprocess.run([peer.python, "-m", "pip", "install", "--quiet", *peer.packages], check=False)
    if done.returncode == 0:
        (folder / "complete").touch()
    return done.returncode == 0


def measure(peer: Peer, work: str, rounds: int, script: str = "") -> Ran | None:
    """Do the named work with the peer, by its usual script or another; ``None`` when it is not installed."""
    if not peer.installed:
        progress(f"{peer.name}: not installed; python benchmarks/peers.py installs it")
        return None
    progress(f"{peer.name}: {work}, {rounds} rounds")
    return run(peer.python, script or peer.script, work, str(rounds))


if __name__ == "__main__":
    results = [install(peer) for peer in (FLOWER, PFL)]
    sys.exit(0 if all(results) else 1)
