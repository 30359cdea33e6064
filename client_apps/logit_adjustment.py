"""A loss that allows for how often a participant has each class.

Participants with few classes train towards them: their last layer learns above all which classes
are theirs, and what each undoes of the others' is lost in the average. With logit adjustment (Menon
et al. 2021, arXiv 2007.07314; for participants: Zhang et al. 2022, arXiv 2209.00189) the logarithm
of its own shares is added to the outputs in its loss, and need not be learnt. Models are evaluated
without it. What is added never leaves the participant.
"""

import torch

from strategies.task import Loss


def logit_shift(labels: torch.Tensor, classes: int, strength: float) -> torch.Tensor:
    """What is added to a participant's outputs in its loss, (classes,): strength log((n_c + 1) /
    sum_k (n_k + 1)), with n_c of the labels of class c; with strength 0 nothing, (0,).

    labels: any shape; negative ones are of no class. With strength 1 the outputs fit p(inputs |
    class), which participants have in common; but who has two classes then learns to tell these two
    apart and nothing else. With a half its images still push the other classes away, with less
    force. One more of each class keeps logarithms finite.
    """
    if not strength:
        return torch.empty(0)
    counts = torch.bincount(labels[labels >= 0].flatten(), minlength=classes) + 1
    return strength * (counts / counts.sum()).log()


def shifted(outputs: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Outputs (b, classes, ...) with `shift` (classes,) added, or nothing if it is empty."""
    return outputs + shift.view(1, -1, *[1] * (outputs.dim() - 2)) if len(shift) else outputs


def adjusted(loss: Loss, shift: torch.Tensor) -> Loss:
    """`loss` of outputs that are shifted."""
    return lambda outputs, targets: loss(shifted(outputs, shift), targets)
