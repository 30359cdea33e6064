"""What all pictures of a run share: colours, axes of accuracy over time, legends, PNGs.

Colours are those of Okabe and Ito, told apart by everybody; dashes and markers tell lines apart
without colours. The pictures of a run are as wide as a column of print.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fl_app.record.metrics import Metric, Point, time_to_target

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLACK, GREY, ORANGE, SKY = "#000000", "#999999", "#E69F00", "#56B4E9"
GREEN, BLUE, VERMILION, PURPLE = "#009E73", "#0072B2", "#D55E00", "#CC79A7"

CLOCK_AXIS = {"virtual": "virtual time (s)", "real": "time (s)"}
ACCURACY = Metric()
_MARKED = 20  # points of a line that still get a marker each
COLUMN, DOTS = 3.4, 300  # inches, and dots per inch
# Letters and lines of a picture that is printed at its own size.
_PRINTED: dict[Any, float] = {
    "font.size": 7.0, "axes.titlesize": 7.5, "axes.labelsize": 7.0, "legend.fontsize": 6.5,
    "xtick.labelsize": 6.5, "ytick.labelsize": 6.5, "axes.linewidth": 0.6, "hatch.linewidth": 0.5,
    "lines.linewidth": 0.9, "lines.markersize": 3.2, "legend.handlelength": 2.6,
    "xtick.major.size": 2.5, "ytick.major.size": 2.5, "figure.constrained_layout.h_pad": 0.02,
    "figure.constrained_layout.w_pad": 0.02,
}  # fmt: skip


def legend_below(figure: Figure, axes: Axes, columns: int, magnified: float = 1.0) -> None:
    """Put the legend of `axes` under it, where it hides no point; each label once.

    magnified: by how much its marks are larger than those in the picture.
    """
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    figure.legend(
        list(once.values()),
        list(once),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        markerscale=magnified,
    )


def draw_line(axes: Axes, points: Sequence[Point], metric: Metric = ACCURACY, **style: Any) -> None:
    """Draw (t, value) as a line in the metric's unit; with markers only while they stay apart."""
    if len(points) > _MARKED:
        style["marker"] = ""
    from matplotlib import rcParams

    times, values = zip(*points, strict=True)
    sizes = {"lw": 4 / 3 * rcParams["lines.linewidth"], "ms": 0.75 * rcParams["lines.markersize"]}
    defaults = {**sizes, "zorder": 3}
    axes.plot(times, [metric.scale * value for value in values], **{**defaults, **style})


def finish_accuracy_axes(axes: Axes, time_label: str, metric: Metric = ACCURACY) -> None:
    """Label the axes of a metric over time and start the time at zero."""
    axes.set_xlabel(time_label)
    axes.set_ylabel(metric.label)
    axes.set_xlim(left=0)
    low, high = axes.get_ylim()
    margin = 0.05 * (high - low)
    if metric.unit == "%":
        margin = max(margin, (10 - (high - low)) / 2)  # at least 10 points are shown
        axes.set_ylim(max(0.0, low - margin), min(100.0, high + margin))
    axes.grid(alpha=0.3, lw=0.6)


def mark_targets(
    axes: Axes, points: Sequence[Point], targets: Sequence[float], metric: Metric = ACCURACY
) -> None:
    """Write each target that is on the axis, and when it was reached, at the right edge."""
    low, high = axes.get_ylim()
    ticks, labels = [], []
    for target in sorted(targets):
        height = metric.scale * target
        crowded = bool(ticks) and height - ticks[-1] < 0.045 * (high - low)
        if not low <= height <= high or crowded:
            continue
        reached = time_to_target(points, target, higher=metric.higher)
        axes.axhline(height, color=GREY, lw=0.8, ls=":", zorder=1)
        ticks.append(height)
        when = "not reached" if reached is None else f"{reached:.0f} s"
        labels.append(f"{metric.at(target)}: {when}")
    right = axes.secondary_yaxis("right")
    right.set_yticks(ticks, labels, fontsize="small", color="#444444")
    right.tick_params(length=0)
    right.spines["right"].set_visible(False)


@contextmanager
def for_print() -> Iterator[None]:
    """Within it, small letters and thin lines."""
    import matplotlib

    with matplotlib.rc_context(_PRINTED):
        yield


def printed(draw: Callable[[], Figure]) -> bytes:
    """Return what `draw` draws `for_print` as a PNG."""
    with for_print():
        return to_png(draw(), DOTS)


def _without_formulas(figure: Figure) -> None:
    """No text is one, as the names of people's metrics, classes and runs may hold a $, except the
    powers of ten at a logarithmic axis."""
    from matplotlib.text import Text

    powers = [
        text
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for text in (axis.findobj(Text) if axis.get_scale() == "log" else ())
        if text is not axis.label
    ]
    for text in figure.findobj(Text):
        if isinstance(text, Text) and text not in powers:
            text.set_parse_math(False)


def in_legend(name: str) -> str:
    """A name as a label: Matplotlib leaves out what begins with _, so nothing is put before it."""
    return f"\u200b{name}" if name.startswith("_") else name


def to_png(figure: Figure, dots: int = 150) -> bytes:
    """Return the figure as a PNG of so many dots per inch."""
    _without_formulas(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dots)
    return buffer.getvalue()


def new_figure(width: float, height: float, columns: int = 1) -> tuple[Figure, Any]:
    """Return a figure of its own (no pyplot, whose state all threads share) and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns)
    for single in each(axes):
        single.spines[["top", "right"]].set_visible(False)
    return figure, axes


def each(axes: Any) -> list[Axes]:
    """Return the axes of `new_figure` as a list."""
    return list(axes) if hasattr(axes, "__len__") else [axes]


def whole_numbers() -> Any:
    """Return a locator of ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True, nbins=6)
