"""From run directories to results.json, and the numbers that follow from several runs. Pure but for
`collect`, which reads."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from experiments.consensus.execute import final
from experiments.consensus.plan import Planned
from experiments.planned_runs import collect_entries
from experiments.reporting import Entry, Results, select, standard_error
from fl_app.record.consensus_metrics import window_table
from fl_app.record.run_dir import RunDirectory

# Fewer decide nothing.
_SEEDS = 3
# How far below centralized training of as many steps our nodes may be, on a random split.
AIM = 0.005
CENTRALIZED = ("same-steps", "same-samples")
_CURVES = ("mean", "min", "max", "average", "distance")


def collect(runs: Sequence[Planned], root: Path, size: str, invocation: str) -> Results:
    """Everything that the report needs, of the planned runs that are complete in `root`."""
    return collect_entries(runs, root, size, invocation, _entry)


def _entry(planned: Planned, run: RunDirectory) -> Entry:
    summary = run.summary()
    table = [row for row in window_table(run.events()) if not row["settled"]]
    window = int(planned.values["consensus.window"])
    references = table[-1]["reference"] or {}
    steps = [window * row["round"] for row in table]
    return {
        "group": planned.group,
        "row": planned.row,
        "published": summary["published"],
        "final": final(run),
        "curves": {
            **{name: _curve(steps, [row[name] for row in table]) for name in _CURVES},
            **{
                name: _curve(steps, [row["reference"][name] for row in table])
                for name in references
            },
        },
        "distance": summary["distance"],
        "messages": summary["messages"],
        "bytes": summary["bytes"],
        "settling_bytes": (summary["settling"] or {}).get("bytes", 0),
        "wall_seconds": summary["wall_seconds"],
    }


def _curve(steps: Sequence[int], values: Sequence[float | None]) -> list[tuple[int, float]]:
    return [(s, round(v, 6)) for s, v in zip(steps, values, strict=True) if v is not None]


def in_the_end(entry: Entry) -> list[float]:
    """Accuracies of the models that nodes have in the end: settled, if they have settled."""
    return entry["final"].get("settled") or entry["final"]["nodes"]


def node_mean(entry: Entry) -> float:
    return mean(in_the_end(entry))


def node_min(entry: Entry) -> float:
    return min(in_the_end(entry))


def average(entry: Entry) -> float:
    """Accuracy of the averaged model, which no node has."""
    return entry["final"]["average"]


@dataclass(frozen=True)
class Gap:
    """Between the means of two groups of independent runs: mean, standard error (None where one of
    them has a single run), and the number of runs of the first."""

    mean: float
    error: float | None
    seeds: int


def gap(values: Sequence[float], others: Sequence[float]) -> Gap:
    errors = [standard_error(each) if len(each) > 1 else None for each in (values, others)]
    known = [error for error in errors if error is not None]
    error = math.hypot(*known) if len(known) == len(errors) else None
    return Gap(mean(values) - mean(others), error, len(values))


def hosts(results: Results, group: str, name: str) -> list[Entry]:
    """The runs beside which all data in one place were trained with as they would be in `group`.

    Who has which data makes no difference there, so groups whose steps and momentum are alike are
    replicates of one another.
    """
    trained = {_training(entry) for entry in select(results, group=group)}
    return [
        entry
        for entry in results["runs"]
        if name in entry["final"]["reference"] and _training(entry) in trained
    ]


def _training(entry: Entry) -> tuple[Any, ...]:
    return tuple(entry["settings"].get(f"consensus.{key}") for key in ("schedule", "momentum"))


def centralized(results: Results, group: str, name: str) -> list[float]:
    """What training with all data in one place gave, in all of its replicates."""
    return [entry["final"]["reference"][name] for entry in hosts(results, group, name)]


def behind(results: Results, group: str, row: str, name: str) -> dict[str, Gap]:
    """How far the row's mean and lowest node are above centralized training, negative if below;
    nothing where one of them is missing."""
    entries, reference = select(results, group=group, row=row), centralized(results, group, name)
    if not entries or not reference:
        return {}
    return {
        "mean": gap(list(map(node_mean, entries)), reference),
        "min": gap(list(map(node_min, entries)), reference),
    }


def verdict(found: Mapping[str, Gap]) -> str:
    """Whether mean and lowest node, less a standard error of the difference, meet the aim; open
    where there are fewer seeds than three."""
    seeds = min(each.seeds for each in found.values())
    if seeds < _SEEDS:
        return f"open: {seeds} of {_SEEDS} seeds"
    least = [each.mean - (each.error or 0.0) for each in found.values()]
    return "**met**" if min(least) >= -AIM else "**missed**"
