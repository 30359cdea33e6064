"""What events tell of a run of the consensus system: how long it took, and what it did."""

from collections.abc import Sequence
from itertools import pairwise
from statistics import mean, median
from typing import Any

from experiments.benchmarks.turns import Interval, overlap
from experiments.benchmarks.watching import Sampler, epoch_of_run, phases
from fl_app.record.metrics import Event, latest, of_kind
from fl_app.record.run_dir import RunDirectory

WARM_UP_WINDOWS = 1


def steady_state(
    events: Sequence[Event],
    warm_up: int = WARM_UP_WINDOWS,
    *,
    frozen: Sequence[Interval] = (),
    zero: float = 0.0,
) -> dict[str, Any]:
    """What a run did after its first `warm_up` windows, without the time in which it was `frozen`;
    t_wall was zero at `zero` (epoch s).

    seconds: of real time, without evaluation; in_hosts: those of the hosts' windows, by the slowest
    host of each; evaluation; windows; steps and messages of all nodes; start and end (epoch s).
    Raises ValueError when there are no such windows.
    """
    rounds = of_kind(events, "round")
    if len(rounds) <= warm_up:
        raise ValueError(f"{len(rounds)} windows are not more than the {warm_up} that do not count")
    counted, before, last = rounds[warm_up:], rounds[warm_up - 1], rounds[-1]
    ends = [zero + event["t_wall"] for event in (before, *counted)]
    # A host's own clocks go on while it is frozen: where that was while it evaluated or between two
    # windows, they mislead by a turn, which is rare.
    typical = median if frozen else mean
    evaluation = len(counted) * typical(event["seconds_evaluation"] for event in counted)
    gap = len(counted) * typical(
        event["t_wall"] - earlier["t_wall"] - event["seconds"] - event["seconds_evaluation"]
        for earlier, event in pairwise((before, *counted))
    )
    seconds = ends[-1] - ends[0] - overlap(frozen, ends[0], ends[-1]) - evaluation
    return {
        "start": ends[0],
        "end": ends[-1],
        "seconds": seconds,
        "in_hosts": seconds - gap,
        "evaluation": evaluation,
        "windows": len(counted),
        "steps": last["steps"] - before["steps"],
        "messages": last["messages"] - before["messages"],
    }


def startup(
    run: RunDirectory, sampler: Sampler, began: float, submitted: float
) -> dict[str, float]:
    """Seconds of the phases from nothing to the end of the first window, in their order."""
    events, zero = run.events(), epoch_of_run(run)
    first = of_kind(events, "round")[0]
    found = phases(
        began,
        {
            "SuperLink up": submitted,
            "run submitted, simulation process started": sampler.starts["ServerApp and simulation"],
            "ServerApp imported, configuration and data checked": zero,
            "Ray's actors started": sampler.starts["clients"],
            "hosts have their data and know each other": zero + latest(events, "hosts")["t_wall"],
            "first window": zero + first["t_wall"],
        },
    )
    return {
        **found,
        "until the first window has ended": sum(found.values()),
        "of which are training": first["seconds"],
    }
