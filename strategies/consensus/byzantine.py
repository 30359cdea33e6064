"""Nodes that lie to their neighbours, and the clip by which neighbours bear it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from strategies.attacks import FORGERIES
from strategies.consensus.algorithm import Around
from strategies.consensus.node import Node, Tensors
from strategies.consensus.rows import Chosen, Link, Rows
from strategies.randomness import rng


@dataclass(frozen=True)
class Clipped(Around):
    """Self-centred clipping (He, Karimireddy and Jaggi 2022): mail m that lies further than tau
    from the node's own model is taken for the nearest one that does not,

        m <- w_i + min(1, tau / |m - w_i|) (m - w_i)        tau = clip K eta |g|

    tau is the node's own: `clip` times the length of the K = interval local steps that it does
    between two exchanges of an edge, by a running mean over the last K of them, of its own
    gradients. Nothing that a neighbour sends makes it larger, and it shrinks with the step size.

    It is for mail that is a model, or a reflection of one: far from the own model in one step
    means far from everybody honest. For ECL it bounds the anchors themselves, |s_ij - w_i| <= tau,
    and with them what an edge can pull at any time; if only their changes were bounded, a liar
    would lead them away in small steps. In the limit alpha_ij (s_ij - w_i) are shares of the
    node's gradient (see `ecl`): as long as tau leaves them room, the limit is that without a clip.
    Otherwise the clip takes from a node with unusual data a part of its say.
    """

    clip: float
    interval: float

    def start(self, node: Node) -> None:
        super().start(node)
        node.vectors["stride"] = torch.zeros_like(node.weights[:1])

    def step(self, rows: Rows, chosen: Chosen, gradients: torch.Tensor, rate: float) -> None:
        for node, gradient in zip(chosen.nodes, gradients, strict=True):
            stride = gradient.norm().reshape(1) * rate
            node.vectors["stride"].lerp_(stride, 1 / self.interval)
        super().step(rows, chosen, gradients, rate)

    def rescale(self, node: Node, old_rate: float, new_rate: float) -> None:
        node.vectors["stride"].mul_(new_rate / old_rate)
        super().rescale(node, old_rate, new_rate)

    def receive(
        self, rows: Rows, ends: Sequence[Link], seqs: Sequence[int], mails: Sequence[Tensors]
    ) -> None:
        near = [self._near(rows.node(end), mail) for end, mail in zip(ends, mails, strict=True)]
        super().receive(rows, ends, seqs, near)

    def _near(self, node: Node, mail: Tensors) -> Tensors:
        farthest = self.clip * self.interval * float(node.vectors["stride"])
        return {name: _within(farthest, node.weights, vector) for name, vector in mail.items()}


def _within(distance: float, centre: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    length = float((vector - centre).norm())
    return vector if length <= distance else torch.lerp(centre, vector, distance / length)


@dataclass(frozen=True)
class Attacker(Around):
    """A node that works honestly and sends forgeries, see `strategies.attacks`."""

    attack: str
    scale: float
    seed: int

    def message(self, rows: Rows, ends: Sequence[Link], seqs: Sequence[int]) -> Tensors:
        mail = super().message(rows, ends, seqs)
        for vectors in mail.values():
            if vectors.is_floating_point():
                for vector, end, seq in zip(vectors, ends, seqs, strict=True):
                    generator = rng(self.seed, "attack", *end, seq)
                    forged = FORGERIES[self.attack](vector.cpu().numpy(), self.scale, generator)
                    vector.copy_(torch.from_numpy(forged))
        return mail
