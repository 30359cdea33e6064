"""Gradients of which each image has only a bounded share, and noise: DP-SGD (Abadi et al. 2016)."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.func import functional_call, grad_and_value, vmap

from client_apps.settings import TrainingSettings
from strategies.flat import FlatModel
from strategies.task import Loss

AT_ONCE = 64  # images whose gradients, of the model's size each, are in memory together


def poisson_batches(
    examples: int, size: int, steps: int, generator: np.random.Generator
) -> Iterator[np.ndarray]:
    """`steps` index arrays in which each of `examples` images is with probability size / examples,
    whoever else is: the sampling that the accountant of DP-SGD assumes. One may be empty."""
    for _ in range(steps):
        yield np.flatnonzero(generator.random(examples) < size / examples)


class PrivateGradient:
    """g = (sum_i clip(g_i, C) + z C N(0, 1)) / B, with the gradient g_i of image i's loss and
    B the expected size of a batch, which unlike its real size tells nothing of anybody.

    clipping_norm: C. noise_multiplier: z. Per-image gradients are torch.func's (vmap of grad), in
    which the images of a batch must not see each other: no BatchNorm.
    """

    def __init__(
        self,
        model: FlatModel,
        loss: Loss,
        *,
        clipping_norm: float,
        noise_multiplier: float,
        expected: float,
        generator: np.random.Generator,
    ) -> None:
        self._model, self._task_loss = model, loss
        self._norm, self._expected = clipping_norm, expected
        self._deviation, self._generator = noise_multiplier * clipping_norm, generator
        self._each = vmap(grad_and_value(self._loss), in_dims=(None, 0, 0))

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Put g into model.gradient; return the batch's mean loss (0 of an empty one).

        images: prepared (b, ...); labels (b, ...).
        """
        gradient, losses = self._model.gradient.zero_(), self._model.weights.new_zeros(())
        for some, theirs in zip(images.split(AT_ONCE), labels.split(AT_ONCE), strict=True):
            if not len(theirs):
                continue
            each, loss = self._each(self._model.weights, some, theirs)
            factors = (self._norm / each.norm(dim=1)).clamp_(max=1.0)
            gradient.addmv_(each.T, factors)
            losses += loss.sum()
        noise = self._generator.standard_normal(len(gradient), dtype=np.float32)
        gradient.add_(torch.from_numpy(noise).to(gradient.device), alpha=self._deviation)
        gradient.div_(self._expected)
        return losses / max(1, len(labels))

    def _loss(
        self, weights: torch.Tensor, image: torch.Tensor, label: torch.Tensor
    ) -> torch.Tensor:
        parameters = self._model.unflatten(weights)
        logits = functional_call(self._model.module, parameters, (image[None],))
        return self._task_loss(logits, label[None])


def private_gradient(
    model: FlatModel,
    loss: Loss,
    examples: int,
    settings: TrainingSettings,
    generator: np.random.Generator,
) -> PrivateGradient:
    """That of a participant with so many examples, as the configuration has it."""
    return PrivateGradient(
        model,
        loss,
        clipping_norm=settings.privacy.sample_clipping_norm,
        noise_multiplier=settings.privacy.sample_noise_multiplier,
        expected=min(settings.batch_size, examples),
        generator=generator,
    )
