"""A run and the loop that it is compared with have the cores in turn, a few seconds each.

One after the other they would meet a different machine: what else happens on a shared one made the
same loop 6 % slower some minutes later. In turns both meet the same.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence

from experiments.benchmarks.bare_loop import Loop, Loops, Work
from fl_app.launch.supervise import descendants
from fl_app.record.metrics import of_kind
from fl_app.record.run_dir import RunDirectory

_TURN_SECONDS = 4.0  # of the loop; the run's turn lasts as long as `flower_run` leaves it alone
_STEP_SECONDS = 0.05  # more than a step of the loop, which it ends before it holds
Interval = tuple[float, float]  # epoch s
Watch = Callable[[RunDirectory | None], None]


class Turns:
    """Give it to `flower_run` as `watch`. From the end of the run's first window on it stops all
    processes below `root` again and again, and lets `work` (see `Loops`) go on for its turn.
    Without any work it only looks.

    look: called each time, while neither goes on: it takes processor time from none of them.
    frozen: when the run stood still.
    """

    def __init__(self, root: int, work: Work, look: Watch) -> None:
        # Not `root` itself, the supervisor: should this process be killed, it has to end the run.
        self._root, self._work, self._look = root, work, look
        self._loops: Loops | None = None
        self.frozen: list[Interval] = []

    def __enter__(self) -> "Turns":
        return self

    def __exit__(self, *_: object) -> None:
        if self._loops is not None:
            self._loops.__exit__()

    def __call__(self, run: RunDirectory | None) -> None:
        over = self._loops is not None and self._loops.over
        if over or not self._work or run is None or not of_kind(run.events(), "round"):
            self._look(run)
            return
        with self._run_frozen():
            self._look(run)
            if self._loops is None:
                self._loops = Loops(self._work)
                self._loops.wait_until_ready()
            self._loops.go()
            time.sleep(_TURN_SECONDS)
            self._loops.hold()
            time.sleep(_STEP_SECONDS)

    def results(self) -> list[Loop]:
        """Of the loops, which do alone what is left to them."""
        if not self._work:
            return []
        loops = self._loops = self._loops or Loops(self._work)
        loops.go()
        return loops.results()

    @contextlib.contextmanager
    def _run_frozen(self) -> Iterator[None]:
        stopped = descendants(self._root)
        try:
            _send(stopped, signal.SIGSTOP)
            since = time.time()
            yield
            self.frozen.append((since, time.time()))
        finally:
            _send(stopped, signal.SIGCONT)


def _send(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def overlap(intervals: Sequence[Interval], start: float, end: float) -> float:
    """Seconds between `start` and `end` that lie in one of `intervals`, which are disjoint."""
    return sum(max(0.0, min(end, last) - max(start, first)) for first, last in intervals)
