"""The distillation server's own data."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from strategies.task import Prepare


class Drawn(NamedTuple):
    """A minibatch: which inputs it has (b,), what was drawn for them (m, b), and of how many, the
    first, targets are known."""

    chosen: torch.Tensor
    moves: torch.Tensor
    known: int


@dataclass(frozen=True)
class ProxyData:
    """The distillation server's own inputs (n, ...), as stored, and how they are prepared.

    targets: (k, ...) of the first k inputs, or None where none has one.
    """

    inputs: torch.Tensor
    targets: torch.Tensor | None
    prepare: Prepare

    def draw(self, generator: np.random.Generator, size: int, labelled_share: float) -> Drawn:
        """`size` inputs of a minibatch, drawn with repetition, and what is random about them.

        Where inputs have targets, the first round(share * size), at least one, are drawn from those
        that have; the others from all. The share is the part of the inputs that has targets, and
        `labelled_share` at least.
        """
        known = 0 if self.targets is None else len(self.targets)
        share = max(labelled_share, known / len(self.inputs))
        first = max(1, round(share * size)) if known else 0
        drawn = [generator.integers(0, known, first)] if known else []
        drawn.append(generator.integers(0, len(self.inputs), size - first))
        moves = self.prepare.draw(generator, size)
        return Drawn(torch.from_numpy(np.concatenate(drawn)), torch.from_numpy(moves), first)

    def batch(self, drawn: Drawn) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The minibatch as the model's inputs, and the targets of the first of them."""
        chosen, moves = (each.to(self.inputs.device) for each in (drawn.chosen, drawn.moves))
        targets = None if self.targets is None else self.targets[chosen[: drawn.known]]
        return self.prepare(self.inputs[chosen], moves), targets

    def to(self, device: str) -> "ProxyData":
        targets = None if self.targets is None else self.targets.to(device)
        return ProxyData(self.inputs.to(device), targets, self.prepare)
