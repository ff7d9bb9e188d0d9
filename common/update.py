"""The update: what one hospital returns from a round."""

from dataclasses import dataclass, field

from common.layout import Vector
from common.privacy.events import Event
from common.statistics import Statistics


@dataclass(frozen=True)
class Update:
    """One hospital's answer to a training request, checked and decoded.

    ``delta`` is the hospital's model minus the model it was sent, unweighted: float32, shape ``(P,)``. ``control`` is the change of
    its SCAFFOLD control variate, of the same shape. ``num_examples`` counts the patients trained on. ``event`` is what was released of
    them, under differential privacy. A secure sum is one update of several ``hospitals``: their mean, weighted as the strategy weights them.
    """

    hospital: str
    delta: Vector
    num_examples: int
    control: Vector | None = None
    statistics: Statistics = field(default_factory=dict)
    event: Event | None = None
    hospitals: int = 1
