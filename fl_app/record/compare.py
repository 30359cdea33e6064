"""Several runs side by side: one figure and one table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fl_app.errors import RunDirectoryError
from fl_app.record import figures
from fl_app.record.checkpoint import atomic_write
from fl_app.record.metrics import CLOCK_UNITS, measure, published, series, targets_of
from fl_app.record.report import status
from fl_app.record.run_dir import RunDirectory, flatten
from fl_app.record.sinks import duration, number, percent

_COLORS = (
    figures.BLUE, figures.ORANGE, figures.GREEN, figures.VERMILION, figures.PURPLE, figures.SKY,
    figures.BLACK, figures.GREY,
)  # fmt: skip
_MARKERS = "osD^vP*X"


def compare(runs: Sequence[RunDirectory], out: Path) -> str:
    """Write compare.png and compare.md into the directory `out`; return the table as Markdown.

    The figure has the published model of each run as a solid line and its small model dashed, over
    the run's own clock. Runs whose clocks or data sets differ are drawn all the same, and both the
    figure and the table say so. Raises RunDirectoryError without runs, or when none was evaluated.
    """
    if not runs:
        raise RunDirectoryError("nothing to compare: name at least one run directory")
    loaded = [(run, run.events(), flatten(run.config())) for run in runs]
    if not any(published(events) for _, events, _ in loaded):
        names = ", ".join(run.name for run in runs)
        raise RunDirectoryError(f"nothing to compare: no model was evaluated in {names}")
    notes = _notes([config for _, _, config in loaded])
    table = _table(loaded) + "".join(f"\n{note}\n" for note in notes)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunDirectoryError(f"cannot write to {out}: {error.strerror or error}") from error
    atomic_write(out / "compare.png", figures.to_png(_draw(loaded, notes)))
    atomic_write(out / "compare.md", table.encode())
    return table


def _notes(configs: Sequence[dict[str, Any]]) -> list[str]:
    """Return what forbids reading the runs as one experiment."""
    meanings = {"clock": "times", "dataset": "accuracies"}
    found = []
    for key, meaning in meanings.items():
        values = sorted({str(config.get(key)) for config in configs})
        if len(values) > 1:
            found.append(f"Note: {meaning} are not comparable, {key} differs: {', '.join(values)}.")
    return found


def _table(loaded: Sequence[tuple[RunDirectory, Any, dict[str, Any]]]) -> str:
    targets = sorted({target for _, _, config in loaded for target in targets_of(config)})
    head = [
        "run",
        "variant",
        "data set",
        "clock",
        "status",
        "rounds",
        "small %",
        "global %",
        "EMA %",
    ]
    head += [f"{100 * target:g} % after" for target in targets]
    head += ["run's time", "idle %", "distilling %", "wall time"]
    rows = []
    for run, events, config in loaded:
        m = measure(events, targets)
        unit = CLOCK_UNITS[config.get("clock", "real")]
        rows.append(
            [
                run.name,
                str(config.get(f"{config.get('mode')}.variant") or config.get("mode")),
                str(config.get("dataset", "-")),
                str(config.get("clock", "-")),
                status(run, events),
                str(m["rounds"]),
                *(percent(m["final"][model]) for model in ("small", "global", "global_ema")),
                *(_seconds(seconds, unit) for seconds in m["time_to_target"].values()),
                _seconds(m["end_seconds"], unit),
                percent(m["client_idle_fraction"]["total"]),
                percent(m["worker_busy_fraction"]),
                duration(m["wall_seconds"]),
            ]
        )
    lines = [head, ["---"] * 5 + ["---:"] * (len(head) - 5), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _seconds(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{number(value, 1)} {unit}"


def _draw(loaded: Sequence[tuple[RunDirectory, Any, dict[str, Any]]], notes: Sequence[str]) -> Any:
    labels = _labels(loaded)
    clocks = sorted({config.get("clock", "real") for _, _, config in loaded})
    figure, axes = figures.new_figure(9, 5 + 0.24 * len(loaded))
    for index, (_, events, _) in enumerate(loaded):
        style = {"color": _COLORS[index % len(_COLORS)], "marker": _MARKERS[index % len(_MARKERS)]}
        main, small = published(events), series(events, "small")
        if main:
            figures.draw_line(axes, main, label=labels[index], **style)
        if small and small != main:
            figures.draw_line(axes, small, ls="--", lw=1.0, alpha=0.7, **{**style, "marker": ""})
    if any(series(events, "global") for _, events, _ in loaded):
        axes.plot([], [], color=figures.GREY, ls="--", lw=1.0, label="small model of the same run")
    label = (
        figures.CLOCK_AXIS[clocks[0]] if len(clocks) == 1 else "time on each run's own clock (s)"
    )
    figures.finish_accuracy_axes(axes, label)
    axes.set_title("\n".join(["Test accuracy of the published model", *notes]), loc="left")
    figures.legend_below(figure, axes, 1)
    return figure


def _labels(loaded: Sequence[tuple[RunDirectory, Any, dict[str, Any]]]) -> list[str]:
    """Name each run, with its clock where the clocks differ."""
    mixed = len({config.get("clock") for _, _, config in loaded}) > 1
    return [
        f"{run.name} ({config.get('clock')} clock)" if mixed else run.name
        for run, _, config in loaded
    ]
