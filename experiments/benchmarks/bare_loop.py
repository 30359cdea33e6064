"""The work of a run without the run: plain PyTorch in a process a core, nothing between them."""

import os
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context, parent_process
from multiprocessing.synchronize import Barrier, Event, Semaphore
from typing import Any

import torch
from torch.nn import functional

from client_apps.engines import one_by_one
from fl_app.assemble import dataset_of
from fl_app.config import Value, resolve
from fl_app.data.augment import augment
from fl_app.problem import problem_of
from fl_app.settings import nodes_run_of
from strategies.allocator import keep_freed_memory
from strategies.consensus.fleet import spread
from strategies.consensus.node import Node
from strategies.distillation.losses import distillation_loss, ema_decay
from strategies.problem import flat_model, module_of, proxy_data, split_of, task_of
from strategies.randomness import rng

_WARM_UP = 5  # steps before the clock starts
_ORPHANED_SECONDS = 2.0  # between two looks whether somebody is still there
# Of one process: "start", "end" (time.monotonic), "held" (seconds between them in which it was) and
# "cpu" (seconds).
Loop = dict[str, float]
Work = Sequence[tuple[Callable[..., Loop], tuple[Any, ...]]]  # functions and their arguments


def bare(values: dict[str, Value], client_steps: int, distillation_steps: int) -> dict[str, Any]:
    """Do so many steps of local training and of reverse distillation at the same time.

    Each kind has a process with one thread. wall: from the common start until both have ended;
    clients, distillation: seconds of each; cpu: processor seconds of both.
    """
    clients, distillation = at_once(
        [(_clients, (values, client_steps)), (_distillation, (values, distillation_steps))]
    )
    return {
        **total([clients, distillation]),
        "clients": clients["end"] - clients["start"],
        "distillation": distillation["end"] - distillation["start"],
    }


def node_loops(values: dict[str, Value], hosts: int, steps: int) -> Work:
    """For `at_once` or `Loops`: `steps` local steps of every node of a consensus run, who are
    spread over `hosts` processes with one thread each as a run spreads them."""
    nodes = range(resolve(values).participants)
    return [(_nodes, (values, own, steps)) for own in spread(nodes, hosts)]


def bare_nodes(values: dict[str, Value], hosts: int, steps: int) -> dict[str, float]:
    """Do what `node_loops` says, and say how long it took: see `total`."""
    return total(at_once(node_loops(values, hosts, steps)))


class Loops:
    """Functions with their arguments, each in a process of its own with one thread.

    They start their clocks together, in `timed`, and can be held between two steps; their clocks do
    not run while they are.
    """

    def __init__(self, work: Work) -> None:
        context = get_context("spawn")
        shared = context.Barrier(len(work)), context.Semaphore(0), context.Event()
        _, self._ready, self._go = shared
        self._pool = context.Pool(len(work), _join, shared)
        self._loops = [self._pool.apply_async(function, arguments) for function, arguments in work]

    def __enter__(self) -> "Loops":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.terminate()

    def wait_until_ready(self) -> None:
        """Until all could start their clocks. Raises what one of them raised instead."""
        for _ in self._loops:
            while not self._ready.acquire(timeout=1.0):
                for loop in self._loops:
                    if loop.ready():
                        loop.get()

    def go(self) -> None:
        self._go.set()

    def hold(self) -> None:
        self._go.clear()

    @property
    def over(self) -> bool:
        """Whether all have ended."""
        return all(loop.ready() for loop in self._loops)

    def results(self) -> list[Loop]:
        """Of all, once they have ended."""
        return [loop.get() for loop in self._loops]


def at_once(work: Work) -> list[Loop]:
    """What all functions with their arguments return, each from a process of its own."""
    with Loops(work) as loops:
        loops.go()
        return loops.results()


def wall(loops: Sequence[Loop]) -> float:
    """Seconds from the common start until all have ended, less those in which they were held."""
    return max(loop["end"] - loop["held"] for loop in loops) - min(loop["start"] for loop in loops)


def total(loops: Sequence[Loop]) -> dict[str, float]:
    """wall: see there; cpu: processor seconds of all."""
    return {"wall": wall(loops), "cpu": sum(loop["cpu"] for loop in loops)}


_start: Barrier
_ready: Semaphore
_go: Event


