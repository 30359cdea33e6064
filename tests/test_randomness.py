"""Named streams: reproducible, independent of each other and of the global generators."""

import pickle
import random
from itertools import combinations

import numpy as np
import torch

from strategies.randomness import rng

PATHS = [(), ("batches",), ("batches", 0), ("batches", "0"), ("batches", 0, 1), ("batches", 1, 0),
         ("fate", 0, 1), ("batches", 1), ("batches", 10), ("batches", 1, "0")]  # fmt: skip


def draw(seed: int, *path: str | int) -> bytes:
    return rng(seed, *path).bytes(32)


def test_a_stream_repeats() -> None:
    for path in PATHS:
        assert draw(5, *path) == draw(5, *path)


def test_streams_of_different_names_or_seeds_differ() -> None:
    draws = [draw(seed, *path) for seed in (0, 1, -1, 10**12) for path in PATHS]
    assert len(set(draws)) == len(draws)


def test_the_streams_of_this_version() -> None:
    """Not derived: what this version draws. If it changes, all results of all runs change, which
    must not happen by accident."""
    assert rng(0, "batches", 3, 17).integers(0, 1000, 5).tolist() == [94, 283, 194, 531, 740]


def test_streams_are_uncorrelated() -> None:
    """|r| of 10000 independent pairs stays under 4 standard errors of 0.01."""
    streams = [rng(0, "fate", participant, 0).standard_normal(10_000) for participant in range(5)]
    for one, other in combinations(streams, 2):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.04


def test_global_generators_are_left_alone() -> None:
    states = random.getstate(), pickle.dumps(np.random.get_state()), torch.get_rng_state()  # noqa: NPY002
    rng(0, "x").random(10)
    assert random.getstate() == states[0]
    assert pickle.dumps(np.random.get_state()) == states[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
