"""What an algorithm does to nodes. Pure: no schedule, no network, no files."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from strategies.consensus.node import Node, Vectors
from strategies.consensus.rows import Chosen, Link, Rows


class Algorithm(Protocol):
    """A decentralised algorithm: hyper-parameters and the topology, no state of any node.

    Who steps and who sends when, sequence numbers, duplicates and silent neighbours are the host's
    business (see `host`).
    """

    def start(self, node: Node) -> None:
        """Make `node.vectors`, and a link to every neighbour, from node.weights alone."""

    def connect(self, node: Node, j: int) -> None:
        """Neighbour j is new, or is back: a fresh link that corrects nothing yet."""

    def disconnect(self, node: Node, j: int) -> None:
        """Neighbour j is gone: forget its link."""

    def step(self, node: Node, gradient: torch.Tensor, rate: float) -> None:
        """One local step of size `rate` with `gradient` (p,), which may be overwritten."""

    def message(self, node: Node, j: int, seq: int) -> Vectors:
        """What goes to neighbour j now, in vectors that share no memory with the node."""
        ...

    def receive(self, node: Node, j: int, seq: int, mail: Vectors) -> None:
        """Take in what neighbour j sent as its message number `seq`; `mail` is left unchanged."""

    def mix(self, node: Node, round_: int) -> None:
        """End synchronous round `round_`: combine what was received in it, and forget that."""

    def rescale(self, node: Node, old_rate: float, new_rate: float) -> None:
        """The size of the local steps changes, at every node at once."""

    def lengths(
        self, parameters: int, sender: int, receiver: int, seq: int
    ) -> dict[str, tuple[int, torch.dtype]]:
        """The vectors of a valid mail: name -> (length, dtype)."""
        ...

    # The same for many nodes at once, to the bit, whose vectors are rows of matrices. `row_vectors`
    # and `row_links` name those that have to be; the others stay where they are.
    @property
    def row_vectors(self) -> tuple[str, ...]: ...

    @property
    def row_links(self) -> tuple[str, ...]: ...

    def step_many(self, rows: Rows, chosen: Chosen, gradients: torch.Tensor, rate: float) -> None:
        """One local step of all chosen nodes; gradients (k, p) may be overwritten."""

    def message_many(self, rows: Rows, ends: Sequence[Link], seqs: Sequence[int]) -> Vectors:
        """What goes from each end to its peer now, as matrices with a row for each."""
        ...

    def receive_many(
        self, rows: Rows, ends: Sequence[Link], seqs: Sequence[int], mails: Sequence[Vectors]
    ) -> None:
        """Take in what has come to each end from its peer; no node is among them twice."""

    def mix_many(self, rows: Rows, chosen: Chosen, round_: int) -> None:
        """End synchronous round `round_` at all chosen nodes."""


class OneByOne:
    """Does for many nodes what an algorithm does for each; where that is done at once, the methods
    of the algorithm itself stand in their place."""

    row_vectors: tuple[str, ...] = ()
    row_links: tuple[str, ...] = ()

    def step_many(
        self: Algorithm, rows: Rows, chosen: Chosen, gradients: torch.Tensor, rate: float
    ) -> None:
        for place, gradient in zip(chosen.places, gradients, strict=True):
            self.step(rows.nodes[place], gradient, rate)

    def message_many(
        self: Algorithm, rows: Rows, ends: Sequence[Link], seqs: Sequence[int]
    ) -> Vectors:
        mails = [
            self.message(rows.node(end), end.peer, seq) for end, seq in zip(ends, seqs, strict=True)
        ]
        return {name: torch.stack([mail[name] for mail in mails]) for name in mails[0]}

    def receive_many(
        self: Algorithm,
        rows: Rows,
        ends: Sequence[Link],
        seqs: Sequence[int],
        mails: Sequence[Vectors],
    ) -> None:
        for end, seq, mail in zip(ends, seqs, mails, strict=True):
            self.receive(rows.node(end), end.peer, seq, mail)

    def mix_many(self: Algorithm, rows: Rows, chosen: Chosen, round_: int) -> None:
        for place in chosen.places:
            self.mix(rows.nodes[place], round_)


@dataclass(frozen=True)
class Around(OneByOne):
    """An algorithm as it is; subclasses change what they are about."""

    inner: Algorithm

    def start(self, node: Node) -> None:
        self.inner.start(node)

    def connect(self, node: Node, j: int) -> None:
        self.inner.connect(node, j)

    def disconnect(self, node: Node, j: int) -> None:
        self.inner.disconnect(node, j)

    def step(self, node: Node, gradient: torch.Tensor, rate: float) -> None:
        self.inner.step(node, gradient, rate)

    def message(self, node: Node, j: int, seq: int) -> Vectors:
        return self.inner.message(node, j, seq)

    def receive(self, node: Node, j: int, seq: int, mail: Vectors) -> None:
        self.inner.receive(node, j, seq, mail)

    def mix(self, node: Node, round_: int) -> None:
        self.inner.mix(node, round_)

    def rescale(self, node: Node, old_rate: float, new_rate: float) -> None:
        self.inner.rescale(node, old_rate, new_rate)

    def lengths(
        self, parameters: int, sender: int, receiver: int, seq: int
    ) -> dict[str, tuple[int, torch.dtype]]:
        return self.inner.lengths(parameters, sender, receiver, seq)
