"""A small world in which algorithms are tried: quadratics of known optimum, nodes in memory."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from strategies.consensus.algorithm import Algorithm
from strategies.consensus.node import Node
from strategies.consensus.rows import Link, Rows
from strategies.consensus.topology import Topology
from strategies.randomness import rng


class Sent(NamedTuple):
    """A message, and whether it never arrives."""

    sender: int
    receiver: int
    seq: int
    lost: bool = False


@dataclass(frozen=True)
class Tick:
    """Everybody does a local step of size `rate`; then, one exchange after the other, all messages
    of an exchange are formed and then used. `round`: the synchronous round that then ends."""

    rate: float
    exchanges: Sequence[Sequence[Sent]] = ()
    round: int | None = None


@dataclass(frozen=True)
class World:
    """start: w_i(0), (N, p). gradient: (i, w_i) -> p_i times the gradient of f_i, (p,)."""

    topology: Topology
    start: torch.Tensor
    gradient: Callable[[int, torch.Tensor], torch.Tensor]
    ticks: Sequence[Tick]


@dataclass(frozen=True)
class Quadratics:
    """f_i(w) = 1/2 (w - b_i)' H_i (w - b_i), of everybody another one."""

    H: torch.Tensor  # (N, p, p)
    b: torch.Tensor  # (N, p)

    def gradient(self, i: int, w: torch.Tensor) -> torch.Tensor:
        return self.H[i] @ (w - self.b[i])

    def optimum(self, weights: Sequence[float] | None = None) -> torch.Tensor:
        """Of sum_i weights_i f_i; of the plain sum without weights."""
        p = torch.ones(len(self.H)) if weights is None else torch.tensor(weights)
        H = self.H * p.to(self.H.dtype)[:, None, None]
        return torch.linalg.solve(H.sum(0), torch.einsum("npq,nq->p", H, self.b))


def quadratics(
    size: int, parameters: int = 10, condition: float = 2.0, seed: int = 0
) -> Quadratics:
    """Largest curvature 1, smallest 1 / condition; minima about 1 apart in each coordinate."""
    generator = rng(seed, "quadratics")
    H = []
    for _ in range(size):
        Q, _ = np.linalg.qr(generator.standard_normal((parameters, parameters)))
        H.append(Q @ np.diag(generator.uniform(1 / condition, 1, parameters)) @ Q.T)
    b = generator.standard_normal((size, parameters))
    return Quadratics(torch.tensor(np.array(H)), torch.tensor(b))


def random_ticks(
    topology: Topology, number: int, interval: float = 3, loss: float = 0.0, seed: int = 0
) -> Iterator[Tick]:
    """After every local step each edge swaps with probability 1 / interval."""
    generator = rng(seed, "ticks")
    for seq in range(number):
        swaps = []
        for i, j in topology.edges:
            active, *fate = generator.random(3)
            if active < 1 / interval:
                lost = [bool(f < loss) for f in fate]
                swaps.append([Sent(i, j, seq, lost[0]), Sent(j, i, seq, lost[1])])
        yield Tick(0.3, swaps)


def synchronous_ticks(
    topology: Topology, number: int, interval: int = 3, loss: float = 0.0, seed: int = 0
) -> Iterator[Tick]:
    """After every `interval` local steps the active edges of a round swap, all at once."""
    generator = rng(seed, "ticks")
    for step in range(number):
        if (step + 1) % interval:
            yield Tick(0.3)
            continue
        round_ = step // interval
        active = [edge for edge in topology.edges if topology.weight(round_, *edge)]
        both_ways = [*active, *((j, i) for i, j in active)]
        sent = [Sent(i, j, round_, bool(generator.random() < loss)) for i, j in both_ways]
        yield Tick(0.3, [sent], round_)


def started(algorithm: Algorithm, start: torch.Tensor) -> list[Node]:
    nodes = [Node(i, w.clone()) for i, w in enumerate(start)]
    for node in nodes:
        algorithm.start(node)
    return nodes


def go_on(algorithm: Algorithm, nodes: Sequence[Node], world: World) -> Rows:
    """Run from the nodes' states on; returns the matrices of which they are rows from then on."""
    rate = world.ticks[0].rate
    rows = Rows(
        nodes, [list(node.links) for node in nodes], algorithm.row_vectors, algorithm.row_links
    )
    everybody = rows.choose([node.index for node in nodes])
    for tick in world.ticks:
        if tick.rate != rate:
            for node in nodes:
                algorithm.rescale(node, rate, tick.rate)
            rate = tick.rate
        gradients = torch.stack([world.gradient(node.index, node.weights) for node in nodes])
        algorithm.step(rows, everybody, gradients, rate)
        for exchange in tick.exchanges:
            ends = [Link(s.sender, s.receiver) for s in exchange]
            mails = algorithm.message(rows, ends, [s.seq for s in exchange]) if ends else {}
            for number, s in enumerate(exchange):
                if not s.lost:
                    mail = {name: vectors[number] for name, vectors in mails.items()}
                    algorithm.receive(rows, [Link(s.receiver, s.sender)], [s.seq], [mail])
        if tick.round is not None:
            algorithm.mix(rows, everybody, tick.round)
    return rows


def run(algorithm: Algorithm, world: World) -> torch.Tensor:
    """All nodes' models in the end, (N, p)."""
    nodes = started(algorithm, world.start)
    go_on(algorithm, nodes, world)
    return torch.stack([node.weights for node in nodes])


def random_start(size: int, parameters: int = 10) -> torch.Tensor:
    return torch.tensor(rng(1, "start").standard_normal((size, parameters)))


def random_float32(parameters: int, index: int = 0) -> torch.Tensor:
    values = rng(2, "float32", index).standard_normal(parameters)
    return torch.from_numpy(values.astype(np.float32))


def worst(models: torch.Tensor, target: torch.Tensor) -> float:
    """Relative error of the worst node."""
    return float((models - target).norm(dim=1).max() / target.norm())
