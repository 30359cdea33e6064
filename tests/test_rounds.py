"""The course of a run: every job once and in time, the same aggregations whatever the arrivals."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.distillation.trace import DistillationPlan, distillation_trace
from strategies.rounds import Live, Replay
from strategies.schedule import Aggregation, CostModel, Job, Trace, cohort

COST = CostModel(
    client_seconds=10.0,
    communication_seconds=1.0,
    reverse_ratio=0.32,
    forward_ratio=0.1,
    speed_spread=0.4,
    link_spread=0.2,
    straggler_probability=0.2,
    straggler_factor=4.0,
    dropout_probability=0.2,
    timeout_seconds=25.0,
)
PARTICIPANTS, ROUNDS = 4, 6


def trace_of(buffer_size: int = 0, fraction: float = 1.0, seed: int = 0) -> Trace:
    return distillation_trace(
        COST,
        DistillationPlan("none", 1),
        participants=PARTICIPANTS,
        rounds=ROUNDS,
        seed=seed,
        fraction=fraction,
        buffer_size=buffer_size,
    )


# ---------------------------------------------------------------------------------------- replay

AVERAGINGS = [(0, 1.0), (0, 0.5), (1, 1.0), (2, 1.0), (6, 1.0)]


@pytest.mark.parametrize(("buffer_size", "fraction"), AVERAGINGS)
@given(choices=st.randoms(use_true_random=False), first=st.integers(0, ROUNDS - 1))
@settings(deadline=None, max_examples=25)
def test_any_order_of_arrivals_replays_the_trace(
    buffer_size: int, fraction: float, choices: Any, first: int
) -> None:
    """From the start and from any version on (a resumed run): every job is handed out exactly once
    and not before its base exists, lost ones never; the aggregations are the trace's."""
    trace = trace_of(buffer_size, fraction)
    rounds = Replay(trace, first)
    version, handed, under_way, made = first, [], [], []
    while version < ROUNDS:
        due = rounds.due(version, now=0.0)
        assert all(job.base_version <= version for job in due)
        handed += due
        under_way += due
        assert {job.base_version for job in under_way if job.base_version < version} <= (
            rounds.bases(version)
        )
        aggregation = rounds.complete(version, now=0.0)
        if aggregation is not None:
            made.append(aggregation)
            version += 1
            continue
        assert under_way, "nothing is under way and no version complete: the run would hang"
        job = under_way.pop(choices.randrange(len(under_way)))
        assert rounds.arrived(job, 0.0, 1.0, usable=choices.random() < 0.8)
    assert tuple(made) == trace.aggregations[first:]
    expected = [job for aggregation in trace.aggregations[first:] for job in aggregation.jobs]
    assert sorted(handed, key=str) == sorted(expected, key=str)
    assert rounds.due(version, 0.0) == []
    assert rounds.complete(version, 0.0) is None
    assert rounds.bases(version) == set()


def test_a_replayed_round_without_any_job_completes_at_once() -> None:
    """All its jobs are lost in the trace, so nobody has anything to send."""
    cost = replace(COST, dropout_probability=0.97)
    plan = DistillationPlan("none", 1)
    trace = distillation_trace(cost, plan, participants=1, rounds=3, seed=1)
    assert [len(a.jobs) for a in trace.aggregations] == [0, 0, 0]
    rounds = Replay(trace)
    for version in range(3):
        assert rounds.due(version, 0.0) == []
        assert rounds.complete(version, 0.0) == trace.aggregations[version]


def test_a_replay_keeps_the_versions_that_are_still_needed() -> None:
    """Fast participant 0, slow participant 1: while 1 works from version 0, that is kept."""
    slow = Job(1, 0, 0, 0.0, 0.0, 30.0, 30.0)
    fast = [Job(0, i, i, 10.0 * i, 10.0 * i, 10.0 * (i + 1), 10.0 * (i + 1)) for i in range(3)]
    aggregations = (
        Aggregation(1, 10.0, (fast[0],)),
        Aggregation(2, 20.0, (fast[1],)),
        Aggregation(3, 30.0, (fast[2], slow)),
    )
    rounds = Replay(Trace(aggregations, (), (), (), 30.0))
    assert rounds.due(0, 0.0) == [fast[0], slow]
    rounds.arrived(slow, 0.0, 0.0, True)  # it may come early on the real clock: no hurry
    assert rounds.complete(0, 0.0) is None
    rounds.arrived(fast[0], 0.0, 0.0, True)
    assert rounds.complete(0, 0.0) == aggregations[0]
    assert rounds.bases(1) == {0}
    assert rounds.bases(2) == {0, 1}


# ------------------------------------------------------------------------------------------ live


def live(buffer_size: int = 0, **changes: Any) -> Live:
    arguments: dict[str, Any] = {
        "participants": 3, "seed": 0, "fraction": 1.0, "buffer_size": buffer_size, "timeout": 10.0
    }  # fmt: skip
    return Live(**{**arguments, **changes})


def who(jobs: Any) -> list[tuple[int, int, int]]:
    return [(job.participant, job.index, job.base_version) for job in jobs]


