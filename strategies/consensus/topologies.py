"""The topologies that have names, and how each is built."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from strategies.consensus.base_k import base_k_rounds
from strategies.consensus.graph_file import listed, parse_graph
from strategies.consensus.topology import Topology, of_edges
from strategies.randomness import rng

if TYPE_CHECKING:
    import networkx as nx

_DRAWS = 100  # of a random graph, until one is connected
MANY_EDGES = 250_000  # built in a second
_MOST_EDGES = {"random-regular": 20_000}  # whose random pairs are drawn again and again


@dataclass(frozen=True)
class Request:
    """What somebody wants built; see `build_topology`."""

    name: str
    size: int
    seed: int
    degree: int
    probability: float
    text: str


def _ring(request: Request) -> Topology:
    """i ~ i + 1 mod N."""
    import networkx as nx

    if request.size < 3:
        raise ValueError(f"a ring needs at least 3 participants, not {request.size}; take a chain")
    return _static(request, nx.cycle_graph(request.size))


def _chain(request: Request) -> Topology:
    """i ~ i + 1."""
    import networkx as nx

    return _static(request, nx.path_graph(request.size))


def _star(request: Request) -> Topology:
    """0 ~ everybody else."""
    import networkx as nx

    return _static(request, nx.star_graph(request.size - 1))


def _complete(request: Request) -> Topology:
    """Everybody ~ everybody."""
    import networkx as nx

    return _static(request, nx.complete_graph(request.size))


def _grid(request: Request) -> Topology:
    """Rows and columns as near to a square as N allows; 4 neighbours, fewer at the border."""
    import networkx as nx

    return _static(request, nx.grid_2d_graph(*grid_sides(request.name, request.size)))


def _torus(request: Request) -> Topology:
    """A grid whose last row (column) is next to the first; two rows are joined only once."""
    import networkx as nx

    sides = grid_sides(request.name, request.size)
    return _static(request, nx.grid_2d_graph(*sides, periodic=True))


def _hypercube(request: Request) -> Topology:
    """i ~ i xor 2^k."""
    import networkx as nx

    size, lower = request.size, 1 << (request.size.bit_length() - 1)
    if size != lower:
        raise ValueError(
            f"a hypercube has 2^m participants, not {size}; take {lower} or {2 * lower}"
        )
    return _static(request, nx.hypercube_graph(size.bit_length() - 1))


def _tree(request: Request) -> Topology:
    """The binary tree that is filled level by level: i ~ 2i + 1 and 2i + 2."""
    import networkx as nx

    return _static(request, nx.full_rary_tree(2, request.size))


def _random_regular(request: Request) -> Topology:
    """`degree` random neighbours for everybody."""
    import networkx as nx

    size, degree = request.size, request.degree
    _check_degree(request)
    if degree * size % 2:
        raise ValueError(
            f"degree={degree} times {size} participants is odd, but every edge has two ends; "
            f"take degree={degree + 1 if degree + 1 < size else degree - 1}"
        )

    def draw(generator: np.random.Generator) -> "nx.Graph":
        # networkx pairs random stubs, which hardly ever succeeds for a dense graph.
        if degree > size // 2:
            return nx.complement(nx.random_regular_graph(size - 1 - degree, size, generator))
        return nx.random_regular_graph(degree, size, generator)

    return _static(request, _connected(request, draw, "take degree=3 or more, or a ring"))


def _erdos_renyi(request: Request) -> Topology:
    """Every edge is there with `probability`; drawn anew until the graph is connected."""
    import networkx as nx

    size, probability = request.size, request.probability
    _check_probability(request)
    enough = min(1.0, 2 * math.log(size) / size)
    graph = _connected(
        request,
        lambda generator: nx.fast_gnp_random_graph(size, probability, generator),
        f"take probability={enough:.2g} (2 ln N / N) or more instead of {probability}",
    )
    return _static(request, graph)


def _watts_strogatz(request: Request) -> Topology:
    """A ring of the `degree` nearest, each edge rewired with `probability` (a small world)."""
    import networkx as nx

    size, degree, probability = request.size, request.degree, request.probability
    _check_probability(request)
    _check_degree(request)
    if degree % 2:
        raise ValueError(
            f"degree={degree} must be even for watts-strogatz, half of it to either side; "
            f"take {degree + 1 if degree + 1 < size else degree - 1}"
        )
    graph = _connected(
        request,
        lambda generator: nx.watts_strogatz_graph(size, degree, probability, generator),
        f"take degree={degree + 2} or more, or a probability below {probability}",
    )
    return _static(request, graph)


def _exponential(request: Request) -> Topology:
    """i ~ i + 2^k mod N for k < log2 N: the exponential graph (Ying et al., NeurIPS 2021) with its
    directed edges made undirected, so a node has up to twice as many neighbours."""
    import networkx as nx

    return _static(request, nx.circulant_graph(request.size, _powers_of_two(request.size)))


def _one_peer_exponential(request: Request) -> Topology:
    """In round k, pairs i and i + 2^k mod N average.

    In the one-peer exponential graph (Ying et al., NeurIPS 2021) i sends one way, to i + 2^k. Those
    edges make gcd(N, 2^k) cycles; of each, every second edge from the smallest node on is taken
    here, so that everybody has one partner, but for the last node of an odd cycle. For N = 2^m the
    pairs are i and i xor 2^k, a hypercube's dimension k, and the product of the m rounds is J/N. No
    sequence of pairwise averages gets there for another N (Shi et al., "Finite-time convergent
    gossiping", 2016), where the directed graph does not either.
    """
    size, rounds = request.size, []
    for power in _powers_of_two(size):
        cycles = math.gcd(size, power)
        steps = range(0, size // cycles - 1, 2)
        firsts = (start + step * power for start in range(cycles) for step in steps)
        pairs = ((i % size, (i + power) % size) for i in firsts)
        rounds.append({(min(pair), max(pair)): 0.5 for pair in pairs})
    return Topology(request.name, size, tuple(rounds))


def _base_k(request: Request) -> Topology:
    """The Base-(k+1) graph with k = `degree` neighbours a round (Takezawa et al., NeurIPS 2023)."""
    _check_degree(request)
    return Topology(request.name, request.size, base_k_rounds(request.size, request.degree))


def _file(request: Request) -> Topology:
    """The graph that `text` describes; see `parse_graph`."""
    import networkx as nx

    names, links = parse_graph(request.text)
    if len(names) != request.size:
        raise ValueError(
            f"the file has {len(names)} nodes ({listed(names)}), but there are {request.size} "
            f"participants; take participants={len(names)}"
        )
    index = {name: number for number, name in enumerate(names)}
    graph = nx.empty_graph(request.size)
    graph.add_edges_from((index[a], index[b]) for a, b in links)
    parts = [listed([names[i] for i in sorted(part)]) for part in nx.connected_components(graph)]
    if len(parts) > 1:
        raise ValueError(
            f"the file's graph falls into {len(parts)} parts that never hear of each other: "
            f"{listed(parts, ' | ')}; add edges between them"
        )
    return _static(request, graph, names)


# How each topology is built, by the name that the configuration uses.
TOPOLOGIES: dict[str, Callable[[Request], Topology]] = {
    "base-k": _base_k,
    "chain": _chain,
    "complete": _complete,
    "erdos-renyi": _erdos_renyi,
    "exponential": _exponential,
    "file": _file,
    "grid": _grid,
    "hypercube": _hypercube,
    "one-peer-exponential": _one_peer_exponential,
    "random-regular": _random_regular,
    "ring": _ring,
    "star": _star,
    "torus": _torus,
    "tree": _tree,
    "watts-strogatz": _watts_strogatz,
}


def build_topology(
    name: str,
    size: int,
    *,
    seed: int = 0,
    degree: int = 3,
    probability: float = 0.3,
    text: str = "",
) -> Topology:
    """Build the topology `name` of `size` participants.

    Static weights are those of Metropolis and Hastings, W_ij = 1 / (1 + max(d_i, d_j)).

    seed: of the random ones. degree: of random-regular and watts-strogatz, and k of base-k.
    probability: of an edge in erdos-renyi, of rewiring in watts-strogatz. text: content of "file".

    Raises ValueError for an unknown name, and for what cannot be built, is too large or is not
    connected.
    """
    if name not in TOPOLOGIES:
        choices = ", ".join(TOPOLOGIES)
        raise ValueError(f"topology={name!r} is unknown; choose one of: {choices}")
    if size < 2:
        raise ValueError(f"a topology needs at least 2 participants, not {size}")
    request = Request(name, size, seed, degree, probability, text)
    edges, most = _expected_edges(request), _MOST_EDGES.get(name, MANY_EDGES)
    if edges > most:
        raise ValueError(
            f"{name} of {size} participants would have {edges:,.0f} edges, more than {most:,}: "
            f"every process builds it; use fewer participants or neighbours"
        )
    return TOPOLOGIES[name](request)


def _expected_edges(request: Request) -> float:
    """How many edges the graph will have, where that can be more than a few for each node."""
    neighbours = {
        "complete": request.size - 1,
        "erdos-renyi": request.probability * (request.size - 1),
        "random-regular": request.degree,
        "watts-strogatz": request.degree,
        "base-k": request.degree,
    }
    return request.size * neighbours.get(request.name, 0) / 2


def grid_sides(name: str, size: int) -> tuple[int, int]:
    """Rows and columns, at least 2 each, of the grid of `size` nodes that is nearest to a square.

    Raises ValueError where there is none.
    """
    rows = max(side for side in range(1, math.isqrt(size) + 1) if size % side == 0)
    if rows == 1:
        others = "4" if size < 4 else f"{size - 1} or {size + 1}"
        raise ValueError(
            f"a {name} of {size} participants would be a {'chain' if name == 'grid' else 'ring'}, "
            f"since {size} is no product; take {others}"
        )
    return rows, size // rows


def _static(request: Request, graph: "nx.Graph", names: tuple[str, ...] = ()) -> Topology:
    """The topology of one graph, whose nodes are numbered in their order."""
    index = {node: number for number, node in enumerate(sorted(graph))}
    pairs = ((index[a], index[b]) for a, b in graph.edges)
    return of_edges(request.name, request.size, pairs, names)


def _connected(
    request: Request, draw: "Callable[[np.random.Generator], nx.Graph]", advice: str
) -> "nx.Graph":
    """The first connected one of random graphs. Raises ValueError when none of them is."""
    import networkx as nx

    generator = rng(request.seed, "topology", request.name)
    for _ in range(_DRAWS):
        graph = draw(generator)
        if nx.is_connected(graph):
            return graph
    raise ValueError(
        f"{_DRAWS} random graphs {request.name} of {request.size} participants were all "
        f"disconnected; {advice}"
    )


def _powers_of_two(size: int) -> list[int]:
    """1, 2, 4, ... below `size`."""
    return [1 << k for k in range((size - 1).bit_length())]


def _check_degree(request: Request) -> None:
    largest = request.size - 1
    if not 1 <= request.degree <= largest:
        raise ValueError(
            f"degree={request.degree} of {request.name} must be in [1, {largest}]: there are "
            f"{request.size} participants"
        )


def _check_probability(request: Request) -> None:
    if not 0 < request.probability <= 1:
        raise ValueError(
            f"probability={request.probability} of {request.name} must be above 0 and at most 1"
        )
