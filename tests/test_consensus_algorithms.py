"""The decentralised algorithms: equal to the readable reference, repeatable, converging where they
should and only there, and each with the property that defines it."""

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import cache, partial
from itertools import product
from typing import Any

import pytest
import torch

from strategies.consensus.algorithm import Algorithm
from strategies.consensus.algorithms import ALGORITHMS, Settings, make_algorithm
from strategies.consensus.compression import kept, random_coordinates, require_coordinates
from strategies.consensus.ecl import ECL, isvr_penalty
from strategies.consensus.held import HeldECL
from strategies.consensus.node import Node
from strategies.consensus.rates import HEAVY_BALL, MEAN, step_size
from strategies.consensus.topologies import build_topology
from strategies.consensus.topology import Topology
from strategies.contracts import algorithms as contract
from strategies.contracts import alone
from strategies.contracts.algorithms import SETTINGS
from strategies.contracts.world import (
    Quadratics,
    Tick,
    World,
    go_on,
    quadratics,
    random_float32,
    random_start,
    random_ticks,
    run,
    started,
    synchronous_ticks,
    worst,
)
from tests import consensus_oracle as oracle
from tests.consensus_oracle import ORACLES

ALONE = Topology("alone", 1, ({},))
EXACT = [name for name, entry in ALGORITHMS.items() if entry.exact]
ECL_FAMILY = [name for name in EXACT if ALGORITHMS[name].exchange == "random"]
OUTER = ("qg-dsgdm", "decentlam")
SYNCHRONOUS = [name for name, entry in ALGORITHMS.items() if entry.exchange == "synchronous"]


# ------------------------------------------------------------------------------- a small world


def ticks_of(name: str, *args: Any, **kwargs: Any) -> list[Tick]:
    make = random_ticks if ALGORITHMS[name].exchange == "random" else synchronous_ticks
    return list(make(*args, **kwargs))


def rate_of(name: str) -> float:
    """At which the algorithm is stable for three steps in a round."""
    return 0.1 if name == "momentum-tracking-cta" else 0.3


@cache
def topology_for(name: str, size: int = 6) -> Topology:
    """One whose nodes have different degrees."""
    if ALGORITHMS[name].trees_only:
        return build_topology("tree", size)
    return build_topology("erdos-renyi", size, probability=0.5, seed=1)


# ------------------------------------------------------------------ the contract of every algorithm

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum and weight decay": {"momentum": 0.8, "weight_decay": 0.1},
    "published form": {"theta": 1.0, "kappa": 0.0},
    "rho and a fixed penalty": {"penalty": "fixed", "rho": 0.4},
    "top-k": {"compression": "top-k"},
    "held": {"hold": True, "theta": 0.5, "forget": 0.7, "momentum": 0.8},
}


def settings_of(name: str, variant: str) -> Settings:
    settings = replace(SETTINGS, **VARIANTS[variant])
    return replace(settings, rho=0.0) if name == "c-ecl" else settings


def test_every_algorithm_has_a_reference() -> None:
    assert set(ORACLES) == set(ALGORITHMS)


@pytest.mark.parametrize("name", ALGORITHMS)
class TestEveryAlgorithm:
    @pytest.mark.parametrize("variant", VARIANTS)
    @pytest.mark.parametrize("loss", [0.0, 0.3])
    def test_equals_the_reference(self, name: str, variant: str, loss: float) -> None:
        """With steps that change their size, and from different models."""
        topology, settings = topology_for(name), settings_of(name, variant)
        ticks = ticks_of(name, topology, 24, loss=loss)
        ticks = [replace(t, rate=0.3 if n < 12 else 0.1) for n, t in enumerate(ticks)]
        world = World(topology, random_start(6), quadratics(6).gradient, ticks)
        expected = torch.stack(list(ORACLES[name](world, settings)))
        models = run(make_algorithm(name, settings, topology), world)
        torch.testing.assert_close(models, expected, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("clause", contract.QUICK)
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_keeps_to_the_contract(self, name: str, variant: str, clause: contract.Clause) -> None:
        if clause is contract.single_precision_is_enough and variant == "top-k":
            pytest.skip("the last bit may decide which of two coordinates travels")
        clause(contract.Subject(name, settings_of(name, variant)))

    @pytest.mark.parametrize(
        "clause", [contract.equal_data_mislead_nobody, contract.what_is_called_exact_is]
    )
    def test_ends_where_the_contract_says(self, name: str, clause: contract.Clause) -> None:
        clause(contract.Subject(name, rate=rate_of(name)))

    @pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.05)])
    def test_a_node_on_its_own_does_sgd(
        self, name: str, momentum: float, weight_decay: float
    ) -> None:
        settings = replace(SETTINGS, momentum=momentum, weight_decay=weight_decay)
        problem, start = quadratics(1), random_start(1)
        ticks = [Tick(0.3, [[]], n) if n % 4 == 3 else Tick(0.3) for n in range(20)]
        models = run(
            make_algorithm(name, settings, ALONE), World(ALONE, start, problem.gradient, ticks)
        )
        if name == "gradient-tracking":
            momentum = 0.0  # it has none, whatever the settings say
        if name in OUTER and momentum:
            pytest.skip(
                "its momentum is that of rounds: see the test of a round without neighbours"
            )
        w = start[0].clone()
        mean = torch.zeros_like(w)
        for _ in ticks:
            mean = momentum * mean + (1 - momentum) * (problem.gradient(0, w) + weight_decay * w)
            w = w - 0.3 * mean
        torch.testing.assert_close(models[0], w, rtol=0, atol=1e-12)


def _both_ways(topology: Topology) -> list[tuple[int, int]]:
    return [*topology.edges, *((j, i) for i, j in topology.edges)]


# ------------------------------------------------------------------------- edge-consensus learning


