"""The record of a consensus run: what console, summary, report, dashboards make of its events."""

import re
from pathlib import Path
from typing import Any

import pytest

from fl_app.config import REFERENCES, resolve
from fl_app.record import consensus_figures
from fl_app.record.books import recorded
from fl_app.record.compare import compare
from fl_app.record.consensus_metrics import measure, node_series, references, spread, window_table
from fl_app.record.consensus_view import CONSENSUS
from fl_app.record.console import console_listener
from fl_app.record.metrics import effective, metric_of
from fl_app.record.modes import VIEWS
from fl_app.record.report import render
from fl_app.record.run_dir import RunDirectory
from fl_app.record.sinks import scalars
from tests import record_events
from tests.consensus_events import config, consensus_events
from tests.frozen import frozen
from tests.record_events import distill_events, fill


def timed(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**event, "t_wall": 0.5 * number} for number, event in enumerate(events)]


def nodes(number: int, *accuracy: float | None, **fields: Any) -> dict[str, Any]:
    return {"event": "nodes", "round": number, "t": 10.0 * number, "accuracy": list(accuracy),
            "loss": [0.5] * len(accuracy), "heard": [], "reference": {}, **fields}  # fmt: skip


def average(number: int, accuracy: float) -> dict[str, Any]:
    return {"event": "evaluate", "round": number, "t": 10.0 * number, "model": "average",
            "accuracy": accuracy, "loss": 0.4}  # fmt: skip


def window(number: int, **fields: Any) -> dict[str, Any]:
    return {"event": "round", "round": number, "t": 10.0 * number, "steps": 80 * number,
            "messages": 20 * number, "bytes": 1_500_000 * number, "lost": number, "duplicates": 2,
            "stale": 3.0, "age": 0.03, "distance": 0.1, **fields}  # fmt: skip


def lines(events: list[dict[str, Any]], clock: str = "virtual", rounds: int = 9) -> list[str]:
    written: list[str] = []
    listen = console_listener(VIEWS["consensus"], clock=clock, rounds=rounds, write=written.append)
    for moment, event in enumerate(events):
        listen({"t_wall": float(moment), **event})
    return written


# -- numbers -------------------------------------------------------------------------------


def test_the_spread_is_over_the_nodes_that_are_on() -> None:
    assert spread([0.2, None, 0.6]) == {"mean": 0.4, "min": 0.2, "max": 0.6}
    assert spread([None, None]) == {"mean": None, "min": None, "max": None}


def test_series_of_the_nodes_leave_out_windows_in_which_all_were_off() -> None:
    events = [nodes(2, 0.4, 0.6), nodes(1, 0.1, None), nodes(3, None, None)]
    assert node_series(events) == [(10.0, 0.1), (20.0, 0.5)]
    assert node_series(events, "min") == [(10.0, 0.1), (20.0, 0.4)]
    assert node_series(events, "max") == [(10.0, 0.1), (20.0, 0.6)]


def test_references_are_series_by_name() -> None:
    events = [
        nodes(2, 0.1, reference={"same-steps": 0.5}),
        nodes(1, 0.1, reference={"same-steps": 0.4, "same-samples": None}),
        nodes(3, 0.1, reference=None),
    ]
    assert references(events) == {"same-steps": [(10.0, 0.4), (20.0, 0.5)]}


def test_the_window_table_joins_windows_nodes_and_the_average() -> None:
    first, second = window_table([nodes(1, 0.2, 0.6), window(1), average(1, 0.7), nodes(2, None)])
    assert (first["mean"], first["min"], first["max"], first["average"]) == (0.4, 0.2, 0.6, 0.7)
    assert (first["steps"], first["lost"], first["distance"], first["t"]) == (80, 1, 0.1, 10.0)
    assert (second["t"], second["mean"], second["messages"]) == (20.0, None, None)


