"""Convex problems of several nodes whose data differ and whose common optimum is known."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch

from fl_app.data import Dataset
from strategies.consensus.node import Node
from strategies.partition import partition
from strategies.randomness import rng

_NEWTON_STEPS = 20


class Problem(Protocol):
    """f_i of every node i, in float64; the nodes' exact gradients at step size `rate`."""

    name: str
    rate: float

    @property
    def parameters(self) -> int: ...

    def gradients(self, due: Sequence[tuple[Node, int]]) -> Iterator[torch.Tensor]:
        """Gradients of f_i at the nodes' weights, in order, as `Host` asks for them."""
        ...

    def optimum(self, nodes: Iterable[int]) -> torch.Tensor:
        """The minimum (p,) of sum_i f_i over `nodes`."""
        ...


@dataclass
class Quadratics:
    """f_i(w) = 1/2 (w - b_i)' H_i (w - b_i), of everybody another one; H (N, p, p), b (N, p)."""

    H: torch.Tensor
    b: torch.Tensor
    name: str = "quadratics"
    rate: float = 0.1

    @property
    def parameters(self) -> int:
        return self.b.shape[1]

    def gradients(self, due: Sequence[tuple[Node, int]]) -> Iterator[torch.Tensor]:
        for node, _ in due:
            yield torch.mv(self.H[node.index], node.weights - self.b[node.index])

    def optimum(self, nodes: Iterable[int]) -> torch.Tensor:
        chosen = list(nodes)
        H, b = self.H[chosen], self.b[chosen]
        return torch.linalg.solve(H.sum(0), torch.einsum("npq,nq->p", H, b))


def quadratics(nodes: int, parameters: int = 20, condition: float = 20.0) -> Quadratics:
    """Random axes, curvatures from 1 / condition to 1, and minima about 1 apart per coordinate."""
    generator, H = rng(0, "quadratics"), []
    for _ in range(nodes):
        Q, _ = np.linalg.qr(generator.standard_normal((parameters, parameters)))
        curvatures = generator.uniform(1 / condition, 1, parameters)
        curvatures[:2] = 1 / condition, 1
        H.append(Q @ np.diag(curvatures) @ Q.T)
    b = generator.standard_normal((nodes, parameters))
    return Quadratics(torch.tensor(np.array(H)), torch.tensor(b))


@dataclass
class Softmax:
    """f_i(W) = mean cross entropy of softmax(x W) on the images of node i + decay/2 |W|^2.

    images (n, features) and labels (n,) of each node; W is (features, classes), flat.
    """

    images: tuple[torch.Tensor, ...]
    labels: tuple[torch.Tensor, ...]
    classes: int
    decay: float = 0.05
    name: str = "softmax regression"
    rate: float = 0.3

    @property
    def parameters(self) -> int:
        return self.images[0].shape[1] * self.classes

    @cached_property
    def _targets(self) -> list[torch.Tensor]:
        return [torch.eye(self.classes, dtype=torch.float64)[labels] for labels in self.labels]

    def gradient(self, i: int, w: torch.Tensor) -> torch.Tensor:
        images = self.images[i]
        residual = torch.softmax(images @ w.view(-1, self.classes), 1).sub_(self._targets[i])
        return (images.T @ residual).div_(len(images)).view(-1).add_(w, alpha=self.decay)

    def gradients(self, due: Sequence[tuple[Node, int]]) -> Iterator[torch.Tensor]:
        for node, _ in due:
            yield self.gradient(node.index, node.weights)

    def optimum(self, nodes: Iterable[int]) -> torch.Tensor:
        """By Newton's method, to the last bits; the problem is strongly convex."""
        chosen, w = list(nodes), torch.zeros(self.parameters, dtype=torch.float64)
        for _ in range(_NEWTON_STEPS):
            gradient = torch.stack([self.gradient(i, w) for i in chosen]).sum(0)
            w = w - torch.linalg.solve(sum(self._hessian(i, w) for i in chosen), gradient)
        return w

    def _hessian(self, i: int, w: torch.Tensor) -> torch.Tensor:
        """(p, p): sum over the images of x x' (x) (diag(q) - q q') with q = softmax(x W)."""
        x = self.images[i]
        q = torch.softmax(x @ w.view(-1, self.classes), 1)
        inner = torch.diag_embed(q) - q[:, :, None] * q[:, None, :]
        full = torch.einsum("ni,nj,nab->iajb", x, x, inner) / len(x)
        p = self.parameters
        return full.reshape(p, p) + self.decay * torch.eye(p, dtype=torch.float64)


def softmax_regression(
    dataset: Dataset, nodes: int, *, classes_each: int, pooled: int, examples: int
) -> Softmax:
    """On `examples` images a node, which has `classes_each` of the classes, averaged over squares
    of `pooled` pixels; one feature is constant."""
    labels = dataset.train.labels
    parts = partition(
        labels, "classes-per-participant", nodes, 0, num_classes_per_partition=classes_each
    )
    images, own = [], []
    for part in parts:
        chosen = rng(0, "examples").permutation(part)[:examples]
        pixels = torch.from_numpy(dataset.train.images[chosen]).double() / 255
        small = torch.nn.functional.avg_pool2d(pixels, pooled).flatten(1)
        images.append(torch.cat([small, torch.ones(len(small), 1, dtype=torch.float64)], 1))
        own.append(torch.from_numpy(labels[chosen]))
    return Softmax(tuple(images), tuple(own), len(dataset.classes))
