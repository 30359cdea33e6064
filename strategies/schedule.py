"""The schedule of a run: who computes what, from which model and when, before the first gradient.

Everything here follows from (seed, cost model) and never from a model's values. A schedule can
therefore be computed up front, executed by any number of workers in parallel, replayed and resumed
with bit-equal results. Times are seconds of the *virtual clock*.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from strategies.machines import Machines
from strategies.randomness import rng

EVERYBODY = Machines()  # alike, and always on

# Seconds and ratios of which sums and products are finite; a factor of e^9 at three sigma.
_LONGEST, _WIDEST = 1e9, 3.0


@dataclass(frozen=True)
class CostModel:
    """What work costs on the virtual clock.

    The times published by Yajima et al. imply reverse_ratio = 0.32 and forward_ratio = 0.10: 406 s
    over 308 s is (c + r) / c, 436 s over 406 s is the share of forward distillation.

    client_seconds: local training of one job on a device of speed 1.
    communication_seconds: download plus upload of one job over a link of speed 1.
    reverse_ratio, forward_ratio: one block of reverse (forward) distillation over client_seconds.
    speed_spread, link_spread: sigma of the log-normal factor of each participant's device (link).
    straggler_probability, straggler_factor: a job's chance to take factor times its compute time.
    dropout_probability: a job's chance to be lost; the server gives it up after timeout_seconds.
    """

    # In words, for the list of keys; `__post_init__` is what checks them.
    client_seconds: Annotated[float, "above 0"]
    communication_seconds: Annotated[float, "0 or more"]
    reverse_ratio: Annotated[float, "above 0"]
    forward_ratio: Annotated[float, "0 or more"]
    speed_spread: Annotated[float, "0 to 3"]
    link_spread: Annotated[float, "0 to 3"]
    straggler_probability: Annotated[float, "0 to 1"]
    straggler_factor: Annotated[float, "1 or more"]
    dropout_probability: Annotated[float, "0 to below 1"]
    timeout_seconds: Annotated[float, "above 0"]

    def __post_init__(self) -> None:
        for name in ("client_seconds", "reverse_ratio", "timeout_seconds"):
            _require(self, name, getattr(self, name) > 0, "above 0")
        for name in ("communication_seconds", "forward_ratio", "speed_spread", "link_spread"):
            _require(self, name, getattr(self, name) >= 0, "at least 0")
        _require(self, "straggler_factor", self.straggler_factor >= 1, "at least 1")
        within = 0 <= self.straggler_probability <= 1
        _require(self, "straggler_probability", within, "between 0 and 1")
        # With 1 no update would ever arrive and an asynchronous run would never end.
        _require(self, "dropout_probability", 0 <= self.dropout_probability < 1, "in [0, 1)")
        for name, value in vars(self).items():
            most = _WIDEST if name.endswith("spread") else _LONGEST
            _require(self, name, value <= most, f"at most {most:g}")


def _require(cost: CostModel, name: str, holds: bool, what: str) -> None:
    value = getattr(cost, name)
    if not math.isfinite(value):
        holds, what = False, f"finite and {what}"
    if not holds:
        raise ValueError(f"{name.replace('_', '-')}={value} must be {what}")


@dataclass(frozen=True)
class Job:
    """One local training: `participant` starts from version `base_version` at `t_start`.

    `index` counts the participant's jobs from 0 and names the job's random batches. The download
    ends at t_compute, training at t_upload, the upload at t_end; a lost job is given up at t_end.
    """

    participant: int
    index: int
    base_version: int
    t_start: float
    t_compute: float
    t_upload: float
    t_end: float
    lost: bool = False

    @property
    def key(self) -> tuple[int, int]:
        """(participant, index): it names the job."""
        return self.participant, self.index


@dataclass(frozen=True)
class Aggregation:
    """Version `version` is made at `t` of the updates of `jobs`; `lost` ones never came."""

    version: int
    t: float
    jobs: tuple[Job, ...]
    lost: tuple[Job, ...] = ()


@dataclass(frozen=True)
class Segment:
    """`steps` minibatches of the distillation server in a row with one teacher.

    kind "reverse": the large model learns from version `teacher_version` of the small one.
    kind "forward": a copy of that version learns from the large model.
    `first_step` is the number of reverse steps done before, `staleness` the number of newer
    versions that were made too late to be this segment's teacher.
    """

    kind: str
    teacher_version: int
    first_step: int
    steps: int
    t_start: float
    t_end: float
    staleness: int = 0


@dataclass(frozen=True)
class Publication:
    """The global model as it is shown for round `round`: after `step` steps, at time `t`."""

    round: int
    step: int
    t: float


@dataclass(frozen=True)
class Idle:
    """`participant` had nothing to do in [t_start, t_end): it waited for clients or server."""

    participant: int
    t_start: float
    t_end: float
    waiting_for: str


@dataclass(frozen=True)
class Trace:
    """A whole run. Aggregations are in order of version 1..rounds, segments in order of time."""

    aggregations: tuple[Aggregation, ...]
    segments: tuple[Segment, ...]
    publications: tuple[Publication, ...]
    idle: tuple[Idle, ...]
    duration: float
    skipped: tuple[int, ...] = ()


class _Devices:
    """The participants' speeds and the fate of their jobs, drawn from the seed."""

    def __init__(
        self, cost: CostModel, participants: int, seed: int, machines: Machines = EVERYBODY
    ) -> None:
        self._cost, self._seed, self._participants = cost, seed, participants
        self._machines = machines
        draw = rng(seed, "devices").standard_normal((participants, 2))
        self._speed = [math.exp(cost.speed_spread * float(z)) for z in draw[:, 0]]
        self._link = [math.exp(cost.link_spread * float(z)) for z in draw[:, 1]]

    def job(self, participant: int, index: int, base_version: int, t: float) -> Job:
        cost = self._cost
        straggles, drops = rng(self._seed, "fate", participant, index).random(2)
        factor = cost.straggler_factor if straggles < cost.straggler_probability else 1.0
        machine = self._machines.machine(participant)
        transfer = cost.communication_seconds / 2 * self._link[participant] / machine.link
        begins, goes = self._machines.next_on(participant, t)
        t_compute = begins + transfer
        seconds = cost.client_seconds * self._speed[participant] * factor / machine.speed
        t_upload = t_compute + seconds
        late = begins > t + cost.timeout_seconds
        if late and not self._machines.some_on(self._participants, t):
            raise ValueError(
                f"after {t:g} s no device is ever on again, and the run is not over: the times in "
                f"the file of `availability` must last longer"
            )
        if drops < cost.dropout_probability or late:
            t_end = t + cost.timeout_seconds
            return Job(
                participant, index, base_version, t, min(t_compute, t_end), t_end, t_end, lost=True
            )
        t_end = t_upload + transfer
        if t_end > goes:  # in the midst of it
            times = begins, min(t_compute, goes), min(t_upload, goes)
            gives_up = max(t + cost.timeout_seconds, goes)
            return Job(participant, index, base_version, *times, gives_up, lost=True)
        return Job(participant, index, base_version, begins, t_compute, t_upload, t_end)


