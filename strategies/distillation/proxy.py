"""The distillation server's own data."""

from dataclasses import dataclass

import numpy as np
import torch

from strategies.task import Prepare


@dataclass(frozen=True)
class ProxyData:
    """The distillation server's own inputs (n, ...), as stored, and how they are prepared.

    targets: (k, ...) of the first k inputs, or None where none has one.
    """

    inputs: torch.Tensor
    targets: torch.Tensor | None
    prepare: Prepare

    def draw(
        self, generator: np.random.Generator, size: int, labelled_share: float
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`size` inputs of a minibatch, drawn with repetition, and the targets of the first of
        them.

        Where inputs have targets, the first round(share * size), at least one, are drawn from those
        that have; the others from all. The share is the part of the inputs that has targets, and
        `labelled_share` at least.
        """
        known = 0 if self.targets is None else len(self.targets)
        share = max(labelled_share, known / len(self.inputs))
        first = max(1, round(share * size)) if known else 0
        drawn = [generator.integers(0, known, first)] if known else []
        drawn.append(generator.integers(0, len(self.inputs), size - first))
        chosen = torch.from_numpy(np.concatenate(drawn)).to(self.inputs.device)
        targets = None if self.targets is None else self.targets[chosen[:first]]
        return self.inputs[chosen], targets

    def to(self, device: str) -> "ProxyData":
        targets = None if self.targets is None else self.targets.to(device)
        return ProxyData(self.inputs.to(device), targets, self.prepare)
