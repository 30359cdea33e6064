"""Optimiser steps on one flat vector, in place.

The formulas are those of torch.optim. Its classes are not used because their first step imports
PyTorch's compiler, 4.6 s of processor time in every process that trains, and a flat vector needs
none of their bookkeeping.
"""

import math

import torch


def sgd_step(
    weights: torch.Tensor,
    gradient: torch.Tensor,
    velocity: torch.Tensor,
    *,
    learning_rate: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
) -> None:
    """v <- m v + (g + wd w), w <- w - lr v (torch.optim.SGD). v starts at 0; g is overwritten."""
    if weight_decay:
        gradient.add_(weights, alpha=weight_decay)
    velocity.mul_(momentum).add_(gradient)
    weights.add_(velocity, alpha=-learning_rate)


def adamw_step(
    weights: torch.Tensor,
    gradient: torch.Tensor,
    mean: torch.Tensor,
    square: torch.Tensor,
    step: int,
    *,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
) -> None:
    """One step, counted from 1, of AdamW (Loshchilov and Hutter 2019, algorithm 2).

    m <- b1 m + (1 - b1) g, s <- b2 s + (1 - b2) g^2,
    w <- (1 - lr wd) w - lr (m / (1 - b1^n)) / (sqrt(s / (1 - b2^n)) + eps); m and s start at zero.
    """
    first, second = betas
    weights.mul_(1 - learning_rate * weight_decay)
    mean.lerp_(gradient, 1 - first)
    square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
    denominator = square.sqrt().div_(math.sqrt(1 - second**step)).add_(epsilon)
    weights.addcdiv_(mean, denominator, value=-learning_rate / (1 - first**step))


def adamw_numbers(
    step: int,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
) -> list[float]:
    """What is different in each step of AdamW: 1 - lr wd, sqrt(1 - b2^n) and -lr / (1 - b1^n)."""
    first, second = betas
    length = -learning_rate / (1 - first**step)
    return [1 - learning_rate * weight_decay, math.sqrt(1 - second**step), length]


def adamw_step_by(
    numbers: torch.Tensor,
    weights: torch.Tensor,
    gradient: torch.Tensor,
    mean: torch.Tensor,
    square: torch.Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
) -> None:
    """`adamw_step` by its `adamw_numbers`, (3,) on the device: nothing in it is a number of the
    CPU's that changes, so that a GPU can replay it."""
    first, second = betas
    shrink, root, length = numbers.unbind()
    weights.mul_(shrink)
    mean.lerp_(gradient, 1 - first)
    square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
    denominator = square.sqrt().div_(root).add_(epsilon)
    weights.addcmul_(mean / denominator, length)