def cohort(participants: int, fraction: float, seed: int, round_: int) -> list[int]:
    """Participants of synchronous round `round_`: a random max(1, round(fraction * n)) of them."""
    size = max(1, round(fraction * participants))
    if size >= participants:
        return list(range(participants))
    chosen = rng(seed, "cohort", round_).choice(participants, size=size, replace=False)
    return sorted(int(p) for p in chosen)


def synchronous_rounds(
    cost: CostModel,
    *,
    participants: int,
    rounds: int,
    seed: int,
    fraction: float = 1.0,
    server_seconds: float = 0.0,
    machines: Machines = EVERYBODY,
) -> tuple[Aggregation, ...]:
    """Rounds in which the server waits for its whole cohort, then works `server_seconds` itself.

    Version v is made when the last job of round v arrives (or is given up); round v + 1 starts
    server_seconds later.
    """
    devices = _Devices(cost, participants, seed, machines)
    counts = [0] * participants
    t, result = 0.0, []
    for version in range(1, rounds + 1):
        jobs = []
        for participant in cohort(participants, fraction, seed, version):
            jobs.append(devices.job(participant, counts[participant], version - 1, t))
            counts[participant] += 1
        arrival = max(job.t_end for job in jobs)
        result.append(_aggregation(version, arrival, jobs))
        t = arrival + server_seconds
    return tuple(result)


