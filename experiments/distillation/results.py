"""From run directories to results.json, and the numbers that follow from several runs. Pure but for
`collect`, which reads."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from experiments.distillation.plan import TARGETS, Planned
from experiments.planned_runs import collect_entries
from experiments.reporting import Entry, Results
from fl_app.record.metrics import Point, of_kind, series, time_to_target
from fl_app.record.run_dir import RunDirectory

# Seconds until the global model reaches 60 % on CIFAR-10, from Yajima et al.
PAPER = {"sync-forward": 436, "sync": 406, "async-round": 308, "async-continuous": 244}
PAPER_TARGET = 0.6

# Three consecutive evaluations make a number: a single one of a raw model jumps by several points.
WINDOW = 3
CURVES = {"small": ("small", "accuracy"), "raw": ("global", "accuracy")}
CURVES["ema"] = ("global", "accuracy_ema")


def collect(runs: Sequence[Planned], root: Path, size: str, invocation: str) -> Results:
    """Everything that the report needs, of the planned runs that are complete in `root`."""
    return collect_entries(runs, root, size, invocation, _entry)


def _entry(planned: Planned, run: RunDirectory) -> Entry:
    events = run.events()
    curves = {name: series(events, *key) for name, key in CURVES.items()}
    reverse = [s for s in of_kind(events, "segment") if s["kind"] == "reverse"]
    return {
        "clock": planned.clock,
        "partition": planned.partition,
        "variant": planned.variant,
        "in_process": planned.clock == "virtual",
        "published": "ema" if _publishes_ema(events) else "raw",
        "curves": curves,
        "times": {
            name: {f"{t:.2f}": time_to_target(curves[name], t, WINDOW) for t in TARGETS}
            for name in ("raw", "ema")
        },
        "steps": sum(segment["steps"] for segment in reverse),
        "summary": {key: value for key, value in run.summary().items() if key != "run_directory"},
    }


def _publishes_ema(events: Iterable[dict[str, Any]]) -> bool:
    return any(e.get("published") == "ema" for e in of_kind(events, "evaluate"))


def published_curve(entry: Entry) -> list[Point]:
    """The accuracy of the model that the run publishes: raw in the paper's variants, or EMA."""
    return [(t, a) for t, a in entry["curves"][entry["published"]]]


def accuracy_at(points: Sequence[Point], t: float, window: int = WINDOW) -> float | None:
    """The mean of the last `window` evaluations not later than `t`; None with fewer."""
    until = [a for moment, a in points if moment <= t + 1e-9]
    return mean(until[-window:]) if len(until) >= window else None


def duration(entry: Entry) -> float:
    """When the last global model of a run was published, on the run's clock."""
    return entry["curves"]["raw"][-1][0]


def equal_time(entries: Iterable[Entry]) -> float:
    """The moment up to which all of these runs lasted."""
    return min(duration(entry) for entry in entries)


def time_of(entry: Entry, target: float, model: str) -> float | None:
    """Seconds until `model` ("raw", "ema" or "published") reached `target`."""
    name = entry["published"] if model == "published" else model
    return entry["times"][name][f"{target:.2f}"]


def speedup(slow: Sequence[Entry], fast: Sequence[Entry], target: float, model: str) -> Results:
    """How much earlier than `slow` the runs `fast` reach a target, seed by seed.

    {"ratios": one a seed or None, "mean": of those, "at_least": whether some are lower bounds}: a
    slow run that ended without reaching the target would have needed longer than it lasted. Without
    a fast run that reached it there is nothing to say for that seed.
    """
    ratios, at_least = [], False
    others = {entry["seed"]: entry for entry in slow}
    for entry in fast:
        t, other = time_of(entry, target, model), others.get(entry["seed"])
        if t is None or other is None:
            ratios.append(None)
            continue
        t_slow = time_of(other, target, model)
        at_least = at_least or t_slow is None
        ratios.append((duration(other) if t_slow is None else t_slow) / t)
    known = [ratio for ratio in ratios if ratio is not None]
    return {"ratios": ratios, "mean": mean(known) if known else None, "at_least": at_least}


def difference(
    first: Sequence[Entry], second: Sequence[Entry], value: Callable[[Entry], float | None]
) -> list[float]:
    """value(first) - value(second) for every seed of which there are both and both are known."""
    others = {entry["seed"]: value(entry) for entry in second}
    pairs = [(value(entry), others.get(entry["seed"])) for entry in first]
    return [a - b for a, b in pairs if a is not None and b is not None]
