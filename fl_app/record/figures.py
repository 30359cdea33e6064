"""The pictures of a run: accuracy over time, who was busy when, how stale the teacher was.

Every function takes the events that count and returns a matplotlib figure, or None when the run
recorded nothing of the kind. Colours are those of Okabe and Ito, told apart by everybody.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fl_app.record.metrics import (
    Event,
    of_kind,
    participants,
    published,
    series,
    staleness_histogram,
    time_to_target,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLACK, GREY, ORANGE, SKY = "#000000", "#999999", "#E69F00", "#56B4E9"
GREEN, BLUE, VERMILION, PURPLE = "#009E73", "#0072B2", "#D55E00", "#CC79A7"

CLOCK_AXIS = {"virtual": "virtual time (s)", "real": "time (s)"}
_JOBS_SHOWN = 20  # bars of one participant that are still readable side by side
_MARKED = 40  # points of a line that still get a marker each
_BINS = 40

GROWN = "global model grown from the small one"
_CURVES = (  # label, model, field, style
    ("small model (average)", "small", "accuracy", {"color": ORANGE, "ls": "--", "marker": "s"}),
    ("global model, raw", "global", "accuracy", {"color": SKY, "lw": 1.2, "marker": "."}),
    ("global model, published (EMA)", "global", "accuracy_ema", {"color": BLUE, "marker": "o"}),
)


def accuracy(events: Sequence[Event], clock: str, targets: Sequence[float]) -> Figure | None:
    """Draw test accuracy over the run's clock, with when each target was reached."""
    curves = [(label, series(events, *key), style) for label, *key, style in _CURVES]
    curves = [curve for curve in curves if curve[1]]
    if not curves:
        return None
    figure, axes = new_figure(8.5, 4.6)
    for label, points, style in curves:
        draw_line(axes, points, label=label, **style)
    grown = {event["round"] for event in of_kind(events, "growth") if event["accepted"]}
    for event in of_kind(events, "round"):
        if event["round"] in grown:
            axes.axvline(event["t"], color=GREEN, lw=1.2, ls="-.", zorder=1, label=GROWN)
    finish_accuracy_axes(axes, CLOCK_AXIS[clock])
    _mark_targets(axes, published(events), targets)
    axes.set_title("Test accuracy", loc="left")
    legend_below(figure, axes, 2)
    return figure


def legend_below(figure: Figure, axes: Axes, columns: int) -> None:
    """Put the legend of `axes` under it, where it hides no point; each label once."""
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    figure.legend(
        list(once.values()), list(once), loc="outside lower center", ncols=columns, frameon=False
    )


def draw_line(axes: Axes, points: Sequence[tuple[float, float]], **style: Any) -> None:
    """Draw (t, fraction) as a line in percent; with markers only while they stay apart."""
    if len(points) > _MARKED:
        style["marker"] = ""
    times, values = zip(*points, strict=True)
    defaults = {"lw": 2.0, "ms": 4.5, "zorder": 3}
    axes.plot(times, [100 * value for value in values], **{**defaults, **style})


def finish_accuracy_axes(axes: Axes, time_label: str) -> None:
    """Label the axes of accuracy over time and start the time at zero."""
    axes.set_xlabel(time_label)
    axes.set_ylabel("test accuracy (%)")
    axes.set_xlim(left=0)
    low, high = axes.get_ylim()
    margin = max(0.05 * (high - low), (10 - (high - low)) / 2)  # at least 10 points are shown
    axes.set_ylim(max(0.0, low - margin), min(100.0, high + margin))
    axes.grid(alpha=0.3, lw=0.6)


def _mark_targets(
    axes: Axes, points: Sequence[tuple[float, float]], targets: Sequence[float]
) -> None:
    """Write each target that is on the axis, and when it was reached, at the right edge."""
    low, high = axes.get_ylim()
    ticks, labels = [], []
    for target in sorted(targets):
        crowded = bool(ticks) and 100 * target - ticks[-1] < 0.045 * (high - low)
        if not low <= 100 * target <= high or crowded:
            continue
        reached = time_to_target(points, target)
        axes.axhline(100 * target, color=GREY, lw=0.8, ls=":", zorder=1)
        ticks.append(100 * target)
        labels.append(
            f"{100 * target:g} %: " + ("not reached" if reached is None else f"{reached:.0f} s")
        )
    right = axes.secondary_yaxis("right")
    right.set_yticks(ticks, labels, fontsize=8.5, color="#444444")
    right.tick_params(length=0)
    right.spines["right"].set_visible(False)


