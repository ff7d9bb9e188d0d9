"""Engines: ways to run the same ServerApp and the same ClientApp over virtual hospitals."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flwr.app import Context

from client.app import Node, make_app
from common import backend, flower, wire
from common.errors import DataError, UsageError
from server import app as server_app
from server import models
from server.plan import Plan
from server.records import RoundRecord
from server.rounds import Outcome, Watch
from simulations import hospitals
from simulations.hospitals import Population
from simulations.local_grid import LocalGrid
from simulations.scenario import Scenario
from simulations.workers import Crew, app_of

Done = Callable[[Outcome], None]
Engine = Callable[[Scenario, Population, Plan, Path, Watch, Done], None]


def grid_of(seats: Sequence[Node]) -> LocalGrid:
    """Return a grid over seats of this process."""
    app = app_of(seats)
    return LocalGrid(lambda message, context: lambda: app(message, context), hospitals.contexts(len(seats)))


def local(scenario: Scenario, population: Population, plan: Plan, folder: Path, watch: Watch, done: Done) -> None:
    """Run in this process, or on worker processes where that pays.

    What hospitals keep between rounds is saved beside the checkpoint, so that a resumed run is bit-equal.
    """
    with Crew(population.seats, scenario.text(), population.secret) as crew:
        grid = LocalGrid(crew.ask, hospitals.contexts(len(population.seats)))
        shelf = Shelf(folder, grid.contexts)
        shelf.load()
        if scenario.simulation.workers > 1:
            crew.grow(scenario.simulation.workers)

        def keep(record: RoundRecord) -> None:
            shelf.save(record.round)
            watch(record)
            if not scenario.simulation.workers:
                crew.grow_if_worth(record.seconds, plan.config.rounds - record.round, len(record.asked))

        server = server_app.make_app(plan, folder, done, keep)
        with flower.identity(grid.run.run_id):
            server(grid, hospitals.context(0, {}))


def ray(scenario: Scenario, population: Population, plan: Plan, folder: Path, watch: Watch, done: Done) -> None:
    """Run on Flower's simulation runtime, whose Ray actors may be on other machines; every actor reads the data itself."""
    try:
        import ray as _ray  # noqa: F401
    except ImportError:
        raise UsageError("the engine 'ray' needs the extra of that name: pip install '.[ray]'") from None
    check_goes_on(folder, plan, "ray")
    backend.start()  # before Flower's simulation imports TensorFlow with settings of its own
    from flwr.simulation import run_simulation

    text, secret = scenario.text(), population.secret
    client = make_app(lambda context: hospitals.seat_of(text, context, secret))
    # Flower starts the ServerApp before all nodes are there.
    server = server_app.make_app(plan, folder, done, watch)
    run_simulation(
        server,
        client,
        len(population.seats),
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"log_to_driver": False}},
    )


def deploy(scenario: Scenario, population: Population, plan: Plan, folder: Path, watch: Watch, done: Done) -> None:
    """Run over real processes on this machine, as hospitals do."""
    from simulations import deploy

    check_goes_on(folder, plan, "deploy")
    deploy.deploy(scenario, population, plan, folder, watch, done)


def check_goes_on(folder: Path, plan: Plan, engine: str) -> None:
    """Refuse to go on with a run whose hospitals remembered something that this engine did not keep."""
    if (folder / models.NAME).exists() and keeps_state(plan):
        raise UsageError(
            f"{folder}: the engine {engine!r} does not keep what hospitals remember between rounds, so this run cannot go on; start it anew"
        )


def keeps_state(plan: Plan) -> bool:
    """Tell whether hospitals remember anything between the rounds of this run: a control variate, local weights, what a codec lost."""
    lossy = not wire.CODECS[plan.config.update.codec].exact
    return plan.strategy.client.controls or bool(plan.local_parts) or lossy


ENGINES: dict[str, Engine] = {"local": local, "ray": ray, "deploy": deploy}


class Shelf:
    """What virtual hospitals keep between rounds, in one file a round.

    Those of the last three rounds stay: when a round's are written, the checkpoint of the round before may still be on its way to the disk.
    """

    def __init__(self, folder: Path, nodes: Mapping[int, Context]) -> None:
        self._folder = folder
        self._nodes = nodes

    def save(self, number: int) -> None:
        """Write every hospital's state after a round; nothing where no hospital keeps anything."""
        kept = {
            node: context.state.array_records["hospital"]
            for node, context in self._nodes.items()
            if "hospital" in context.state
        }
        if kept:
            arrays = {
                f"{node}/{name}": array
                for node, record in kept.items()
                for name, array in wire.from_record(record).items()
            }
            models.save(self._path(number), models.Checkpoint(arrays))
            self._path(number - 3).unlink(missing_ok=True)

    def load(self) -> None:
        """Give the hospitals what they kept when the checkpoint was written.

        Raises
        ------
        DataError
            When that file is missing, and those of other rounds are there.
        """
        checkpoint = models.load(self._folder / models.NAME)
        path = self._path(checkpoint.facts["rounds"] if checkpoint else 0)
        kept = models.load(path)
        if checkpoint and not kept and any(self._folder.glob("hospitals-*.npz")):
            raise DataError(f"{path}: missing; the run can't go on as it was, start it anew")
        records: dict[int, dict[str, Any]] = defaultdict(dict)
        for key, array in kept.state.items() if kept else ():
            node, _, name = key.partition("/")
            records[int(node)][name] = array
        for number, arrays in records.items():
            self._nodes[number].state["hospital"] = wire.to_record(arrays)

    def _path(self, number: int) -> Path:
        return self._folder / f"hospitals-{number:05d}.npz"