@pytest.mark.parametrize("graph", ["chain", "ring"])
@pytest.mark.parametrize(("name", "hold"), [*product(ECL_FAMILY, [False]), ("ecl", True)])
def test_exact_although_messages_are_lost(name: str, hold: bool, graph: str) -> None:
    """Nearly a third of them."""
    topology, problem = build_topology(graph, 4), quadratics(4)
    ticks = ticks_of(name, topology, 1500, loss=0.3)
    world = World(topology, random_start(4), problem.gradient, ticks)
    settings = replace(SETTINGS, keep=0.8, hold=hold, theta=0.5 if hold else SETTINGS.theta)
    assert worst(run(make_algorithm(name, settings, topology), world), problem.optimum()) < 1e-9


@pytest.mark.parametrize("name", [name for name in EXACT if name not in ECL_FAMILY])
def test_loss_breaks_tracking(name: str) -> None:
    """Its sum of trackers is no longer the sum of gradients, while ECL has no such invariant."""
    topology, problem = build_topology("ring", 5), quadratics(5)
    ticks = ticks_of(name, topology, 2500, loss=0.3)
    world = World(topology, random_start(5), problem.gradient, ticks)
    assert worst(run(make_algorithm(name, SETTINGS, topology), world), problem.optimum()) > 1e-2
    assert worst(run(make_algorithm("ecl", SETTINGS, topology), world), problem.optimum()) < 1e-9


@pytest.mark.parametrize(
    "changes",
    [
        {"theta": 1.0},
        {"theta": 0.3},
        {"kappa": 0.0},
        {"kappa": 1.0},
        {"rho": 0.7},
        {"mult": 3.0},
        {"momentum": 0.9},
        {"penalty": "fixed"},
        {"interval": 1.0},
        {"hold": True, "theta": 0.5},
        {"hold": True, "theta": 0.3, "kappa": 0.5, "momentum": 0.9},
        {"hold": True, "theta": 0.5, "penalty": "fixed"},
    ],
    ids=str,
)
def test_no_setting_moves_the_limit(changes: dict[str, Any]) -> None:
    topology, problem = build_topology("star", 5), quadratics(5)
    settings = replace(SETTINGS, **changes)
    ticks = list(random_ticks(topology, 2500))
    world = World(topology, random_start(5), problem.gradient, ticks)
    assert worst(run(make_algorithm("ecl", settings, topology), world), problem.optimum()) < 1e-9


@pytest.mark.parametrize("compression", ["random-k", "top-k"])
def test_the_limit_of_compressed_ecl_is_exact(compression: str) -> None:
    """With a fifth of the coordinates, and a fifth of the messages lost."""
    topology, problem = build_topology("chain", 3), quadratics(3, parameters=20)
    settings = replace(SETTINGS, keep=0.2, interval=2, compression=compression)
    ticks = list(random_ticks(topology, 2500, interval=2, loss=0.2))
    world = World(topology, random_start(3, 20), problem.gradient, ticks)
    assert worst(run(make_algorithm("c-ecl", settings, topology), world), problem.optimum()) < 1e-9


# ------------------------------------------------------------------------------ held corrections

HELD = replace(SETTINGS, hold=True, theta=0.5, kappa=1.0)


def swap(algorithm: Algorithm, one: Node, other: Node, seq: int, lost: bool = False) -> None:
    """Both send, and then both use what has come; of one of them it may be lost."""
    mails = (
        alone.message(algorithm, one, other.index, seq),
        alone.message(algorithm, other, one.index, seq),
    )
    alone.receive(algorithm, one, other.index, seq, mails[1])
    if not lost:
        alone.receive(algorithm, other, one.index, seq, mails[0])


def test_a_swap_takes_both_to_the_mean_and_learns_opposite_offsets() -> None:
    topology, start = build_topology("chain", 3), random_start(3)
    algorithm = make_algorithm("ecl", HELD, topology)
    one, other, _ = nodes = started(algorithm, start)
    swap(algorithm, one, other, 0)
    mean = (start[0] + start[1]) / 2
    torch.testing.assert_close(torch.stack([n.weights for n in nodes[:2]]), mean.expand(2, -1))
    for node, sign in ((one, 1), (other, -1)):
        expected = sign * (start[1] - start[0]) / 2  # theta e
        torch.testing.assert_close(node.links[1 - node.index]["offset"], expected)
    before = one.weights.clone()
    alone.step(
        algorithm, one, torch.zeros_like(before), 0.3
    )  # alpha_ij eta = 1 / (2 (3 - 1)), degree 2
    torch.testing.assert_close(one.weights - before, (start[1] - start[0]) / 2 / 4)
    for seq in range(1, 4):
        swap(algorithm, one, other, seq)
        opposite = one.links[1]["offset"] + other.links[0]["offset"]
        torch.testing.assert_close(opposite, torch.zeros_like(opposite), rtol=0, atol=1e-15)


