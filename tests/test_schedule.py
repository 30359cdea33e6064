"""The schedule: equal to a simulation in small ticks, to the paper's arithmetic, and consistent."""

import math
from dataclasses import asdict, fields, replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.distillation.trace import (
    DistillationPlan,
    Instruction,
    distillation_trace,
    instructions,
)
from strategies.randomness import rng
from strategies.schedule import Aggregation, CostModel, Job, Trace, cohort, idle_times
from tests import oracle

POLICIES = ("sync", "round", "continuous")
PAPER = CostModel(
    client_seconds=10.0,
    communication_seconds=0.0,
    reverse_ratio=0.32,
    forward_ratio=0.1,
    speed_spread=0.0,
    link_spread=0.0,
    straggler_probability=0.0,
    straggler_factor=5.0,
    dropout_probability=0.0,
    timeout_seconds=60.0,
)

# ------------------------------------------------------------------ against a simulation in ticks

TICK = 0.125  # seconds; it divides all times below exactly, so no rounding blurs the comparison
DYADIC = replace(PAPER, communication_seconds=0.25, reverse_ratio=0.3125, forward_ratio=0.125)
COSTS = {
    "even": DYADIC,
    "slow server": replace(DYADIC, reverse_ratio=2.5, forward_ratio=1.25),
    "very slow server": replace(DYADIC, reverse_ratio=5.0),
    "block as long as a round": replace(DYADIC, communication_seconds=2.5, reverse_ratio=1.25),
    "stragglers": replace(DYADIC, straggler_probability=0.4, straggler_factor=3.0),
    "drop-outs": replace(DYADIC, dropout_probability=0.3, timeout_seconds=31.0),
    "all of it": replace(
        DYADIC,
        reverse_ratio=1.25,
        straggler_probability=0.3,
        dropout_probability=0.2,
        timeout_seconds=8.0,  # given up before the others are done
    ),
}


def simulate(
    cost: CostModel, plan: DistillationPlan, participants: int, rounds: int, seed: int,
    fraction: float, buffer_size: int,
) -> oracle.Timeline:  # fmt: skip
    def ticks(seconds: float, parts: int = 1) -> int:
        result = round(seconds / parts / TICK)
        assert result * parts * TICK == pytest.approx(seconds, abs=1e-12)
        return result

    def job_ticks(participant: int, index: int) -> tuple[int, bool]:
        straggles, drops = rng(seed, "fate", participant, index).random(2)
        if drops < cost.dropout_probability:
            return ticks(cost.timeout_seconds), True
        factor = cost.straggler_factor if straggles < cost.straggler_probability else 1
        return ticks(cost.client_seconds * factor + cost.communication_seconds), False

    def block(ratio: float, steps: int) -> tuple[int, int]:
        return (steps, ticks(ratio * cost.client_seconds, steps)) if steps else (0, 0)

    return oracle.timeline(
        plan.policy,
        rounds=rounds,
        participants=participants,
        job_ticks=job_ticks,
        cohort=lambda round_: cohort(participants, fraction, seed, round_),
        buffer_size=buffer_size,
        reverse=block(cost.reverse_ratio, plan.reverse_steps),
        forward=block(cost.forward_ratio, plan.forward_steps),
    )


def in_ticks(trace: Trace) -> oracle.Timeline:
    def triples(jobs: tuple[Job, ...]) -> set:
        return {(job.participant, job.index, job.base_version) for job in jobs}

    result = oracle.Timeline()
    for a in trace.aggregations:
        result.versions.append((round(a.t / TICK), triples(a.jobs), triples(a.lost)))
    for s in trace.segments:
        for k in range(1, s.steps + 1):
            end = s.t_start + k * (s.t_end - s.t_start) / s.steps
            result.minibatches.append((s.kind, s.teacher_version, round(end / TICK)))
    result.shown = [p.step for p in trace.publications]
    result.end = round(trace.duration / TICK)
    return result


# Without a buffer every policy; with one none that waits (the configuration refuses it).
# Forward distillation is for the policy that waits.
AVERAGINGS = [(policy, 0, fraction, 0) for policy in POLICIES for fraction in (1.0, 0.5)]
AVERAGINGS += [(policy, 0, 1.0, size) for policy in ("round", "continuous") for size in (1, 2, 5)]
AVERAGINGS += [("sync", 5, fraction, 0) for fraction in (1.0, 0.5)]


