"""The parts of the benchmark on a GPU that are about a ring of nodes (see `gpu`)."""

import time
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from client_apps.gradients import Gradients
from client_apps.row_gradients import PASSES, RowGradients
from experiments.benchmarks.gpu_bench import (
    BATCH,
    CLASSES,
    ENGINES,
    IMAGES,
    LOSS,
    PRECISIONS,
    PREPARE,
    RATE,
    RINGS,
    SECONDS,
    SEQUENTIAL,
    SEQUENTIAL_NODES,
    SETTINGS,
    SIDE,
    Bench,
    peak_tflops,
    precise,
    seconds_of,
    wait,
)
from fl_app.data import ImageSet, normalise
from fl_app.models import build_model
from fl_app.tasks.images import Images, examples_of
from strategies.consensus.algorithms import make_algorithm
from strategies.consensus.host import Host
from strategies.consensus.node import Node
from strategies.consensus.participant import Participant
from strategies.consensus.schedule import Conditions, Timetable
from strategies.consensus.topologies import build_topology
from strategies.evaluation import SIDE_BY_SIDE, measured_of_each
from strategies.flat import FlatModel
from strategies.randomness import rng
from strategies.task import Examples


class Ring:
    """Nodes with noise for images in a ring, on one host."""

    def __init__(
        self, name: str, nodes: int, engine: str, precision: str, device: str, *, idle: bool = False
    ) -> None:
        dtype = precise(precision)
        module = build_model(
            name, in_channels=3, num_classes=CLASSES, image_size=SIDE, norm="group", seed=0
        )
        self.model, self.device = FlatModel(module, device), device
        generator = rng(0, "benchmark")
        images = ImageSet(
            generator.integers(0, 256, (IMAGES, 3, SIDE, SIDE), dtype=np.uint8),
            generator.integers(0, CLASSES, IMAGES),
        )
        topology = build_topology("ring", nodes)
        algorithm = make_algorithm("ecl", SETTINGS, topology)
        initial = self.model.weights.clone()
        self.participants = [
            Participant(Node(i, initial.clone()), algorithm, topology.neighbours[i], rate=RATE)
            for i in range(nodes)
        ]
        for participant in self.participants:
            algorithm.start(participant.node)
        self.gradients = gradients = Gradients(
            self.model,
            dict.fromkeys(range(nodes), examples_of(images)),
            dict.fromkeys(range(nodes), BATCH),
            seed=0,
            prepare=PREPARE,
            loss=LOSS,
            dtype=dtype,
        )
        options: dict[str, Any] = {"initial": lambda _: initial}
        if idle:
            nothing = torch.zeros(nodes, len(initial), device=device)
            self.host = Host(self.participants, lambda due: nothing[: len(due)], **options)
        elif engine == SEQUENTIAL:
            self.host = Host(self.participants, gradients, **options)
        else:
            many = RowGradients(gradients, PASSES[engine])
            self.host = Host(self.participants, many, most=nodes, **options)
        self._timetables: dict[int, Timetable] = {}
        self._topology = topology

    def run(self, steps: int, window: int) -> None:
        """The window number `window` of so many steps."""
        if steps not in self._timetables:
            self._timetables[steps] = Timetable(
                self._topology, Conditions(), interval=6.0, window_steps=steps, seed=0
            )
        timetable, everybody = self._timetables[steps], range(len(self.participants))
        self.host.run(
            {i: timetable.timeline(i, window) for i in everybody},
            {i: timetable.in_flight(i, window) for i in everybody},
        )
        wait(self.device)

    def node_steps_a_second(self, least: float) -> float:
        """In windows after one that does not count, which take `least` seconds."""
        self.run(2, 1)
        began = time.perf_counter()
        self.run(2, 2)
        once = (time.perf_counter() - began) / 2
        steps = max(2, min(400, round(least / once)))
        self.run(1, 3)
        before = self._steps
        began = time.perf_counter()
        self.run(steps, 3)
        return (self._steps - before) / (time.perf_counter() - began)

    @property
    def _steps(self) -> int:
        return sum(participant.tally.steps for participant in self.participants)