def test_measures_of_a_hand_made_run() -> None:
    """Mean of the nodes: 0.3, 0.5, 0.6; over three windows 0.467, so 0.45 is reached at 30 s.

    Staleness (2 + 4) / 2 = 3 over the windows in which mail was applied; counters are totals.
    """
    events = timed(
        [
            {"event": "hosts", "hosts": 1, "carrier": "", "engine": "stacked"},
            {
                "event": "hosts",
                "hosts": 4,
                "carrier": "sockets",
                "engine": "stacked",
            },  # resumed on other hosts
            *(nodes(1, 0.2, 0.4), average(1, 0.5), window(1, stale=2.0, age=0.02)),
            *(nodes(2, 0.5, None), average(2, 0.6), window(2, stale=None, age=None)),
            nodes(3, 0.5, 0.7, reference={"same-steps": 0.65}),
            *(average(3, 0.7), window(3, stale=4.0, age=0.04, distance=0.01)),
            {"event": "rejected", "participant": 1, "round": 3, "reason": "NaN"},
        ]
    )
    assert measure(events, (0.45, 0.6)) == {
        "hosts": 4,
        "carrier": "sockets",
        "engine": "stacked",
        "engine_gain": None,
        "rounds": 3,
        "end_seconds": 30.0,
        "wall_seconds": 5.5,
        "final": {
            "node_mean": pytest.approx(0.6), "node_min": 0.5, "node_max": 0.7, "node_honest": None,
            "average": 0.7,
            "reference": {"same-steps": 0.65},
        },
        "unsettled": None,
        "settling": None,
        "distance": 0.01,
        "time_to_target": {"0.45": 20.0, "0.60": 30.0},
        "messages": 60,
        "bytes": 4_500_000,
        "lost": 3,
        "duplicates": 2,
        "stale": 3.0,
        "age": pytest.approx(0.03),
        "rejected": 1,
    }  # fmt: skip


def test_a_run_that_recorded_nothing_has_measures_without_values() -> None:
    measured = measure([])
    assert measured["final"] == {
        "node_mean": None, "node_min": None, "node_max": None, "node_honest": None,
        "average": None, "reference": {},
    }  # fmt: skip
    assert (measured["rounds"], measured["stale"], measured["hosts"]) == (0, None, None)


def test_resuming_repeats_nothing() -> None:
    """A kill after window 4's checkpoint: the windows, incidents and descriptions come again."""
    once = consensus_events(6)
    beyond = next(i for i, e in enumerate(once) if e.get("round") == 5)
    events = [*once, {"event": "resumed", "round": 4}, *once[:3], *once[beyond:]]
    counted = [event for event in effective(events) if event["event"] != "resumed"]
    assert sorted(counted, key=repr) == sorted(once, key=repr)


def settling_events() -> list[dict[str, Any]]:
    """Three windows, the last of which is of nodes that settle."""
    last = {"settled": True, "messages": 100, "bytes": 5_000_000, "distance": 1e-6}
    return [
        *(nodes(1, 0.2, 0.4), average(1, 0.5), window(1, bytes=1_000_000)),
        *(nodes(2, 0.5, 0.7), average(2, 0.8)),
        window(2, bytes=4_500_000, messages=60, distance=0.02),
        *(nodes(3, 0.8, 0.8, settled=True), average(3, 0.8), window(3, **last)),
    ]


def test_of_nodes_that_settle_the_end_is_what_they_have_then() -> None:
    """What they had before stands beside it, and what it took."""
    found = measure(timed(settling_events()))
    assert found["final"]["node_mean"] == found["final"]["node_min"] == 0.8
    assert found["unsettled"] == {
        "node_mean": pytest.approx(0.6), "node_min": 0.5, "node_max": 0.7, "distance": 0.02,
    }  # fmt: skip
    assert found["settling"] == {"messages": 40, "bytes": 500_000, "seconds": 10.0}
    assert (found["rounds"], found["distance"]) == (2, 1e-6)
    written = lines(settling_events(), rounds=2)
    assert [line.split()[0] for line in written[2:]] == ["1/2", "2/2", "settled"]


