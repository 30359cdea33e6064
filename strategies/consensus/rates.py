"""How long the local steps are, and how that changes over a run."""

import math
from collections.abc import Callable

# By name: the factor of the learning rate at `progress` in [0, 1] of the run.
RATES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
}

# What momentum is: the running mean M <- beta M + (1 - beta) g, or heavy-ball's m <- beta m + g.
HEAVY_BALL, MEAN = "heavy-ball", "mean"
MOMENTUM_FORMS = (HEAVY_BALL, MEAN)


def step_size(learning_rate: float, momentum: float, form: str) -> float:
    """eta, the length of a step along the running mean of gradients that this learning rate means.

    Heavy-ball's sum is 1 / (1 - beta) running means, so its steps are steps of that running mean
    with eta = learning_rate / (1 - beta): the same models, and all that is tied to the length of a
    step (penalties, what is forgotten, clips) is tied to the one that is really done.
    """
    return learning_rate / (1 - momentum) if form == HEAVY_BALL else learning_rate


def rate_of(schedule: str, learning_rate: float, window: int, windows: int) -> float:
    """The learning rate of `window` = 1 .. windows: that of the schedule at the window's middle.

    It is constant within a window: both ends of an edge must use one penalty, which follows the
    rate, so the rate follows a clock that all nodes share, and windows are that clock.
    """
    return learning_rate * RATES[schedule]((window - 0.5) / windows)
