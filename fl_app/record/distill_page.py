"""What the page shows of a run that averages a small model, with a distillation server or not."""

from collections.abc import Sequence
from typing import Any

from fl_app.record.distill_metrics import (
    REFERENCES,
    participants,
    published_as,
    references,
)
from fl_app.record.metrics import Event, Metric, Point, of_kind, series
from fl_app.record.view import Bar, Chart, Line, Measured, Timeline

_CURVES = (  # label, model, field, colour, dash
    ("small model", "small", "accuracy", "orange", (6, 4)),
    ("global model, raw", "global", "accuracy", "sky", (3, 2)),
    ("global model, EMA", "global", "accuracy_ema", "blue", ()),
)
_REFERENCE_STYLES: dict[str, tuple[str, tuple[int, ...]]] = {
    "small_average": ("orange", ()),
    "small_calibrated": ("green", ()),
    "server_alone": ("vermilion", (8, 3, 2, 3)),
    "centralized_large": ("black", (2, 3)),
}
_SENTENCES = {
    "small": "the newest small model",
    "small_average": "the small model's weight average",
    "small_calibrated": "its calibrated teacher",
    "server_alone": "the server alone",
    "centralized_large": "the large model with all data in one place",
}


def sentence(measured: Measured, metric: Metric) -> str:
    """What the published model is worth, beside what it is measured against."""
    final = measured["final"]
    value = final["published"]
    if value is None:
        return ""
    what = "published global model" if final["global"] is not None else "averaged small model"
    text = f"The {what} has {metric.shown(value)} {metric.heading}"
    compared = [
        f"{metric.apart(value, final[name])} {words}"
        for name, words in _SENTENCES.items()
        if final.get(name) is not None and not (name == "small" and final["global"] is None)
    ]
    return text + (": " + ", ".join(compared) if compared else "") + "."


def charts(events: Sequence[Event]) -> list[Chart]:
    """The metric of every model, how old teachers and contributions were, and the traffic."""
    return [chart for chart in (_metric(events), _staleness(events), _traffic(events)) if chart]


def _metric(events: Sequence[Event]) -> Chart | None:
    shown = published_as(events)
    lines = [
        _line(label, points, colour, dash, thick=(model, field) == shown)
        for label, model, field, colour, dash in _CURVES
        if (points := series(events, model, field))
    ]
    for name, points in references(events).items():
        lines.append(_line(REFERENCES[name], points, *_REFERENCE_STYLES[name]))
    lines.sort(key=lambda line: -line.width)  # the published one is first in the legend
    return Chart("How good the models are", tuple(lines), metric=True) if lines else None


def _line(
    label: str, points: Sequence[Point], colour: str, dash: tuple[int, ...], thick: bool = False
) -> Line:
    return Line(
        f"{label}; published" if thick else label, points, colour, dash, 2.5 if thick else 1.5
    )


def _staleness(events: Sequence[Event]) -> Chart | None:
    """How old teachers were when they were used, as the summary counts it, and contributions when
    they were averaged; nothing of what never was."""
    teacher = [
        (e["t_end"], e["staleness_versions"])
        for e in of_kind(events, "segment")
        if e["kind"] == "reverse" and e.get("staleness_versions") is not None
    ]
    averaged = [
        (e["t"], e["staleness"]) for e in of_kind(events, "round") if e.get("staleness") is not None
    ]
    lines = (
        Line("teacher of the distillation server", teacher, "blue"),
        Line("contributions, mean", averaged, "orange", (6, 4)),
    )
    stale = tuple(line for line in lines if any(age for _, age in line.points))
    return Chart("Staleness", stale, unit="versions") if stale else None


def _traffic(events: Sequence[Event]) -> Chart | None:
    rounds = of_kind(events, "round")
    lines = []
    for label, field, colour in (("up", "bytes_up", "vermilion"), ("down", "bytes_down", "blue")):
        points = [(e["t"], e[field] / 1e6) for e in rounds if e.get(field) is not None]
        lines.append(Line(label, points, colour, (6, 4) if label == "down" else ()))
    lines = [line for line in lines if line.points]
    return Chart("Traffic so far", tuple(lines), unit="MB") if lines else None


_PHASES = (
    ("download", "t_start", "t_compute"),
    ("compute", "t_compute", "t_upload"),
    ("upload", "t_upload", "t_end"),
)
_WAITS = {"clients": "waits for participants", "server": "waits for the server"}
_KINDS = {
    "download": "blue", "compute": "sky", "upload": "vermilion", "failed": "purple",
    "waits for participants": "faint", "waits for the server": "grey",
    "distils": "green", "distils forward": "orange",
}  # fmt: skip


def timeline(events: Sequence[Event]) -> Timeline | None:
    """A lane for each participant, and one for the distillation server."""
    who = participants(events)
    segments = of_kind(events, "segment")
    if not who and not segments:
        return None
    lane = {participant: row for row, participant in enumerate(who)}
    bars = [bar for event in events for bar in _bars(event, lane)]
    names = [f"participant {participant}" for participant in who]
    if segments:
        names.append("distillation server")
    used = {bar.kind for bar in bars}
    return Timeline(tuple(names), tuple(bars), {k: c for k, c in _KINDS.items() if k in used})


def _bars(event: dict[str, Any], lane: dict[int, int]) -> list[Bar]:
    kind = event["event"]
    if kind == "idle":
        row = lane[event["participant"]]
        return [Bar(row, event["t_start"], event["t_end"], _WAITS[event["waiting_for"]])]
    if kind == "segment":
        forward = event["kind"] == "forward"
        note = f"teacher {event['teacher_version']}, {event['steps']} steps"
        name = "distils forward" if forward else "distils"
        return [Bar(len(lane), event["t_start"], event["t_end"], name, note)]
    if kind != "job":
        return []
    row, note = lane[event["participant"]], f"job {event['job']} on version {event['base_version']}"
    if event["status"] != "ok":
        return [Bar(row, event["t_start"], event["t_end"], "failed", f"{note}: {event['status']}")]
    return [
        Bar(row, event[start], event[end], name, note)
        for name, start, end in _PHASES
        if event[end] > event[start]
    ]
