"""Which engine of gradients a run should take, asked of one of its hosts."""

import contextlib

import torch
from flwr.app import Message

from client_apps.device import Device
from client_apps.engines import ENGINES, SEQUENTIAL, engine_of, race
from client_apps.local_model import local_model_of
from strategies.consensus.node import Node
from strategies.messages.codec import message_of, records_of
from strategies.messages.queries import EngineOrder, FastestEngine


def choose(message: Message, device: Device) -> Message:
    """Say which engine is fastest on this device for the nodes in the message.

    On a CPU that is "sequential", and nothing is measured: the others are slower there.
    """
    nodes_run = device.settings.nodes
    nodes = message_of(EngineOrder, message.content).nodes
    local, best, gain = local_model_of(nodes_run.problem), SEQUENTIAL, 0.0
    if local.device != "cpu":
        torch.set_num_threads(nodes_run.client_threads)
        copies = [Node(i, local.model.weights.clone()) for i in nodes]
        engines = {}
        for name in ENGINES:
            with contextlib.suppress(ValueError):  # it cannot compute this model
                engines[name] = engine_of(name, nodes_run, nodes, device.own_data)
        seconds = race(engines, copies)
        best = min(seconds, key=lambda name: seconds[name])
        gain = seconds[SEQUENTIAL] / seconds[best]
    return Message(records_of(FastestEngine(best, gain)), reply_to=message)
