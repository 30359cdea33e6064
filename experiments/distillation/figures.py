"""Accuracy of what is published over time, a panel for each setting."""

from collections.abc import Mapping
from typing import Any

from experiments.distillation.plan import BUFFERED, CALIBRATED, MORE, OURS, WAITING
from experiments.distillation.results import Line
from experiments.reporting import band
from fl_app.record import figures

# Ours, the controls, and who waits, in the order of their importance; of several rows the first
# that is there.
COLORS = {
    (OURS,): figures.GREEN,
    (BUFFERED,): figures.PURPLE,
    ("small-average",): figures.GREY,
    ("server-alone",): figures.SKY,
    (f"sync-x{MORE}", "sync"): figures.ORANGE,
    (WAITING, CALIBRATED): figures.VERMILION,
    ("small-calibrated",): figures.BLACK,
    ("async-continuous",): figures.BLUE,
}
_MOST = 6  # lines; more nobody can tell apart
_BELOW = 25  # points that are shown below the lowest end of a line


def accuracy(lines: Mapping[str, Line], title: str, clock: str) -> Any:
    """The mean over the seeds as a line, from the lowest to the highest of them as a band; a line
    ends where its runs end, with the number that the table has."""
    figure, axes = figures.new_figure(7.2, 4.8)
    ends: list[float] = []
    found = [([lines[n] for n in names if n in lines], c) for names, c in COLORS.items()]
    for (line, *_), color in [(there, color) for there, color in found if there][:_MOST]:
        _draw(axes, line, color)
        ends += line.final().values()
    figures.finish_accuracy_axes(axes, figures.CLOCK_AXIS[clock])
    if ends:
        axes.set_ylim(bottom=max(0.0, 100 * min(ends) - _BELOW), top=100 * max(ends) + 2)
    axes.set_title(title, loc="left")
    figures.legend_below(figure, axes, 3)
    return figure


def _draw(axes: Any, line: Line, color: str) -> None:
    times, values = band([line.points(seed) for seed in line.entries])
    values = 100 * values
    axes.plot(times, values.mean(0), color=color, lw=2, label=line.name, zorder=3)
    if len(values) > 1:
        axes.fill_between(times, values.min(0), values.max(0), color=color, alpha=0.15, lw=0)
