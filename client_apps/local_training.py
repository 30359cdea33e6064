"""A window of work for one host: local training of the participants it hosts."""

import time
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from flwr.app import Message

from client_apps.device import Device
from client_apps.failures import account_of
from client_apps.gradients import dtype_of
from client_apps.holdings import holdings
from client_apps.local_model import check_data_set, check_own_code, local_model_of, shard_of
from client_apps.logit_adjustment import adjusted, logit_shift
from client_apps.row_gradients import PASSES, Programs, everything
from client_apps.secure_sum import hold
from client_apps.settings import TrainingSettings
from client_apps.side_by_side import Job, train_side_by_side
from client_apps.training import train_locally
from strategies.attacks import FORGERIES
from strategies.condition import condition, shortage
from strategies.errors import EdgeFlError
from strategies.head import CALIBRATION_EXAMPLES, Head, label_gradient
from strategies.messages.codec import message_of, records_of
from strategies.messages.queries import Prepared, PrepareOrder
from strategies.messages.training import GRADIENT, TrainOrder, TrainReply
from strategies.precision import restored, rounded
from strategies.privacy import noise_generator
from strategies.problem import task_of
from strategies.randomness import rng
from strategies.task import Examples, prepared


def prepare(message: Message, device: Device) -> Message:
    """Do a `PrepareOrder`; the reply is `Prepared`."""
    problem = device.settings.training.problem
    order = message_of(PrepareOrder, message.content)
    own_data = device.own_data
    how: dict[str, str | float] = {}
    fault, shards = "", {}
    try:
        if order.code:
            check_own_code(device.own_code, order.code)
        local = local_model_of(problem)
        check_data_set(problem, own_data, order.data)
        shards = {p: shard_of(problem, p, own_data) for p in order.participants}
        if "site" in device.context.node_config:  # of a simulation it is the server's own machine
            how = condition() | {"data": "own" if own_data else "its share"}
            if lack := shortage(how, holdings(device.settings, order, local, shards)):
                raise EdgeFlError(lack)
    except EdgeFlError as error:
        fault = str(error)
    unused = list(dict.fromkeys(line for shard in shards.values() for line in shard.unused))
    examples = [len(shard) for shard in shards.values()]
    return Message(records_of(Prepared(fault, examples, unused, how)), reply_to=message)


def train(message: Message, device: Device) -> Message:
    """Do a `TrainOrder`; the reply is a `TrainReply`."""
    settings, own_data = device.settings.training, device.own_data
    torch.set_num_threads(settings.client_threads)
    order = message_of(TrainOrder, message.content)
    buffers, weights = order.arrays["buffers"], order.arrays.get("weights")
    if weights is None:
        length = len(local_model_of(settings.problem).model.weights)
        weights = restored(order.arrays, settings.mail_precision, length)
    reply, jobs = TrainReply(), order.jobs
    began = time.monotonic()
    rate = order.learning_rate
    together = _train_together(settings, jobs, rate, weights, buffers, own_data)
    shared = (time.monotonic() - began) / len(jobs) if together else 0.0
    for participant, index in jobs:
        start = time.monotonic()
        job = (settings, participant, index, weights, buffers, own_data)
        try:
            told = {GRADIENT: _label_gradient(*job)} if settings.calibrates else {}
            loss, examples, state = together.get((participant, index)) or _train_one(rate, *job)
            _forge(settings, participant, index, state, weights)
        except Exception as error:  # whatever it is, the server must hear of it
            reply.errors[participant, index] = account_of(error)
            continue
        if settings.secure_aggregation:
            received = {"weights": weights, "buffers": buffers}
            change = {name: vector - received[name] for name, vector in state.items()}
            hold(device.context, participant, index, change)
            state = {}
        elif settings.mail_precision != "float32":
            change = state.pop("weights") - weights
            generator = rng(settings.seed, "mail", participant, index)
            state |= rounded(change, settings.mail_precision, generator)
        seconds = shared + time.monotonic() - start
        reply.add(
            (participant, index),
            examples=examples,
            loss=loss,
            seconds=seconds,
            vectors={**state, **told},
        )
    return Message(reply.records(), reply_to=message)


