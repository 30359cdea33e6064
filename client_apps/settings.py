"""What a device is told of a run, beside what each message says."""

from dataclasses import dataclass

from strategies.attacks import attack_of
from strategies.averaging_settings import PrivacySettings
from strategies.consensus.settings import NodesRun
from strategies.problem import Problem


@dataclass(frozen=True)
class TrainingSettings:
    """Local training of a participant, but for its learning rate, which every order says.

    adjust_logits: how far it allows for its own shares of the classes, see `logit_adjustment`.
    attack, attackers, attack_scale: what the last of the participants do to harm the others.
    client_threads: of PyTorch. calibrates: whether the server is told the gradient of the last
    layer, too, see `strategies.distillation.calibration`. privacy: of its samples. virtual: whether
    a seed makes all of it.
    """

    problem: Problem
    virtual: bool
    local_steps: int
    batch_size: int
    momentum: float
    weight_decay: float
    proximal_mu: float
    adjust_logits: float
    client_threads: int
    mail_precision: str
    precision: str
    secure_aggregation: bool
    calibrates: bool
    privacy: PrivacySettings
    attack: str
    attackers: int
    attack_scale: float

    @property
    def seed(self) -> int:
        return self.problem.seed

    def attack_of(self, participant: int) -> str:
        """What `participant` does to harm the others, "" for an honest one."""
        return attack_of(participant, self.problem.participants, self.attack, self.attackers)


@dataclass(frozen=True)
class DeviceSettings:
    """For everything that a device is asked: in the distill system and in the consensus system."""

    training: TrainingSettings
    nodes: NodesRun
