"""What became of jobs: their updates, or why there are none; and the record of both."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from strategies.averaging import Vectors
from strategies.checks import Checked
from strategies.distillation.server_state import Counters
from strategies.distillation.settings import DistillationRun
from strategies.divergence import diverged
from strategies.errors import EdgeFlError
from strategies.recorder import Recorder
from strategies.rules import Update
from strategies.schedule import Aggregation, Job

# When every participant has failed so many times in a row, the run cannot get anywhere.
_HOPELESS = 3

Key = tuple[int, int]  # (participant, index of its job)


@dataclass
class Made:
    """The newest version: what its round tells, the version before it, and the updates of that.
    taught: to the distillation server. told: t is the time of the average, t_small that of what
    forward distillation has made of it, where there is that."""

    told: dict[str, float]
    base: Vectors
    updates: Sequence[Update]
    taught: bool = False


class Outcomes:
    """Keeps what has come until the aggregation that it is for.

    counters: of what the record has.
    """

    def __init__(self, run: DistillationRun, recorder: Recorder) -> None:
        self._run, self._recorder = run, recorder
        self.counters = Counters()
        self._updates: dict[Key, Update] = {}
        self._failed: dict[Key, str] = {}
        self._failures = [0] * run.participants  # in a row
        self._finite = [True] * run.participants  # what the last one that failed has sent

    def take(self, update: Update) -> None:
        """A job has brought this."""
        self._updates[update.job.key] = update

    def reject(self, job: Job, round_: int, result: Checked, device: str) -> None:
        """A job has brought nothing that could be used, which is recorded. device: the name of its
        device, if it has one. Raises DivergedError or EdgeFlError when nobody can go on."""
        reason = result.fault
        self._failed[job.key] = reason
        self._failures[job.participant] += 1
        self._finite[job.participant] = result.finite
        told = f"{device}: {reason}" if device else reason
        self._recorder.emit("rejected", participant=job.participant, round=round_, reason=told)
        if min(self._failures) < _HOPELESS:
            return
        if not any(self._finite):
            where = f"round {round_}, the model of every participant"
            raise diverged(self._run.suspects, "small", where)
        raise EdgeFlError(
            f"every participant has failed {_HOPELESS} times in a row, the last time: {told}"
        )

    def updates(self, jobs: Sequence[Job]) -> list[Update]:
        """What these jobs have brought; to be asked for once."""
        return [self._updates.pop(job.key) for job in jobs if job.key in self._updates]

    def record(
        self,
        aggregation: Aggregation,
        updates: Sequence[Update],
        before: int,
        model_bytes: int,
        update_bytes: int,
    ) -> dict[str, float]:
        """One event per job of the aggregation; returns what its round tells. updates: those that
        are in the next version. before: the version that was the newest. model_bytes, update_bytes:
        of a model that goes to a participant, and of what comes back."""
        for update in updates:
            self._failures[update.job.participant] = 0
        by_job = {update.job.key: update for update in updates}
        rejected = 0
        for job in (*aggregation.jobs, *aggregation.lost):
            reason = self._failed.pop(job.key, "")
            update = by_job.get(job.key)
            status = "lost" if job.lost and not reason else "ok"
            if reason:
                status = "error" if reason.startswith("error: ") else "rejected"
                rejected += 1
            down = model_bytes if self._was_sent(job, status) else 0
            up = update_bytes if self._has_come(status) else 0
            self._recorder.emit(
                "job",
                job=self.counters.jobs,
                round=aggregation.version,
                participant=job.participant,
                index=job.index,
                base_version=job.base_version,
                t_start=job.t_start,
                t_compute=job.t_compute,
                t_upload=job.t_upload,
                t_end=job.t_end,
                status=status,
                loss=update.loss if update else None,
                examples=update.examples if update else None,
                bytes_down=down,
                bytes_up=up,
            )
            self.counters.jobs += 1
            self.counters.bytes_down += down
            self.counters.bytes_up += up
        ages = [before - update.job.base_version for update in updates]
        return {
            "t": aggregation.t,
            "staleness": sum(ages) / len(ages) if ages else 0.0,
            "contributions": len(updates),
            "rejected": rejected,
            "lost": len(aggregation.lost),
            "loss": sum(u.loss for u in updates) / len(updates) if updates else math.nan,
        }

    def _was_sent(self, job: Job, status: str) -> bool:
        """Whether the job's device has got the model. Of a drop-out on the virtual clock, which is
        given up whatever its device does, nobody knows that; but where a device has gone off in the
        midst of a job, it had begun."""
        if status != "lost" or not self._run.virtual:
            return True
        times = self._run.schedule.machines.on.get(job.participant, ())
        return job.t_upload < job.t_end or any(job.t_end == until for _, until in times)

    def _has_come(self, status: str) -> bool:
        """Whether the job's update has reached the server, be it good or not. Whoever leaves a
        secure sum has sent no vector."""
        return status == "ok" or (status == "rejected" and not self._run.secure_aggregation)
