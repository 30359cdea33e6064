"""What the distill system is told: its settings, and all that its strategy needs of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from strategies.averaging_settings import AveragingSettings
from strategies.distillation.trace import Schedule
from strategies.errors import ConfigError
from strategies.learning_rate import rate_of
from strategies.problem import Problem
from strategies.ranges import SWITCH, OneOf, Within

SMALL_AVERAGE, SMALL_CALIBRATED = "small-average", "small-calibrated"
SERVER_ALONE, CENTRALIZED = "server-alone", "centralized-large"
UNTRAINED = (SMALL_AVERAGE, SMALL_CALIBRATED)  # which cost nothing but their evaluation


@dataclass(frozen=True)
class Variant:
    """A variant of the distill system: the distillation server's policy and default switches."""

    policy: str
    forward: bool = False
    improved: bool = False  # what the switches that are "auto" become


VARIANTS: dict[str, Variant] = {
    "sync-forward": Variant("sync", forward=True),
    "sync": Variant("sync"),
    "async-round": Variant("round"),
    "async-continuous": Variant("continuous"),
    "async-plus": Variant("continuous", improved=True),
}


@dataclass(frozen=True)
class DistillSettings:
    """What the distillation server does."""

    variant: Annotated[str, OneOf(*VARIANTS)]
    reverse_steps: Annotated[int, Within(1)]
    forward_steps: Annotated[int, Within(1)]
    batch_size: Annotated[int, Within(2)]
    learning_rate: Annotated[float, Within(0, above=True)]
    weight_decay: Annotated[float, Within(0)]
    forward_learning_rate: Annotated[float, Within(0, above=True)]
    temperature: Annotated[float, Within(0, above=True)]
    label_weight: Annotated[float, Within(0)]
    labelled_share: Annotated[float, Within(0, 1, above=True)]
    publish_ema: Annotated[str, OneOf(*SWITCH)]
    lift: Annotated[str, OneOf(*SWITCH)]
    teacher_average: Annotated[str, OneOf(*SWITCH)]
    calibrate: Annotated[str, OneOf(*SWITCH)]
    references: str
    threads: Annotated[int, Within(1)]
    gpu_fraction: Annotated[float, Within(0, 1, above=True)]
    restarts: Annotated[int, Within(0)]


@dataclass(frozen=True)
class DistillationRun:
    """All that `Distillation` and the processes beside it need to know.

    distils: whether there is a distillation server. schedule: of the virtual clock; the real clock
    takes its participants and fraction. policy, forward: of the variant. lift, publish_ema,
    teacher_average, calibrates: the switches, decided. rounds: versions of the small model.
    learning_rate, learning_rate_schedule: of the participants.
    resumed: whether the recorder has a run to go on with. devices: names of the participants'
    devices, () where any node can host any participant; others: names of devices that take no part.
    suspects: by model ("small", "global"), the keys and values that can make it diverge. own_code:
    the digest of code of somebody's own, which must be the same on every host.
    """

    problem: Problem
    averaging: AveragingSettings
    distill: DistillSettings
    schedule: Schedule
    distils: bool
    virtual: bool
    policy: str
    forward: bool
    lift: bool
    publish_ema: bool
    teacher_average: bool
    calibrates: bool
    references: tuple[str, ...]
    rounds: int
    learning_rate: float
    learning_rate_schedule: str
    round_timeout: float
    round_seconds: float
    checkpoint_every: int
    mail_precision: str
    precision: str
    secure_aggregation: bool
    best_metric: str
    stop_patience: int
    resumed: bool
    min_participants: int
    devices: tuple[str, ...]
    others: tuple[str, ...]
    suspects: Mapping[str, Mapping[str, float]]
    own_code: str
    batch_size: int

    @property
    def seed(self) -> int:
        return self.problem.seed

    @property
    def participants(self) -> int:
        return self.problem.participants

    def learning_rate_of(self, version: int) -> float:
        """With which participants train on this version of the small model."""
        return rate_of(self.learning_rate_schedule, self.learning_rate, version + 1, self.rounds)

    @property
    def trained_references(self) -> tuple[str, ...]:
        """Those of the references that are trained, in a process of their own."""
        return tuple(name for name in self.references if name not in UNTRAINED)


def check_references_of_devices(references: Sequence[str]) -> None:
    """Raise ConfigError for a reference that only a simulation can have."""
    if CENTRALIZED in references:
        others = ",".join(name for name in references if name != CENTRALIZED)
        raise ConfigError(
            f"distill.references={CENTRALIZED!r} needs all data in one place, and devices keep "
            f"theirs: use distill.references={others!r}"
        )
