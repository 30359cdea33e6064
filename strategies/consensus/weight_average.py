"""A node's model as the running average of its own weights.

With long steps a node moves about the place where all would agree: each local step takes it towards
its own data, each exchange back. An average over time leaves out this motion, at no exchange:

    v_i <- d v_i + (1 - d) w_i after every local step,   d = min(0.995, (1 + n) / (10 + n))

after n of them (Polyak and Juditsky 1992). It cannot take away what is the same at all times: the
nodes of an algorithm that is not exact, such as gossip, lean towards their own data in the mean,
too.
"""

from dataclasses import dataclass

import torch

from strategies.consensus.algorithm import Around
from strategies.consensus.node import AVERAGE, Node
from strategies.consensus.rows import Chosen, Rows, changing

DECAY = 0.995
_STEPS = "averaged"  # n, a vector of length 1


@dataclass(frozen=True)
class Averaged(Around):
    """An algorithm whose nodes keep the running average, too, which is what they publish. Training
    and mail are those of the algorithm, to the bit. A node keeps one vector and a number more."""

    @property
    def row_vectors(self) -> tuple[str, ...]:
        return (*super().row_vectors, AVERAGE, _STEPS)

    def start(self, node: Node) -> None:
        super().start(node)
        node.vectors[AVERAGE] = node.weights.clone()
        node.vectors[_STEPS] = torch.zeros_like(node.weights[:1])

    def step(self, rows: Rows, chosen: Chosen, gradients: torch.Tensor, rate: float) -> None:
        super().step(rows, chosen, gradients, rate)
        with (
            changing(rows.vectors[_STEPS], chosen.index) as steps,
            changing(rows.vectors[AVERAGE], chosen.index) as average,
        ):
            decay = ((1 + steps) / (10 + steps)).clamp(max=DECAY)
            average.lerp_(rows.weights[chosen.index], 1 - decay)
            steps.add_(1)
