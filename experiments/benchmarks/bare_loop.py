"""The work of a run without the run: plain PyTorch in a process a core, nothing between them."""

import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from typing import Any

import torch
from torch.nn import functional

from client_apps.bench import bench_of, shard_of
from client_apps.gradients import Gradients
from fl_app.assemble import dataset_of, flat_model, module_of, proxy_data, split_of
from fl_app.config import RunConfig, Value, resolve
from fl_app.data.augment import augment
from fl_app.memory import keep_freed_memory
from strategies.consensus.fleet import spread
from strategies.consensus.node import Node
from strategies.distillation.losses import distillation_loss, ema_decay
from strategies.randomness import rng

_WARM_UP = 5  # steps before the clock starts
Loop = dict[str, float]  # "start", "end" (time.monotonic) and "cpu" (seconds) of one process


def bare(values: dict[str, Value], client_steps: int, distillation_steps: int) -> dict[str, Any]:
    """Do so many steps of local training and of reverse distillation at the same time.

    Each kind has a process with one thread. wall: from the common start until both have ended;
    clients, distillation: seconds of each; cpu: processor seconds of both.
    """
    clients, distillation = at_once(
        [(_clients, (values, client_steps)), (_distillation, (values, distillation_steps))]
    )
    return {
        "wall": wall([clients, distillation]),
        "clients": clients["end"] - clients["start"],
        "distillation": distillation["end"] - distillation["start"],
        "cpu": clients["cpu"] + distillation["cpu"],
    }


def bare_nodes(values: dict[str, Value], hosts: int, steps: int) -> dict[str, float]:
    """Do `steps` local steps of every node of a consensus run, who are spread over `hosts`
    processes with one thread each as a run spreads them.

    wall: from the common start until all have ended; cpu: processor seconds of all.
    """
    nodes = range(resolve(values).participants)
    loops = at_once([(_nodes, (values, own, steps)) for own in spread(nodes, hosts)])
    return {"wall": wall(loops), "cpu": sum(loop["cpu"] for loop in loops)}


def at_once(work: Sequence[tuple[Callable[..., Loop], tuple[Any, ...]]]) -> list[Loop]:
    """Each function with its arguments in a process of its own with one thread; all start their
    clocks together, in `timed`."""
    context = get_context("spawn")
    barrier = context.Barrier(len(work))
    with context.Pool(len(work), _join, (barrier,)) as pool:
        loops = [pool.apply_async(function, arguments) for function, arguments in work]
        return [loop.get() for loop in loops]


def wall(loops: Sequence[Loop]) -> float:
    """Seconds from the common start until all have ended."""
    return max(loop["end"] for loop in loops) - min(loop["start"] for loop in loops)


_barrier: Barrier


def _join(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier
    keep_freed_memory()  # as the processes of a run do
    torch.set_num_threads(1)


def timed(step: Callable[[int], None], steps: int) -> Loop:
    """Call step(number) `steps` times, from when the other processes are ready too."""
    for number in range(_WARM_UP):
        step(number)
    _barrier.wait()
    start, cpu = time.monotonic(), time.process_time()
    for number in range(steps):
        step(number)
    return {"start": start, "end": time.monotonic(), "cpu": time.process_time() - cpu}


def _clients(values: dict[str, Value], steps: int) -> Loop:
    """Local training of one participant: SGD with momentum on augmented minibatches."""
    config = resolve(values)
    dataset, part = dataset_of(config), split_of(config).participants[0]
    images = torch.from_numpy(dataset.train.images[part])
    labels = torch.from_numpy(dataset.train.labels[part])
    model = module_of(config, "small").train()
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
    gradients = gradients_of(config, nodes)
    own = [Node(node, flat_model(config, "small").weights) for node in nodes]
    momenta = [torch.zeros_like(node.weights) for node in own]
    keep, rate = config.consensus.momentum, config.consensus.learning_rate

    def step(number: int) -> None:
        turn, position = divmod(number, len(own))
        [gradient] = gradients([(own[position], turn)])
        momenta[position].lerp_(gradient, 1 - keep)
        own[position].weights.add_(momenta[position], alpha=-rate)

    return timed(step, steps * len(own))


def gradients_of(config: RunConfig, nodes: Sequence[int]) -> Gradients:
    """The gradients of a run's nodes at their own data, one after the other."""
    bench, c = bench_of(config), config.consensus
    return Gradients(
        bench.model,
        {node: shard_of(config, node, "") for node in nodes},
        dict.fromkeys(nodes, c.batch_size),
        seed=config.seed,
        mean=bench.mean,
        std=bench.std,
        flip=bench.flip,
        augmented=c.augment,
    )


def _distillation(values: dict[str, Value], steps: int) -> Loop:
    """Reverse distillation: AdamW towards the teacher's logits, and the weights' average."""
    config = resolve(values)
    distill, proxy = config.distill, proxy_data(config)
    teacher, student = module_of(config, "small").eval(), module_of(config, "large").train()
    optimizer = torch.optim.AdamW(
        student.parameters(), distill.learning_rate, weight_decay=distill.weight_decay
    )
    average = [tensor.detach().clone() for tensor in _state(student)]
    generator = rng(config.seed, "bare")

    def step(number: int) -> None:
        chosen = torch.from_numpy(generator.integers(0, len(proxy.images), distill.batch_size))
        x = augment(
            proxy.images[chosen], generator, mean=proxy.mean, std=proxy.std, flip=proxy.flip
        )
        labels = proxy.labels[chosen] if proxy.labels is not None else None
        with torch.no_grad():
            target = teacher(x)
        optimizer.zero_grad()
        weight = distill.label_weight if config.switch("labels") else 0.0
        distillation_loss(student(x), target, distill.temperature, labels, weight).backward()
        optimizer.step()
        with torch.no_grad():
            for kept, tensor in zip(average, _state(student), strict=True):
                kept.lerp_(tensor, 1 - ema_decay(number))

    return timed(step, steps)


def _state(model: torch.nn.Module) -> list[torch.Tensor]:
    floating = (b for b in model.buffers() if b.is_floating_point())
    return [*model.parameters(), *floating]
