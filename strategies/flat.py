"""One model as three flat vectors, so that averaging, sending and saving are single operations."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy

from strategies.randomness import rng
from strategies.task import Prepare, prepared


class FlatModel:
    """A module whose trained parameters, gradients and buffers are views into flat float32 vectors.

    Attributes:
        module: the wrapped module, on `device`; do not move or cast it afterwards.
        weights: all parameters that require gradients, (p,), in the order of
            ``module.named_parameters()``. The others stay in the module: they are what `model` of
            the task has made of them, in every process.
        gradient: all gradients, (p,), same order; `backward` adds into it.
        buffers: all floating-point buffers (BatchNorm statistics), (q,). Integer buffers stay in
            the module: nothing reads them while BatchNorm's momentum is a number; and those that
            are no part of its state dict, such as a table of positions: they are constants.
        draws: whether the module draws random numbers in training, as its layers tell (dropout) or
            `look` has seen.

    Convolution weights keep PyTorch's (out, in, height, width) order in the vector: a vector laid
    out channels-last is no faster (measured), the layout of the images alone decides.

    Raises:
        ValueError: such a parameter or a floating-point buffer is not float32 or has no size yet,
            there is no such parameter, or a BatchNorm has momentum=None.
    """

    def __init__(self, module: nn.Module, device: str | torch.device = "cpu") -> None:
        self.module = module.to(device)
        self.draws = any(map(_draws, module.modules()))
        self._looked = False
        _check_momentum(self.module)
        parameters = _trained(self.module)
        if not parameters:
            raise ValueError("no parameter requires gradients; there is nothing to learn")
        buffers = _statistics(self.module)
        for name, tensor in {**parameters, **buffers}.items():
            if is_lazy(tensor):
                raise ValueError(
                    f"{name} is of a lazy module, and has no size before inputs are seen; say the "
                    f"sizes, as in nn.Linear(4, 3) for nn.LazyLinear(3)"
                )
            if tensor.dtype != torch.float32:
                raise ValueError(f"{name} is {tensor.dtype}; a flat model takes torch.float32 only")
        self._constants: dict[torch.dtype, dict[str, torch.Tensor]] = {}
        self._layout = ";".join(
            f"{kind}:{name}:{tuple(tensor.shape)}"
            for kind, tensors in (("parameter", parameters), ("buffer", buffers))
            for name, tensor in tensors.items()
        )
        self.weights = _flatten(parameters.values(), device)
        self.gradient = torch.zeros_like(self.weights)
        self.buffers = _flatten(buffers.values(), device)
        for parameter, view, gradient in zip(
            parameters.values(),
            _views(self.weights, parameters.values()),
            _views(self.gradient, parameters.values()),
            strict=True,
        ):
            parameter.data = view
            parameter.grad = gradient
        for buffer, view in zip(
            buffers.values(), _views(self.buffers, buffers.values()), strict=True
        ):
            buffer.data = view

    def unflatten(self, weights: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the parameters by name, as views into `weights` (p,); of several models, (n, p),
        each parameter with n in front of its shape."""
        parameters = _trained(self.module)
        return dict(zip(parameters, _views(weights, parameters.values()), strict=True))

    def unflatten_buffers(self, buffers: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the floating-point buffers by name, as views into `buffers` (q,)."""
        found = _statistics(self.module)
        return dict(zip(found, _views(buffers, found.values()), strict=True))

    def constants(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Return by name, as `dtype`, the frozen parameters and the buffers that are in neither
        vector, of those that are float32; nothing for float32 itself. They are cast once."""
        if dtype not in self._constants:
            module = self.module
            others = {**dict(module.named_parameters()), **dict(module.named_buffers())}
            vectors = _trained(module).keys() | _statistics(module).keys()
            self._constants[dtype] = {
                name: tensor.detach().to(dtype)
                for name, tensor in others.items()
                if name not in vectors and tensor.dtype == torch.float32 != dtype
            }
        return self._constants[dtype]

    def load(self, weights: np.ndarray | torch.Tensor, buffers: np.ndarray | torch.Tensor) -> None:
        """Copy both vectors into the model, in place.

        Raises:
            ValueError: a vector has the wrong shape; the model is left as it was.
        """
        pairs = [
            (self.weights, torch.as_tensor(weights), "weights"),
            (self.buffers, torch.as_tensor(buffers), "buffers"),
        ]
        for target, source, name in pairs:
            if source.shape != target.shape:
                raise ValueError(
                    f"{name} have shape {tuple(source.shape)}, "
                    f"the model takes {tuple(target.shape)}"
                )
        for target, source, _ in pairs:
            target.copy_(source)

    def state(self) -> dict[str, np.ndarray]:
        """Return copies of ``{"weights": (p,), "buffers": (q,)}`` as float32 arrays."""
        return {
            "weights": self.weights.cpu().numpy().copy(),
            "buffers": self.buffers.cpu().numpy().copy(),
        }

    def schema(self) -> str:
        """Return 16 hex digits that are equal for models which can exchange their vectors."""
        return hashlib.sha256(self._layout.encode()).hexdigest()[:16]

    def checksum(self) -> str:
        """Return the sha256 of the weights' and buffers' bytes, in hex."""
        state = self.state()
        return hashlib.sha256(state["weights"].tobytes() + state["buffers"].tobytes()).hexdigest()

    @torch.no_grad()
    def look(self, prepare: Prepare, stored: torch.Tensor) -> None:
        """See once whether the module draws random numbers in training, with some of these stored
        inputs: it may do so without a layer that tells. Nothing but `draws` changes."""
        if self.draws or self._looked:
            return
        module, device, self._looked = self.module, self.weights.device, True
        inputs = prepared(prepare, stored[:2].to(device), rng(0, "look"))
        kept = [(buffer, buffer.clone()) for buffer in module.buffers()]
        mode = module.training
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            before = _generators(device)
            module.train()(inputs)
            self.draws = not all(map(torch.equal, before, _generators(device)))
        module.train(mode)
        for buffer, before in kept:
            buffer.copy_(before)

    @contextmanager
    def drawing(self, seed: int, *path: str | int) -> Iterator[None]:
        """Within it the module draws from the stream `path` under `seed`; afterwards PyTorch's
        generators are as they were. Whoever trains has had a `look` before."""
        if not self.draws:
            yield
            return
        with torch.random.fork_rng():
            torch.manual_seed(int(rng(seed, "module", *path).integers(2**63)))
            yield

    def zero_grad(self) -> None:
        """Zero the gradient in place: ``module.zero_grad()`` would drop the views."""
        self.gradient.zero_()


def _draws(layer: nn.Module) -> bool:
    if isinstance(layer, _DropoutNd):
        return layer.p > 0
    return isinstance(layer, nn.RNNBase | nn.MultiheadAttention) and layer.dropout > 0


def _generators(device: torch.device) -> list[torch.Tensor]:
    """The states of PyTorch's generators that a module on `device` may draw from."""
    of_device = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *of_device]


