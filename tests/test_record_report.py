"""Figures, report and comparison: drawn from events alone, for runs of every length."""

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_app.record.compare import compare
from fl_app.record.distill_figures import FIGURES
from fl_app.record.distill_metrics import published
from fl_app.record.report import render
from fl_app.record.run_dir import RunDirectory
from strategies.errors import RunDirectoryError
from tests.drawn import bars, curves, pixels
from tests.frozen import frozen
from tests.record_events import config, distill_events, fill

TARGETS = (0.5, 0.6)
SHAPES = [(20, 3, False), (20, 3, True), (200, 3, False), (20, 16, True), (1, 3, True)]


def make(root: Path, events: list[dict[str, Any]], name: str = "", **changes: Any) -> RunDirectory:
    run = RunDirectory.create(root, {**config(), **changes}, name=name)
    fill(run, events, "completed" if events else "failed")
    return run


def drawn(name: str, events: list[dict[str, Any]]) -> Any:
    figure = FIGURES[name].draw(events, "virtual", TARGETS)
    assert figure is not None
    width, height = pixels(figure)
    assert width >= 900
    assert height >= 450
    return figure


of_every_length = pytest.mark.parametrize(("rounds", "participants", "sync"), SHAPES)


@of_every_length
def test_curves_are_the_evaluations(rounds: int, participants: int, sync: bool) -> None:
    events = distill_events(rounds, participants, sync=sync)
    shown = curves(drawn("accuracy", events).axes[0])
    for label, model, field in (
        ("small model, newest", "small", "accuracy"),
        ("global model, raw", "global", "accuracy"),
        ("global model, EMA; published", "global", "accuracy_ema"),
    ):
        wanted = [(e["t"], 100 * e[field]) for e in events if e.get("model") == model]
        np.testing.assert_allclose(shown[label], wanted)


def test_the_curve_of_the_published_model_is_named() -> None:
    """The variants that publish raw weights have a moving average, too."""
    events = [
        {**e, "published": "raw"} if e.get("model") == "global" else e for e in distill_events(3)
    ]
    assert set(curves(drawn("accuracy", events).axes[0])) == {
        "small model, newest", "global model, raw; published", "global model, EMA",
    }  # fmt: skip


@of_every_length
def test_bars_are_as_long_as_what_they_stand_for(
    rounds: int, participants: int, sync: bool
) -> None:
    """In every lane, up to where the picture ends."""
    events = distill_events(rounds, participants, sync=sync)
    axes = drawn("gantt", events).axes[0]
    until, wanted = axes.get_xlim()[1], defaultdict(float)

    def add(label: str, lane: int, start: float, end: float) -> None:
        wanted[label, lane] += max(0.0, min(end, until) - min(start, until))

    waits = {"clients": "waiting for participants", "server": "waiting for the server"}
    for e in events:
        if e["event"] == "idle":
            add(waits[e["waiting_for"]], e["participant"], e["t_start"], e["t_end"])
        elif e["event"] == "job" and e["status"] != "ok":
            add("job lost, rejected or failed", e["participant"], e["t_start"], e["t_end"])
        elif e["event"] == "job":
            for label, start, end in (
                ("download", "t_start", "t_compute"),
                ("compute", "t_compute", "t_upload"),
                ("upload", "t_upload", "t_end"),
            ):
                add(label, e["participant"], e[start], e[end])
        elif e["event"] == "segment":
            add("the server", participants, e["t_start"], e["t_end"])
    found = defaultdict(float)
    for (label, lane), length in bars(axes).items():
        found["the server" if lane == participants else label, lane] += length
    assert found == pytest.approx({key: value for key, value in wanted.items() if value})


@of_every_length
def test_a_histogram_has_the_share_of_every_age(rounds: int, participants: int, sync: bool) -> None:
    events = distill_events(rounds, participants, sync=sync)
    steps: dict[int, int] = defaultdict(int)
    for e in events:
        if e["event"] == "segment":
            steps[e["staleness_versions"]] += e["steps"]
    if len(steps) == 1:  # a bar chart with one bar says nothing
        assert FIGURES["staleness"].draw(events, "virtual", TARGETS) is None
        return
    axes = drawn("staleness", events).axes[0]
    total = sum(steps.values())
    shown = {
        round(bar.get_x() + bar.get_width() / 2): bar.get_height()
        for bar in axes.patches
        if bar.get_height()
    }
    assert shown == pytest.approx({age: 100 * n / total for age, n in steps.items()})


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_recorded_is_nothing_drawn(name: str) -> None:
    assert FIGURES[name].draw([], "virtual", TARGETS) is None


