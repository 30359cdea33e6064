"""What a GPU makes of many small models: a ring of nodes, participants of an average.

    python -m experiments.benchmarks.gpu [--only rings,average] [--limit SECONDS] [--out FILE]

prints JSON, and writes it to --out after every measurement. It needs PyTorch and NumPy, and neither
Flower nor Ray: the nodes of a run on one host, in one process. Everything is measured in one
invocation on one card; images are noise except where accuracy is measured. On a CPU it runs to its
end as well, at sizes at which that is bearable.

card: what the card does with a large matrix product in bfloat16, and with a copy.
agree: engines against the sequential one on equal nodes: the largest difference of a gradient, by
    its length; whether two calls give equal bits; whether a node has the bits of one after the
    other; and whether a whole window (steps, exchanges) of nodes as rows has the bits of nodes one
    by one when the gradients are equal.
rings: node-steps a second of a ring with the default algorithm, K = 6, batch 32, by model, nodes,
    engine and precision: timetable, host, gradients, algorithm, mail; no evaluation, no files.
    sequential is one node after the other. bare: minibatches of one plain model with
    torch.optim.SGD, no nodes. share_of_peak: floating-point operations of forward and backward by
    those of the card's matrix product.
arithmetic: a step of all nodes without gradients, by one with them.
average: one round of federated averaging, participants side by side and one after the other; with
    100 participants, 5 epochs of 10 minibatches of 50 images and a LeNet of 0.25 MB it is a round
    of BlazeFL's benchmark (documentation of 1.1: 1.4 to 3.7 rounds a minute on an A100).
distill: the distillation server's steps a second, default models and embedded images: one by one,
    and as a recorded program; by how much of what they have changed the models differ then, and
    whether the program repeats bit by bit.
full: the time that the row `ecl` of experiments.consensus --size full takes: ResNet-20, ring of 8,
    20,400 steps of each node, on noise; as many of them as there is time for, and so all.
accuracy: the application's default consensus run, by engine and precision: test accuracy of its
    nodes and the consensus distance in the end.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from client_apps.bench import bench_of, shard_of
from client_apps.gradients import Gradients, dtype_of
from client_apps.row_gradients import PASSES, Programs, RowGradients, everything
from client_apps.side_by_side import Job, train_side_by_side
from client_apps.training import train_locally
from experiments.benchmarks.output import rounded
from fl_app.config import resolve
from fl_app.data import ImageSet, Preparation, normalise
from fl_app.models import build_model
from fl_app.problem import problem_of
from fl_app.provenance import provenance
from fl_app.settings import distillation_run_of, nodes_run_of, training_of
from fl_app.tasks.images import examples_of
from strategies.consensus.algorithms import Settings, make_algorithm
from strategies.consensus.host import Host
from strategies.consensus.node import Node
from strategies.consensus.participant import Participant
from strategies.consensus.rates import rate_of
from strategies.consensus.schedule import Conditions, Timetable
from strategies.consensus.shared import nodes_of
from strategies.consensus.topology import build_topology
from strategies.distillation.learner import Learner
from strategies.evaluation import evaluation_set
from strategies.flat import FlatModel
from strategies.problem import flat_model, proxy_data, task_of
from strategies.randomness import rng
from strategies.task import Examples

SEQUENTIAL = "sequential"
ENGINES = (SEQUENTIAL, *PASSES)
PRECISIONS = ("float32", "tf32", "bf16")
BATCH, IMAGES, CLASSES, SIDE, RATE = 32, 128, 10, 32, 0.05
PREPARE = Preparation((0.5,) * 3, (0.25,) * 3)
LOSS = functional.cross_entropy
SETTINGS = Settings(
    interval=6.0, hold=True, forget=1.0, theta=0.5, kappa=1.0, mult=1.0, penalty="isvr", alpha=1.0,
    rho=0.0, momentum=0.9, weight_decay=0.0, keep=0.1, compression="random-k", gamma=0.3, seed=0,
)  # fmt: skip
# (model, nodes) of rings on a GPU, and on a CPU.
RINGS = {
    "cuda": [("lenet", 64), ("resnet20", 8), ("lenet", 8), ("lenet", 256), ("lenet", 1024),
             ("resnet20", 32), ("resnet20", 128)],
    "cpu": [("lenet", 8)],
}  # fmt: skip
_SEQUENTIAL_NODES = 64  # more take as long each
_SECONDS = {"cuda": 0.8, "cpu": 1.0}  # that something is measured for, at least


@dataclass
class Bench:
    """Where to measure, until when, and where to write what was found."""

    device: str
    until: float
    out: Path | None
    found: dict[str, Any]

    def say(self, part: str, value: Any) -> None:
        """Keep a finding of a part: append it to a list, or take in a dictionary."""
        if isinstance(value, list):
            self.found.setdefault(part, []).extend(value)
        else:
            self.found.setdefault(part, {}).update(value)
        print(f"{part}: {json.dumps(rounded(value))}", file=sys.stderr, flush=True)
        if self.out:
            self.out.write_text(json.dumps(rounded(self.found), indent=1) + "\n")

    @property
    def over(self) -> bool:
        return time.monotonic() > self.until


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], Any], device: str, least: float = 0.3) -> float:
    """Of one call, after two that do not count."""
    for _ in range(2):
        work()
    wait(device)
    count, began = 0, time.perf_counter()
    while True:
        work()
        count += 1
        if count % 8 == 0 or device != "cuda":
            wait(device)
        if time.perf_counter() - began > least:
            wait(device)
            return (time.perf_counter() - began) / count


def precise(precision: str) -> torch.dtype:
    """Have PyTorch compute in this precision as a run does; returns the type of the arithmetic."""
    torch.backends.cudnn.deterministic = True
    return dtype_of(precision)


# -- a ring -----------------------------------------------------------------------------------


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


# -- parts --------------------------------------------------------------------------------------


def peak_tflops(device: str) -> float:
    """What a large matrix product in bfloat16 gets out of the device."""
    side = 8192 if device == "cuda" else 1024
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    return 2 * side**3 / seconds_of(lambda: a @ a, device) / 1e12


def card(bench: Bench) -> None:
    device = bench.device
    b = torch.randn(2**27 if device == "cuda" else 2**22, device=device)
    c = torch.empty_like(b)
    bench.say("card", {
        "name": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "torch": torch.__version__,
        "bf16_tflops": peak_tflops(device),
        "copy_tb_a_second": 2 * b.nbytes / seconds_of(lambda: c.copy_(b), device) / 1e12,
    })  # fmt: skip


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
    least = _SECONDS[bench.device]
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
                if engine == SEQUENTIAL and nodes > _SEQUENTIAL_NODES:
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
            seconds[idle] = 1 / ring.node_steps_a_second(_SECONDS[bench.device])
        row = {"model": name, "nodes": nodes, "ms_a_node_step_without": 1000 * seconds[True]}
        bench.say("arithmetic", [{**row, "share": seconds[True] / seconds[False]}])


def average(bench: Bench) -> None:
    device = bench.device
    jobs_of = (3, 100) if device == "cuda" else (3,)
    for name, norm in (("lenet-tracking", "group"), ("cnn6", "batch")):
        for participants in jobs_of:
            for precision in ("float32", "bf16") if norm == "group" else ("float32",):
                if bench.over:
                    return
                bench.say("average", [_round(name, norm, participants, precision, device)])


def _round(name: str, norm: str, participants: int, precision: str, device: str) -> dict[str, Any]:
    """A round: everybody trains from one model, and the results are averaged."""
    dtype = precise(precision)
    images, epochs, batch = 500, 5 if device == "cuda" else 1, 50
    config = replace(
        resolve({"mode": "average", "participants": participants}),
        local_steps=epochs * images // batch, batch_size=batch,
    )  # fmt: skip
    model = FlatModel(
        build_model(name, in_channels=3, num_classes=10, image_size=SIDE, norm=norm, seed=0), device
    )
    model.module.train()
    pixels = torch.randint(0, 256, (images, 3, SIDE, SIDE), dtype=torch.uint8, device=device)
    labels = torch.randint(0, CLASSES, (images,), device=device)
    everybody = range(participants)
    everything_, all_labels, begins = everything((p, pixels, labels) for p in everybody)
    prepare = replace(PREPARE, flip=True, augmented=True)
    way = PASSES["streams" if len(model.buffers) or precision == "float32" else "stacked"]
    programs = Programs(model, everything_, all_labels, prepare, LOSS, way, dtype)
    state = model.state()

    def together() -> None:
        jobs = [
            Job(state["weights"], state["buffers"], begins[p], images, rng(0, "batches", p))
            for p in everybody
        ]
        trained = train_side_by_side(programs, jobs, training_of(config))
        np.mean([each.state["weights"] for each in trained], axis=0)

    def alone() -> None:
        model.load(state["weights"], state["buffers"])
        train_locally(
            model, Examples(pixels, labels), training_of(config), rng(0, "batches", 0),
            prepare=prepare, loss=LOSS,
        )  # fmt: skip

    together()  # programs are recorded
    seconds = []
    for work in (together, alone):
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        seconds.append(time.perf_counter() - began)
    round_seconds, one = seconds
    row = {
        "model": name, "normalisation": norm, "parameters": len(model.weights),
        "participants": participants, "precision": precision, "minibatches": config.local_steps,
        "engine": next(n for n, each in PASSES.items() if each is way),
        "round_seconds": round_seconds,
        "steps_a_second": participants * config.local_steps / round_seconds,
    }  # fmt: skip
    if precision == "float32":
        row["times_one_after_the_other"] = participants * one / round_seconds
    return row


def distill(bench: Bench) -> None:
    for precision in PRECISIONS if bench.device == "cuda" else ("float32", "bf16"):
        if bench.over:
            return
        bench.say("distill", [_distilled(precision, bench.device)])


def _distilled(precision: str, device: str) -> dict[str, Any]:
    precise(precision)
    config = resolve({"precision": precision})
    start = torch.from_numpy(flat_model(problem_of(config), "large").state()["weights"])
    learners = {
        name: Learner(
            distillation_run_of(config),
            task_of(problem_of(config)),
            flat_model(problem_of(config), "large", device),
            flat_model(problem_of(config), "small", device),
            proxy_data(problem_of(config)).to(device),
            records=name != "one by one",
        )
        for name in ("one by one", "recorded", "again")
    }
    steps = 50 if device == "cuda" else 2
    row: dict[str, Any] = {"precision": precision}
    changes, teacher = {}, flat_model(problem_of(config), "small").state()
    for name, learner in learners.items():
        learner.set_teacher(1, **teacher)
        learner.reverse_step()
        wait(device)
        began = time.perf_counter()
        for _ in range(steps):
            learner.reverse_step()
        wait(device)
        if name != "again":
            row[f"steps_a_second_{name.replace(' ', '_')}"] = steps / (time.perf_counter() - began)
        changes[name] = torch.from_numpy(learner.state()[0]["weights"]) - start
    plain, recorded, again = changes.values()
    difference = float((recorded - plain).norm() / plain.norm())
    return {**row, "difference": difference, "repeats": torch.equal(recorded, again)}


FULL_STEPS = 20_400  # of each node


def full(bench: Bench) -> None:
    on_gpu = bench.device == "cuda"
    # The first to its end, of the others as much as says how long they take.
    for precision, most in (("bf16", 150.0), ("float32", 30.0), ("tf32", 30.0)) if on_gpu else (
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


def accuracy(bench: Bench) -> None:
    """Three seeds of each precision, on streams: see what `agree` says of one node after the other,
    which takes twenty times as long."""
    on_gpu = bench.device == "cuda"
    for seed in range(3 if on_gpu else 1):
        for precision in PRECISIONS if on_gpu else ("float32",):
            if bench.over:
                return
            bench.say("accuracy", [_default_run(precision, seed, bench)])


def _default_run(precision: str, seed: int, bench: Bench) -> dict[str, Any]:
    """The default run of the consensus system without its reference."""
    dtype = precise(precision)
    values: dict[str, Any] = {
        "mode": "consensus", "seed": seed, "device": bench.device, "consensus.references": "",
    }  # fmt: skip
    if bench.device != "cuda":
        values |= {"consensus.steps": 84}
    config = resolve(values)
    c, everybody = config.consensus, range(config.participants)
    topology, algorithm, timetable = nodes_of(nodes_run_of(config), "")
    kit = bench_of(problem_of(config))
    model = flat_model(problem_of(config), "small", bench.device)
    initial = model.weights.clone()
    gradients = Gradients(
        model,
        {i: shard_of(problem_of(config), i, "") for i in everybody},
        dict.fromkeys(everybody, c.batch_size),
        seed=seed,
        prepare=kit.task.prepare(c.augment),
        loss=kit.task.loss,
        dtype=dtype,
    )
    examples = [len(shard_of(problem_of(config), i, "")) for i in everybody]
    people = [
        Participant(
            Node(i, initial.clone()), algorithm, topology.neighbours[i],
            len(examples) * examples[i] / sum(examples),
        )
        for i in everybody
    ]  # fmt: skip
    for participant in people:
        algorithm.start(participant.node)
    options: dict[str, Any] = {"initial": lambda _: initial}
    host = Host(people, RowGradients(gradients, PASSES["streams"]), **options)
    wait(bench.device)
    began = time.perf_counter()
    for window in range(1, config.rounds + 1):
        for participant in people:
            participant.change_rate(rate_of(c.schedule, c.step_size, window, config.rounds))
        host.run(
            {i: timetable.timeline(i, window) for i in everybody},
            {i: timetable.in_flight(i, window) for i in everybody},
        )
    wait(bench.device)
    seconds = time.perf_counter() - began
    test = evaluation_set(problem_of(config), bench.device)
    weights = torch.stack([p.node.weights for p in people])
    model.module.eval()
    shares = list(_accuracies(model, weights, test.inputs, test.targets))
    spread = (weights - weights.mean(0)).square().sum(1).mean().sqrt() / weights.mean(0).norm()
    return {
        "engine": "streams", "precision": precision, "seed": seed, "seconds": seconds,
        "node_steps_a_second": sum(p.tally.steps for p in people) / seconds,
        "nodes_mean": 100 * float(np.mean(shares)), "nodes_lowest": 100 * min(shares),
        "consensus_distance": float(spread),
    }  # fmt: skip


@torch.no_grad()
def _accuracies(
    model: FlatModel, weights: torch.Tensor, inputs: torch.Tensor, labels: torch.Tensor
) -> Iterator[float]:
    for own in weights:
        model.weights.copy_(own)
        found = torch.cat([model.module(part).argmax(1) for part in inputs.split(1000)])
        yield float((found == labels).float().mean())


# What takes longest last, should the time be up before it is over.
PARTS: Mapping[str, Callable[[Bench], None]] = {
    "card": card,
    "agree": agree,
    "distill": distill,
    "full": full,
    "average": average,
    "accuracy": accuracy,
    "arithmetic": arithmetic,
    "rings": rings,
}


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.gpu")
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--limit", type=float, default=360.0, metavar="SECONDS")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args(words)
    chosen = arguments.only.split(",")
    if unknown := [name for name in chosen if name not in PARTS]:
        parser.error(f"{', '.join(unknown)}: choose from {', '.join(PARTS)}")
    began, found = time.monotonic(), {"command": _command(words), "code": [provenance()]}
    for name in PARTS:
        left = arguments.limit - (time.monotonic() - began)
        if name in chosen and left > 0:
            # Each in a process of its own: after some errors a GPU does nothing more for a process.
            found |= _alone(name, left, arguments) if chosen[1:] else _part(name, left, arguments)
            if arguments.out:
                arguments.out.write_text(json.dumps(rounded(found), indent=1) + "\n")
    print(json.dumps(rounded(found), indent=1))
    return 0


def _part(name: str, seconds: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one part in this process."""
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    bench = Bench(arguments.device, time.monotonic() + seconds, arguments.out, {})
    try:
        PARTS[name](bench)
    except RuntimeError as error:  # what has been measured is kept, whatever came then
        traceback.print_exc()
        bench.say(f"{name}_error", {"error": str(error).splitlines()[0]})
    return bench.found


def _alone(name: str, seconds: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one part in a process of its own, and read what it has found from its file."""
    with tempfile.TemporaryDirectory() as folder:
        # Beside --out, where it stays if somebody ends this process meanwhile.
        aside = arguments.out or Path(folder) / "found.json"
        out = aside.with_suffix(f".{name}.json")
        command = [
            sys.executable, "-m", "experiments.benchmarks.gpu", "--only", name, "--out", str(out),
            "--limit", str(seconds), "--device", arguments.device,
        ]  # fmt: skip
        began = time.monotonic()
        ended = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        found = json.loads(out.read_text()) if out.exists() else {}
        out.unlink(missing_ok=True)
    found = {key: value for key, value in found.items() if key not in ("command", "code")}
    spent = {f"{name}_seconds": time.monotonic() - began}
    return found | spent | ({f"{name}_exit": ended.returncode} if ended.returncode else {})


def _command(words: Sequence[str] | None) -> str:
    shown = sys.argv[1:] if words is None else words
    return shlex.join(["python", "-m", "experiments.benchmarks.gpu", *shown])


if __name__ == "__main__":
    sys.exit(main())
