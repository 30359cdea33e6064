"""The contract of a view, for every mode: whoever adds a mode adds its events here."""

from pathlib import Path
from typing import Any

import pytest

from fl_app.config import MODES, resolve
from fl_app.record.books import close_books
from fl_app.record.compare import compare
from fl_app.record.console import console_listener
from fl_app.record.metrics import Metric
from fl_app.record.modes import VIEWS, view_of
from fl_app.record.report import render
from fl_app.record.run_dir import RunDirectory
from strategies.errors import RunDirectoryError
from tests import consensus_events, record_events
from tests.frozen import frozen

ROUNDS = 12


def average_events(rounds: int) -> list[dict[str, Any]]:
    """Of a run without a distillation server."""
    events = record_events.distill_events(rounds)
    return [e for e in events if e["event"] != "segment" and e.get("model") != "global"]


EXAMPLES = {
    "average": (average_events, {**record_events.config(), "mode": "average"}),
    "consensus": (consensus_events.consensus_events, consensus_events.config()),
    "distill": (record_events.distill_events, record_events.config()),
}
each_mode = pytest.mark.parametrize("mode", VIEWS)


def example(mode: str, rounds: int = ROUNDS) -> list[dict[str, Any]]:
    events = [{"t_wall": 0.0, **event} for event in EXAMPLES[mode][0](rounds)]
    return [*events, {"event": "finished", "t_wall": 9.0, "status": "completed"}]


def test_every_mode_has_a_view() -> None:
    assert set(VIEWS) == set(MODES)


def test_a_configuration_without_a_mode_of_ours_is_refused() -> None:
    for config in ({}, {"mode": "telepathy"}):
        with pytest.raises(RunDirectoryError, match=r"mode=.*knows: average, consensus, distill"):
            view_of(config)


@each_mode
def test_there_is_one_row_a_round_and_no_accuracy_is_lost(mode: str) -> None:
    view, events = VIEWS[mode], example(mode)
    assert [row["round"] for row in view.rows(events)] == list(range(1, ROUNDS + 1))
    assert len(view.accuracy(events)) == ROUNDS


@each_mode
def test_the_headline_is_the_last_accuracy_that_stands_for_the_run(mode: str) -> None:
    view, events = VIEWS[mode], example(mode)
    measured = view.measure(events, (0.5, 0.99))
    assert measured["final"][view.headline] == view.accuracy(events)[-1][1]
    assert measured["rounds"] == ROUNDS
    assert measured["wall_seconds"] == 9.0
    assert measured["end_seconds"] == max(event.get("t", 0.0) for event in events)
    assert list(measured["time_to_target"]) == ["0.50", "0.99"]


@each_mode
@pytest.mark.parametrize("rounds", [1, 2, ROUNDS])
def test_a_target_is_reached_where_the_curve_is_drawn_above_it(mode: str, rounds: int) -> None:
    """Whatever the number of evaluations: in the figure, the summary and the report."""
    view, events = VIEWS[mode], example(mode, rounds)
    curve = view.accuracy(events)
    targets = tuple(accuracy for _, accuracy in curve)
    times = [next(t for t, a in curve if a >= target) for target in targets]
    figure = view.page.figures["accuracy"].draw(events, "virtual", targets)
    assert figure is not None
    (right,) = figure.axes[0].child_axes
    shown = {text.get_text() for text in right.get_yticklabels()}
    wanted = {f"{100 * a:g} %: {t:.0f} s" for a, t in zip(targets, times, strict=True)}
    assert shown
    assert shown <= wanted  # those that would cover each other are left out
    assert list(view.measure(events, targets)["time_to_target"].values()) == times


@each_mode
def test_a_summary_and_a_report_have_the_targets_of_the_configuration(
    mode: str, tmp_path: Path
) -> None:
    for targets, rows in (("", 0), ("0.05", 1), ("0.05,0.995", 2)):
        config = resolve({"mode": mode, "targets": targets, "output": str(tmp_path)})
        run = RunDirectory.create(tmp_path, config.flat())
        for event in example(mode):
            if event["event"] in ("evaluate", "nodes", "round"):
                run.emit(**event)
        summary = close_books(run, config, "completed", "")
        shown = frozen(run.path / "report.html")["targets"]
        assert len(summary["time_to_target"]) == len(shown) == rows
        assert sum(target["reached"] is None for target in shown) == max(0, rows - 1)


