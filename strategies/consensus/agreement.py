"""How far the nodes agree: their average and their distance from it.

No node ever has the average; it is a diagnosis.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from strategies.averaging import length

# Sums of whole numbers do not depend on their order, so the average has the same bits however the
# nodes are spread over hosts. 2^-40 is far below a float32's own precision for the weights of a
# network, and 2^63 / 2^40 leaves room for a thousand nodes with weights of up to 8000.
_SCALE = 2.0**40


def fixed_point(weights: Iterable[torch.Tensor]) -> np.ndarray:
    """The sum of vectors (p,) in whole multiples of 2^-40, (p,) int64; (0,) of none.

    What is not finite counts as 0: a node that has diverged is seen by its own accuracy.
    """
    total = torch.zeros(0, dtype=torch.int64)
    for vector in weights:
        clean = torch.nan_to_num(vector.double(), nan=0.0, posinf=0.0, neginf=0.0)
        whole = clean.clamp_(-8000, 8000).mul_(_SCALE).round_().long()
        total = whole if not len(total) else total.add_(whole)
    return total.cpu().numpy()


def average(sums: Sequence[np.ndarray], nodes: int) -> np.ndarray:
    """The mean of `nodes` vectors from the fixed-point sums of parts of them, (p,) float64."""
    parts = [part for part in sums if len(part)]
    total = np.stack(parts).sum(axis=0)
    return total / (_SCALE * nodes)


def consensus_distance(norms: Sequence[float], mean: np.ndarray) -> float:
    """sqrt(mean_i |w_i - w|^2) / |w| of nodes with |w_i|^2 = norms and the average w.

    By mean_i |w_i - w|^2 = mean_i |w_i|^2 - |w|^2, so nobody needs all models in one place; in
    float64 this is good down to distances of about 1e-6.
    """
    square = length(mean) ** 2
    spread = max(0.0, sum(norms) / len(norms) - square)
    return math.sqrt(spread / square) if square else 0.0