def _join(start: Barrier, ready: Semaphore, go: Event) -> None:
    global _start, _ready, _go
    _start, _ready, _go = start, ready, go
    keep_freed_memory()  # as the processes of a run do
    torch.set_num_threads(1)


def _wait_to_go() -> None:
    """Until the loops may go on; for ever is too long if who says so has been killed."""
    parent = parent_process()
    while not _go.wait(_ORPHANED_SECONDS):
        if parent is not None and not parent.is_alive():
            os._exit(1)


def timed(step: Callable[[int], None], steps: int) -> Loop:
    """Call step(number) `steps` times, from when the other processes are ready too."""
    for number in range(_WARM_UP):
        step(number)
    _start.wait()
    _ready.release()
    _wait_to_go()
    start, cpu, held = time.monotonic(), time.process_time(), 0.0
    for number in range(steps):
        if not _go.is_set():
            since = time.monotonic()
            _wait_to_go()
            held += time.monotonic() - since
        step(number)
    return {
        "start": start,
        "end": time.monotonic(),
        "held": held,
        "cpu": time.process_time() - cpu,
    }


def _clients(values: dict[str, Value], steps: int) -> Loop:
    """Local training of one participant: SGD with momentum on augmented minibatches."""
    config = resolve(values)
    dataset, part = dataset_of(config), split_of(problem_of(config)).participants[0]
    images = torch.from_numpy(dataset.train.images[part])
    labels = torch.from_numpy(dataset.train.labels[part])
    model = module_of(problem_of(config), "small").train()
    optimizer = torch.optim.SGD(
        model.parameters(), config.learning_rate, config.momentum, weight_decay=config.weight_decay
    )
    generator = rng(config.seed, "bare")
    order = torch.from_numpy(generator.permutation(len(labels)))
    batches = order[: len(order) // config.batch_size * config.batch_size].split(config.batch_size)

    def step(number: int) -> None:
        chosen = batches[number % len(batches)]
        x = augment(
            images[chosen], generator, mean=dataset.mean, std=dataset.std, flip=dataset.flip
        )
        optimizer.zero_grad()
        functional.cross_entropy(model(x), labels[chosen]).backward()
        optimizer.step()

    return timed(step, steps)


def _nodes(values: dict[str, Value], nodes: Sequence[int], steps: int) -> Loop:
    """Local training of several nodes in turn: SGD on flat vectors, the least that it can cost.

    With ordinary parameters and torch.optim, the step would take longer than with one vector.
    """
    config = resolve(values)
    gradients = one_by_one(nodes_run_of(config), nodes)
    own = [Node(node, flat_model(problem_of(config), "small").weights) for node in nodes]
    momenta = [torch.zeros_like(node.weights) for node in own]
    keep, rate = config.consensus.momentum, config.consensus.step_size

    def step(number: int) -> None:
        turn, position = divmod(number, len(own))
        [gradient] = gradients([(own[position], turn)])
        momenta[position].lerp_(gradient, 1 - keep)
        own[position].weights.add_(momenta[position], alpha=-rate)

    return timed(step, steps * len(own))


def _distillation(values: dict[str, Value], steps: int) -> Loop:
    """Reverse distillation: AdamW towards the teacher's logits, and the weights' average."""
    config = resolve(values)
    distill, proxy, task = (
        config.distill,
        proxy_data(problem_of(config)),
        task_of(problem_of(config)),
    )
    teacher, student = (
        module_of(problem_of(config), "small").eval(),
        module_of(problem_of(config), "large").train(),
    )
    optimizer = torch.optim.AdamW(
        student.parameters(), distill.learning_rate, weight_decay=distill.weight_decay
    )
    average = [tensor.detach().clone() for tensor in _state(student)]
    generator = rng(config.seed, "bare")

    def step(number: int) -> None:
        x, labels = proxy.batch(proxy.draw(generator, distill.batch_size, distill.labelled_share))
        with torch.no_grad():
            target = teacher(x)
        optimizer.zero_grad()
        weight = distill.label_weight
        temperature = distill.temperature
        distillation_loss(task, student(x), target, temperature, labels, weight).backward()
        optimizer.step()
        with torch.no_grad():
            for kept, tensor in zip(average, _state(student), strict=True):
                kept.lerp_(tensor, 1 - ema_decay(number))

    return timed(step, steps)


def _state(model: torch.nn.Module) -> list[torch.Tensor]:
    floating = (b for b in model.buffers() if b.is_floating_point())
    return [*model.parameters(), *floating]
