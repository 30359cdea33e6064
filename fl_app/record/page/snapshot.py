"""What the page shows of a run, as JSON: every number comes from the run's view, none is computed
in the browser."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fl_app.provenance import described
from fl_app.record.consensus_metrics import node_names
from fl_app.record.formatting import duration, number
from fl_app.record.groups import OF_THE_RUN
from fl_app.record.metrics import (
    CLOCK_UNITS,
    Event,
    Metric,
    codes_of,
    evaluation_of,
    latest,
    metric_of,
    of_kind,
    targets_of,
    times_to_targets,
)
from fl_app.record.modes import view_of
from fl_app.record.progress import progress
from fl_app.record.run_dir import (
    CONFIG,
    ENVIRONMENT,
    FIGURES,
    METRICS,
    SUMMARY,
    RunDirectory,
    flatten,
    plain,
)
from fl_app.record.topology_figure import positions
from fl_app.record.view import Chart, Measured, Pairs, Table, Timeline, View
from strategies.errors import ConfigError

# What the browser gets at most, so that a report stays below 2 MB and a page draws at once.
_POINTS, _BARS, _ROWS, _HEARD, _INCIDENTS = 1_500, 4_000, 1_000, 30_000, 500


def snapshot(run: RunDirectory, events: Sequence[Event] | None = None) -> dict[str, Any]:
    """What the page shows of a run. events: those that count, read from the run if not given.

    Raises RunDirectoryError for a run that cannot be read.
    """
    events = run.events() if events is None else events
    config = flatten(run.config())
    view, metric, targets = view_of(config), metric_of(events), targets_of(config)
    state = status(run, events)
    # Of a run that goes on, what is put side by side is of one moment.
    moment, told = (None, events) if state in _ENDS else _comparable(view, events)
    measured = view.measure(told, targets)
    clock = str(config.get("clock", "real"))
    changed, others = _configuration(config)
    far = progress(events, config)
    document = {
        "name": run.name,
        "path": str(run.path),
        "status": state,
        "ended": state in _ENDS,
        "reason": str(latest(events, "finished").get("reason") or "") if state in _ENDS else "",
        "sentence": _sentence(view, measured, metric, state, moment, config),
        "metric": {"name": metric.heading, "unit": metric.unit, "scale": metric.scale},
        "clock": CLOCK_UNITS[clock],
        "rounds": view.rounds,
        "progress": {"done": far.done, "total": far.total, "eta": duration(far.left)},
        "tiles": [*_results(view, measured, metric, state), *_times(view, measured, clock)],
        "targets": _targets(view.accuracy(events), targets, metric, clock),
        "evaluated": f"{evaluation_of(config)} set",
        "charts": [_chart(chart) for chart in view.page.charts(events)],
        "timeline": _timeline(view.page.timeline(events)),
        "topology": _topology(events, config),
        "incidents": _incidents(view, events)[-_INCIDENTS:],
        "tables": [_table(t) for t in _tables(view, events, told, measured, clock, state)],
        "changed": changed,
        "configuration": others,
        "command": _command(changed),
        "code": "; then ".join(map(described, codes_of(events))) or described(None),
        "environment": [[k, str(v)] for k, v in sorted(flatten(run.environment()).items())],
        "files": _files(run.path),
    }
    return plain(document)


_ENDS = ("completed", "diverged", "failed", "stopped")


def status(run: RunDirectory, events: Sequence[Event]) -> str:
    """Return how the run ended: completed, diverged, failed or stopped; or "not finished"."""
    ends = [event for event in events if event["event"] in ("finished", "resumed")]
    if ends and ends[-1]["event"] == "finished":
        return str(ends[-1]["status"])
    return str(run.summary().get("status", "not finished"))


def _comparable(view: View, events: Sequence[Event]) -> tuple[float | None, Sequence[Event]]:
    """The last evaluation of what stands for the run, and the events as they were known then."""
    points = view.accuracy(events)
    if not points:
        return None, events
    moment = points[-1][0]
    return moment, _until(events, points[-2][0] if points[1:] else moment, moment)


def _sentence(
    view: View,
    measured: Measured,
    metric: Metric,
    state: str,
    moment: float | None,
    config: Mapping[str, Any],
) -> str:
    """What came out; of a run that goes on, what had come out at `moment`."""
    text = view.page.sentence(measured, metric)
    if not text:
        return f"No model was evaluated{'' if state in _ENDS else ' yet'}."
    where = f"measured on the {evaluation_of(config)} set"
    if moment is not None:
        clock = CLOCK_UNITS[str(config.get("clock", "real"))]
        return f"{text[:-1]} ({where}, so far: at {moment:.1f} {clock})."
    rounds = view.rounds[: -1 if measured["rounds"] == 1 else None]
    return f"{text[:-1]} ({where}, after {measured['rounds']} {rounds})."


def _until(events: Sequence[Event], before: float, moment: float) -> list[Event]:
    """The events without evaluations after `moment`, and without models of which the last is older
    than `before`: values of different moments say nothing about each other."""
    last = {e.get("model"): e["t"] for e in events if e["event"] in ("evaluate", "nodes")}
    return [
        e
        for e in events
        if e["event"] not in ("evaluate", "nodes")
        or (e["t"] <= moment and last[e.get("model")] >= before)
    ]


def _results(view: View, measured: Measured, metric: Metric, state: str) -> Pairs:
    return [(_so_far(label, state), v) for label, v in view.page.tiles(measured, metric)]


def _so_far(label: str, state: str) -> str:
    return label if state in _ENDS else label.replace("final ", "")


def _times(view: View, measured: Measured, clock: str) -> Pairs:
    return [
        (view.rounds, str(measured["rounds"])),
        (CLOCK_UNITS[clock], number(measured["end_seconds"], 1)),
        ("wall time", duration(measured["wall_seconds"])),
    ]


def _targets(
    points: Sequence[tuple[float, float]], targets: Sequence[float], metric: Metric, clock: str
) -> list[dict[str, Any]]:
    """When each target was reached by the very points that are drawn."""
    times = times_to_targets(points, targets, metric.higher).values()
    return [
        {
            "value": target,
            "label": f"{target * metric.scale:g} {metric.unit}".rstrip(),
            "reached": None if t is None else f"{t:.1f} {CLOCK_UNITS[clock]}",
        }
        for target, t in zip(targets, times, strict=True)
    ]


def _chart(chart: Chart) -> dict[str, Any]:
    return {
        "title": chart.title,
        "metric": chart.metric,
        "unit": chart.unit,
        "log": chart.log,
        "band": chart.band,
        "marks": chart.marks[:60],
        "lines": [
            {
                "label": line.label,
                "colour": line.colour,
                "dash": line.dash,
                "width": line.width,
                "points": _thinned(line.points, _POINTS),
            }
            for line in chart.lines
        ],
    }


def _thinned(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the items, evenly, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int)]


def _timeline(timeline: Timeline | None) -> dict[str, Any] | None:
    """The newest bars: of a long run, those of its beginning are left out."""
    if timeline is None:
        return None
    newest = sorted(timeline.bars, key=lambda bar: bar.end)[-_BARS:]
    kept = {id(bar) for bar in newest}
    return {
        "lanes": timeline.lanes,
        "kinds": dict(timeline.kinds),
        "from": min((bar.start for bar in newest), default=0.0),
        "cut": len(timeline.bars) - len(newest),
        "bars": [
            [bar.lane, round(bar.start, 4), round(bar.end, 4), bar.kind, bar.note]
            for bar in timeline.bars
            if id(bar) in kept
        ],
    }


def _topology(events: Sequence[Event], config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The graph and, at every evaluation, what its nodes had and how long ago its edges were used.

    Of two directions of an edge, the one that was used last.
    """
    graph = latest(events, "topology")
    edges = [(int(i), int(j)) for i, j in graph.get("edges") or ()]
    if not edges:
        return None
    names = node_names(events)
    places = positions(str(config.get("consensus.topology", "")), len(names), edges)
    places = places - places.min(axis=0)
    places = places / max(float(places.max()), 1e-9)
    row = {edge: k for k, edge in enumerate(edges)}
    frames = []
    for event in _thinned(of_kind(events, "nodes"), max(2, _HEARD // len(edges))):
        heard: list[float | None] = [None] * len(edges)
        for i, j, seconds in event.get("heard") or ():
            k = row.get((min(i, j), max(i, j)))
            if k is not None:
                heard[k] = round(min(seconds, heard[k] if heard[k] is not None else seconds), 3)
        values = [None if a is None else round(a, 5) for a in event.get("accuracy") or ()]
        frames.append({"t": event["t"], "values": values, "heard": heard})
    return {
        "names": names,
        "places": np.round(places, 4).tolist(),
        "edges": edges,
        "frames": frames,
        "about": f"{len(names)} nodes, {len(edges)} edges, diameter {graph['diameter']}, spectral "
        f"gap {graph['spectral_gap']:.3g}",
    }


def _incidents(view: View, events: Sequence[Event]) -> list[dict[str, Any]]:
    """What happened besides the work: warnings, devices and nodes that went and came."""
    told = []
    for event in events:
        kind = event["event"]
        if kind in view.incidents:
            text = view.incidents[kind](event)[0].removeprefix("! ").removeprefix("warning: ")
        elif kind == "devices":
            text = f"devices that take part: {', '.join(sorted(event.get('devices') or ()))}"
        elif kind == "finished" and event.get("reason"):
            text = f"{event['status']}: {event['reason']}"
        else:
            continue
        told.append({"wall": duration(event["t_wall"]), "kind": kind, "text": text})
    return told


def _tables(
    view: View,
    events: Sequence[Event],
    told: Sequence[Event],
    measured: Measured,
    clock: str,
    state: str,
) -> list[Table]:
    """The tables: of `told`, what is compared; of all events, who took part, and every round."""
    rows, metric = view.rows(events), metric_of(events)
    columns = [
        column
        for column in view.page.columns
        if not column.needs or any(row[column.needs] is not None for row in rows)
    ]
    results = [
        (_so_far(label, state), value)
        for label, value in view.page.results(measured, metric)
        if value not in ("", "-", "None")
    ]
    compared = [
        replace(table, columns=tuple(_so_far(title, state) for title in table.columns))
        for table in view.page.tables(told)
    ]
    return [
        *compared,
        *_classes(told, metric, view.page.models),
        *_devices(events),
        Table("Results", ("what", "value"), results),
        Table(
            view.rounds.capitalize(),
            (view.rounds[:-1], CLOCK_UNITS[clock], *(column.heading(metric) for column in columns)),
            [
                (str(row["round"]), number(row["t"], 1), *(c.text(row, metric) for c in columns))
                for row in _thinned(rows, _ROWS)
            ],
        ),
    ]


def _classes(events: Sequence[Event], metric: Metric, called: Mapping[str, str]) -> list[Table]:
    """The main metric of each model by class, at its last evaluation that tells it; of nodes their
    mean, and what the worst and the best of them have."""
    last: dict[str, Mapping[str, float]] = {}
    nodes = [event["per_class"] for event in of_kind(events, "nodes") if event.get("per_class")]
    if nodes:
        worst, best = metric.ranked("min", "max")
        for title, which in (("mean of the nodes", "mean"), ("worst", worst), ("best", best)):
            last[title] = {name: spread[which] for name, spread in nodes[-1].items()}
    for event in of_kind(events, "evaluate"):
        model = called.get(event["model"]) or str(event["model"]).replace("_", " ")
        for name, field in ((model, "per_class"), (f"{model}, EMA", "per_class_ema")):
            if event.get(field):
                last[name] = event[field]
    if not last:
        return []
    names = list(dict.fromkeys(name for each in last.values() for name in each))
    rows = [(name, *(metric.shown(each.get(name)) for each in last.values())) for name in names]
    return [Table(f"{metric.name.capitalize()} by class", ("class", *last), rows)]


def _devices(events: Sequence[Event]) -> list[Table]:
    found = latest(events, "devices").get("devices") or {}
    if not found:
        return []
    sessions = latest(events, "sessions")
    processes, away = sessions.get("started") or {}, set(sessions.get("away") or ())
    rows = [
        (
            name,
            str(told.get("participant", "-")),
            str(told.get("examples", "-")),
            str(told.get("machine", "-")),
            number(told.get("cores")),
            number(told["memory"] / 2**30, 1) if told.get("memory") else "-",
            str(processes.get(name, "-")),
            "away" if name in away else "there",
        )
        for name, told in sorted(found.items())
    ]
    head = (
        "device",
        "participant",
        "examples",
        "machine",
        "cores",
        "GiB",
        "processes",
        "at the end",
    )
    return [Table("Devices", head, rows)]


def _table(table: Table) -> dict[str, Any]:
    return {"title": table.title, "columns": table.columns, "rows": table.rows}


def _configuration(config: Mapping[str, Any]) -> tuple[list[list[str]], list[list[str]]]:
    """The keys that are not as they are shipped, as [key, value, default]; and all others that have
    an effect."""
    from fl_app.config import defaults, resolve
    from fl_app.effects import PLACE, has_effect

    try:
        shipped = dict(defaults())
        run = resolve(config)
        # What "auto" becomes is not a choice: that of a run with the same first choices.
        usual = resolve({"mode": run.mode}).flat()
        values = run.settled() | {PLACE: ""}
    except ConfigError:  # of another edge-fl: what it chose by itself cannot be told
        shipped = defaults()
        differ = [key for key in config if key in shipped and config[key] != shipped[key]]
        chosen = [key for key in differ if shipped[key] not in (0, -1, "", "auto")]
        changed = [[key, _word(config[key]), _word(shipped[key])] for key in chosen]
        return changed, [[k, _word(v)] for k, v in sorted(config.items()) if k not in chosen]
    changed, others = [], []
    for key, value in config.items():
        if key in OF_THE_RUN:
            continue
        if key in values and not has_effect(key, values):
            continue
        if value != (shipped if key == "mode" else usual).get(key):
            changed.append([key, _word(value), _word(shipped.get(key, ""))])
        else:
            others.append([key, _word(value)])
    return changed, sorted(others)


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _command(changed: Sequence[Sequence[str]]) -> str:
    """The command of a run with the same configuration."""
    words = [shlex.quote(f"{key}={value}") for key, value, _ in changed]
    return " ".join(["edge-fl run", *words])


def _files(path: Path) -> list[str]:
    """The files of a run that a page links to, relative to its directory."""
    names = [n for n in (METRICS, SUMMARY, CONFIG, ENVIRONMENT) if (path / n).is_file()]
    return [*names, *sorted(f"{FIGURES}/{each.name}" for each in (path / FIGURES).glob("*.png"))]
