"""A convex problem whose optimum is known, and a run of it by the real timetable and host."""

import math
import queue
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from strategies.carriers.exchange import Report
from strategies.consensus.algorithm import Algorithm
from strategies.consensus.algorithms import Settings
from strategies.consensus.free_host import FreeHost
from strategies.consensus.host import Host
from strategies.consensus.node import Node, Tensors
from strategies.consensus.own import algorithm_named, entry_of
from strategies.consensus.participant import Mail, Participant
from strategies.consensus.schedule import Conditions, Timetable, parse_outages
from strategies.consensus.topologies import build_topology
from strategies.consensus.topology import Topology
from strategies.randomness import rng

SETTINGS: dict[str, Any] = {
    "interval": 4.0, "hold": True, "forget": 0.0, "theta": 0.5, "kappa": 1.0, "mult": 1.0,
    "penalty": "isvr", "alpha": 0.5, "rho": 0.0, "momentum": 0.0, "weight_decay": 0.0, "keep": 0.4,
    "compression": "random-k", "gamma": 0.5, "seed": 5,
}  # fmt: skip


@dataclass(frozen=True)
class Quadratics:
    """f_i(w) = 1/2 (w - b_i)' H_i (w - b_i): everybody has another curvature and another minimum.

    H (N, p, p), b (N, p). The largest curvature is 1.
    """

    H: torch.Tensor
    b: torch.Tensor

    def gradients(self, due: Sequence[tuple[Node, int]]) -> Iterator[torch.Tensor]:
        for node, _ in due:
            yield self.H[node.index] @ (node.weights - self.b[node.index])

    def optimum(self, p: Mapping[int, float]) -> torch.Tensor:
        """Of sum_i p_i f_i over the nodes of `p`."""
        H = torch.stack([self.H[i] * weight for i, weight in p.items()])
        b = torch.stack([self.b[i] for i in p])
        return torch.linalg.solve(H.sum(0), torch.einsum("npq,nq->p", H, b))


def quadratics(
    nodes: int, parameters: int = 20, condition: float = 20.0, seed: int = 0
) -> Quadratics:
    """Random ones with eigenvalues from 1 / condition to 1."""
    generator = rng(seed, "quadratics")
    eigenvalues = np.geomspace(1 / condition, 1, parameters)
    H = []
    for _ in range(nodes):
        Q, _ = np.linalg.qr(generator.standard_normal((parameters, parameters)))
        H.append((Q * generator.permutation(eigenvalues)) @ Q.T)
    b = generator.standard_normal((nodes, parameters))
    return Quadratics(torch.tensor(np.array(H)), torch.tensor(b))


def worst_error(models: Sequence[torch.Tensor], optimum: torch.Tensor) -> float:
    """max_i |w_i - w*| / |w*|."""
    return max(float((w - optimum).norm() / optimum.norm()) for w in models)


class InProcess:
    """Mail between hosts of one process."""

    def __init__(
        self, queues: "Sequence[queue.SimpleQueue[Mail]]", placement: Mapping[int, int], host: int
    ) -> None:
        self._queues, self._placement, self._own = queues, placement, queues[host]

    def post(self, mail: Mail) -> None:
        self._queues[self._placement[mail.receiver]].put(mail)

    def collect(self, patience: float) -> list[Mail]:
        found = []
        try:
            found.append(self._own.get(timeout=patience or None, block=patience > 0))
            while True:
                found.append(self._own.get_nowait())
        except queue.Empty:
            return found

    def report(self) -> Report:
        return Report()

    def close(self) -> None:
        """Nothing is open."""


