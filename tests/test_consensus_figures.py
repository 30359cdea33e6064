"""Figures of a consensus run: drawn for few and many nodes, and true to the events."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from fl_app.record.consensus_figures import DIAGNOSIS, FIGURES, REFERENCES
from fl_app.record.consensus_metrics import node_series, references
from tests.consensus_events import consensus_events
from tests.drawn import curves, is_scattered, marks, pixels

TARGETS = (0.5, 0.75)
SHAPES = [(20, 8), (60, 100), (5, 200), (1, 2)]


def drawn(name: str, events: list[dict[str, Any]], clock: str = "virtual") -> Any:
    figure = FIGURES[name].draw(events, clock, TARGETS)
    assert figure is not None
    return figure


def legend(figure: Any) -> set[str]:
    return {text.get_text() for text in figure.legends[0].get_texts()}


few_and_many = pytest.mark.parametrize(("windows", "nodes"), SHAPES)


@pytest.mark.parametrize("name", FIGURES)
@few_and_many
def test_a_picture_has_a_size_that_can_be_looked_at(name: str, windows: int, nodes: int) -> None:
    assert 300 <= pixels(drawn(name, consensus_events(windows, nodes)))[1] <= 3000


@few_and_many
def test_curves_are_what_was_measured(windows: int, nodes: int) -> None:
    events = consensus_events(windows, nodes)
    shown = curves(drawn("accuracy", events).axes[0])
    np.testing.assert_allclose(
        shown["mean of the nodes"], [(t, 100 * a) for t, a in node_series(events)]
    )
    average = [(e["t"], 100 * e["accuracy"]) for e in events if e.get("model") == "average"]
    np.testing.assert_allclose(shown[DIAGNOSIS], average)
    for name, points in references(events).items():
        wanted = [(t, 100 * a) for t, a in points]
        np.testing.assert_allclose(shown[REFERENCES[name][0]], wanted)
    wanted = [(e["t"], e["distance"]) for e in events if e["event"] == "round"]
    distance = drawn("distance", events).axes[0].lines[-1]  # the others are moments of outages
    np.testing.assert_allclose(distance.get_xydata(), wanted)


@few_and_many
def test_every_node_edge_step_mail_and_image_is_drawn(windows: int, nodes: int) -> None:
    events = consensus_events(windows, nodes)
    told = {e["event"]: e for e in events}
    graph = drawn("topology", events).axes[0].collections
    places, *_ = [c for c in graph if is_scattered(c)]
    assert len(places.get_offsets()) == nodes
    edges = sum(len(c.get_segments()) for c in graph if hasattr(c, "get_segments"))
    assert edges == len(told["topology"]["edges"])
    happened = Counter(kind for _, kind, *_ in told["trace"]["events"])
    names = {"step": "local step", "receive": "mail, applied", "lost": "lost"}
    names |= {"drop": "arrived, not applied", "duplicate": "arrived twice, dropped"}
    shown = marks(drawn("spacetime", events).axes[0])
    assert shown == {label: happened[kind] for kind, label in names.items() if happened[kind]}
    split = drawn("labels", events).axes[0].containers
    widths = [[bar.get_width() for bar in of_class] for of_class in split]
    assert np.array_equal(np.array(widths).T, told["labels"]["histogram"])


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_recorded_is_nothing_drawn(name: str) -> None:
    assert FIGURES[name].draw([], "virtual", TARGETS) is None


def test_every_node_has_a_line_and_the_legend_does_not_grow_with_them() -> None:
    few, many = (drawn("accuracy", consensus_events(4, nodes)) for nodes in (8, 200))
    (lines,) = many.axes[0].collections[1:]
    assert len(lines.get_segments()) == 200
    assert legend(few) == legend(many) == {
        "worst to best node", "each node", "mean of the nodes",
        "averaged model (a diagnosis)", "centralized, as many steps as a node",
        "centralized, as many samples as all nodes",
    }  # fmt: skip


def test_a_node_that_was_off_has_a_gap() -> None:
    figure = drawn("accuracy", consensus_events(10))
    of_node = figure.axes[0].collections[1].get_paths()[2].vertices
    assert np.isnan(of_node[:, 1]).nonzero()[0].tolist() == [5, 6, 7]


def test_without_references_none_is_drawn() -> None:
    assert not any(
        "central" in t for t in legend(drawn("accuracy", consensus_events(3, references=())))
    )


def test_the_distance_is_on_a_log_axis_and_nodes_in_perfect_agreement_have_none() -> None:
    events = consensus_events(20)
    figure = drawn("distance", events)
    assert figure.axes[0].get_yscale() == "log"
    assert legend(figure) == {"a node or a link went", "a node or a link came back"}
    agreed = [{**e, "distance": 0.0} if e["event"] == "round" else e for e in events]
    assert FIGURES["distance"].draw(agreed, "virtual", TARGETS) is None


def test_a_multitude_of_outages_is_not_drawn() -> None:
    events = consensus_events(20, churn=False)
    events += [
        {"event": "incident", "t": 0.01 * i, "round": 1, "node": i, "kind": "down", "peer": None}
        for i in range(61)
    ]
    assert drawn("distance", events).legends == []


def test_the_last_exchange_of_an_edge_is_the_newer_of_its_directions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the report's page has it."""
    told: dict[str, Any] = {}
    monkeypatch.setattr(
        "fl_app.record.consensus_figures.topology_figure",
        lambda *args, **kwargs: told.update(kwargs, family=args[0]),
    )
    events = consensus_events(2, 3)
    events.insert(0, {"event": "run_started", "config": {"consensus.topology": "ring"}})
    heard = [[0, 1, 0.5], [1, 0, 2.0], [2, 1, 0.25]]
    events = [{**e, "heard": heard} if e["event"] == "nodes" else e for e in events]
    FIGURES["topology"].draw(events, "virtual", TARGETS)
    assert told["ages"] == {(0, 1): 0.5, (1, 2): 0.25}
    assert told["family"] == "ring"
    assert len(told["values"]) == 3


