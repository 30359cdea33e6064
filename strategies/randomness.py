"""Randomness as an argument: every random number belongs to a named stream of one seed."""

import hashlib

import numpy as np


def rng(seed: int, *path: str | int) -> np.random.Generator:
    """Return the generator of the stream `path` under `seed`, e.g. ``rng(0, "batches", 3, 17)``.

    Streams are independent of each other and of the order in which they are asked for, so a
    participant's batches do not change when another participant, host or worker is added.
    """
    key = "/".join([str(seed), *(f"{type(part).__name__}:{part}" for part in path)])
    digest = hashlib.sha256(key.encode()).digest()
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(int.from_bytes(digest))))