@pytest.mark.parametrize(("policy", "forward_steps", "fraction", "buffer_size"), AVERAGINGS)
@pytest.mark.parametrize("cost", COSTS)
def test_equals_the_simulation_in_ticks(
    cost: str, policy: str, forward_steps: int, fraction: float, buffer_size: int
) -> None:
    plan = DistillationPlan(policy, reverse_steps=5, forward_steps=forward_steps)
    setting: dict[str, Any] = {
        "participants": 4, "rounds": 7, "seed": 3, "fraction": fraction, "buffer_size": buffer_size
    }  # fmt: skip
    expected = simulate(COSTS[cost], plan, **setting)
    assert in_ticks(distillation_trace(COSTS[cost], plan, **setting)) == expected


def test_recorded_rounds_that_leave_the_server_no_time_cannot_be_replayed_with_waiting() -> None:
    """The distillation server would skip versions for which participants wait."""
    cost = COSTS["even"]
    plan = DistillationPlan("sync", reverse_steps=5)
    usual: dict[str, Any] = {"participants": 2, "rounds": 3, "seed": 0}
    made = distillation_trace(cost, plan, **usual).aggregations
    assert distillation_trace(cost, plan, **usual, recorded=made).aggregations == made
    slower = replace(cost, reverse_ratio=cost.reverse_ratio + 2.0)
    with pytest.raises(ValueError, match=r"use a smaller cost\.reverse-ratio"):
        distillation_trace(slower, plan, **usual, recorded=made)


def test_a_slow_server_skips_versions() -> None:
    """A version every 10.25 s and blocks of 50 s. Version 1 is taken at 10.25 and done at 60.25,
    when version 5 has come (51.25); the next one is done at 110.25, when all 8 have (82)."""
    plan = DistillationPlan("round", reverse_steps=5)
    cost = COSTS["very slow server"]
    trace = distillation_trace(cost, plan, participants=2, rounds=8, seed=0)
    assert [s.teacher_version for s in trace.segments] == [1, 5, 8]
    assert [s.staleness for s in trace.segments] == [4, 3, 0]
    assert trace.skipped == (2, 3, 4, 6, 7)
    assert trace.duration == 10.25 + 3 * 50
    # Shown at 10.25, 20.5, ... 71.75: 1 step each 10 s since 10.25; the last at the end.
    assert [p.step for p in trace.publications] == [0, 1, 2, 3, 4, 5, 6, 15]


# ------------------------------------------------------------------------ the paper's arithmetic


@pytest.mark.parametrize("rounds", [1, 5, 20])
@pytest.mark.parametrize(
    ("policy", "forward_steps", "seconds"),
    [
        ("sync", 20, lambda rounds: rounds * 10 * (1 + 0.32 + 0.10)),
        ("sync", 0, lambda rounds: rounds * 10 * (1 + 0.32)),
        ("round", 0, lambda rounds: rounds * 10 + 3.2),
    ],
)
def test_the_papers_times(policy: str, forward_steps: int, seconds: Any, rounds: int) -> None:
    """With c = 10 s a round, r = 0.32 c and f = 0.10 c (Yajima et al.: 406/308 and 436/406): T
    synchronous rounds take T (c + r [+ f]); asynchronous ones T c and one block for the last."""
    plan = DistillationPlan(policy, reverse_steps=20, forward_steps=forward_steps)
    trace = distillation_trace(PAPER, plan, participants=3, rounds=rounds, seed=0)
    assert trace.publications[-1].t == pytest.approx(seconds(rounds))
    assert trace.duration == pytest.approx(seconds(rounds))
    assert trace.publications[-1].step == 20 * rounds


