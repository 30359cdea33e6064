"""Averages that a few liars cannot take wherever they like: pure functions on flat vectors.

The same arithmetic, to the bit, as in Flower's strategies of these names (1.41).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from strategies.averaging import Vectors

Updates = Sequence[Mapping[str, np.ndarray]]

# How many updates a rule needs against f malicious ones, a f + b: a, b, and who says so.
_ENOUGH = {"krum": (2, 3, "Blanchard et al. 2017"), "multikrum": (2, 3, "Blanchard et al. 2017"),
           "bulyan": (4, 3, "El Mhamdi et al. 2018")}  # fmt: skip


def enough(rule: str, malicious: int) -> tuple[int, str]:
    """How many updates a rule needs against so many malicious ones, and by which formula; for rules
    that work with any number, 0 and ""."""
    if rule not in _ENOUGH:
        return 0, ""
    times, more, source = _ENOUGH[rule]
    return times * malicious + more, f"{times} f + {more}, {source}"


def median(updates: Updates) -> Vectors:
    """The median of every coordinate (Yin et al. 2018)."""
    return {key: np.median(_stack(updates, key), axis=0) for key in updates[0]}


def trimmed_mean(updates: Updates, fraction: float) -> Vectors:
    """The mean of every coordinate without its `fraction` smallest and `fraction` largest values
    (Yin et al. 2018). Raises ValueError for a fraction that leaves none."""
    if not 0.0 <= fraction < 0.5:
        raise ValueError(f"a fraction of {fraction:g} on either side leaves no value")
    low = int(fraction * len(updates))
    high = len(updates) - low
    return {
        key: np.mean(np.partition(_stack(updates, key), (low, high - 1), axis=0)[low:high], axis=0)
        for key in updates[0]
    }


def nearest_to_others(updates: Updates, liars: int, number: int) -> list[int]:
    """Krum (Blanchard et al. 2017): the places of the `number` updates with the least sum of
    squared distances to their n - liars - 2 nearest others, the least first."""
    flat = np.stack([np.concatenate(list(update.values())) for update in updates])
    norms = np.square(flat).sum(axis=1)
    distances = norms[:, None] + norms[None, :] - 2 * flat @ flat.T
    nearest = max(1, len(updates) - liars - 2)
    scores = [
        np.sum(distances[i, np.argsort(row)[1 : nearest + 1].tolist()])
        for i, row in enumerate(distances)
    ]
    return np.argsort(scores)[:number].tolist()


def bulyan(updates: Updates, liars: int) -> Vectors | None:
    """Bulyan (El Mhamdi et al. 2018): of the n - 2 liars updates that Krum prefers, of every
    coordinate the mean of the n - 4 liars values that are nearest to the median. None of fewer than
    4 liars + 3 updates."""
    if len(updates) < 4 * liars + 3:
        return None
    preferred = len(updates) - 2 * liars
    chosen = [updates[i] for i in nearest_to_others(updates, liars, preferred)]
    kept = preferred - 2 * liars
    found: Vectors = {}
    for key in chosen[0]:
        values = _stack(chosen, key)
        apart = np.abs(values - np.median(values, axis=0))
        nearest = np.argpartition(apart, kept - 1, axis=0)[:kept]
        found[key] = np.mean(np.take_along_axis(values, nearest, axis=0), axis=0)
    return found


def _stack(updates: Updates, key: str) -> np.ndarray:
    return np.stack([update[key] for update in updates])
