"""What every topology keeps to."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import networkx as nx
import numpy as np

from strategies.consensus.own import topology_named
from strategies.consensus.topology import Topology
from strategies.contracts.broken import require


@dataclass(frozen=True)
class Subject:
    """A topology by name, of so many nodes. options: of `build_topology`, for ours."""

    name: str
    size: int
    options: dict[str, Any] = field(default_factory=dict)

    def make(self, seed: int = 0) -> Topology:
        return topology_named(self.name, self.size, seed=seed, **self.options)


def graph_of(topology: Topology) -> nx.Graph:
    graph = nx.empty_graph(topology.size)
    graph.add_edges_from(topology.edges)
    return graph


def edges_are_sorted_pairs_of_a_connected_graph(subject: Subject) -> None:
    topology = subject.make()
    require(topology.size == subject.size, f"it has {topology.size} nodes, not {subject.size}")
    ordered = all(0 <= i < j < subject.size for i, j in topology.edges)
    require(ordered, "an edge is not (i, j) with 0 <= i < j < N")
    require(list(topology.edges) == sorted(set(topology.edges)), "edges are not sorted")
    require(nx.is_connected(graph_of(topology)), "it is not connected")


def neighbours_are_those_of_the_edges(subject: Subject) -> None:
    topology = subject.make()
    pairs = {(i, j) for i in range(topology.size) for j in topology.neighbours[i]}
    both_ways = {*topology.edges, *((j, i) for i, j in topology.edges)}
    require(pairs == both_ways, "neighbours are not those of the edges")
    ordered = all(list(own) == sorted(own) for own in topology.neighbours)
    require(ordered, "neighbours are not sorted")
    degrees = sum(map(topology.degree, range(topology.size)))
    require(degrees == 2 * len(topology.edges), "degrees do not add up to twice the edges")


def every_round_is_symmetric_and_doubly_stochastic(subject: Subject) -> None:
    topology = subject.make()
    for round_ in range(len(topology.rounds)):
        matrix = topology.mixing_matrix(round_)
        require(matrix.min() >= -1e-15, f"round {round_} has a negative weight")
        require(np.array_equal(matrix, matrix.T), f"the weights of round {round_} are one-sided")
        off = float(np.abs(matrix.sum(axis=0) - 1).max())
        require(off < 1e-14, f"the weights of round {round_} add up to 1 up to {off:.1g} only")


def weights_are_the_matrix_and_rounds_repeat(subject: Subject) -> None:
    topology = subject.make()
    for round_ in range(len(topology.rounds)):
        later = round_ + 7 * len(topology.rounds)
        matrix = topology.mixing_matrix(round_)
        same = np.array_equal(topology.mixing_matrix(later), matrix)
        require(same, f"round {later} is not round {round_} again")
        for i, j in topology.edges:
            weights = topology.weight(round_, i, j), topology.weight(later, j, i)
            require(weights == (matrix[i, j],) * 2, f"the weight of {(i, j)} is not the matrix's")


def the_rounds_together_mix(subject: Subject) -> None:
    topology = subject.make()
    product = np.eye(topology.size)
    for round_ in range(len(topology.rounds)):
        product = topology.mixing_matrix(round_) @ product
    gap = topology.spectral_gap
    require(0 < gap <= 1, f"its spectral gap is {gap:g}: rounds do not bring nodes together")
    second = np.linalg.svd(product, compute_uv=False)[1]
    require(abs(second - (1 - gap) ** len(topology.rounds)) < 1e-12, "its spectral gap is another")


def the_diameter_is_the_graphs(subject: Subject) -> None:
    topology = subject.make()
    right = nx.diameter(graph_of(topology))
    require(topology.diameter == right, f"its diameter is {topology.diameter}, and not {right}")


def the_seed_decides_and_nothing_else(subject: Subject) -> None:
    once, again = subject.make(seed=3), subject.make(seed=3)
    require(once == again, "asked again with the same seed, it is another graph")


Clause = Callable[[Subject], None]
CLAUSES: tuple[Clause, ...] = (
    edges_are_sorted_pairs_of_a_connected_graph,
    neighbours_are_those_of_the_edges,
    every_round_is_symmetric_and_doubly_stochastic,
    weights_are_the_matrix_and_rounds_repeat,
    the_rounds_together_mix,
    the_diameter_is_the_graphs,
    the_seed_decides_and_nothing_else,
)
