"""Stock Flower between processes: a SuperLink, a SuperNode for every hospital, and the app of ``peer_flower.py``; run by the environment of ``peers.py``.

Usage: peer_flower_deployed.py WORK ROUNDS. Everything as Flower's own guide starts it, on loopback without TLS, which is less work for the peer. Prints
the seconds at which each round ended, and ``begun``, when ``flwr run`` was typed.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from work import WORKS

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
PROJECT = """
[project]
name = "benchmark"
version = "1.0.0"
description = "what is measured"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "benchmark"
[tool.flwr.app.components]
serverapp = "measured:server"
clientapp = "measured:client"
[tool.flwr.app.config]
"""
APP = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, os.environ["BENCHMARKS"])
from flwr.serverapp import ServerApp
from peer_flower import client_app, server_app
from work import WORKS

work, rounds = WORKS[os.environ["MEASURED_WORK"]], int(os.environ["MEASURED_ROUNDS"])
client = client_app(work)
server = ServerApp()

@server.main()
def main(grid, context):
    moments = []
    server_app(work, rounds, moments)(grid, context)
    Path(os.environ["MEASURED_OUT"]).write_text(json.dumps(moments))
"""
CONNECTION = """
[superlink]
default = "here"
[superlink.here]
address = "127.0.0.1:{port}"
insecure = true
"""


def main() -> None:
    """Start all, run, print, stop all."""
    work, rounds = WORKS[sys.argv[1]], sys.argv[2]
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder, out, port = Path(scratch), Path(scratch) / "moments.json", free_port()
        app, home = folder / "app", folder / "home"
        for path in (app, home):
            path.mkdir()
        (app / "pyproject.toml").write_text(PROJECT)
        (app / "measured.py").write_text(APP)
        (home / "config.toml").write_text(CONNECTION.format(port=port))
        environment = os.environ | {
            "BENCHMARKS": str(HERE),
            "MEASURED_WORK": work.name,
            "MEASURED_ROUNDS": rounds,
            "MEASURED_OUT": str(out),
            "FLWR_HOME": str(home),
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }

        def begin(*words: str) -> None:
            process = subprocess.Popen([str(BIN / words[0]), *words[1:]], env=environment, stdout=sys.stderr)
            stack.callback(process.wait)
            stack.callback(process.terminate)

        begin("flower-superlink", "--insecure", "--port", str(port), "--disable-runtime-dependency-installation")
        wait_for(port)
        for number in range(work.hospitals):
            node = ["--insecure", "--superlink", f"127.0.0.1:{port}", "--port", str(free_port())]
            begin("flower-supernode", *node, "--node-config", f"partition-id={number} num-partitions={work.hospitals}")
        time.sleep(10)  # until the nodes are there, so that waiting for them is not counted
        begun = time.perf_counter()
        subprocess.run([str(BIN / "flwr"), "run", str(app), "here"], env=environment, stdout=sys.stderr, check=True)
        while not out.exists():
            time.sleep(0.2)
        time.sleep(0.2)
        print(json.dumps({"begun": begun, "moments": json.loads(out.read_text())}))


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_for(port: int) -> None:
    """Wait until somebody listens."""
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.2)
        else:
            return


if __name__ == "__main__":
    main()