def titles(name: str, events: list[dict[str, Any]]) -> list[str]:
    figure = FIGURES[name].draw(events, "virtual", TARGETS)
    assert figure is not None
    return [axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left")]


def test_a_long_gantt_is_a_slice_and_says_so() -> None:
    assert titles("gantt", distill_events(12)) == ["Who was busy: the whole run, 12 rounds"]
    (title,) = titles("gantt", distill_events(200))
    match = re.fullmatch(r".*: (\d+) of (\d+) s, (\d+) of 200 rounds", title)
    assert match
    assert int(match[1]) < int(match[2]) / 5
    assert 8 <= int(match[3]) <= 12


def test_a_gantt_shows_failed_jobs_both_kinds_of_waiting_and_forward_distillation() -> None:
    events = distill_events(6, sync=True)
    last = next(event for event in reversed(events) if event["event"] == "segment")
    events.append({**last, "segment": 99, "kind": "forward", "t_end": last["t_end"] + 1})
    figure = FIGURES["gantt"].draw(events, "real", TARGETS)
    assert figure is not None
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {
        "download", "compute", "upload", "job lost, rejected or failed", "waiting for participants",
        "waiting for the server", "forward distillation",
    }  # fmt: skip
    assert figure.axes[0].get_xlabel() == "time (s)"


def test_the_accuracy_figure_says_when_each_target_was_reached() -> None:
    figure = FIGURES["accuracy"].draw(distill_events(20), "virtual", (0.3, 0.5, 0.65, 0.72))
    assert figure is not None
    (right,) = figure.axes[0].child_axes
    labels = [text.get_text() for text in right.get_yticklabels()]
    assert [label.split(":")[0] for label in labels] == ["30 %", "50 %", "65 %", "72 %"]
    assert all(label.endswith(" s") for label in labels[:3])
    assert labels[3] == "72 %: not reached"


def test_buffered_averaging_adds_the_staleness_of_contributions() -> None:
    events = distill_events(8)
    assert len(titles("staleness", events)) == 1
    late = [{**e, "staleness": e["round"] % 4} if e["event"] == "round" else e for e in events]
    assert [title.split(":")[0] for title in titles("staleness", late)] == [
        "Teacher of the distillation server", "Contributions to the average",
    ]  # fmt: skip
    alone = [event for event in late if event["event"] == "round"]
    assert titles("staleness", alone) == ["Contributions to the average: mean 1.57, max 3"]


def test_what_is_all_of_one_age_has_no_figure(tmp_path: Path) -> None:
    events = distill_events(8, sync=True)
    assert FIGURES["staleness"].draw(events, "virtual", TARGETS) is None
    shown = frozen(render(make(tmp_path, events)))
    assert shown["absent"] == ["staleness (no teacher and no contribution was older than another)"]
    assert "Staleness" not in {chart["title"] for chart in shown["charts"]}


def test_a_report_has_every_round_the_incidents_and_the_figures_beside_it(tmp_path: Path) -> None:
    run = make(tmp_path, distill_events())
    shown = frozen(render(run))
    assert [row[0] for row in shown["tables"][-1]["rows"]] == [str(n) for n in range(1, 21)]
    texts = [each["text"] for each in shown["incidents"]]
    assert "rejected participant 2 in round 6: weights has NaN" in texts
    assert "participant 2 <sent> NaN" in texts
    assert shown["status"] == "completed"
    figures = sorted(path.name for path in (run.path / "figures").iterdir())
    assert figures == ["accuracy.png", "gantt.png", "staleness.png"]
    assert {f"figures/{name}" for name in figures} < set(shown["files"])


def test_the_report_of_a_run_that_failed_at_once_says_so(tmp_path: Path) -> None:
    run = make(tmp_path, [])
    run.emit("finished", status="failed", reason="participant 0 has no data")
    shown = frozen(render(run))
    assert (shown["status"], shown["reason"]) == ("failed", "participant 0 has no data")
    assert shown["sentence"] == "No model was evaluated."
    assert (shown["charts"], shown["timeline"]) == ([], None)
    assert list((run.path / "figures").iterdir()) == []


def test_a_run_without_any_event_can_be_reported(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, {"mode": "distill"})
    assert frozen(render(run))["status"] == "not finished"


def test_the_figures_of_an_earlier_state_are_replaced(tmp_path: Path) -> None:
    run = make(tmp_path, distill_events(3))
    render(run)
    (run.path / "metrics.jsonl").write_text("")
    render(run)
    assert list((run.path / "figures").iterdir()) == []


def test_runs_are_compared_in_one_figure_and_one_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures: list[Any] = []
    monkeypatch.setattr(
        "fl_app.record.figures.to_png", lambda figure, _: pictures.append(figure) or b"a picture"
    )
    runs = [
        make(tmp_path, distill_events(), "first"),
        make(tmp_path, distill_events(sync=True), "second", **{"distill.variant": "sync"}),
    ]
    table = compare(runs, tmp_path / "out")
    assert (tmp_path / "out" / "compare.md").read_text() == table
    assert (tmp_path / "out" / "compare.png").read_bytes() == b"a picture"
    shown = curves(pictures[-1].axes[0])
    for run in runs:
        wanted = [(t, 100 * a) for t, a in published(run.events())]
        np.testing.assert_allclose(shown[run.name], wanted)
    whole = table.partition("\n\n")[0]  # what comes behind is of the groups
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in whole.splitlines()]
    assert len({len(row) for row in rows}) == 1
    head, _, first, second = rows
    assert [first[0], first[1], second[0], second[1]] == ["first", "async-plus", "second", "sync"]
    assert first[head.index("50 % after")].endswith(" virtual s")
    assert second[head.index("60 % after")] == "-"
    assert float(second[head.index("idle %")]) > float(first[head.index("idle %")])
    assert "server alone %" not in head  # which none of them has


def test_different_clocks_and_data_are_labelled(tmp_path: Path) -> None:
    runs = [
        make(tmp_path, distill_events(4), "one"),
        make(tmp_path, distill_events(4), "two", clock="real", dataset="cifar10"),
        make(tmp_path, [], "failed"),
        make(tmp_path, distill_events(4), "chosen", **{"evaluate-on": "validation"}),
    ]
    table = compare(runs, tmp_path / "out")
    assert "times are not comparable, clock differs: real, virtual." in table
    assert "accuracies are not comparable, dataset differs: cifar10, fashion-mnist." in table
    # The others are of a time in which there were test images alone.
    assert "accuracies are not comparable, evaluate-on differs: test, validation." in table
    assert "| failed | async-plus |" in table


def test_nothing_to_compare_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="name at least one run"):
        compare([], tmp_path / "out")
    with pytest.raises(RunDirectoryError, match="no model was evaluated in failed"):
        compare([make(tmp_path, [], "failed")], tmp_path / "out")
    assert not (tmp_path / "out").exists()