def _check_momentum(module: nn.Module) -> None:
    """That no running statistics depend on a count, which stays in the process."""
    for name, layer in module.named_modules():
        if isinstance(layer, _BatchNorm) and layer.track_running_stats and layer.momentum is None:
            raise ValueError(
                f"{name or 'the model'} is a {type(layer).__name__} with momentum=None, whose "
                f"statistics depend on all minibatches that a process has seen before; give it a "
                f"number, such as momentum=0.1"
            )


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """By name, the parameters that require gradients; of those that are shared, each once."""
    return {name: each for name, each in module.named_parameters() if each.requires_grad}


def _statistics(module: nn.Module) -> dict[str, torch.Tensor]:
    """By name, the floating-point buffers that are a part of the module's state."""
    kept = module.state_dict().keys()
    return {
        name: buffer
        for name, buffer in module.named_buffers()
        if name in kept and buffer.is_floating_point()
    }


def _flatten(tensors: Iterable[torch.Tensor], device: str | torch.device) -> torch.Tensor:
    flat = [tensor.detach().reshape(-1) for tensor in tensors]
    return torch.cat(flat) if flat else torch.zeros(0, device=device)


def _views(vector: torch.Tensor, like: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    views, start = [], 0
    for tensor in like:
        part = vector[..., start : start + tensor.numel()]
        views.append(part.view(*vector.shape[:-1], *tensor.shape))
        start += tensor.numel()
    return views
