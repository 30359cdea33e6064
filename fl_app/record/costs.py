"""What a run has cost each device: seconds, bytes and joules, on the virtual clock."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from fl_app.record.metrics import Event, latest, of_kind

_GIVEN_UP = "lost"


def costs(events: Sequence[Event], end: float) -> list[dict[str, Any]] | None:
    """By participant: train_seconds, transfer_seconds, idle_seconds, off_seconds, bytes_down,
    bytes_up and joules (power by its profile, times time). None of a run that knows nothing of its
    devices. Of a job that was given up counts what its device has done until it went off.

    end: of the run, in seconds of its clock.
    """
    told = latest(events, "machines")
    if not told:
        return None
    found = []
    for participant, machine in enumerate(told["machines"]):
        jobs = [job for job in of_kind(events, "job") if job["participant"] == participant]
        on = machine["on"]
        off = end - overlap(on, end) if on is not None else 0.0
        train = transfer = 0.0
        down = up = 0
        for job in jobs:
            sent, goes = job.get("bytes_down", 0), job["t_end"]
            if job["status"] == _GIVEN_UP:
                if not sent:
                    continue  # nobody knows what became of it
                # When its device went off.
                goes = next((until for _, until in on or () if until >= job["t_upload"]), math.inf)
            train += job["t_upload"] - job["t_compute"]
            transfer += job["t_compute"] - job["t_start"]
            down += sent
            up += job.get("bytes_up", 0)
            transfer += min(goes, job["t_end"]) - job["t_upload"]
        idle = max(0.0, end - off - train - transfer)
        seconds = {"train": train, "transfer": transfer, "idle": idle}
        joules = sum(machine[f"{name}_watts"] * time for name, time in seconds.items())
        found.append(
            {f"{name}_seconds": time for name, time in seconds.items()}
            | {"off_seconds": off, "bytes_down": down, "bytes_up": up, "joules": joules}
        )
    return found


def times_on(events: Sequence[Event]) -> dict[int, Sequence[Sequence[float]]]:
    """By participant, when its device is on: (from, until) in seconds; those that always are, are
    not in it."""
    machines = latest(events, "machines").get("machines", ())
    return {p: machine["on"] for p, machine in enumerate(machines) if machine["on"] is not None}


def within(
    begin: float, end: float, times: Sequence[Sequence[float]] | None
) -> list[tuple[float, float]]:
    """The parts of `begin` to `end` that lie in `times`; None: always."""
    if times is None:
        return [(begin, end)]
    parts = ((max(begin, since), min(end, until)) for since, until in times)
    return [(since, until) for since, until in parts if since < until]


def overlap(times: Iterable[Sequence[float]], end: float) -> float:
    """How long of 0 to `end` a device is on, in seconds."""
    return sum(max(0.0, min(until, end) - begin) for begin, until in times)