@pytest.mark.parametrize("theta", [0.5, 0.3])
def test_what_a_lost_mail_makes_unequal_shrinks(theta: float) -> None:
    """By 1 - 2 theta with every swap, whatever the models are."""
    algorithm = make_algorithm("ecl", replace(HELD, theta=theta), build_topology("chain", 2))
    one, other = started(algorithm, random_start(2))
    swap(algorithm, one, other, 0, lost=True)
    sums = [one.links[1]["offset"] + other.links[0]["offset"]]
    for seq in (1, 2):
        swap(algorithm, one, other, seq)
        sums.append(one.links[1]["offset"] + other.links[0]["offset"])
    assert sums[0].norm() > 0.1
    torch.testing.assert_close(sums[1], (1 - 2 * theta) * sums[0], rtol=0, atol=1e-14)
    torch.testing.assert_close(sums[2], (1 - 2 * theta) ** 2 * sums[0], rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("graph", "nodes", "settings", "shares"),
    [
        ("chain", 2, HELD, (1, 1 / 2, 1 / 4)),
        # The gain is K / (K - 1) / 2: 3 / 4 with K = 3, and 1 / 2 with K = 1, as if K - 1 were 1.
        ("ring", 4, HELD, (1, 1 / 1.5, 1 / 3)),
        ("ring", 4, replace(HELD, interval=1.0), (1, 1, 1 / 2)),
        ("ring", 4, replace(HELD, penalty="fixed"), (1, 1 / 2, 1 / 4)),
    ],
)
def test_an_old_mail_changes_a_correction_less(
    graph: str, nodes: int, settings: Settings, shares: Sequence[float]
) -> None:
    """By c = max(1, min(1, K eta alpha_ij) (1 + age / K)), each mail for itself, here of age 0, K
    and 3 K; the models are averaged all the same."""
    algorithm = make_algorithm("ecl", settings, build_topology(graph, nodes))
    changes, models = [], []
    for exchanges in (0, 1, 3):
        one, other, *_ = started(algorithm, random_start(nodes))
        one.ages[1] = exchanges * settings.interval
        swap(algorithm, one, other, 0)
        changes.append(one.links[1]["offset"].clone())
        models.append(one.weights.clone())
    assert changes[0].norm() > 0.1
    for change, model, share in zip(changes, models, shares, strict=True):
        torch.testing.assert_close(change, share * changes[0])
        assert torch.equal(model, models[0])


def test_forgetting_is_exact_as_steps_shrink() -> None:
    """With steps of one size it is not; with a tenth of it, it is about ten times nearer. Gossip,
    which learns nothing, ends farther away."""
    topology, problem = build_topology("ring", 5), quadratics(5)

    def error(name: str, *rates: float) -> float:
        ticks = [replace(t, rate=r) for r in rates for t in random_ticks(topology, 1500)]
        world = World(topology, random_start(5), problem.gradient, ticks)
        algorithm = make_algorithm(name, replace(HELD, forget=1.0), topology)
        return worst(run(algorithm, world), problem.optimum())

    long, short = error("ecl", 0.3), error("ecl", 0.3, 0.03)
    assert 1e-3 < short < 0.2 * long
    assert long < 0.8 * error("gossip", 0.3)
    assert error("ecl", 0.3, 0.03, 0.003, 0.0003) < 0.02 * short


def test_forgetting_never_turns_round() -> None:
    """However long the steps."""
    algorithm = make_algorithm("ecl", replace(HELD, forget=9.0), build_topology("chain", 2))
    node, _ = started(algorithm, random_start(2))
    node.links[1]["offset"].fill_(1.0)
    alone.step(algorithm, node, torch.zeros_like(node.weights), 0.3)
    assert torch.equal(alone.message(algorithm, node, 1, 0)["reflection"], node.weights)


def test_weight_decay_is_part_of_the_objective() -> None:
    """sum_i (f_i + lambda / 2 |w|^2): the optimum solves (sum H_i + N lambda) w = sum H_i b_i."""
    topology, problem = build_topology("chain", 4), quadratics(4)
    world = World(topology, random_start(4), problem.gradient, list(random_ticks(topology, 1500)))
    models = run(make_algorithm("ecl", replace(SETTINGS, weight_decay=0.2), topology), world)
    right = torch.einsum("npq,nq->p", problem.H, problem.b)
    regular = problem.H.sum(0) + 4 * 0.2 * torch.eye(10, dtype=torch.float64)
    assert worst(models, torch.linalg.solve(regular, right)) < 1e-9


def test_a_penalty_per_node_would_lead_to_another_optimum() -> None:
    """With alpha_i = 1 / (eta d_i (K - 1)), as the formula reads if taken literally, the limit of a
    star minimises sum_i d_i f_i: the guard against making the penalty one-sided."""
    topology, problem = build_topology("star", 6), quadratics(6)
    degrees = [len(own) for own in topology.neighbours]
    world = World(topology, random_start(6), problem.gradient, list(random_ticks(topology, 1500)))
    models = torch.stack(oracle.ecl(world, SETTINGS, lambda i, j, eta: 1 / (eta * degrees[i] * 2)))
    assert worst(models, problem.optimum([float(d) for d in degrees])) < 1e-9
    assert worst(models, problem.optimum()) > 0.1
    ours = run(make_algorithm("ecl", SETTINGS, topology), world)
    assert worst(ours, problem.optimum()) < 1e-9


def test_the_penalty_is_that_of_both_ends() -> None:
    """Star: max(d_i, d_j) = 4 for K = 3; of the mean interval below 2, 2 is taken. In a sequence of
    graphs an edge that is active in one round of three exchanges every 3 K = 9 steps."""
    penalty = isvr_penalty(build_topology("star", 5), 3, mult=2.0)
    assert penalty.pull(0, 2, 0.1) == penalty.pull(2, 0, 0.7) == 2 / (2 * 4)
    assert isvr_penalty(build_topology("ring", 5), 1).pull(0, 1, 0.1) == 1 / 2
    sequence = build_topology("one-peer-exponential", 8)
    assert isvr_penalty(sequence, 3).pull(0, 1, 0.1) == pytest.approx(1 / (8 * 3))


@pytest.mark.parametrize("graph", ["one-peer-exponential", "base-k"])
@pytest.mark.parametrize("name", EXACT)
def test_exact_on_a_sequence_of_graphs(name: str, graph: str) -> None:
    topology, problem = build_topology(graph, 6, degree=1), quadratics(6)
    ticks = list(synchronous_ticks(topology, 600, interval=1))
    world = World(topology, random_start(6), problem.gradient, ticks)
    settings = replace(SETTINGS, interval=1, keep=0.8)
    assert worst(run(make_algorithm(name, settings, topology), world), problem.optimum()) < 1e-9


