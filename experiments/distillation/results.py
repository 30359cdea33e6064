"""From run directories to results.json, and the numbers that follow from several runs. Pure but for
`collect`, which reads."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from experiments.distillation.plan import OURS, Planned
from experiments.planned_runs import collect_entries
from experiments.reporting import Entry, Results, select
from fl_app.record.distill_metrics import published_as, references
from fl_app.record.metrics import Event, Point, of_kind, series, time_to_target
from fl_app.record.run_dir import RunDirectory

# Three consecutive evaluations decide that a target is reached: a single one may jump.
WINDOW = 3
# A run is at its plateau if the mean of its last fifth is not so much above the fifth before.
PLATEAU, FIFTHS = 0.005, 5
_KEPT = ("client_idle_fraction", "worker_busy_fraction", "teacher_staleness", "checksum")
_CURVES = {
    "raw": ("global", "accuracy"),
    "average": ("global", "accuracy_ema"),
    "small": ("small", "accuracy"),
}

# Lines that our row's runs have beside what it publishes: names of tables, names of curves.
CONTROLS = {
    "small model": "small",
    "small-average": "small_average",
    "small-calibrated": "small_calibrated",
    "server-alone": "server_alone",
    "centralized-large": "centralized_large",
    "plus-raw": "raw",
}


def collect(runs: Sequence[Planned], root: Path, size: str, invocation: str) -> Results:
    """Everything that the report needs, of the planned runs that are complete in `root`."""
    return collect_entries(runs, root, size, invocation, _entry)


def _entry(planned: Planned, run: RunDirectory) -> Entry:
    events, summary = run.events(), run.summary()
    curves = {name: series(events, *key) for name, key in _CURVES.items()}
    return {
        "setting": planned.setting.name,
        "row": planned.row,
        "clock": planned.values["clock"],
        "curves": {
            "published": _rounded(series(events, *published_as(events))),
            **{name: _rounded(points) for name, points in (curves | references(events)).items()},
        },
        "steps": _steps(events),
        "bytes": summary["bytes_up"] + summary["bytes_down"],
        "wall_seconds": round(summary["wall_seconds"], 1),
        **{key: summary.get(key) for key in _KEPT},
    }


def _rounded(points: Iterable[Point]) -> list[Point]:
    return [(round(t, 2), round(accuracy, 5)) for t, accuracy in points]


def _steps(events: Iterable[Event]) -> list[Point]:
    """How many steps the distillation server had done when a global model was shown."""
    shown = (e for e in of_kind(events, "evaluate") if e["model"] == "global")
    return sorted((round(e["t"], 2), e["step"]) for e in shown)


# -- one line of a table ----------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A row of a setting's table: by seed, the run that it is of, and the curve's name."""

    name: str
    entries: Mapping[int, Entry]
    curve: str = "published"

    @property
    def runs(self) -> bool:
        """Whether it has runs of its own."""
        return self.curve == "published"

    def points(self, seed: int) -> list[Point]:
        return [(t, a) for t, a in self.entries[seed]["curves"][self.curve]]

    def final(self) -> dict[int, float]:
        """The last evaluation, by seed."""
        return {seed: self.points(seed)[-1][1] for seed in self.entries}

    def at(self, moments: Mapping[int, float]) -> dict[int, float]:
        """By seed, the last evaluation that is not later than that seed's moment."""
        found = {}
        for seed in self.entries:
            until = [a for t, a in self.points(seed) if t <= moments[seed] + 1e-6]
            if until:
                found[seed] = until[-1]
        return found

    def after(self, steps: int) -> dict[int, float]:
        """By seed, the last evaluation with at most so many steps of the distillation server."""
        moments = {
            seed: max((t for t, s in entry["steps"] if s <= steps), default=-math.inf)
            for seed, entry in self.entries.items()
        }
        return self.at(moments)

    def time_to(self, target: float) -> dict[int, float | None]:
        """By seed, when the target was reached."""
        return {seed: time_to_target(self.points(seed), target, WINDOW) for seed in self.entries}

    def highest(self) -> float:
        """The most that is reached with any seed."""
        return max(_highest(self.points(seed)) for seed in self.entries)

    def surest(self) -> float:
        """The most that is reached with every seed."""
        return min(_highest(self.points(seed)) for seed in self.entries)

    def duration(self, seed: int) -> float:
        return self.points(seed)[-1][0]

    def last_gain(self) -> float:
        """Mean over the seeds of what the last fifth of a run is above the fifth before."""
        gains = []
        for seed in self.entries:
            values = [a for _, a in self.points(seed)]
            n = max(1, len(values) // FIFTHS)
            gains.append(mean(values[-n:]) - mean(values[-2 * n : -n] or values[:1]))
        return mean(gains)


def _highest(points: Sequence[Point]) -> float:
    values = [a for _, a in points]
    windows = [mean(values[i : i + WINDOW]) for i in range(len(values) - WINDOW + 1)]
    return max(windows, default=-math.inf)


def lines_of(results: Results, setting: str) -> dict[str, Line]:
    """All lines of a setting: its rows, and the controls that our row has computed."""
    rows: dict[str, dict[int, Entry]] = {}
    for entry in select(results, setting=setting):
        rows.setdefault(entry["row"], {})[entry["seed"]] = entry
    found = {row: Line(row, entries) for row, entries in rows.items()}
    for name, curve in CONTROLS.items():
        entries = {s: e for s, e in rows.get(OURS, {}).items() if e["curves"].get(curve)}
        if entries:
            found[name] = Line(name, entries, curve)
    return found


# -- numbers ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A mean over n seeds and its standard error (None with one seed)."""

    mean: float
    error: float | None
    n: int


def estimate(values: Sequence[float]) -> Estimate | None:
    """None of no values."""
    if not values:
        return None
    centre, n = mean(values), len(values)
    if n == 1:
        return Estimate(centre, None, 1)
    return Estimate(centre, math.sqrt(sum((v - centre) ** 2 for v in values) / (n - 1) / n), n)


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> list[float]:
    """first - second for every seed that both have."""
    return [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]


def barrier(lines: Mapping[str, Line]) -> float:
    """The lowest whole percent that the server alone reaches with no seed; 0 where it has no
    labels, so that there is no such control."""
    alone = lines.get("server-alone")
    return math.floor(100 * alone.highest() + 1) / 100 if alone else 0.0


def target_of(lines: Mapping[str, Line], *names: str) -> float:
    """The target whose times are compared between these rows: the highest whole percent that all
    of them reach with every seed; but, where that is lower, the first that the server alone does
    not reach."""
    surest = min(lines[name].surest() for name in names)
    return max(barrier(lines), math.floor(100 * surest + 1e-9) / 100)


def speedups(slow: Line, fast: Line, target: float) -> tuple[list[float], bool]:
    """How much earlier than `slow` the runs of `fast` reach a target, seed by seed, and whether
    some ratios are lower bounds: a slow run that ended without reaching the target would have
    needed longer than it lasted. A seed with which the fast run did not reach it has none."""
    ratios, at_least = [], False
    slow_times, fast_times = slow.time_to(target), fast.time_to(target)
    for seed in sorted(slow_times.keys() & fast_times.keys()):
        fast_time, slow_time = fast_times[seed], slow_times[seed]
        if fast_time is None:
            continue
        at_least = at_least or slow_time is None
        ratios.append((slow.duration(seed) if slow_time is None else slow_time) / fast_time)
    return ratios, at_least


def equal_time(lines: Mapping[str, Line]) -> dict[int, float]:
    """By seed, the moment at which the first of a setting's runs ended."""
    rows = [line for line in lines.values() if line.runs]
    seeds = {seed for line in rows for seed in line.entries}
    return {
        seed: min(line.duration(seed) for line in rows if seed in line.entries) for seed in seeds
    }


def equal_steps(lines: Mapping[str, Line]) -> int:
    """The steps that every run of a setting has done."""
    entries: list[dict[str, Any]] = [
        entry for line in lines.values() if line.runs for entry in line.entries.values()
    ]
    return int(min(entry["steps"][-1][1] for entry in entries))
