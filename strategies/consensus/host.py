"""A host runs its nodes along their timelines; what they send each other goes through mail.

Nodes depend on each other by mail alone, so a host may run them in any order that gives nobody a
mail before it was sent: every node's own events happen in the order of its timeline, and the
results are the same bits for any number of hosts. For the real clock, which has no timelines, see
`free_host`.
"""

import heapq
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch

from strategies.consensus.algorithm import Algorithm
from strategies.consensus.node import Node, Vectors
from strategies.consensus.schedule import Event, Kind
from strategies.consensus.settling import SETTLING, bring_in

MODEL = "model"  # the vector of a mail with which a node invites one that has only just come
NEWCOMER = -1  # the number of a mail that asks for a model, and of its answer, in the real clock


class Mail(NamedTuple):
    """What `sender` sent to `receiver` as its message number `seq`, at `sent` on the run's clock"""

    sender: int
    receiver: int
    seq: int
    vectors: Vectors
    sent: float = 0.0

    @property
    def settles(self) -> bool:
        """Whether it is of the settling and not of the training."""
        return SETTLING in self.vectors

    @property
    def size(self) -> int:
        """Bytes of the vectors."""
        return sum(v.numel() * v.element_size() for v in self.vectors.values())


class Exchange(Protocol):
    """Carries mail between hosts."""

    def post(self, mail: Mail) -> None:
        """Send; returns at once."""

    def collect(self, patience: float) -> list[Mail]:
        """The mail that has come for this host's nodes since the last call. If there is none, wait
        for some, at most `patience` seconds."""
        ...


# Gradients of (node, number of its step), in order; each may be overwritten by its receiver and is
# good until the next one is asked for.
Gradients = Callable[[Sequence[tuple[Node, int]]], Iterable[torch.Tensor]]


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
        self.tally.age += max(0.0, t - mail.sent)  # devices' clocks are some milliseconds apart
        return True

    def use(self, mail: Mail) -> None:
        """Let the algorithm have `mail`, which was accepted."""
        device = self.node.weights.device  # carriers know the CPU alone
        vectors = {name: vector.to(device) for name, vector in mail.vectors.items()}
        self.algorithm.receive(self.node, mail.sender, mail.seq, vectors)

    def message(self, j: int, seq: int) -> Vectors:
        """What goes to neighbour j now; a greeting that corrects nothing if there is no link."""
        if j in self.node.links:
            return self.algorithm.message(self.node, j, seq)
        # Both ends may have given each other up; whoever hears the other again connects.
        self.algorithm.connect(self.node, j)
        vectors = self.algorithm.message(self.node, j, seq)
        self.algorithm.disconnect(self.node, j)
        return vectors

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


# Of what a listener is told, what happens to a node or a link now and then.
INCIDENTS = ("down", "up", "silent", "returned")
HAPPENINGS = (*INCIDENTS, "step", "send", "lost", "receive", "drop", "duplicate")
# Told of what happens: (t, what, node, peer or None, when a mail was sent or None).
Listener = Callable[[float, str, int, int | None, float | None], None]


def _deaf(*_: object) -> None:
    pass


