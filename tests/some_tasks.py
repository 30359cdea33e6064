"""Tasks for tests."""

import torch
from torch import nn

from strategies.task import Classification, Examples


class Points(Classification):
    """Points of the plane, in two classes by the sign of what their coordinates sum to."""

    classes = ("below", "above")
    count = 120

    def model(self, role: str) -> nn.Module:
        wide = {"small": 4, "large": 8}[role]
        return nn.Sequential(nn.Linear(2, wide), nn.Tanh(), nn.Linear(wide, 2))

    def _drawn(self, seed: int) -> Examples:
        points = torch.randn(self.count, 2, generator=torch.Generator().manual_seed(seed))
        return Examples(points, (points.sum(1) > 0).long())

    def training(self) -> Examples:
        return self._drawn(0)

    def test(self) -> Examples:
        return self._drawn(1)
