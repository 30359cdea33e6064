"""What differential privacy a run's recorded jobs leave its participants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fl_app.record.metrics import Event, of_kind
from strategies.privacy import epsilon

if TYPE_CHECKING:
    from fl_app.config import RunConfig

# The fields of summary.json's "privacy"; null for a kind that is off.
FIELDS = ("delta", "clients", "clients_if_sampled", "samples")


def spent(events: Sequence[Event], config: RunConfig) -> list[Event]:
    """The event "privacy" of a run that has any; [] otherwise. It has, besides delta:

    - clients: epsilon of a whole participant's data towards whoever sees the models; of the one
      that has contributed to most averages, whoever may know who contributed to which
    - clients_if_sampled: the same if nobody knows who contributed when, and each participant takes
      part in a round by a coin of its own of probability `fraction-train`
    - samples: {participant: epsilon} of a single image towards whoever sees the participant's
      updates, the server included; for all its jobs as if it had had as few images as in the one
      with the fewest, which is never less than what was spent. On the real clock its jobs are all
      that were handed out to it, whatever became of them
    """
    privacy = config.privacy
    if not privacy.on:
        return []
    event: Event = {"event": "privacy", **dict.fromkeys(FIELDS), "delta": privacy.delta}
    if privacy.of_clients:
        contributions = _jobs(events, config, {"ok"})
        rounds = len(of_kind(events, "round")) + _repeated(events, config)
        z = privacy.noise_multiplier
        event["clients"] = epsilon(z, 1.0, max(contributions.values(), default=0), privacy.delta)
        event["clients_if_sampled"] = epsilon(
            z, config.cohort / config.participants, rounds, privacy.delta
        )
    if privacy.samples:
        # Whatever became of an update, it has left the participant. The virtual clock does not let
        # a job begin that it is to lose.
        shown = {"ok", "rejected", "error"} | (set() if config.virtual else {"lost"})
        jobs = Counter(_jobs(events, config, shown)) | _handed_out(events)  # of both, the greater
        fewest: dict[int, int] = {}  # a device's own data may change from job to job
        for job in of_kind(events, "job"):
            if job["examples"]:
                participant = job["participant"]
                fewest[participant] = min(job["examples"], fewest.get(participant, job["examples"]))
        event["samples"] = {
            str(participant): epsilon(
                privacy.sample_noise_multiplier,
                # Of a participant that never had a good update nobody knows how much data it has.
                min(1.0, config.batch_size / fewest.get(participant, 1)),
                count * config.local_steps,
                privacy.delta,
            )
            for participant, count in sorted(jobs.items())
        }
    return [event]


def _jobs(events: Sequence[Event], config: RunConfig, statuses: set[str]) -> Mapping[int, int]:
    """How many jobs that ended so each participant has done."""
    jobs = Counter(e["participant"] for e in of_kind(events, "job") if e["status"] in statuses)
    # One more may be under way when the last model is made.
    more = _repeated(events, config) + (1 if config.buffered else 0)
    return {participant: count + more for participant, count in jobs.items()}


def _handed_out(events: Sequence[Event]) -> Counter[int]:
    """How many jobs of each participant have begun on the real clock, also those of which a kill
    has left no record: any number of a fast one may have been in a buffer that was not full."""
    return Counter(p for told in of_kind(events, "handed_out") for p in told["participants"])


def _repeated(events: Sequence[Event], config: RunConfig) -> int:
    """How many rounds at most a resumed run has done twice. In the virtual clock they were the same
    to the bit, and told nothing new."""
    resumed = len(of_kind(events, "resumed"))
    return 0 if config.virtual else resumed * config.checkpoint_every


def described(event: Event) -> dict[str, Any] | None:
    """The event as summary.json has it; None of a run without."""
    return {name: event[name] for name in FIELDS} if event else None
