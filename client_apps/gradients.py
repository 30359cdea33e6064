"""Gradients of a host's nodes at their own minibatches."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional

from fl_app.data import ImageSet
from fl_app.data.augment import draw_moves, move, normalise
from fl_app.models import FlatModel
from strategies.consensus.node import Node
from strategies.randomness import rng


@dataclass
class Minibatches:
    """A node's minibatches, by the number of the step alone: epoch after epoch in a new random
    order, without the rest that does not fill a batch. So a node needs no place in its data.

    images uint8 (n, c, h, w), labels int64 (n,), on the device of the model.
    """

    images: torch.Tensor
    labels: torch.Tensor
    size: int
    seed: int
    node: int
    _epoch: int = -1
    _order: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def __post_init__(self) -> None:
        self.size = min(self.size, len(self.labels))

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        examples, size = len(self.labels), self.size
        epoch, position = divmod(step, examples // size)
        if epoch != self._epoch:
            order = rng(self.seed, "epoch", self.node, epoch).permutation(examples)
            self._epoch, self._order = epoch, torch.from_numpy(order).to(self.labels.device)
        chosen = self._order[position * size : (position + 1) * size]
        return self.images[chosen], self.labels[chosen]


class Gradients:
    """Gradients of the mean cross entropy, one node after the other.

    augmented: mirror (if `flip`) and shift the images at random, by the seed, node and step.
    """

    def __init__(
        self,
        model: FlatModel,
        shards: Mapping[int, ImageSet],
        sizes: Mapping[int, int],
        *,
        seed: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        flip: bool,
        augmented: bool,
    ) -> None:
        self._model, self._seed = model, seed
        self._mean, self._std, self._flip, self._augmented = mean, std, flip, augmented
        device = model.weights.device
        self._batches = {
            node: Minibatches(
                torch.from_numpy(shard.images).to(device),
                torch.from_numpy(shard.labels).to(device),
                sizes[node],
                seed,
                node,
            )
            for node, shard in shards.items()
        }

    def __call__(self, due: Sequence[tuple[Node, int]]) -> Iterator[torch.Tensor]:
        model = self._model
        model.module.train()
        for node, step in due:
            images, labels = self.minibatches([(node.index, step)])
            model.weights.copy_(node.weights)
            model.zero_grad()
            functional.cross_entropy(model.module(images), labels).backward()
            yield model.gradient

    def size(self, node: int) -> int:
        """How many images a minibatch of the node has."""
        return self._batches[node].size

    def minibatches(self, due: Sequence[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """(normalised images (b, c, h, w), labels (b,)) of the minibatches (node, step), one behind
        the other."""
        found = [self._batches[node][step] for node, step in due]
        images, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
        if self._augmented:
            moves = [
                draw_moves(rng(self._seed, "augment", node, step), self.size(node))
                for node, step in due
            ]
            images = move(images, np.concatenate(moves, axis=1), flip=self._flip)
        return normalise(images, self._mean, self._std), labels
