"""The pictures of a distill run: accuracy over time, who was busy when, how stale the teacher was.

Every function takes the events that count and returns a matplotlib figure, or None when the run
recorded nothing of the kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fl_app.record.distill_metrics import (
    REFERENCES,
    participants,
    published,
    published_as,
    references,
    staleness_histogram,
)
from fl_app.record.figures import (
    BLACK,
    BLUE,
    CLOCK_AXIS,
    COLUMN,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    draw_line,
    each,
    finish_accuracy_axes,
    legend_below,
    mark_targets,
    new_figure,
    whole_numbers,
)
from fl_app.record.metrics import Event, evaluated_on, metric_of, of_kind, series
from fl_app.record.view import Drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_JOBS_SHOWN = 12  # bars of one participant that are still readable side by side
_BINS = 40

_CURVES = (  # label, model, field, style
    ("small model, newest", "small", "accuracy", {"color": ORANGE, "ls": "--", "marker": "s"}),
    ("global model, raw", "global", "accuracy", {"color": SKY, "lw": 0.7, "marker": "."}),
    ("global model, EMA", "global", "accuracy_ema", {"color": BLUE, "marker": "o"}),
)


_REFERENCE_STYLES = {
    "small_average": {"color": ORANGE, "ls": "-"},
    "small_calibrated": {"color": GREEN, "ls": "-"},
    "server_alone": {"color": VERMILION, "ls": "-."},
    "centralized_large": {"color": BLACK, "ls": ":"},
}


def accuracy(events: Sequence[Event], clock: str, targets: Sequence[float]) -> Figure | None:
    """Draw accuracy over the run's clock, with when each target was reached."""
    shown = published_as(events)
    curves = [
        (f"{label}; published" if (model, field) == shown else label, points, style)
        for label, model, field, style in _CURVES
        if (points := series(events, model, field))
    ]
    if not curves:
        return None
    figure, axes = new_figure(COLUMN, 2.9)
    metric = metric_of(events)
    for label, points, style in curves:
        draw_line(axes, points, metric, label=label, **style)
    for name, points in references(events).items():
        style = {"lw": 0.9, "marker": "", "zorder": 2, **_REFERENCE_STYLES[name]}
        draw_line(axes, points, metric, label=REFERENCES[name], **style)
    finish_accuracy_axes(axes, CLOCK_AXIS[clock], metric)
    mark_targets(axes, published(events), targets, metric)
    axes.set_title(f"{evaluated_on(events).capitalize()} {metric.name}", loc="left")
    legend_below(figure, axes, 1)
    return figure


def gantt(events: Sequence[Event], clock: str, _: Sequence[float]) -> Figure | None:
    """Draw one lane for each participant and one for the distillation server.

    A long run is cut where some participant has ended its 12th job, and the title says so.
    """
    jobs, segments = of_kind(events, "job"), of_kind(events, "segment")
    if not jobs and not segments:
        return None
    lanes = participants(events)
    whole = max(event["t_end"] for event in (*jobs, *segments))
    until = _readable_until(jobs, whole)
    figure, axes = new_figure(COLUMN, 0.17 * (len(lanes) + 1) + 1.3)
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
    legend_below(figure, axes, 2)
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
        return f"Who was busy: the whole run, {len(rounds)} round{'s'[: len(rounds) != 1]}"
    return f"Who was busy: {until:.0f} of {whole:.0f} s, {shown} of {len(rounds)} rounds"


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
        if not forward and end - start > 0.04 * until:
            light = sum(color[:3]) > 1.5
            axes.text(
                (start + end) / 2,
                lane,
                f"{segment['teacher_version']}",
                ha="center",
                va="center",
                fontsize="x-small",
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
    bar.set_label("teacher's version")
    bar.locator = whole_numbers()
    bar.update_ticks()


def staleness(events: Sequence[Event], _clock: str, _: Sequence[float]) -> Figure | None:
    """Draw how many distillation steps used a teacher of which age.

    Where the averaging is asynchronous (or alone), the age of the contributions stands beside it.
    Ages are in versions of the small model. What is all of one age has no figure.
    """
    teacher = staleness_histogram(events)
    rounds = [r for r in of_kind(events, "round") if r.get("staleness") is not None]
    panels = []
    if teacher:
        panels.append(
            ("Teacher of the distillation server", "distillation steps (%)", teacher, BLUE)
        )
    if rounds:
        ages: dict[float, int] = {}
        for event in rounds:
            ages[event["staleness"]] = ages.get(event["staleness"], 0) + event["contributions"]
        panels.append(("Contributions to the average", "contributions (%)", ages, ORANGE))
    panels = [panel for panel in panels if sum(map(bool, panel[2].values())) > 1]
    if not panels:
        return None
    figure, axes = new_figure(COLUMN * len(panels), 2.1, columns=len(panels))
    for single, (title, label, histogram, color) in zip(each(axes), panels, strict=True):
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
    axes.xaxis.set_major_locator(whole_numbers())
    axes.set_ylim(0, min(100.0, axes.get_ylim()[1]))
    axes.grid(axis="y", alpha=0.3, lw=0.6)
    axes.set_axisbelow(True)


FIGURES: dict[str, Drawing] = {
    "accuracy": Drawing(accuracy, "no model was evaluated"),
    "gantt": Drawing(gantt, "no participant ended a job"),
    "staleness": Drawing(staleness, "no teacher and no contribution was older than another"),
}
