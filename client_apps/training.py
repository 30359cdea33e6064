"""Local training of one participant: plain minibatch SGD on one flat vector."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch.nn import functional

from client_apps.private_gradient import poisson_batches, private_gradient
from fl_app.config import RunConfig
from fl_app.data.augment import augment
from fl_app.models import FlatModel
from strategies.optimisers import sgd_step


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
    images: torch.Tensor,
    labels: torch.Tensor,
    config: RunConfig,
    generator: np.random.Generator,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    flip: bool,
) -> float:
    """Train `model` in place for config.local_steps minibatches; return the mean loss.

    images uint8 (n, c, h, w), labels int64 (n,), on the model's device. Loss: cross entropy, plus
    mu / 2 |w - w_0|^2 with mu = config.proximal_mu (FedProx, Li et al. 2020). The momentum starts
    at zero in every call, so a participant keeps no state between rounds. With
    config.privacy.samples gradients are those of `PrivateGradient`, and batches Poisson's.
    """
    start = model.weights.clone() if config.proximal_mu else None
    velocity = torch.zeros_like(model.weights)
    model.module.train()
    total = torch.zeros((), device=model.weights.device)
    batches, gradient = minibatches, partial(_gradient, model)
    if config.privacy.samples:
        batches, gradient = poisson_batches, private_gradient(model, len(labels), config, generator)
    for chosen in batches(len(labels), config.batch_size, config.local_steps, generator):
        indices = torch.from_numpy(chosen).to(labels.device)
        batch = augment(images[indices], generator, mean=mean, std=std, flip=flip)
        loss = gradient(batch, labels[indices])
        if start is not None:
            model.gradient.add_(model.weights - start, alpha=config.proximal_mu)
        sgd_step(
            model.weights,
            model.gradient,
            velocity,
            learning_rate=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        total += loss
    return total.item() / config.local_steps


def _gradient(model: FlatModel, batch: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Put the gradient of the batch's mean loss into model.gradient; return that loss."""
    model.zero_grad()
    loss = functional.cross_entropy(model.module(batch), labels)
    loss.backward()
    return loss.detach()
