"""The Flower ServerApp: reads the run's settings, runs the rounds, hands over the outcome."""

import importlib
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common import flower
from server import rounds
from server.plan import Plan
from server.rounds import Outcome


def make_app(
    plan: Plan, folder: Path | None, done: Callable[[Outcome], None], watch: rounds.Watch | None = None
) -> ServerApp:
    """Return the app of one run; ``done`` is called once, with the outcome, while the hospitals can still be asked."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, _context: Context) -> None:
        done(rounds.run(grid, plan, folder, watch))

    return app


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run what ``flwr run`` asks for: a scenario over simulated nodes. The harness that knows scenarios is installed, and not part of the bundle."""
    flower.load(
        "client.app:app"
    )  # before the harness imports it: Flower's other thread is about to, and must not find it half loaded
    importlib.import_module("simulations.run").on_grid(grid, context)
