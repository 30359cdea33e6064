"""Local training: which jobs a host is to do, and what each has brought.

Several jobs ride in one message, since a model travels once then. Each of them can be read without
the others: what is wrong with one is nobody else's fault.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from strategies.messages.codec import CONFIG

Key = tuple[int, int]  # (participant, index of its job)

GRADIENT = "gradient"  # what the array of `TrainReply.vectors` is called, where it is asked for


@dataclass(frozen=True)
class TrainOrder:
    """Do these jobs, each from the model in `arrays`: the index-th job of a participant, which
    names its random batches.

    learning_rate: of their steps, which follows from the version that they start from. arrays:
    weights (p,) and buffers (q,); with a mail-precision other than float32 the parts of
    `precision.rounded` in place of the weights.
    """

    participants: list[int]
    indices: list[int]
    learning_rate: float
    arrays: dict[str, np.ndarray]

    @property
    def jobs(self) -> list[Key]:
        return list(zip(self.participants, self.indices, strict=True))


def jobs_of(content: Mapping[str, Any]) -> list[Key]:
    """The jobs of an order of our own, without a look at its arrays."""
    order = content[CONFIG]
    return list(zip(order["participants"], order["indices"], strict=True))


@dataclass
class TrainReply:
    """What jobs have brought.

    numbers: examples, loss, seconds. vectors: weights and buffers; none with secure aggregation,
    where the change that training has made is kept for the sum; with a mail-precision other than
    float32 the parts of that change in place of the weights; with distill.calibrate GRADIENT, that
    of the last layer (c, d + 1) before training. errors: why a job has brought nothing.
    """

    numbers: dict[Key, Mapping[str, float]] = field(default_factory=dict)
    vectors: dict[Key, Mapping[str, np.ndarray]] = field(default_factory=dict)
    errors: dict[Key, str] = field(default_factory=dict)

    def add(
        self,
        job: Key,
        *,
        examples: int,
        loss: float,
        seconds: float,
        vectors: Mapping[str, np.ndarray],
    ) -> None:
        """A job is done."""
        self.numbers[job] = {"examples": examples, "loss": loss, "seconds": seconds}
        self.vectors[job] = vectors

    def records(self) -> RecordDict:
        arrays = {_name(n, j): Array(v) for j, own in self.vectors.items() for n, v in own.items()}
        metrics = {_name(n, j): v for j, own in self.numbers.items() for n, v in own.items()}
        errors = {_name("error", job): reason for job, reason in self.errors.items()}
        return RecordDict(
            {
                "arrays": ArrayRecord(arrays),
                "metrics": MetricRecord(metrics),  # type: ignore[arg-type]
                "config": ConfigRecord(errors),  # type: ignore[arg-type]
            }
        )


class JobReply:
    """What a reply, whoever has sent it, has of one job; to be checked before it is used. Raises
    ValueError for what is no reply to training."""

    def __init__(self, content: Mapping[str, Any], job: Key) -> None:
        try:
            self._records = content["arrays"], content["metrics"], content["config"]
        except KeyError as error:
            raise ValueError(f"the reply has no record {error}") from error
        self._job = job

    @property
    def error(self) -> str | None:
        """Why it has brought nothing; None if it has."""
        errors, name = self._records[2], _name("error", self._job)
        return str(errors[name]) if name in errors else None

    def number(self, name: str) -> Any:
        """What is told as `name`, of any type; None if nothing is."""
        return self._records[1].get(_name(name, self._job))

    def has(self, name: str) -> bool:
        """Whether there is an array of that name."""
        return _name(name, self._job) in self._records[0]

    def vector(self, name: str) -> np.ndarray:
        """The array of that name. Raises anything for what cannot be read."""
        return self._records[0][_name(name, self._job)].numpy()


def _name(part: str, job: Key) -> str:
    return f"{part}.{job[0]}.{job[1]}"
