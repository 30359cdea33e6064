"""How far a run is, and how long the rest will take."""

import sys
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from typing import Any

from fl_app.record.metrics import Event
from fl_app.record.modes import view_of
from fl_app.record.view import View

# Rounds that a round waits for its evaluation, which may come late. On the virtual clock every
# evaluation is certain to come, as the work proceeds.
_PATIENCE = {"real": 2, "virtual": sys.maxsize}
_LOOKED_BACK = 10  # rounds: the first ones say little, as nothing has piled up in them yet


class Progress:
    """Follows the events of a run. A round is done when all that `view.lines` awaits of it is there
    - the server of distill may be far behind the participants -, on the real clock two rounds later
    without.

    done, total: rounds (or windows). left: seconds until the last one is done, if each takes as
    long as the last ten did; None before the second one, since the first has the start in it.
    """

    def __init__(self, view: View, clock: str, total: int) -> None:
        self._awaits, self._patience = view.lines.awaits, _PATIENCE[clock]
        self._kinds = {kind for kind, _ in self._awaits}
        self._arrived: dict[int, set[tuple[str, str | None]]] = defaultdict(set)
        self._ends: deque[tuple[int, float]] = deque(maxlen=_LOOKED_BACK + 1)  # round, t_wall
        self.done, self.total = 0, total
        self.left: float | None = None

    def take(self, event: Event) -> None:
        """The next event of the run."""
        kind = event["event"]
        if kind == "resumed":
            self.done, self.left = event.get("round", 0), None
            self._arrived.clear()
            self._ends.clear()
        elif kind in self._kinds and event["round"] > self.done:
            self._arrived[event["round"]].add((kind, event.get("model")))
            if (until := self._complete()) > self.done:
                self.done, self.total = until, max(self.total, until)
                for number in [number for number in self._arrived if number <= until]:
                    del self._arrived[number]
                self._ends.append((until, event["t_wall"]))
                self._estimate()
        elif kind == "finished":  # what has not come by now will not come
            self.done = max(self.done, self._newest())

    def _complete(self) -> int:
        """The last round that is complete, or has waited enough."""
        arrived = self._arrived.items()
        complete = max((number for number, got in arrived if self._awaits <= got), default=0)
        return max(complete, self._newest() - self._patience)

    def _newest(self) -> int:
        """The last round that is closed, whatever of it is still awaited."""
        arrived = self._arrived.items()
        return max((number for number, got in arrived if ("round", None) in got), default=0)

    def _estimate(self) -> None:
        (first, began), (last, ended) = self._ends[0], self._ends[-1]
        if last > first:
            each = (ended - began) / (last - first)
            self.left = each * max(0, self.total - self.done)


def progress(events: Iterable[Event], config: Mapping[str, Any]) -> Progress:
    """How far the run of these events and this flat configuration is; it can be told of more."""
    total = config.get("num-server-rounds")
    if config.get("mode") == "consensus":
        total = -(-int(config.get("consensus.steps") or 0) // int(config["consensus.window"] or 1))
    far = Progress(view_of(config), str(config.get("clock", "real")), int(total or 0))
    for event in events:
        far.take(event)
    return far
