"""Several runs side by side, those of one configuration as one: a figure and tables."""

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fl_app.record import figures
from fl_app.record.formatting import duration, number
from fl_app.record.groups import Group, Run, band, grouped, mean_and_error, paired
from fl_app.record.metrics import (
    CLOCK_UNITS,
    Event,
    Metric,
    evaluation_of,
    metric_of,
    targets_of,
)
from fl_app.record.modes import VIEWS, view_of
from fl_app.record.page.snapshot import status
from fl_app.record.run_dir import RunDirectory, flatten
from fl_app.record.view import Measured, View
from strategies.checkpoint import atomic_write
from strategies.errors import RunDirectoryError

_Value = TypeVar("_Value")
_COLORS = (
    figures.BLUE, figures.ORANGE, figures.GREEN, figures.VERMILION, figures.PURPLE, figures.SKY,
    figures.BLACK, figures.GREY,
)  # fmt: skip
_MARKERS = "osD^vP*X"
_DASHES = ("-", "--", "-.", ":", (0, (6, 2, 1, 2, 1, 2)), (0, (1, 1)))
_MOST_LINES = 6  # more cannot be told apart


@dataclass(frozen=True, eq=False)
class _Run:
    """A run as it is compared: its directory, the events that count, its flat configuration."""

    directory: RunDirectory
    events: list[Event]
    config: dict[str, Any]
    view: View

    @property
    def clock(self) -> str:
        return self.config.get("clock", "real")

    @property
    def metric(self) -> Metric:
        return metric_of(self.events)

    @property
    def grouped(self) -> Run:
        about, points = self.view.comparison.name(self.config), self.view.accuracy(self.events)
        path, complete = str(self.directory.path), self.status == "completed"
        return Run(path, self.config, points, about, complete, self.metric)

    @property
    def status(self) -> str:
        return status(self.directory, self.events)


def _load(run: RunDirectory) -> _Run:
    config = flatten(run.config())
    return _Run(run, run.events(), config, view_of(config))


def compare(runs: Sequence[RunDirectory], out: Path) -> str:
    """Write compare.png, compare.md and compare.csv into the directory `out`; return the Markdown.

    Runs that differ by their seed alone are one configuration: its mean, standard error and, to the
    first configuration, the differences paired by seed. The figure has the accuracy that stands for
    each run (see `View`), over the run's own clock: of configurations with several seeds the mean
    and a band of a standard error; else a line a run, its companion dashed. At most six, the best.
    Runs whose clocks or data sets differ are drawn all the same, and both the figure and the table
    say so. Runs of another metric than the first one's have a figure of their own, compare-2.png
    and so on, and no difference to it. Raises RunDirectoryError without runs, or when none was
    evaluated.
    """
    if not runs:
        raise RunDirectoryError("nothing to compare: name at least one run directory")
    loaded = [_load(run) for run in runs]
    if not any(run.view.accuracy(run.events) for run in loaded):
        names = ", ".join(run.name for run in runs)
        raise RunDirectoryError(f"nothing to compare: no model was evaluated in {names}")
    drawn = _once(run.metric for run in loaded if run.view.accuracy(run.events))
    names = {metric: f"compare{f'-{n}' * (n > 1)}.png" for n, metric in enumerate(drawn, 1)}
    notes = _notes(loaded)
    if len(drawn) > 1:
        each = ", ".join(f"{metric.name} ({name})" for metric, name in names.items())
        notes.append(f"Note: results are not comparable, the metric differs: {each}.")
    groups = grouped([run.grouped for run in loaded])
    table = "\n".join([_table(loaded), group_table(groups)])
    table += "".join(f"\n{note}\n" for note in notes)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunDirectoryError(f"cannot write to {out}: {error.strerror or error}") from error
    for metric, name in names.items():
        atomic_write(out / name, _picture(metric, groups, loaded, notes))
    atomic_write(out / "compare.csv", _csv(groups, loaded).encode())
    atomic_write(out / "compare.md", table.encode())
    return table


def _picture(
    metric: Metric, groups: Sequence[Group], runs: Sequence[_Run], notes: Sequence[str]
) -> bytes:
    """The figure of what has this metric."""
    groups = [group for group in groups if group.metric == metric]
    runs = [run for run in runs if run.metric == metric]
    several = any(len(group.runs) > 1 for group in groups)
    return figures.printed(
        lambda: _draw_groups(groups, runs, notes) if several else _draw(runs, notes)
    )


def readable(run: RunDirectory) -> None:
    """Raise RunDirectoryError, which names the run, if its numbers cannot be had."""
    with run.reading():
        loaded = _load(run)
        loaded.view.measure(loaded.events, targets_of(loaded.config))
        loaded.view.accuracy(loaded.events)


