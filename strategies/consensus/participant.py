"""A node in a run: what came to it, what it has sent, what it counts. No schedule, no carrier."""

from dataclasses import dataclass, field
from typing import NamedTuple

from strategies.consensus.algorithm import Algorithm
from strategies.consensus.node import Node, Tensors
from strategies.consensus.settling import SETTLING, bring_in

MODEL = "model"  # the vector of a mail with which a node invites one that has only just come
NEWCOMER = -1  # the number of a mail that asks for a model, and of its answer, in the real clock


class Mail(NamedTuple):
    """What `sender` sent to `receiver` as its message number `seq`, at `sent` on the run's clock"""

    sender: int
    receiver: int
    seq: int
    vectors: Tensors
    sent: float = 0.0

    @property
    def settles(self) -> bool:
        """Whether it is of the settling and not of the training."""
        return SETTLING in self.vectors

    @property
    def size(self) -> int:
        """Bytes of the vectors."""
        return sum(v.numel() * v.element_size() for v in self.vectors.values())


@dataclass
class Tally:
    """What a node has done: local steps, mails sent (and their bytes), mails that were lost, came
    twice or too late, and were used, with the sum of their ages in seconds of the run's clock."""

    steps: int = 0
    messages: int = 0
    bytes: int = 0
    lost: int = 0
    duplicates: int = 0
    used: int = 0
    age: float = 0.0

    def __add__(self, other: "Tally") -> "Tally":
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Tally(*(a + b for a, b in pairs))


@dataclass
class Participant:
    """A node and all that the schedule needs to know of it; nothing else survives a window.

    neighbours: in the topology, whether or not they are there.
    weight: p_i of the objective sum_i p_i f_i; its gradients are multiplied with it.
    rate: eta, the size of its local steps.
    received: by neighbour, the number of its last mail that was used; heard: when that was.
    cursor: how many events of the window are over. mail: what has come and is not yet due.
    late: what it has sent on the real clock and is on its way still, and when that is to arrive.
    settles: whether it has begun to settle.
    """

    node: Node
    algorithm: Algorithm
    neighbours: tuple[int, ...] = ()
    weight: float = 1.0
    rate: float = 0.0
    received: dict[int, int] = field(default_factory=dict)
    heard: dict[int, float] = field(default_factory=dict)
    cursor: int = 0
    mail: dict[tuple[int, int], Mail] = field(default_factory=dict)
    late: list[tuple[float, Mail]] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    settles: bool = False

    def change_rate(self, rate: float) -> None:
        """Change the size of the local steps; at the border of a window, for all nodes at once."""
        if rate != self.rate and self.rate:
            self.algorithm.rescale(self.node, self.rate, rate)
        self.rate = rate

    def settle(self, *, guest: bool) -> None:
        """End the training, and begin with the algorithm that has taken its place; as a guest, if
        the own model is not to count. What is still on its way is of no use any more."""
        self.settles = True
        self.node.weights.copy_(self.node.published)
        self.algorithm.start(self.node)
        if not guest:
            bring_in(self.node)
        self.mail = {key: mail for key, mail in self.mail.items() if mail.settles}
        self.late.clear()

    def accept(self, mail: Mail, t: float) -> bool:
        """Take note of `mail`; whether it is newer than what has been used already."""
        j = mail.sender
        if mail.seq <= self.received.get(j, -1):
            self.tally.duplicates += 1
            return False
        if j not in self.node.links:  # it was given up as silent, and is back
            self.algorithm.connect(self.node, j)
        self.received[j], self.heard[j] = mail.seq, t
        self.tally.used += 1
        # Devices' clocks are some milliseconds apart; and no mail is older than the run.
        age = min(max(0.0, t - mail.sent), max(0.0, t))
        self.tally.age += age
        self.node.ages[j] = age * self.tally.steps / t if t > 0 else 0.0  # in steps, as in the mean
        return True

    def part(self) -> None:
        """Forget all links, until the neighbours are heard: at the beginning nobody knows who is
        there, and the anchor of one who is not would hold the model where it began."""
        for j in list(self.node.links):
            self.algorithm.disconnect(self.node, j)
        self.heard.clear()

    def drop_silent(self, t: float, silence: float) -> list[int]:
        """Forget the links to neighbours from whom nothing has come for `silence` seconds: the
        anchor of a dead neighbour would pull to the wrong point for ever. Returns whom."""
        gone = [j for j in self.node.links if t - self.heard.get(j, 0.0) > silence]
        for j in gone:
            self.algorithm.disconnect(self.node, j)
        return gone
