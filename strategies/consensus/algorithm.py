"""What an algorithm does to nodes. Pure: no schedule, no network, no files."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from strategies.consensus.node import Node, Tensors
from strategies.consensus.rows import Chosen, Link, Rows


class Algorithm(Protocol):
    """A decentralised algorithm: hyper-parameters and the topology, no state of any node.

    Who steps and who sends when, sequence numbers, duplicates and silent neighbours are the host's
    business (see `host`). What happens often is done to many nodes in one call, whose vectors are
    rows of matrices; a row has the same bits alone and among others. `row_vectors` and `row_links`
    name the vectors that have to be rows; the others stay with the nodes.
    """

    @property
    def row_vectors(self) -> tuple[str, ...]: ...

    @property
    def row_links(self) -> tuple[str, ...]: ...

    def start(self, node: Node) -> None:
        """Make `node.vectors`, and a link to every neighbour, from node.weights alone."""

    def connect(self, node: Node, j: int) -> None:
        """Neighbour j is new, or is back: a fresh link that corrects nothing yet."""

    def disconnect(self, node: Node, j: int) -> None:
        """Neighbour j is gone: forget its link."""

    def step(self, rows: Rows, chosen: Chosen, gradients: torch.Tensor, rate: float) -> None:
        """One local step of size `rate` of the chosen nodes with gradients (k, p), which may be
        overwritten."""

    def message(self, rows: Rows, ends: Sequence[Link], seqs: Sequence[int]) -> Tensors:
        """What goes from each end to its peer now: matrices with a row for each, which share no
        memory with the nodes."""
        ...

    def receive(
        self, rows: Rows, ends: Sequence[Link], seqs: Sequence[int], mails: Sequence[Tensors]
    ) -> None:
        """Take in what has come to each end from its peer as its message of that number; no node is
        among them twice, and `mails` are left unchanged."""

    def mix(self, rows: Rows, chosen: Chosen, round_: int) -> None:
        """End synchronous round `round_` at the chosen nodes: combine what was received in it, and
        forget that."""

    def rescale(self, node: Node, old_rate: float, new_rate: float) -> None:
        """The size of the local steps changes, at every node at once."""

    def lengths(
        self, parameters: int, sender: int, receiver: int, seq: int
    ) -> dict[str, tuple[int, torch.dtype]]:
        """The vectors of a valid mail: name -> (length, dtype)."""
        ...


@dataclass(frozen=True)
class Around:
    """An algorithm as it is; subclasses change what they are about."""

    inner: Algorithm

    @property
    def row_vectors(self) -> tuple[str, ...]:
        return self.inner.row_vectors

    @property
    def row_links(self) -> tuple[str, ...]:
        return self.inner.row_links

    def start(self, node: Node) -> None:
        self.inner.start(node)

    def connect(self, node: Node, j: int) -> None:
        self.inner.connect(node, j)

    def disconnect(self, node: Node, j: int) -> None:
        self.inner.disconnect(node, j)

    def step(self, rows: Rows, chosen: Chosen, gradients: torch.Tensor, rate: float) -> None:
        self.inner.step(rows, chosen, gradients, rate)

    def message(self, rows: Rows, ends: Sequence[Link], seqs: Sequence[int]) -> Tensors:
        return self.inner.message(rows, ends, seqs)

    def receive(
        self, rows: Rows, ends: Sequence[Link], seqs: Sequence[int], mails: Sequence[Tensors]
    ) -> None:
        self.inner.receive(rows, ends, seqs, mails)

    def mix(self, rows: Rows, chosen: Chosen, round_: int) -> None:
        self.inner.mix(rows, chosen, round_)

    def rescale(self, node: Node, old_rate: float, new_rate: float) -> None:
        self.inner.rescale(node, old_rate, new_rate)

    def lengths(
        self, parameters: int, sender: int, receiver: int, seq: int
    ) -> dict[str, tuple[int, torch.dtype]]:
        return self.inner.lengths(parameters, sender, receiver, seq)
