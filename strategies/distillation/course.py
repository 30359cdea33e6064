"""The course of a run: its trace on the virtual clock, what really happens on the real one."""

from collections.abc import Iterable
from typing import Any

from strategies.distillation.settings import DistillationRun
from strategies.rounds import Live, Replay, Rounds


def machines_of(run: DistillationRun) -> list[dict[str, Any]]:
    """What the participants' devices are like, where that is known."""
    return run.schedule.machines.told(run.participants) if run.virtual else []


def rounds_of(
    run: DistillationRun, version: int = 0, next_index: Iterable[int] | None = None
) -> Rounds:
    """From `version` on, which is there. next_index: of every participant's next job, which the
    trace knows, too."""
    if run.virtual:
        return Replay(run.schedule.trace(), version)
    return Live(
        participants=run.participants,
        seed=run.seed,
        fraction=run.schedule.fraction,
        buffer_size=run.schedule.buffer_size,
        timeout=run.round_timeout,
        pace=run.round_seconds,
        one_by_one=run.schedule.one_by_one,
        first_version=version,
        next_index=next_index,
    )
