"""A host runs its nodes along their timelines; what they send each other goes through mail.

Nodes depend on each other by mail alone, so a host may run them in any order that gives nobody a
mail before it was sent: every node's own events happen in the order of its timeline, and the
results are the same bits for any number of hosts. For the real clock, which has no timelines, see
`free_host`.

The nodes are rows of matrices, see `rows`, and go on in supersteps: those of a block, rows that
follow each other, whose next event is a step take it together, each at a time of its own, block by
block as they are due; then their mail is written and used in waves: all that can be written now,
then at most one mail of each receiver, until nothing moves.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch

from strategies.carriers.exchange import Exchange
from strategies.consensus.batches import Batches, Due, Gradients
from strategies.consensus.node import Tensors
from strategies.consensus.participant import MODEL, Mail, Participant
from strategies.consensus.schedule import Event, Kind

# Of what a listener is told, what happens to a node or a link now and then.
INCIDENTS = ("down", "up", "silent", "returned")
HAPPENINGS = (*INCIDENTS, "step", "send", "lost", "receive", "drop", "duplicate")
# Told of what happens: (t, what, node, peer or None, when a mail was sent or None).
Listener = Callable[[float, str, int, int | None, float | None], None]

_WRITES = (Kind.SEND, Kind.LOST)
_NEEDS_MAIL = (Kind.RECEIVE, Kind.ADOPT)


def _deaf(*_: object) -> None:
    pass


class Host:
    """Runs participants along timelines.

    initial: by node, the model that it has when it starts with nothing.
    silence: seconds after which a silent neighbour is dropped.
    adopts: whether a node that has nothing takes over a neighbour's model. Not where neighbours may
    lie: there it begins as everybody did, and no one's word moves it by more than the clip lets it.
    most: rows of a block, which are worked on in one call; see `Batches`.
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
        most: int | None = None,
    ) -> None:
        self._participants = {p.node.index: p for p in participants}
        self._gradients, self._initial = gradients, initial
        self._exchange, self._silence = exchange, silence
        self._adopts = adopts
        self._tell = listener
        self._batches = Batches(list(self._participants.values()), most)
        self._block = {node: k // self._batches.most for k, node in enumerate(self._participants)}
        self._timelines: Mapping[int, Sequence[Event]] = {}
        # By block: those whose next event is a step, and when the first of these is due.
        self._ready: dict[int, list[Participant]] = defaultdict(list)
        self._first: dict[int, float] = {}
        self._waiting: set[tuple[int, int, int]] = set()  # mails without which nodes cannot go on
        self._woken: list[Participant] = []  # those whose mail has come since they were looked at

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
        self._timelines = {index: [*timelines[index], _OVER] for index in self._participants}
        self._ready, self._first, self._waiting = defaultdict(list), {}, set()
        lacking = {(s, index, seq) for index, keys in in_flight.items() for s, seq in keys}
        moving = list(self._participants.values())
        while True:
            self._mail(moving)
            due = self._due_first()
            self._steps(due)
            if not due and not (self._waiting or self._missing(lacking)):
                break
            # Others, elsewhere, wait for those who wait here: they go on as soon as they can.
            if not due or self._waiting:
                come = self._collect(0.0 if due else patience)
                if not (due or come):
                    return False
            moving = [participant for participant, _ in due] + self._woken
            self._woken = []
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

    def _next(self, participant: Participant) -> Event:
        return self._timelines[participant.node.index][participant.cursor]

    def _is_ready(self, participant: Participant, t: float) -> None:
        block = self._block[participant.node.index]
        self._ready[block].append(participant)
        self._first[block] = min(t, self._first.get(block, math.inf))

    def _due_first(self) -> list[Due]:
        """Those of the block in which a step is due first; in the order of the rows, which then
        often follow each other."""
        if not self._first:
            return []
        block = min(self._first, key=self._first.__getitem__)
        del self._first[block]
        ready = sorted(self._ready.pop(block), key=lambda participant: participant.node.index)
        return [Due(participant, self._next(participant)) for participant in ready]

    def _steps(self, due: Sequence[Due]) -> None:
        for participant, event in due:
            self._drop_silent(participant, event.t)
        self._batches.step(due, self._gradients)
        for participant, event in due:
            participant.cursor += 1
            self._tell(event.t, "step", participant.node.index, None, None)

    def _mail(self, moving: Sequence[Participant]) -> None:
        """All that is before the next steps, of those who move and those whom their mail wakes."""
        while moving:
            self._write_all(moving)
            receipts: list[tuple[Participant, Mail, float]] = []
            mixes: dict[int, list[Due]] = defaultdict(list)
            acted = []
            for participant in moving:
                event = self._next(participant)
                if event.kind is Kind.STEP:
                    self._is_ready(participant, event.t)
                    continue
                if event is _OVER:
                    continue
                if event.kind in _NEEDS_MAIL and not self._has(participant, event):
                    self._waiting.add((event.peer, participant.node.index, event.seq))
                    continue
                if event.kind is Kind.RECEIVE:
                    mail = participant.mail.pop((event.peer, event.seq))
                    receipts.append((participant, mail, event.t))
                elif event.kind is Kind.MIX:
                    mixes[event.seq].append(Due(participant, event))
                else:
                    _ACTIONS[event.kind](self, participant, event)
                acted.append(participant)
            self._use(receipts)
            for round_, due in mixes.items():
                self._batches.mix(due, round_)
            for participant in acted:
                participant.cursor += 1
            moving, self._woken = acted + self._woken, []

    def _write_all(self, moving: Sequence[Participant]) -> None:
        """All that can be sent before anything else is received."""
        due = []
        for participant in moving:
            while (event := self._next(participant)).kind in _WRITES:
                due.append(Due(participant, event))
                participant.cursor += 1
        for (_, event), mail in self._written(due):
            if event.kind is Kind.SEND:
                self._post(mail)

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
        receiver, key = self._participants[mail.receiver], (mail.sender, mail.receiver, mail.seq)
        receiver.mail[mail.sender, mail.seq] = mail
        if key in self._waiting:
            self._waiting.remove(key)
            self._woken.append(receiver)

    def _post(self, mail: Mail) -> None:
        if mail.receiver in self._participants:
            self._deliver(mail)
        elif self._exchange is not None:
            self._exchange.post(mail)

    # -- mail is written and used ------------------------------------------------------------------

    def _written(self, due: Sequence[Due]) -> Iterator[tuple[Due, Mail]]:
        """The mails that are to be sent or lost; a sender cannot know which, and writing may change
        its state."""
        linked: list[Due] = []
        strangers: list[Due] = []
        for each in due:
            known = each.event.peer in each.participant.node.links
            (linked if known else strangers).append(each)
        for each, vectors in self._batches.messages(linked):
            yield each, self._mail_of(each, vectors)
        for each in strangers:
            # Both ends may have given each other up; whoever hears the other again connects. The
            # greeting corrects nothing.
            algorithm, node, j = each.participant.algorithm, each.participant.node, each.event.peer
            algorithm.connect(node, j)
            self._batches.refresh(each.participant)
            [(_, vectors)] = self._batches.messages([each])
            algorithm.disconnect(node, j)
            self._batches.refresh(each.participant)
            yield each, self._mail_of(each, vectors)

    def _mail_of(self, due: Due, vectors: Tensors) -> Mail:
        """The vectors as mail, which is counted."""
        (participant, event), lost = due, due.event.kind is Kind.LOST
        mail = Mail(participant.node.index, event.peer, event.seq, vectors, event.t)
        participant.tally.messages += 1
        participant.tally.bytes += mail.size
        participant.tally.lost += lost
        self._tell(event.t, "lost" if lost else "send", mail.sender, event.peer, None)
        return mail

    def _use(self, receipts: Sequence[tuple[Participant, Mail, float]]) -> None:
        """Use mail, if it is news: (receiver, mail, time), of each receiver once."""
        used = [
            (Due(participant, Event(t, Kind.RECEIVE, mail.sender, mail.seq)), mail)
            for participant, mail, t in receipts
            if self._accept(participant, mail, t)
        ]
        self._batches.receive([due for due, _ in used], [mail for _, mail in used])

    def _accept(self, participant: Participant, mail: Mail, t: float) -> bool:
        index, j = participant.node.index, mail.sender
        linked = j in participant.node.links
        # Who settles begins without links.
        gone = not linked and not participant.settles and j in participant.heard
        accepted = participant.accept(mail, t)
        if accepted and not linked:
            self._batches.refresh(participant)
        if accepted and gone:
            self._tell(t, "returned", index, j, None)
        self._tell(t, "receive" if accepted else "drop", index, j, mail.sent)
        return accepted

    # -- what else happens to a node ---------------------------------------------------------------

    def _drop_silent(self, participant: Participant, t: float) -> None:
        if math.isinf(self._silence):
            return
        for j in participant.drop_silent(t, self._silence):
            self._tell(t, "silent", participant.node.index, j, None)
            self._batches.refresh(participant)

    def _duplicate(self, participant: Participant, event: Event) -> None:
        participant.tally.duplicates += 1
        self._tell(event.t, "duplicate", participant.node.index, event.peer, event.sent)

    def _down(self, participant: Participant, event: Event) -> None:
        self._tell(event.t, "down", participant.node.index, None, None)

    def _up(self, participant: Participant, event: Event) -> None:
        if participant.settles:  # while it was away the others have settled without its model
            self._begin(participant, event.t)
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
        self._batches.refresh(participant)

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
            self._batches.refresh(participant)

    def _connect(self, participant: Participant, event: Event) -> None:
        if event.peer not in participant.node.links:
            participant.algorithm.connect(participant.node, event.peer)
            self._batches.refresh(participant)
        participant.heard[event.peer] = event.t


_OVER = Event(math.inf, Kind.MIX, seq=-1)  # of a node whose timeline is over
# Functions and not bound methods in each host, which would keep it alive in a cycle.
_ACTIONS: dict[Kind, Callable[[Host, Participant, Event], None]] = {
    Kind.DOWN: Host._down,
    Kind.UP: Host._up,
    Kind.RESTART: Host._restart,
    Kind.INVITE: Host._invite,
    Kind.ADOPT: Host._adopt,
    Kind.DISCONNECT: Host._disconnect,
    Kind.CONNECT: Host._connect,
    Kind.DUPLICATE: Host._duplicate,
}