def test_a_synchronous_round_waits_for_everybody() -> None:
    rounds = live()
    jobs = rounds.due(0, now=100.0)
    assert who(jobs) == [(0, 0, 0), (1, 0, 0), (2, 0, 0)]
    assert rounds.due(0, now=101.0) == []
    for number, participant in enumerate((2, 0, 1)):
        assert rounds.complete(0, now=101.0 + number) is None
        assert rounds.arrived(jobs[participant], 102.0 + number, 1.0, usable=True)
    made = rounds.complete(0, now=105.0)
    assert made is not None
    assert (made.version, made.t, made.lost) == (1, 105.0, ())
    assert who(made.jobs) == [(0, 0, 0), (1, 0, 0), (2, 0, 0)]  # not in the order of arrival
    assert rounds.complete(1, now=106.0) is None  # not even begun
    assert who(rounds.due(1, now=106.0)) == [(0, 1, 1), (1, 1, 1), (2, 1, 1)]
    assert rounds.next_index == (2, 2, 2)


def test_a_rounds_cohort_is_the_schedules() -> None:
    rounds = live(participants=10, fraction=0.3)
    for version in range(4):
        jobs = rounds.due(version, 0.0)
        assert [job.participant for job in jobs] == cohort(10, 0.3, 0, version + 1)
        assert all(rounds.arrived(job, 1.0, 0.0, True) for job in jobs)
        assert rounds.complete(version, 1.0) is not None


def test_rounds_keep_their_pace() -> None:
    rounds = live(pace=15.0)
    times = [(99.0, 100.0, 101.0), (114.5, 115.0, 140.0), (None, 140.0, 141.0)]
    for version, (early, begin, end) in enumerate(times):
        if version and early is not None:
            assert rounds.due(version, now=early) == []
        for job in rounds.due(version, now=begin):
            assert rounds.arrived(job, end, 1.0, usable=True)
        assert rounds.complete(version, end) is not None


def test_with_a_buffer_every_participant_keeps_the_pace() -> None:
    rounds = live(buffer_size=1, pace=15.0)
    first, *_ = rounds.due(0, now=0.0)
    assert rounds.arrived(first, 2.0, 1.0, usable=True)
    assert rounds.due(0, now=14.0) == []
    assert who(rounds.due(0, now=15.0)) == [(0, 1, 0)]


def test_who_has_an_update_to_deliver_gets_no_other_job() -> None:
    """A secure sum can ask only who is free; with everybody's update in it the buffer is full."""
    rounds = live(buffer_size=3, one_by_one=True)
    jobs = rounds.due(0, now=0.0)
    for number, job in enumerate(jobs):
        assert rounds.complete(0, now=1.0) is None
        assert rounds.arrived(job, 1.0, 1.0, usable=number != 1)
    assert who(rounds.due(0, now=1.5)) == []
    (again,) = rounds.due(0, now=2.0)  # after its pause, who had none
    assert again.participant == 1
    assert rounds.arrived(again, 3.0, 1.0, usable=True)
    assert rounds.complete(0, now=3.0) is not None
    assert len(rounds.due(1, now=3.0)) == 3


def test_what_is_late_is_lost_and_what_comes_later_still_is_ignored() -> None:
    rounds = live()
    fast, slow, broken = rounds.due(0, now=0.0)
    assert rounds.arrived(fast, 3.0, 1.0, usable=True)
    assert rounds.arrived(broken, 4.0, 1.0, usable=False)
    assert rounds.complete(0, now=10.0) is None  # not after `timeout` yet
    made = rounds.complete(0, now=10.5)
    assert made is not None
    assert (who(made.jobs), sorted(who(made.lost))) == ([(0, 0, 0)], [(1, 0, 0), (2, 0, 0)])
    assert all(job.lost and job.t_end in (4.0, 10.5) for job in made.lost)
    assert not rounds.arrived(slow, 11.0, 1.0, usable=True)
    again = rounds.due(1, now=11.0)
    assert who(again) == [(0, 1, 1), (1, 1, 1), (2, 1, 1)]
    assert not rounds.arrived(slow, 12.0, 1.0, usable=True)  # it answers the old job
    assert rounds.arrived(again[1], 12.0, 1.0, usable=True)


def test_a_job_arrives_once() -> None:
    rounds = live()
    job = rounds.due(0, 0.0)[0]
    assert rounds.arrived(job, 1.0, 0.5, True)
    assert not rounds.arrived(job, 2.0, 0.5, True)


def test_a_round_that_loses_everybody_is_over_all_the_same() -> None:
    rounds = live()
    assert len(rounds.due(0, 0.0)) == 3
    made = rounds.complete(0, 10.1)
    assert made is not None
    assert (made.jobs, len(made.lost)) == ((), 3)