def test_the_figure_says_where_nodes_settle() -> None:
    for draw in (consensus_figures.accuracy, consensus_figures.distance):
        figure = draw(settling_events(), "virtual", ())
        assert figure is not None
        [axes] = figure.axes
        assert "from here on the nodes settle" in axes.get_legend_handles_labels()[1]


# -- console -------------------------------------------------------------------------------


def test_one_aligned_line_a_window_under_a_header_that_tells_the_diagnosis() -> None:
    written = [line for line in lines(consensus_events(20), rounds=20) if line[0] != "!"]
    legend, header, *windows = written
    assert "no node has it before they settle" in legend
    assert "(average %)" in header
    assert header.split()[0] == "window"
    assert [line.split()[0] for line in windows] == [f"{n}/20" for n in range(1, 21)]
    assert {len(line) for line in windows} == {len(header)}
    assert len(header) < 130


def test_without_a_diagnosis_there_are_no_columns_for_it() -> None:
    """On devices nobody sees all models."""
    undiagnosed = {**window(1), "distance": None}
    events = [nodes(1, 0.5, 0.625, None), undiagnosed, window(2), window(3)]
    meanings, header, line = lines(events, clock="real")
    assert "average" not in meanings + header
    assert "distance" not in header
    assert len(line) == len(header)
    assert line.split()[2:6] == ["56.2", "50.0", "62.5", "20"]


def test_what_a_line_says() -> None:
    *_, line = lines([nodes(3, 0.5, 0.625, None), average(3, 0.7), window(3)])
    assert line.split() == [
        "3/9", "30.0", "56.2", "50.0", "62.5", "70.0", "1.0e-01", "60", "4.5", "3", "3.0", "-",
    ]  # fmt: skip


def test_on_the_real_clock_mail_has_an_age_in_seconds() -> None:
    *_, line = lines([nodes(1, 0.5), average(1, 0.7), window(1, stale=None, age=0.26)], "real")
    assert "  0.3 s  " in line


def test_a_line_waits_for_all_that_belongs_to_its_window_in_any_order() -> None:
    events = [nodes(1, 0.5), window(1), average(1, 0.7)]
    for last in range(3):
        *early, late = events[last + 1 :] + events[: last + 1]
        assert lines(early) == []
        assert lines([*early, late]) == lines(events)
    assert len(lines(events)) == 3


def test_a_window_in_which_all_nodes_were_off_has_a_line() -> None:
    *_, line = lines([nodes(1, None, None), average(1, 0.1), window(1)])
    assert line.split()[:6] == ["1/9", "10.0", "-", "-", "-", "10.0"]


def test_the_end_sets_the_nodes_beside_the_references() -> None:
    reference = {"same-steps": 0.7, "same-samples": 0.75}
    events = [nodes(3, 0.5, 0.7, reference=reference), average(3, 0.66), window(3)]
    written = lines([*events, {"event": "finished", "status": "completed"}])
    assert [re.split(r"\s{2,}", line.strip()) for line in written[3:]] == [
        ["final accuracy"],
        ["mean of the nodes", "60.0 %"],
        ["worst node", "50.0 %"],
        ["best node", "70.0 %"],
        ["averaged model (a diagnosis)", "66.0 %"],
        ["centralized, as many steps as a node", "70.0 %; nodes' mean -10.0 points"],
        ["centralized, as many samples as all nodes", "75.0 %; nodes' mean -15.0 points"],
        ["consensus distance", "1.0e-01"],
    ]


def test_a_run_that_failed_at_once_has_no_results_at_its_end() -> None:
    assert lines([{"event": "finished", "status": "failed"}]) == []


