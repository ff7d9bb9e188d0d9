"""The engine ``deploy``: every virtual hospital as real processes on this machine, over mutual TLS, with keys, policy, sealed data and audit log of its own.

It is what hospitals run, on loopback; it exists to show that nothing is lost on the way, and for tests. Each hospital takes about 1 GB.
"""

import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from pathlib import Path

import numpy as np

from client import policy, programs, resident, site
from client.data import vault
from client.data.split import PARTS, Parts
from client.hospital import Hospital
from client.policy import Allow, Limits, Names, SitePolicy
from client.site import Site
from common import deployment, joining
from common.config import as_table, dumps
from common.errors import UsageError
from common.supervise import Program, Supervisor, free_port
from common.tasks import TASKS
from common.tasks.task import Task, rows_of
from server import coordinator, provision, rounds
from server.plan import Plan
from server.provision import Federation
from server.rounds import Outcome, Watch
from simulations.hospitals import INTACT, Population
from simulations.scenario import Scenario

UP_SECONDS = 180.0
"""How long hospitals may take to connect."""
GENEROUS = Limits(
    min_cohort=1,
    min_patients=1,
    min_records=1,
    min_steps=1,
    max_steps=2**31,
    max_rounds=1_000_000,
    max_rounds_a_day=1_000_000,
    max_questions_a_day=1_000_000,
    max_hours_a_day=24.0,
)
"""Virtual hospitals hold public data: they allow whatever the scenario asks."""


def deploy(
    scenario: Scenario, population: Population, plan: Plan, folder: Path, watch: Watch, done: Callable[[Outcome], None]
) -> None:
    """Run a scenario over real processes.

    Raises
    ------
    UsageError
        For faults, which only virtual hospitals of this process can have, and for a run to go on with whose hospitals remember something.
    Unreachable
        When not every hospital connected in time.
    """
    if scenario.simulation.faults != INTACT:
        raise UsageError("simulation.faults: the engine 'deploy' has none; take --engine local")
    named = replace(plan, cohort=tuple(hospital.name for hospital in population.hospitals))
    with (
        running(population, plan.task) as federation,
        coordinator.grid(coordinator.place_of(federation), named) as grid,
    ):
        done(rounds.run(grid, named, folder, watch))


@contextmanager
def running(population: Population, task: Task) -> Iterator[Federation]:
    """Run a federation and all hospitals of a population as processes, connected when the block begins, and stop them when it ends.

    Raises
    ------
    Unreachable
        When not every hospital connected in time.
    """
    # A path of a socket may have a hundred letters: run folders may be deeper than that.
    with tempfile.TemporaryDirectory(prefix="fedward-") as scratch, ExitStack() as stack:
        federation = provision.create(Path(scratch) / "federation", "simulation", ["127.0.0.1"])
        place, port = coordinator.place_of(federation), free_port()
        stack.enter_context(_kept_running(coordinator.programs(place, federation, "127.0.0.1", port)))
        coordinator.wait_for_flower(place)
        bundle = deployment.bundle().sha256
        sites = [_site(Path(scratch), federation, port, task, hospital, bundle) for hospital in population.hospitals]
        # Before they knock: Flower's node gives up when it is not known.
        coordinator.let_in(place, federation, set())
        for each in sites:
            meeting = programs.place_of(each)
            key = stack.enter_context(programs.node_key(each, meeting))
            stack.enter_context(_kept_running(programs.programs(each, meeting, key)))
        coordinator.wait_for_hospitals(place, len(sites), UP_SECONDS)
        yield federation


def _site(scratch: Path, federation: Federation, port: int, task: Task, hospital: Hospital, bundle: str) -> Site:
    """Make a hospital's site: keys, certificate, policy and sealed data, as its own people would."""
    made = site.create(scratch / f"{len(list(scratch.iterdir()))}", hospital.name, task.name)
    admitted = federation.admit(joining.read_document(made.folder / site.REQUEST))
    made.join({**admitted, "address": f"127.0.0.1:{port}"}, federation.fingerprint)
    allow = Allow(
        Names([task.name]),
        Names([bundle]),
        Names([federation.fingerprint]),
        statistics=Names(policy.STATISTICS_PARTS),
        smallest_cell=1,
        metrics=True,
        settings=Names(f"task.{item.name}=*" for item in fields(TASKS[task.name])),  # type: ignore[arg-type]
    )
    rules = SitePolicy(policy.Site(hospital.name, task.name, ""), allow, GENEROUS)
    (made.folder / resident.POLICY).write_text(dumps(as_table(rules)), encoding="utf-8")
    sealed = resident.sealed(made.folder, task.name)
    sealed.parent.mkdir(mode=0o700)
    records = {part: getattr(hospital, part) for part in PARTS}
    parts = Parts(records, {part: np.arange(rows_of(rows)) for part, rows in records.items()})
    vault.seal(sealed, parts, task, made.vault_key(), made.name)
    return made


@contextmanager
def _kept_running(wanted: list[Program]) -> Iterator[None]:
    """Look after programs beside what this process does."""
    over, supervisor = threading.Event(), Supervisor(wanted)

    def look() -> None:
        while not over.wait(0.5):
            supervisor.look_after()

    thread = threading.Thread(target=look, daemon=True)
    with supervisor:
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
