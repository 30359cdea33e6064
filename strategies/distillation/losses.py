"""Losses of distillation (Hinton et al. 2015; Yajima et al.)."""

import torch
from torch.nn import functional


def distillation_loss(
    student: torch.Tensor,
    teacher: torch.Tensor,
    temperature: float,
    labels: torch.Tensor | None = None,
    label_weight: float = 1.0,
) -> torch.Tensor:
    """T^2 KL(softmax(t / T) || softmax(g / T)) + w CE(g, y): two terms, each a mean of its own.

    student, teacher: logits (batch, classes); no gradient flows into the teacher's. The first term
    is the mean over the whole batch; T^2 keeps its gradient's scale independent of the temperature
    T. labels: class indices (k,) of the first k images of the batch; the second term, the cross
    entropy with them, is the mean over these k, and counts w = label_weight times. Without labels
    there is none.
    """
    target = functional.log_softmax(teacher.detach() / temperature, dim=1)
    prediction = functional.log_softmax(student / temperature, dim=1)
    loss = functional.kl_div(prediction, target, reduction="batchmean", log_target=True)
    loss = temperature**2 * loss
    if labels is not None:
        loss = loss + label_weight * functional.cross_entropy(student[: len(labels)], labels)
    return loss


def ema_decay(step: int, limit: float = 0.99) -> float:
    """Decay min(limit, (1 + n) / (10 + n)) of a weight average after n steps: short at first."""
    return min(limit, (1.0 + step) / (10.0 + step))
