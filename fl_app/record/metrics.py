"""Pure reading of a run's events: which of them count, and the numbers drawn from them.

An event is a dict with "event" (its kind), "t_wall" (real seconds since the run's start) and,
where it has one, "t" (seconds on the run's own clock, virtual or real).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

Value = TypeVar("Value")
Event = dict[str, Any]

# What makes two events the same happening. Kinds that are not listed are all kept: "rejected", of
# which there may be several of a participant in a round.
IDENTITY: dict[str, tuple[str, ...]] = {
    "round": ("round",),
    "evaluate": ("round", "model"),
    "job": ("job",),
    "segment": ("segment",),
    "idle": ("participant", "t_start"),  # until the run is resumed: its end tells them anew
    "skipped": ("version",),
    "best": ("round",),
    "stopped_early": (),
    "nodes": ("round",),
    "incident": ("t", "node", "kind", "peer"),
    "topology": (),  # one a run: a resumed run may tell it again
    "labels": (),
    "hosts": (),
    "devices": (),
    "machines": (),
    "trace": (),
    "privacy": (),
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
    if event["event"] == "idle":
        return True
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


Point = tuple[float, float]  # (seconds on the run's clock, accuracy in [0, 1])

CLOCK_UNITS = {"virtual": "virtual s", "real": "s"}


@dataclass(frozen=True)
class Metric:
    """What a model is judged by: a value times `scale` is shown with `unit` behind it.

    higher: whether more of it is better.
    """

    name: str = "accuracy"
    unit: str = "%"
    scale: float = 100.0
    higher: bool = True

    def plain(self, value: float | None) -> str:
        """The value without its unit, "-" if there is none."""
        return "-" if value is None else f"{value * self.scale:.{self.digits}f}"

    def shown(self, value: float | None) -> str:
        """The value as it is written, "-" if there is none."""
        return "-" if value is None else self.titled(self.plain(value))

    def at(self, value: float) -> str:
        """A value that somebody has chosen, such as a target, as short as it is."""
        return self.titled(f"{self.scale * value:g}")

    @property
    def heading(self) -> str:
        """What values or differences stand under: it says where less is better."""
        return self.name if self.higher else f"{self.name} (lower is better)"

    @property
    def label(self) -> str:
        """`heading` with the unit, for an axis or a column of plain values."""
        notes = [self.unit, "" if self.higher else "lower is better"]
        return f"{self.name} ({', '.join(filter(None, notes))})" if any(notes) else self.name

    def titled(self, title: str) -> str:
        """A title, or a number, with the unit behind it, if there is one."""
        return f"{title} {self.unit}".rstrip()

    def lead(self, value: float | None, other: float | None) -> str:
        """How much more `value` is than `other`, with its sign; "-" where one is not known."""
        if value is None or other is None:
            return "-"
        # Plus 0.0, for no difference has a minus.
        return f"{round(self.scale * (value - other), self.digits) + 0.0:+.{self.digits}f}"

    @property
    def digits(self) -> int:
        return 1 if self.unit == "%" else 3

    @property
    def points(self) -> str:
        """What differences are counted in, after a blank; "" where it has no name."""
        return " points" if self.unit == "%" else ""

    def ranked(self, low: Value, high: Value) -> tuple[Value, Value]:
        """The worse of two values in order, and the better."""
        return (low, high) if self.higher else (high, low)

    def apart(self, value: float, other: float) -> str:
        """How far `value` is from `other`, in words that say which is better."""
        gap = self.scale * (value - other)
        unit = " points" if self.unit == "%" else f" {self.unit}".rstrip()
        size = f"{abs(gap):.{self.digits}f}"
        if float(size) == 0:
            return "equal to"
        return f"{size}{unit} {'above' if gap > 0 else 'below'}"


def metric_of(events: Iterable[Event]) -> Metric:
    """The run's main metric, as its start tells it: accuracy where it tells none."""
    told = latest(events, "run_started").get("metric")
    if not isinstance(told, Mapping) or not told.get("name"):
        return Metric()
    unit = str(told.get("unit") or "")
    scale = 100.0 if unit == "%" else 1.0
    return Metric(str(told["name"]), unit, scale, told.get("direction", "higher") == "higher")


def of_kind(events: Iterable[Event], kind: str) -> list[Event]:
    """Return the events of one kind, in their order."""
    return [event for event in events if event["event"] == kind]


def latest(events: Iterable[Event], kind: str) -> Event:
    """Return the last event of one kind; {} when there is none."""
    found = of_kind(events, kind)
    return found[-1] if found else {}


