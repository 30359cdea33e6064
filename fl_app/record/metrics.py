"""Pure reading of a run's events: which of them count, and the numbers drawn from them.

An event is a dict with "event" (its kind), "t_wall" (real seconds since the run's start) and,
where it has one, "t" (seconds on the run's own clock, virtual or real).
"""

from collections.abc import Iterable
from typing import Any

Event = dict[str, Any]

# What makes two events the same happening. Kinds that are not listed are all kept.
IDENTITY: dict[str, tuple[str, ...]] = {
    "round": ("round",),
    "evaluate": ("round", "model"),
    "job": ("job",),
    "segment": ("segment",),
    "idle": ("participant", "t_start"),
    "rejected": ("participant", "round"),
    "growth": ("round",),
    "forward": ("round",),
    "skipped": ("version",),
}
_COUNTERS = ("round", "job", "segment")


def effective(events: Iterable[Event]) -> list[Event]:
    """Return the events that count, in their order.

    A resumed run repeats what happened after its checkpoint: of two events with one identity the
    last wins, and a "resumed" event discards every earlier event whose round, job or segment number
    lies beyond the one that it names.
    """
    kept: list[Event] = []
    for event in events:
        if event["event"] == "resumed":
            kept = [earlier for earlier in kept if not _undone(earlier, event)]
        kept.append(event)
    last = {_identity(event, position): position for position, event in enumerate(kept)}
    survivors = set(last.values())
    return [event for position, event in enumerate(kept) if position in survivors]


def _undone(event: Event, resumed: Event) -> bool:
    return event["event"] != "resumed" and any(
        event.get(counter) is not None
        and resumed.get(counter) is not None
        and event[counter] > resumed[counter]
        for counter in _COUNTERS
    )


def _identity(event: Event, position: int) -> tuple[Any, ...]:
    kind = event["event"]
    if kind not in IDENTITY:
        return ("unique", position)
    return (kind, *(event.get(field) for field in IDENTITY[kind]))
