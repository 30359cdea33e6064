"""From the runs to a table a mode: bytes, accuracy, and the difference to whole mail."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from experiments.mail_precision.plan import MODES, ROWS, WHOLE, Planned
from experiments.planned_runs import collect_entries
from experiments.reporting import (
    Entry,
    Results,
    code_line,
    hardware_line,
    many,
    present,
    select,
    shown_settings,
    table,
    write_report,
)
from fl_app.record.modes import view_of
from fl_app.record.run_dir import RunDirectory, flatten

_MEGABYTE = 1e6


def collect(runs: Sequence[Planned], root: Path, size: str, invocation: str) -> Results:
    """What the report needs of the planned runs that are complete in `root`."""
    return collect_entries(runs, root, size, invocation, _entry)


def _entry(planned: Planned, run: RunDirectory) -> Entry:
    summary, headline = run.summary(), view_of(flatten(run.config())).headline
    both_ways = summary["bytes"] if "bytes" in summary else _both_ways(summary)
    return {
        "mode": planned.mode,
        "row": planned.row,
        "accuracy": summary["final"][headline],
        "bytes": both_ways,
        "wall_seconds": round(summary["wall_seconds"], 1),
    }


def _both_ways(summary: dict[str, Any]) -> int:
    return summary["bytes_up"] + summary["bytes_down"]


def write(results: Results, out: Path) -> Path:
    """`write_report`, without pictures."""
    return write_report(results, out, {}, render)


def render(results: Results, notes: str = "") -> str:
    """The report as Markdown."""
    head = [
        "# Mail with fewer bits",
        f"- Made by `{results['command']}`.",
        f"- Code: {code_line(results)}.",
        f"- Hardware: {hardware_line(results)}.",
        "Test accuracy in the end, in %, on 1,000 images; MB of models and changes both ways "
        "(of consensus: of neighbours' mail); differences to `float32` paired by seed. Of three "
        "seeds or more the mean ± its standard error. All runs of a mode do as many steps of "
        "training; *a quarter as often* is the control: as few bytes as `int8`, by larger rounds, "
        "or rarer exchanges.",
    ]
    sections = [_mode(results, mode) for mode in present(results, "mode", MODES)]
    return "\n\n".join(part for part in (*head, notes.strip(), *sections) if part) + "\n"


def _mode(results: Results, mode: str) -> str:
    rows = []
    whole = _by_seed(select(results, mode=mode, row=WHOLE), "accuracy")
    for row in ROWS:
        entries = select(results, mode=mode, row=row)
        if not entries:
            continue
        accuracies = _by_seed(entries, "accuracy")
        paired = [a - whole[seed] for seed, a in accuracies.items() if seed in whole]
        rows.append(
            [
                row if " " in row else f"`{row}`",
                f"{mean(entry['bytes'] for entry in entries) / _MEGABYTE:.2f}",
                many([100 * a for a in accuracies.values()], "{:.1f}"),
                "" if row == WHOLE else many([100 * a for a in paired], "{:+.1f}"),
            ]
        )
    settings = shown_settings({"mode": mode, **MODES[mode]})
    found = table(["mail", "MB", "accuracy", "to `float32`"], rows)
    return f"## {mode}\n\n{settings}\n\n{found}"


def _by_seed(entries: Sequence[Entry], key: str) -> dict[int, float]:
    return {entry["seed"]: entry[key] for entry in entries}
