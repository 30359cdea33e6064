"""Numbers drawn from events: hand-made cases, and the events that count after a resume."""

from typing import Any

import pytest

from fl_app.record import metrics
from fl_app.record.distill_metrics import measure, published, round_table, staleness_histogram
from fl_app.record.metrics import (
    effective,
    link_counts,
    metric_of,
    series,
    targets_of,
    time_to_target,
    times_to_targets,
)
from fl_app.record.modes import VIEWS
from tests.record_events import distill_events


def timed(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**event, "t_wall": 0.5 * number} for number, event in enumerate(events)]


POINTS = [(1.0, 0.2), (2.0, 0.7), (3.0, 0.4), (4.0, 0.5), (5.0, 0.6), (6.0, 0.7)]


@pytest.mark.parametrize(
    ("target", "window", "expected"),
    [
        (0.5, 3, 4.0),  # means of three: -, -, 0.433, 0.533, 0.5, 0.6: the peak at 2 s is not it
        (0.6, 3, 6.0),
        (0.61, 3, None),
        (0.7, 1, 2.0),
        (0.2, 3, 3.0),  # three evaluations are needed, however low the target
        (0.2, 7, None),
    ],
)
def test_time_to_target(target: float, window: int, expected: float | None) -> None:
    assert time_to_target(POINTS, target, window) == expected


def test_a_target_met_exactly_is_met() -> None:
    """(0.7 + 0.7 + 0.7) / 3 is 0.6999999999999998 in floating point."""
    assert time_to_target([(float(i), 0.7) for i in range(3)], 0.7, 3) == 2.0


def test_no_evaluations_reach_nothing_and_no_window_is_an_error() -> None:
    assert time_to_target([], 0.0) is None
    with pytest.raises(ValueError, match="window=0 must be at least 1"):
        time_to_target(POINTS, 0.5, 0)


def evaluate(number: int, model: str, accuracy: float, ema: float | None = None) -> dict[str, Any]:
    return {
        "event": "evaluate", "round": number, "t": 10.0 * number, "model": model,
        "accuracy": accuracy, "accuracy_ema": ema, "t_wall": 0.0,
        "published": "raw" if ema is None else "ema",
    }  # fmt: skip


def test_the_published_model_is_the_ema_else_the_global_else_the_small() -> None:
    small, raw, ema = (
        evaluate(1, "small", 0.1),
        evaluate(1, "global", 0.2),
        evaluate(1, "global", 0.2, 0.3),
    )
    assert published([small]) == [(10.0, 0.1)]
    assert published([small, raw]) == [(10.0, 0.2)]
    assert published([small, ema]) == [(10.0, 0.3)]
    assert published([]) == []


def test_a_series_is_by_time_and_leaves_out_what_was_not_measured() -> None:
    events = [evaluate(2, "global", 0.5), evaluate(1, "global", 0.4, 0.45)]
    assert series(events, "global") == [(10.0, 0.4), (20.0, 0.5)]
    assert series(events, "global", "accuracy_ema") == [(10.0, 0.45)]


def test_of_versions_of_one_time_the_last_one_counts() -> None:
    """With a buffer several are made at once; neither the best nor the first of them stands for the
    run."""
    events = [{**evaluate(round_, "small", a), "t": 10.0} for round_, a in ((2, 0.6), (1, 0.4))]
    events.append({**evaluate(3, "small", 0.5), "t": 10.0})
    assert series(events, "small") == [(10.0, 0.4), (10.0, 0.6), (10.0, 0.5)]
    assert metrics.last_accuracy(events, "small") == 0.5


def test_of_two_events_with_one_identity_the_last_wins() -> None:
    events: list[dict[str, Any]] = [
        {"event": "job", "job": 1, "t_end": 1.0},
        {"event": "warning", "message": "same"},
        {"event": "job", "job": 2, "t_end": 2.0},
        {"event": "warning", "message": "same"},
        {"event": "job", "job": 1, "t_end": 3.0},
    ]
    assert effective(events) == [events[1], events[2], events[3], events[4]]


@pytest.mark.parametrize("kind", metrics.IDENTITY)
def test_every_kind_with_an_identity_is_told_apart_by_each_of_its_fields(kind: str) -> None:
    fields = metrics.IDENTITY[kind]
    base = {"event": kind, **dict.fromkeys(fields, 1)}
    assert len(effective([base, {**base, "other": 2}])) == 1
    for field in fields:
        assert len(effective([base, {**base, field: 2}])) == 2


