"""The runs of the momentum tracking protocol as they are kept, and their table."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock

from experiments.consensus.tracking_cases import METHODS, Case
from experiments.reporting import table
from strategies.checkpoint import atomic_write


def render(runs: Sequence[Mapping[str, Any]]) -> str:
    """A line for each method, seed and condition: the run with the best step size."""
    free = {field_ for field_ in Case.__dataclass_fields__ if field_ != "learning_rate"}
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for run in runs:
        if run["test"]:
            case = asdict(_case_of(run))
            groups.setdefault(tuple(case[key] for key in sorted(free)), []).append(run)
    rows = []
    for group in groups.values():
        best = max(group, key=lambda run: run["curve"][-1]["mean"])
        case = _case_of(best)
        published = METHODS[case.method].published
        comparable = case == Case(case.method, case.learning_rate)
        tried = ", ".join(f"{run['learning_rate']:g}" for run in group)
        test, names = best["test"], ("mean", "lowest", "average")
        shown = [f"{test[name]:.1f}" for name in names]
        over_time = test.get("over_time")  # older runs have none
        shown += [f"{over_time[name]:.1f}" if over_time else "-" for name in names]
        rows.append(
            [case.name, str(case.epochs), tried, f"{best['curve'][-1]['mean']:.1f}", *shown,
             f"{published}" if published and comparable else "-", f"{best['bytes'] / 1e9:.1f}",
             f"{best['seconds']:.0f}"]
        )  # fmt: skip
    head = [
        "run", "epochs", "step sizes tried", "validation", "test, mean of the nodes", "lowest",
        "settled", "over time: mean", "lowest", "settled", "published", "GB", "seconds",
    ]  # fmt: skip
    return table(head, rows)


class Results:
    """The runs in a file, one a case. Several processes may write into it, each its own cases."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)  # of states, too

    @property
    def runs(self) -> list[dict[str, Any]]:
        """What is in the file now."""
        return json.loads(self._path.read_text()) if self._path.exists() else []

    def has(self, case: Case) -> bool:
        """Whether it has been run to its end."""
        return any(run["test"] and _case_of(run) == case for run in self.runs)

    def state(self, case: Case) -> Path:
        """Where the nodes of an unfinished run are kept."""
        name = hashlib.sha256(json.dumps(asdict(case)).encode()).hexdigest()[:16]
        return self._path.parent / f"{self._path.stem}-{name}.npz"

    def keep(self, entry: dict[str, Any]) -> None:
        """Put a run in the place of what was known of its case; all else stays as it is."""
        case = _case_of(entry)
        with FileLock(f"{self._path}.lock"):  # nobody writes between our reading and our writing
            runs = [run for run in self.runs if _case_of(run) != case] + [entry]
            lines = ",\n".join(json.dumps(run) for run in runs)
            atomic_write(self._path, f"[\n{lines}\n]\n".encode())


def _case_of(run: Mapping[str, Any]) -> Case:
    """What was run; an older run does not have all fields, and was by their defaults."""
    return Case(**{name: run[name] for name in Case.__dataclass_fields__ if name in run})
