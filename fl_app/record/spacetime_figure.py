"""The space-time diagram of a slice of a consensus run: who stepped, who wrote to whom, what was
lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fl_app.record.consensus_metrics import node_names
from fl_app.record.figures import (
    BLUE,
    CLOCK_AXIS,
    COLUMN,
    GREY,
    ORANGE,
    PURPLE,
    VERMILION,
    legend_below,
    new_figure,
    whole_numbers,
)
from fl_app.record.metrics import Event, latest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMED = 40  # lanes that can each have a name
_HEIGHTS = (1.9, 8.0)  # inches of a picture of few and of many lanes
_LOST = 0.4  # share of its way that lost mail is drawn to go


class _Moment(NamedTuple):
    """An entry of the event "trace"; for mail that arrives, node is its receiver, peer its sender.

    Lost mail has the moment and the node of its sending, for it arrives nowhere.
    """

    t: float
    kind: str
    node: int
    peer: int | None
    t_sent: float | None


# Kinds of mail by what came of it: label, style of its line, marker at its end.
_MAIL: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "receive": ("mail, applied", {"colors": BLUE}, {"c": BLUE, "marker": "o"}),
    "duplicate": (
        "arrived twice, dropped",
        {"colors": PURPLE, "linestyles": "--"},
        {"edgecolors": PURPLE, "facecolors": "none", "marker": "o"},
    ),
    "drop": (
        "arrived, not applied",
        {"colors": ORANGE, "linestyles": "-."},
        {"c": ORANGE, "marker": "s"},
    ),
    "lost": ("lost", {"colors": VERMILION}, {"c": VERMILION, "marker": "x"}),
}


def spacetime(events: Sequence[Event], clock: str, _: Sequence[float]) -> Figure | None:
    """Draw a lane a node: ticks are local steps, slanted lines mail, grey is when it was off."""
    names = node_names(events)
    moments = [_Moment(*entry) for entry in latest(events, "trace").get("events") or ()]
    # Beyond the nodes there are the centralized references, which have no neighbours.
    moments = [m for m in moments if m.node < len(names)]
    size, times = len(names), [m.t for m in moments if m.kind in ("step", *_MAIL)]
    if not times:
        return None
    start, end = min(times), max(times)
    moments = [m for m in moments if m.t <= end]  # nodes go and come after the slice too
    crowd = min(1.0, 16 / size) ** 0.5  # marks shrink as lanes close up
    low, high = _HEIGHTS
    figure, axes = new_figure(COLUMN, min(high, max(low, 1.1 + 0.18 * size)))
    axes.hlines(range(size), start, end, color=GREY, lw=0.5 * crowd, alpha=0.6, zorder=1)
    _draw_steps(axes, moments, crowd)
    _draw_absences(axes, moments, start, end)
    _draw_mail(axes, moments, crowd)
    if size <= _NAMED:
        axes.set_yticks(range(size), names)
    else:
        axes.yaxis.set_major_locator(whole_numbers())
    axes.set_ylabel("node")
    axes.set_ylim(size - 0.4, -0.6)
    margin = 0.01 * (end - start) or 1.0  # of a single moment
    axes.set_xlim(start - margin, end + margin)
    axes.set_xlabel(CLOCK_AXIS[clock])
    axes.set_title(f"Who stepped and wrote to whom, {start:.2f} to {end:.2f} s", loc="left")
    legend_below(figure, axes, 2, magnified=1 / crowd)
    return figure


def _draw_steps(axes: Axes, moments: Sequence[_Moment], crowd: float) -> None:
    steps = [(m.t, m.node) for m in moments if m.kind == "step"]
    if steps:
        t, node = zip(*steps, strict=True)
        size = 24 * crowd**2
        axes.scatter(t, node, s=size, c="#555555", marker="|", lw=0.5 * crowd, label="local step")


def _draw_absences(axes: Axes, moments: Sequence[_Moment], start: float, end: float) -> None:
    """Grey the times between "down" and "up"; one that lies outside of the slice is its border."""
    since: dict[int, float] = {}
    spans: list[tuple[int, float, float]] = []
    heard_of: set[int] = set()
    for m in sorted(moments):
        if m.kind == "down":
            since[m.node] = m.t
        elif m.kind == "up":
            # Up without down: it was off when the slice began, unless it was seen before.
            begin = since.pop(m.node, None if m.node in heard_of else start)
            spans += [] if begin is None else [(m.node, begin, m.t)]
        heard_of.add(m.node)
    spans += [(node, begin, end) for node, begin in since.items()]
    for node, begin, until in spans:
        axes.broken_barh(
            [(begin, until - begin)], (node - 0.32, 0.64), facecolor="#CCCCCC", label="off"
        )


def _draw_mail(axes: Axes, moments: Sequence[_Moment], crowd: float) -> None:
    from matplotlib.collections import LineCollection

    flights = [m.t - m.t_sent for m in moments if m.kind == "receive" and m.t_sent is not None]
    flight = float(np.median(flights)) if flights else 0.0
    for kind, (label, line, marker) in _MAIL.items():
        mail = [m for m in moments if m.kind == kind and m.peer is not None]
        if not mail:
            continue
        paths = [_path(m, flight) for m in mail]
        axes.add_collection(
            LineCollection(paths, linewidths=0.5 * crowd, alpha=0.7, zorder=3, **line)
        )
        x, y = zip(*(path[1] for path in paths), strict=True)
        axes.scatter(x, y, s=5 * crowd**2, lw=0.6 * crowd, zorder=4, label=label, **marker)


def _path(m: _Moment, flight: float) -> list[tuple[float, float]]:
    """Where the mail goes: [(t, lane) of its sending, (t, lane) of its end]."""
    assert m.peer is not None
    if m.kind == "lost":
        return [(m.t, m.node), (m.t + _LOST * flight, m.node + _LOST * (m.peer - m.node))]
    return [(m.t if m.t_sent is None else m.t_sent, m.peer), (m.t, m.node)]