def test_a_resume_discards_what_lay_beyond_its_checkpoint() -> None:
    """Jobs without a round keep counting: only what the resumed event names is discarded."""
    events: list[dict[str, Any]] = [
        {"event": "round", "round": 1},
        {"event": "job", "job": 5, "participant": 0},
        {"event": "segment", "segment": 7},
        {"event": "round", "round": 2},
        {"event": "resumed", "round": 1, "segment": 6},
        {"event": "round", "round": 2, "t": 9.0},
    ]
    assert effective(events) == [events[0], events[1], events[4], events[5]]


def test_waiting_is_told_anew_by_the_end_of_a_resumed_run() -> None:
    """On the real clock the rounds that are done again take another time."""
    idle = {"event": "idle", "participant": 0, "t_start": 4.0, "t_end": 5.0}
    again = {**idle, "t_start": 4.5}
    events = [{"event": "round", "round": 1}, idle, {"event": "resumed", "round": 1}, again]
    assert [e for e in effective(events) if e["event"] == "idle"] == [again]


def test_resuming_twice_from_one_checkpoint_counts_once() -> None:
    once = distill_events(6)
    at_four = next(i for i, e in enumerate(once) if e["event"] == "round" and e["round"] == 4) + 1
    resumed = {"event": "resumed", "round": 4}
    told_at_the_end = metrics.of_kind(once[:at_four], "idle")
    rest = [*told_at_the_end, *once[at_four:]]
    events = [*once, resumed, *once[at_four:-3], resumed, *rest]
    kinds = ("warning", "resumed")  # every warning is kept, since none has an identity
    counted = [event for event in effective(events) if event["event"] not in kinds]
    order = [event for event in once if event["event"] not in kinds]
    assert sorted(counted, key=repr) == sorted(order, key=repr)


def test_the_round_table_joins_rounds_and_evaluations() -> None:
    events = [
        {"event": "round", "round": 2, "t": 20.0, "staleness": 0.5, "worker_steps": 40},
        evaluate(2, "small", 0.3),
        evaluate(2, "global", 0.4, 0.5),
        evaluate(3, "small", 0.35),  # evaluated although the round has no event of its own
    ]
    first, second = round_table(events)
    assert (first["round"], first["t"], first["staleness"], first["worker_steps"]) == (
        2,
        20,
        0.5,
        40,
    )
    assert (first["small"], first["global"], first["global_ema"]) == (0.3, 0.4, 0.5)
    assert first["bytes_up"] is None
    assert (second["round"], second["t"], second["small"], second["global"]) == (3, 30, 0.35, None)


def test_staleness_is_weighted_by_steps_and_forward_distillation_has_none() -> None:
    events = [
        {"event": "segment", "kind": kind, "steps": steps, "staleness_versions": age}
        for kind, steps, age in [("reverse", 30, 1), ("reverse", 60, 0), ("reverse", 10, 1),
                                 ("forward", 99, 5)]
    ]  # fmt: skip
    assert staleness_histogram(events) == {0: 60, 1: 40}