@each_mode
def test_nothing_recorded_has_measures_rows_and_results_all_the_same(mode: str) -> None:
    view = VIEWS[mode]
    measured = view.measure([], (0.5,))
    assert (measured["rounds"], measured["final"][view.headline]) == (0, None)
    assert (view.rows([]), view.accuracy([]), view.page.tables([])) == ([], [], [])
    pairs = view.page.tiles(measured, Metric()) + view.page.results(measured, Metric())
    assert all(isinstance(label, str) for label, _ in pairs)
    assert view.lines.ending({}, Metric()) == []


@each_mode
def test_the_console_has_an_aligned_line_a_round_as_soon_as_it_can(mode: str) -> None:
    written: list[str] = []
    listen = console_listener(VIEWS[mode], clock="virtual", rounds=ROUNDS, write=written.append)
    *events, finished = example(mode)
    for event in events:
        listen(event)
    lines = [line.split("  (")[0] for line in written if f"/{ROUNDS} " in line]
    assert [line.split()[0] for line in lines] == [f"{n}/{ROUNDS}" for n in range(1, ROUNDS + 1)]
    (header,) = [line for line in written if line.endswith("ETA")]
    assert {len(line) for line in lines} == {len(header)}
    listen(finished)
    assert sum(f"/{ROUNDS} " in line for line in written) == ROUNDS
    assert "final accuracy" in written


LOWER = {"name": "perplexity", "unit": "", "direction": "lower"}


@each_mode
def test_values_that_are_no_percentages_stand_apart_and_say_which_are_better(mode: str) -> None:
    """Perplexities and errors have more digits; rounds and times may have, too."""
    written: list[str] = []
    listen = console_listener(VIEWS[mode], clock="virtual", rounds=100_000, write=written.append)
    listen({"event": "run_started", "t_wall": 0.0, "metric": LOWER})
    fields = ("accuracy", "accuracy_ema")
    for event in example(mode):
        large = {name: [12_345.678] * 8 if isinstance(event[name], list) else 12_345.678
                 for name in fields if event.get(name) is not None}  # fmt: skip
        listen({**event, **({"round": 99_999, "t": 1e7} if "round" in event else {}), **large})
    (header,) = [line for line in written if line.endswith("ETA")]
    row = next(line for line in written if line.startswith("99999/100000 "))
    assert "10000000.0 " in row
    assert "12345.678 " in row
    assert {cell for cell in row.split() if "12345" in cell} == {"12345.678"}
    assert len(row) == len(header)
    assert "final perplexity (lower is better)" in written


@each_mode
def test_the_report_says_once_of_nodes_or_models_that_are_alike_what_they_have(mode: str) -> None:
    metric, view = Metric("rmse", "kWh", 1.0, higher=False), VIEWS[mode]
    events = [
        {**e, "accuracy": [2.5] * len(e["accuracy"]) if isinstance(e["accuracy"], list) else 2.5}
        if "accuracy" in e
        else e
        for e in example(mode)
    ]
    measured = view.measure(events, ())
    shown = [value for _, value in view.page.tiles(measured, metric)]
    assert shown
    assert not any(" to " in value for value in shown)
    assert "rmse (lower is better)" in view.page.sentence(measured, metric)
    assert metric.label == "rmse (kWh, lower is better)"
    assert (metric.lead(2.5, 2.5001), metric.lead(2.5, 2.6)) == ("+0.000", "-0.100")


@each_mode
def test_a_run_can_be_reported_and_compared_at_any_moment(tmp_path: Path, mode: str) -> None:
    run = RunDirectory.create(tmp_path, EXAMPLES[mode][1], name="run")
    assert frozen(render(run))["status"] == "not finished"
    *events, finished = example(mode)
    for event in events[: len(events) // 2]:
        run.emit(**event)
    shown = frozen(render(run))
    assert shown["status"] == "not finished"
    assert shown["tables"][-1]["title"] == VIEWS[mode].rounds.capitalize()
    for event in [*events[len(events) // 2 :], finished]:
        run.emit(**event)
    render(run)
    wanted = {f"{name}.png" for name in VIEWS[mode].page.figures}
    if mode == "average":  # whose updates are all of one age
        wanted.remove("staleness.png")
    assert {path.name for path in (run.path / "figures").iterdir()} == wanted
    rows = compare([run], tmp_path / "out").splitlines()[:3]
    assert len({row.count("|") for row in rows}) == 1
    assert "| run |" in rows[2]
