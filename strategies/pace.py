"""How long the rest of a run will take."""

from collections import deque

_ROUNDS = 10  # that are looked back: early rounds say little, as nothing has piled up in them yet


class Pace:
    """Rounds (or windows) yet to come are expected to take as long as the last ten did."""

    def __init__(self, now: float) -> None:
        """now: s, any clock; when the first round begins."""
        self._ends = deque([now], maxlen=_ROUNDS + 1)

    def left(self, now: float, rounds: int) -> float:
        """A round has ended; returns the seconds that `rounds` more will take."""
        self._ends.append(now)
        return rounds * (now - self._ends[0]) / (len(self._ends) - 1)