def test_the_time_that_was_not_training_is_half_download_half_upload() -> None:
    """Handed out at 100, back at 110, 6 s of training: 2 s each way. Only the server's clock and a
    duration count. A device that claims more than the whole time has no transfer."""
    rounds = live(participants=2)
    honest, boastful = rounds.due(0, 100.0)
    rounds.arrived(honest, 110.0, 6.0, True)
    rounds.arrived(boastful, 110.0, 60.0, True)
    made = rounds.complete(0, 110.0)
    assert made is not None
    times = [(j.t_start, j.t_compute, j.t_upload, j.t_end) for j in made.jobs]
    assert times == [(100.0, 102.0, 108.0, 110.0), (100.0, 100.0, 110.0, 110.0)]


def test_a_buffer_fills_and_nobody_waits() -> None:
    rounds = live(buffer_size=2)
    a, b, c = rounds.due(0, 0.0)
    assert rounds.arrived(b, 1.0, 0.0, True)
    assert rounds.complete(0, 1.0) is None
    (b2,) = rounds.due(0, 1.0)  # at once, from the newest version
    assert who([b2]) == [(1, 1, 0)]
    assert rounds.arrived(a, 2.0, 0.0, True)
    made = rounds.complete(0, 2.0)
    assert made is not None
    assert (made.version, who(made.jobs)) == (1, [(0, 0, 0), (1, 0, 0)])
    assert who(rounds.due(1, 2.0)) == [(0, 1, 1)]
    assert rounds.bases(1) == {0}  # of b2 and c
    assert rounds.arrived(c, 3.0, 0.0, True)
    assert rounds.complete(1, 3.0) is None
    assert rounds.arrived(b2, 4.0, 0.0, True)
    made = rounds.complete(1, 4.0)
    assert made is not None
    assert who(made.jobs) == [(1, 1, 0), (2, 0, 0)]
    assert rounds.bases(2) == {1}


def test_lost_and_unusable_updates_fill_no_buffer() -> None:
    rounds = live(buffer_size=2)
    a, b, _ = rounds.due(0, 0.0)
    rounds.arrived(a, 1.0, 0.0, usable=False)
    rounds.arrived(b, 1.0, 0.0, usable=True)
    assert rounds.complete(0, 1.0) is None
    (b2,) = rounds.due(0, 1.0)
    assert rounds.due(0, 1.9) == []
    (a2,) = rounds.due(0, 2.0)  # after a pause of a second
    assert rounds.complete(0, 10.5) is None  # c is given up
    assert rounds.due(0, 11.4) == []
    (c2,) = rounds.due(0, 11.5)  # after the same pause
    assert who([a2, b2, c2]) == [(0, 1, 0), (1, 1, 0), (2, 1, 0)]
    rounds.arrived(c2, 11.6, 0.0, usable=True)
    made = rounds.complete(0, 11.6)  # b's second job is given up
    assert made is not None
    assert who(made.jobs) == [(1, 0, 0), (2, 1, 0)]
    assert sorted(who(made.lost)) == [(0, 0, 0), (1, 1, 0), (2, 0, 0)]


def test_the_pause_of_a_failing_participant_doubles_and_ends_with_a_success() -> None:
    rounds, now = live(buffer_size=1, participants=1), 0.0
    for pause in (1.0, 2.0, 4.0):
        (job,) = rounds.due(0, now)
        rounds.arrived(job, now, 0.0, usable=False)
        assert rounds.due(0, now + pause - 0.1) == []
        now += pause
    (job,) = rounds.due(0, now)
    rounds.arrived(job, now, 0.0, usable=True)
    assert len(rounds.due(0, now)) == 1


def test_who_is_given_up_fails_as_who_sends_nothing_that_is_of_use() -> None:
    rounds, now = live(buffer_size=1, participants=1), 0.0
    for pause in (1.0, 2.0, 4.0):
        assert len(rounds.due(0, now)) == 1
        now += 10.1
        assert rounds.complete(0, now) is None
        assert rounds.due(0, now + pause - 0.1) == []
        now += pause


@pytest.mark.parametrize("buffer_size", [1, 2])
def test_updates_that_arrive_together_make_versions_of_buffer_size_each(buffer_size: int) -> None:
    """Five replies in one look: in the order of arrival, each version gets its buffer and no update
    is dropped or squeezed in."""
    rounds = live(buffer_size, participants=5)
    jobs = rounds.due(0, 0.0)
    order = [jobs[i] for i in (3, 1, 4, 0, 2)]
    assert all(rounds.arrived(job, 1.0, 0.0, True) for job in order)
    version, taken = 0, []
    while (made := rounds.complete(version, 1.0)) is not None:
        assert len(made.jobs) == buffer_size
        taken += [job.participant for job in made.jobs]
        version += 1
        assert made.version == version
    assert version == 5 // buffer_size
    expected = [3, 1, 4, 0, 2] if buffer_size == 1 else [1, 3, 0, 4]
    assert taken == expected
    # What is left counts in the next version, and the version it started from is kept for it.
    assert rounds.bases(version) == ({0} if buffer_size == 2 else set())


def test_a_resumed_run_goes_on_with_the_next_version_and_jobs() -> None:
    rounds = live(first_version=7, next_index=(9, 8, 7))
    assert who(rounds.due(7, 0.0)) == [(0, 9, 7), (1, 8, 7), (2, 7, 7)]
    assert rounds.next_index == (10, 9, 8)