# -- the space-time diagram --------------------------------------------------------------------


def spacetime(*entries: tuple[float, str, int, int | None, float | None]) -> Any:
    described = {"event": "topology", "names": ["0", "1", "2"], "edges": [[0, 1], [1, 2]]}
    return drawn("spacetime", [described, {"event": "trace", "events": list(entries)}])


def paths(figure: Any) -> list[list[list[float]]]:
    """The lines of mail: those with two ends in different lanes."""
    found = [
        segment.tolist()
        for collection in figure.axes[0].collections
        if hasattr(collection, "get_segments")
        for segment in collection.get_segments()
    ]
    return [segment for segment in found if segment[0][1] != segment[1][1]]


def test_mail_leads_from_where_it_was_sent_to_where_it_was_applied() -> None:
    figure = spacetime((1.0, "send", 0, 2, None), (3.0, "receive", 2, 0, 1.0))
    assert paths(figure) == [[[1.0, 0.0], [3.0, 2.0]]]
    assert legend(figure) == {"mail, applied"}


def test_lost_mail_ends_under_way_and_the_rest_is_told_apart() -> None:
    figure = spacetime(
        (1.0, "receive", 1, 0, 0.5), (2.0, "lost", 0, 1, None), (3.0, "drop", 1, 0, 2.5),
        (4.0, "duplicate", 1, 0, 2.5), (4.0, "step", 2, None, None),
    )  # fmt: skip
    assert [[2.0, 0.0], [2.2, 0.4]] in paths(figure)  # 0.4 of the way of a flight of 0.5 s
    assert legend(figure) == {
        "local step", "mail, applied", "arrived twice, dropped", "arrived, not applied", "lost",
    }  # fmt: skip


def test_a_node_is_grey_while_it_is_off_also_beyond_the_slice() -> None:
    figure = spacetime(
        (0.0, "step", 0, None, None), (1.0, "up", 2, None, None), (2.0, "down", 1, None, None),
        (3.0, "up", 1, None, None), (4.0, "down", 2, None, None), (6.0, "step", 0, None, None),
    )  # fmt: skip
    bars = [
        (round(path.get_extents().y0 + 0.32), path.get_extents().x0, path.get_extents().x1)
        for collection in figure.axes[0].collections
        if collection.get_label() == "off"
        for path in collection.get_paths()
    ]
    assert sorted(bars) == [(1, 2.0, 3.0), (2, 0.0, 1.0), (2, 4.0, 6.0)]


def test_the_slice_ends_with_its_last_step_or_mail_and_may_have_none() -> None:
    figure = spacetime(
        (0.0, "step", 0, None, None), (2.0, "step", 0, None, None), (9.0, "down", 1, None, None),
        (9.0, "silent", 0, 1, None),
    )  # fmt: skip
    assert figure.axes[0].get_xlim() == (-0.02, 2.02)
    assert legend(figure) == {"local step"}
    described = {"event": "topology", "names": ["0"], "edges": []}
    trace = {"event": "trace", "events": [[1.0, "down", 0, None, None]]}
    assert FIGURES["spacetime"].draw([described, trace], "virtual", TARGETS) is None


def test_the_centralized_references_have_no_lane() -> None:
    figure = spacetime((0.0, "step", 0, None, None), (1.0, "step", 3, None, None))
    assert figure.axes[0].get_ylim() == (2.6, -0.6)


def test_lanes_have_names_while_these_can_be_read() -> None:
    def ticks(nodes: int) -> int:
        return len(drawn("spacetime", consensus_events(1, nodes)).axes[0].get_yticks())

    assert ticks(40) == 40
    assert ticks(200) < 20