def test_measures_of_a_hand_made_run() -> None:
    """Two participants over 20 s: 40 s of participant time.

    Waiting for participants 2 s (5 %), for the server 4 + 4 s (20 %); the distillation server
    computes 4 + 1 s of 20 (25 %); teacher staleness (30 x 0 + 10 x 2) / 40 = 0.5.
    """
    job = {"event": "job", "t_start": 0.0, "t_end": 8.0, "status": "ok"}
    idle = {"event": "idle", "t_start": 10.0, "t_end": 14.0, "waiting_for": "server"}
    segment = {"event": "segment", "kind": "reverse", "teacher_version": 1}
    events = timed(
        [
            {**job, "job": 0, "participant": 0},
            {**job, "job": 1, "participant": 1, "t_end": 10.0, "status": "lost"},
            {**idle, "participant": 0, "t_start": 8.0, "t_end": 10.0, "waiting_for": "clients"},
            {**idle, "participant": 0},
            {**idle, "participant": 1},
            {**segment, "steps": 30, "t_start": 10.0, "t_end": 14.0, "staleness_versions": 0},
            {**segment, "steps": 10, "t_start": 16.0, "t_end": 17.0, "staleness_versions": 2},
            {"event": "skipped", "version": 3},
            {"event": "rejected", "participant": 1, "round": 1, "reason": "NaN"},
            {"event": "rejected", "participant": 1, "round": 1, "reason": "NaN"},  # its next job
            {"event": "round", "round": 1, "t": 14.0, "bytes_up": 100, "bytes_down": 200},
            evaluate(1, "small", 0.4),
            evaluate(1, "global", 0.5, 0.55),
            {"event": "round", "round": 2, "t": 20.0, "bytes_up": 300, "bytes_down": 400},
        ]
    )
    assert measure(events, (0.5,)) == {
        "rounds": 2,
        "end_seconds": 20.0,
        "wall_seconds": 6.5,
        "final": {"small": 0.4, "global": 0.5, "global_ema": 0.55, "published": 0.55},
        "time_to_target": {"0.50": 10.0},
        "reference_time_to_target": {},
        "client_idle_fraction": {
            "clients": pytest.approx(0.05), "server": pytest.approx(0.2),
            "total": pytest.approx(0.25),
        },
        "worker_busy_fraction": pytest.approx(0.25),
        "teacher_staleness": {"mean": pytest.approx(0.5), "max": 2},
        "skipped_snapshots": 1,
        "rejected": 2,
        "lost": 1,
        "bytes_up": 300,
        "bytes_down": 400,
        "privacy": None,
        "best": None,
        "stopped_early": None,
        "device_costs": None,
    }  # fmt: skip


def test_a_run_that_recorded_nothing_has_measures_without_values() -> None:
    measured = measure([], (0.5,))
    assert (measured["rounds"], measured["end_seconds"], measured["wall_seconds"]) == (0, 0, 0)
    assert set(measured["final"].values()) == {None}
    assert measured["client_idle_fraction"] == {"clients": None, "server": None, "total": None}
    assert measured["worker_busy_fraction"] is None
    assert set(measured["time_to_target"].values()) == {None}


def test_sessions_of_a_resumed_run_are_counted_together() -> None:
    def told(started: dict[str, int], away: list[str], restarts: int) -> dict[str, Any]:
        return {
            "event": "sessions",
            "started": started,
            "away": away,
            "router_restarts": restarts,
            "refused": {"beat: flood": 2},
        }

    events = [told({"a": 2, "b": 0}, ["b"], 1), told({"a": 1, "b": 1}, [], 2)]
    assert link_counts(events) == {
        "processes": {"a": 3, "b": 1},
        "away": [],
        "router_restarts": 3,
        "refused": {"beat: flood": 4},
    }
    assert link_counts(events[:1])["processes"] == {"a": 2, "b": 0}, "b never came"
    assert link_counts([]) == {}


def test_targets_come_from_the_configuration() -> None:
    assert targets_of({"targets": " 0.8, 0.9 ,1"}) == (0.8, 0.9, 1.0)
    assert targets_of({"targets": ""}) == ()


def test_targets_that_differ_in_the_third_digit_have_names_of_their_own() -> None:
    assert list(times_to_targets([], (0.5, 0.551, 0.552))) == ["0.50", "0.551", "0.552"]


def test_where_less_is_better_a_target_is_reached_from_above() -> None:
    """A perplexity of 12 or less, of a run that says in its start what it is judged by."""
    points = [(1.0, 40.0), (2.0, 15.0), (3.0, 12.0), (4.0, 9.0)]
    assert time_to_target(points, 12.0, higher=False) == 3.0
    assert time_to_target(points, 8.0, higher=False) is None
    events = [
        {
            "event": "run_started",
            "t_wall": 0.0,
            "metric": {"name": "perplexity", "unit": "", "direction": "lower"},
        },
        *(
            {"event": "evaluate", "t_wall": t, "t": t, "round": n, "model": "small", "accuracy": p}
            for n, (t, p) in enumerate(points, 1)
        ),
    ]
    measured = VIEWS["average"].measure(events, (12.0, 50.0))
    assert list(measured["time_to_target"].values()) == [3.0, 1.0]
    assert VIEWS["average"].page.tiles(measured, metric_of(events)) == [
        ("final perplexity (lower is better), published model", "9.000")
    ]
    heading = [c.heading(metric_of(events)) for c in VIEWS["average"].lines.columns]
    assert heading[:2] == ["small", "staleness"]
