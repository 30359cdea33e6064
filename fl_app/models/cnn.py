"""Plain convolutional networks, written as plans so that a small one can grow into a large one."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from fl_app.models.layers import ConvNorm

# Channels in units of the model's width; "s" = stride 2, "P" = max pooling 2 x 2. Between two
# poolings the 6-layer plan never has more convolutions than the 12-layer plan: it is a sub-plan,
# so Net2Net can turn the one into the other.
CNN6 = ("s1", "2", "P", "2", "4", "P", "4")
CNN12 = ("s1", "1", "1", "1", "P", "2", "2", "2", "2", "P", "4", "4", "4")


def scale_plan(plan: Sequence[str], width: int) -> tuple[str, ...]:
    """Turn a relative plan into channels: ("s1", "P", "2") of width 8 is ("s8", "P", "16")."""
    return tuple(
        item if item == "P" else f"{'s' * item.startswith('s')}{int(item.lstrip('s')) * width}"
        for item in plan
    )


class CNN(nn.Module):
    """Convolutions 3 x 3 with normalisation and ReLU by `plan`, average pooling, linear head.

    Attributes:
        plan: absolute channels, e.g. ``("s8", "16", "P", "16", "32", "P", "32")``.
        blocks: one `ConvNorm` (``.conv``, ``.norm``) per convolution, in the plan's order.
        head: the final linear layer, from the last block's channels to the classes.

    Shapes: (b, in_channels, h, w) float32 -> (b, num_classes) logits.
    """

    def __init__(
        self,
        plan: Sequence[str],
        in_channels: int,
        num_classes: int,
        norm: str,
    ) -> None:
        super().__init__()
        self.plan = tuple(plan)
        self.blocks = nn.ModuleList()
        channels = in_channels
        for item in self.plan:
            if item != "P":
                out_channels = int(item.lstrip("s"))
                stride = 2 if item.startswith("s") else 1
                self.blocks.append(ConvNorm(channels, out_channels, norm, stride=stride))
                channels = out_channels
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        blocks = iter(self.blocks)
        for item in self.plan:
            x = F.max_pool2d(x, 2) if item == "P" else F.relu(next(blocks)(x), inplace=True)
        return self.head(x.mean((2, 3)))


def smallest_image(plan: Sequence[str]) -> int:
    """Return the side in pixels below which a pooling of `plan` would leave nothing.

    Walked backwards from one pixel: a pooling needs twice the side, and a convolution of stride 2
    (padding 1) yields ceil(side / 2), hence ``2 * side - 1``.
    """
    side = 1
    for item in reversed(plan):
        if item == "P":
            side = 2 * side
        elif item.startswith("s"):
            side = 2 * side - 1
    return side