@pytest.mark.parametrize("rounds", [1, 5, 20])
def test_the_papers_times_continuous(rounds: int) -> None:
    """As asynchronous per round, and the minibatch that is under way when the last version comes:
    at most one step of 0.16 s more. Between, c / 0.16 = 62.5 steps a round instead of 20."""
    plan = DistillationPlan("continuous", reverse_steps=20)
    trace = distillation_trace(PAPER, plan, participants=3, rounds=rounds, seed=0)
    least = rounds * 10 + 3.2
    assert least - 1e-9 <= trace.duration <= least + 0.16 + 1e-9
    # ceil: the minibatch under way is finished.
    assert trace.publications[-1].step == -(-125 * (rounds - 1) // 2) + 20
    assert trace.skipped == ()


def test_the_paper_waits_in_synchronous_variants_only() -> None:
    """Per round and client r + f = 4.2 s for the server, none of it after the last round."""
    sync = DistillationPlan("sync", reverse_steps=20, forward_steps=20)
    waits = distillation_trace(PAPER, sync, participants=3, rounds=5, seed=0).idle
    assert {i.waiting_for for i in waits} == {"server"}
    assert sum(i.t_end - i.t_start for i in waits) == pytest.approx(3 * 4 * 4.2)
    for policy in ("round", "continuous", "none"):
        plan = DistillationPlan(policy, reverse_steps=20)
        assert distillation_trace(PAPER, plan, participants=3, rounds=5, seed=0).idle == ()


def test_no_distillation_server_is_a_trace_of_averagings_alone() -> None:
    trace = distillation_trace(PAPER, DistillationPlan("none", 1), participants=3, rounds=5, seed=0)
    assert [a.t for a in trace.aggregations] == pytest.approx([10, 20, 30, 40, 50])
    assert (trace.segments, trace.publications, trace.skipped) == ((), (), ())
    assert trace.duration == trace.aggregations[-1].t
    assert instructions(trace) == ()


# ------------------------------------------------------------------------------------ properties

HUNDREDTHS = st.integers(0, 100).map(lambda n: n / 100)
ANY_COST = st.builds(
    CostModel,
    client_seconds=st.integers(1, 200).map(lambda n: n / 7),
    communication_seconds=HUNDREDTHS,
    reverse_ratio=st.integers(1, 300).map(lambda n: n / 90),
    forward_ratio=HUNDREDTHS,
    speed_spread=HUNDREDTHS,
    link_spread=HUNDREDTHS,
    straggler_probability=HUNDREDTHS,
    straggler_factor=st.integers(2, 12).map(lambda n: n / 2),
    dropout_probability=st.integers(0, 60).map(lambda n: n / 100),
    timeout_seconds=st.integers(1, 60).map(float),
)


@st.composite
def settings_of_runs(draw: st.DrawFn) -> dict[str, Any]:
    buffer_size, participants = draw(st.integers(0, 6)), draw(st.integers(1, 6))
    policies = POLICIES[1:] if buffer_size else POLICIES
    policy = draw(st.sampled_from(policies))
    forward = draw(st.integers(0, 5)) if policy == "sync" else 0
    return {
        "cost": draw(ANY_COST),
        "plan": DistillationPlan(policy, draw(st.integers(1, 9)), forward),
        "participants": participants,
        "rounds": draw(st.integers(1, 8)),
        "seed": draw(st.integers(0, 99)),
        "fraction": 1.0 if buffer_size else draw(st.integers(1, 10)) / 10,
        "buffer_size": buffer_size,
        "one_by_one": 0 < buffer_size <= participants and draw(st.booleans()),
    }


RUN = settings_of_runs()


@given(RUN)
@settings(deadline=None, max_examples=60)
def test_aggregations_are_possible(run: dict[str, Any]) -> None:
    """Versions in order of time, each of arrived jobs from versions that existed; nobody does two
    things at once; no job is done twice or left out."""
    trace = distillation_trace(**run)
    made = {0: 0.0}
    jobs: dict[int, list[Job]] = {}
    for number, aggregation in enumerate(trace.aggregations, 1):
        assert aggregation.version == number
        assert aggregation.t >= made[number - 1]
        for job in aggregation.jobs + aggregation.lost:
            assert made[job.base_version] <= job.t_start + 1e-9
            assert job.t_start <= job.t_compute <= job.t_upload <= job.t_end <= aggregation.t + 1e-9
            jobs.setdefault(job.participant, []).append(job)
        assert not any(job.lost for job in aggregation.jobs)
        assert all(job.lost for job in aggregation.lost)
        if run["buffer_size"]:
            assert len(aggregation.jobs) == run["buffer_size"]
        if run["one_by_one"]:
            assert len({job.participant for job in aggregation.jobs}) == len(aggregation.jobs)
        made[number] = aggregation.t
    for own in jobs.values():
        own.sort(key=lambda job: job.index)
        assert [job.index for job in own] == list(range(len(own)))
        for earlier, later in pairwise(own):
            assert earlier.t_end <= later.t_start + 1e-9


@given(RUN)
@settings(deadline=None, max_examples=60)
def test_the_server_does_one_thing_at_a_time_with_the_newest_version(run: dict[str, Any]) -> None:
    trace = distillation_trace(**run)
    arrivals = [a.t for a in trace.aggregations]
    step, t = 0, 0.0
    for segment in trace.segments:
        assert segment.t_start >= t - 1e-9
        assert segment.first_step == step
        newest = sum(arrival <= segment.t_start + 1e-9 for arrival in arrivals)
        assert 1 <= segment.teacher_version <= newest
        if run["plan"].policy != "sync":
            assert segment.teacher_version == newest
        step += segment.steps if segment.kind == "reverse" else 0
        t = segment.t_end
    last = [s for s in trace.segments if s.kind == "reverse"][-1]
    assert last.teacher_version == run["rounds"]
    assert last.steps == run["plan"].reverse_steps
    taught = {s.teacher_version for s in trace.segments if s.kind == "reverse"}
    assert taught | set(trace.skipped) == set(range(1, run["rounds"] + 1))
    assert not taught & set(trace.skipped)


@given(RUN)
@settings(deadline=None, max_examples=60)
def test_publications_show_the_steps_completed(run: dict[str, Any]) -> None:
    trace = distillation_trace(**run)
    ends = [
        s.t_start + k * (s.t_end - s.t_start) / s.steps
        for s in trace.segments
        if s.kind == "reverse"
        for k in range(1, s.steps + 1)
    ]
    assert [p.round for p in trace.publications] == list(range(1, run["rounds"] + 1))
    for publication in trace.publications:
        assert publication.step == sum(end <= publication.t + 1e-7 for end in ends)
    assert trace.publications[-1].step == len(ends)
    assert trace.publications[-1].t == trace.duration


@given(RUN)
@settings(deadline=None, max_examples=60)
def test_instructions_are_the_segments_and_publications(run: dict[str, Any]) -> None:
    """Done in order, they make the same steps with the same teachers and show the same models."""
    trace = distillation_trace(**run)
    steps: list[tuple[str, int]] = []
    shown, done = [], 0
    for instruction in instructions(trace):
        if instruction.kind == "publish":
            shown.append((instruction.round, done))
            continue
        assert instruction.steps > 0
        steps += [(instruction.kind, instruction.teacher_version)] * instruction.steps
        done += instruction.steps if instruction.kind == "reverse" else 0
    assert steps == [(s.kind, s.teacher_version) for s in trace.segments for _ in range(s.steps)]
    assert shown == [(p.round, p.step) for p in trace.publications]


def test_a_publication_divides_a_segment() -> None:
    """Slow server, steps of 10 s from 10.25 on: version 2 (20.5) is shown after 1 step, 3 after
    2."""
    plan = DistillationPlan("round", reverse_steps=5)
    cost = COSTS["very slow server"]
    trace = distillation_trace(cost, plan, participants=2, rounds=3, seed=0)
    assert instructions(trace) == (
        Instruction("publish", round=1),
        Instruction("reverse", 1, 1),
        Instruction("publish", round=2),
        Instruction("reverse", 1, 4),
        Instruction("reverse", 3, 5),
        Instruction("publish", round=3),
    )


@given(RUN, st.integers(1, 7))
@settings(deadline=None, max_examples=60)
def test_more_rounds_only_add_to_a_run(run: dict[str, Any], more: int) -> None:
    """Prefix property: a longer run starts exactly as a shorter one; what the distillation server
    did before the shorter run's last version came is the same, too."""
    short = distillation_trace(**run)
    longer = distillation_trace(**{**run, "rounds": run["rounds"] + more})
    assert longer.aggregations[: run["rounds"]] == short.aggregations
    t = short.aggregations[-1].t
    assert [s for s in longer.segments if s.t_end < t] == [s for s in short.segments if s.t_end < t]
    assert longer.publications[: run["rounds"] - 1] == short.publications[:-1]


@given(RUN)
@settings(deadline=None, max_examples=60)
def test_work_and_waiting_fill_the_time_of_synchronous_rounds(run: dict[str, Any]) -> None:
    trace = distillation_trace(**{**run, "buffer_size": 0})
    end, participants = trace.aggregations[-1].t, run["participants"]
    jobs = [job for a in trace.aggregations for job in a.jobs + a.lost]
    spans = [(j.participant, j.t_start, j.t_end) for j in jobs]
    spans += [(i.participant, i.t_start, i.t_end) for i in trace.idle]
    for participant in range(participants):
        own = sorted(span[1:] for span in spans if span[0] == participant)
        assert own[0][0] == 0
        assert own[-1][1] == pytest.approx(end)
        for (_, before), (after, _) in pairwise(own):
            assert before == pytest.approx(after)
    total = sum(t_end - t_start for _, t_start, t_end in spans)
    assert total == pytest.approx(participants * end)


@given(RUN)
@settings(deadline=None, max_examples=60)
def test_nobody_waits_with_a_buffer(run: dict[str, Any]) -> None:
    plan = replace(run["plan"], policy="round")
    buffered = {**run, "plan": plan, "buffer_size": run["buffer_size"] or 2, "fraction": 1.0}
    buffered["one_by_one"] = False
    assert distillation_trace(**buffered).idle == ()


def test_whom_a_participant_waits_for() -> None:
    """Jobs of 4 s and 10 s, then 3 s of the server, then 5 s and 5 s; participant 2 is chosen for
    the second round only, where it needs 2 s."""

    def job(participant: int, index: int, start: float, end: float) -> Job:
        return Job(participant, index, 0, start, start, end, end)

    first = Aggregation(1, 10.0, (job(0, 0, 0.0, 4.0), job(1, 0, 0.0, 10.0)))
    second = Aggregation(2, 18.0, (job(0, 1, 13.0, 18.0), job(2, 0, 13.0, 15.0)))
    waits = idle_times([first, second], 3, rounds=True)
    assert [(i.participant, i.t_start, i.t_end, i.waiting_for) for i in waits] == [
        (0, 4.0, 10.0, "clients"),
        (0, 10.0, 13.0, "server"),
        (1, 10.0, 18.0, "server"),
        (2, 0.0, 13.0, "server"),
        (2, 15.0, 18.0, "clients"),
    ]


# ------------------------------------------------------------------------------- draws and limits

UNEVEN = replace(
    PAPER, speed_spread=0.5, link_spread=0.5, straggler_probability=0.2, dropout_probability=0.1,
    communication_seconds=1.0,
)  # fmt: skip


@pytest.mark.parametrize("buffer_size", [0, 2])
def test_everything_follows_from_the_seed(buffer_size: int) -> None:
    plan = DistillationPlan("continuous", reverse_steps=5)

    def trace(seed: int) -> Trace:
        return distillation_trace(
            UNEVEN, plan, participants=4, rounds=6, seed=seed, buffer_size=buffer_size
        )

    assert trace(1) == trace(1)
    assert trace(1) != trace(2)


def test_a_job_does_not_depend_on_how_many_others_there_are() -> None:
    """The first two participants of four and of two have the same fates and speeds."""
    plan = DistillationPlan("none", 1)
    cost = replace(UNEVEN, dropout_probability=0.0)

    def jobs(participants: int) -> set[Job]:
        trace = distillation_trace(cost, plan, participants=participants, rounds=1, seed=5)
        return {j for a in trace.aggregations for j in a.jobs if j.participant < 2}

    assert jobs(2) == jobs(4)


def test_fates_have_their_probabilities() -> None:
    """Of 2000 jobs 10 % are lost and of the rest 20 % take 5 times 10 s. Both counts lie within 4
    standard deviations: sqrt(2000 x 0.1 x 0.9) = 13 and sqrt(1800 x 0.2 x 0.8) = 17."""
    even = replace(PAPER, straggler_probability=0.2, dropout_probability=0.1)
    plan = DistillationPlan("none", 1)
    trace = distillation_trace(even, plan, participants=20, rounds=100, seed=0)
    lost = sum(len(a.lost) for a in trace.aggregations)
    came = [job for a in trace.aggregations for job in a.jobs]
    assert abs(lost - 200) < 4 * 13
    assert lost + len(came) == 2000
    slow = [job for job in came if job.t_end - job.t_start == pytest.approx(50)]
    assert all(j.t_end - j.t_start == pytest.approx(10) for j in came if j not in slow)
    assert abs(len(slow) - 0.2 * len(came)) < 4 * 17
    assert all(j.t_end - j.t_start == pytest.approx(60) for a in trace.aggregations for j in a.lost)


def test_devices_keep_their_speed() -> None:
    """Log-normal with sigma 0.5: the mean logarithm of 400 speeds is 0 and their deviation 0.5,
    within 4 standard errors (0.025 and 0.018)."""
    plan = DistillationPlan("none", 1)
    cost = replace(PAPER, speed_spread=0.5)
    trace = distillation_trace(cost, plan, participants=400, rounds=2, seed=0)
    first, second = ([(j.t_upload - j.t_compute) / 10 for j in a.jobs] for a in trace.aggregations)
    assert first == pytest.approx(second)
    logs = [math.log(speed) for speed in first]
    mean = sum(logs) / len(logs)
    assert abs(mean) < 4 * 0.025
    assert abs(math.sqrt(sum((x - mean) ** 2 for x in logs) / len(logs)) - 0.5) < 4 * 0.018


def test_a_link_takes_half_for_the_way_there_and_half_back() -> None:
    plan = DistillationPlan("none", 1)
    cost = replace(PAPER, communication_seconds=3.0)
    trace = distillation_trace(cost, plan, participants=1, rounds=1, seed=0)
    assert trace.aggregations[0].jobs == (Job(0, 0, 0, 0.0, 1.5, 11.5, 13.0),)


@pytest.mark.parametrize(
    ("participants", "fraction", "size"),
    [(10, 1.0, 10), (10, 0.5, 5), (10, 0.01, 1), (3, 0.5, 2), (1, 0.1, 1), (4, 0.99, 4)],
)
def test_cohort_sizes(participants: int, fraction: float, size: int) -> None:
    for round_ in range(1, 5):
        chosen = cohort(participants, fraction, 0, round_)
        assert chosen == sorted(set(chosen))
        assert len(chosen) == size
        assert set(chosen) <= set(range(participants))
        # Flower's records and the names of random streams take Python's numbers only.
        assert all(type(participant) is int for participant in chosen)


def test_cohorts_change_and_reach_everybody() -> None:
    cohorts = [tuple(cohort(10, 0.3, 7, round_)) for round_ in range(1, 41)]
    assert len(set(cohorts)) > 20
    # Everybody's share: 40 rounds x 0.3 = 12, standard deviation sqrt(40 x 0.3 x 0.7) = 2.9.
    counts = [sum(p in chosen for chosen in cohorts) for p in range(10)]
    assert all(abs(n - 12) < 4 * 2.9 for n in counts)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("client_seconds", 0.0, "client-seconds=0.0 must be above 0"),
        ("client_seconds", float("nan"), "client-seconds=nan must be finite and above 0"),
        ("client_seconds", float("inf"), "client-seconds=inf must be finite and above 0"),
        ("reverse_ratio", 0.0, "reverse-ratio=0.0 must be above 0"),
        ("timeout_seconds", -1.0, "timeout-seconds=-1.0 must be above 0"),
        ("communication_seconds", -0.1, "communication-seconds=-0.1 must be at least 0"),
        ("forward_ratio", -0.1, "forward-ratio=-0.1 must be at least 0"),
        ("speed_spread", -0.1, "speed-spread=-0.1 must be at least 0"),
        ("link_spread", -0.1, "link-spread=-0.1 must be at least 0"),
        ("straggler_factor", 0.9, "straggler-factor=0.9 must be at least 1"),
        ("straggler_probability", 1.1, "straggler-probability=1.1 must be between 0 and 1"),
        ("dropout_probability", 1.0, r"dropout-probability=1.0 must be in \[0, 1\)"),
    ],
)
def test_costs_that_cannot_be_are_named(name: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PAPER, **{name: value})


def test_every_cost_is_checked() -> None:
    for item in fields(CostModel):
        with pytest.raises(ValueError, match=item.name.replace("_", "-")):
            CostModel(**{**asdict(PAPER), item.name: float("nan")})
