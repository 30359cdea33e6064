"""Local SGD: what every decentralised algorithm here does between two exchanges."""

from dataclasses import dataclass

import torch

from strategies.consensus.node import Node, Vectors
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

    def start(self, node: Node) -> None:
        node.vectors = {"momentum": torch.zeros_like(node.weights)} if self.momentum else {}
        node.links = {}
        for j in self.topology.neighbours[node.index]:
            self.connect(node, j)

    def connect(self, node: Node, j: int) -> None:
        node.links[j] = {}

    def disconnect(self, node: Node, j: int) -> None:
        del node.links[j]

    def direction(self, node: Node, gradient: torch.Tensor) -> torch.Tensor:
        """M, (p,): what to descend along; `gradient` is overwritten."""
        if self.weight_decay:
            gradient.add_(node.weights, alpha=self.weight_decay)
        if not self.momentum:
            return gradient
        return node.vectors["momentum"].lerp_(gradient, 1 - self.momentum)

    def step(self, node: Node, gradient: torch.Tensor, rate: float) -> None:
        node.weights.add_(self.direction(node, gradient), alpha=-rate)

    def message(self, node: Node, j: int, seq: int) -> Vectors:
        return {}

    def receive(self, node: Node, j: int, seq: int, mail: Vectors) -> None:
        pass

    def mix(self, node: Node, round_: int) -> None:
        pass

    def rescale(self, node: Node, old_rate: float, new_rate: float) -> None:
        pass

    def lengths(
        self, parameters: int, sender: int, receiver: int, seq: int
    ) -> dict[str, tuple[int, torch.dtype]]:
        return {}
