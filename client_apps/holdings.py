"""What a run holds on a device, so that who has too little is known before the first round.

All of it is here: what is added to what training keeps, sends or saves is added here, too.
"""

from collections.abc import Mapping

import numpy as np
import torch

from client_apps.local_model import LocalModel
from client_apps.private_gradient import AT_ONCE
from client_apps.settings import DeviceSettings, TrainingSettings
from strategies.arithmetic import outputs_of
from strategies.condition import Holdings
from strategies.consensus.settings import NodesRun
from strategies.consensus.shared import nodes_of, settling_of
from strategies.consensus.state import size_of
from strategies.messages.queries import PrepareOrder
from strategies.randomness import rng
from strategies.task import Examples, prepared

# What has come and what goes, as arrays and as bytes; momentum, gradient, one that is in passing.
_VECTORS_OF_A_JOB = 7
# A node's gradient, its model as it is evaluated and as it began, one that is in passing.
_VECTORS_OF_A_STEP = 4
_FEW = 2  # examples by which the size of a step is measured


def holdings(
    settings: DeviceSettings, order: PrepareOrder, local: LocalModel, shards: Mapping[int, Examples]
) -> Holdings:
    """Of the participants of whom `shards` are, beside the model and the data that are there."""
    if not order.states:
        return _of_jobs(settings.training, local, shards)
    return _of_nodes(settings.nodes, order.topology, order.states, local, shards)


def _of_jobs(
    settings: TrainingSettings, local: LocalModel, shards: Mapping[int, Examples]
) -> Holdings:
    """Participants train one after the other; with secure aggregation all keep what they have
    changed until it is asked for."""
    vectors = _VECTORS_OF_A_JOB + bool(settings.proximal_mu)
    if settings.mail_precision != "float32":
        vectors += 2  # what came in whole, the change
    if settings.secure_aggregation:
        vectors += len(shards) + 3  # a sum in fixed point, a mask, both together
    if settings.privacy.samples:
        vectors += min(settings.batch_size, AT_ONCE)
    step = _step(local, shards, settings.precision, settings.batch_size)
    return Holdings(vectors * local.model.weights.nbytes + step, 0)


def _of_nodes(
    run: NodesRun, text: str, states: int, local: LocalModel, shards: Mapping[int, Examples]
) -> Holdings:
    """A node's state is in memory, as bytes while it is saved, and on disk once for every window
    that is kept and once while it is written. A mail of each neighbour waits, and one for it."""
    _, algorithm, _ = nodes_of(run, text)
    made = [algorithm]
    if run.consensus.settling_rounds:
        made.append(settling_of(run, text)[0])
    memory = _VECTORS_OF_A_STEP * local.model.weights.nbytes
    memory += _step(local, shards, run.consensus.precision, run.consensus.batch_size)
    disk = 0
    for node in shards:
        sizes = [size_of(each, node, len(local.model.weights)) for each in made]
        memory += max(2 * state + 2 * mail for state, mail in sizes)
        disk += (states + 1) * max(state + mail for state, mail in sizes)
    return Holdings(memory, disk)


def _step(
    local: LocalModel, shards: Mapping[int, Examples], precision: str, batch_size: int
) -> int:
    """Bytes of a minibatch: what is kept for the gradients, and as much for those."""
    most = max(shards.values(), key=len)
    some = most.take(np.arange(min(_FEW, len(most))))
    prepare = local.task.prepare(augmented=True)
    inputs = prepared(prepare, some.inputs, rng(0, "holdings"))
    model, kept = local.model, {}
    model.look(prepare, some.inputs)
    before = {name: vector.copy() for name, vector in model.state().items()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.module.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), model.drawing(0):
        outputs = outputs_of(model.module, inputs.to(local.device), precision)
        loss = local.task.loss(outputs, some.targets.to(local.device))
    own = [*model.module.parameters(), *model.module.buffers(), model.weights, model.buffers]
    for tensor in own:  # is there with or without a minibatch
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    del loss
    model.load(before["weights"], before["buffers"])
    return 2 * sum(kept.values()) * min(batch_size, len(most)) // len(some)