@pytest.mark.parametrize("theta", [1.0, 0.5])
def test_isvr_in_closed_form(theta: float) -> None:
    """On a ring w <- (1 - 1/K) (w - eta g) + 1/K mean_j s_j (Niwa et al., ICML 2021)."""
    topology, K = build_topology("ring", 5), 6
    name = "pdmm-isvr" if theta == 1 else "admm-isvr"
    algorithm = make_algorithm(name, replace(SETTINGS, interval=K), topology)
    [node, *_] = started(algorithm, random_start(5))
    w, s1, s4, m, g = (random_start(6)[n].clone() for n in range(1, 6))
    node.weights.copy_(w)
    node.links[1]["anchor"].copy_(s1)
    node.links[4]["anchor"].copy_(s4)
    alone.receive(algorithm, node, 4, 0, {"reflection": m})
    s4 = (1 - theta) * s4 + theta * m
    assert torch.equal(node.weights, w)  # kappa = 0: receiving does not move the model
    alone.step(algorithm, node, g.clone(), 0.3)
    expected = (1 - 1 / K) * (w - 0.3 * g) + (s1 + s4) / 2 / K
    torch.testing.assert_close(node.weights, expected, rtol=0, atol=1e-15)
    expected = 2 * node.weights - s1
    torch.testing.assert_close(alone.message(algorithm, node, 1, 0)["reflection"], expected)


def test_half_relaxation_is_admm() -> None:
    """theta = 1/2 against the alternating directions in their own variables: for every edge a
    common x_ij and multipliers u (scaled by 1 / alpha). A swap does x <- mean of w + u of both
    ends, u <- u + w - x; a local step is the linearised minimisation over w. From a common start,
    x = w and u = 0."""
    topology, problem = build_topology("erdos-renyi", 6, probability=0.5, seed=1), quadratics(6)
    start = random_start(1).repeat(6, 1)
    ticks = list(random_ticks(topology, 100))
    penalty = isvr_penalty(topology, 3)
    w = [each.clone() for each in start]
    x = dict.fromkeys(topology.edges, start[0])
    u = {edge: torch.zeros(10, dtype=torch.float64) for edge in _both_ways(topology)}
    for tick in ticks:
        for i in range(6):
            top, bottom = w[i] - tick.rate * problem.gradient(i, w[i]), 1.0
            for j in topology.neighbours[i]:
                pull = penalty.pull(i, j, tick.rate)
                top = top + pull * (x[min(i, j), max(i, j)] - u[i, j])
                bottom += pull
            w[i] = top / bottom
        for (i, j, *_), _ in tick.exchanges:
            x[i, j] = (w[i] + u[i, j] + w[j] + u[j, i]) / 2
            u[i, j] = u[i, j] + w[i] - x[i, j]
            u[j, i] = u[j, i] + w[j] - x[i, j]
    models = run(
        make_algorithm("admm-isvr", SETTINGS, topology),
        World(topology, start, problem.gradient, ticks),
    )
    torch.testing.assert_close(models, torch.stack(w), rtol=0, atol=1e-12)


@pytest.mark.parametrize("settings", [SETTINGS, HELD], ids=["anchors", "held"])
def test_the_gradients_are_learnt(settings: Settings) -> None:
    """At the limit sum_j alpha_ij (s_ij - w_i) is the node's gradient, of which nothing is left."""
    topology, problem = build_topology("star", 5), quadratics(5)
    algorithm = make_algorithm("ecl", settings, topology)
    assert isinstance(algorithm, ECL | HeldECL)
    nodes = started(algorithm, random_start(5))
    ticks = list(random_ticks(topology, 2000))
    go_on(algorithm, nodes, World(topology, random_start(5), problem.gradient, ticks))
    for node in nodes:
        learnt = torch.zeros(10, dtype=torch.float64)
        for j, link in node.links.items():
            alpha = algorithm.penalty.pull(node.index, j, 0.3) / 0.3
            if "anchor" in link:
                learnt += alpha * (link["anchor"] - node.weights)
            else:
                learnt += alpha * link["kept"] * link["offset"]
        gradient = problem.gradient(node.index, node.weights)
        assert gradient.norm() > 0.1  # nobody's own optimum
        torch.testing.assert_close(learnt, gradient, rtol=0, atol=1e-9)


@pytest.mark.parametrize("settings", [SETTINGS, HELD], ids=["anchors", "held"])
def test_what_has_been_learnt_survives_another_rate(settings: Settings) -> None:
    """At the optimum nothing moves when eta changes, unless anchors are not rescaled."""
    topology, problem = build_topology("star", 5), quadratics(5)
    algorithm = make_algorithm("ecl", settings, topology)
    before = list(random_ticks(topology, 2000))
    after = [replace(tick, rate=0.075) for tick in random_ticks(topology, 30, seed=1)]

    def error(ticks: list[Tick], *later: list[Tick]) -> float:
        nodes = started(algorithm, random_start(5))
        for part in (ticks, *later):
            go_on(algorithm, nodes, World(topology, random_start(5), problem.gradient, part))
        return worst(torch.stack([node.weights for node in nodes]), problem.optimum())

    assert error(before + after) < 1e-9
    assert error(before, after) > 1e-2  # in two runs nobody notices the change


def test_a_fixed_penalty_needs_no_rescaling() -> None:
    topology = build_topology("ring", 3)
    algorithm = make_algorithm("pdmm-sgd", SETTINGS, topology)
    [node, *_] = started(algorithm, random_start(3))
    node.links[1]["anchor"].add_(1.0)
    before = node.links[1]["anchor"].clone()
    algorithm.rescale(node, 0.3, 0.1)
    assert torch.equal(node.links[1]["anchor"], before)