def group_table(groups: Sequence[Group]) -> str:
    """A row a configuration, as Markdown: the mean of its seeds' last values ± standard error, and
    how far it is above the first one, paired by seed, if that has the same metric."""
    first, mixed = groups[0], len({group.metric for group in groups}) > 1
    head = ["configuration", "seeds", first.metric.label, "to the first, paired"]
    head[2:3] = ["metric", "result"] if mixed else head[2:3]
    rows = []
    for group in groups:
        row = [group.label, str(len(group.values)), *([group.metric.label] if mixed else [])]
        row.append(_mean(list(group.values.values()), group.metric))
        same = [] if group.metric != first.metric else paired(group, first)
        row.append("" if group is first else _mean(same, group.metric, sign="+"))
        rows.append(row)
    lines = [head, ["---", "---:", *(["---"] if mixed else []), "---:", "---:"], *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _mean(values: Sequence[float], metric: Metric, sign: str = "") -> str:
    mean, error = mean_and_error(values)
    if mean is None:
        return "-"
    shown = f"{mean * metric.scale:{sign}.{metric.digits}f}"
    return shown if error is None else f"{shown} ± {error * metric.scale:.{metric.digits}f}"


def _csv(groups: Sequence[Group], runs: Sequence[_Run]) -> str:
    """A row a run, with all digits; where the metrics differ, with the metric."""
    out, mixed = io.StringIO(), len({group.metric for group in groups}) > 1
    writer = csv.writer(out, lineterminator="\n")
    columns = ["configuration", "seed", "run", "status", "final"]
    writer.writerow([*columns, "metric"] if mixed else columns)
    known = {str(run.directory.path): run for run in runs}  # two may have one name
    for group in groups:
        for run in group.runs:
            final, about = "" if run.final is None else run.final, known[run.name]
            row = [group.label, run.seed, about.directory.name, about.status, final]
            writer.writerow([*row, group.metric.name] if mixed else row)
    return out.getvalue()


def _draw_groups(groups: Sequence[Group], runs: Sequence[_Run], notes: Sequence[str]) -> Any:
    clocks, metric = sorted({run.clock for run in runs}), runs[0].metric
    scale, sign = metric.scale, -1 if metric.higher else 1
    drawn = [(group, found) for group in groups if (found := band(group))]
    best = sorted(drawn, key=lambda pair: sign * float(pair[1][1][-1]))[:_MOST_LINES]
    figure, axes = figures.new_figure(figures.COLUMN, 2.3 + 0.14 * len(best))
    for (group, (times, mean, error)), colour, dash in zip(best, _COLORS, _DASHES, strict=False):
        seeds = len(group.drawn)
        label = f"{group.label}, {seeds} seed{'s'[: seeds != 1]}"
        axes.plot(times, scale * mean, color=colour, ls=dash, lw=1.2, label=label)
        low, high = scale * (mean - error), scale * (mean + error)
        axes.fill_between(times, low, high, color=colour, alpha=0.2, lw=0)
    figures.finish_accuracy_axes(axes, _time_label(clocks), metric)
    left_out = len(drawn) - len(best)
    cut = [f"the {len(best)} best; {left_out} more are in the table"] if left_out else []
    title = "Mean of the seeds; band: a standard error"
    axes.set_title("\n".join([title, *cut, *notes]), loc="left")
    figures.legend_below(figure, axes, 1)
    return figure


def _time_label(clocks: Sequence[str]) -> str:
    if len(clocks) == 1:
        return figures.CLOCK_AXIS[clocks[0]]
    return "time on each run's own clock (s)"


def _notes(runs: Sequence[_Run]) -> list[str]:
    """Return what forbids reading the runs as one experiment, and what of them does not count."""
    found = []
    for key, meaning, value in (
        ("clock", "times", lambda config: config.get("clock")),
        ("task", "results", _task_of),
        ("dataset", "accuracies", lambda config: config.get("dataset")),
        ("evaluate-on", "accuracies", evaluation_of),
    ):
        values = sorted({str(value(run.config)) for run in runs})
        if len(values) > 1:
            found.append(f"Note: {meaning} are not comparable, {key} differs: {', '.join(values)}.")
    states = Counter(status for run in runs if (status := run.status) != "completed")
    if states:
        counted = ", ".join(f"{count} {status}" for status, count in sorted(states.items()))
        found.append(f"Note: in no mean, because not complete: {counted}.")
    return found


def _task_of(config: Mapping[str, Any]) -> str:
    task = str(config.get("task", "images"))
    table = config.get("data-path") or config.get("table")
    return f"tables ({table})" if task == "tables" else task


def _table(runs: Sequence[_Run]) -> str:
    targets = sorted({target for run in runs for target in targets_of(run.config)})
    # The columns of every system that occurs; a run of another one has no value there.
    views = [view for view in VIEWS.values() if any(run.view is view for run in runs)]
    scores = _once(name for view in views for name in view.comparison.scores)
    costs = _once(name for view in views for name in view.comparison.costs)
    metrics = [run.metric for run in runs]
    shown = metrics[0] if len(set(metrics)) == 1 else None
    titles = [name.replace(" %", shown.titled("") if shown else "") for name in scores]
    head = ["run", "variant", "data set", "clock", "status", "rounds", *titles]
    head += [f"{shown.at(target) if shown else target} after" for target in targets]
    head += ["run's time", *costs, "wall time"]
    rows = []
    for run, metric in zip(runs, metrics, strict=True):
        m = run.view.measure(run.events, targets)
        unit = CLOCK_UNITS[run.clock]
        comparison = run.view.comparison
        rows.append(
            [
                run.directory.name,
                comparison.name(run.config),
                str(run.config.get("dataset", "-")),
                str(run.config.get("clock", "-")),
                run.status,
                str(m["rounds"]),
                *_scores(comparison.scores, scores, m, metric, named=shown is None),
                *(_seconds(seconds, unit) for seconds in m["time_to_target"].values()),
                _seconds(m["end_seconds"], unit),
                *_cells(comparison.costs, costs, m),
                duration(m["wall_seconds"]),
            ]
        )
    lines = [head, ["---"] * 5 + ["---:"] * (len(head) - 5), *rows]
    # A target that no run has reached says something, a result or cost that none has does not.
    spare = {k for k, name in enumerate(head) if name in (*titles, *costs)}
    kept = [k for k in range(len(head)) if k not in spare or any(row[k] != "-" for row in rows)]
    return "".join("| " + " | ".join(line[k] for k in kept) + " |\n" for line in lines)


def _scores(
    columns: Mapping[str, Callable[[Measured, Metric], float | None]],
    names: Sequence[str],
    measured: Measured,
    metric: Metric,
    *,
    named: bool,
) -> list[str]:
    """The cells of a run; `named`: each with the metric, because other runs have another one."""
    values = [columns[n](measured, metric) if n in columns else None for n in names]
    about = f"{metric.name} " if named else ""
    shown = metric.shown if named else metric.plain
    return ["-" if value is None else about + shown(value) for value in values]


def _cells(
    columns: Mapping[str, Callable[[Measured], str]], names: Sequence[str], measured: Measured
) -> list[str]:
    return [columns[name](measured) if name in columns else "-" for name in names]


def _once(values: Iterable[_Value]) -> list[_Value]:
    return list(dict.fromkeys(values))


def _seconds(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{number(value, 1)} {unit}"


def _draw(runs: Sequence[_Run], notes: Sequence[str]) -> Any:
    clocks, metric = sorted({run.clock for run in runs}), runs[0].metric
    sign = -1 if metric.higher else 1
    dashed: list[str] = []
    known = [run for run in runs if run.grouped.last is not None]
    best = sorted(known, key=lambda run: sign * float(run.grouped.last or 0))[:_MOST_LINES]
    figure, axes = figures.new_figure(figures.COLUMN, 2.3 + 0.14 * len(best))
    for index, run in enumerate(run for run in runs if run in best):
        style = {"color": _COLORS[index % len(_COLORS)], "marker": _MARKERS[index % len(_MARKERS)]}
        main, companion = run.view.accuracy(run.events), run.view.comparison.companion(run.events)
        if main:
            label = figures.in_legend(_label(run, mixed=len(clocks) > 1))
            figures.draw_line(axes, main, metric, label=label, **style)
        if companion and companion != main:
            thin = {**style, "marker": "", "ls": "--", "lw": 0.6, "alpha": 0.7}
            figures.draw_line(axes, companion, metric, **thin)
            dashed.append(run.view.comparison.companion_label)
    if dashed:
        axes.plot([], [], color=figures.GREY, ls="--", lw=0.6, label=" / ".join(_once(dashed)))
    figures.finish_accuracy_axes(axes, _time_label(clocks), metric)
    measured = " / ".join(_once(evaluation_of(run.config) for run in runs)).capitalize()
    of = " / ".join(_once(run.view.accuracy_of for run in runs))
    title = f"{measured} {metric.name} of the {of}"
    axes.set_title("\n".join([title, *notes]), loc="left")
    figures.legend_below(figure, axes, 1)
    return figure


def _label(run: _Run, *, mixed: bool) -> str:
    """Name a run, with its clock where the clocks differ."""
    return f"{run.directory.name} ({run.clock} clock)" if mixed else run.directory.name
