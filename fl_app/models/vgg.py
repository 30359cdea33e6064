"""VGG-11 for small images (Simonyan and Zisserman 2015, configuration A)."""

import torch
from torch import nn
from torch.nn import functional as F

from fl_app.models.layers import ConvNorm, padding_to_32

# Of each convolution: channels in units of the width, and whether a pooling follows.
_PLAN = (
    (1, True), (2, True), (4, False), (4, True), (8, False), (8, True), (8, False), (8, True),
)  # fmt: skip
GROUPS = 8  # of GroupNorm, as in Takezawa et al. 2023


class VGG11(nn.Module):
    """Eight 3 x 3 convolutions, each normalised, in five blocks with a max-pooling behind each; the
    mean over what is left of the image, and one linear layer, as is usual for CIFAR-10, where the
    paper has three. `width` = channels of the first convolution (64 in the paper). Images with less
    than 32 pixels a side are zero padded: five poolings need as many.

    Shapes: (b, in_channels, h, w) float32 -> (b, num_classes) logits.
    """

    def __init__(
        self, in_channels: int, num_classes: int, width: int, norm: str, image_size: tuple[int, int]
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        channels, padding = in_channels, 1 + padding_to_32(image_size)
        for factor, _ in _PLAN:
            self.layers.append(
                ConvNorm(channels, factor * width, norm, padding=padding, groups=GROUPS)
            )
            channels, padding = factor * width, 1
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer, (_, pools) in zip(self.layers, _PLAN, strict=True):
            x = F.relu(layer(x), inplace=True)
            x = F.max_pool2d(x, 2) if pools else x
        return self.head(x.mean((2, 3)))