@pytest.mark.parametrize("kappa", [0.0, 1.0])
def test_receiving_twice(kappa: float) -> None:
    """PDMM overwrites its anchor, so the same message again changes nothing at all."""
    topology = build_topology("ring", 3)
    algorithm = make_algorithm("ecl", replace(SETTINGS, theta=1.0, kappa=kappa), topology)
    nodes = started(algorithm, random_start(3))
    mail = alone.message(algorithm, nodes[1], 0, 0)
    alone.receive(algorithm, nodes[0], 1, 0, mail)
    once = nodes[0].weights.clone()
    alone.receive(algorithm, nodes[0], 1, 1, mail)
    assert torch.equal(nodes[0].links[1]["anchor"], mail["reflection"])
    torch.testing.assert_close(nodes[0].weights, once, rtol=0, atol=1e-15)
    assert torch.equal(once, random_start(3)[0]) is (kappa == 0)


@pytest.mark.parametrize("settings", [SETTINGS, HELD], ids=["anchors", "held"])
def test_survivors_reach_their_own_optimum(settings: Settings) -> None:
    """The middle of a ring of five leaves: without its anchors the other four go on exactly; with
    them they would not."""
    topology, problem = build_topology("ring", 5), quadratics(5)
    rest = [node for node in range(5) if node != 2]
    algorithm = make_algorithm("ecl", settings, topology)
    for announced in (True, False):
        nodes = started(algorithm, random_start(5))
        ticks = list(random_ticks(topology, 200))
        go_on(algorithm, nodes, World(topology, random_start(5), problem.gradient, ticks))
        if announced:
            algorithm.disconnect(nodes[1], 2)
            algorithm.disconnect(nodes[3], 2)
        ticks = [
            replace(tick, exchanges=[e for e in tick.exchanges if 2 not in e[0][:2]])
            for tick in random_ticks(topology, 2000, seed=1)
        ]
        go_on(algorithm, nodes, World(topology, random_start(5), problem.gradient, ticks))
        optimum = problem.optimum([1.0, 1.0, 0.0, 1.0, 1.0])
        error = worst(torch.stack([nodes[i].weights for i in rest]), optimum)
        assert (error < 1e-9) is announced
        assert announced or error > 1e-2


def test_memory_of_a_node() -> None:
    """degree + 2 vectors, one less without momentum; top-k keeps one more a neighbour."""
    topology = build_topology("torus", 9)

    def vectors(name: str, **changes: Any) -> int:
        algorithm = make_algorithm(name, replace(SETTINGS, **changes), topology)
        [node, *_] = started(algorithm, random_start(9))
        kept = [*node.vectors.values(), *(v for link in node.links.values() for v in link.values())]
        return 1 + sum(vector.numel() == node.weights.numel() for vector in kept)

    assert vectors("ecl", momentum=0.9) == 4 + 2
    assert vectors("ecl") == 4 + 1
    assert vectors("ecl", hold=True, momentum=0.9) == 4 + 2
    assert vectors("c-ecl", momentum=0.9) == 4 + 2
    assert vectors("c-ecl", momentum=0.9, compression="top-k") == 2 * 4 + 2


# ------------------------------------------------------------------------------------ compression


@pytest.mark.parametrize("compression", ["random-k", "top-k"])
def test_compressed_ecl_that_keeps_all_is_ecl(compression: str) -> None:
    topology = topology_for("ecl")
    ticks = list(random_ticks(topology, 60, loss=0.2))
    world = World(topology, random_start(6), quadratics(6).gradient, ticks)
    settings = replace(SETTINGS, keep=1.0, compression=compression)
    torch.testing.assert_close(
        run(make_algorithm("c-ecl", settings, topology), world),
        run(make_algorithm("ecl", settings, topology), world),
        rtol=0,
        atol=1e-13,
    )


def test_compressed_messages_are_small() -> None:
    """Values of a tenth of the coordinates, top-k with their numbers."""
    topology, bytes_of = build_topology("ring", 3), {}
    for compression in ("random-k", "top-k"):
        settings = replace(SETTINGS, keep=0.1, compression=compression)
        algorithm = make_algorithm("c-ecl", settings, topology)
        node = Node(0, random_float32(1000))
        algorithm.start(node)
        mail = alone.message(algorithm, node, 1, 0)
        bytes_of[compression] = sum(v.numel() * v.element_size() for v in mail.values())
    assert bytes_of == {"random-k": 400, "top-k": 800}


def test_random_coordinates() -> None:
    """Different ones, a pure function of seed and message, all of them equally often: 300 draws of
    20 of 50 take each 120 times, with a standard deviation of 8.5."""
    draw = partial(random_coordinates, 3, 50, 20)
    assert len(set(draw(0, 1, 7).tolist())) == 20
    assert draw(0, 1, 7).tolist() == draw(0, 1, 7).tolist() != draw(1, 0, 7).tolist()
    assert draw(0, 1, 7).tolist() != random_coordinates(4, 50, 20, 0, 1, 7).tolist()
    # Message numbers of one link are far apart where a new window begins.
    counts = torch.bincount(torch.cat([draw(0, 1, n << 32) for n in range(300)]), minlength=50)
    assert counts.min() > 80
    assert counts.max() < 160


def test_top_k_sends_what_is_most_wrong() -> None:
    """Of 40 coordinates 8 travel; 2 of them at random, so at least 6 are those of the 8 that have
    moved. What has been sent is not sent again, unless it is its turn."""
    topology = build_topology("ring", 3)
    settings = replace(SETTINGS, keep=0.2, compression="top-k", theta=1.0)
    algorithm = make_algorithm("c-ecl", settings, topology)
    node = Node(0, torch.zeros(40))
    algorithm.start(node)
    moved = set(range(3, 40, 5))
    node.weights[list(moved)] = torch.arange(1.0, 9.0)
    first = set(alone.message(algorithm, node, 1, 0)["indices"].tolist())
    assert len(first) == 8
    assert len(first & moved) >= 6
    assert max(moved) in first  # the one that moved most
    second = set(alone.message(algorithm, node, 1, 1)["indices"].tolist())
    assert moved <= first | second


