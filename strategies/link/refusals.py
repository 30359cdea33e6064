"""What devices send that is of no use: counted, and told of once."""

import threading
from collections import Counter
from collections.abc import Callable

LATE = "late"  # a reply to an order that is over


class Refusals:
    """Counts by device, kind ("beat", "reply") and reason. say: is told of a device's first of
    every reason - but of what is late, which is no fault: an order that seems lost is sent again,
    and both may be answered."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._counts: Counter[tuple[str, str, str]] = Counter()
        self._lock = threading.Lock()

    def add(self, device: str, kind: str, reason: str) -> None:
        """`device`, "" for one that is not known, has sent what is no `kind`."""
        name = device or "somebody"
        with self._lock:
            self._counts[name, kind, reason] += 1
            first = self._counts[name, kind, reason] == 1
        if first and reason != LATE:
            self._say(f"{name} has sent what is no {kind} ({reason}); more of it is only counted")

    def by_reason(self) -> dict[str, int]:
        """How many there were, by "kind: reason"."""
        found: Counter[str] = Counter()
        with self._lock:
            for (_, kind, reason), count in self._counts.items():
                found[f"{kind}: {reason}"] += count
        return dict(found)
