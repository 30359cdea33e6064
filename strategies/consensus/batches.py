"""Many participants at once: what an algorithm does to nodes is done to rows of matrices (see
`rows`), as many of them in one call as the processor is quickest with."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch

from strategies.consensus.algorithm import Algorithm
from strategies.consensus.node import Node, Tensors
from strategies.consensus.participant import Mail, Participant
from strategies.consensus.rows import Link, Rows, as_matrix, column
from strategies.consensus.schedule import Event

# Gradients of (node, number of its step), in order: a matrix, or vectors one after the other, each
# of which may be overwritten by its receiver and is good until the next one is asked for.
Gradients = Callable[[Sequence[tuple[Node, int]]], Iterable[torch.Tensor]]

# Of a CPU: numbers of a vector that are worked on at once, and of a row, from which on it is
# quicker to work on rows one by one than to gather those that do not follow each other.
_AT_ONCE = 2**20
_LONG = 2**13


class Due(NamedTuple):
    """What happens to a node next."""

    participant: Participant
    event: Event


class Batches:
    """The nodes of a host as rows, and the calls of their algorithms.

    most: rows that are worked on in one call. By default all of them on a GPU, which is paid for
    calls; on a CPU, which is paid for memory, too, as many as its caches hold.
    """

    def __init__(self, participants: Sequence[Participant], most: int | None = None) -> None:
        self._rows = _rows_of(participants)
        self.most = most or _rows_at_once(participants)
        self._one_by_one = any(_long(p.node.weights) for p in participants)

    def refresh(self, participant: Participant) -> None:
        """Its vectors or links have been made anew: they become parts of matrices, too."""
        self._rows[participant.node.index].refresh(participant.node)

    def step(self, due: Sequence[Due], gradients: Gradients) -> None:
        """A local step of everybody."""
        for rows, algorithm, group in self._groups(due):
            due_steps = [(p.node, event.seq) for p, event in group]
            found = as_matrix(gradients(due_steps), len(group))
            weights = [p.weight for p, _ in group]
            if any(weight != 1.0 for weight in weights):
                found.mul_(column(weights, found))
            chosen = rows.choose([p.node.index for p, _ in group])
            algorithm.step(rows, chosen, found, group[0].participant.rate)
            for participant, _ in group:
                participant.tally.steps += 1

    def messages(self, due: Sequence[Due]) -> Iterator[tuple[Due, Tensors]]:
        """What everybody sends to its event's peer, with which it has a link."""
        for rows, algorithm, group in self._groups(due):
            ends = [Link(p.node.index, event.peer) for p, event in group]
            found = algorithm.message(rows, ends, [event.seq for _, event in group])
            rows_of = {name: each.unbind() for name, each in found.items()}
            for number, each in enumerate(group):
                yield each, {name: vectors[number] for name, vectors in rows_of.items()}

    def receive(self, due: Sequence[Due], mails: Sequence[Mail]) -> None:
        """Everybody uses its mail; at most one of each receiver."""
        mail_of = {each.participant.node.index: mail for each, mail in zip(due, mails, strict=True)}
        for rows, algorithm, group in self._groups(due):
            device = rows.weights.device  # carriers know the CPU alone
            ends = [Link(p.node.index, event.peer) for p, event in group]
            vectors = [
                {name: vector.to(device) for name, vector in mail_of[end.node].vectors.items()}
                for end in ends
            ]
            algorithm.receive(rows, ends, [event.seq for _, event in group], vectors)

    def mix(self, due: Sequence[Due], round_: int) -> None:
        """Everybody takes the average of a synchronous round."""
        for rows, algorithm, group in self._groups(due):
            algorithm.mix(rows, rows.choose([p.node.index for p, _ in group]), round_)

    def _groups(self, due: Sequence[Due]) -> Iterator[tuple[Rows, Algorithm, list[Due]]]:
        """Those with one algorithm, as many as are worked on at once."""
        groups: dict[int, list[Due]] = defaultdict(list)
        for each in due:
            groups[id(each.participant.algorithm)].append(each)
        for group in groups.values():
            first = group[0].participant
            rows = self._rows[first.node.index]
            for part in _runs(group) if self._one_by_one else [group]:
                for begin in range(0, len(part), self.most):
                    yield rows, first.algorithm, part[begin : begin + self.most]


def _rows_of(participants: Iterable[Participant]) -> dict[int, Rows]:
    """Make the nodes of each algorithm rows of matrices; returns these by node."""
    groups: dict[int, list[Participant]] = defaultdict(list)
    for participant in participants:
        groups[id(participant.algorithm)].append(participant)
    found = {}
    for group in groups.values():
        algorithm = group[0].algorithm
        names = algorithm.row_vectors, algorithm.row_links
        rows = Rows([p.node for p in group], [p.neighbours for p in group], *names)
        found |= {p.node.index: rows for p in group}
    return found


def _rows_at_once(participants: Iterable[Participant]) -> int:
    weights = [participant.node.weights for participant in participants]
    if not weights or weights[0].device.type != "cpu":
        return max(1, len(weights))
    most = max(1, _AT_ONCE // max(1, len(weights[0])))
    blocks = math.ceil(len(weights) / most)
    return math.ceil(len(weights) / blocks)  # of equal size


def _long(weights: torch.Tensor) -> bool:
    return weights.device.type == "cpu" and len(weights) >= _LONG


def _runs(group: Sequence[Due]) -> Iterator[list[Due]]:
    """Those whose rows follow each other, together; of mail every one, as the links' rows differ,
    too."""
    run: list[Due] = []
    for due in group:
        follows = run and due.participant.node.index == run[-1].participant.node.index + 1
        if run and not (follows and due.event.peer < 0):
            yield run
            run = []
        run.append(due)
    if run:
        yield run
