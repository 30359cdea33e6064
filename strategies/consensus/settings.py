"""What the consensus system is told: its settings, and all that its two sides need of a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from strategies.arithmetic import ARITHMETICS
from strategies.attacks import attack_of
from strategies.consensus.algorithms import ALGORITHMS, COMPRESSIONS, PENALTIES
from strategies.consensus.own import entry_of
from strategies.consensus.rates import MOMENTUM_FORMS, step_size
from strategies.consensus.topologies import TOPOLOGIES
from strategies.learning_rate import SCHEDULES
from strategies.problem import Problem
from strategies.ranges import SWITCH, OneOf, OneOfOrOwn, Within, words

CARRIERS = ("grid", "sockets", "zenoh")  # of neighbours' mail: see strategies.carriers


@dataclass(frozen=True)
class ConsensusSettings:
    """What the nodes of the consensus system do."""

    algorithm: Annotated[str, OneOfOrOwn("Class", *ALGORITHMS)]
    topology: Annotated[str, OneOfOrOwn("function", *TOPOLOGIES)]
    topology_file: str
    degree: Annotated[int, Within(1)]
    probability: Annotated[float, Within(0, 1)]
    exchange: Annotated[str, OneOf("auto", "random", "synchronous")]
    interval: Annotated[float, Within(1)]
    steps: Annotated[int, Within(1)]
    window: Annotated[int, Within(1, 100_000)]
    settle: Annotated[int, Within(0, 10_000)]
    batch_size: Annotated[int, Within(1)]
    learning_rate: Annotated[float, Within(0, above=True)]
    schedule: Annotated[str, OneOf(*SCHEDULES)]
    momentum: Annotated[float, Within(0, 0.9999)]
    momentum_form: Annotated[str, OneOf(*MOMENTUM_FORMS)]
    weight_decay: Annotated[float, Within(0)]
    augment: bool
    publish_average: bool
    hold: bool
    forget: Annotated[float, Within(0)]
    theta: Annotated[float, Within(0, 1, above=True)]
    kappa: Annotated[float, Within(0, 1)]
    mult: Annotated[float, Within(0, above=True)]
    penalty: Annotated[str, OneOf(*PENALTIES)]
    alpha: Annotated[float, Within(0, above=True)]
    rho: Annotated[float, Within(0)]
    compression: Annotated[str, OneOf(*COMPRESSIONS)]
    keep: Annotated[float, Within(0, 1, above=True)]
    gamma: Annotated[float, Within(0, 1, above=True)]
    weights: Annotated[str, OneOf("equal", "examples")]
    silence_seconds: Annotated[float, Within(0, above=True)]
    references: str
    carrier: Annotated[str, OneOf("auto", *CARRIERS)]
    diagnosis: Annotated[str, OneOf(*SWITCH)]
    encrypt: bool
    engine: Annotated[str, OneOf("auto", "sequential", "stacked", "streams")]
    precision: Annotated[str, OneOf(*ARITHMETICS)]
    step_seconds: Annotated[float, Within(1e-6)]
    speed_spread: Annotated[float, Within(0, 3)]
    delay_seconds: Annotated[float, Within(0)]
    loss: Annotated[float, Within(0, 1)]
    duplication: Annotated[float, Within(0, 1)]
    one_way: bool
    outages: str
    clip: Annotated[float, Within(0)]

    @property
    def reference_list(self) -> tuple[str, ...]:
        return words(self.references)

    @property
    def settling_rounds(self) -> int:
        """Rounds of settling; none where nodes do not exchange. Where mail is clipped, one liar
        could take the average, which has no clip, wherever it likes."""
        return 0 if self.algorithm == "isolated" or self.clip else self.settle

    @property
    def synchronous(self) -> bool:
        """Whether everybody exchanges in rounds; "auto" is what the algorithm is made for."""
        if self.exchange != "auto":
            return self.exchange == "synchronous"
        return entry_of(self.algorithm).exchange == "synchronous"

    @property
    def step_size(self) -> float:
        """eta at a schedule's factor of 1."""
        momentum = entry_of(self.algorithm).overrides.get("momentum", self.momentum)
        return step_size(self.learning_rate, float(momentum), self.momentum_form)


@dataclass(frozen=True)
class NodesRun:
    """What server and hosts both know of a run.

    rounds: windows. adjust_logits: how far nodes allow for their own shares of the classes. attack,
    attackers, attack_scale: what the last of the participants do to harm the others.
    client_threads: of a host.
    """

    problem: Problem
    consensus: ConsensusSettings
    virtual: bool
    rounds: int
    round_timeout: float
    mail_precision: str
    adjust_logits: float
    attack: str
    attackers: int
    attack_scale: float
    client_threads: int

    @property
    def seed(self) -> int:
        return self.problem.seed

    @property
    def participants(self) -> int:
        return self.problem.participants

    def reference_of(self, node: int) -> str:
        """The reference that `node` is; "" for a participant. References are numbered after the
        participants: they train like a node, on all data, and exchange with nobody."""
        position = node - self.participants
        return self.consensus.reference_list[position] if position >= 0 else ""

    def attack_of(self, node: int) -> str:
        """What `node` does to harm the others, "" for an honest one."""
        return attack_of(node, self.participants, self.attack, self.attackers)


@dataclass(frozen=True)
class ConsensusRun:
    """All that `Consensus` needs to know.

    topology: the content of the topology file, "" if there is none. resumed: whether the recorder
    has a run to go on with. devices: names of the participants' devices, () where any node can host
    any participant; others: names of devices that take no part. suspects, own_code: as in the
    distill system.
    """

    nodes: NodesRun
    topology: str
    checkpoint_every: int
    resumed: bool
    min_participants: int
    devices: tuple[str, ...]
    others: tuple[str, ...]
    suspects: Mapping[str, Mapping[str, float]]
    own_code: str