def buffered_rounds(
    cost: CostModel,
    *,
    participants: int,
    rounds: int,
    seed: int,
    buffer_size: int,
    one_by_one: bool = False,
    machines: Machines = EVERYBODY,
) -> tuple[Aggregation, ...]:
    """Asynchronous averaging: a version is made of every `buffer_size` updates that arrive.

    A participant starts again at once from the newest version, so nobody ever waits for another.
    one_by_one: it waits until its update is in a version, so that each has one update in it. The
    jobs still under way when the last version is made are not part of the run.
    """
    devices = _Devices(cost, participants, seed, machines)
    counts = [0] * participants
    under_way: list[tuple[float, int, Job]] = []

    def start(participant: int, version: int, t: float) -> None:
        job = devices.job(participant, counts[participant], version, t)
        counts[participant] += 1
        heapq.heappush(under_way, (job.t_end, participant, job))

    for participant in range(participants):
        start(participant, 0, 0.0)
    result: list[Aggregation] = []
    arrived: list[Job] = []
    while len(result) < rounds:
        t, participant, job = heapq.heappop(under_way)
        arrived.append(job)
        free = [participant] if job.lost or not one_by_one else []
        if sum(not job.lost for job in arrived) == buffer_size:
            result.append(_aggregation(len(result) + 1, t, arrived))
            if one_by_one:
                free = [job.participant for job in result[-1].jobs]
            arrived = []
        for participant in free:
            start(participant, len(result), t)
    return tuple(result)


def _aggregation(version: int, t: float, jobs: Sequence[Job]) -> Aggregation:
    return Aggregation(
        version,
        t,
        tuple(job for job in jobs if not job.lost),
        tuple(job for job in jobs if job.lost),
    )


def idle_times(
    aggregations: Sequence[Aggregation], participants: int, *, rounds: bool
) -> tuple[Idle, ...]:
    """Where the participants waited: after its own reply for the other clients until the
    aggregation, then for the server until the participant's next job starts; before its first one
    for the server, too.

    After its last job a participant waits for the end of the round; with buffered averaging
    (rounds=False) it is at work on a job that the run no longer needs.
    """
    idle = []
    jobs: list[list[tuple[Job, float]]] = [[] for _ in range(participants)]
    for aggregation in aggregations:
        for job in aggregation.jobs + aggregation.lost:
            jobs[job.participant].append((job, aggregation.t))
    end = aggregations[-1].t if aggregations else 0.0
    for participant, own in enumerate(jobs):
        own.sort(key=lambda entry: entry[0].t_start)
        t_first = own[0][0].t_start if own else end
        if rounds and t_first > 0:
            idle.append(Idle(participant, 0.0, t_first, "server"))
        for position, (job, t_aggregation) in enumerate(own):
            last = position + 1 == len(own)
            if last and not rounds:
                continue
            t_next = end if last else own[position + 1][0].t_start
            t_aggregated = min(t_aggregation, t_next)
            if t_aggregated > job.t_end:
                idle.append(Idle(participant, job.t_end, t_aggregated, "clients"))
            if t_next > max(t_aggregated, job.t_end):
                idle.append(Idle(participant, max(t_aggregated, job.t_end), t_next, "server"))
    return tuple(idle)
