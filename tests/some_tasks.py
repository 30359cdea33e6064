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


class Adapted(Points):
    """A wide frozen layer, of which a narrow one beside it is all that is trained and travels."""

    def model(self, role: str) -> nn.Module:
        return LowRank(64)


class LowRank(nn.Module):
    """(W + B A) x with W frozen, of rank 1; then two classes."""

    def __init__(self, wide: int) -> None:
        super().__init__()
        self.frozen = nn.Linear(2, wide).requires_grad_(False)
        self.down, self.up = nn.Linear(2, 1, bias=False), nn.Linear(1, wide, bias=False)
        self.register_buffer("table", torch.randn(2, wide), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.frozen(x) + self.up(self.down(x))) @ self.table.T


class Words(Classification):
    """Six words, of a vocabulary of seven: is the first one larger than the second? Models are of
    `kind`."""

    classes = ("no", "yes")
    kind: type[nn.Module]

    def model(self, role: str) -> nn.Module:
        return self.kind()

    def _drawn(self, seed: int) -> Examples:
        words = torch.randint(0, 7, (80, 6), generator=torch.Generator().manual_seed(seed))
        return Examples(words, (words[:, 0] > words[:, 1]).long())

    def training(self) -> Examples:
        return self._drawn(0)

    def test(self) -> Examples:
        return self._drawn(1)


class Normed(nn.Sequential):
    """An embedding, and layer normalisation."""

    def __init__(self) -> None:
        parts = nn.Embedding(7, 8), nn.LayerNorm(8), nn.Flatten(), nn.Linear(48, 2)
        super().__init__(*parts)


class Recurrent(nn.Module):
    """An LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.cell = nn.Embedding(7, 8), nn.LSTM(8, 16, batch_first=True)
        self.head = nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.cell(self.words(x))[0][:, -1])


class Attending(nn.Module):
    """A layer of a transformer with learnt positions."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(7, 8), nn.Parameter(torch.randn(6, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(self.words(x) + self.places).mean(1))


class Dropping(Attending):
    """The same, with dropout."""

    def __init__(self) -> None:
        super().__init__(0.1)


class Tied(nn.Module):
    """One matrix for what words go in as, and for what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.mix = nn.Embedding(7, 8), nn.Linear(48, 8)
        self.head = nn.Linear(8, 7, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.mix(self.words(x).flatten(1))))[:, :2]


class Frozen(nn.Module):
    """An embedding that is not trained, in half the width of a number."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 8).to(torch.bfloat16).requires_grad_(False)
        self.head = nn.Linear(48, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.words(x).float().flatten(1))


class BatchNormed(nn.Sequential):
    """Statistics of a participant's own data."""

    def __init__(self) -> None:
        parts = nn.Embedding(7, 8), nn.Flatten(), nn.BatchNorm1d(48), nn.Linear(48, 2)
        super().__init__(*parts)


class Placed(nn.Module):
    """Constants that are a part of its state."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(7, 8), nn.Linear(48, 2)
        self.register_buffer("places", torch.randn(6, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head((self.words(x) + self.places).flatten(1))
