"""Losses of distillation (Hinton et al. 2015; Yajima et al.)."""

import torch
from torch.nn import functional


def distillation_loss(
    student: torch.Tensor,
    teacher: torch.Tensor,
    temperature: float,
    labels: torch.Tensor | None = None,
    label_weight: float = 0.0,
) -> torch.Tensor:
    """(1 - a) T^2 KL(softmax(t / T) || softmax(g / T)) + a CE(g, y), the mean over the batch.

    student, teacher: logits (batch, classes); no gradient flows into the teacher's. labels: class
    indices (batch,). T^2 keeps the gradient's scale independent of the temperature T. Without
    labels, or with a = label_weight = 0, the second term is absent. Raises ValueError when a > 0
    and there are no labels.
    """
    if label_weight and labels is None:
        raise ValueError(f"label_weight={label_weight} needs labels, but there are none")
    target = functional.log_softmax(teacher.detach() / temperature, dim=1)
    prediction = functional.log_softmax(student / temperature, dim=1)
    loss = functional.kl_div(prediction, target, reduction="batchmean", log_target=True)
    loss = (1.0 - label_weight) * temperature**2 * loss
    if label_weight and labels is not None:
        loss = loss + label_weight * functional.cross_entropy(student, labels)
    return loss


def ema_decay(step: int, limit: float = 0.99) -> float:
    """Decay min(limit, (1 + n) / (10 + n)) of a weight average after n steps: short at first."""
    return min(limit, (1.0 + step) / (10.0 + step))
