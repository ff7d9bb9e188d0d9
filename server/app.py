"""The Flower ServerApp: reads the run's settings, runs the rounds, hands over the outcome."""

from collections.abc import Callable
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.config import loads
from common.tasks import read_run
from server import records, rounds
from server.rounds import Outcome, Plan


def make_app(plan: Plan, folder: Path | None, done: Callable[[Outcome], None], watch: rounds.Watch | None = None) -> ServerApp:
    """Return the app of one run; ``done`` is called once, with the outcome, while the hospitals can still be asked."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, _context: Context) -> None:
        done(rounds.run(grid, plan, folder, watch))

    return app


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run what ``flwr run`` asks for: settings as TOML text or a task's name, the outcome into the run's folder."""
    text = str(context.run_config["run"])
    config = read_run(loads(text) if "=" in text else {"task": text})
    folder = Path(str(context.run_config["folder"]))
    folder.mkdir(parents=True, exist_ok=True)
    records.write_outcome(folder, config, rounds.run(grid, Plan(config), folder))
