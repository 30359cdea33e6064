"""Losses of distillation (Hinton et al. 2015; Yajima et al.)."""

import torch

from strategies.task import Task


def distillation_loss(
    task: Task,
    student: torch.Tensor,
    teacher: torch.Tensor,
    temperature: float,
    targets: torch.Tensor | None = None,
    weight: float = 1.0,
) -> torch.Tensor:
    """D(g, t) + w L(g, y): two terms, each a mean of its own.

    student, teacher: outputs g and t for one minibatch; D, the task's distillation, is the
    mean over all of it. targets: y (k, ...) of its first k inputs; L, the task's loss, is the mean
    over these and counts w = weight times. Without targets there is none.
    """
    loss = task.distillation(student, teacher, temperature)
    if targets is None:
        return loss
    return loss + weight * task.loss(student[: len(targets)], targets)


def ema_decay(step: int, limit: float = 0.99) -> float:
    """Decay min(limit, (1 + n) / (10 + n)) of a weight average after n steps: short at first."""
    return min(limit, (1.0 + step) / (10.0 + step))
