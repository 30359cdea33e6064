"""What reports of several runs share: choosing runs, tables, curves, files. Pure but for
`write_report`."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from fl_app.provenance import described
from strategies.checkpoint import atomic_write

Results = dict[str, Any]
Entry = dict[str, Any]
_GRID = 200


def select(results: Results, **wanted: Any) -> list[Entry]:
    """The runs whose fields have these values, by seed."""
    found = [r for r in results["runs"] if all(r[key] == value for key, value in wanted.items())]
    return sorted(found, key=lambda entry: entry["seed"])


def present(results: Results, key: str, order: Iterable[str]) -> list[str]:
    """Those of `order` of which there is a run, in that order."""
    there = {entry[key] for entry in results["runs"]}
    return [value for value in order if value in there]


def band(curves: Sequence[Sequence[tuple[float, float]]]) -> tuple[np.ndarray, np.ndarray]:
    """Times (n,) that all curves cover, and their values there (curves, n), linearly between."""
    arrays = [np.asarray(curve) for curve in curves]
    times = np.linspace(max(a[0, 0] for a in arrays), min(a[-1, 0] for a in arrays), _GRID)
    return times, np.stack([np.interp(times, a[:, 0], a[:, 1]) for a in arrays])


def many(values: Sequence[float | None], form: str) -> str:
    """One value; the mean of two with each of them; of more, the mean and its standard error. A
    mean only if all values are there."""
    shown = ["-" if value is None else form.format(value) for value in values]
    if len(shown) < 2:
        return "".join(shown) or "-"
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    average = form.format(mean(known)) if len(known) == len(values) else "-"
    if len(known) == len(values) > 2:
        return f"{average} ± {form.replace('+', '').format(standard_error(known))}"
    return f"{average} [{', '.join(shown)}]"


def standard_error(values: Sequence[float]) -> float:
    """Of the mean of two values or more."""
    return stdev(values) / math.sqrt(len(values))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table: the first column to the left, all others to the right."""
    lines = [head, ["---", *(["---:"] * (len(head) - 1))], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine_line(machine: dict[str, Any]) -> str:
    """The hardware in words."""
    gpu = f", {machine['gpu']}" if machine.get("gpu") else ", no GPU"
    cores = machine.get("cpus_usable")
    return f"{machine.get('cpu')}, {cores} {'core' if cores == 1 else 'cores'}{gpu}"


def hardware_line(results: Results) -> str:
    """The hardware of all runs in words; where it is not all the same, of how many which."""
    machines = Counter(
        machine_line(e.get("hardware") or results["hardware"]) for e in results["runs"]
    )
    if len(machines) == 1:
        return next(iter(machines))
    return "; ".join(
        f"{count} {'run' if count == 1 else 'runs'} on {machine}"
        for machine, count in machines.most_common()
    )


def code_line(results: Results) -> str:
    """Which code made the results, in words; of some that do not say it, that they do not."""
    return "; ".join(map(described, results.get("code") or [None]))


def shown_settings(settings: dict[str, Any], without: Iterable[str] = ()) -> str:
    """Settings as one types them, sorted by key."""
    left_out = set(without)
    return ", ".join(f"{k}={v}" for k, v in sorted(settings.items()) if k not in left_out)


def as_json(results: Results) -> str:
    """Indented, but a line for each run: ten thousand lines of curves nobody reads."""
    head = json.dumps({k: v for k, v in results.items() if k != "runs"}, indent=1)
    runs = ",\n  ".join(json.dumps(entry) for entry in results["runs"])
    return f'{head[:-2]},\n "runs": [\n  {runs}\n ]\n}}\n'


def write_report(
    results: Results,
    out: Path,
    pictures: Mapping[str, bytes],
    render: Callable[[Results, str], str],
) -> Path:
    """Write results.json, figures/NAME.png and report.md into `out`; returns the report's path.

    render: from results and notes to the report. A file notes.md in `out`, written by hand, is the
    notes.
    """
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for name, png in pictures.items():
        (out / "figures" / f"{name}.png").write_bytes(png)
    # Whole or not at all: it may be all that is left of runs of another day.
    atomic_write(out / "results.json", as_json(results).encode())
    notes = out / "notes.md"
    path = out / "report.md"
    path.write_text(render(results, notes.read_text() if notes.exists() else ""))
    return path
