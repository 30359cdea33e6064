"""Topologies: one contract for every family, published numbers, and what is refused."""

import json
import math
import subprocess
import sys
from pathlib import Path

import networkx as nx
import numpy as np
import pytest

from strategies.consensus.base_k import base_k_rounds
from strategies.consensus.topologies import TOPOLOGIES, build_topology
from strategies.consensus.topology import Topology
from strategies.contracts import topologies as contract
from strategies.contracts.topologies import graph_of

ROOT = Path(__file__).resolve().parents[1]
RANDOM = {"erdos-renyi", "random-regular", "watts-strogatz"}
VARYING = {"base-k", "one-peer-exponential"}


def edge_list(graph: nx.Graph) -> str:
    return "\n".join(f"{a} {b}" for a, b in graph.edges)


def product_of_rounds(topology: Topology) -> np.ndarray:
    product = np.eye(topology.size)
    for round_ in range(len(topology.rounds)):
        product = topology.mixing_matrix(round_) @ product
    return product


def subject(name: str, size: int) -> contract.Subject:
    text = edge_list(nx.wheel_graph(size))
    return contract.Subject(name, size, {"degree": 4, "probability": 0.4, "text": text})


@pytest.mark.parametrize("size", [8, 16, 64])
@pytest.mark.parametrize("name", TOPOLOGIES)
class TestContract:
    @pytest.mark.parametrize("clause", contract.CLAUSES)
    def test_keeps_to_it(self, name: str, size: int, clause: contract.Clause) -> None:
        clause(subject(name, size))

    def test_is_called_what_it_is(self, name: str, size: int) -> None:
        topology = subject(name, size).make()
        assert topology.name == name
        assert topology.static == (name not in VARYING)

    def test_other_seeds_give_others_of_the_random_ones(self, name: str, size: int) -> None:
        seeds = {subject(name, size).make(seed=seed).edges for seed in range(4)}
        assert (len(seeds) > 1) == (name in RANDOM)


TABLE = [  # family, edges and spectral gap of 8 nodes, of 16 nodes
    ("ring", 8, 0.1953, 16, 0.0507),
    ("chain", 7, 0.0507, 15, 0.0128),
    ("star", 7, 0.1250, 15, 0.0625),
    ("complete", 28, 1.0, 120, 1.0),
    ("grid", 10, 0.1464, 24, 0.1314),
    ("torus", 12, 0.5, 32, 0.4),
    ("hypercube", 12, 0.5, 32, 0.4),
    ("tree", 7, 0.0541, 15, 0.0220),
    ("one-peer-exponential", 12, 1.0, 32, 1.0),
]


@pytest.mark.parametrize(("name", "edges8", "gap8", "edges16", "gap16"), TABLE)
def test_edges_and_spectral_gaps_that_are_known(
    name: str, edges8: int, gap8: float, edges16: int, gap16: float
) -> None:
    for size, edges, gap in ((8, edges8, gap8), (16, edges16, gap16)):
        topology = build_topology(name, size)
        assert len(topology.edges) == edges
        assert topology.spectral_gap == pytest.approx(gap, abs=5e-5)


@pytest.mark.parametrize("size", [3, 8, 33])
def test_the_gap_of_a_ring_is_that_of_its_eigenvalues(size: int) -> None:
    """W has 1/3 on three diagonals, so lambda_k = (1 + 2 cos(2 pi k / N)) / 3."""
    values = [abs(1 + 2 * math.cos(2 * math.pi * k / size)) / 3 for k in range(1, size)]
    assert build_topology("ring", size).spectral_gap == pytest.approx(1 - max(values), abs=1e-12)


@pytest.mark.parametrize("size", [8, 16, 32])
def test_the_gap_of_the_undirected_exponential_graph(size: int) -> None:
    """The offsets are +-1, +-2, ..., +-N/4 and N/2, so that with m = log2 N every node has 2m - 1
    neighbours and lambda_k = (1 + cos(pi k) + 2 sum_{l < m-1} cos(2 pi k 2^l / N)) / 2m."""
    m = size.bit_length() - 1

    def value(k: int) -> float:
        waves = sum(math.cos(2 * math.pi * k * 2**step / size) for step in range(m - 1))
        return (1 + math.cos(math.pi * k) + 2 * waves) / (2 * m)

    topology = build_topology("exponential", size)
    assert {topology.degree(i) for i in range(size)} == {2 * m - 1}
    largest = max(abs(value(k)) for k in range(1, size))
    assert topology.spectral_gap == pytest.approx(1 - largest, abs=1e-12)


@pytest.mark.parametrize(
    ("graph", "edges", "gap"),
    [
        (nx.random_regular_graph(3, 8, seed=0), 12, 0.3170),
        (nx.random_regular_graph(3, 16, seed=0), 24, 0.1510),
        (nx.connected_watts_strogatz_graph(8, 4, 0.3, seed=0), 16, 0.3884),
        (nx.connected_watts_strogatz_graph(16, 4, 0.3, seed=0), 32, 0.1498),
    ],
)
def test_irregular_graphs_have_the_known_gap(graph: nx.Graph, edges: int, gap: float) -> None:
    topology = build_topology("file", len(graph), text=edge_list(graph))
    assert len(topology.edges) == edges
    assert topology.spectral_gap == pytest.approx(gap, abs=5e-5)


