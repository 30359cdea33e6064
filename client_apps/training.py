"""Local training of one participant: plain minibatch SGD on one flat vector."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.nn import functional

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
    at zero in every call, so a participant keeps no state between rounds.
    """
    start = model.weights.clone() if config.proximal_mu else None
    velocity = torch.zeros_like(model.weights)
    model.module.train()
    total = torch.zeros((), device=model.weights.device)
    for chosen in minibatches(len(labels), config.batch_size, config.local_steps, generator):
        indices = torch.from_numpy(chosen).to(labels.device)
        batch = augment(images[indices], generator, mean=mean, std=std, flip=flip)
        model.zero_grad()
        loss = functional.cross_entropy(model.module(batch), labels[indices])
        loss.backward()
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
        total += loss.detach()
    return total.item() / config.local_steps
