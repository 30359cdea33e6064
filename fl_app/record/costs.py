"""What a run has cost each device: seconds, bytes and joules, on the virtual clock."""

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
        off = end - _overlap(machine["on"], end) if machine["on"] is not None else 0.0
        train = transfer = 0.0
        down = up = 0
        for job in jobs:
            lost = job["status"] == _GIVEN_UP
            if lost and job["t_upload"] == job["t_end"]:
                continue  # nobody knows what became of it
            train += job["t_upload"] - job["t_compute"]
            transfer += job["t_compute"] - job["t_start"]
            down += told["model_bytes"]
            if not lost:
                transfer += job["t_end"] - job["t_upload"]
                up += told["model_bytes"]
        idle = max(0.0, end - off - train - transfer)
        seconds = {"train": train, "transfer": transfer, "idle": idle}
        joules = sum(machine[f"{name}_watts"] * time for name, time in seconds.items())
        found.append(
            {f"{name}_seconds": time for name, time in seconds.items()}
            | {"off_seconds": off, "bytes_down": down, "bytes_up": up, "joules": joules}
        )
    return found


def _overlap(times: Iterable[Sequence[float]], end: float) -> float:
    return sum(max(0.0, min(until, end) - begin) for begin, until in times)
