"""The distillation server's own data."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ProxyData:
    """The distillation server's own images (uint8, (n, c, h, w)) and a labelled validation part.

    labels: class indices (n,), or None where the proxy set is unlabelled; the validation part has
    none then, either.
    """

    images: torch.Tensor
    labels: torch.Tensor | None
    validation_images: torch.Tensor
    validation_labels: torch.Tensor | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool

    def to(self, device: str) -> "ProxyData":
        def move(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else tensor.to(device)

        return ProxyData(
            self.images.to(device),
            move(self.labels),
            self.validation_images.to(device),
            move(self.validation_labels),
            self.mean,
            self.std,
            self.flip,
        )