def gantt(events: Sequence[Event], clock: str, _: Sequence[float]) -> Figure | None:
    """Draw one lane for each participant and one for the distillation server.

    A long run is cut where some participant has ended its 20th job, and the title says so.
    """
    jobs, segments = of_kind(events, "job"), of_kind(events, "segment")
    if not jobs and not segments:
        return None
    lanes = participants(events)
    whole = max(event["t_end"] for event in (*jobs, *segments))
    until = _readable_until(jobs, whole)
    height = 0.34 * (len(lanes) + 1) + 2.1
    figure, axes = new_figure(12, max(height, 3.0))
    position = {participant: row for row, participant in enumerate(lanes)}
    for (label, color, hatch), bars in _participant_bars(events, position, until).items():
        # Downloads and uploads are slivers: drawn last, and only the others get an edge.
        sliver = label in ("download", "upload")
        edge = {"linewidth": 0.0} if sliver else {"linewidth": 0.4, "edgecolor": "white"}
        edge |= {"hatch": hatch, "zorder": 3 if sliver else 2}
        for row in position.values():
            spans = [(start, length) for lane, start, length in bars if lane == row]
            axes.broken_barh(spans, (row - 0.4, 0.8), facecolor=color, label=label, **edge)
    server = len(lanes)
    _draw_segments(figure, axes, [s for s in segments if s["t_start"] < until], server, until)
    names = [f"participant {participant}" for participant in lanes]
    if segments:
        names.append("distillation server")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, until)
    axes.set_xlabel(CLOCK_AXIS[clock])
    axes.grid(axis="x", alpha=0.3, lw=0.6)
    axes.set_axisbelow(True)
    axes.set_title(_gantt_title(events, until, whole), loc="left")
    legend_below(figure, axes, 4)
    return figure


def _readable_until(jobs: Sequence[Event], whole: float) -> float:
    ends: dict[int, list[float]] = {}
    for job in jobs:
        ends.setdefault(job["participant"], []).append(job["t_end"])
    cuts = [sorted(t)[_JOBS_SHOWN - 1] for t in ends.values() if len(t) > _JOBS_SHOWN]
    return min(cuts, default=whole)


def _gantt_title(events: Sequence[Event], until: float, whole: float) -> str:
    rounds = of_kind(events, "round")
    shown = sum(event["t"] <= until for event in rounds)
    if until >= whole:
        return f"Who was busy when: the whole run, {len(rounds)} round{'s'[: len(rounds) != 1]}"
    return (
        f"Who was busy when: the first {until:.0f} s of {whole:.0f} s "
        f"({shown} of {len(rounds)} rounds)"
    )


_PHASES = (  # label, start, end, colour
    ("download", "t_start", "t_compute", BLUE),
    ("compute", "t_compute", "t_upload", SKY),
    ("upload", "t_upload", "t_end", VERMILION),
)
_IDLE = {
    "clients": ("waiting for participants", "#DDDDDD", ""),
    "server": ("waiting for the server", "#BBBBBB", "////"),
}
_FAILED = ("job lost, rejected or failed", PURPLE, "xxx")


def _participant_bars(
    events: Sequence[Event], position: dict[int, int], until: float
) -> dict[tuple[str, str, str], list[tuple[int, float, float]]]:
    """Return {(label, colour, hatch): [(lane, start, length)]}, cut at `until`, in legend order."""
    styles = [(label, color, "") for label, _, _, color in _PHASES] + [_FAILED, *_IDLE.values()]
    bars: dict[tuple[str, str, str], list[tuple[int, float, float]]] = {s: [] for s in styles}

    def add(style: tuple[str, str, str], lane: int, start: float, end: float) -> None:
        end = min(end, until)
        if end > start:
            bars[style].append((lane, start, end - start))

    for event in events:
        if event["event"] == "idle":
            lane = position[event["participant"]]
            add(_IDLE[event["waiting_for"]], lane, event["t_start"], event["t_end"])
        elif event["event"] == "job" and event["status"] != "ok":
            add(_FAILED, position[event["participant"]], event["t_start"], event["t_end"])
        elif event["event"] == "job":
            for label, start, end, color in _PHASES:
                lane = position[event["participant"]]
                add((label, color, ""), lane, event[start], event[end])
    return {style: found for style, found in bars.items() if found}


