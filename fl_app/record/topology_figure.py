"""The picture of a topology: its nodes coloured by a value, its edges by their age."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fl_app.record.figures import ACCURACY, BLUE, COLUMN, GREY, VERMILION, new_figure
from fl_app.record.metrics import Metric
from strategies.consensus.topologies import grid_sides
from strategies.consensus.topology import Edge

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIDES = (2.6, 9.0)  # inches of a picture of few and of many nodes
_FEW = 16  # nodes find room in a column of print
_DIAMETERS = (3.0, 20.0)  # points of a node
_READABLE = 5.5  # points of the smallest letters
_APART = 9  # points between nodes beside which labels still find room
_ROW = 16  # nodes of a chain in one row
_SPRINGS = 499  # networkx needs SciPy for springs between more nodes
_FULL = 20_000_000  # more pairs of an edge and a node are not searched for collisions
_SPREAD = 0.02  # the least difference between values that spans the whole palette


def topology_figure(
    family: str,
    size: int,
    edges: Sequence[Edge],
    title: str,
    *,
    names: Sequence[str] = (),
    values: Sequence[float | None] = (),
    ages: Mapping[Edge, float] | None = None,
    metric: Metric = ACCURACY,
) -> Figure:
    """Draw `size` nodes and the `edges` (i, j), i < j, between them.

    family: of the topology, which decides where its nodes are; springs do for an unknown one.
    names: of the nodes, by default their numbers. values: of every node its `metric`, or None if
    it is off. ages: of the edges, seconds since the last exchange; one that is not in
    it has had none.
    """
    places = positions(family, size, edges)
    places = places / max(np.ptp(places, axis=0).max(), 1e-9)
    side = min(_SIDES[1], _SIDES[0] + max(0, size - _FEW) / 15)
    width, height = side * (np.ptp(places, axis=0) + 0.16)
    # A colour bar needs room even beside a flat graph.
    height = max(height, 1.8 if values else 0.9) + (0.5 if ages else 0.0) + 0.3
    figure, axes = new_figure(max(COLUMN, width + (0.7 if values else 0.0)), height)
    axes.set_axis_off()
    axes.set_aspect("equal")
    apart = 72 * side * _spacing(places)
    diameter = float(np.clip(0.62 * apart, *_DIAMETERS))
    _draw_edges(figure, axes, places, edges, ages, diameter)
    faces = _draw_nodes(figure, axes, places, values, diameter, metric)
    labels = list(names) or [str(node) for node in range(size)]
    _draw_labels(axes, places, edges, labels, faces, diameter, apart)
    low, high = places.min(axis=0) - 0.08, places.max(axis=0) + 0.08
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower right", ncols=2, frameon=False)
    axes.set_title(title, loc="left")
    return figure


def positions(family: str, size: int, edges: Sequence[Edge]) -> np.ndarray:
    """Where the nodes of a topology are, (N, 2)."""
    if family in LAYOUTS:
        return LAYOUTS[family](size)
    if size > _SPRINGS:
        return _circle(size)
    import networkx as nx

    graph = nx.empty_graph(size)
    graph.add_edges_from(edges)
    sprung = nx.spring_layout(graph, iterations=200, seed=0)
    places = np.array([sprung[node] for node in range(size)])
    # Turned so that it is wider than high, as names are.
    _, _, directions = np.linalg.svd(places - places.mean(axis=0), full_matrices=False)
    return places @ directions.T


def _circle(size: int) -> np.ndarray:
    """Clockwise from the top."""
    angles = 2 * np.pi * np.arange(size) / size
    return np.column_stack([np.sin(angles), np.cos(angles)])


def _chain(size: int) -> np.ndarray:
    """Rows that are read to and fro, so that neighbours stay side by side."""
    row, column = np.divmod(np.arange(size), _ROW)
    return np.column_stack([np.where(row % 2, _ROW - 1 - column, column), -row])


def _star(size: int) -> np.ndarray:
    return np.vstack([np.zeros((1, 2)), _circle(size - 1)])


def _lattice(size: int) -> np.ndarray:
    row, column = np.divmod(np.arange(size), grid_sides("grid", size)[1])
    return np.column_stack([column, -row])


def _hypercube(size: int) -> np.ndarray:
    """Each dimension is a direction of its own, of a length of its own lest nodes coincide."""
    m = size.bit_length() - 1
    bits = np.arange(size)[:, None] >> np.arange(m) & 1
    angles = np.pi * (np.arange(m) + 0.5) / m
    lengths = 1.3 ** np.arange(m)
    return bits @ (lengths[:, None] * np.column_stack([np.cos(angles), np.sin(angles)]))


def _tree(size: int) -> np.ndarray:
    """The root at the top, each level evenly below it."""
    numbers = np.arange(1, size + 1)
    level = np.floor(np.log2(numbers))
    return np.column_stack([(numbers + 0.5) / 2**level, -0.6 * level / level.max()])


# Where the nodes of a family are by nature; all others are laid out by springs.
LAYOUTS: dict[str, Callable[[int], np.ndarray]] = {
    "base-k": _circle,
    "chain": _chain,
    "complete": _circle,
    "exponential": _circle,
    "grid": _lattice,
    "hypercube": _hypercube,
    "one-peer-exponential": _circle,
    "ring": _circle,
    "star": _star,
    "torus": _lattice,
    "tree": _tree,
    "watts-strogatz": _circle,
}


def _spacing(places: np.ndarray) -> float:
    """How far most nodes are from the nearest other one; of very many nodes some tell."""
    some = places[:: 1 + len(places) // 500]
    distances = np.hypot(*(some[:, None] - places).transpose(2, 0, 1))
    return float(np.quantile(np.partition(distances, 1)[:, 1], 0.2))


def _draw_edges(
    figure: Figure,
    axes: Axes,
    places: np.ndarray,
    edges: Sequence[Edge],
    ages: Mapping[Edge, float] | None,
    diameter: float,
) -> None:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import LineCollection
    from matplotlib.colors import ListedColormap, Normalize

    lines = _lines(places, edges)
    width = float(np.clip(110 / len(edges) ** 0.75, 0.05, min(1.6, diameter / 6)))

    def draw(chosen: Sequence[int], **style: Any) -> None:
        axes.add_collection(LineCollection([lines[k] for k in chosen], zorder=1, **style))

    if ages is None:
        draw(range(len(edges)), colors=GREY, linewidths=width)
        return
    known = [k for k, edge in enumerate(edges) if edge in ages]
    never = [k for k, edge in enumerate(edges) if edge not in ages]
    if never:
        draw(never, colors=VERMILION, linewidths=width, linestyles=":", label="no exchange yet")
    if not known:
        return
    seconds = np.array([ages[edges[k]] for k in known])
    scale = Normalize(0, max(float(seconds.max()), 1e-9))
    greys = ListedColormap(colormaps["Greys"](np.linspace(0.95, 0.35, 128)))
    draw(known, colors=greys(scale(seconds)), linewidths=width * (1.8 - 1.2 * scale(seconds)))
    bar = figure.colorbar(
        ScalarMappable(scale, greys), ax=axes, location="bottom", shrink=0.6, pad=0.02, aspect=40
    )
    bar.set_label("seconds since the last exchange")


def _lines(places: np.ndarray, edges: Sequence[Edge]) -> list[np.ndarray]:
    """The edges as lines; one that would run through a third node is bent around it."""
    ends = places[np.asarray(edges)]
    lines = list(ends)
    if len(edges) * len(places) > _FULL:
        return lines
    step, centre = _spacing(places), places.mean(axis=0)
    t = np.linspace(0, 1, 25)[:, None]
    for k, (start, end) in enumerate(ends):
        along = end - start
        length = math.hypot(*along)
        across = np.array([-along[1], along[0]]) / length
        shares = (places - start) @ along / length**2
        near = np.abs((places - start) @ across) < 0.1 * step
        if (near & (shares > 1e-6) & (shares < 1 - 1e-6)).any():
            inward = across if across @ (centre - start) > -1e-9 else -across
            # A cubic curve through start, end and, half-way, a point 0.45 steps beside them.
            curve = (3 * t**2 - 2 * t**3) * along + 3 * t * (1 - t) * 0.6 * step * inward
            lines[k] = start + curve
    return lines


def _draw_nodes(
    figure: Figure,
    axes: Axes,
    places: np.ndarray,
    values: Sequence[float | None],
    diameter: float,
    metric: Metric,
) -> np.ndarray:
    """Draw the nodes and return their colours, (N, 4)."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize, to_rgba

    faces = np.tile(to_rgba(BLUE), (len(places), 1))
    known = [k for k, value in enumerate(values) if value is not None]
    if values:
        faces[:] = to_rgba("white")
    if known:
        shown = metric.scale * np.array([values[k] for k in known], float)
        margin = max(0.0, (metric.scale * _SPREAD - np.ptp(shown)) / 2)
        scale = Normalize(shown.min() - margin, shown.max() + margin)
        faces[known] = colormaps["cividis"](scale(shown))
        bar = figure.colorbar(
            ScalarMappable(scale, "cividis"), ax=axes, pad=0.02, shrink=0.7, aspect=30
        )
        bar.set_label(metric.label)
    axes.scatter(
        *places.T,
        s=diameter**2,
        c=faces,
        edgecolors="#444444",
        linewidths=0.03 * diameter,
        zorder=2,
    )
    if values and len(known) < len(values):
        axes.scatter([], [], s=60, c="white", edgecolors="#444444", label="off")
    return faces


