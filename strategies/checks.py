"""What comes from a participant is checked before it is used; what fails is never averaged."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from flwr.app import Message

from strategies.averaging import Vectors
from strategies.messages.training import GRADIENT, JobReply
from strategies.precision import CODES, STEPS, restored
from strategies.rules import Update
from strategies.schedule import Job

_NOT_FINITE = "values that are NaN or infinite"
_LONGEST = 300  # characters of a text that a device has sent
_MOST_IMAGES = 1 << 31


def vector_fault(name: str, value: Any, expected: np.ndarray) -> str | None:
    """Why `value` cannot take the place of `expected`, or None if it can."""
    if not isinstance(value, np.ndarray) or value.dtype != expected.dtype:
        kind = getattr(value, "dtype", type(value).__name__)
        return f"{name} is {kind}, not {expected.dtype}"
    if value.shape != expected.shape:
        return f"{name} has shape {value.shape}, not {expected.shape}"
    if not np.isfinite(value).all():
        return f"{name} has {int((~np.isfinite(value)).sum())} {_NOT_FINITE}"
    return None


@dataclass(frozen=True)
class Checked:
    """A job's result: its update, or the fault because of which there is none; whether that is not
    that its values are not finite; and how many seconds the participant says it trained."""

    job: Job
    update: Update | None = None
    fault: str = ""
    finite: bool = True
    seconds: float = 0.0


def updates_of(
    reply: Message,
    jobs: Sequence[Job],
    model: Vectors,
    precision: str = "float32",
    bases: Mapping[int, Vectors] | None = None,
    gradient: np.ndarray | None = None,
) -> list[Checked]:
    """What a reply brings for each of the jobs that its message asked for.

    model: vectors of the shapes that an update must have. precision: in which weights travel; if
    that is not float32, as changes of the models `bases`, by their versions. gradient: one of the
    shape of the last layer's, which a job must bring, too; None if it need not.
    """
    if reply.has_error():
        return [Checked(job, fault=f"error: {last_line(reply.error.reason)}") for job in jobs]
    try:
        replies = [(job, JobReply(reply.content, job.key)) for job in jobs]
    except ValueError as error:
        return [Checked(job, fault=str(error)) for job in jobs]

    def read(job: Job, told: JobReply, part: str) -> np.ndarray:
        if part != "weights" or precision == "float32":
            return told.vector(part)
        parts = {key: told.vector(key) for key in (CODES, STEPS) if told.has(key)}
        base = (bases or {})[job.base_version][part]
        return base + restored(parts, precision, len(base))

    arrays = model if gradient is None else {**model, GRADIENT: gradient}
    return [_check(job, told, partial(read, job, told), arrays) for job, told in replies]


def _check(job: Job, told: JobReply, read: Callable[[str], np.ndarray], arrays: Vectors) -> Checked:
    if told.error is not None:
        return Checked(job, fault=f"error: {last_line(told.error)}")
    vectors: Vectors = {}
    for part, expected in arrays.items():
        try:
            vectors[part] = read(part)
        except Exception as error:  # whatever a device sends, the server goes on
            return Checked(job, fault=last_line(f"{part} cannot be read: {error!r}"))
        fault = vector_fault(part, vectors[part], expected)
        if fault:
            return Checked(job, fault=fault, finite=not fault.endswith(_NOT_FINITE))
    examples, loss, seconds = (told.number(name) for name in ("examples", "loss", "seconds"))
    if type(examples) is not int or not 1 <= examples < _MOST_IMAGES:  # isinstance takes True
        return Checked(job, fault=f"examples={examples!r:.40} is no number of images")
    for label, value in (("loss", loss), ("seconds", seconds)):
        if not isinstance(value, float) or not math.isfinite(value):
            fault = f"{label}={value!r:.40} is no finite number"
            diverged = label == "loss" and isinstance(value, float)
            return Checked(job, fault=fault, finite=not diverged)
    gradient = vectors.pop(GRADIENT, None)
    return Checked(job, Update(job, examples, loss, vectors, gradient), seconds=max(0.0, seconds))


def last_line(text: str | None, nothing: str = "no reason given") -> str:
    """The last line of an error's text, which names it; tracebacks stand before. It may come from a
    device: at most 300 characters, and none that a terminal would obey."""
    lines = [line for line in (text or "").strip().splitlines() if line.strip()]
    last = lines[-1].strip() if lines else nothing
    return "".join(c if c.isprintable() else "?" for c in last[:_LONGEST])