@dataclass
class Simulation:
    """The nodes of a topology on `hosts` hosts, one after the other; all start at 0.

    weights: p_i by node, 1 if there are none. changes: of SETTINGS.
    """

    problem: Quadratics
    timetable: Timetable
    algorithm: str
    rate: float
    hosts: int = 1
    weights: Mapping[int, float] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)
    host_options: Mapping[str, Any] = field(default_factory=dict)
    window: int = 0

    def __post_init__(self) -> None:
        topology, algorithm = self.timetable.topology, self.made()
        self.participants = [self._start(algorithm, topology, i) for i in range(topology.size)]
        self._placement = {i: i * self.hosts // topology.size for i in range(topology.size)}
        queues = [queue.SimpleQueue[Mail]() for _ in range(self.hosts)]
        self.exchanges = [InProcess(queues, self._placement, h) for h in range(self.hosts)]

    def made(self) -> Algorithm:
        """The algorithm anew."""
        settings = Settings(**{**SETTINGS, **self.changes})
        return algorithm_named(self.algorithm, settings, self.timetable.topology)

    @property
    def parts(self) -> list[list[Participant]]:
        """The participants of each host."""
        everybody = self.participants
        return [
            [p for p in everybody if self._placement[p.node.index] == h] for h in range(self.hosts)
        ]

    def _start(self, algorithm: Any, topology: Topology, index: int) -> Participant:
        node = Node(index, self.initial(index).clone())
        algorithm.start(node)
        heard = dict.fromkeys(node.links, 0.0)
        weight = self.weights.get(index, 1.0)
        return Participant(
            node, algorithm, topology.neighbours[index], weight, self.rate, heard=heard
        )

    def initial(self, _: int) -> torch.Tensor:
        return torch.zeros(self.problem.b.shape[1], dtype=torch.float64)

    def host(self, number: int) -> Host:
        return Host(self.parts[number], self.problem.gradients, **self._options(number))

    def free_host(self, number: int) -> FreeHost:
        return FreeHost(self.parts[number], self.problem.gradients, **self._options(number))

    def _options(self, number: int) -> dict[str, Any]:
        own = {"initial": self.initial, "exchange": self.exchanges[number]}
        return {**own, **self.host_options}

    def timelines(self, number: int) -> tuple[dict[int, list], dict[int, list]]:
        """What `Host.run` is told of the window that is next."""
        nodes = [p.node.index for p in self.parts[number]]
        return (
            {i: self.timetable.timeline(i, self.window + 1) for i in nodes},
            {i: self.timetable.in_flight(i, self.window + 1) for i in nodes},
        )

    def run(self, windows: int) -> "Simulation":
        """Hosts take turns, each until it lacks mail. Raises RuntimeError when all of them do."""
        for _ in range(windows):
            turns = [(self.host(h), self.timelines(h)) for h in range(self.hosts)]
            while turns:
                before = [p.cursor for p in self.participants]
                stuck = [(host, plan) for host, plan in turns if not host.run(*plan)]
                if stuck == turns and before == [p.cursor for p in self.participants]:
                    raise RuntimeError("each host waits for mail that nobody has sent")
                turns = stuck
            self.window += 1
        return self

    def models(self) -> list[torch.Tensor]:
        return [p.node.weights for p in self.participants]


HARSH: dict[str, Any] = {
    "delay_seconds": 9.0,
    "loss": 0.3,
    "duplication": 0.3,
    "speed_spread": 0.5,
}
OUTAGES = (
    "crash:3@5-20, cut:0-1@2-40, leave:5@17, join:7@14, pause:2@10-30, leave:6@20-33, "
    "crash:4@0-9, pause:1@24-25"
)
STRESSES: dict[str, dict[str, Any]] = {
    "none": {},
    "mail": HARSH,
    "one-way": {**HARSH, "one_way": True},
    "outages": {**HARSH, "outages": OUTAGES, "silence": 15.0},
}


def disturbed(
    algorithm: str,
    *,
    graph: str = "torus",
    hosts: int = 1,
    stress: str = "none",
    compression: str = "random-k",
    changes: Mapping[str, Any] | None = None,
    **host_options: Any,
) -> Simulation:
    """Eight nodes with momentum under one of STRESSES."""
    conditions = dict(STRESSES[stress])
    outages, silence = conditions.pop("outages", ""), conditions.pop("silence", math.inf)
    topology = build_topology("tree" if entry_of(algorithm).trees_only else graph, 8)
    timetable = Timetable(
        topology,
        Conditions(**conditions),
        interval=4,
        window_steps=16,
        seed=1,
        synchronous=not topology.static or entry_of(algorithm).exchange == "synchronous",
        outages=parse_outages(outages, topology),
    )
    return Simulation(
        quadratics(8, parameters=12),
        timetable,
        algorithm,
        0.3,
        hosts=hosts,
        changes={"momentum": 0.5, "compression": compression, **(changes or {})},
        host_options={"silence": silence, **host_options},
    )


def bits_of(found: Simulation) -> list[Any]:
    """All that the participants are, in a form that `==` compares to the last bit."""

    def bits(vectors: Tensors) -> dict[str, bytes]:
        return {name: v.numpy().tobytes() for name, v in vectors.items()}

    return [
        (
            p.node.weights.numpy().tobytes(),
            bits(p.node.vectors),
            [(j, bits(link)) for j, link in p.node.links.items()],
            p.received,
            p.heard,
            p.tally,
            sorted((key, bits(mail.vectors), mail.sent) for key, mail in p.mail.items()),
        )
        for p in found.participants
    ]
