"""Participants that do harm, to try what a defence is worth: they answer, but not the truth."""

from collections.abc import Callable

import numpy as np

from strategies.averaging import length


def sign_flip(vector: np.ndarray, scale: float, generator: np.random.Generator) -> np.ndarray:
    """-s x: the opposite of what it ought to be, s times as long."""
    return vector * np.float32(-scale)


def noise(vector: np.ndarray, scale: float, generator: np.random.Generator) -> np.ndarray:
    """x + e with Gaussian e in any direction, about s times as long as x."""
    deviation = scale * length(vector) / max(1, vector.size) ** 0.5
    return vector + (deviation * generator.standard_normal(vector.shape)).astype(vector.dtype)


def flipped_labels(labels: np.ndarray, classes: int) -> np.ndarray:
    """Class c as class `classes` - 1 - c: honest training on data that are wrong. What is negative
    is no class, and stays."""
    return np.where(labels < 0, labels, classes - 1 - labels)


# What becomes of a vector that is sent.
FORGERIES: dict[str, Callable[[np.ndarray, float, np.random.Generator], np.ndarray]] = {
    "sign-flip": sign_flip,
    "noise": noise,
}
LABEL_FLIP = "label-flip"
ATTACKS = (LABEL_FLIP, *FORGERIES)


def attack_of(participant: int, participants: int, attack: str, attackers: int) -> str:
    """What `participant` does to harm the others, "" if it is honest: attackers are the last of
    the participants."""
    return attack if participants - attackers <= participant < participants else ""
