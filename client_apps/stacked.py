"""Gradients of several nodes in one pass: their models stacked, their minibatches side by side."""

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from client_apps.gradients import Gradients
from fl_app.models import FlatModel
from strategies.consensus.node import Node

_MOST = 64  # models in one pass, so that its memory has a bound


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
        # Only minibatches of one size can be stacked; neighbours in the list usually have one.
        size = self._one_by_one.size
        for _, group in groupby(due, key=lambda each: size(each[0].index, each[1])):
            pairs = list(group)
            for begin in range(0, len(pairs), _MOST):
                yield from self._stack(pairs[begin : begin + _MOST])

    def _stack(self, due: Sequence[tuple[Node, int]]) -> torch.Tensor:
        """The gradients (n, p) of n nodes that have minibatches of one size."""
        weights = torch.stack([node.weights for node, _ in due])
        batches = self._one_by_one.minibatches([(node.index, step) for node, step in due])
        images, labels = (each.unflatten(0, (len(due), -1)) for each in batches)
        return self._gradient(weights, images, labels)

    def _loss(
        self, weights: torch.Tensor, images: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        logits = functional_call(self._model.module, self._model.unflatten(weights), (images,))
        return functional.cross_entropy(logits, labels)
