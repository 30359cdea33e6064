"""Residual networks for small images (He et al. 2016, section 4.2): 6n + 2 weight layers."""

import torch
from torch import nn
from torch.nn import functional as F

from fl_app.models.layers import ConvNorm


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions around the parameter-free shortcut (option A of He et al.)."""

    def __init__(self, in_channels: int, out_channels: int, norm: str) -> None:
        super().__init__()
        self.stride = 1 if in_channels == out_channels else 2
        self.added_channels = out_channels - in_channels
        self.first = ConvNorm(in_channels, out_channels, norm, stride=self.stride)
        self.second = ConvNorm(out_channels, out_channels, norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(F.relu(self.first(x), inplace=True))
        if self.added_channels:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added_channels))
        return F.relu(y + x, inplace=True)


class ResNet(nn.Module):
    """Stem, three stages of `depth` blocks (width, 2 width, 4 width), average pooling, linear head.

    Shapes: (b, in_channels, h, w) float32 -> (b, num_classes) logits.
    """

    def __init__(
        self, depth: int, in_channels: int, num_classes: int, width: int, norm: str
    ) -> None:
        super().__init__()
        self.stem = ConvNorm(in_channels, width, norm)
        self.blocks = nn.ModuleList()
        channels = width
        for stage_width in (width, 2 * width, 4 * width):
            for _ in range(depth):
                self.blocks.append(ResidualBlock(channels, stage_width, norm))
                channels = stage_width
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x), inplace=True)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))