def _draw_labels(
    axes: Axes,
    places: np.ndarray,
    edges: Sequence[Edge],
    labels: Sequence[str],
    faces: np.ndarray,
    diameter: float,
    apart: float,
) -> None:
    """Write the labels in the nodes, or outside of them where they are too long for that.

    There are none when not even that leaves readable letters.
    """
    from matplotlib.patheffects import withStroke

    longest = max(map(len, labels))
    inside = min(0.5 * diameter, 1.35 * diameter / longest)
    if inside >= _READABLE:
        for label, place, face in zip(labels, places, faces, strict=True):
            colour = "black" if face[:3].sum() > 1.5 else "white"
            axes.annotate(
                label, place, ha="center", va="center_baseline", fontsize=inside, color=colour
            )
    elif apart > _APART:
        for label, place, (x, y) in zip(labels, places, _away(places, edges), strict=True):
            axes.annotate(
                label,
                place,
                ((diameter / 2 + 2) * x, (diameter / 2 + 2) * y),
                textcoords="offset points",
                ha="left" if x > 0.3 else "right" if x < -0.3 else "center",
                va="bottom" if y > 0.3 else "top" if y < -0.3 else "center",
                fontsize=min(9.0, 0.7 * apart),
                path_effects=[withStroke(linewidth=2, foreground="white")],
            )


def _away(places: np.ndarray, edges: Sequence[Edge]) -> np.ndarray:
    """The direction from each node in which there is room, (N, 2).

    On a circle that is outward. Elsewhere it is against the mean of the edges, or up where these
    cancel out.
    """
    radii = places - places.mean(axis=0)
    lengths = np.hypot(*radii.T)
    if np.ptp(lengths) < 1e-6:
        return radii / lengths[:, None]
    i, j = np.asarray(edges).T
    along = places[j] - places[i]
    along /= np.hypot(*along.T)[:, None]
    away = np.zeros_like(places)
    np.add.at(away, i, -along)
    np.add.at(away, j, along)
    length = np.hypot(*away.T)[:, None]
    return np.where(length > 0.3, away / np.maximum(length, 0.3), [0.0, 1.0])