class Host:
    """Runs participants along timelines.

    initial: by node, the model that it has when it starts with nothing.
    silence: seconds after which a silent neighbour is dropped.
    adopts: whether a node that has nothing takes over a neighbour's model. Not where neighbours may
    lie: there it begins as everybody did, and no one's word moves it by more than the clip lets it.
    """

    def __init__(
        self,
        participants: Iterable[Participant],
        gradients: Gradients,
        *,
        initial: Callable[[int], torch.Tensor],
        exchange: Exchange | None = None,
        silence: float = math.inf,
        adopts: bool = True,
        listener: Listener = _deaf,
    ) -> None:
        self._participants = {p.node.index: p for p in participants}
        self._gradients, self._initial = gradients, initial
        self._exchange, self._silence = exchange, silence
        self._adopts = adopts
        self._tell = listener
        self._waiting: dict[tuple[int, int, int], int] = {}  # mail -> who cannot go on without it
        # Heap of (time, kind, node) of next events: at one moment, all send before any receives.
        self._ready: list[tuple[float, int, int]] = []

    # -- along timelines (the virtual clock) -----------------------------------------------------

    def run(
        self,
        timelines: Mapping[int, Sequence[Event]],
        in_flight: Mapping[int, Iterable[tuple[int, int]]],
        patience: float = 0.0,
    ) -> bool:
        """Run every participant to the end of its timeline, from its cursor on, and wait for the
        mail that is then still on its way to it: it belongs to the state of its receiver.

        Returns False when mail did not come within `patience` seconds; call again to go on.
        """
        self._ready, self._waiting = [], {}
        for index, participant in self._participants.items():
            self._queue(participant, timelines[index])
        lacking = {(s, index, seq) for index, keys in in_flight.items() for s, seq in keys}
        while self._ready or self._waiting or self._missing(lacking):
            while self._ready:
                if self._waiting:  # and others, elsewhere, for them: they go on as soon as they can
                    self._collect(0.0)
                self._go_on(timelines)
            if (self._waiting or self._missing(lacking)) and not self._collect(patience):
                return False
        self._finish(in_flight)
        return True

    def _finish(self, in_flight: Mapping[int, Iterable[tuple[int, int]]]) -> None:
        """The timelines are over; only mail that is still under way is kept."""
        for index, participant in self._participants.items():
            participant.cursor = 0
            keep = set(in_flight.get(index, ()))
            participant.mail = {k: mail for k, mail in participant.mail.items() if k in keep}

    def _missing(self, lacking: set[tuple[int, int, int]]) -> bool:
        return any((s, seq) not in self._participants[r].mail for s, r, seq in lacking)

    def _go_on(self, timelines: Mapping[int, Sequence[Event]]) -> None:
        """The next event of the node that is due first."""
        _, _, index = heapq.heappop(self._ready)
        participant = self._participants[index]
        event = timelines[index][participant.cursor]
        if event.kind in (Kind.RECEIVE, Kind.ADOPT) and not self._has(participant, event):
            self._waiting[event.peer, index, event.seq] = index
            return
        _ACTIONS[event.kind](self, participant, event)
        self._advance(participant, timelines[index])

    def _advance(self, participant: Participant, timeline: Sequence[Event]) -> None:
        participant.cursor += 1
        self._queue(participant, timeline)

    def _queue(self, participant: Participant, timeline: Sequence[Event]) -> None:
        if participant.cursor < len(timeline):
            event = timeline[participant.cursor]
            heapq.heappush(self._ready, (event.t, event.kind, participant.node.index))

    def _has(self, participant: Participant, event: Event) -> bool:
        key = (event.peer, event.seq)
        if key not in participant.mail and self._exchange is not None:
            self._collect(0.0)
        return key in participant.mail

    def _collect(self, patience: float) -> bool:
        """Take in what has come from other hosts; whether anything has."""
        mails = self._exchange.collect(patience) if self._exchange is not None else []
        for mail in mails:
            self._deliver(mail)
        return bool(mails)

    def _deliver(self, mail: Mail) -> None:
        self._participants[mail.receiver].mail[mail.sender, mail.seq] = mail
        waiting = self._waiting.pop((mail.sender, mail.receiver, mail.seq), None)
        if waiting is not None:
            # Its event is in the past of the others by now: it goes first.
            heapq.heappush(self._ready, (-math.inf, Kind.RECEIVE, waiting))

    def _post(self, mail: Mail) -> None:
        if mail.receiver in self._participants:
            self._deliver(mail)
        elif self._exchange is not None:
            self._exchange.post(mail)

    # -- what happens to a node ------------------------------------------------------------------

    def _step(self, participant: Participant, event: Event) -> None:
        for j in participant.drop_silent(event.t, self._silence):
            self._tell(event.t, "silent", participant.node.index, j, None)
        [gradient] = self._gradients([(participant.node, event.seq)])
        self._apply(participant, gradient)
        self._tell(event.t, "step", participant.node.index, None, None)

    def _apply(self, participant: Participant, gradient: torch.Tensor) -> None:
        if participant.weight != 1.0:
            gradient.mul_(participant.weight)
        participant.algorithm.step(participant.node, gradient, participant.rate)
        participant.tally.steps += 1

    def _send(self, participant: Participant, event: Event) -> None:
        self._post(self._write(participant, event, "send"))

    def _lose(self, participant: Participant, event: Event) -> None:
        # The sender cannot know that it is lost, and writing may change its state.
        self._write(participant, event, "lost")
        participant.tally.lost += 1

    def _write(self, participant: Participant, event: Event, what: str) -> Mail:
        vectors = participant.message(event.peer, event.seq)
        return self._written(participant, event, vectors, what)

    def _written(self, participant: Participant, event: Event, vectors: Vectors, what: str) -> Mail:
        node, j = participant.node, event.peer
        mail = Mail(node.index, j, event.seq, vectors, event.t)
        participant.tally.messages += 1
        participant.tally.bytes += mail.size
        self._tell(event.t, what, node.index, j, None)
        return mail

    def _receive(self, participant: Participant, event: Event) -> None:
        self._use(participant, participant.mail.pop((event.peer, event.seq)), event.t)

    def _use(self, participant: Participant, mail: Mail, t: float) -> None:
        if self._accept(participant, mail, t):
            participant.use(mail)

    def _accept(self, participant: Participant, mail: Mail, t: float) -> bool:
        index, j = participant.node.index, mail.sender
        linked = j in participant.node.links or participant.settles  # which begins without links
        gone = not linked and j in participant.heard
        accepted = participant.accept(mail, t)
        if accepted and gone:
            self._tell(t, "returned", index, j, None)
        self._tell(t, "receive" if accepted else "drop", index, j, mail.sent)
        return accepted

    def _duplicate(self, participant: Participant, event: Event) -> None:
        participant.tally.duplicates += 1
        self._tell(event.t, "duplicate", participant.node.index, event.peer, event.sent)

    def _mix(self, participant: Participant, event: Event) -> None:
        participant.algorithm.mix(participant.node, event.seq)

    def _down(self, participant: Participant, event: Event) -> None:
        self._tell(event.t, "down", participant.node.index, None, None)

    def _up(self, participant: Participant, event: Event) -> None:
        # What it has heard is as old as its absence, which is no fault of its neighbours.
        for j in participant.node.links:
            participant.heard[j] = event.t
        self._tell(event.t, "up", participant.node.index, None, None)

    def _restart(self, participant: Participant, event: Event) -> None:
        participant.node.weights.copy_(self._initial(participant.node.index))
        self._begin(participant, event.t)
        self._tell(event.t, "up", participant.node.index, None, None)

    def _begin(self, participant: Participant, t: float) -> None:
        """Start the algorithm from the weights that are there."""
        participant.algorithm.start(participant.node)
        participant.heard = dict.fromkeys(participant.node.links, t)

    def _invite(self, participant: Participant, event: Event) -> None:
        vectors = {MODEL: participant.node.weights.clone()}
        self._post(Mail(participant.node.index, event.peer, event.seq, vectors, event.t))

    def _adopt(self, participant: Participant, event: Event) -> None:
        mail = participant.mail.pop((event.peer, event.seq))
        if self._adopts:
            participant.node.weights.copy_(mail.vectors[MODEL])
            self._begin(participant, event.t)

    def _disconnect(self, participant: Participant, event: Event) -> None:
        if event.peer in participant.node.links:
            participant.algorithm.disconnect(participant.node, event.peer)

    def _connect(self, participant: Participant, event: Event) -> None:
        if event.peer not in participant.node.links:
            participant.algorithm.connect(participant.node, event.peer)
        participant.heard[event.peer] = event.t


# Functions and not bound methods in each host, which would keep it alive in a cycle.
_ACTIONS: dict[Kind, Callable[[Host, Participant, Event], None]] = {
    Kind.STEP: Host._step,
    Kind.DOWN: Host._down,
    Kind.UP: Host._up,
    Kind.RESTART: Host._restart,
    Kind.INVITE: Host._invite,
    Kind.ADOPT: Host._adopt,
    Kind.DISCONNECT: Host._disconnect,
    Kind.CONNECT: Host._connect,
    Kind.SEND: Host._send,
    Kind.LOST: Host._lose,
    Kind.RECEIVE: Host._receive,
    Kind.DUPLICATE: Host._duplicate,
    Kind.MIX: Host._mix,
}