def _draw_segments(
    figure: Figure, axes: Axes, segments: Sequence[Event], lane: int, until: float
) -> None:
    """Draw the distillation server's lane, coloured by the version of the teacher."""
    if not segments:
        return
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    versions = [segment["teacher_version"] for segment in segments]
    scale = Normalize(min(versions), max(versions))
    palette = colormaps["cividis"]
    for segment in segments:
        color = palette(scale(segment["teacher_version"]))
        start, end = segment["t_start"], min(segment["t_end"], until)
        forward = segment["kind"] == "forward"
        axes.broken_barh(
            [(start, end - start)],
            (lane - 0.4, 0.8),
            facecolor=VERMILION if forward else color,
            edgecolor="white",
            linewidth=0.4,
            hatch="\\\\\\" if forward else "",
        )
        if not forward and end - start > 0.028 * until:
            light = sum(color[:3]) > 1.5
            axes.text(
                (start + end) / 2,
                lane,
                f"{segment['teacher_version']}",
                ha="center",
                va="center",
                fontsize=8,
                color="black" if light else "white",
            )
    if any(segment["kind"] == "forward" for segment in segments):
        axes.broken_barh(
            [], (lane, 0), facecolor=VERMILION, edgecolor="white", hatch="\\\\\\",
            label="forward distillation",
        )  # fmt: skip
    if min(versions) == max(versions):
        return
    bar = figure.colorbar(ScalarMappable(scale, palette), ax=axes, pad=0.01, fraction=0.025)
    bar.set_label("teacher's version", fontsize=9)
    bar.locator = _whole_numbers()
    bar.update_ticks()


def staleness(events: Sequence[Event], _clock: str, _: Sequence[float]) -> Figure | None:
    """Draw how many distillation steps used a teacher of which age.

    Where the averaging is asynchronous (or alone), the age of the contributions stands beside it.
    Ages are in versions of the small model.
    """
    teacher = staleness_histogram(events)
    rounds = [r for r in of_kind(events, "round") if r.get("staleness") is not None]
    late = any(r["staleness"] > 0 for r in rounds)
    panels = []
    if teacher:
        panels.append(
            ("Teacher of the distillation server", "distillation steps (%)", teacher, BLUE)
        )
    if rounds and (late or not teacher):
        ages: dict[float, int] = {}
        for event in rounds:
            ages[event["staleness"]] = ages.get(event["staleness"], 0) + event["contributions"]
        panels.append(("Contributions to the average", "contributions (%)", ages, ORANGE))
    panels = [panel for panel in panels if sum(panel[2].values())]
    if not panels:
        return None
    figure, axes = new_figure(6.4 * len(panels), 4.2, columns=len(panels))
    for single, (title, label, histogram, color) in zip(_each(axes), panels, strict=True):
        _draw_histogram(single, histogram, color)
        mean = sum(age * weight for age, weight in histogram.items()) / sum(histogram.values())
        single.set_title(f"{title}: mean {mean:.2f}, max {max(histogram):g}", loc="left")
        single.set_ylabel(label)
        single.set_xlabel("staleness (versions of the small model)")
    return figure


def _draw_histogram(axes: Axes, histogram: dict[Any, int], color: str) -> None:
    ages, weights = list(histogram), list(histogram.values())
    total = sum(weights)
    width = max(1, -(-(int(max(ages)) + 1) // _BINS))
    edges = [edge - 0.5 for edge in range(0, int(max(ages)) + width + 1, width)]
    shares = [100 * weight / total for weight in weights]
    axes.hist(ages, bins=edges, weights=shares, color=color, rwidth=0.85)
    axes.set_xlim(-0.6, max(edges[-1], 2.5))
    axes.xaxis.set_major_locator(_whole_numbers())
    axes.set_ylim(0, min(100.0, axes.get_ylim()[1]))
    axes.grid(axis="y", alpha=0.3, lw=0.6)
    axes.set_axisbelow(True)


# Every figure of a run by the name of its file: a function of (events, clock, targets).
FIGURES: dict[str, Callable[[Sequence[Event], str, Sequence[float]], Figure | None]] = {
    "accuracy": accuracy,
    "gantt": gantt,
    "staleness": staleness,
}


def to_png(figure: Figure) -> bytes:
    """Return the figure as a PNG of 150 dots per inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def new_figure(width: float, height: float, columns: int = 1) -> tuple[Figure, Any]:
    """Return a figure of its own (no pyplot, whose state all threads share) and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns)
    for single in _each(axes):
        single.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _each(axes: Any) -> list[Axes]:
    return list(axes) if hasattr(axes, "__len__") else [axes]


def _whole_numbers() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True)
