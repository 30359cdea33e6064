"""The last layer of a classifier: where its weights are, and what labels say of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from strategies.flat import FlatModel

CALIBRATION_EXAMPLES = 512  # of a participant, in a job
_BATCH = 500


class Head:
    """The linear layer W (c, d + 1) that makes a model's logits W (phi, 1) of features phi (d,).

    The bias is the last column of W. `sample`: some inputs of the model, by which the layer is
    found. Raises ValueError for a model whose outputs (b, c) are not those of such a layer, all of
    whose weights are trained and used by nothing else.
    """

    def __init__(self, model: FlatModel, sample: torch.Tensor) -> None:
        self._model, module = model, model.module
        self._layer = _last_layer(module, sample)
        places = model.unflatten(torch.arange(len(model.weights)))
        owners = list(module.named_parameters(remove_duplicate=False))
        columns = []
        for own in (self._layer.weight, self._layer.bias):
            names = [name for name, parameter in owners if parameter is own]
            if len(names) != 1 or names[0] not in places:
                raise ValueError("its last layer has no bias, is shared, or is not trained")
            place = places[names[0]].numpy()
            columns.append(place if place.ndim == 2 else place[:, None])
        self._places = np.concatenate(columns, axis=1)

    @property
    def shape(self) -> tuple[int, int]:
        """(c, d + 1)."""
        classes, columns = self._places.shape
        return classes, columns

    def of(self, weights: np.ndarray) -> np.ndarray:
        """W of a model's flat weights (p,), float64."""
        return weights[self._places].astype(np.float64)

    def put(self, weights: np.ndarray, head: np.ndarray) -> np.ndarray:
        """A copy of flat weights (p,) with another W."""
        changed = weights.copy()
        changed[self._places] = head
        return changed

    @torch.no_grad()
    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        """(phi, 1) of prepared inputs of the model as it is, in evaluation mode: (n, d + 1),
        float64 on the CPU."""
        self._model.module.eval()
        with _inputs_of(self._layer) as seen:
            for start in range(0, len(inputs), _BATCH):
                self._model.module(inputs[start : start + _BATCH])
        found = torch.cat(seen).double().cpu()
        return torch.cat([found, found.new_ones(len(found), 1)], dim=1)


def label_gradient(features: torch.Tensor, head: np.ndarray, targets: torch.Tensor) -> np.ndarray:
    """The gradient of the mean cross entropy with respect to W: the mean of (softmax(W phi) - e_y)
    phi^T over the examples, (c, d + 1) float32. features: of `Head.features`; targets: (n,)."""
    excess = (features @ torch.from_numpy(head).T).softmax(1)
    excess[torch.arange(len(targets)), targets.long()] -= 1
    return (excess.T @ features / len(targets)).float().numpy()


def _last_layer(module: nn.Module, sample: torch.Tensor) -> nn.Linear:
    made: list[tuple[nn.Module, torch.Tensor]] = []

    def note(layer: nn.Module, _: Any, outputs: torch.Tensor) -> None:
        made.append((layer, outputs))

    linear = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    hooks = [layer.register_forward_hook(note) for layer in linear]
    module.eval()
    try:
        with torch.no_grad():
            outputs = module(sample)
    finally:
        for hook in hooks:
            hook.remove()
    for layer, own in reversed(made):
        if own is outputs and outputs.dim() == 2 and isinstance(layer, nn.Linear):
            return layer
    raise ValueError("its outputs (b, classes) are not those of a last nn.Linear")


@contextmanager
def _inputs_of(layer: nn.Linear) -> Iterator[list[torch.Tensor]]:
    seen: list[torch.Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    try:
        yield seen
    finally:
        hook.remove()
