"""From run directories to results.json, and the numbers that follow from several runs. Pure but for
`collect`, which reads."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

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


def node_max(entry: Entry) -> float:
    return max(in_the_end(entry))


def average(entry: Entry) -> float:
    """Accuracy of the averaged model, which no node has."""
    return entry["final"]["average"]


def centralized(results: Results, group: str, name: str) -> dict[int, float]:
    """By seed, what training with all data in one place gave in that group."""
    return {
        entry["seed"]: entry["final"]["reference"][name]
        for entry in select(results, group=group)
        if name in entry["final"]["reference"]
    }


def behind(results: Results, group: str, row: str) -> dict[str, list[float]]:
    """How far the row's mean and lowest node are above centralized training of as many steps, seed
    by seed; negative if below."""
    reference = centralized(results, group, "same-steps")
    entries = [e for e in select(results, group=group, row=row) if e["seed"] in reference]
    return {
        "mean": [node_mean(entry) - reference[entry["seed"]] for entry in entries],
        "min": [node_min(entry) - reference[entry["seed"]] for entry in entries],
    }


def verdict(found: dict[str, list[float]]) -> str:
    """Whether mean and lowest node, each as a mean over the seeds less a standard error, meet the
    aim; open where there are fewer seeds than three."""
    seeds = min(map(len, found.values()))
    if seeds < _SEEDS:
        return f"open: {seeds} of {_SEEDS} seeds"
    least = [mean(values) - standard_error(values) for values in found.values()]
    return "**met**" if min(least) >= -AIM else "**missed**"
