"""The picture of a topology: every family at every size, what colours and lines mean."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from fl_app.record.figures import VERMILION, to_png
from fl_app.record.topology_figure import LAYOUTS, positions, topology_figure
from strategies.consensus.topologies import TOPOLOGIES, build_topology
from strategies.consensus.topology import Topology
from tests.drawn import pixels

RING = build_topology("ring", 8)


def built(name: str, size: int) -> Topology:
    text = "\n".join(f"{node} {node // 3}" for node in range(1, size))
    return build_topology(name, size, degree=4, probability=0.3, text=text)


def nodes_of(figure: Figure) -> PathCollection:
    """The nodes, without those that only the legend shows."""
    found = [c for c in figure.axes[0].collections if isinstance(c, PathCollection)]
    return found[0]


def lines_of(figure: Figure) -> list[LineCollection]:
    return [c for c in figure.axes[0].collections if isinstance(c, LineCollection)]


def labels_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def draw(topology: Topology, **options: Any) -> Figure:
    return topology_figure(topology.name, topology.size, topology.edges, "A title", **options)


@pytest.mark.parametrize("size", [4, 16, 64])
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_nodes_have_places_of_their_own(name: str, size: int) -> None:
    degree = 2 if size == 4 else 4
    text = "\n".join(f"{node} {node // 3}" for node in range(1, size))
    edges = build_topology(name, size, degree=degree, probability=0.5, text=text).edges
    places = positions(name, size, edges)
    assert places.shape == (size, 2)
    assert np.isfinite(places).all()
    distances = np.hypot(*(places[:, None] - places).transpose(2, 0, 1))
    np.fill_diagonal(distances, np.inf)
    assert distances.min() > 0.005 * np.ptp(places, axis=0).max()
    assert np.array_equal(places, positions(name, size, edges))


@pytest.mark.parametrize(("name", "size"), [("ring", 8), ("star", 150), ("file", 30)])
def test_a_picture_is_drawn_with_and_without_values(name: str, size: int) -> None:
    topology = built(name, size)
    values = [None, *np.linspace(0.5, 0.7, size - 1).tolist()]
    ages = {edge: float(k) for k, edge in enumerate(topology.edges) if k}
    for figure in (draw(topology), draw(topology, values=values, ages=ages)):
        assert min(pixels(figure)) >= 450
        assert len(np.asarray(nodes_of(figure).get_offsets())) == size
        assert sum(len(c.get_segments()) for c in lines_of(figure)) == len(topology.edges)


def test_every_family_of_the_layouts_exists() -> None:
    assert set(LAYOUTS) <= set(TOPOLOGIES)


def test_many_nodes_without_a_natural_layout_are_drawn_too() -> None:
    topology = build_topology("random-regular", 600)
    assert np.allclose(np.hypot(*positions("random-regular", 600, topology.edges).T), 1)


def test_values_are_the_colours_of_the_nodes() -> None:
    values = [0.5, 0.9, 0.7, None, 0.7, 0.7, 0.7, 0.7]
    figure = draw(RING, values=values)
    colours = [to_hex(face) for face in np.asarray(nodes_of(figure).get_facecolor())]
    assert colours[:2] == [to_hex(colormaps["cividis"](share)) for share in (0.0, 1.0)]
    assert colours[3] == "#ffffff"
    assert "accuracy (%)" in {axes.get_ylabel() for axes in figure.axes}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["off"]


def test_values_that_hardly_differ_look_alike() -> None:
    figure = draw(RING, values=[0.7] * 7 + [0.701])
    reds = np.asarray(nodes_of(figure).get_facecolor())[:, 0]
    assert 0 < np.ptp(reds) < 0.1


@pytest.mark.parametrize("value", [0.0, 0.5, None])
def test_all_values_may_be_the_same(value: float | None) -> None:
    to_png(draw(RING, values=[value] * 8))


def test_older_edges_are_thinner_and_lighter() -> None:
    ages = {edge: float(k) for k, edge in enumerate(RING.edges) if k != 3}
    never, known = lines_of(draw(RING, ages=ages))
    assert to_hex(np.asarray(never.get_edgecolor())[0]) == VERMILION.lower()
    assert len(never.get_segments()) == 1
    assert np.all(np.diff(np.asarray(known.get_linewidth())) < 0)
    assert np.all(np.diff(np.asarray(known.get_edgecolor())[:, 0]) >= 0)


@pytest.mark.parametrize("ages", [{}, dict.fromkeys(RING.edges, 0.0)])
def test_ages_may_be_unknown_or_zero(ages: dict) -> None:
    to_png(draw(RING, ages=ages))


def test_labels_are_names_or_numbers() -> None:
    assert labels_of(draw(RING)) == [str(node) for node in range(8)]
    names = [f"site {node}" for node in range(8)]
    assert labels_of(draw(RING, names=names)) == names
    # Of 400 nodes no readable one would have room.
    assert labels_of(draw(build_topology("ring", 400))) == []


@pytest.mark.parametrize(("name", "size"), [("torus", 16), ("torus", 12), ("watts-strogatz", 40)])
def test_no_edge_runs_through_a_third_node(name: str, size: int) -> None:
    figure = draw(built(name, size))
    places = np.asarray(nodes_of(figure).get_offsets())
    (lines,) = lines_of(figure)
    assert len(lines.get_segments()) == len(built(name, size).edges)
    spacing = np.hypot(*(places[1] - places[0]))
    for segment in lines.get_segments():
        line = np.asarray(segment)
        points = np.concatenate([np.linspace(a, b, 50) for a, b in pairwise(line)])
        for place in places:
            if not any(np.allclose(place, end) for end in (line[0], line[-1])):
                assert np.hypot(*(points - place).T).min() > 0.05 * spacing
