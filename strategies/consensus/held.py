"""Edge-consensus learning whose corrections are held between two exchanges: ours, in no paper.

In `ECL` an anchor s_ij stands still while the model moves, so that each local step pulls the model
back to where its neighbours were, and what the anchor says of their gradients changes with it. Here
the *offset* a_ij = s_ij - w_i stands still, and models are averaged at once when mail comes:

    local step   w_i  <- w_i - eta M_i + sum_j eta alpha_ij a_ij      a_ij <- (1 - phi eta) a_ij
    message      m_ij  = w_i - a_ij                                   (= 2 w_i - s_ij)
    on receipt   e     = m_ji - w_i - a_ij                            (= m_ji - s_ij)
                 a_ij <- a_ij + theta e       w_i <- w_i + kappa e / 2

In a swap between i and j that nothing disturbs the offsets are opposite, a_ij = -a_ji, so that
e = w_j - w_i: kappa = 1 takes both to the mean of their models, as gossip does, and what is left is
an integral controller, whose corrections grow until models no longer drift apart between swaps.
What mail that is lost or late makes of a_ij + a_ji shrinks by 1 - 2 theta with every swap, and
nothing has to add up. The fixed point is that of `ECL`: w_i = w_j, and sum_j alpha_ij a_ij is p_i
times node i's gradient.

A correction is a difference of gradients at the place where it was learnt. phi says how fast it is
forgotten as the model goes elsewhere, which takes long steps; as they shrink (`cosine`) ever more
is kept, and the limit is exact. phi = 0 is exact with any step.
"""

from dataclasses import dataclass

import torch

from strategies.consensus.descent import LocalSGD
from strategies.consensus.ecl import Penalty
from strategies.consensus.node import Node, Vectors


@dataclass(frozen=True)
class HeldECL(LocalSGD):
    """Edge-consensus learning with held corrections; a node keeps degree + 2 vectors.

    penalty, theta: as in `ECL`. kappa: in [0, 1], how far mail takes the model to the mean of the
    two ends. forget: phi >= 0, per unit of step size; phi eta of an offset is forgotten in a step.
    """

    penalty: Penalty
    theta: float
    kappa: float
    forget: float

    def connect(self, node: Node, j: int) -> None:
        node.links[j] = {"offset": torch.zeros_like(node.weights)}

    def step(self, node: Node, gradient: torch.Tensor, rate: float) -> None:
        super().step(node, gradient, rate)
        for j, link in node.links.items():
            node.weights.add_(link["offset"], alpha=self.penalty.pull(node.index, j, rate))
            if self.forget:
                link["offset"].mul_(max(0.0, 1 - self.forget * rate))

    def message(self, node: Node, j: int, seq: int) -> Vectors:
        return {"reflection": node.weights - node.links[j]["offset"]}

    def receive(self, node: Node, j: int, seq: int, mail: Vectors) -> None:
        offset = node.links[j]["offset"]
        change = (mail["reflection"] - node.weights).sub_(offset)
        offset.add_(change, alpha=self.theta)
        node.weights.add_(change, alpha=self.kappa / 2)

    def rescale(self, node: Node, old_rate: float, new_rate: float) -> None:
        """Keep alpha_ij a_ij, what has been learnt, as alpha_ij changes with eta."""
        if self.penalty.per_rate:
            for link in node.links.values():
                link["offset"].mul_(new_rate / old_rate)

    def lengths(
        self, parameters: int, sender: int, receiver: int, seq: int
    ) -> dict[str, tuple[int, torch.dtype]]:
        return {"reflection": (parameters, torch.float32)}
