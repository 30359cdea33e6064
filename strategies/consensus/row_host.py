"""A host that moves its nodes in supersteps: all that can step do so in one call, then all mail.

The order of events is that of each node's own timeline, as in `Host`; only events that do not
depend on each other change places, so the results are the same bits. A node that is faster than
another one steps together with it, at a time of its own. Between two steps mail is written and used
in waves: all that can be written now, then at most one mail of each receiver, until nothing moves.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from strategies.consensus.algorithm import Algorithm
from strategies.consensus.host import (
    _ACTIONS,
    Host,
    Mail,
    Participant,
)
from strategies.consensus.node import Node, Vectors
from strategies.consensus.rows import Link, Rows, column
from strategies.consensus.schedule import Event, Kind

# Gradients (k, p) of k nodes at the numbers of their steps; they may be overwritten by their
# receiver and are good until the next ones are asked for.
ManyGradients = Callable[[Sequence[tuple[Node, int]]], torch.Tensor]

_WRITES = (Kind.SEND, Kind.LOST)
_CHANGES = (Kind.RESTART, Kind.ADOPT, Kind.DISCONNECT, Kind.CONNECT)  # a node's vectors or links


class _Due(NamedTuple):
    participant: Participant
    event: Event


class RowHost(Host):
    """`Host` on rows; `gradients` gives those of all nodes that step together as one matrix."""

    def __init__(
        self, participants: Iterable[Participant], gradients: ManyGradients, **options: Any
    ) -> None:
        super().__init__(participants, gradients, **options)
        self._many: ManyGradients = gradients
        self._rows: dict[int, Rows] = {}  # by node
        self._timelines: Mapping[int, Sequence[Event]] = {}
        self._woken: list[Participant] = []  # those whose mail has come since they were looked at

    def run(
        self,
        timelines: Mapping[int, Sequence[Event]],
        in_flight: Mapping[int, Iterable[tuple[int, int]]],
        patience: float = 0.0,
    ) -> bool:
        self._hold()
        self._timelines, self._waiting = timelines, {}
        lacking = {(s, index, seq) for index, keys in in_flight.items() for s, seq in keys}
        moving = list(self._participants.values())
        while True:
            self._mail(moving)
            moving = [p for p in self._participants.values() if self._next(p).kind is Kind.STEP]
            if moving:
                self._steps([_Due(p, self._next(p)) for p in moving])
            elif not (self._waiting or self._missing(lacking)):
                break
            if not self._collect(0.0 if moving else patience) and not moving:
                return False
            moving += self._woken
            self._woken = []
        self._finish(in_flight)
        return True

    # -- rows --------------------------------------------------------------------------------------

    def _hold(self) -> None:
        """Make the nodes of each algorithm rows of matrices."""
        if self._rows:
            return
        groups: dict[int, list[Participant]] = defaultdict(list)
        for participant in self._participants.values():
            groups[id(participant.algorithm)].append(participant)
        for group in groups.values():
            algorithm = group[0].algorithm
            rows = Rows(
                [p.node for p in group],
                [p.neighbours for p in group],
                algorithm.row_vectors,
                algorithm.row_links,
            )
            self._rows |= {p.node.index: rows for p in group}

    def _groups(self, due: Sequence[_Due]) -> Iterable[tuple[Rows, Algorithm, list[_Due]]]:
        groups: dict[int, list[_Due]] = defaultdict(list)
        for each in due:
            groups[id(each.participant.algorithm)].append(each)
        for group in groups.values():
            first = group[0].participant
            yield self._rows[first.node.index], first.algorithm, group

    def _refresh(self, participant: Participant) -> None:
        self._rows[participant.node.index].refresh(participant.node)

    # -- where everybody is ------------------------------------------------------------------------

    def _next(self, participant: Participant) -> Event:
        timeline = self._timelines[participant.node.index]
        return timeline[participant.cursor] if participant.cursor < len(timeline) else _OVER

    def _deliver(self, mail: Mail) -> None:
        receiver = self._participants[mail.receiver]
        receiver.mail[mail.sender, mail.seq] = mail
        if self._waiting.pop((mail.sender, mail.receiver, mail.seq), None) is not None:
            self._woken.append(receiver)

    # -- steps -------------------------------------------------------------------------------------

    def _steps(self, due: Sequence[_Due]) -> None:
        if math.isfinite(self._silence):
            for participant, event in due:
                gone = participant.drop_silent(event.t, self._silence)
                for j in gone:
                    self._tell(event.t, "silent", participant.node.index, j, None)
                if gone:
                    self._refresh(participant)
        for rows, algorithm, group in self._groups(due):
            gradients = self._many([(p.node, e.seq) for p, e in group])
            weights = [p.weight for p, _ in group]
            if any(weight != 1.0 for weight in weights):
                gradients.mul_(column(weights, gradients))
            chosen = rows.choose([p.node.index for p, _ in group])
            algorithm.step_many(rows, chosen, gradients, group[0].participant.rate)
        for participant, event in due:
            participant.cursor += 1
            participant.tally.steps += 1
            self._tell(event.t, "step", participant.node.index, None, None)

    # -- mail between two steps --------------------------------------------------------------------

    def _mail(self, moving: Sequence[Participant]) -> None:
        """All that is before the next steps, of those who move and those whom their mail wakes."""
        while moving:
            self._write_all(moving)
            receipts: list[_Due] = []
            mixes: dict[int, list[_Due]] = defaultdict(list)
            acted = []
            for participant in moving:
                event = self._next(participant)
                if event.kind in (Kind.RECEIVE, Kind.ADOPT) and not self._has(participant, event):
                    key = (event.peer, participant.node.index, event.seq)
                    self._waiting[key] = participant.node.index
                elif event is _OVER or event.kind is Kind.STEP:
                    continue
                elif event.kind is Kind.RECEIVE:
                    receipts.append(_Due(participant, event))
                elif event.kind is Kind.MIX:
                    mixes[event.seq].append(_Due(participant, event))
                else:
                    _ACTIONS[event.kind](self, participant, event)
                    if event.kind in _CHANGES:
                        self._refresh(participant)
                    participant.cursor += 1
                    acted.append(participant)
            self._use_all(receipts)
            for round_, due in mixes.items():
                for rows, algorithm, group in self._groups(due):
                    algorithm.mix_many(rows, rows.choose([p.node.index for p, _ in group]), round_)
            for participant, _ in (*receipts, *(each for due in mixes.values() for each in due)):
                participant.cursor += 1
                acted.append(participant)
            moving, self._woken = acted + self._woken, []

    def _write_all(self, moving: Sequence[Participant]) -> None:
        """All that can be sent before anything else is received."""
        due = []
        for participant in moving:
            while (event := self._next(participant)).kind in _WRITES:
                due.append(_Due(participant, event))
                participant.cursor += 1
        linked = [each for each in due if each.event.peer in each.participant.node.links]
        mails = []
        for rows, algorithm, group in self._groups(linked):
            ends = [Link(p.node.index, e.peer) for p, e in group]
            vectors = algorithm.message_many(rows, ends, [e.seq for _, e in group])
            for number, (participant, event) in enumerate(group):
                own = {name: matrix[number] for name, matrix in vectors.items()}
                mails.append((participant, event, own))
        for participant, event in due:
            if event.peer not in participant.node.links:
                mails.append((participant, event, participant.message(event.peer, event.seq)))
                self._refresh(participant)
        for participant, event, vectors in mails:
            lost = event.kind is Kind.LOST
            mail = self._written(participant, event, vectors, "lost" if lost else "send")
            if lost:
                participant.tally.lost += 1
            else:
                self._post(mail)

    def _use_all(self, receipts: Sequence[_Due]) -> None:
        """Use the mail of receivers, one each."""
        used: list[_Due] = []
        vectors: dict[int, Vectors] = {}  # by receiver
        for participant, event in receipts:
            mail = participant.mail.pop((event.peer, event.seq))
            linked = event.peer in participant.node.links
            if self._accept(participant, mail, event.t):
                device = participant.node.weights.device  # carriers know the CPU alone
                used.append(_Due(participant, event))
                vectors[mail.receiver] = {n: v.to(device) for n, v in mail.vectors.items()}
                if not linked:
                    self._refresh(participant)
        for rows, algorithm, group in self._groups(used):
            ends = [Link(p.node.index, e.peer) for p, e in group]
            mails = [vectors[end.node] for end in ends]
            algorithm.receive_many(rows, ends, [e.seq for _, e in group], mails)


_OVER = Event(math.inf, Kind.MIX, seq=-1)  # of a node whose timeline is over
