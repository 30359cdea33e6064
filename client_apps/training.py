"""Local training of one participant: plain minibatch SGD on one flat vector."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from client_apps.private_gradient import poisson_batches, private_gradient
from client_apps.settings import TrainingSettings
from strategies.arithmetic import outputs_of
from strategies.flat import FlatModel
from strategies.optimisers import sgd_step
from strategies.task import Examples, Loss, Prepare, prepared


def minibatches(
    examples: int, size: int, steps: int, generator: np.random.Generator
) -> Iterator[np.ndarray]:
    """`steps` index arrays of `size` (at most `examples`), drawn epoch by epoch without repeats."""
    size = min(size, examples)
    order = np.empty(0, dtype=np.int64)
    for _ in range(steps):
        if len(order) < size:
            order = np.concatenate([order, generator.permutation(examples)])
        yield order[:size]
        order = order[size:]


def train_locally(
    model: FlatModel,
    examples: Examples,
    settings: TrainingSettings,
    generator: np.random.Generator,
    *,
    learning_rate: float,
    prepare: Prepare,
    loss: Loss,
) -> float:
    """Train `model` in place for settings.local_steps minibatches; return the mean loss.

    examples: on the model's device, as stored; prepare makes the model's inputs of them. To the
    task's `loss` comes mu / 2 |w - w_0|^2 with mu = settings.proximal_mu (FedProx, Li et al. 2020).
    The momentum starts at zero in every call, so a participant keeps no state between rounds. With
    settings.privacy.samples gradients are those of `PrivateGradient`, and batches Poisson's.
    """
    start = model.weights.clone() if settings.proximal_mu else None
    velocity = torch.zeros_like(model.weights)
    model.look(prepare, examples.inputs)
    model.module.train()
    total = torch.zeros((), device=model.weights.device)
    batches, gradient = minibatches, partial(_gradient, model, loss, settings.precision)
    if settings.privacy.samples:
        batches = poisson_batches
        gradient = private_gradient(model, loss, len(examples), settings, generator)
    # Of the generator's own seed, so that what the model draws takes nothing from it.
    stream = int(generator.bit_generator.seed_seq.generate_state(1)[0])  # type: ignore[attr-defined]
    drawn = batches(len(examples), settings.batch_size, settings.local_steps, generator)
    for step, chosen in enumerate(drawn):
        indices = torch.from_numpy(chosen).to(examples.targets.device)
        inputs = prepared(prepare, examples.inputs[indices], generator)
        with model.drawing(stream, step):
            value = gradient(inputs, examples.targets[indices])
        if start is not None:
            model.gradient.add_(model.weights - start, alpha=settings.proximal_mu)
        sgd_step(
            model.weights,
            model.gradient,
            velocity,
            learning_rate=learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
        total += value
    return total.item() / settings.local_steps


def _gradient(
    model: FlatModel, loss: Loss, precision: str, inputs: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Put the gradient of the batch's mean loss into model.gradient; return that loss."""
    model.zero_grad()
    value = loss(outputs_of(model.module, inputs, precision), targets)
    value.backward()
    return value.detach()