@pytest.mark.parametrize(
    ("kind", "peer", "says"),
    [
        ("down", None, "! node 3 went off"),
        ("up", None, "! node 3 is on again"),
        ("silent", 4, "! node 3 hears nothing from node 4 any more"),
        ("returned", 4, "! node 3 hears from node 4 again"),
        ("cut", 4, "! the link between the nodes 3 and 4 is cut"),
        ("healed", 4, "! the link between the nodes 3 and 4 is there again"),
    ],
)
def test_incidents_are_named_but_not_repeated_without_end(
    kind: str, peer: int | None, says: str
) -> None:
    incident = {"event": "incident", "round": 1, "node": 3, "kind": kind, "peer": peer}
    written = lines([{**incident, "t": 1.5 * number} for number in range(20)])
    assert written[1].startswith(says)
    assert written[1].endswith("(at 1.5 s)")
    assert len(written) == 3


# -- books ---------------------------------------------------------------------------------


def settings(tmp_path: Path, **changes: Any) -> Any:
    return resolve({"mode": "consensus", "output": str(tmp_path), **changes})


def test_the_summary_says_what_was_run_and_what_came_out(tmp_path: Path) -> None:
    chosen = settings(tmp_path, **{"consensus.algorithm": "pdmm-sgd"})
    with recorded(chosen) as run:
        for event in consensus_events(3):
            run.emit(**event)
        run.save_checkpoint("nodes", {}, {"checksum": "abc"})
    summary = run.summary()
    assert list(summary) == [
        "status", "reason", "mode", "algorithm", "published", "topology", "clock", "task",
        "metric", "dataset", "data", "partition", "evaluate_on", "participants", "seed", "code",
        "hosts", "carrier", "engine", "engine_gain", "rounds", "wall_seconds", "final",
        "unsettled", "settling", "distance", "time_to_target", "messages", "bytes", "lost",
        "duplicates", "stale", "age", "rejected", "virtual_seconds", "checksum", "run_directory",
    ]  # fmt: skip
    assert (summary["status"], summary["algorithm"], summary["topology"]) == (
        "completed", chosen.consensus.algorithm, chosen.consensus.topology,
    )  # fmt: skip
    assert "Niwa" in summary["published"]
    assert (summary["checksum"], summary["hosts"], summary["carrier"]) == ("abc", 2, "grid")
    assert summary["virtual_seconds"] == 1.5
    assert (run.path / "report.html").exists()


def test_a_failure_is_recorded_with_its_reason_and_raised(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), recorded(settings(tmp_path, name="one")):
        _ = 1 / 0
    summary = RunDirectory.open(tmp_path / "one").summary()
    assert summary["status"] == "failed"
    assert summary["reason"].startswith("ZeroDivisionError: ")
    assert summary["checksum"] is None


def test_a_run_may_be_resumed_with_another_carrier_of_mail(tmp_path: Path) -> None:
    first = settings(tmp_path, **{"consensus.carrier": "ray"})
    with pytest.raises(ZeroDivisionError), recorded(first) as run:
        _ = 1 / 0
    again = settings(tmp_path, resume=str(run.path), **{"consensus.carrier": "grid"})
    with recorded(again) as resumed:
        assert resumed.path == run.path


# -- report, comparison, dashboards ----------------------------------------------------------


def make(root: Path, events: list[dict[str, Any]], name: str, **changes: Any) -> RunDirectory:
    run = RunDirectory.create(root, {**config(), **changes}, name=name)
    fill(run, events, "completed" if events else "failed")
    return run


def test_a_report_has_every_window_figure_node_and_incident(tmp_path: Path) -> None:
    run = make(tmp_path, consensus_events(), "run")
    page = frozen(render(run))
    assert len(list((run.path / "figures").iterdir())) == len(consensus_figures.FIGURES) == 5
    tables = {table["title"]: table["rows"] for table in page["tables"]}
    assert [row[0] for row in tables["Windows"]] == [str(n) for n in range(1, 21)]
    assert tables["Nodes"][7][:2] == ["7", "500"]
    assert "node 2 went off (at 2.8 s)" in [each["text"] for each in page["incidents"]]
    assert "averaged model (a diagnosis)" in [line["label"] for line in page["charts"][0]["lines"]]


