"""What FedAdam, FedYogi and FedAdagrad share: a server step scaled coordinate by coordinate (Reddi et al. 2021, Algorithm 2).

``m = beta_1 m + (1 - beta_1) mean``, ``v`` by the strategy's own rule, ``w = w + rate * m / (sqrt(v) + tau)``. As in the paper ``v`` starts at
``tau ** 2``, ``m`` at 0, and neither is corrected for its start. The mean is weighted by patients, as in the paper's experiments. Flower starts
``v`` at 0, which makes the first steps larger.
"""

from collections.abc import Callable

import numpy as np

from common.layout import Vector
from server.strategies.average import accumulate, advance, begin, mean
from server.strategies.strategy import State, Strategy

SecondMoment = Callable[[Vector, Vector], Vector]
"""From the last ``v`` and the squared mean update to a new ``v``."""


def adaptive(second_moment: SecondMoment, server_learning_rate: float, tau: float, beta_1: float) -> Strategy:
    """Return the strategy of a rule for ``v``."""

    def init(weights: Vector, population: int) -> State:
        moments = {"first_moment": np.zeros_like(weights), "second_moment": np.full_like(weights, tau**2)}
        return begin(weights, population) | moments

    def finish(state: State) -> Vector:
        delta = mean(state)
        state["second_moment"] = second_moment(state["second_moment"], delta**2)
        delta *= 1 - beta_1
        delta += beta_1 * state["first_moment"]
        state["first_moment"] = delta
        step = np.sqrt(state["second_moment"])
        step += tau
        np.divide(delta, step, out=step)
        step *= server_learning_rate
        return advance(state, step)

    return Strategy(init, accumulate, finish)
