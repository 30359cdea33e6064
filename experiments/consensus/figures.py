"""Accuracy over local steps, a line for each row, and the spread of the nodes in the end."""

from collections.abc import Sequence
from statistics import mean
from typing import Any

import numpy as np

from experiments.consensus.plan import ADJUSTED, ANCHORS, KEEPS, OURS, ROWS
from experiments.consensus.results import (
    CENTRALIZED,
    average,
    centralized,
    hosts,
    node_mean,
)
from experiments.reporting import Entry, Results, band, select
from fl_app.record import figures

# Relatives share a hue: ECL as published is blue (ADMM dashed), ours is green.
STYLES: dict[str, dict[str, Any]] = {
    "isolated": {"color": figures.GREY, "ls": "-"},
    "gossip": {"color": figures.ORANGE, "ls": "-"},
    "d-psgd": {"color": figures.ORANGE, "ls": "--"},
    "momentum-tracking": {"color": figures.PURPLE, "ls": "-"},
    "pdmm-isvr": {"color": figures.BLUE, "ls": "-"},
    "admm-isvr": {"color": figures.BLUE, "ls": "--"},
    OURS: {"color": figures.GREEN, "ls": "-", "lw": 2.4},
    KEEPS: {"color": figures.GREEN, "ls": (0, (5, 1))},
    ANCHORS: {"color": figures.GREEN, "ls": "-."},
    "qg-dsgdm": {"color": figures.PURPLE, "ls": "--"},
    "relay-sgd": {"color": figures.PURPLE, "ls": "-."},
    "gossip-adjusted": {"color": figures.ORANGE, "ls": "--"},
    ADJUSTED: {"color": figures.GREEN, "ls": "--"},
}
# What is drawn over time, the first four of them beside two references: more lines than six nobody
# can tell apart.
_DRAWN = ("gossip", OURS, "momentum-tracking", "relay-sgd", ADJUSTED, KEEPS)
LABELS = {
    OURS: "ecl (ours)",
    KEEPS: "ecl, forgets nothing",
    ANCHORS: "ecl, anchors not held",
    "gossip-adjusted": "gossip, adjusted",
    ADJUSTED: "ecl, adjusted",
}
_REFERENCES = {"same-steps": ("-", "as many steps"), "same-samples": (":", "as many samples")}


def accuracy(results: Results, group: str) -> Any:
    """The nodes' mean over local steps, mean over the seeds; beside it that of the lowest node."""
    figure, (left, right) = figures.new_figure(12.0, 5.0, columns=2)
    for axes, which in ((left, "mean"), (right, "min")):
        of = {row: select(results, group=group, row=row) for row in _DRAWN}
        for row, entries in [each for each in of.items() if each[1]][:4]:
            _draw(axes, entries, which, label=LABELS.get(row, row), **STYLES[row])
        for name, (line, words) in _REFERENCES.items():
            label = f"centralized, {words}"
            style = {"color": figures.VERMILION, "ls": line, "label": label}
            _draw(axes, hosts(results, group, name), name, **style)
        figures.finish_accuracy_axes(axes, "local steps of a node")
        axes.set_title("mean of the nodes" if which == "mean" else "lowest node", loc="left")
    figures.legend_below(figure, left, 5)
    return figure


def _draw(axes: Any, entries: Sequence[Entry], curve: str, **style: Any) -> None:
    """The mean over the seeds, and a band from the lowest to the highest of them."""
    curves = [entry["curves"][curve] for entry in entries if entry["curves"].get(curve)]
    if curves:
        steps, values = band(curves)
        axes.plot(steps, 100 * values.mean(0), **{"lw": 1.6, **style})
        low, high = 100 * values.min(0), 100 * values.max(0)
        axes.fill_between(steps, low, high, color=style["color"], alpha=0.15, lw=0)


def spread(results: Results, group: str) -> Any:
    """For each row and seed a line from the lowest to the highest node as training has left them,
    with their mean, and a cross for what they settle on, or, where they do not, for their
    average."""
    there = {entry["row"] for entry in select(results, group=group)} - {"same-samples"}
    rows = [row for row in ROWS if row in there]
    figure, axes = figures.new_figure(8.5, 1.6 + 0.42 * len(rows))
    for place, row in enumerate(rows):
        entries = select(results, group=group, row=row)
        for y, entry in zip(_lanes(place, len(entries)), entries, strict=True):
            nodes = [100 * accuracy for accuracy in entry["final"]["nodes"]]
            low, high = min(nodes), max(nodes)
            axes.plot([low, high], [y, y], color=figures.SKY, lw=3, solid_capstyle="round")
            axes.plot(mean(nodes), y, "o", color=figures.BLUE, ms=5, label="node mean as trained")
            settled = entry["final"].get("settled")
            label = "nodes as settled" if settled else "averaged model (a diagnosis)"
            cross = node_mean(entry) if settled else average(entry)
            axes.plot(100 * cross, y, "x", color=figures.ORANGE, ms=6, label=label)
    for name in CENTRALIZED:
        if values := centralized(results, group, name):
            line, words = _REFERENCES[name]
            style = {"color": figures.VERMILION, "ls": line, "label": f"centralized, {words}"}
            axes.axvline(100 * mean(values), lw=1.2, zorder=1, **style)
    axes.set_yticks(range(len(rows)), [LABELS.get(row, row) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("test accuracy (%): lowest to highest node as trained, a line for each seed")
    axes.grid(axis="x", alpha=0.3, lw=0.6)
    figures.legend_below(figure, axes, 2)
    return figure


def _lanes(place: int, count: int) -> np.ndarray:
    return place + 0.2 * (np.arange(count) - (count - 1) / 2)
