"""Decentralised SGD with the momentum of what a whole round did to a model, mixing included, and
not of the node's own gradients alone.

Where data are unequal, momentum of own gradients multiplies the bias of D-PSGD by 1 / (1 - beta).
The two methods here have, for every beta, the bias that D-PSGD has without momentum and with steps
of (1 - beta) eta: where models stand still, rounds do nothing and their momentum is 0.

Both keep their momentum u in units of the model, so nothing is divided by a step size. Steps are
those of heavy-ball, of length eta = lr / (1 - beta) in the long run for the papers' lr: so eta
means here what it means everywhere (see `LocalSGD`). The papers have one step a round, K = 1.
"""

from dataclasses import dataclass

import torch

from strategies.consensus.baselines import DPSGD
from strategies.consensus.node import Node, Tensors
from strategies.consensus.rows import Chosen, Rows, changing


@dataclass(frozen=True)
class OuterMomentum(DPSGD):
    """What both have in common: "before", the model at the round's beginning, and u."""

    def start(self, node: Node) -> None:
        super().start(node)
        node.vectors = {
            "momentum": torch.zeros_like(node.weights),
            "before": node.weights.clone(),
        }

    @property
    def row_vectors(self) -> tuple[str, ...]:
        return ("momentum", "before")

    def direction(
        self, weights: torch.Tensor, vectors: Tensors, gradient: torch.Tensor
    ) -> torch.Tensor:
        if self.weight_decay:
            gradient.add_(weights, alpha=self.weight_decay)
        return gradient.mul_(1 - self.momentum)

    def restart(self, weights: torch.Tensor, vectors: Tensors) -> None:
        """What the momentum becomes when models have been mixed, and what the models do then; all
        are matrices, as in `direction`."""
        raise NotImplementedError

    def mix(self, rows: Rows, chosen: Chosen, round_: int) -> None:
        super().mix(rows, chosen, round_)
        with (
            changing(rows.weights, chosen.index) as weights,
            changing(rows.vectors["momentum"], chosen.index) as momentum,
            changing(rows.vectors["before"], chosen.index) as before,
        ):
            self.restart(weights, {"momentum": momentum, "before": before})

    def rescale(self, node: Node, old_rate: float, new_rate: float) -> None:
        node.vectors["momentum"].mul_(new_rate / old_rate)


@dataclass(frozen=True)
class QuasiGlobal(OuterMomentum):
    """QG-DSGDm (Lin et al. 2021): momentum approximates that of all nodes' mean.

        w_i <- w_i - beta u_i - (1 - beta) eta g_i                            at each step
        w_i <- sum_j W_ij w_j    u_i <- beta u_i + (1 - beta) (x_i - w_i) / K  at a round's end

    with x_i, the model at the round's beginning.

    interval: K, steps of a round.
    """

    interval: float

    def step(self, rows: Rows, chosen: Chosen, gradients: torch.Tensor, rate: float) -> None:
        with self.descent(rows, chosen, gradients, rate) as weights:
            weights.sub_(rows.vectors["momentum"][chosen.index], alpha=self.momentum)

    def restart(self, weights: torch.Tensor, vectors: Tensors) -> None:
        u, before = vectors["momentum"], vectors["before"]
        before.sub_(weights)
        u.mul_(self.momentum).add_(before, alpha=(1 - self.momentum) / self.interval)
        before.copy_(weights)


@dataclass(frozen=True)
class DecentLaM(OuterMomentum):
    """DecentLaM (Yuan et al. 2021): heavy-ball on what a round without momentum does.

    w_i <- w_i - (1 - beta) eta g_i                                       at each step
    u_i <- beta u_i + x_i - sum_j W_ij w_j    w_i <- x_i - u_i            at a round's end
    """

    def restart(self, weights: torch.Tensor, vectors: Tensors) -> None:
        u, before = vectors["momentum"], vectors["before"]
        u.mul_(self.momentum).add_(before).sub_(weights)
        before.sub_(u)
        weights.copy_(before)