def _train_one(
    learning_rate: float,
    settings: TrainingSettings,
    participant: int,
    index: int,
    weights: np.ndarray,
    buffers: np.ndarray,
    own_data: str,
) -> tuple[float, int, dict[str, Any]]:
    local = local_model_of(settings.problem)
    attack = settings.attack_of(participant)
    shard = shard_of(settings.problem, participant, own_data, attack)
    local.model.load(weights, buffers)
    generator = rng(settings.seed, "batches", participant, index)
    if settings.privacy.samples:  # its batches, too, have to stay secret
        seed = settings.seed if settings.virtual else None
        generator = noise_generator(seed, "samples", participant, index)
    loss = train_locally(
        local.model,
        shard.to(local.device),
        settings,
        generator,
        learning_rate=learning_rate,
        prepare=local.task.prepare(augmented=True),
        loss=adjusted(local.task.loss, _shift(settings, shard).to(local.device)),
    )
    return loss, len(shard), local.model.state()


def _shift(settings: TrainingSettings, shard: Examples) -> torch.Tensor:
    classes = len(task_of(settings.problem).classes)
    return logit_shift(shard.targets, classes, settings.adjust_logits)


def _label_gradient(
    settings: TrainingSettings,
    participant: int,
    index: int,
    weights: np.ndarray,
    buffers: np.ndarray,
    own_data: str,
) -> np.ndarray:
    """See `strategies.distillation.calibration`: of CALIBRATION_EXAMPLES of the participant's, or
    all that it has, drawn anew for every job."""
    local = local_model_of(settings.problem)
    shard = shard_of(settings.problem, participant, own_data, settings.attack_of(participant))
    generator = rng(settings.seed, "calibration", participant, index)
    some = shard.take(generator.permutation(len(shard))[:CALIBRATION_EXAMPLES])
    prepare = local.task.prepare(augmented=False)
    inputs = prepared(prepare, some.inputs.to(local.device), generator)
    local.model.load(weights, buffers)
    head = Head(local.model, inputs[:2])
    return label_gradient(head.features(inputs), head.of(weights), some.targets)


def _train_together(
    settings: TrainingSettings,
    jobs: Sequence[tuple[int, int]],
    learning_rate: float,
    weights: np.ndarray,
    buffers: np.ndarray,
    own_data: str,
) -> dict[tuple[int, int], tuple[float, int, dict[str, Any]]]:
    """What `_train_one` makes of each job (participant, index), all of them at the same time; of
    none where that is no faster, or where something is wrong, be it that they do not fit into the
    GPU's memory: one by one it will be seen with whom."""
    local = local_model_of(settings.problem)
    if local.device != "cuda" or len(jobs) == 1 or settings.privacy.samples:
        return {}
    try:
        local.model.load(weights, buffers)  # checks them
        shards = _shards(settings, [p for p, _ in jobs], own_data)
        local.model.look(local.task.prepare(augmented=True), shards[jobs[0][0]].inputs)
        if local.model.draws:
            return {}
        programs, begins = _programs(settings, tuple(sorted(shards)), own_data)
        found = train_side_by_side(
            programs,
            [
                Job(
                    weights, buffers, begins[p], len(shards[p]),
                    rng(settings.seed, "batches", p, index),
                    _shift(settings, shards[p]),
                )
                for p, index in jobs
            ],
            settings,
            learning_rate,
        )  # fmt: skip
    except (EdgeFlError, ValueError, RuntimeError):
        return {}
    return {
        job: (each.loss, len(shards[job[0]]), each.state)
        for job, each in zip(jobs, found, strict=True)
    }


def _shards(
    settings: TrainingSettings, participants: Iterable[int], own_data: str
) -> dict[int, Examples]:
    return {p: shard_of(settings.problem, p, own_data, settings.attack_of(p)) for p in participants}


@lru_cache(maxsize=2)
def _programs(
    settings: TrainingSettings, participants: tuple[int, ...], own_data: str
) -> tuple[Programs, dict[int, int]]:
    """Programs for these participants, and where the images of each begin."""
    local = local_model_of(settings.problem)
    local.model.module.train()
    shards = _shards(settings, participants, own_data)
    images, labels, begins = everything(
        (
            p,
            shard.inputs.to(local.device),
            shard.targets.to(local.device),
        )
        for p, shard in shards.items()
    )
    prepare, loss = local.task.prepare(augmented=True), local.task.loss
    way, dtype = PASSES["streams"], dtype_of(settings.precision)
    return Programs(local.model, images, labels, prepare, loss, way, dtype), begins


def _forge(
    settings: TrainingSettings,
    participant: int,
    index: int,
    state: dict[str, Any],
    weights: np.ndarray,
) -> None:
    """Put in place of an attacker's weights what it sends."""
    if (attack := settings.attack_of(participant)) in FORGERIES:
        generator = rng(settings.seed, "attack", participant, index)
        change = state["weights"] - weights
        state["weights"] = weights + FORGERIES[attack](change, settings.attack_scale, generator)
