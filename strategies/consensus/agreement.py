"""How far the nodes agree: their average and their distance from it.

No node ever has the average; it is a diagnosis.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from strategies.averaging import length

# Sums of whole numbers do not depend on their order, so the average has the same bits however the
# nodes are spread over hosts. 2^-40 is far below a float32's own precision for the weights of a
# network, and 2^63 / 2^40 leaves room for a thousand nodes with weights of up to 8000.
_SCALE, _LARGEST = 2.0**40, 8000.0
# What a sum holds in place of a number that it cannot hold, as NaN in a sum of floats.
_NO_NUMBER = np.iinfo(np.int64).min


def fixed_point(weights: Iterable[torch.Tensor]) -> np.ndarray:
    """The sum of vectors (p,) in whole multiples of 2^-40, (p,) int64; (0,) of none.

    Where a value is not finite or beyond 8000, the sum is none: -2^63, which `average` makes NaN.
    """
    total, unknown = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool)
    for vector in weights:
        value = vector.double()
        beyond = ~(value.abs() <= _LARGEST)  # NaN, too
        whole = value.masked_fill(beyond, 0.0).mul_(_SCALE).round_().long()
        total = whole if not len(total) else total.add_(whole)
        unknown = beyond if not len(unknown) else unknown.logical_or_(beyond)
    return total.masked_fill_(unknown, _NO_NUMBER).cpu().numpy()


def average(sums: Sequence[np.ndarray], nodes: int) -> np.ndarray:
    """The mean of `nodes` vectors from the fixed-point sums of parts of them, (p,) float64; NaN
    where a part has none."""
    parts = np.stack([part for part in sums if len(part)])
    unknown = (parts == _NO_NUMBER).any(axis=0)
    return np.where(unknown, math.nan, parts.sum(axis=0) / (_SCALE * nodes))


def consensus_distance(norms: Sequence[float], mean: np.ndarray) -> float:
    """sqrt(mean_i |w_i - w|^2) / |w| of nodes with |w_i|^2 = norms and the average w.

    By mean_i |w_i - w|^2 = mean_i |w_i|^2 - |w|^2, so nobody needs all models in one place; in
    float64 this is good down to distances of about 1e-6. NaN or infinity if a node is not finite.
    """
    square = length(mean) ** 2
    spread = float(np.maximum(0.0, sum(norms) / len(norms) - square))  # max(0.0, nan) would be 0
    if not square:
        return math.inf if spread else 0.0
    return math.sqrt(spread / square)


def spread_by_class(
    classes: Sequence[str], nodes: Sequence[Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    """What the nodes have of each class that any of them tells: its mean, min and max."""
    told = {name: [node[name] for node in nodes if name in node] for name in classes}
    return {
        name: {"mean": round(sum(each) / len(each), 4), "min": min(each), "max": max(each)}
        for name, each in told.items()
        if each
    }
