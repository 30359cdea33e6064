"""The engines that compute the gradients of a host's nodes, and which is faster on its device."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict

from client_apps.bench import bench_of, shard_of
from client_apps.gradients import Gradients
from client_apps.stacked import StackedGradients
from fl_app.config import RunConfig, resolve
from strategies.consensus import host
from strategies.consensus.node import Node

SEQUENTIAL, STACKED = "sequential", "stacked"
_WARM_UP = 3  # rounds before a clock starts: a GPU loads what it runs when it is first used
_ROUNDS = 10


def one_by_one(config: RunConfig, nodes: Sequence[int], own_data: str = "") -> Gradients:
    """The gradients of `nodes` at their own data, one node after the other."""
    bench, c = bench_of(config), config.consensus
    everybody = config.participants
    return Gradients(
        bench.model,
        {node: shard_of(config, node, own_data) for node in nodes},
        {
            node: c.batch_size * (everybody if config.reference_of(node) == "same-samples" else 1)
            for node in nodes
        },
        seed=config.seed,
        prepare=bench.preparation(c.augment),
    )


def engines_of(
    config: RunConfig, nodes: Sequence[int], own_data: str = ""
) -> dict[str, host.Gradients]:
    """Both engines by their names, for `nodes` at their own data."""
    sequential = one_by_one(config, nodes, own_data)
    return {SEQUENTIAL: sequential, STACKED: StackedGradients(sequential, bench_of(config).model)}


def race(
    engines: Mapping[str, host.Gradients], nodes: Sequence[Node], rounds: int = _ROUNDS
) -> dict[str, float]:
    """Seconds that each of the engines takes for a gradient of a node: the mean of `rounds` of all
    `nodes`, engine by engine in turn. Infinity for one that has not enough memory on its device."""
    seconds = dict.fromkeys(engines, 0.0)
    for step in range(_WARM_UP + rounds):
        for name, gradients in engines.items():
            try:
                spent = _seconds_of(gradients, nodes, step)
            except torch.OutOfMemoryError:
                spent = math.inf
            seconds[name] += spent if step >= _WARM_UP else 0.0
    return {name: spent / rounds / len(nodes) for name, spent in seconds.items()}


def _seconds_of(gradients: host.Gradients, nodes: Sequence[Node], step: int) -> float:
    device = nodes[0].weights.device
    _await(device)
    began = time.perf_counter()
    for gradient in gradients([(node, step) for node in nodes]):
        gradient.neg_()  # a node's own work on it, next to nothing
    _await(device)
    return time.perf_counter() - began


def _await(device: torch.device) -> None:
    """Until the device has done what it was given: a GPU goes on after a call has returned."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def choose(message: Message, context: Context) -> Message:
    """Say which engine is faster on this device for the nodes in the message.

    In: config nodes. Out: config engine, and gain: how many times as fast stacked gradients are, 0
    where that was not measured. It is not on a CPU: stacked ones are slower there, and the bits of
    sequential ones are the same on any number of hosts.
    """
    config = resolve(dict(context.run_config))
    order: Any = message.content["config"]
    nodes: list[int] = list(order["nodes"])
    bench, gain = bench_of(config), 0.0
    if bench.device != "cpu":
        torch.set_num_threads(config.client_threads)
        own_data = str(context.node_config.get("data-path", ""))
        copies = [Node(i, bench.model.weights.clone()) for i in nodes]
        seconds = race(engines_of(config, nodes, own_data), copies)
        gain = seconds[SEQUENTIAL] / seconds[STACKED]
    answer = {"engine": STACKED if gain > 1 else SEQUENTIAL, "gain": gain}
    return Message(RecordDict({"config": ConfigRecord(answer)}), reply_to=message)
