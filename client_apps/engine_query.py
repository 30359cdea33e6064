"""Which engine of gradients a run should take, asked of one of its hosts."""

import contextlib
from typing import Any

import torch
from flwr.app import ConfigRecord, Message, RecordDict

from client_apps.bench import bench_of
from client_apps.device import Device
from client_apps.engines import ENGINES, SEQUENTIAL, engine_of, race
from strategies.consensus.node import Node


def choose(message: Message, device: Device) -> Message:
    """Say which engine is fastest on this device for the nodes in the message.

    In: config nodes. Out: config engine, and gain: how many times as fast as sequential it is, 0
    where that was not measured. It is not on a CPU: the others are slower there.
    """
    nodes_run = device.settings.nodes
    order: Any = message.content["config"]
    nodes: list[int] = list(order["nodes"])
    bench, best, gain = bench_of(nodes_run.problem), SEQUENTIAL, 0.0
    if bench.device != "cpu":
        torch.set_num_threads(nodes_run.client_threads)
        copies = [Node(i, bench.model.weights.clone()) for i in nodes]
        engines = {}
        for name in ENGINES:
            with contextlib.suppress(ValueError):  # it cannot compute this model
                engines[name] = engine_of(name, nodes_run, nodes, device.own_data)
        seconds = race(engines, copies)
        best = min(seconds, key=lambda name: seconds[name])
        gain = seconds[SEQUENTIAL] / seconds[best]
    answer = {"engine": best, "gain": gain}
    return Message(RecordDict({"config": ConfigRecord(answer)}), reply_to=message)
