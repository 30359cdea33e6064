"""What is the same for every large model that is trained: optimiser, weight average, its state."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from strategies.averaging import Vectors
from strategies.distillation.losses import ema_decay
from strategies.distillation.settings import DistillationRun
from strategies.flat import FlatModel
from strategies.optimisers import adamw_numbers, adamw_step, adamw_step_by


class Student:
    """A model that AdamW trains, and the running average of its weights and buffers."""

    def __init__(self, run: DistillationRun, model: FlatModel) -> None:
        self._run, self.model = run, model
        self._mean, self._square, self._ema_weights = (
            torch.empty_like(model.weights) for _ in range(3)
        )
        self._ema_buffers = torch.empty_like(model.buffers)
        self.start_over()

    def start_over(self) -> None:
        """A fresh optimiser and weight average, from the model as it is."""
        self._mean.zero_()
        self._square.zero_()
        self._steps = 0  # of the optimiser and of the weight average
        self._ema_weights.copy_(self.model.weights)
        self._ema_buffers.copy_(self.model.buffers)

    def step(self, loss: Callable[[], torch.Tensor]) -> None:
        """One step down the gradient of `loss`, in which the model is in training mode."""
        self.model.module.train()
        self.model.zero_grad()
        with self.model.drawing(self._run.seed, "student", self._steps):
            loss().backward()
        distill = self._run.distill
        decay = ema_decay(self._steps)
        self._steps += 1
        adamw_step(
            self.model.weights,
            self.model.gradient,
            self._mean,
            self._square,
            self._steps,
            learning_rate=distill.learning_rate,
            weight_decay=distill.weight_decay,
        )
        self._ema_weights.lerp_(self.model.weights, 1 - decay)
        self._ema_buffers.lerp_(self.model.buffers, 1 - decay)

    # -- the same with numbers that are in tensors, for a step that is recorded --------------------

    @property
    def tensors(self) -> list[torch.Tensor]:
        """What a step changes."""
        integers = [b for b in self.model.module.buffers() if not b.is_floating_point()]
        own = [self.model.weights, self.model.buffers, self._mean, self._square]
        return [*own, self._ema_weights, self._ema_buffers, *integers]

    def numbers(self) -> list[float]:
        """What of the next step differs from others': AdamW's numbers, and one less the weight
        average's decay."""
        distill = self._run.distill
        rate, decay = distill.learning_rate, distill.weight_decay
        return [*adamw_numbers(self._steps + 1, rate, decay), 1 - ema_decay(self._steps)]

    def count(self) -> None:
        """A recorded step has been done."""
        self._steps += 1

    def step_by(self, numbers: torch.Tensor, loss: Callable[[], torch.Tensor]) -> None:
        """As `step`, by what `numbers` returns; of a model that draws nothing."""
        model = self.model
        model.module.train()
        own = [each for each in model.module.parameters() if each.requires_grad]
        gradients = torch.autograd.grad(loss(), own, materialize_grads=True)
        torch.cat([gradient.flatten() for gradient in gradients], out=model.gradient)
        of_adamw, blend = numbers[:-1], numbers[-1]
        adamw_step_by(of_adamw, model.weights, model.gradient, self._mean, self._square)
        self._ema_weights.lerp_(model.weights, blend)
        self._ema_buffers.lerp_(model.buffers, blend)

    def move(self, before: Vectors, after: Vectors) -> None:
        """Move the model and its average by after - before, vectors of the same model: from
        `before` to `after` exactly where they were at `before`.

        A variance of BatchNorm, which must stay positive, is moved by the ratio of
        variance + epsilon instead.
        """
        was, now = (
            {k: torch.from_numpy(v).to(self.model.weights.device) for k, v in each.items()}
            for each in (before, after)
        )
        for weights in (self.model.weights, self._ema_weights):
            weights.add_(now["weights"] - was["weights"])
        epsilons = {
            f"{name}.running_var": layer.eps
            for name, layer in self.model.module.named_modules()
            if isinstance(layer, _BatchNorm)
        }
        old, new = (self.model.unflatten_buffers(each["buffers"]) for each in (was, now))
        for buffers in (self.model.buffers, self._ema_buffers):
            for name, buffer in self.model.unflatten_buffers(buffers).items():
                if (eps := epsilons.get(name)) is None:
                    buffer.add_(new[name] - old[name])
                else:
                    buffer.add_(eps).mul_((new[name] + eps) / (old[name] + eps)).sub_(eps)

    @contextmanager
    def published(self) -> Iterator[None]:
        """The model as it is published: its weight average where that is switched on."""
        if not self._run.publish_ema:
            yield
            return
        with holding(self.model, self._ema_weights, self._ema_buffers):
            yield

    def state(self) -> tuple[Vectors, dict[str, Any]]:
        """Everything a later process needs to go on with equal bits: (arrays, metadata)."""
        vectors = {
            "ema_weights": self._ema_weights,
            "ema_buffers": self._ema_buffers,
            "mean": self._mean,
            "square": self._square,
        }
        copies = {name: vector.cpu().numpy().copy() for name, vector in vectors.items()}
        return self.model.state() | copies, {"optimiser_steps": self._steps}

    def load_state(self, arrays: Vectors, metadata: dict[str, Any]) -> None:
        """Continue from what `state` returned. Raises ValueError when it is of another model."""
        self.model.load(arrays["weights"], arrays["buffers"])
        self._ema_weights.copy_(torch.from_numpy(arrays["ema_weights"]))
        self._ema_buffers.copy_(torch.from_numpy(arrays["ema_buffers"]))
        self._mean.copy_(torch.from_numpy(arrays["mean"]))
        self._square.copy_(torch.from_numpy(arrays["square"]))
        self._steps = metadata["optimiser_steps"]


@contextmanager
def holding(
    model: FlatModel, weights: np.ndarray | torch.Tensor, buffers: np.ndarray | torch.Tensor
) -> Iterator[None]:
    """`model` with these vectors, and with its own again afterwards."""
    kept = model.weights.clone(), model.buffers.clone()
    model.load(weights, buffers)
    try:
        yield
    finally:
        model.load(*kept)
