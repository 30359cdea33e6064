"""Pure reading of a run's events: which of them count, and the numbers drawn from them.

An event is a dict with "event" (its kind), "t_wall" (real seconds since the run's start) and,
where it has one, "t" (seconds on the run's own clock, virtual or real).
"""

from collections.abc import Iterable, Mapping, Sequence
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


Point = tuple[float, float]  # (seconds on the run's clock, accuracy in [0, 1])

TARGETS = (0.5, 0.55, 0.6, 0.65)
CLOCK_UNITS = {"virtual": "virtual s", "real": "s"}


def of_kind(events: Iterable[Event], kind: str) -> list[Event]:
    """Return the events of one kind, in their order."""
    return [event for event in events if event["event"] == kind]


def series(events: Iterable[Event], model: str, field: str = "accuracy") -> list[Point]:
    """Return the evaluations of `model` as (t, value of `field`), by time; without the nulls."""
    points = [
        (event["t"], event[field])
        for event in of_kind(events, "evaluate")
        if event["model"] == model and event.get(field) is not None
    ]
    return sorted(points)


def published(events: Sequence[Event]) -> list[Point]:
    """Return the evaluations of the model that the run publishes.

    That is the global model, raw or as a moving average, as the evaluation says; the averaged small
    model in a run without a distillation server.
    """
    ema = any(event.get("published") == "ema" for event in of_kind(events, "evaluate"))
    points = series(events, "global", "accuracy_ema" if ema else "accuracy")
    return points or series(events, "small")


def time_to_target(points: Sequence[Point], target: float, window: int = 3) -> float | None:
    """Return the first t_i at which mean(a_(i-window+1) .. a_i) >= `target`, or None if never.

    `points` are (t, accuracy) by time. The mean over consecutive evaluations is there because a
    single evaluation of a model in training jumps by several points. Raises ValueError for a
    window below 1.
    """
    if window < 1:
        raise ValueError(f"window={window} must be at least 1 evaluation")
    for i in range(window - 1, len(points)):
        # The tolerance forgives the last bit of the division, e.g. of three times 0.7.
        if sum(a for _, a in points[i - window + 1 : i + 1]) / window >= target - 1e-12:
            return points[i][0]
    return None


def targets_of(config: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the accuracies in a flat configuration's "targets" ("0.5,0.6"), or TARGETS."""
    text = str(config.get("targets") or "")
    return tuple(float(part) for part in text.split(",") if part.strip()) or TARGETS


def end_time(events: Iterable[Event]) -> float:
    """Return the last moment on the run's clock that any event names, in seconds."""
    return max(
        (event[key] for event in events for key in ("t", "t_end") if event.get(key) is not None),
        default=0.0,
    )


def participants(events: Iterable[Event]) -> list[int]:
    """Return the participants that did or awaited anything, sorted."""
    return sorted({event["participant"] for event in events if event["event"] in ("job", "idle")})


def round_table(events: Iterable[Event]) -> list[dict[str, Any]]:
    """Return one row a round: the fields of its "round" event, and small, global and global_ema.

    A value that was not recorded is None. Accuracies are in [0, 1], bytes are cumulative.
    """
    empty: dict[str, Any] = dict.fromkeys(
        ("t", "small", "global", "global_ema", "staleness", "contributions", "rejected", "lost",
         "bytes_up", "bytes_down", "worker_steps", "teacher_version", "eta")
    )  # fmt: skip
    rows: dict[int, dict[str, Any]] = {}
    for event in events:
        if event["event"] not in ("round", "evaluate"):
            continue
        row = rows.setdefault(event["round"], {"round": event["round"], **empty})
        if event["event"] == "round":
            row |= {key: event[key] for key in empty if event.get(key) is not None}
            continue
        if row["t"] is None:
            row["t"] = event["t"]
        row[event["model"]] = event["accuracy"]
        if event["model"] == "global":
            row["global_ema"] = event.get("accuracy_ema")
    return [rows[number] for number in sorted(rows)]


def staleness_histogram(events: Iterable[Event]) -> dict[int, int]:
    """Return {staleness of the teacher in versions: distillation steps done with it}."""
    histogram: dict[int, int] = {}
    for segment in of_kind(events, "segment"):
        if segment["kind"] == "reverse" and segment.get("staleness_versions") is not None:
            staleness = int(segment["staleness_versions"])
            histogram[staleness] = histogram.get(staleness, 0) + int(segment["steps"])
    return dict(sorted(histogram.items()))


def measure(events: Sequence[Event], targets: Sequence[float] = TARGETS) -> dict[str, Any]:
    """Return the part of summary.json that follows from the events; null where nothing was seen.

    - rounds: the last completed one; end_seconds on the run's clock; wall_seconds
    - final {small, global, global_ema, published}: the last evaluation of each
    - time_to_target {"0.50": seconds or null}: of the published model (see `time_to_target`)
    - client_idle_fraction {clients, server, total}: share of the participants' time that they
      waited for other participants and for the server
    - worker_busy_fraction: share of the run's time in which the distillation server computed
    - teacher_staleness {mean, max}: versions, over the distillation steps
    - skipped_snapshots, rejected, lost: counts; bytes_up, bytes_down: totals
    """
    end = end_time(events)
    rounds = of_kind(events, "round")
    segments = of_kind(events, "segment")
    last_round = rounds[-1] if rounds else {}
    fields = {"small": ("small", "accuracy"), "global": ("global", "accuracy")}
    fields["global_ema"] = ("global", "accuracy_ema")
    finals = {name: series(events, *field) for name, field in fields.items()}
    points = published(events)
    finals["published"] = points
    return {
        "rounds": max((event["round"] for event in rounds), default=0),
        "end_seconds": end,
        "wall_seconds": events[-1]["t_wall"] if events else 0.0,
        "final": {name: points[-1][1] if points else None for name, points in finals.items()},
        "time_to_target": {f"{target:.2f}": time_to_target(points, target) for target in targets},
        "client_idle_fraction": _idle_fractions(events, end),
        "worker_busy_fraction": _busy(segments) / end if segments and end else None,
        "teacher_staleness": _weighted(staleness_histogram(events)),
        "skipped_snapshots": len(of_kind(events, "skipped")),
        "rejected": len(of_kind(events, "rejected")),
        "lost": sum(job["status"] == "lost" for job in of_kind(events, "job")),
        "bytes_up": last_round.get("bytes_up"),
        "bytes_down": last_round.get("bytes_down"),
    }


def _idle_fractions(events: Sequence[Event], end: float) -> dict[str, float | None]:
    available = len(participants(events)) * end
    if not available:
        return {"clients": None, "server": None, "total": None}
    waited = {"clients": 0.0, "server": 0.0}
    for event in of_kind(events, "idle"):
        waited[event["waiting_for"]] += event["t_end"] - event["t_start"]
    fractions = {name: seconds / available for name, seconds in waited.items()}
    return {**fractions, "total": sum(fractions.values())}


def _busy(segments: Iterable[Event]) -> float:
    return sum(segment["t_end"] - segment["t_start"] for segment in segments)


def _weighted(histogram: Mapping[int, int]) -> dict[str, float | None]:
    steps = sum(histogram.values())
    if not steps:
        return {"mean": None, "max": None}
    mean = sum(staleness * weight for staleness, weight in histogram.items()) / steps
    return {"mean": mean, "max": max(histogram)}