def test_the_weights_are_those_of_metropolis_and_hastings() -> None:
    """A hub of degree 3 whose neighbour 3 has one more: W = 1 / (1 + max(d_i, d_j))."""
    (weights,) = build_topology("file", 5, text="0 1\n0 2\n0 3\n3 4").rounds
    assert weights == {(0, 1): 1 / 4, (0, 2): 1 / 4, (0, 3): 1 / 4, (3, 4): 1 / 3}


def test_random_families_have_what_was_asked_for() -> None:
    for degree in (2, 3, 7, 8, 18, 19):
        regular = build_topology("random-regular", 20, degree=degree)
        assert {regular.degree(node) for node in range(20)} == {degree}
    assert len(build_topology("watts-strogatz", 20, degree=6).edges) == 60
    assert len(build_topology("erdos-renyi", 9, probability=1.0).edges) == 36
    # Of 4950 edges 990 are expected; 6 standard deviations are 169.
    assert abs(len(build_topology("erdos-renyi", 100, probability=0.2).edges) - 990) < 169


def test_grids_are_numbered_by_rows() -> None:
    assert build_topology("grid", 6).edges == (
        (0, 1),
        (0, 3),
        (1, 2),
        (1, 4),
        (2, 5),
        (3, 4),
        (4, 5),
    )
    assert build_topology("torus", 12).neighbours[0] == (1, 3, 4, 8)
    assert build_topology("hypercube", 8).neighbours[5] == (1, 4, 7)
    assert build_topology("tree", 7).neighbours[1] == (0, 3, 4)


class TestOnePeerExponential:
    @pytest.mark.parametrize("m", [1, 2, 3, 4, 6])
    def test_powers_of_two_average_exactly(self, m: int) -> None:
        topology = build_topology("one-peer-exponential", 2**m)
        assert len(topology.rounds) == m
        assert np.abs(product_of_rounds(topology) - 2.0**-m).max() < 1e-15
        for k, edges in enumerate(topology.rounds):
            assert set(edges) == {(i, i ^ 2**k) for i in range(2**m) if i < i ^ 2**k}

    @pytest.mark.parametrize("size", [3, 5, 6, 12, 33, 100, 129])
    def test_otherwise_pairs_are_as_far_apart_as_in_the_directed_graph(self, size: int) -> None:
        topology = build_topology("one-peer-exponential", size)
        assert len(topology.rounds) == math.ceil(math.log2(size))
        for k, edges in enumerate(topology.rounds):
            assert all((j - i) % size == 2**k or (i - j) % size == 2**k for i, j in edges)
            busy = [node for edge in edges for node in edge]
            assert len(busy) == len(set(busy))
            cycles = math.gcd(size, 2**k)
            assert size - len(busy) == (cycles if size // cycles % 2 else 0)


class TestBaseK:
    @pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 7, 10])
    def test_the_rounds_average_exactly_with_k_neighbours(self, k: int) -> None:
        for size in range(k + 1, 100):
            topology = build_topology("base-k", size, degree=k)
            assert np.abs(product_of_rounds(topology) - 1 / size).max() < 1e-12, size
            assert len(topology.rounds) <= 2 * math.log(size, k + 1) + 2 + 1e-9, size
            for edges in topology.rounds:
                degrees = np.bincount(np.array(list(edges)).ravel(), minlength=size)
                assert 1 <= degrees.max() <= k, size

    @pytest.mark.parametrize(("k", "m"), [(1, 5), (2, 4), (3, 3), (6, 2)])
    def test_powers_of_the_base_take_one_round_a_digit(self, k: int, m: int) -> None:
        assert len(base_k_rounds((k + 1) ** m, k)) == m

    def test_three_nodes_in_base_two(self) -> None:
        """3 = 2 + 1: {0, 1} average; node 2 takes 2/3 of node 0's value, which is the mean of all;
        what 0 and 1 then have has that mean too."""
        assert base_k_rounds(3, 1) == ({(0, 1): 1 / 2}, {(0, 2): 2 / 3}, {(0, 1): 1 / 2})

    def test_groups_of_a_composite_number_work_at_once(self) -> None:
        """6 = 2 * 3 in base 2: two groups of three as above, then each node meets its like. As the
        number 4 + 2 it would take 2 + 1 + 2 rounds."""
        rounds = base_k_rounds(6, 1)
        assert len(rounds) == 4
        assert rounds[1] == {(0, 2): 2 / 3, (3, 5): 2 / 3}
        assert rounds[3] == {(0, 3): 1 / 2, (1, 4): 1 / 2, (2, 5): 1 / 2}

    def test_a_small_enough_group_meets_at_once(self) -> None:
        topology = build_topology("base-k", 4, degree=3)
        assert topology.static
        assert topology.rounds == build_topology("complete", 4).rounds


