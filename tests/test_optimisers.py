"""Optimiser steps against torch.optim."""

from typing import Any

import pytest
import torch

from strategies.optimisers import adamw_step, sgd_step
from strategies.randomness import rng

STEPS = 25


def numbers(name: str, step: int = 0) -> torch.Tensor:
    return torch.from_numpy(rng(0, name, step).standard_normal(100, dtype="float32"))


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.0), (0.9, 0.05)])
def test_sgd_equals_torch(momentum: float, weight_decay: float) -> None:
    weights, velocity, reference = numbers("w"), torch.zeros(100), numbers("w")
    options: dict[str, Any] = {"momentum": momentum, "weight_decay": weight_decay}
    optimizer = torch.optim.SGD([reference], lr=0.1, foreach=False, **options)
    for step in range(STEPS):
        reference.grad = numbers("g", step)
        optimizer.step()
        sgd_step(weights, numbers("g", step), velocity, learning_rate=0.1, **options)
        assert torch.equal(weights, reference)


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_adamw_equals_torch(weight_decay: float) -> None:
    weights, reference = numbers("w"), numbers("w")
    mean, square = torch.zeros(100), torch.zeros(100)
    optimizer = torch.optim.AdamW([reference], lr=0.01, weight_decay=weight_decay, foreach=False)
    for step in range(STEPS):
        reference.grad = numbers("g", step)
        optimizer.step()
        gradient = numbers("g", step)
        options: dict[str, Any] = {"learning_rate": 0.01, "weight_decay": weight_decay}
        adamw_step(weights, gradient, mean, square, step + 1, **options)
        torch.testing.assert_close(weights, reference, rtol=1e-6, atol=1e-7)


def test_first_adamw_step_is_the_sign_of_the_gradient() -> None:
    """m / (1 - b1) = g and s / (1 - b2) = g^2 after one step, so w moves by lr g / |g|."""
    weights, gradient = torch.zeros(3), torch.tensor([2.0, -0.5, 0.0])
    moments = torch.zeros(3), torch.zeros(3)
    adamw_step(weights, gradient, *moments, 1, learning_rate=0.1, weight_decay=0.5)
    torch.testing.assert_close(weights, torch.tensor([-0.1, 0.1, 0.0]))