def series(events: Iterable[Event], model: str, field: str = "accuracy") -> list[Point]:
    """Return the evaluations of `model` as (t, value of `field`), by time; without the nulls."""
    return [
        (event["t"], event[field])
        for event in sorted(of_kind(events, "evaluate"), key=_moment)
        if event["model"] == model and event.get(field) is not None
    ]


def last_accuracy(events: Iterable[Event], model: str, field: str = "accuracy") -> float | None:
    """Return `field` of the last evaluation of `model`; None if there is none, or it had
    diverged."""
    found = [event for event in of_kind(events, "evaluate") if event["model"] == model]
    return max(found, key=_moment).get(field) if found else None


def _moment(event: Event) -> tuple[float, int]:
    """By which evaluations are in order: several versions may be made at one time."""
    return event["t"], event.get("round", 0)


def time_to_target(
    points: Sequence[Point], target: float, window: int = 1, *, higher: bool = True
) -> float | None:
    """Return the first t_i at which mean(a_(i-window+1) .. a_i) >= `target`, or None if never; <=
    where less is better (`higher` is false).

    `points` are (t, accuracy) by time. A run's record judges the very points that it draws: else a
    final accuracy above a target would stand beside "not reached". Where a single evaluation, which
    may jump by several points, must not decide, take the mean of more. Raises ValueError for a
    window below 1.
    """
    if window < 1:
        raise ValueError(f"window={window} must be at least 1 evaluation")
    for i in range(window - 1, len(points)):
        # The tolerance forgives the last bit of the division, e.g. of three times 0.7.
        mean = sum(a for _, a in points[i - window + 1 : i + 1]) / window
        if (mean - target if higher else target - mean) >= -1e-12:
            return points[i][0]
    return None


def targets_of(config: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the accuracies in a flat configuration's "targets" ("0.5,0.6")."""
    text = str(config.get("targets") or "")
    return tuple(float(part) for part in text.split(",") if part.strip())


def evaluated_on(events: Iterable[Event]) -> str:
    """Return on which examples accuracies were measured: "test" or "validation"."""
    return evaluation_of(latest(events, "run_started").get("config") or {})


def evaluation_of(config: Mapping[str, Any]) -> str:
    """`evaluated_on` by a flat configuration; earlier runs had the test set alone."""
    return str(config.get("evaluate-on") or "test")


def end_time(events: Iterable[Event]) -> float:
    """Return the last moment on the run's clock that any event names, in seconds."""
    return max(
        (event[key] for event in events for key in ("t", "t_end") if event.get(key) is not None),
        default=0.0,
    )


def settled(event: Event) -> bool:
    """Whether an event is of nodes that settle, after the last round in which they have learnt."""
    return bool(event.get("settled"))


def span(events: Sequence[Event]) -> dict[str, Any]:
    """Return the last round of the training, and how long the run took on its own and our clock."""
    return {
        "rounds": max((e["round"] for e in of_kind(events, "round") if not settled(e)), default=0),
        "end_seconds": end_time(events),
        "wall_seconds": events[-1]["t_wall"] if events else 0.0,
    }


def times_to_targets(
    points: Sequence[Point], targets: Sequence[float], higher: bool = True
) -> dict[str, float | None]:
    """Return {"0.50": seconds or None} (see `time_to_target`); with more digits where needed."""
    return {
        f"{target:.2f}" if round(target, 2) == target else f"{target:g}": time_to_target(
            points, target, higher=higher
        )
        for target in targets
    }


def codes_of(events: Iterable[Event]) -> list[dict[str, Any]]:
    """Return which code has worked on the run, see `provenance`: each once, the last one last."""
    found: dict[str, dict[str, Any]] = {}
    for event in of_kind(events, "code"):
        code = {name: event.get(name) for name in ("commit", "dirty", "fingerprint")}
        if own := event.get("own"):
            code["own"] = own
        found.pop(repr(code), None)
        found[repr(code)] = code
    return list(found.values())


def link_counts(events: Iterable[Event]) -> dict[str, Any]:
    """Of a run on devices with sessions: processes {device: how many have served it}, away (the
    devices that were not there at its end), router_restarts, and refused {"kind: reason": how many
    beats or replies were none}; {} where there were none."""
    processes: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    told = of_kind(events, "sessions")
    for event in told:
        processes.update(event["started"])
        refused.update(event.get("refused") or {})
    if not told:
        return {}
    return {
        "processes": dict(processes),
        "away": told[-1]["away"],
        "router_restarts": sum(event["router_restarts"] for event in told),
        "refused": dict(refused),
    }