def test_every_coordinate_is_sent_again() -> None:
    """By top-k, too, although nothing changes: what was lost does not stay lost."""
    topology = build_topology("ring", 3)
    settings = replace(SETTINGS, keep=0.2, compression="top-k")
    algorithm = make_algorithm("c-ecl", settings, topology)
    node = Node(0, torch.zeros(40))
    algorithm.start(node)
    sent: set[int] = set()
    for seq in range(200):
        sent |= set(alone.message(algorithm, node, 1, seq)["indices"].tolist())
    assert sent == set(range(40))


def test_kept() -> None:
    assert [kept(10, keep) for keep in (0.01, 0.1, 0.26, 1.0)] == [1, 1, 3, 10]


@pytest.mark.parametrize("indices", [[0, 10], [-1, 3]])
@pytest.mark.parametrize("name", ["c-ecl", "choco-sgd"])
def test_indices_that_do_not_exist_are_refused(name: str, indices: list[int]) -> None:
    topology = build_topology("ring", 3)
    settings = replace(SETTINGS, keep=0.2, compression="top-k")
    algorithm = make_algorithm(name, settings, topology)
    [node, *_] = started(algorithm, random_start(3))
    mail = {"indices": torch.tensor(indices, dtype=torch.int32), "values": torch.ones(2)}
    message = rf"from {min(indices)} to {max(indices)} are no coordinates of a vector of 10"
    with pytest.raises(ValueError, match=message):
        alone.receive(algorithm, node, 1, 0, mail)
    assert require_coordinates(torch.tensor([0, 9]), 10).tolist() == [0, 9]


# -------------------------------------------------------------------------------------- baselines


def test_gossip_makes_both_ends_equal() -> None:
    topology = build_topology("ring", 3)
    algorithm = make_algorithm("gossip", SETTINGS, topology)
    nodes, start = started(algorithm, random_start(3)), random_start(3)
    mails = [alone.message(algorithm, nodes[0], 1, 0), alone.message(algorithm, nodes[1], 0, 0)]
    alone.receive(algorithm, nodes[1], 0, 0, mails[0])
    alone.receive(algorithm, nodes[0], 1, 0, mails[1])
    for node in nodes[:2]:
        torch.testing.assert_close(node.weights, (start[0] + start[1]) / 2)
    assert torch.equal(nodes[2].weights, start[2])


def still(models: torch.Tensor, topology: Topology, rounds: int) -> World:
    """A world without gradients, where only exchanges happen."""
    ticks = list(synchronous_ticks(topology, rounds, interval=1))
    return World(topology, models, lambda i, w: torch.zeros_like(w), ticks)


MIXING = ["d-psgd", "gradient-tracking", "momentum-tracking", "momentum-tracking-cta", "qg-dsgdm"]


@pytest.mark.parametrize("name", MIXING)
def test_mixing_is_the_mixing_matrix(name: str) -> None:
    topology = build_topology("one-peer-exponential", 8)
    models = run(make_algorithm(name, SETTINGS, topology), still(random_start(8), topology, 3))
    W = [torch.from_numpy(topology.mixing_matrix(round_)) for round_ in range(3)]
    expected = W[2] @ W[1] @ W[0] @ random_start(8)
    torch.testing.assert_close(models, expected, rtol=0, atol=1e-14)
    # 2^3 nodes: after three rounds everybody has the mean.
    torch.testing.assert_close(models, random_start(8).mean(0).expand(8, -1))


def test_tracking_momentum_is_momentum_of_the_tracked_gradient() -> None:
    """With a mixing after every step both filters are the same one (linear, and W is constant):
    y tracks the gradients, u <- beta u + (1 - beta) y, w <- W (w - eta u)."""
    topology, problem, beta = build_topology("chain", 4), quadratics(4), 0.8
    ticks = list(synchronous_ticks(topology, 50, interval=1))
    world = World(topology, random_start(4), problem.gradient, ticks)
    algorithm = make_algorithm("momentum-tracking", replace(SETTINGS, momentum=beta), topology)
    models = run(algorithm, world)
    W, w = torch.from_numpy(topology.mixing_matrix()), random_start(4)
    u, y, old = torch.zeros_like(w), torch.zeros_like(w), torch.zeros_like(w)
    for tick in ticks:
        g = torch.stack([problem.gradient(i, w[i]) for i in range(4)])
        y, old = y + g - old, g
        u = beta * u + (1 - beta) * y
        w, y = W @ (w - tick.rate * u), W @ y
    torch.testing.assert_close(models, w, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["momentum-tracking", "momentum-tracking-cta"])
def test_which_comes_first_in_a_round(name: str) -> None:
    """One step of heavy-ball's lr and a mixing, from c = m = 0: w <- W (w - lr g), or as published
    w <- W w - lr g."""
    topology, problem, beta = build_topology("ring", 5), quadratics(5), 0.9
    ticks = list(synchronous_ticks(topology, 1, interval=1))
    world = World(topology, random_start(5), problem.gradient, ticks)
    models = run(make_algorithm(name, replace(SETTINGS, momentum=beta), topology), world)
    W, w = torch.from_numpy(topology.mixing_matrix()), random_start(5)
    step = (1 - beta) * 0.3 * torch.stack([problem.gradient(i, w[i]) for i in range(5)])
    expected = W @ (w - step) if name == "momentum-tracking" else W @ w - step
    torch.testing.assert_close(models, expected, rtol=0, atol=1e-14)


