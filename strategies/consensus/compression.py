"""Which coordinates of a vector travel when not all of them do."""

from functools import lru_cache

import torch

from strategies.randomness import rng


def kept(parameters: int, keep: float) -> int:
    """k: how many of `parameters` coordinates a share of `keep` is; at least one."""
    return max(1, round(keep * parameters))


def random_coordinates(
    seed: int,
    parameters: int,
    count: int,
    *message: int,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """random-k: `count` different coordinates, (count,) int64, that follow from `seed` and the
    numbers that name the message, so that sender and receiver agree on them without sending any.

    They are `count` in a row, from a random place on, of one random order of all coordinates. Every
    coordinate is among them with probability count / parameters, independent of other messages;
    to draw a new order for each message would cost 100 times as much.
    """
    start = int(rng(seed, "mask", *message).integers(parameters))
    return _order(seed, parameters, device)[start : start + count]


@lru_cache(maxsize=4)
def _order(seed: int, parameters: int, device: torch.device | str) -> torch.Tensor:
    """A random order of the coordinates, twice in a row: no stretch of it has to wrap around."""
    order = torch.from_numpy(rng(seed, "order", parameters).permutation(parameters))
    return torch.cat([order, order]).to(device)


def require_coordinates(indices: torch.Tensor, parameters: int) -> torch.Tensor:
    """`indices` that came from elsewhere, as int64.

    Raises ValueError for one that is no coordinate: a GPU would not survive its use.
    """
    low, high = (int(bound) for bound in torch.aminmax(indices))
    if low < 0 or high >= parameters:
        raise ValueError(
            f"indices from {low} to {high} are no coordinates of a vector of {parameters}"
        )
    return indices.long()
