"""What the page shows of a run whose nodes agree among themselves."""

from collections.abc import Sequence

from fl_app.record.consensus_figures import DIAGNOSIS, REFERENCES
from fl_app.record.consensus_metrics import node_names, node_series, references
from fl_app.record.metrics import Event, Metric, latest, metric_of, of_kind, series, settled
from fl_app.record.view import Bar, Chart, Line, Measured, Timeline

_STYLES: dict[str, tuple[str, tuple[int, ...]]] = {
    "same-steps": ("black", (8, 3, 2, 3)),
    "same-samples": ("black", (2, 3)),
}
_NODES_SHOWN = 16  # more have no line of their own: the worst and the best say it


def sentence(measured: Measured, metric: Metric) -> str:
    """What the nodes are worth, beside centralized training."""
    final = measured["final"]
    mean = final["node_mean"]
    if mean is None:
        return ""
    worst, best = metric.ranked(final["node_min"], final["node_max"])
    if metric.plain(worst) == metric.plain(best):
        text = f"Every node has {metric.shown(mean)} {metric.heading}"
    else:
        text = (
            f"The nodes have {metric.shown(mean)} {metric.heading} on average, the worst "
            f"{metric.shown(worst)}, the best {metric.shown(best)}"
        )
    compared = [
        f"{metric.apart(mean, value)} {REFERENCES[name][0].replace(',', ' training of')}"
        for name, value in final["reference"].items()
        if value is not None
    ]
    return text + (": " + ", ".join(compared) if compared else "") + "."


def charts(events: Sequence[Event]) -> list[Chart]:
    """The metric of the nodes, how far they are apart, and their traffic."""
    return [chart for chart in (_metric(events), _distance(events), _traffic(events)) if chart]


def _marks(events: Sequence[Event]) -> tuple[tuple[float, str], ...]:
    """When nodes went and came, and from when on they settle."""
    told = {"down": "node {} went off", "up": "node {} is on again"}
    marks = [
        (e["t"], told[e["kind"]].format(e["node"]))
        for e in of_kind(events, "incident")
        if e["kind"] in told
    ]
    nodes = of_kind(events, "nodes")
    trained = [e["t"] for e in nodes if not settled(e)]
    if trained and any(settled(e) for e in nodes):
        marks.append((max(trained), "from here on the nodes settle"))
    return tuple(sorted(marks))


def _metric(events: Sequence[Event]) -> Chart | None:
    mean = node_series(events)
    if not mean:
        return None
    worst, best = (node_series(events, w) for w in metric_of(events).ranked("min", "max"))
    lines = [
        Line("mean of the nodes", mean, "blue", width=2.5),
        Line("worst node", worst, "sky", width=0.75),
        Line("best node", best, "sky", width=0.75),
    ]
    if average := series(events, "average"):
        lines.append(Line(DIAGNOSIS, average, "orange", (6, 4)))
    for name, points in references(events).items():
        lines.append(Line(REFERENCES[name][0], points, *_STYLES[name]))
    band = ("worst node", "best node")
    return Chart(
        "How good the models are", tuple(lines), metric=True, band=band, marks=_marks(events)
    )


def _distance(events: Sequence[Event]) -> Chart | None:
    points = [(e["t"], e["distance"]) for e in of_kind(events, "round") if e.get("distance")]
    line = Line("consensus distance", points, "purple", width=2)
    marks = _marks(events)
    return Chart("How far the nodes are apart", (line,), log=True, marks=marks) if points else None


def _traffic(events: Sequence[Event]) -> Chart | None:
    rounds = [e for e in of_kind(events, "round") if e.get("bytes") is not None]
    line = Line("all messages", [(e["t"], e["bytes"] / 1e6) for e in rounds], "vermilion")
    return Chart("Traffic so far", (line,), unit="MB") if rounds else None


_KINDS = {"step": "sky", "sends": "vermilion"}


def timeline(events: Sequence[Event]) -> Timeline | None:
    """What each node did in the slice of the run that was recorded in full."""
    trace = latest(events, "trace").get("events")
    if not trace:
        return None
    names = node_names(events)
    if len(names) > _NODES_SHOWN:
        names = names[:_NODES_SHOWN]
    span = max(entry[0] for entry in trace) - min(entry[0] for entry in trace)
    sliver = span / 400 or 1e-6
    bars, last = [], {}
    for t, kind, node, peer, _sent in trace:
        if node >= len(names):
            continue
        if kind == "step":
            # A step ends at t; it began where the node's last one ended, or a step's time ago.
            bars.append(Bar(node, max(last.get(node, 0.0), t - 4 * sliver), t, "step"))
            last[node] = t
        elif kind in ("send", "lost"):
            lost = " (lost)" if kind == "lost" else ""
            bars.append(Bar(node, t, t + sliver, "sends", f"to node {peer}{lost}"))
    bars.sort(key=lambda bar: bar.kind == "sends")  # slivers over bars
    kinds = {kind: colour for kind, colour in _KINDS.items() if any(b.kind == kind for b in bars)}
    return Timeline(tuple(f"node {name}" for name in names), tuple(bars), kinds)
