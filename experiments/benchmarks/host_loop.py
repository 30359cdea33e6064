"""The nodes of a consensus run on one host in one process: no Flower, no files, no evaluation."""

import os
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from client_apps.engines import ENGINES, SEQUENTIAL, engine_of, one_by_one, race
from client_apps.local_model import local_model_of
from fl_app.config import Value, resolve
from fl_app.problem import problem_of
from fl_app.settings import nodes_run_of
from strategies.consensus.batches import Gradients
from strategies.consensus.host import Host
from strategies.consensus.node import Node
from strategies.consensus.participant import Participant, Tally
from strategies.consensus.shared import nodes_of
from strategies.problem import flat_model


class Stopwatch:
    """Stands for an algorithm and counts the seconds and calls of what it does, by name. A call is
    of one node, where vectors are as long as here."""

    def __init__(self, algorithm: Any) -> None:
        self._algorithm = algorithm
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._algorithm, name)
        if not callable(function):
            return function

        def measured(*arguments: Any) -> Any:
            began = time.process_time()
            result = function(*arguments)
            self.seconds[name] += time.process_time() - began
            self.calls[name] += 1
            return result

        return measured

    def reset(self) -> None:
        self.seconds.clear()
        self.calls.clear()


class Nodes:
    """All nodes of a run's topology on one host. idle: their gradients are zeros that nobody has
    computed."""

    def __init__(self, values: dict[str, Value], *, idle: bool = False) -> None:
        config = resolve(values)
        self.topology, algorithm, self.timetable = nodes_of(nodes_run_of(config), "")
        self.stopwatch = Stopwatch(algorithm)
        initial = flat_model(problem_of(config), "small").weights
        self.parameters = len(initial)
        self.participants = [self._start(i, initial) for i in range(config.participants)]
        for participant in self.participants:
            participant.change_rate(config.consensus.step_size)
        everybody = range(config.participants)
        self.host = Host(
            self.participants,
            _nothing(self.parameters) if idle else one_by_one(nodes_run_of(config), everybody),
            initial=lambda _: initial,
        )
        self._window = 0

    def _start(self, index: int, initial: torch.Tensor) -> Participant:
        algorithm: Any = self.stopwatch
        node = Node(index, initial.clone())
        algorithm.start(node)
        return Participant(node, algorithm, self.topology.neighbours[index])

    def run_window(self) -> float:
        """Run everybody to the end of the next window; returns how many seconds of a processor it
        took, which do not depend on who else is on the machine."""
        began = time.process_time()
        self._window += 1
        everybody = range(len(self.participants))
        self.host.run(
            {i: self.timetable.timeline(i, self._window) for i in everybody},
            {i: self.timetable.in_flight(i, self._window) for i in everybody},
        )
        return time.process_time() - began

    @property
    def tally(self) -> Tally:
        return sum((p.tally for p in self.participants), Tally())

    @property
    def vectors(self) -> int:
        """How many numbers all nodes keep."""
        return sum(
            v.numel()
            for p in self.participants
            for own in (p.node.vectors, *p.node.links.values(), {"weights": p.node.weights})
            for v in own.values()
        )


def arithmetic(values: dict[str, Value], windows: int) -> dict[str, float]:
    """What the algorithm's own arithmetic takes of the time of a local step, in milliseconds.

    step (with the SGD in it), message, receive: of one call. own: of all three per local step;
    whole: a local step with all that belongs to it, gradient and host; share: own / whole.
    """
    nodes = Nodes(values)
    nodes.run_window()
    nodes.stopwatch.reset()
    before = nodes.tally
    seconds = sum(nodes.run_window() for _ in range(windows))
    steps = nodes.tally.steps - before.steps
    watch = nodes.stopwatch
    counted = ("step", "message", "receive", "mix")
    own = sum(watch.seconds[name] for name in counted)
    each = {n: 1000 * watch.seconds[n] / watch.calls[n] for n in counted if watch.calls[n]}
    return {
        **each,
        "own": 1000 * own / steps,
        "whole": 1000 * seconds / steps,
        "share": own / seconds,
    }


def null(values: dict[str, Value], windows: int) -> dict[str, float]:
    """What is left without gradients: timetable, host, arithmetic on vectors of the model's size.

    Milliseconds per local step of a node, and per exchange of a node (a mail sent and one received,
    with the steps in between). models: vectors of the model's size that a node keeps; bytes: by how
    much the process has grown for all nodes.
    """
    before = resident()
    nodes = Nodes(values, idle=True)
    nodes.run_window()
    grown, first = resident() - before, nodes.tally
    seconds = sum(nodes.run_window() for _ in range(windows))
    last, people = nodes.tally, len(nodes.participants)
    return {
        "nodes": people,
        "parameters": nodes.parameters,
        "ms_per_step": 1000 * seconds / (last.steps - first.steps),
        "ms_per_exchange": 1000 * seconds / (last.messages - first.messages),
        "models": nodes.vectors / (nodes.parameters * people),
        "bytes": grown,
    }


def engines(values: dict[str, Value], rounds: int) -> dict[str, float]:
    """How long the gradients of all nodes that step together take, on the run's device: by engine,
    milliseconds a node, measured in turn. gain: how many times as fast as sequential the fastest
    of the others is.
    """
    config = resolve(values)
    everybody, weights = (
        range(config.participants),
        local_model_of(problem_of(config)).model.weights,
    )
    nodes = [Node(i, weights.clone()) for i in everybody]
    found = {name: engine_of(name, nodes_run_of(config), everybody) for name in ENGINES}
    each = {name: 1000 * spent for name, spent in race(found, nodes, rounds).items()}
    others = min(spent for name, spent in each.items() if name != SEQUENTIAL)
    return {**each, "gain": each[SEQUENTIAL] / others}


def _nothing(parameters: int) -> Gradients:
    """Gradients that cost nothing."""
    zeros = torch.zeros(0, parameters)

    def gradients(due: Sequence[tuple[Node, int]]) -> torch.Tensor:
        nonlocal zeros
        if len(zeros) < len(due):
            zeros = torch.zeros(len(due), parameters)
        return zeros[: len(due)]

    return gradients


def resident() -> int:
    """Bytes of this process in memory (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
