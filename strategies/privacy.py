"""Differential privacy: bounded contributions, noise, and what they cost (epsilon at delta).

The Gaussian mechanism: whoever contributes moves a sum by at most C in norm, and the sum gets
noise of standard deviation z C in every coordinate; z is the noise multiplier.
"""

import math
import warnings
from collections.abc import Sequence

import numpy as np

from strategies.averaging import length
from strategies.randomness import rng

# Of Renyi differential privacy; the conversion to (epsilon, delta) takes the best of them. Opacus'
# own end at 63, which is too low for the noise of a few releases.
_ORDERS = (*(1 + x / 10 for x in range(1, 100)), *range(11, 64), *(2**k for k in range(6, 12)))
# Andrew et al. 2021, section 3.1: how fast the clipping norm follows the quantile, and how noisy
# the count of those below it is, as a share of the participants.
_ADAPTATION = 0.2
_COUNT_NOISE = 1 / 20


def noise_generator(seed: int | None, *path: str | int) -> np.random.Generator:
    """The generator of what has to hide something: the stream `path` of a simulation's seed, whose
    runs repeat; without a seed from the operating system, since whoever knows the seed - every
    participant does - could take the noise away again."""
    return np.random.default_rng() if seed is None else rng(seed, "noise", *path)


def clipped(vector: np.ndarray, norm: float) -> np.ndarray:
    """`vector`, scaled down to length `norm` if it is longer."""
    size = length(vector)
    return vector if size <= norm else vector * np.float32(norm / size)


def private_mean(
    changes: Sequence[np.ndarray],
    norm: float,
    noise_multiplier: float,
    expected: int,
    generator: np.random.Generator,
) -> np.ndarray:
    """(sum_i clip(x_i, C) + z C N(0, 1)) / m of vectors x_i (p,) (McMahan et al. 2018).

    norm: C. noise_multiplier: z. expected: m, how many were asked, whoever has answered: with the
    number of answers as divisor, somebody's absence would change what all others contribute.
    Everybody counts the same, since by weights of their own somebody could count for more than C.
    """
    total = sum((clipped(change, norm).astype(np.float64) for change in changes), np.zeros(()))
    noise = generator.standard_normal(changes[0].shape) * (noise_multiplier * norm)
    return ((total + noise) / expected).astype(np.float32)


def split_noise(noise_multiplier: float, expected: int) -> tuple[float, float]:
    """(z of the sum, standard deviation of the count) that together spend what z alone would.

    z_sum = (z^-2 - (2 sigma)^-2)^-1/2 (Andrew et al. 2021, theorem 1). The count's sigma is m / 20
    as there, but at least z: for few participants the formula has no solution otherwise.
    """
    sigma = max(_COUNT_NOISE * expected, noise_multiplier)
    return (noise_multiplier**-2 - (2 * sigma) ** -2) ** -0.5, sigma


def adapted_norm(
    norm: float,
    changes: Sequence[np.ndarray],
    quantile: float,
    count_noise: float,
    expected: int,
    generator: np.random.Generator,
) -> float:
    """C exp(-0.2 (b - q)) with the noisy share b of changes that C does not clip, so that C goes to
    the quantile q of their lengths (Andrew et al. 2021).

    Each counts as 1/2 or -1/2, so one more or less changes the sum by 1/2, as `split_noise` has it.
    """
    halves = sum((length(change) <= norm) - 0.5 for change in changes)
    share = 0.5 + (halves + count_noise * generator.standard_normal()) / expected
    return norm * math.exp(-_ADAPTATION * (share - quantile))


def epsilon(noise_multiplier: float, sampling_rate: float, steps: int, delta: float) -> float:
    """The epsilon of `steps` Gaussian mechanisms, each on a random `sampling_rate` of all (Poisson:
    everybody by a coin of their own), by Opacus' accountant of Renyi differential privacy.

    Of data sets that differ by one contributor more or less. Raises ImportError without Opacus.
    """
    from opacus.accountants import RDPAccountant

    if not steps:
        return 0.0
    accountant = RDPAccountant()
    accountant.history = [(noise_multiplier, sampling_rate, steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that more orders could make an absurd epsilon smaller
        return float(accountant.get_epsilon(delta, alphas=list(_ORDERS)))
