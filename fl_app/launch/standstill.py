"""Whether this machine has slept: Flower takes the silence of its processes for their end."""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

# Flower waits 60 s for a heartbeat; and no load keeps a thread from its turn for so long.
STANDSTILL_SECONDS = 30.0
_LOOK_SECONDS = 1.0


class Standstill:
    """While the context lasts, looks at the wall clock once a second: it alone goes on while a
    machine sleeps, or is frozen, with all that runs on it.

    seconds: the longest time that has passed without a look, 0 if none was remarkable.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.seconds = 0.0
        self._clock, self._last = clock, clock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        self.look()

    def look(self) -> None:
        now = self._clock()
        passed, self._last = now - self._last, now
        if passed > STANDSTILL_SECONDS:
            self.seconds = max(self.seconds, passed)

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            self.look()
