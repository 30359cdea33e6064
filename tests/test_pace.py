"""How long the rest of a run will take."""

import pytest

from strategies.pace import Pace


def test_rounds_to_come_take_as_long_as_those_before() -> None:
    pace = Pace(100.0)
    assert pace.left(102.0, 3) == pytest.approx(6.0)
    assert pace.left(108.0, 2) == pytest.approx(8.0)


def test_what_is_long_ago_says_nothing() -> None:
    pace = Pace(0.0)
    for now in range(1, 31):  # quick ones
        pace.left(now, 100)
    for later in range(1, 11):
        left = pace.left(30 + 5 * later, 7)
    assert left == pytest.approx(35.0)


def test_the_last_round_leaves_nothing() -> None:
    assert Pace(0.0).left(3.0, 0) == 0.0
