"""How far a run is, and how long the rest will take."""

from typing import Any

import pytest

from fl_app.config import resolve
from fl_app.record.modes import view_of
from fl_app.record.progress import Progress, progress

CONFIG = resolve({"num-server-rounds": 40}).flat()


def ends(round_: int, t_wall: float) -> list[dict[str, Any]]:
    """All that a round's line awaits."""
    awaits = view_of(CONFIG).lines.awaits
    return [
        {"event": kind, "round": round_, "t_wall": t_wall, **({"model": model} if model else {})}
        for kind, model in sorted(awaits, key=str)
    ]


def far(*events: dict[str, Any]) -> Progress:
    return progress(events, CONFIG)


def test_a_round_is_done_when_all_of_it_is_there() -> None:
    events = ends(1, 20.0)
    for missing in events:
        assert far(*(event for event in events if event is not missing)).done == 0
    assert far(*events).done == 1


def test_the_participants_may_be_ahead_of_the_server() -> None:
    ahead = [{"event": "round", "round": n, "t_wall": 20.0 + n} for n in range(1, 41)]
    assert far(*ahead).done == 0  # the virtual clock waits for all of it
    on_real = progress(ahead, {**CONFIG, "clock": "real"})
    assert on_real.done == 38
    on_real.take({"event": "finished", "status": "completed", "t_wall": 70.0})
    assert on_real.done == 40


def test_what_is_left_follows_the_rounds_that_are_done() -> None:
    first = ends(1, 20.0)
    assert far(*first).left is None  # the start is in it
    assert far(*first, *ends(2, 23.0)).left == pytest.approx(38 * 3.0)
    assert far(*first, *ends(2, 23.0), *ends(3, 30.0)).left == pytest.approx(37 * 5.0)


def test_what_is_long_ago_says_nothing() -> None:
    quick = [event for n in range(1, 21) for event in ends(n, float(n))]
    slow = [event for n in range(21, 31) for event in ends(n, 20.0 + 5 * (n - 20))]
    assert far(*quick, *slow).left == pytest.approx(10 * 5.0)


def test_the_last_round_leaves_nothing() -> None:
    assert far(*(event for n in range(1, 41) for event in ends(n, 2.0 * n))).left == 0


def test_a_resumed_run_is_where_it_goes_on() -> None:
    before = [event for n in range(1, 11) for event in ends(n, float(n))]
    resumed = {"event": "resumed", "round": 8, "t_wall": 11.0}
    assert far(*before, resumed).done == 8
    assert far(*before, resumed, *ends(9, 40.0)).left is None  # the new start is in it
    assert far(*before, resumed, *ends(9, 40.0), *ends(10, 44.0)).left == pytest.approx(30 * 4.0)
