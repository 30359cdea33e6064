"""The schedule of a run that has really happened, from its record: to be replayed."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from strategies.schedule import Aggregation, Job

_TIMES = ("t_start", "t_compute", "t_upload", "t_end")


def recorded_rounds(
    events: Iterable[Mapping[str, Any]], participants: int, rounds: int
) -> tuple[Aggregation, ...]:
    """The first `rounds` aggregations of a run with these events: who trained from which version,
    when, and whose update was not used, for whatever reason. Their times are the run's.

    Raises ValueError for fewer rounds, for a participant that is none, and for an old record.
    """
    jobs: dict[int, list[Job]] = {}
    times: dict[int, float] = {}
    for event in events:
        if event["event"] == "round":
            times[event["round"]] = float(event["t"])
        elif event["event"] == "job":
            if "index" not in event:
                raise ValueError("it was recorded by an earlier version, without its jobs' numbers")
            job = Job(
                event["participant"], event["index"], event["base_version"],
                *(float(event[name]) for name in _TIMES), lost=event["status"] != "ok",
            )  # fmt: skip
            jobs.setdefault(event["round"], []).append(job)
    missing = [version for version in range(1, rounds + 1) if version not in times]
    if missing:
        raise ValueError(f"it has recorded {missing[0] - 1} rounds, not {rounds}")
    kept = [job for version in range(1, rounds + 1) for job in jobs.get(version, ())]
    if strangers := [job.participant for job in kept if not 0 <= job.participant < participants]:
        raise ValueError(f"it has a participant {strangers[0]}; use participants as it had")
    found = []
    for version in range(1, rounds + 1):
        own = sorted(jobs.get(version, ()), key=lambda job: (job.participant, job.index))
        found.append(
            Aggregation(
                version,
                times[version],
                tuple(job for job in own if not job.lost),
                tuple(job for job in own if job.lost),
            )
        )
    return tuple(found)


def check_one_each(rounds: Iterable[Aggregation]) -> None:
    """Raise ValueError where a participant has two updates in one version."""
    for each in rounds:
        counts = Counter(job.participant for job in each.jobs)
        if twice := [participant for participant, count in counts.items() if count > 1]:
            raise ValueError(
                f"participant {twice[0]} has {counts[twice[0]]} updates in version {each.version}"
            )
