"""Averaging rules of the server: pure functions on flat vectors.

An update is what a participant returns for one job: its flat weights and its flat buffers
(normalisation statistics), as numpy float32 vectors of the sizes of the model.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

Vectors = dict[str, np.ndarray]


def length(vector: np.ndarray) -> float:
    """|x| of a vector (p,), in float64.

    np.linalg.norm and x @ x share the work between BLAS's threads: how depends on the number of
    cores, and with it the bits, and for 0.1 s afterwards they look for more on cores where others
    train.
    """
    return math.sqrt(float(np.square(vector, dtype=np.float64).sum()))


def weighted_average(
    updates: Sequence[Mapping[str, np.ndarray]], sizes: Sequence[float]
) -> Vectors:
    """Federated averaging (McMahan et al. 2017): sum_i n_i x_i / sum_i n_i for every vector.

    The sum runs in the order of `updates`, so equal inputs in equal order give equal bits. Raises
    ValueError without updates or with a total size that is not positive.
    """
    total = float(sum(sizes))
    if not updates or total <= 0:
        raise ValueError(f"nothing to average: {len(updates)} updates of total size {total:g}")
    result: Vectors = {}
    for key in updates[0]:
        shares = zip(updates, sizes, strict=True)
        first, *others = (np.float32(size / total) * update[key] for update, size in shares)
        for other in others:
            first += other
        result[key] = first
    return result


# Of the running average of versions; see docs/distill.md for how it was chosen.
VERSIONS_DECAY = 0.7


def running_average(average: Vectors, model: Vectors, version: int) -> Vectors:
    """d a + (1 - d) x of every vector, the average of the versions up to x, which is number
    `version` (from 1), with d = min(VERSIONS_DECAY, (1 + n) / (10 + n)) after n versions: short at
    first. The first version is its own average."""
    if not average:
        return model
    past = version - 1
    decay = min(VERSIONS_DECAY, (1.0 + past) / (10.0 + past))
    return mix(average, model, 1.0 - decay)


def constant(staleness: int, exponent: float, bound: float) -> float:
    """s(d) = 1."""
    return 1.0


def polynomial(staleness: int, exponent: float, bound: float) -> float:
    """s(d) = (1 + d)^-a (Xie et al. 2019, FedAsync; a = 1/2 is FedBuff's)."""
    return (1.0 + staleness) ** -exponent


def hinge(staleness: int, exponent: float, bound: float) -> float:
    """s(d) = 1 while d <= b, then 1 / (a (d - b) + 1) (Xie et al. 2019, FedAsync)."""
    return 1.0 if staleness <= bound else 1.0 / (exponent * (staleness - bound) + 1.0)


STALENESS_WEIGHTS: dict[str, Callable[[int, float, float], float]] = {
    "constant": constant,
    "polynomial": polynomial,
    "hinge": hinge,
}


def mix(model: Vectors, update: Mapping[str, np.ndarray], weight: float) -> Vectors:
    """FedAsync (Xie et al. 2019, algorithm 1): (1 - w) x + w x_i, with w = alpha s(staleness)."""
    share = np.float32(weight)
    return {key: value + share * (update[key] - value) for key, value in model.items()}


def buffered_update(
    model: Vectors,
    updates: Sequence[Mapping[str, np.ndarray]],
    bases: Sequence[Mapping[str, np.ndarray]],
    weights: Sequence[float],
    learning_rate: float,
) -> Vectors:
    """FedBuff (Nguyen et al. 2022, algorithm 1): x + eta_g / K sum_i s_i (x_i - base_i).

    updates, bases: K results and the versions they started from; weights: s(staleness_i).
    """
    result = {}
    for key, value in model.items():
        step = np.zeros_like(value)
        for update, base, weight in zip(updates, bases, weights, strict=True):
            step += np.float32(weight) * (update[key] - base[key])
        result[key] = value + np.float32(learning_rate / len(updates)) * step
    return result
