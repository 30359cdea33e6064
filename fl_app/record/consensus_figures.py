"""The pictures of a consensus run: accuracy of the nodes, their distance, topology and labels.

Every function takes the events that count and returns a matplotlib figure, or None when the run
recorded nothing of the kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fl_app.record.consensus_metrics import node_names, node_series, references
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
    finish_accuracy_axes,
    legend_below,
    mark_targets,
    new_figure,
)
from fl_app.record.label_figure import label_figure
from fl_app.record.metrics import (
    Event,
    Metric,
    evaluated_on,
    latest,
    metric_of,
    of_kind,
    series,
    settled,
)
from fl_app.record.spacetime_figure import spacetime
from fl_app.record.topology_figure import topology_figure
from fl_app.record.view import Drawing
from strategies.consensus.topology import edge_between

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DIAGNOSIS = "averaged model (a diagnosis)"
# Names of the centralized references in words, and how they are drawn.
REFERENCES = {
    "same-steps": ("centralized, as many steps as a node", {"color": BLACK, "ls": "-"}),
    "same-samples": ("centralized, as many samples as all nodes", {"color": BLACK, "ls": ":"}),
}
_OUTAGES_SHOWN = 60


def accuracy(events: Sequence[Event], clock: str, targets: Sequence[float]) -> Figure | None:
    """Draw the accuracy of every node, their mean and range, and what they are measured against."""
    mean = node_series(events)
    if not mean:
        return None
    figure, axes = new_figure(COLUMN, 3.3)
    metric = metric_of(events)
    _draw_nodes(axes, events, metric)
    draw_line(axes, mean, metric, label="mean of the nodes", color=BLUE, lw=1.5, zorder=5)
    if average := series(events, "average"):
        draw_line(axes, average, metric, label=DIAGNOSIS, color=ORANGE, lw=1.0, ls="--", zorder=6)
    for name, points in references(events).items():
        label, style = REFERENCES[name]
        draw_line(axes, points, metric, label=label, lw=0.9, zorder=4, **style)
    _mark_settling(axes, events)
    finish_accuracy_axes(axes, CLOCK_AXIS[clock], metric)
    mark_targets(axes, mean, targets, metric)
    axes.set_title(f"{evaluated_on(events).capitalize()} {metric.name}", loc="left")
    legend_below(figure, axes, 1)
    return figure


def _draw_nodes(axes: Axes, events: Sequence[Event], metric: Metric) -> None:
    """Draw a thin line a node, with gaps where it was off, and the range of those that were on."""
    from matplotlib.collections import LineCollection

    low, high = node_series(events, "min"), node_series(events, "max")
    times = [t for t, _ in low]
    bottom, top = ([metric.scale * value for _, value in points] for points in (low, high))
    axes.fill_between(times, bottom, top, color=SKY, alpha=0.25, lw=0, label="worst to best node")
    windows = of_kind(events, "nodes")
    t = np.array([window["t"] for window in windows])
    values = metric.scale * np.array([window["accuracy"] for window in windows], float)
    axes.add_collection(
        LineCollection(
            [np.column_stack([t, of_node]) for of_node in values.T],
            colors=BLUE,
            linewidths=0.4 if values.shape[1] <= 30 else 0.2,
            alpha=0.5 if values.shape[1] <= 30 else 0.3,
            label="each node",
            zorder=2,
        )
    )


def _mark_settling(axes: Axes, events: Sequence[Event]) -> None:
    """Mark where the training ends, and nodes exchange without steps."""
    settling = [e["t"] for e in of_kind(events, "nodes") if settled(e)]
    trained = [e["t"] for e in of_kind(events, "nodes") if not settled(e)]
    if settling and trained:
        style: dict[str, Any] = {"color": PURPLE, "lw": 0.7, "ls": "-.", "zorder": 1}
        axes.axvline(max(trained), label="from here on the nodes settle", **style)


def distance(events: Sequence[Event], clock: str, _: Sequence[float]) -> Figure | None:
    """Draw the consensus distance on a log axis, and when nodes and links went and came back."""
    points = [(e["t"], e["distance"]) for e in of_kind(events, "round") if e.get("distance")]
    if not points:
        return None
    figure, axes = new_figure(COLUMN, 2.2)
    _draw_outages(axes, of_kind(events, "incident"))
    _mark_settling(axes, events)
    axes.plot(*zip(*points, strict=True), color=PURPLE, lw=1.2, marker="" if points[40:] else "o")
    axes.set_yscale("log")
    axes.set_xlim(left=0)
    axes.set_xlabel(CLOCK_AXIS[clock])
    axes.set_ylabel("consensus distance")
    axes.grid(which="both", alpha=0.3, lw=0.6)
    axes.set_title("How far the nodes are from each other", loc="left")
    if axes.get_legend_handles_labels()[0]:
        legend_below(figure, axes, 1)
    return figure


_WENT: dict[str, Any] = {"color": VERMILION, "ls": ":", "label": "a node or a link went"}
_CAME: dict[str, Any] = {"color": GREEN, "ls": "--", "label": "a node or a link came back"}
_OUTAGES = {"cut": _WENT, "down": _WENT, "healed": _CAME, "up": _CAME}


def _draw_outages(axes: Axes, incidents: Sequence[Event]) -> None:
    shown = [event for event in incidents if event["kind"] in _OUTAGES]
    # A forest of lines would say less than the list of incidents does.
    for event in shown if len(shown) <= _OUTAGES_SHOWN else ():
        axes.axvline(event["t"], lw=0.6, zorder=1, **_OUTAGES[event["kind"]])


def topology(events: Sequence[Event], _clock: str, _: Sequence[float]) -> Figure | None:
    """Draw the graph with the nodes' last accuracy and the age of each edge's last exchange."""
    graph, last = latest(events, "topology"), latest(events, "nodes")
    edges = [(int(i), int(j)) for i, j in graph.get("edges") or ()]
    if not edges:
        return None
    config = latest(events, "run_started").get("config") or {}
    names = node_names(events)
    heard: dict[tuple[int, int], float] = {}
    for i, j, seconds in last.get("heard") or ():
        edge = edge_between(i, j)
        heard[edge] = min(heard.get(edge, seconds), seconds)
    return topology_figure(
        str(config.get("consensus.topology", "")),
        len(names),
        edges,
        f"{len(names)} nodes, {len(edges)} edges, diameter {graph['diameter']}, spectral gap "
        f"{graph['spectral_gap']:.3g}",
        names=names,
        values=last.get("accuracy") or (),
        metric=metric_of(events),
        ages=heard if last else None,
    )


def labels(events: Sequence[Event], _clock: str, _: Sequence[float]) -> Figure | None:
    """Draw how many training examples of each class every node holds."""
    held = latest(events, "labels")
    if not held:
        return None
    histogram = np.array(held["histogram"])
    return label_figure(histogram, held["classes"], "Training examples of each node", who="node")


FIGURES: dict[str, Drawing] = {
    "accuracy": Drawing(accuracy, "no node was evaluated"),
    "distance": Drawing(distance, "no distance between the nodes was measured"),
    "topology": Drawing(topology, "no topology was recorded"),
    "spacetime": Drawing(spacetime, "no slice of the schedule was recorded"),
    "labels": Drawing(
        labels,
        "how many examples of each class every node holds was not recorded: devices do not tell it",
    ),
}