def test_a_report_calls_nodes_by_their_names_and_escapes_them(tmp_path: Path) -> None:
    names = ["Oslo", "<b>", *(str(i) for i in range(2, 8))]
    events = consensus_events(2)
    events = [{**e, "names": names} if e["event"] == "topology" else e for e in events]
    page = frozen(render(make(tmp_path, events, "run")))
    nodes = next(table["rows"] for table in page["tables"] if table["title"] == "Nodes")
    assert [row[0] for row in nodes[:3]] == ["0: Oslo", "1: <b>", "2"]
    assert page["topology"]["names"][:2] == ["Oslo", "<b>"]


def test_the_report_of_a_run_that_failed_at_once_says_so(tmp_path: Path) -> None:
    page = frozen(render(make(tmp_path, [], "run")))
    assert page["absent"][0] == "accuracy (no node was evaluated)"
    assert "Nodes" not in [table["title"] for table in page["tables"]]


def test_both_systems_are_compared_in_one_table(tmp_path: Path) -> None:
    runs = [
        make(tmp_path, consensus_events(), "ring"),
        RunDirectory.create(tmp_path, record_events.config(), name="server"),
    ]
    fill(runs[1], distill_events())
    table = compare(runs, tmp_path / "out")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[:4]]
    head, _, ring, server = (dict(zip(rows[0], row, strict=True)) for row in rows)
    assert len(head) == len(rows[0])
    assert (ring["variant"], server["variant"]) == ("ecl, ring", "async-plus")
    assert (ring["global %"], server["node mean %"]) == ("-", "-")
    mean = 100 * node_series(runs[0].events())[-1][1]
    assert ring["node mean %"] == f"{mean:.1f}"
    assert float(ring["worst node %"]) < mean < float(ring["centralized %"])
    assert "accuracies are not comparable, dataset differs" in table


def test_a_dashboard_gets_the_spread_of_the_nodes_and_the_references() -> None:
    event = nodes(1, 0.25, None, 0.75, reference={"same-steps": 0.8})
    assert scalars(event) == {
        "accuracy/node_mean": 0.5, "accuracy/node_min": 0.25, "accuracy/node_max": 0.75,
        "accuracy/centralized_same-steps": 0.8,
    }  # fmt: skip
    assert scalars(average(1, 0.5)) == {"accuracy/average": 0.5, "loss/average": 0.4}
    assert scalars(window(2))["round/distance"] == 0.1


def test_every_reference_of_the_configuration_has_a_name_and_a_style() -> None:
    assert set(consensus_figures.REFERENCES) == set(REFERENCES)


def test_the_worst_node_is_that_by_the_metric() -> None:
    """Of perplexity, more is worse."""
    told = {"name": "perplexity", "unit": "", "direction": "lower"}
    events = [
        {"event": "run_started", "t_wall": 0.0, "metric": told},
        {"event": "nodes", "t_wall": 1.0, "t": 1.0, "round": 1, "accuracy": [7.0, 9.0, 8.0]},
    ]
    metric, page = metric_of(events), CONSENSUS.page
    measured = CONSENSUS.measure(events, ())
    assert "the worst 9.000, the best 7.000" in page.sentence(measured, metric)
    assert ("final perplexity, worst node", "9.000") in page.results(measured, metric)
    assert ("of the worst and the best node", "9.000 to 7.000") in page.tiles(measured, metric)
    assert CONSENSUS.comparison.scores["worst node %"](measured, metric) == 9.0
    assert CONSENSUS.comparison.companion(events) == [(1.0, 9.0)]
    (chart,) = page.charts(events)
    assert {line.label: list(line.points) for line in chart.lines}["worst node"] == [(1.0, 9.0)]
    ending = CONSENSUS.lines.ending({"mean": 8.0, "min": 7.0, "max": 9.0}, metric)
    assert [line.split() for line in ending[2:4]] == [
        ["worst", "node", "9.000"], ["best", "node", "7.000"],
    ]  # fmt: skip