def test_trackers_sum_up_to_the_gradients() -> None:
    topology, problem = build_topology("star", 5), quadratics(5)
    algorithm = make_algorithm("gradient-tracking", SETTINGS, topology)
    nodes = started(algorithm, random_start(5))
    ticks = list(synchronous_ticks(topology, 31))
    go_on(algorithm, nodes, World(topology, random_start(5), problem.gradient, ticks[:-1]))
    gradients = [problem.gradient(node.index, node.weights) for node in nodes]
    go_on(algorithm, nodes, World(topology, random_start(5), problem.gradient, ticks[-1:]))
    trackers = torch.stack([node.vectors["tracker"] for node in nodes])
    torch.testing.assert_close(trackers.sum(0), torch.stack(gradients).sum(0), rtol=0, atol=1e-12)


def test_a_round_without_neighbours() -> None:
    """DecentLaM is heavy-ball then. Quasi-global momentum d is the mean of earlier updates, which
    have it in them: d' = beta d + (1 - beta) (beta d + g)."""
    problem, beta, lr = quadratics(1), 0.9, 0.03
    ticks = [Tick(lr / (1 - beta), [[]], n) for n in range(20)]
    world = World(ALONE, random_start(1), problem.gradient, ticks)
    settings = replace(SETTINGS, momentum=beta, interval=1)
    for name in OUTER:
        w, m = random_start(1)[0], torch.zeros(10, dtype=torch.float64)
        for _ in ticks:
            g = problem.gradient(0, w)
            update = beta * m + g
            w = w - lr * update
            m = update if name == "decentlam" else beta * m + (1 - beta) * update
        models = run(make_algorithm(name, settings, ALONE), world)
        torch.testing.assert_close(models[0], w, rtol=0, atol=1e-12)


def heavy_ball_bias(name: str, problem: Quadratics, beta: float) -> torch.Tensor:
    """Where nodes end with heavy-ball's learning rate 0.03, one step a round, on a ring."""
    topology, size = build_topology("ring", len(problem.H)), step_size(0.03, beta, HEAVY_BALL)
    ticks = [replace(t, rate=size) for t in synchronous_ticks(topology, 4000, interval=1)]
    world = World(topology, random_start(len(problem.H)), problem.gradient, ticks)
    settings = replace(SETTINGS, momentum=beta, interval=1)
    return run(make_algorithm(name, settings, topology), world)


@pytest.mark.parametrize("name", OUTER)
def test_outer_momentum_adds_no_bias(name: str) -> None:
    """The bias of D-PSGD is known: its limit solves w = W (w - lr H (w - b)), linear in all nodes'
    models. Heavy-ball of own gradients has that of steps 1 / (1 - beta) times as long; these two
    have that of lr, whatever beta is."""
    problem, W = quadratics(5), torch.from_numpy(build_topology("ring", 5).mixing_matrix())
    mixing = torch.kron(W, torch.eye(10, dtype=torch.float64))

    def limit(lr: float) -> torch.Tensor:
        pull = lr * mixing @ torch.block_diag(*problem.H)
        left = torch.eye(50, dtype=torch.float64) - mixing + pull
        return torch.linalg.solve(left, pull @ problem.b.flatten()).view(5, 10)

    for beta in (0.5, 0.9):
        found = heavy_ball_bias(name, problem, beta)
        torch.testing.assert_close(found, limit(0.03), rtol=0, atol=1e-9)
    biased = heavy_ball_bias("d-psgd", problem, 0.9)
    torch.testing.assert_close(biased, limit(0.3), rtol=0, atol=1e-9)
    assert worst(found, problem.optimum()) < 0.3 * worst(biased, problem.optimum())


@pytest.mark.parametrize("name", OUTER)
def test_outer_momentum_survives_another_rate(name: str) -> None:
    """It is kept in units of the model: with steps half as long, a round does half as much."""
    topology = build_topology("ring", 5)
    algorithm = make_algorithm(name, replace(SETTINGS, momentum=0.9, interval=1), topology)
    nodes = started(algorithm, random_start(5))
    ticks = list(synchronous_ticks(topology, 5, interval=1))
    go_on(algorithm, nodes, World(topology, random_start(5), quadratics(5).gradient, ticks))
    before = nodes[0].vectors["momentum"].clone()
    algorithm.rescale(nodes[0], 0.3, 0.15)
    assert before.norm() > 0.01
    assert torch.equal(nodes[0].vectors["momentum"], before / 2)


@pytest.mark.parametrize("name", ["isolated", "d-psgd", "momentum-tracking", "ecl"])
def test_heavy_ball_is_the_running_mean_with_longer_steps(name: str) -> None:
    """m <- beta m + g and steps of lr, against M <- beta M + (1 - beta) g and `step_size`."""
    topology, problem, beta, lr = build_topology("ring", 4), quadratics(4), 0.8, 0.02
    eta = step_size(lr, beta, HEAVY_BALL)
    assert eta == pytest.approx(0.1)
    assert step_size(lr, beta, MEAN) == lr
    settings = replace(SETTINGS, momentum=beta, interval=1)
    algorithm = make_algorithm(name, settings, topology)
    by_hand = make_algorithm(name, replace(settings, momentum=0.0), topology)
    mine, theirs = started(algorithm, random_start(2)), started(by_hand, random_start(2))
    m = [torch.zeros(10, dtype=torch.float64) for _ in range(2)]
    for seq in range(6):
        for i in (0, 1):
            g = problem.gradient(i, mine[i].weights)
            m[i] = beta * m[i] + g
            alone.step(algorithm, mine[i], g.clone(), eta)
            # Its own rate is eta, for which its penalty is; of the gradient's step only lr is left.
            alone.step(by_hand, theirs[i], m[i] * lr / eta, eta)
            torch.testing.assert_close(mine[i].weights, theirs[i].weights, rtol=0, atol=1e-13)
        for each, nodes in ((algorithm, mine), (by_hand, theirs)):
            mails = alone.message(each, nodes[0], 1, seq), alone.message(each, nodes[1], 0, seq)
            alone.receive(each, nodes[0], 1, seq, mails[1])
            alone.receive(each, nodes[1], 0, seq, mails[0])
            for one in nodes:
                alone.mix(each, one, seq)