class TestFile:
    def test_an_edge_list_has_its_nodes_in_order_of_their_names(self) -> None:
        text = "# sites\n\n site10  site2 # by radio\nsite2\tsite1\n"
        topology = build_topology("file", 3, text=text)
        assert topology.names == ("site1", "site2", "site10")
        assert topology.edges == ((0, 1), (1, 2))

    def test_json_has_its_nodes_in_their_own_order(self) -> None:
        content = {
            "nodes": ["Osaka", "Kyoto", "Nara"],
            "edges": [["Nara", "Kyoto"], ["Osaka", "Nara"]],
        }
        topology = build_topology("file", 3, text=json.dumps(content))
        assert topology.names == ("Osaka", "Kyoto", "Nara")
        assert topology.edges == ((0, 2), (1, 2))

    @pytest.mark.parametrize(
        ("text", "complaint"),
        [
            ("", "no nodes"),
            ("# nothing\n", "no nodes"),
            ("a b\nb", "line 2: 'b' must be two names"),
            ("a b\nb c 0.5", "line 2: 'b c 0.5' must be two names"),
            ("a a", "line 1: an edge from 'a' to itself"),
            ("a b\nb a", "line 2: the edge 'b', 'a' is there twice"),
            ("a b\nb c\nc d\nd e", r"5 nodes \(a, b, c, d, e\), but there are 4 participants"),
            ("a b\nc d", "2 parts that never hear of each other: a, b | c, d; add edges"),
            ("{", "not JSON"),
            ('{"nodes": ["a"]}', "the keys nodes"),
            ('{"nodes": {"a": 1}, "edges": []}', "must look like"),
            ('{"nodes": ["a", 1], "edges": []}', r"nodes\[1\]: 1 must be a name in quotes"),
            ('{"nodes": ["a", "b", "a"], "edges": []}', r"nodes\[2\]: 'a' is there twice"),
            ('{"nodes": ["a", "b"], "edges": [["a", "c"]]}', "'c' is not in nodes"),
            ('{"nodes": ["a", "b"], "edges": [["a"]]}', r"edges\[0\]: \['a'\] must be two names"),
            ('{"nodes": ["a", "b"], "edges": ["ab"]}', r"edges\[0\]: 'ab' must be two names"),
            ('{"nodes": ["a", "b"], "edges": [["a", 1]]}', r"edges\[0\]: \['a', 1\] must be"),
            ('{"nodes": ["a", "b", "c", "d"], "edges": [["a", "b"]]}', "3 parts .*: a, b | c | d"),
        ],
    )  # fmt: skip
    def test_what_is_no_graph_of_the_participants(self, text: str, complaint: str) -> None:
        with pytest.raises(ValueError, match=complaint.replace("|", r"\|")):
            build_topology("file", 4, text=text)


@pytest.mark.parametrize(
    ("name", "size", "options", "complaint"),
    [
        ("rng", 8, {}, "'rng' is unknown; choose one of: base-k, chain, complete, "),
        ("chain", 1, {}, "at least 2 participants, not 1"),
        ("ring", 2, {}, "ring needs at least 3 participants, not 2; take a chain"),
        ("hypercube", 12, {}, "not 12; take 8 or 16"),
        ("grid", 7, {}, "would be a chain, since 7 is no product; take 6 or 8"),
        ("torus", 13, {}, "would be a ring, since 13 is no product; take 12 or 14"),
        ("grid", 3, {}, "take 4"),
        ("random-regular", 7, {"degree": 3}, "take degree=4"),
        ("random-regular", 5, {"degree": 3}, "take degree=4"),
        ("random-regular", 8, {"degree": 8}, r"must be in \[1, 7\]"),
        ("random-regular", 8, {"degree": 0}, r"must be in \[1, 7\]"),
        ("random-regular", 8, {"degree": 1}, "all disconnected; take degree=3"),
        ("base-k", 3, {"degree": 3}, r"degree=3 of base-k must be in \[1, 2\]"),
        ("watts-strogatz", 8, {"degree": 3}, "degree=3 must be even .* take 4"),
        ("watts-strogatz", 4, {"degree": 3}, "degree=3 must be even .* take 2"),
        ("watts-strogatz", 8, {"degree": 4, "probability": 0.0}, "probability=0.0"),
        ("erdos-renyi", 8, {"probability": 1.01}, "probability=1.01"),
        ("erdos-renyi", 8, {"probability": math.nan}, "probability=nan"),
        ("erdos-renyi", 50, {"probability": 0.01}, "take probability=0.16"),
    ],
)  # fmt: skip
def test_what_is_impossible_is_refused(name: str, size: int, options: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        build_topology(name, size, **options)


def test_the_smallest_of_each() -> None:
    smallest = {"ring": 3, "grid": 4, "torus": 4, "watts-strogatz": 3, "file": 2}
    for name in TOPOLOGIES:
        size = smallest.get(name, 2)
        degree = 2 if name == "watts-strogatz" else 1
        topology = build_topology(name, size, degree=degree, probability=1.0, text="a b")
        assert nx.is_connected(graph_of(topology)), name


def test_importing_costs_no_networkx() -> None:
    code = "import sys, strategies.consensus.topologies; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "numpy" in loaded
    assert {"networkx", "torch", "matplotlib"} & set(loaded) == set()
