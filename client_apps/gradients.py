"""Gradients of a host's nodes at their own minibatches."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional

from fl_app.data import ImageSet, Preparation
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
    _here: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def __post_init__(self) -> None:
        self.size = min(self.size, len(self.labels))

    def indices(self, step: int) -> torch.Tensor:
        """Which images the minibatch has: (size,) int64, on the CPU."""
        place = self._place(step)
        return self._order[place]

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        place = self._place(step)
        chosen = self._here[place]
        return self.images[chosen], self.labels[chosen]

    def _place(self, step: int) -> slice:
        """Where in the order of its epoch, which is then there, the minibatch is."""
        examples, size = len(self.labels), self.size
        epoch, position = divmod(step, examples // size)
        if epoch != self._epoch:
            order = rng(self.seed, "epoch", self.node, epoch).permutation(examples)
            self._epoch, self._order = epoch, torch.from_numpy(order)
            self._here = self._order.to(self.labels.device)
        return slice(position * size, (position + 1) * size)


class Gradients:
    """Gradients of the mean cross entropy, one node after the other.

    prepare: from stored pixels to the model's input; what is random in it follows from the seed,
    the node and the step.
    """

    def __init__(
        self,
        model: FlatModel,
        shards: Mapping[int, ImageSet],
        sizes: Mapping[int, int],
        *,
        seed: int,
        prepare: Preparation,
    ) -> None:
        self.model, self.prepare, self._seed = model, prepare, seed
        device = model.weights.device
        self.batches = {
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
        model = self.model
        model.module.train()
        for node, step in due:
            images, labels = self.minibatches([(node.index, step)])
            model.weights.copy_(node.weights)
            model.zero_grad()
            functional.cross_entropy(model.module(images), labels).backward()
            yield model.gradient

    def size(self, node: int) -> int:
        """How many images a minibatch of the node has."""
        return self.batches[node].size

    def moves(self, due: Sequence[tuple[int, int]]) -> torch.Tensor:
        """What is random about the images of the minibatches (node, step), one behind the other:
        (k, b) int64, on the CPU."""
        drawn = [
            self.prepare.draw(rng(self._seed, "augment", node, step), self.size(node))
            for node, step in due
        ]
        return torch.from_numpy(np.concatenate(drawn, axis=1))

    def minibatches(self, due: Sequence[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """(model's inputs (b, c, h, w), labels (b,)) of the minibatches (node, step), one behind
        the other."""
        found = [self.batches[node][step] for node, step in due]
        images, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
        return self.prepare(images, self.moves(due).to(images.device)), labels
