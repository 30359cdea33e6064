"""The distillation server's own data."""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class ProxyData:
    """The distillation server's own images (uint8, (n, c, h, w)).

    labels: class indices (k,) of the first k images, or None where no image has a label.
    """

    images: torch.Tensor
    labels: torch.Tensor | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool

    def draw(
        self, generator: np.random.Generator, size: int, labelled_share: float
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`size` images of a minibatch, drawn with repetition, and the labels of the first of them.

        Where images have labels, the first round(share * size), at least one, are drawn from those
        that have; the others from all. The share is the part of the images that has labels, and
        `labelled_share` at least.
        """
        known = 0 if self.labels is None else len(self.labels)
        share = max(labelled_share, known / len(self.images))
        first = max(1, round(share * size)) if known else 0
        drawn = [generator.integers(0, known, first)] if known else []
        drawn.append(generator.integers(0, len(self.images), size - first))
        chosen = torch.from_numpy(np.concatenate(drawn)).to(self.images.device)
        return self.images[chosen], None if self.labels is None else self.labels[chosen[:first]]

    def to(self, device: str) -> "ProxyData":
        labels = None if self.labels is None else self.labels.to(device)
        return ProxyData(self.images.to(device), labels, self.mean, self.std, self.flip)
