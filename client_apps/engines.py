"""The engines that compute the gradients of a host's nodes, and which is fastest on its device."""

import math
import time
from collections.abc import Mapping, Sequence
from functools import partial

import torch

from client_apps.gradients import Gradients, dtype_of
from client_apps.local_model import local_model_of, shard_of
from client_apps.logit_adjustment import logit_shift
from client_apps.row_gradients import PASSES, RowGradients
from strategies.consensus.batches import Gradients as Engine
from strategies.consensus.node import Node
from strategies.consensus.settings import NodesRun

SEQUENTIAL = "sequential"
ENGINES = (SEQUENTIAL, *PASSES)
_WARM_UP = 3  # rounds before a clock starts: a GPU loads what it runs when it is first used
_ROUNDS = 10


def one_by_one(run: NodesRun, nodes: Sequence[int], own_data: str = "") -> Gradients:
    """The gradients of `nodes` at their own data, one node after the other."""
    local, c = local_model_of(run.problem), run.consensus
    everybody = run.participants
    return Gradients(
        local.model,
        {node: shard_of(run.problem, node, own_data, run.attack_of(node)) for node in nodes},
        {
            node: c.batch_size * (everybody if run.reference_of(node) == "same-samples" else 1)
            for node in nodes
        },
        seed=run.seed,
        prepare=local.task.prepare(c.augment),
        loss=local.task.loss,
        dtype=dtype_of(c.precision),
        shift=partial(logit_shift, classes=len(local.task.classes), strength=run.adjust_logits),
    )


def engine_of(name: str, run: NodesRun, nodes: Sequence[int], own_data: str = "") -> Engine:
    """The engine of that name, for `nodes` at their own data."""
    sequential = one_by_one(run, nodes, own_data)
    return sequential if name == SEQUENTIAL else RowGradients(sequential, PASSES[name])


def race(
    engines: Mapping[str, Engine], nodes: Sequence[Node], rounds: int = _ROUNDS
) -> dict[str, float]:
    """Seconds that each of the engines takes for a gradient of a node: the mean of `rounds` of all
    `nodes`, engine by engine in turn. Infinity for one that cannot compute them there, as it has
    not enough memory."""
    seconds = dict.fromkeys(engines, 0.0)
    for step in range(_WARM_UP + rounds):
        for name, gradients in engines.items():
            try:
                spent = _seconds_of(gradients, nodes, step)
            except RuntimeError as error:  # or torch.func does not know an operation
                if name == SEQUENTIAL and not isinstance(error, torch.OutOfMemoryError):
                    raise
                spent = math.inf
            seconds[name] += spent if step >= _WARM_UP or math.isinf(spent) else 0.0
    return {name: spent / rounds / len(nodes) for name, spent in seconds.items()}


def _seconds_of(gradients: Engine, nodes: Sequence[Node], step: int) -> float:
    device = nodes[0].weights.device
    _await(device)
    began = time.perf_counter()
    found = gradients([(node, step) for node in nodes])
    for gradient in [found] if isinstance(found, torch.Tensor) else found:
        gradient.neg_()  # the nodes' own work on it, next to nothing
    _await(device)
    return time.perf_counter() - began


def _await(device: torch.device) -> None:
    """Until the device has done what it was given: a GPU goes on after a call has returned."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
