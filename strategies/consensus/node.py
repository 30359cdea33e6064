"""What a node is, and what an algorithm does to it. Pure: no schedule, no network, no files."""

from dataclasses import dataclass, field
from typing import Protocol

import torch

Vectors = dict[str, torch.Tensor]


@dataclass
class Node:
    """All that a node's algorithm knows, as flat vectors of the model's p parameters.

    weights: w_i, (p,), updated in place only, since views of it may be elsewhere.
    vectors: what the algorithm keeps for itself, e.g. momentum; (p,) each.
    links: by neighbour j, what it keeps for the edge, e.g. {"anchor": s_ij}; (p,) each, or (1,)
        for a number, which is on the CPU: nobody waits for a GPU to read it.
    """

    index: int
    weights: torch.Tensor
    vectors: Vectors = field(default_factory=dict)
    links: dict[int, Vectors] = field(default_factory=dict)


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


@dataclass(frozen=True)
class Around:
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
