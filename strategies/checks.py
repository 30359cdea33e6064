"""What comes from a participant is checked before it is used; what fails is never averaged."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import Message

from strategies.averaging import Vectors
from strategies.rules import Update
from strategies.schedule import Job


def vector_fault(name: str, value: Any, expected: np.ndarray) -> str | None:
    """Why `value` cannot take the place of `expected`, or None if it can."""
    if not isinstance(value, np.ndarray) or value.dtype != expected.dtype:
        kind = getattr(value, "dtype", type(value).__name__)
        return f"{name} is {kind}, not {expected.dtype}"
    if value.shape != expected.shape:
        return f"{name} has shape {value.shape}, not {expected.shape}"
    if not np.isfinite(value).all():
        return f"{name} has {int((~np.isfinite(value)).sum())} values that are NaN or infinite"
    return None


def updates_of(
    reply: Message, jobs: Sequence[Job], model: Vectors
) -> list[tuple[Job, Update | None, str, float]]:
    """The reply's (job, update or None, reason why there is none, seconds of training) by job."""
    if reply.has_error():
        reason = f"error: {_last_line(reply.error.reason)}"
        return [(job, None, reason, 0.0) for job in jobs]
    try:
        records = reply.content
        arrays, metrics = records["arrays"], records["metrics"]
        errors = records["config"]
    except KeyError as error:
        return [(job, None, f"the reply has no record {error}", 0.0) for job in jobs]
    return [_update(job, arrays, metrics, errors, model) for job in jobs]


def _update(
    job: Job, arrays: Any, metrics: Mapping[str, Any], errors: Mapping[str, Any], model: Vectors
) -> tuple[Job, Update | None, str, float]:
    who = job.participant
    if f"error.{who}" in errors:
        return job, None, f"error: {errors[f'error.{who}']}", 0.0
    vectors: Vectors = {}
    for name, expected in model.items():
        try:
            value = arrays[f"{name}.{who}"].numpy()
        except (KeyError, ValueError, TypeError) as error:
            return job, None, f"{name} cannot be read: {error!r}", 0.0
        fault = vector_fault(name, value, expected)
        if fault:
            return job, None, fault, 0.0
        vectors[name] = value
    examples, loss, seconds = (metrics.get(f"{n}.{who}") for n in ("examples", "loss", "seconds"))
    if not isinstance(examples, int) or examples < 1:
        return job, None, f"examples={examples!r} is no positive number", 0.0
    if not isinstance(loss, float) or not isinstance(seconds, float) or not np.isfinite(seconds):
        return job, None, f"loss={loss!r} or seconds={seconds!r} is no number", 0.0
    return job, Update(who, job.base_version, examples, loss, vectors), "", max(0.0, seconds)


def _last_line(text: str | None) -> str:
    lines = [line for line in (text or "").strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no reason given"
