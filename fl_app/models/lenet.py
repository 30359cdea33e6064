"""LeNet-5 (LeCun et al. 1998) with ReLU, max pooling and normalised convolutions."""

import torch
from torch import nn
from torch.nn import functional as F

from fl_app.models.layers import ConvNorm, make_norm, padding_to_32


class LeNet(nn.Module):
    """Two 5 x 5 convolutions and three linear layers; `width` = channels of the first (6 in 1998).

    LeNet-5 reads 32 x 32 pixels: smaller images are zero padded towards that size.
    Shapes: (b, in_channels, h, w) float32 -> (b, num_classes) logits.
    """

    def __init__(
        self, in_channels: int, num_classes: int, width: int, norm: str, image_size: tuple[int, int]
    ) -> None:
        super().__init__()
        padding, features = padding_to_32(image_size), _features(width, image_size)
        self.conv1 = ConvNorm(in_channels, width, norm, kernel=5, padding=padding)
        self.conv2 = ConvNorm(width, width * 8 // 3, norm, kernel=5, padding=0)
        self.hidden1 = nn.Linear(features, 20 * width)
        self.hidden2 = nn.Linear(20 * width, 14 * width)
        self.head = nn.Linear(14 * width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x), inplace=True), 2)
        x = F.max_pool2d(F.relu(self.conv2(x), inplace=True), 2)
        x = F.relu(self.hidden1(x.flatten(1)))
        return self.head(F.relu(self.hidden2(x)))


class TrackingLeNet(nn.Module):
    """LeNet as the momentum tracking protocol (Takezawa et al. 2023) has it: convolutions with
    biases, and normalisation after the pooling, in 2 groups and then in 4.

    Shapes and `width` as in `LeNet`.
    """

    def __init__(
        self, in_channels: int, num_classes: int, width: int, norm: str, image_size: tuple[int, int]
    ) -> None:
        super().__init__()
        padding, features = padding_to_32(image_size), _features(width, image_size)
        second = width * 8 // 3
        self.conv1 = nn.Conv2d(in_channels, width, 5, padding=padding)
        self.norm1 = make_norm(norm, width, 2)
        self.conv2 = nn.Conv2d(width, second, 5)
        self.norm2 = make_norm(norm, second, 4)
        self.hidden1 = nn.Linear(features, 20 * width)
        self.hidden2 = nn.Linear(20 * width, 14 * width)
        self.head = nn.Linear(14 * width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm1(F.max_pool2d(F.relu(self.conv1(x), inplace=True), 2))
        x = self.norm2(F.max_pool2d(F.relu(self.conv2(x), inplace=True), 2))
        x = F.relu(self.hidden1(x.flatten(1)))
        return self.head(F.relu(self.hidden2(x)))


def _features(width: int, image_size: tuple[int, int]) -> int:
    """How many numbers come out of the second pooling."""
    height, breadth = (((s + 2 * padding_to_32(image_size) - 4) // 2 - 4) // 2 for s in image_size)
    return width * 8 // 3 * height * breadth
