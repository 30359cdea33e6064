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
from fl_app.config import defaults, with_effect
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
    found = table(["mail", "MB", "accuracy", "to `float32`"], rows)
    return f"## {mode}\n\n{_settings(results, mode)}\n\n{found}"


def _settings(results: Results, mode: str) -> str:
    """With what the runs were made, which the plan and the defaults of today need not say."""
    first = min(select(results, mode=mode), key=lambda entry: ROWS.index(entry["row"]))
    given = {k: v for k, v in first["settings"].items() if k not in ("seed", "mail-precision")}
    then, now = results.get("defaults") or defaults(), defaults()
    effective = with_effect({**now, **given}).keys() - given.keys()
    changed = {k: then[k] for k in effective & then.keys() if then[k] != now[k]}
    new = effective - then.keys()
    told = [shown_settings(given)]
    told += [f"by defaults that are others now: {shown_settings(changed)}"] if changed else []
    told += [f"without what has come since: {', '.join(sorted(new))}"] if new else []
    return "; ".join(told)


def _by_seed(entries: Sequence[Entry], key: str) -> dict[int, float]:
    return {entry["seed"]: entry[key] for entry in entries}
