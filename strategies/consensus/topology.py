"""Who is whose neighbour, and with which mixing weights neighbours average.

All edges are undirected, since edge-consensus learning keeps one anchor at both ends of each. A
static topology is one graph; a time-varying one is a sequence of graphs, one a synchronous round.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import or_

import numpy as np

Edge = tuple[int, int]  # (i, j) with i < j

_EXACT = 1e-12  # a singular value below this is 0 up to rounding


def edge_between(i: int, j: int) -> Edge:
    """The edge of two nodes as it is kept: the smaller one first."""
    return (i, j) if i < j else (j, i)


@dataclass(frozen=True)
class Topology:
    """A connected graph of `size` nodes, or a sequence of graphs whose union is connected.

    rounds: of each round the active edges with their weights W_ij. Synchronous round r uses
    rounds[r % len(rounds)]; W is symmetric and doubly stochastic, with W_ii = 1 - sum_j W_ij.
    names: of the nodes, where a file gave some.
    """

    name: str
    size: int
    rounds: tuple[Mapping[Edge, float], ...]
    names: tuple[str, ...] = ()

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """The edges of all rounds, sorted."""
        return tuple(sorted(set().union(*self.rounds)))

    @cached_property
    def neighbours(self) -> tuple[tuple[int, ...], ...]:
        """By node, its neighbours of all rounds, sorted."""
        found: list[list[int]] = [[] for _ in range(self.size)]
        for i, j in self.edges:
            found[i].append(j)
            found[j].append(i)
        return tuple(tuple(sorted(own)) for own in found)

    @property
    def static(self) -> bool:
        return len(self.rounds) == 1

    def degree(self, node: int) -> int:
        """The number of its neighbours, of all rounds."""
        return len(self.neighbours[node])

    def weight(self, round_: int, i: int, j: int) -> float:
        """W_ij = W_ji of two different nodes in a round; 0 unless their edge is active in it."""
        return self.rounds[round_ % len(self.rounds)].get(edge_between(i, j), 0.0)

    def mixing_matrix(self, round_: int = 0) -> np.ndarray:
        """W of a round, (N, N)."""
        matrix = np.zeros((self.size, self.size))
        for (i, j), weight in self.rounds[round_ % len(self.rounds)].items():
            matrix[i, j] = matrix[j, i] = weight
        np.fill_diagonal(matrix, 1 - matrix.sum(axis=1))
        return matrix

    @cached_property
    def diameter(self) -> int:
        """The most edges that lie between two nodes, in the graph of all rounds' edges."""
        # Bit j of reached[i]: j is within `hops` of i. All nodes search at once, N bits at a time.
        reached, hops = [1 << node for node in range(self.size)], 0
        while True:
            wider = [
                reduce(or_, (reached[j] for j in own), bits)
                for own, bits in zip(self.neighbours, reached, strict=True)
            ]
            if wider == reached:
                return hops
            reached, hops = wider, hops + 1

    @cached_property
    def spectral_gap(self) -> float:
        """1 - max(|lambda_2|, |lambda_N|) of W: how much of a disagreement one round removes.

        Of R rounds it is 1 - sigma_2(W_R ... W_1)^(1/R), with the second largest singular value:
        the same, as a mean over rounds. It is 1 where they average exactly. Takes O(N^3).
        """
        product = self.mixing_matrix()
        for round_ in range(1, len(self.rounds)):
            product = self.mixing_matrix(round_) @ product
        deviation = product - 1 / self.size  # J/N takes away the eigenvalue 1
        if self.static:
            second = float(np.abs(np.linalg.eigvalsh(deviation)).max())
        else:
            second = float(np.linalg.norm(deviation, 2))
        return 1.0 if second < _EXACT else 1 - second ** (1 / len(self.rounds))


def of_edges(
    name: str, size: int, pairs: Iterable[tuple[int, int]], names: tuple[str, ...] = ()
) -> Topology:
    """The static topology with these edges and the weights of Metropolis and Hastings."""
    edges = sorted({edge_between(i, j) for i, j in pairs})
    degrees = [0] * size
    for end in (end for edge in edges for end in edge):
        degrees[end] += 1
    weights = {(i, j): 1 / (1 + max(degrees[i], degrees[j])) for i, j in edges}
    return Topology(name, size, (weights,), names)
