"""What an attack is: who is attacked, what the attacker has, and what is found; and how virtual hospitals are trained once more for it.

The attacker is whoever reads what the coordinator reads: the final model, each answer as it came, the settings. For membership it is also given patients, of whom it has to tell who was
trained on; for inversion nothing more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from flwr.app import Context, Message
from numpy.typing import NDArray

from client.app import Node
from client.hospital import Hospital
from client.worker import Worker
from common import flower, messages, wire
from common.config import RunConfig
from common.layout import Vector
from common.messages import TRAIN
from common.secagg import fixed
from common.seeds import seed_for
from server import rounds
from server.plan import Plan
from server.rounds import Outcome
from simulations.engines import grid_of
from simulations.hospitals import Population, seats_of
from simulations.scenario import Scenario

Scores = NDArray[np.float64]
Pair = tuple[NDArray[np.float64], NDArray[np.float64]]
"""An image and what an attack took for it, of the same shape ``(height, width, 1)``, grey levels."""


@dataclass(frozen=True)
class Heard:
    """One hospital's answer in the first round, as whoever reads the wire can read it: ``weights`` are the model that was sent, both float32 of shape ``(P,)``."""

    hospital: str
    weights: Vector
    update: Vector


@dataclass(frozen=True)
class Target:
    """A finished run that is attacked. ``shadows`` is how many like it the attacker can train; ``worker`` trains them; ``show`` is given images beside what was made of their updates."""

    scenario: Scenario
    population: Population
    outcome: Outcome
    heard: Sequence[Heard]
    worker: Worker
    shadows: int = 0
    show: Callable[[Pair], None] = lambda _: None


@dataclass(frozen=True)
class Finding:
    """One measured success of an attack on one run.

    ``kind`` says what ``value`` is and how findings of several seeds are put together: a ``share`` of ``trials`` of which ``hits`` succeeded; a ``mean``; or a lower ``bound`` of epsilon by
    ``hits`` right among ``trials`` guesses about ``canaries``. ``limit`` is the name under which a release may be bounded by it.
    """

    attack: str
    view: str
    measure: str
    value: float
    kind: str = "mean"
    hits: int = 0
    trials: int = 0
    canaries: int = 0
    limit: str = ""


@dataclass(frozen=True)
class Attack:
    """An attack by name; ``run`` returns what it found, nothing where it does not apply to the task."""

    name: str
    title: str
    run: Callable[[Target], list[Finding]]


@dataclass(frozen=True)
class Tap:
    """A node whose answers in the first round are overheard. What travels is not changed."""

    node: Node
    name: str
    heard: list[Heard] = field(default_factory=list)

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer as the node does."""
        reply = self.node(message, context)
        if message.metadata.message_type == TRAIN and reply.has_content():
            request = messages.unpack_request(message.content)
            if request.options["server-round"] == 1:
                update = _legible(request, messages.unpack_reply(reply.content))
                self.heard.append(Heard(self.name, request.arrays["weights"].copy(), update))
        return reply


def _legible(request: messages.Request, reply: messages.Reply) -> Vector:
    """Read an update as well as it can be read: a masked one as the fixed-point numbers that it would be without its mask."""
    config, size = request.config, len(request.arrays["weights"])
    if "masked" not in reply.arrays:
        return wire.CODECS[config.update.codec].decode(
            {name: array for name, array in reply.arrays.items() if not name.startswith("control/")}, size
        )
    hospitals, judged = str(request.options["present"]).count("\n") + 1, bool(request.options["evaluate"])
    controls = "control" in request.arrays
    frame = fixed.frame_of(config, TRAIN, hospitals, size, controls=controls, judged=judged)
    return np.asarray(frame.read(reply.arrays["masked"])[1][0], np.float32)


def train(config: RunConfig, nodes: Sequence[Node]) -> Outcome:
    """Run a federation in this process, by the very code of a real one; its rounds are not judged one by one."""
    if not config.stopping.patience:
        config = replace(config, evaluation=replace(config.evaluation, every=0))
    grid = grid_of(nodes)
    plan = Plan(config, noise_key=seed_for(config.seed, "noise").generate_state(8).tobytes())
    with flower.identity(grid.run.run_id):
        return rounds.run(grid, plan)


def overhear(
    config: RunConfig, hospitals: Sequence[Hospital], worker: Worker, secret: bytes, **faults: Any
) -> tuple[Outcome, list[Heard]]:
    """Train, and return also what was overheard in the first round."""
    taps = [
        Tap(seat, hospital.name)
        for seat, hospital in zip(seats_of(hospitals, worker, secret, **faults), hospitals, strict=True)
    ]
    outcome = train(config, taps)
    return outcome, [heard for tap in taps for heard in tap.heard]
