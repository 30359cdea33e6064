"""The run's real clock: seconds since its start, going on where a resumed run stopped."""

import time


class Clock:
    """Reads `time.monotonic`, which all processes of one machine share."""

    def __init__(self, already: float = 0.0) -> None:
        self._already = already
        self.restart()

    def restart(self) -> None:
        """Begin (again) where the clock stood when it was made."""
        self._origin = time.monotonic() - self._already

    def now(self) -> float:
        return time.monotonic() - self._origin

    def at(self, moment: float) -> float:
        """A reading of time.monotonic(), by any process of this machine, on this clock."""
        return moment - self._origin
