"""Gradients of several nodes in one pass: their models stacked, their minibatches side by side."""

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from client_apps.gradients import Gradients
from fl_app.models import FlatModel
from strategies.consensus.node import Node


class StackedGradients:
    """What `Gradients` computes, for all nodes that are due at one moment together (torch.func's
    vmap over stacked parameters).

    On a GPU one small model keeps only a part of it busy, so several at once cost little more than
    one; on a CPU it is slower than one after the other. The two agree to the rounding of float32
    (sums in another order), each is deterministic by itself.

    Raises ValueError for a model with buffers, which vmap cannot update.
    """

    def __init__(self, one_by_one: Gradients, model: FlatModel) -> None:
        if len(model.buffers):
            raise ValueError("models with buffers, such as BatchNorm's, cannot be stacked")
        self._one_by_one, self._model = one_by_one, model
        self._gradient = vmap(grad(self._loss))

    def __call__(self, due: Sequence[tuple[Node, int]]) -> Iterator[torch.Tensor]:
        batches = [(node, *self._one_by_one.minibatch(node.index, step)) for node, step in due]
        # Only minibatches of one size can be stacked; neighbours in the list usually have one.
        for _, group in groupby(batches, key=lambda batch: len(batch[2])):
            nodes, images, labels = zip(*group, strict=True)
            weights = torch.stack([node.weights for node in nodes])
            yield from self._gradient(weights, torch.stack(images), torch.stack(labels))

    def _loss(
        self, weights: torch.Tensor, images: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        logits = functional_call(self._model.module, self._model.unflatten(weights), (images,))
        return functional.cross_entropy(logits, labels)
