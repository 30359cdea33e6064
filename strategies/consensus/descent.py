"""Local SGD: what every decentralised algorithm here does between two exchanges."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch

from strategies.consensus.node import Node, Tensors
from strategies.consensus.rows import Chosen, Link, Rows, changing
from strategies.consensus.topology import Topology


@dataclass(frozen=True)
class LocalSGD:
    """Local SGD and no exchange at all, and the part that all algorithms have in common.

        M <- beta M + (1 - beta) (g + lambda w)        w <- w - eta M

    The momentum is a running mean and not heavy-ball's sum, whose steps are 1 / (1 - beta) times as
    long: so eta means the same for every beta, and a penalty that is tied to eta stays right.
    Weight decay is part of the gradient, so every node has it and all minimise one objective.

    momentum: beta, in [0, 1); 0 keeps no vector. weight_decay: lambda.
    """

    topology: Topology
    momentum: float
    weight_decay: float

    @property
    def row_vectors(self) -> tuple[str, ...]:
        return ("momentum",) if self.momentum else ()

    @property
    def row_links(self) -> tuple[str, ...]:
        return ()

    def start(self, node: Node) -> None:
        node.vectors = {"momentum": torch.zeros_like(node.weights)} if self.momentum else {}
        node.links = {}
        for j in self.topology.neighbours[node.index]:
            self.connect(node, j)

    def connect(self, node: Node, j: int) -> None:
        node.links[j] = {}

    def disconnect(self, node: Node, j: int) -> None:
        del node.links[j]

    def direction(
        self, weights: torch.Tensor, vectors: Tensors, gradient: torch.Tensor
    ) -> torch.Tensor:
        """M: what to descend along; `gradient` is overwritten. Matrices (k, p)."""
        if self.weight_decay:
            gradient.add_(weights, alpha=self.weight_decay)
        if not self.momentum:
            return gradient
        return vectors["momentum"].lerp_(gradient, 1 - self.momentum)

    def step(self, rows: Rows, chosen: Chosen, gradients: torch.Tensor, rate: float) -> None:
        with self.descent(rows, chosen, gradients, rate):
            pass

    @contextmanager
    def descent(
        self, rows: Rows, chosen: Chosen, gradients: torch.Tensor, rate: float
    ) -> Iterator[torch.Tensor]:
        """The weights (k, p) of the chosen nodes after their steps, to be changed further."""
        with ExitStack() as stack:
            weights = stack.enter_context(changing(rows.weights, chosen.index))
            vectors = {
                name: stack.enter_context(changing(rows.vectors[name], chosen.index))
                for name in self.row_vectors
            }
            weights.add_(self.direction(weights, vectors, gradients), alpha=-rate)
            yield weights

    def message(self, rows: Rows, ends: Sequence[Link], seqs: Sequence[int]) -> Tensors:
        return {}

    def receive(
        self, rows: Rows, ends: Sequence[Link], seqs: Sequence[int], mails: Sequence[Tensors]
    ) -> None:
        pass

    def mix(self, rows: Rows, chosen: Chosen, round_: int) -> None:
        pass

    def rescale(self, node: Node, old_rate: float, new_rate: float) -> None:
        pass

    def lengths(
        self, parameters: int, sender: int, receiver: int, seq: int
    ) -> dict[str, tuple[int, torch.dtype]]:
        return {}
