"""The trace of a whole run: what the distillation server does between two averages."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from strategies.machines import Machines
from strategies.schedule import (
    EVERYBODY,
    Aggregation,
    CostModel,
    Publication,
    Segment,
    Trace,
    buffered_rounds,
    idle_times,
    synchronous_rounds,
)

# Nobody waits for so many; and a step that is too short for the digits of the clock takes no time.
_MOST_STEPS = 10**8
# Guards the count of whole steps in an interval against the last bit of a float division.
_STEP_TOLERANCE = 1e-9


@dataclass(frozen=True)
class DistillationPlan:
    """How the distillation server works: its policy and its steps a block.

    policy "sync": a block per version while everybody waits. "round": a block per version, nobody
    waits, versions that were overtaken are skipped. "continuous": always a step, always with the
    newest version, changed between minibatches only. "none": no distillation server.
    forward_steps > 0 adds forward distillation after every block, for which everybody waits
    ("sync" alone).
    """

    policy: str
    reverse_steps: int
    forward_steps: int = 0


def distillation_trace(
    cost: CostModel,
    plan: DistillationPlan,
    *,
    participants: int,
    rounds: int,
    seed: int,
    fraction: float = 1.0,
    buffer_size: int = 0,
    one_by_one: bool = False,
    recorded: tuple[Aggregation, ...] = (),
    machines: Machines = EVERYBODY,
) -> Trace:
    """The trace of a whole run; buffer_size > 0 chooses buffered averaging, one_by_one with at most
    one update of each participant in a version. recorded: aggregations
    that have happened, in place of those of the cost model. machines: what devices are like, and
    when they are on.

    Every variant may distil the last version for one block, and the run ends with it, so that no
    variant is shown without its last round. ValueError for a server that would never get through.
    """
    reverse = cost.reverse_ratio * cost.client_seconds
    forward = cost.forward_ratio * cost.client_seconds if plan.forward_steps else 0.0
    if recorded:
        aggregations = recorded
    elif buffer_size:
        aggregations = buffered_rounds(
            cost,
            participants=participants,
            rounds=rounds,
            seed=seed,
            buffer_size=buffer_size,
            one_by_one=one_by_one,
            machines=machines,
        )
    else:
        aggregations = synchronous_rounds(
            cost,
            participants=participants,
            rounds=rounds,
            seed=seed,
            fraction=fraction,
            server_seconds=reverse + forward if plan.policy == "sync" else 0.0,
            machines=machines,
        )
    arrivals = [aggregation.t for aggregation in aggregations]
    if recorded and plan.policy == "sync":
        closest = min((b - a for a, b in pairwise(arrivals)), default=math.inf)
        if closest < reverse + forward - _STEP_TOLERANCE:
            raise ValueError(
                f"in the run that is replayed a round ended {closest:g} s after the one before, "
                f"and the distillation server, for which participants wait, takes "
                f"{reverse + forward:g} s a round: use a smaller cost.reverse-ratio, or "
                f"cost.client-seconds"
            )
    segments = _POLICIES[plan.policy](arrivals, plan, reverse, forward)
    done = [s for s in segments if s.kind == "reverse"]
    last = segments[-1].t_end if segments else arrivals[-1]
    publications = []
    for version, t in enumerate(arrivals, 1):
        if plan.policy == "sync":
            t += reverse
        if version == rounds:
            t = max(last, t)
        publications.append(Publication(version, _steps_done(done, t), t))
    if plan.policy == "none":
        publications = []
    taken = {s.teacher_version for s in done}
    return Trace(
        aggregations,
        tuple(segments),
        tuple(publications),
        idle_times(aggregations, participants, rounds=not buffer_size),
        duration=last,
        skipped=tuple(v for v in range(1, rounds + 1) if v not in taken and done),
    )


def _steps_done(segments: Sequence[Segment], t: float) -> int:
    """Reverse steps completed at time t."""
    over = bisect_right(segments, t, key=lambda segment: segment.t_end)
    done = segments[over - 1].first_step + segments[over - 1].steps if over else 0
    if over < len(segments) and (segment := segments[over]).t_start < t:
        share = (t - segment.t_start) / (segment.t_end - segment.t_start)
        done = segment.first_step + math.floor(share * segment.steps + _STEP_TOLERANCE)
    return done


def _newest(arrivals: Sequence[float], t: float) -> int:
    """The newest version that has arrived at time t; 0 if none has."""
    return bisect_right(arrivals, t + _STEP_TOLERANCE)


def _blocks(
    arrivals: Sequence[float], plan: DistillationPlan, reverse: float, forward: float
) -> list[Segment]:
    """Policies "sync" and "round": whole blocks, each with the newest version at its start.

    They differ in nothing but the arrivals: in "sync" the next round waits, so none is overtaken.
    """
    segments: list[Segment] = []
    t, taken, step = 0.0, 0, 0
    while taken < len(arrivals):
        t = max(t, arrivals[taken])
        taken = _newest(arrivals, t)
        late = _newest(arrivals, t + reverse - 2 * _STEP_TOLERANCE) - taken
        segments.append(Segment("reverse", taken, step, plan.reverse_steps, t, t + reverse, late))
        t, step = t + reverse, step + plan.reverse_steps
        if forward:
            segments.append(Segment("forward", taken, step, plan.forward_steps, t, t + forward))
            t += forward
    return segments


def _continuous(
    arrivals: Sequence[float], plan: DistillationPlan, reverse: float, _: float
) -> list[Segment]:
    """Policy "continuous": from the first version on, step after step with the newest version.

    A version that arrives during a minibatch is taken at the minibatch's end.
    """
    step_seconds = reverse / plan.reverse_steps
    if arrivals[-1] > _MOST_STEPS * step_seconds:
        raise ValueError(
            f"a step of the distillation server lasts {step_seconds:g} s and the run "
            f"{arrivals[-1]:g} s: more than {_MOST_STEPS:,} steps; use a larger cost.reverse-ratio"
        )
    segments: list[Segment] = []
    t, step = arrivals[0], 0
    while True:
        taken = _newest(arrivals, t)
        if taken == len(arrivals):
            steps = plan.reverse_steps
        else:
            wait = max(arrivals[taken] - t, 0.0)
            steps = max(1, math.ceil(wait / step_seconds - _STEP_TOLERANCE))
        end = t + steps * step_seconds
        segments.append(Segment("reverse", taken, step, steps, t, end))
        t, step = end, step + steps
        if taken == len(arrivals):
            return segments


_POLICIES = {
    "sync": _blocks,
    "round": _blocks,
    "continuous": _continuous,
    "none": lambda *_: [],
}


@dataclass(frozen=True)
class Instruction:
    """One thing the distillation server does: "reverse" (steps with teacher_version), "forward"
    (from teacher_version) or "publish" (the global model of round `round`)."""

    kind: str
    teacher_version: int = 0
    steps: int = 0
    round: int = 0


def instructions(trace: Trace) -> tuple[Instruction, ...]:
    """The trace's segments and publications as one sequence: all the distillation server needs.

    A publication comes as soon as its step is done, so it may divide a segment.
    """
    result: list[Instruction] = []
    waiting = list(trace.publications)

    def publish(step: int) -> None:
        while waiting and waiting[0].step <= step:
            result.append(Instruction("publish", round=waiting.pop(0).round))

    for segment in trace.segments:
        version = segment.teacher_version
        if segment.kind == "forward":
            result.append(Instruction("forward", version, segment.steps))
            continue
        step, end = segment.first_step, segment.first_step + segment.steps
        publish(step)
        while step < end:
            until = min(waiting[0].step, end) if waiting else end
            result.append(Instruction("reverse", version, until - step))
            step = until
            publish(step)
    return tuple(result)


def instructions_after(trace: Trace, round_: int) -> tuple[Instruction, ...]:
    """Those of `instructions` that follow the publication of `round_`; of round 0: all."""
    program = instructions(trace)
    done = 1 + next(i for i, each in enumerate(program) if each.round == round_) if round_ else 0
    return program[done:]


@dataclass(frozen=True)
class Schedule:
    """What the trace of a run follows from; see `distillation_trace`."""

    cost: CostModel
    plan: DistillationPlan
    participants: int
    rounds: int
    seed: int
    fraction: float = 1.0
    buffer_size: int = 0
    one_by_one: bool = False
    recorded: tuple[Aggregation, ...] = ()
    machines: Machines = EVERYBODY

    def trace(self) -> Trace:
        """Raises ValueError for costs that cannot be."""
        return distillation_trace(
            self.cost,
            self.plan,
            participants=self.participants,
            rounds=self.rounds,
            seed=self.seed,
            fraction=self.fraction,
            buffer_size=self.buffer_size,
            one_by_one=self.one_by_one,
            recorded=self.recorded,
            machines=self.machines,
        )
