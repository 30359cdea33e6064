"""A network, data and a training loop, in PyTorch alone."""

import torch
from torch import nn
from torch.nn import functional

KINDS = ("walk", "run", "stairs")


class Net(nn.Module):
    """A 1-D convolution: from (n, 1, 64) to logits (n, 3)."""

    def __init__(self, wide: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, wide, 7, stride=2)
        self.second = nn.Conv1d(wide, wide, 5, stride=2)
        self.head = nn.Linear(wide, len(KINDS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.first(x))
        return self.head(functional.relu(self.second(x)).mean(2))


def walks(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Series (n, 1, 64) of acceleration, made up, and the number of each one's kind."""
    draw = torch.Generator().manual_seed(seed)
    kinds = torch.randint(0, len(KINDS), (count,), generator=draw)
    start = 6 * torch.rand(count, 1, generator=draw)
    time = start + torch.linspace(0, 12, 64)
    pace = torch.tensor([1.0, 2.0, 1.0])[kinds, None]
    series = torch.sin(pace * time) + (kinds == 2)[:, None] * torch.sin(3 * time)
    return (series + 0.3 * torch.randn(count, 64, generator=draw))[:, None], kinds


def train(net: Net, series: torch.Tensor, kinds: torch.Tensor, lr: float) -> float:
    """An epoch of SGD; returns the mean loss."""
    optimiser, losses = torch.optim.SGD(net.parameters(), lr, momentum=0.9), []
    for some in torch.randperm(len(kinds)).split(32):
        optimiser.zero_grad()
        loss = functional.cross_entropy(net(series[some]), kinds[some])
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)