def test_choco_without_compression_is_d_psgd() -> None:
    topology = topology_for("choco-sgd")
    ticks = list(synchronous_ticks(topology, 40))
    world = World(topology, random_start(6), quadratics(6).gradient, ticks)
    settings = replace(SETTINGS, keep=1.0, gamma=1.0, momentum=0.9)
    torch.testing.assert_close(
        run(make_algorithm("choco-sgd", settings, topology), world),
        run(make_algorithm("d-psgd", settings, topology), world),
        rtol=0,
        atol=1e-13,
    )


@pytest.mark.parametrize("compression", ["random-k", "top-k"])
def test_choco_gossip_reaches_the_mean(compression: str) -> None:
    """Compressed messages, exact consensus."""
    topology = build_topology("ring", 5)
    settings = replace(SETTINGS, compression=compression)
    models = run(
        make_algorithm("choco-sgd", settings, topology), still(random_start(5), topology, 1500)
    )
    torch.testing.assert_close(models, random_start(5).mean(0).expand(5, -1), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("graph", "size"), [("chain", 5), ("star", 6), ("tree", 7)])
def test_relay_averages_exactly_after_diameter_rounds(graph: str, size: int) -> None:
    """Models that do not change: what arrives is late, but no longer missing, after as many rounds
    as the farthest node is away."""
    topology = build_topology(graph, size)
    algorithm = make_algorithm("relay-sgd", SETTINGS, topology)
    start = random_start(size)
    nodes = started(algorithm, start)
    for round_ in range(topology.diameter):
        mixed = torch.stack([node.weights for node in nodes])
        assert round_ == 0 or not torch.allclose(mixed, start.mean(0).expand(size, -1))
        for node in nodes:
            node.weights.copy_(start[node.index])
        mails = [
            (i, j, alone.message(algorithm, nodes[i], j, round_)) for i, j in _both_ways(topology)
        ]
        for i, j, mail in mails:
            alone.receive(algorithm, nodes[j], i, round_, mail)
        for node in nodes:
            alone.mix(algorithm, node, round_)
    mixed = torch.stack([node.weights for node in nodes])
    torch.testing.assert_close(mixed, start.mean(0).expand(size, -1), rtol=0, atol=1e-14)


def test_relay_is_exact_with_one_step_a_round() -> None:
    topology, problem = build_topology("chain", 4), quadratics(4)
    algorithm = make_algorithm("relay-sgd", SETTINGS, topology)
    for interval, exact in ((1, True), (4, False)):
        ticks = list(synchronous_ticks(topology, 1500, interval=interval))
        world = World(topology, random_start(4), problem.gradient, ticks)
        assert (worst(run(algorithm, world), problem.optimum()) < 1e-9) is exact


# -------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"interval": 0.5}, "consensus.interval=0.5 must be at least 1 local step"),
        ({"interval": float("nan")}, "consensus.interval=nan must be"),
        ({"theta": 0.0}, "consensus.theta=0.0 must be above 0 and at most 1"),
        ({"theta": 1.1}, "consensus.theta=1.1 must be above 0 and at most 1"),
        ({"kappa": -0.1}, "consensus.kappa=-0.1 must be between 0 and 1"),
        ({"mult": 0.0}, "consensus.mult=0.0 must be above 0"),
        ({"mult": float("inf")}, "consensus.mult=inf must be above 0"),
        ({"alpha": -1.0}, "consensus.alpha=-1.0 must be above 0"),
        ({"forget": -0.1}, "consensus.forget=-0.1 must be at least 0"),
        ({"rho": -1.0}, "consensus.rho=-1.0 must be at least 0"),
        ({"momentum": 1.0}, "consensus.momentum=1.0 must be at least 0 and below 1"),
        ({"weight_decay": -1e-3}, "consensus.weight-decay=-0.001 must be at least 0"),
        ({"keep": 0.0}, "consensus.keep=0.0 must be above 0 and at most 1"),
        ({"gamma": 2.0}, "consensus.gamma=2.0 must be above 0 and at most 1"),
        ({"penalty": "x"}, "consensus.penalty='x' is unknown; choose one of: fixed, isvr"),
        (
            {"compression": "8-bit"},
            "consensus.compression='8-bit' is unknown; choose one of: random-k, top-k",
        ),
    ],
)
def test_settings_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **changes)


@pytest.mark.parametrize(
    ("name", "graph", "changes", "message"),
    [
        ("pdmm", "ring", {}, "consensus.algorithm='pdmm' is unknown; choose one of: admm-isvr, "),
        ("relay-sgd", "ring", {}, "relay-sgd needs a tree, such as chain, star or tree, not ring"),
        ("relay-sgd", "one-peer-exponential", {}, "relay-sgd needs a tree"),
        (
            "choco-sgd",
            "one-peer-exponential",
            {},
            "choco-sgd needs the same graph in every round, not one-peer-exponential",
        ),
        ("c-ecl", "ring", {"rho": 0.1}, "consensus.rho=0.1 must be 0 for c-ecl"),
        (
            "ecl",
            "ring",
            {"rho": 0.1, "hold": True},
            "consensus.rho=0.1 must be 0 with consensus.hold",
        ),
    ],
)
def test_what_cannot_work(name: str, graph: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_algorithm(name, replace(SETTINGS, **changes), build_topology(graph, 4))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_names_stand_for_settings_that_exist(name: str) -> None:
    assert set(ALGORITHMS[name].overrides) <= {each.name for each in fields(Settings)}
