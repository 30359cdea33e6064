"""Which jobs are due and which aggregation is complete: from a trace, or from what really happens.

Both answer the same two questions of the strategy's loop: `due` (jobs to hand out now) and
`complete` (the aggregation to make now, or None); and are told what `arrived`. Pure: time is an
argument.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol

from strategies.schedule import Aggregation, Job, Trace, cohort

# Seconds between the jobs of a participant that keeps failing: 1, 2, 4, ... up to this.
_LONGEST_PAUSE = 60.0


class Rounds(Protocol):
    """The course of a run as the strategy's loop sees it."""

    @property
    def next_index(self) -> tuple[int, ...]:
        """The number of every participant's next job, where that does not follow from versions."""
        ...

    def due(self, version: int, now: float) -> list[Job]:
        """Jobs that can be handed out at `now` when `version` is the newest; each only once."""
        ...

    def expects(self, job: Job) -> bool:
        """Whether `job`, which was due, is still waited for."""
        ...

    def arrived(self, job: Job, now: float, compute_seconds: float, usable: bool) -> bool:
        """`job` is over, with a usable update or without; False if nobody waits for it any more."""
        ...

    def round_of(self, job: Job, making: int) -> int:
        """The version that `job` is for, while version `making` is being made."""
        ...

    def complete(self, version: int, now: float) -> Aggregation | None:
        """The aggregation of version + 1, once all its jobs have arrived."""
        ...

    def bases(self, version: int) -> set[int]:
        """The versions below `version` from which jobs still start or are under way."""
        ...


class Replay:
    """The trace's course. A job is done as soon as its base version exists, in any order; jobs that
    the trace loses are never handed out."""

    def __init__(self, trace: Trace, first_version: int = 0) -> None:
        self._left = list(trace.aggregations[first_version:])
        self._waiting = [job for aggregation in self._left for job in aggregation.jobs]
        self._arrived: set[Job] = set()

    @property
    def next_index(self) -> tuple[int, ...]:
        return ()

    def due(self, version: int, now: float) -> list[Job]:
        due = [job for job in self._waiting if job.base_version <= version]
        self._waiting = [job for job in self._waiting if job.base_version > version]
        return due

    def expects(self, job: Job) -> bool:
        return job not in self._arrived

    def arrived(self, job: Job, now: float, compute_seconds: float, usable: bool) -> bool:
        self._arrived.add(job)
        return True

    def round_of(self, job: Job, making: int) -> int:
        return next(each.version for each in self._left if job in each.jobs)

    def complete(self, version: int, now: float) -> Aggregation | None:
        if self._left and self._arrived.issuperset(self._left[0].jobs):
            return self._left.pop(0)
        return None

    def bases(self, version: int) -> set[int]:
        jobs = [job for aggregation in self._left for job in aggregation.jobs]
        return {job.base_version for job in jobs if job.base_version < version}


class Live:
    """What really happens, in synchronous rounds or with a buffer of `buffer_size` updates.

    A job that has not arrived `timeout` seconds after it was due is given up. It is lost then, as
    one without a usable update is: it fills no buffer, and its participant starts again, after a
    pause that doubles with every failure in a row. Rounds (with a buffer: the jobs of a
    participant) start `pace` seconds after each other, or later; one_by_one: and not before the one
    before is in an aggregation.
    """

    def __init__(
        self,
        *,
        participants: int,
        seed: int,
        fraction: float,
        buffer_size: int,
        timeout: float,
        pace: float = 0.0,
        one_by_one: bool = False,
        first_version: int = 0,
        next_index: Iterable[int] | None = None,
    ) -> None:
        self._participants, self._seed, self._fraction = participants, seed, fraction
        self._buffer_size, self._timeout, self._pace = buffer_size, timeout, pace
        self._one_by_one = one_by_one
        self._next_index = list(next_index or [0] * participants)
        self._under_way: dict[int, Job] = {}
        self._over: list[Job] = []
        # A participant whose jobs fail at once must not be given hundreds a second.
        self._failures = [0] * participants
        self._not_before = [0.0] * participants
        self._started = first_version  # newest version whose round has been started
        self._next_round = 0.0  # not before

    @property
    def next_index(self) -> tuple[int, ...]:
        """The number of every participant's next job."""
        return tuple(self._next_index)

    def due(self, version: int, now: float) -> list[Job]:
        if self._buffer_size:
            waits = {job.participant for job in self._over if not job.lost}
            held = waits if self._one_by_one else set[int]()
            idle = [
                p
                for p in range(self._participants)
                if p not in self._under_way and p not in held and now >= self._not_before[p]
            ]
        elif self._started == version and now >= self._next_round:
            self._started, self._next_round = version + 1, now + self._pace
            idle = cohort(self._participants, self._fraction, self._seed, version + 1)
        else:
            idle = []
        for participant in idle:
            index = self._next_index[participant]
            self._next_index[participant] += 1
            self._under_way[participant] = Job(
                participant, index, version, now, now, now, now, lost=False
            )
        return [self._under_way[participant] for participant in idle]

    def expects(self, job: Job) -> bool:
        return self._under_way.get(job.participant) == job

    def arrived(self, job: Job, now: float, compute_seconds: float, usable: bool) -> bool:
        if not self.expects(job):
            return False  # given up meanwhile
        self._ended(job, now, usable)
        # Only the server's own clock is read; what is not compute time was spent on the way.
        transfer = max(0.0, now - job.t_start - compute_seconds) / 2
        times = {"t_compute": job.t_start + transfer, "t_upload": now - transfer, "t_end": now}
        self._over.append(replace(job, **times, lost=not usable))
        return True

    def _ended(self, job: Job, now: float, usable: bool) -> None:
        """Its participant may start again, after a pause if it has failed."""
        del self._under_way[job.participant]
        failures = 0 if usable else self._failures[job.participant] + 1
        self._failures[job.participant] = failures
        pause = min(_LONGEST_PAUSE, 2.0 ** (failures - 1)) if failures else 0.0
        self._not_before[job.participant] = max(now + pause, job.t_start + self._pace)

    def round_of(self, job: Job, making: int) -> int:
        return making

    def complete(self, version: int, now: float) -> Aggregation | None:
        for job in list(self._under_way.values()):
            if now - job.t_start > self._timeout:
                self._ended(job, now, usable=False)
                self._over.append(replace(job, t_end=now, t_upload=now, lost=True))
        jobs = [job for job in self._over if not job.lost]
        lost = tuple(job for job in self._over if job.lost)
        if self._buffer_size:
            ready = len(jobs) >= self._buffer_size
        else:
            ready = self._started == version + 1 and not self._under_way
        if not ready:
            return None
        # Updates that arrived in the same moment may be more than a buffer takes: they wait.
        size = self._buffer_size or len(jobs)
        self._over = jobs[size:]
        in_order = tuple(sorted(jobs[:size], key=lambda job: (job.participant, job.index)))
        return Aggregation(version + 1, now, in_order, lost)

    def bases(self, version: int) -> set[int]:
        jobs = [*self._under_way.values(), *self._over]
        return {job.base_version for job in jobs if job.base_version < version}
