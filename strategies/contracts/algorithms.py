"""What every algorithm of the consensus system keeps to."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from strategies.consensus.algorithm import Algorithm
from strategies.consensus.algorithms import Entry, Settings
from strategies.consensus.node import Node
from strategies.consensus.own import algorithm_named, entry_of
from strategies.consensus.state import pack, unpack
from strategies.consensus.topologies import build_topology
from strategies.consensus.topology import Topology
from strategies.contracts import alone
from strategies.contracts.broken import require
from strategies.contracts.convex import Simulation, bits_of, disturbed
from strategies.contracts.world import (
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

SETTINGS = Settings(
    interval=3,
    hold=False,
    forget=0.0,
    theta=0.75,
    kappa=0.5,
    mult=1.0,
    penalty="isvr",
    alpha=0.6,
    rho=0.0,
    momentum=0.0,
    weight_decay=0.0,
    keep=0.4,
    compression="random-k",
    gamma=0.3,
    seed=5,
)
_NODES = 6


@dataclass(frozen=True)
class Subject:
    """An algorithm by name, with settings. rate: of its steps, at which it is stable."""

    name: str
    settings: Settings = SETTINGS
    rate: float = 0.3

    @property
    def entry(self) -> Entry:
        return entry_of(self.name)

    @property
    def topology(self) -> Topology:
        """One whose nodes have different degrees."""
        return _uneven(self.entry.trees_only)

    def make(self, topology: Topology, **changes: Any) -> Algorithm:
        return algorithm_named(self.name, replace(self.settings, **changes), topology)

    def ticks(self, topology: Topology, number: int, **options: Any) -> list[Tick]:
        make = random_ticks if self.entry.exchange == "random" else synchronous_ticks
        return [replace(t, rate=self.rate) for t in make(topology, number, **options)]

    def world(self, topology: Topology, number: int) -> World:
        """Everybody has another problem and another start."""
        start = random_start(topology.size)
        gradient = quadratics(topology.size).gradient
        return World(topology, start, gradient, self.ticks(topology, number))


def variants(name: str) -> Iterator[Subject]:
    """The algorithm without and with momentum and weight decay."""
    yield Subject(name)
    yield Subject(name, replace(SETTINGS, momentum=0.8, weight_decay=0.1))


@cache
def _uneven(tree: bool) -> Topology:
    if tree:
        return build_topology("tree", _NODES)
    return build_topology("erdos-renyi", _NODES, probability=0.5, seed=1)


def _simulated(subject: Subject, **options: Any) -> Simulation:
    own = ("momentum", "weight_decay", "compression")
    changes = {name: getattr(subject.settings, name) for name in own}
    return disturbed(subject.name, changes=changes, **options)


def repeats_bit_by_bit(subject: Subject) -> None:
    topology = subject.topology
    once, again = (run(subject.make(topology), subject.world(topology, 30)) for _ in range(2))
    require(torch.equal(once, again), "two runs from the same start end with other bits")


def nodes_stay_rows(subject: Subject) -> None:
    """Weights, and the vectors that have to be, are changed in place and never made anew."""
    topology = subject.topology
    algorithm, world = subject.make(topology), subject.world(topology, 12)
    nodes = started(algorithm, world.start)
    rows = go_on(algorithm, nodes, world)
    for node, row in zip(nodes, rows.weights, strict=True):
        same = node.weights.data_ptr() == row.data_ptr()
        require(same, "weights were replaced; change them in place (`strategies.consensus.rows`)")
    for name in algorithm.row_vectors:
        for node, row in zip(nodes, rows.vectors[name], strict=True):
            same = node.vectors[name].data_ptr() == row.data_ptr()
            require(same, f"the vector {name!r} of row_vectors was replaced; change it in place")


def lengths_are_those_of_a_message(subject: Subject) -> None:
    """In float32, in which everything runs; of models of any size."""
    topology = subject.topology
    algorithm = subject.make(topology)
    for parameters in (1, 7, 1000):
        node = Node(0, random_float32(parameters))
        algorithm.start(node)
        alone.step(algorithm, node, random_float32(parameters, 1), 0.1)
        for seq in (0, 5 << 32):
            for j in topology.neighbours[0]:
                mail = alone.message(algorithm, node, j, seq)
                found = {key: (value.numel(), value.dtype) for key, value in mail.items()}
                said = algorithm.lengths(parameters, 0, j, seq)
                require(found == said, f"a message has {found}, and lengths() says {said}")


def messages_share_no_memory_and_are_left_as_they_are(subject: Subject) -> None:
    """A mail may lie around for long, and at several places."""
    topology = build_topology("chain", 3)
    algorithm = subject.make(topology)
    nodes = started(algorithm, random_start(3))
    both_ways = [*topology.edges, *((j, i) for i, j in topology.edges)]
    for round_ in range(3):
        mails = [(i, j, alone.message(algorithm, nodes[i], j, round_)) for i, j in both_ways]
        before = [{key: value.clone() for key, value in mail.items()} for *_, mail in mails]
        for i, j, mail in mails:
            alone.receive(algorithm, nodes[j], i, round_, mail)
        for node in nodes:
            alone.mix(algorithm, node, round_)
            alone.step(algorithm, node, torch.ones(10, dtype=torch.float64), 0.1)
            algorithm.rescale(node, 0.1, 0.05)
            for link in node.links.values():
                for name, vector in link.items():
                    apart = vector.data_ptr() != node.weights.data_ptr()
                    require(apart, f"{name!r} of a link is the node's weights; keep a copy")
        for (*_, mail), old in zip(mails, before, strict=True):
            for key in mail:
                same = torch.equal(mail[key], old[key])
                require(same, f"{key!r} of a mail changed after it was sent; send a clone()")


def neighbours_come_and_go(subject: Subject) -> None:
    topology = build_topology("chain", 3)
    algorithm, world = subject.make(topology), subject.world(topology, 8)
    nodes = started(algorithm, world.start)
    go_on(algorithm, nodes, world)
    links = nodes[1].links
    require(list(links) == [0, 2], f"start() made links to {list(links)} and not to all neighbours")
    algorithm.disconnect(nodes[1], 0)
    require(list(links) == [2], f"after disconnect() there are links to {list(links)}")
    alone.step(algorithm, nodes[1], torch.ones(10, dtype=torch.float64), 0.1)
    alone.mix(algorithm, nodes[1], 2)
    algorithm.connect(nodes[1], 0)
    go_on(algorithm, nodes, world)
    finite = all(bool(node.weights.isfinite().all()) for node in nodes)
    require(finite, "models are not finite after a neighbour was away")


def starting_again_forgets_everything(subject: Subject) -> None:
    topology = subject.topology
    algorithm, world = subject.make(topology, momentum=0.9), subject.world(topology, 12)
    nodes = started(algorithm, world.start)
    go_on(algorithm, nodes, world)
    for node, start in zip(nodes, world.start, strict=True):
        node.weights.copy_(start)
        algorithm.start(node)
    go_on(algorithm, nodes, world)
    models = torch.stack([node.weights for node in nodes])
    require(torch.equal(models, run(algorithm, world)), "start() left something of the run before")


def works_in_both_kinds_of_exchange(subject: Subject) -> None:
    """What an algorithm is made for is advice: the other kind gives finite numbers, too."""
    topology = subject.topology
    for make in (random_ticks, synchronous_ticks):
        world = replace(subject.world(topology, 1), ticks=list(make(topology, 60)))
        models = run(subject.make(topology), world)
        require(bool(models.isfinite().all()), "models are not finite after 60 steps")


def single_precision_is_enough(subject: Subject) -> None:
    """In which everything runs: no rounding error is amplified in 100 steps."""
    topology, problem = subject.topology, quadratics(_NODES)
    algorithm, ticks = subject.make(topology), subject.ticks(topology, 100)
    start = random_start(_NODES).float()

    def gradient(i: int, w: torch.Tensor) -> torch.Tensor:
        return problem.gradient(i, w.double()).to(w.dtype)

    single = run(algorithm, World(topology, start, gradient, ticks))
    double = run(algorithm, World(topology, start.double(), gradient, ticks))
    require(single.dtype is torch.float32, f"models of float32 became {single.dtype}")
    apart = float((single.double() - double).abs().max())
    require(apart < 1e-5, f"float32 is {apart:.1g} from float64 after 100 steps")


def equal_data_mislead_nobody(subject: Subject) -> None:
    """Whoever has the same data as everybody reaches their optimum."""
    topology, problem = subject.topology, quadratics(1)
    ticks = subject.ticks(topology, 1000)
    world = World(topology, random_start(_NODES), lambda _, w: problem.gradient(0, w), ticks)
    error = worst(run(subject.make(topology, keep=0.8), world), problem.optimum())
    require(error < 1e-9, f"{error:.2g} from the optimum after 1000 steps on equal data")


def what_is_called_exact_is(subject: Subject) -> None:
    """Nodes with unequal data reach the optimum of all; others do not. On a graph with different
    degrees, where a penalty per node would lead elsewhere."""
    topology, exact = subject.topology, subject.entry.exact
    world = subject.world(topology, 1500 if exact else 300)
    error = worst(run(subject.make(topology), world), quadratics(_NODES).optimum())
    if exact:
        require(error < 1e-9, f"exact = True, but {error:.2g} from the optimum after 1500 steps")
    else:
        require(error > 1e-2, f"only {error:.2g} from the optimum: say exact = True")


def hosting_does_not_change_a_bit(subject: Subject) -> None:
    """Whatever happens to mail and nodes."""
    for stress in ("mail", "outages"):
        one = bits_of(_simulated(subject, stress=stress).run(3))
        for options in ({"hosts": 3}, {"most": 1}):
            found = bits_of(_simulated(subject, stress=stress, **options).run(3))
            require(
                found == one,
                f"nodes end with other bits with {options} than together; do elementwise "
                f"arithmetic only, and keep nothing outside of node.vectors and node.links",
            )


def nothing_is_forgotten_between_windows(subject: Subject) -> None:
    """All that a node is is in its vectors and links, from which a checkpoint brings it back."""
    through, found = (_simulated(subject, stress="outages") for _ in range(2))
    through.run(3)
    for _ in range(3):
        found.run(1)
        algorithm = found.made()  # what the old one has kept to itself is gone
        found.participants = [
            unpack(*pack(p), algorithm, neighbours=p.neighbours, weight=p.weight)
            for p in found.participants
        ]
    same = bits_of(found) == bits_of(through)
    require(same, "a node that was saved and restored goes on with other bits")


Clause = Callable[[Subject], None]
# Of any settings; the others take longer.
QUICK: tuple[Clause, ...] = (
    repeats_bit_by_bit,
    nodes_stay_rows,
    lengths_are_those_of_a_message,
    messages_share_no_memory_and_are_left_as_they_are,
    neighbours_come_and_go,
    starting_again_forgets_everything,
    works_in_both_kinds_of_exchange,
    single_precision_is_enough,
)
SLOW: tuple[Clause, ...] = (
    hosting_does_not_change_a_bit,
    nothing_is_forgotten_between_windows,
    equal_data_mislead_nobody,
    what_is_called_exact_is,
)
CLAUSES = QUICK + SLOW
