"""Settling: exchanges without gradients, after which every node has the average of all models.

Node i keeps its own model w_i(0) and moves x_i, which it starts from. That is the consensus problem
min sum_i |x_i - w_i(0)|^2 / 2 under x_i = x_j, solved by PDMM (`ecl`, theta = 1) with one penalty
alpha for all edges, whose local problem has a solution in closed form:

    model        x_i  = (w_i(0) + alpha sum_j s_ij) / (1 + alpha d_i)
    message      m_ij = 2 x_i - s_ij
    on receipt   s_ij <- m_ji, and x_i follows

Its limit is the mean of the w_i(0), exactly, whatever is lost, late or one-way: nothing has to add
up. It is the plain mean, whatever a node's examples count: these are in its gradients already, so
that the plain mean is what moves along sum_i p_i g_i.

Eliminating the anchors of a graph of degree d in which nothing is lost leaves second-order gossip,

    x(t + 1) = (1 + beta) P x(t) - beta x(t - 1)     beta = (alpha d - 1) / (alpha d + 1)

with P = A / d: heavy-ball gossip (Muthukrishnan, Ghosh and Schultz 1998), whose error falls by
sqrt(beta) a round with the best beta, the rate of Chebyshev's iteration: after as many rounds as
the square root of what plain gossip needs. So alpha follows from the topology's spectrum, and from
the number of rounds, since in a few rounds news come not far, and a mean over those who are near is
worth more than a wave that has gone past them.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from strategies.consensus.ecl import ECL, fixed_penalty
from strategies.consensus.node import Node
from strategies.consensus.schedule import Event, Timetable
from strategies.consensus.topology import Topology

SETTLING = "settling"  # the vector of a mail of it
_GUEST = "guest"  # of a node: it has no model of its own to bring in
_BETAS = np.linspace(0, 0.99, 100)


@dataclass(frozen=True)
class Settling(ECL):
    """Averaging by PDMM; a node keeps degree + 1 vectors.

    There is a link to those neighbours alone from whom mail has come: who is away does not count.
    """

    mail: ClassVar[str] = SETTLING

    def start(self, node: Node) -> None:
        """As a guest, whose model does not count, until `bring_in`."""
        node.vectors, node.links = {_GUEST: torch.ones(1)}, {}

    def disconnect(self, node: Node, j: int) -> None:
        strength = self.penalty.strength(node.index, j)
        rest = self._total(node) - strength
        if rest:  # a guest stays where its last neighbour has left it
            node.weights.add_(node.weights - node.links[j]["anchor"], alpha=strength / rest)
        super().disconnect(node, j)

    def _total(self, node: Node) -> float:
        own = 0.0 if _GUEST in node.vectors else 1.0
        return own + sum(self.penalty.strength(node.index, k) for k in node.links)

    def _jump(self, node: Node, j: int) -> float:
        return self.penalty.strength(node.index, j) / self._total(node)


def is_empty(node: Node) -> bool:
    """Whether it is a guest that has heard nobody: it has no model that counts."""
    return _GUEST in node.vectors and not node.links


def bring_in(node: Node) -> None:
    """Let the model of a node that has just started count in the average."""
    del node.vectors[_GUEST]


def settling(topology: Topology, rounds: int) -> Settling:
    """Averaging in so many rounds over all edges of `topology`."""
    penalty = fixed_penalty(topology, penalty_strength(topology, rounds))
    return Settling(topology, 0.0, 0.0, penalty, theta=1.0, kappa=1.0)


def penalty_strength(topology: Topology, rounds: int) -> float:
    """The alpha that leaves least of independent differences after so many undisturbed rounds: in
    the root mean square over the spectrum of D^-1/2 A D^-1/2, by the recursion that is exact on
    regular graphs. O(N^3)."""
    degrees = np.array([topology.degree(node) for node in range(topology.size)], float)
    adjacency = np.zeros((topology.size, topology.size))
    for i, j in topology.edges:
        adjacency[i, j] = adjacency[j, i] = 1 / np.sqrt(degrees[i] * degrees[j])
    # The largest one, 1, is that of agreement.
    spectrum = np.linalg.eigvalsh(adjacency)[:-1]
    errors = [np.sqrt(np.mean(undisturbed(spectrum, beta, rounds) ** 2)) for beta in _BETAS]
    beta = _BETAS[int(np.argmin(errors))]
    return float((1 + beta) / (1 - beta) / degrees.mean())


def undisturbed(spectrum: np.ndarray, beta: float, rounds: int) -> np.ndarray:
    """By eigenvalue of P, what is left of its eigenvector after so many rounds on a regular graph
    in which nothing is lost."""
    before, now = np.ones_like(spectrum), (1 - beta) / 2 + (1 + beta) / 2 * spectrum
    for _ in range(rounds - 1):
        before, now = now, (1 + beta) * spectrum * now - beta * before
    return now


class SettlingTimetable(Timetable):
    """After `windows` windows of `training` one more, of `rounds` rounds without steps, in which
    all edges exchange: under the same conditions and outages. A round lasts as long as the slowest
    node's step and the longest delay."""

    def __init__(self, training: Timetable, windows: int, rounds: int) -> None:
        topology = training.topology
        whole = Topology(topology.name, topology.size, (dict.fromkeys(topology.edges, 1.0),))
        super().__init__(
            whole,
            training.conditions,
            interval=1,
            window_steps=rounds,
            seed=training.seed,
            synchronous=True,
            outages=training.outages,
        )
        self._windows, self._begin = windows, training.border(windows)

    def border(self, window: int) -> float:
        return self._begin + (window - self._windows) * self.window_seconds

    def lone(self, window: int) -> list[Event]:
        return []

    def _steps(self, node: int, window: int, begin: float, end: float) -> tuple[Event, ...]:
        return ()