def operations(name: str) -> int:
    """Floating-point operations of forward and backward of a minibatch."""
    module = build_model(
        name, in_channels=3, num_classes=CLASSES, image_size=SIDE, norm="group", seed=0
    )
    counter = FlopCounterMode(display=False)
    with counter:
        inputs = torch.zeros(BATCH, 3, SIDE, SIDE)
        functional.cross_entropy(module(inputs), torch.zeros(BATCH, dtype=torch.int64)).backward()
    return counter.get_total_flops()


def bare_steps_a_second(name: str, precision: str, device: str, least: float) -> float:
    """Of one model that somebody trains without any of this."""
    precise("tf32" if precision == "bf16" else precision)
    module = build_model(
        name, in_channels=3, num_classes=CLASSES, image_size=SIDE, norm="group", seed=0
    ).to(device)
    optimiser = torch.optim.SGD(module.parameters(), lr=RATE, momentum=0.9)
    images = torch.randint(0, 256, (1000, 3, SIDE, SIDE), dtype=torch.uint8, device=device)
    labels = torch.randint(0, CLASSES, (1000,), device=device)
    cast = torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")

    def step() -> None:
        chosen = torch.randperm(1000, device=device)[:BATCH]
        with cast:
            inputs = normalise(images[chosen], PREPARE.mean, PREPARE.std)
            loss = functional.cross_entropy(module(inputs), labels[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return 1 / seconds_of(step, device, least)


def agree(bench: Bench) -> None:
    for name in ("lenet", "resnet20"):
        for precision in PRECISIONS:
            rings = {e: Ring(name, 8, e, precision, bench.device) for e in ENGINES}
            due = [(p.node, 5) for p in rings[SEQUENTIAL].participants]
            noise = torch.Generator().manual_seed(0)
            for node, _ in due:
                node.weights.add_(0.02 * torch.randn(len(node.weights), generator=noise).to(
                    node.weights.device))  # fmt: skip
            sequential = rings[SEQUENTIAL].gradients
            expected = torch.stack([g.clone() for g in sequential(due)])
            for engine in PASSES:
                gradients = RowGradients(rings[engine].gradients, PASSES[engine])
                found = gradients(due).clone()
                error = (found - expected).norm(dim=1) / expected.norm(dim=1)
                bench.say("agree", [{
                    "model": name, "precision": precision, "engine": engine,
                    "largest_relative_difference": float(error.max()),
                    "repeats": torch.equal(found, gradients(due)),
                    "alone": torch.equal(found[2:3], gradients(due[2:3])),
                    "bits_of_sequential": torch.equal(found, expected),
                }])  # fmt: skip
    # All rows at once against one at a time, both with gradients of the streams.
    one, many = (Ring("lenet", 8, "streams", "float32", bench.device) for _ in range(2))
    single = RowGradients(one.gradients, PASSES["streams"])
    one.host = Host(one.participants, single, initial=_nobody, most=1)
    for ring in (one, many):
        ring.run(24, 1)
    same = all(
        torch.equal(a.node.weights, b.node.weights)
        for a, b in zip(one.participants, many.participants, strict=True)
    )
    bench.say("agree", [{"a window of nodes as rows has the bits of nodes one by one": same}])


def _nobody(_: int) -> torch.Tensor:
    raise AssertionError("no node starts anew")


def rings(bench: Bench) -> None:
    peak = peak_tflops(bench.device)
    least = SECONDS[bench.device]
    for name, nodes in RINGS[bench.device]:
        work = operations(name)
        # TF32 lies between the other two: at the first sizes it is seen how far.
        first = (name, nodes) in RINGS[bench.device][:2]
        for precision in PRECISIONS if first else ("float32", "bf16"):
            bare = bare_steps_a_second(name, precision, bench.device, least / 4)
            sequential = None
            for engine in ENGINES:
                if bench.over:
                    return
                if engine == SEQUENTIAL and nodes > SEQUENTIAL_NODES:
                    continue
                if bench.device == "cuda":
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats()
                row: dict[str, Any] = {
                    "model": name, "nodes": nodes, "precision": precision, "engine": engine
                }  # fmt: skip
                try:
                    ring = Ring(name, nodes, engine, precision, bench.device)
                    rate = ring.node_steps_a_second(least)
                except torch.OutOfMemoryError:
                    bench.say("rings", [{**row, "error": "out of memory"}])
                    continue
                if engine == SEQUENTIAL:
                    sequential = rate
                row |= {"node_steps_a_second": rate, "bare_steps_a_second": bare}
                row |= {"times_sequential": rate / sequential} if sequential else {}
                row |= {"share_of_peak": work * rate / peak / 1e12}
                if bench.device == "cuda":
                    row["gib"] = torch.cuda.max_memory_allocated() / 2**30
                bench.say("rings", [row])
                del ring


def arithmetic(bench: Bench) -> None:
    for name, nodes in RINGS[bench.device][:4]:
        if bench.over:
            return
        seconds = {}
        for idle in (True, False):
            ring = Ring(name, nodes, "streams", "float32", bench.device, idle=idle)
            seconds[idle] = 1 / ring.node_steps_a_second(SECONDS[bench.device])
        row = {"model": name, "nodes": nodes, "ms_a_node_step_without": 1000 * seconds[True]}
        bench.say("arithmetic", [{**row, "share": seconds[True] / seconds[False]}])


# For its metrics: models and images are of the ring.
TASK: dict[str, Any] = {
    "dataset": "cifar10", "data_root": "", "allow_missing_classes": False, "small_model": "lenet",
    "small_width": 0, "large_model": "lenet", "large_width": 0, "normalisation": "group",
}  # fmt: skip


def evaluate(bench: Bench) -> None:
    task, count = Images(**TASK), 1000
    for name, nodes in RINGS[bench.device][:4]:
        if bench.over:
            return
        ring = Ring(name, nodes, SEQUENTIAL, "float32", bench.device)
        weights = [p.node.weights for p in ring.participants]
        generator = torch.Generator().manual_seed(0)
        examples = Examples(
            torch.randn(count, 3, SIDE, SIDE, generator=generator),
            torch.randint(0, CLASSES, (count,), generator=generator),
        ).to(bench.device)
        milliseconds = {
            most: 1000 * seconds_of(
                partial(measured_of_each, task, ring.model, weights, examples, most),
                bench.device,
                SECONDS[bench.device],
            ) / nodes
            for most in (1, SIDE_BY_SIDE)
        }  # fmt: skip
        bench.say("evaluate", [{
            "model": name, "nodes": nodes, "images": count, "ms_a_node": milliseconds[1],
            "ms_a_node_side_by_side": milliseconds[SIDE_BY_SIDE],
        }])  # fmt: skip


FULL_STEPS = 20_400  # of each node


def full(bench: Bench) -> None:
    on_gpu = bench.device == "cuda"
    # The first to its end, of the others as much as says how long they take.
    for precision, most in (("bf16", 150.0), ("float32", 10.0), ("tf32", 10.0)) if on_gpu else (
        ("float32", 1.0),
    ):  # fmt: skip
        ring, window = Ring("resnet20", 8, "streams", precision, bench.device), 120 if on_gpu else 1
        ring.run(window, 1)
        began, done = time.perf_counter(), 0
        while done < FULL_STEPS and not bench.over and time.perf_counter() - began < most:
            ring.run(window, 2 + done // window)
            done += window
        seconds = time.perf_counter() - began
        if done:
            bench.say("full", [{
                "engine": "streams", "precision": precision, "steps": done, "seconds": seconds,
                "seconds_of_all": seconds * FULL_STEPS / done,
            }])  # fmt: skip
