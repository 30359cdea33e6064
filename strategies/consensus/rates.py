"""How the size of the local steps changes over a run."""

import math
from collections.abc import Callable

# By name: the factor of the learning rate at `progress` in [0, 1] of the run.
RATES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
}


def rate_of(schedule: str, learning_rate: float, window: int, windows: int) -> float:
    """The learning rate of `window` = 1 .. windows: that of the schedule at the window's middle.

    It is constant within a window: both ends of an edge must use one penalty, which follows the
    rate, so the rate follows a clock that all nodes share, and windows are that clock.
    """
    return learning_rate * RATES[schedule]((window - 0.5) / windows)
