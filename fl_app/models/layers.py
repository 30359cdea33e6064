"""The parts all models share: normalisation and deterministic initialisation."""

import math

import numpy as np
import torch
from torch import nn

# Two groups, as in Hsieh et al. 2020 and Reddi et al. 2021 ("Adaptive Federated Optimization").
GROUPS = 2


NORMS = ("batch", "group")


def make_norm(norm: str, channels: int, groups: int = GROUPS) -> nn.Module:
    """One of NORMS. Raises ValueError for channels that cannot be split into so many groups."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if channels % groups:
        raise ValueError(
            f"norm='group' splits channels into {groups} groups, but a layer has {channels}; "
            f"choose a width divisible by {groups}, or norm='batch'"
        )
    return nn.GroupNorm(groups, channels)


class ConvNorm(nn.Module):
    """Convolution without bias, then normalisation (whose own bias makes the other redundant)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        norm: str,
        *,
        kernel: int = 3,
        stride: int = 1,
        padding: int = 1,
        groups: int = GROUPS,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False)
        self.norm = make_norm(norm, out_channels, groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x))


def padding_to_32(image_size: tuple[int, int]) -> int:
    """Zeros on every side with which an image (height, width) has at least 32 pixels each way."""
    return max(0, (33 - min(image_size)) // 2)


@torch.no_grad()
def initialise(module: nn.Module, generator: np.random.Generator) -> None:
    """Fill every weight and bias with U(-1/sqrt(fan_in), 1/sqrt(fan_in)), and reset the norms.

    This is PyTorch's default distribution of Conv2d and Linear, drawn in module order from
    `generator` instead of the global one.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            bound = 1 / math.sqrt(layer.weight[0].numel())
            for parameter in layer.parameters(recurse=False):
                values = generator.uniform(-bound, bound, tuple(parameter.shape))
                parameter.copy_(torch.from_numpy(values))
        elif isinstance(layer, nn.BatchNorm2d | nn.GroupNorm):
            layer.reset_parameters()
        elif next(layer.parameters(recurse=False), None) is not None:
            raise TypeError(f"no initialisation is defined for the layer {type(layer).__name__}")
