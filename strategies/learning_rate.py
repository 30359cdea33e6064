"""How the learning rate changes over a run."""

import math
from collections.abc import Callable

# By name: the factor of the learning rate at `progress` in [0, 1] of the run.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
}


def rate_of(schedule: str, learning_rate: float, part: int, parts: int) -> float:
    """The learning rate of `part` = 1 .. parts of a run: that of the schedule at its middle.

    It is constant within a part. A part is what all have in common: a version of the small model
    (who trains on it may be late, and a job is the same whoever does it), a window of the consensus
    system (both ends of an edge must use one penalty, which follows the rate).
    """
    return learning_rate * SCHEDULES[schedule]((part - 0.5) / parts)
