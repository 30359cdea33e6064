"""Growing: the large model is rebuilt from the small one and starts at its accuracy (Net2Net,
Chen et al. 2016).

A *plan* is a sequence of layers: "16" a 3 x 3 convolution with 16 channels, normalisation and
ReLU, "s16" the same with stride 2, "P" a pooling. Poolings divide a plan into stages. A small plan
grows into a large one when every stage of the large one begins with the small one's convolutions,
possibly wider, and goes on with convolutions that can start as the identity.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional


def stages(plan: Sequence[str]) -> list[list[str]]:
    """The convolutions of a plan between its poolings."""
    result: list[list[str]] = [[]]
    for layer in plan:
        if layer == "P":
            result.append([])
        else:
            result[-1].append(layer)
    return result


def obstacle(small: Sequence[str], large: Sequence[str]) -> str | None:
    """Why the plan `small` cannot grow into `large`, or None if it can."""
    small_stages, large_stages = stages(small), stages(large)
    if len(small_stages) != len(large_stages):
        return f"{len(small_stages)} stages cannot become {len(large_stages)}"
    for number, (few, many) in enumerate(zip(small_stages, large_stages, strict=True), 1):
        if len(few) > len(many) or not few:
            return f"stage {number} has {len(few)} convolutions and would need 1 to {len(many)}"
        for old, new in zip(few, many, strict=False):
            if old.startswith("s") != new.startswith("s"):
                return f"stage {number}: layers {old!r} and {new!r} have different strides"
            if int(old.lstrip("s")) > int(new.lstrip("s")):
                return f"stage {number}: layer {old!r} is wider than {new!r}"
        extra = [layer for layer in many[len(few) :] if layer != many[len(few) - 1].lstrip("s")]
        if extra:
            return f"stage {number}: {extra[0]!r} cannot start as the identity"
    return None


@torch.no_grad()
def grow(
    small: Any,
    large: Any,
    images: torch.Tensor,
    generator: np.random.Generator,
    noise: float = 0.05,
) -> None:
    """Overwrite `large` so that it computes nearly what `small` computes.

    small, large: modules with `plan`, `blocks` (each with `conv` and a BatchNorm `norm`) and
    `head`, both evaluated with their running statistics. images: one normalised batch
    (b, c, h, w) on which the identity layers' normalisation is calibrated. noise: every weight
    tensor gets Gaussian noise of this fraction of its root mean square, which breaks the symmetry
    of duplicated channels; with noise = 0 the functions are equal up to rounding.

    Raises ValueError when the plans do not nest or normalisation is not BatchNorm.
    """
    reason = obstacle(small.plan, large.plan)
    if reason:
        raise ValueError(f"the small model cannot grow into the large one: {reason}")
    if any(not isinstance(block.norm, nn.BatchNorm2d) for block in large.blocks):
        raise ValueError(
            "growing needs normalisation 'batch': identity layers are calibrated in it"
        )
    sources = _sources(small.plan, large.plan)
    small_blocks, large_blocks = list(small.blocks), list(large.blocks)
    mapping = torch.arange(small_blocks[0].conv.in_channels)
    x = images
    position = 0
    for layer in large.plan:
        if layer == "P":
            x = functional.max_pool2d(x, 2)
            continue
        block, source = large_blocks[position], sources[position]
        if source is None:
            _identity(block, x)
        else:
            mapping = _widen(small_blocks[source], block, mapping)
        _disturb(block.conv.weight, noise, generator)
        statistics = functional.batch_norm(
            block.conv(x),
            block.norm.running_mean,
            block.norm.running_var,
            block.norm.weight,
            block.norm.bias,
            training=False,
            eps=block.norm.eps,
        )
        x = functional.relu(statistics)
        position += 1
    large.head.weight.copy_(_divided(small.head.weight, mapping))
    large.head.bias.copy_(small.head.bias)


def _sources(small: Sequence[str], large: Sequence[str]) -> list[int | None]:
    """For every convolution of `large` the index of the one in `small` it copies, or None."""
    sources: list[int | None] = []
    position = 0
    for few, many in zip(stages(small), stages(large), strict=True):
        sources += [position + i if i < len(few) else None for i in range(len(many))]
        position += len(few)
    return sources


def _divided(weight: torch.Tensor, mapping: torch.Tensor) -> torch.Tensor:
    """Columns (dimension 1) repeated by `mapping`, divided by how often each is repeated."""
    copies = torch.bincount(mapping, minlength=weight.shape[1]).to(weight.dtype)
    shape = (1, -1) + (1,) * (weight.dim() - 2)
    return (weight / copies.to(weight.device).reshape(shape))[:, mapping]


def _widen(source: Any, target: Any, inputs: torch.Tensor) -> torch.Tensor:
    """Net2WiderNet of one block; returns the channel of source that each of target copies."""
    narrow, wide = source.conv.out_channels, target.conv.out_channels
    outputs = torch.arange(wide) % narrow
    target.conv.weight.copy_(_divided(source.conv.weight, inputs)[outputs])
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(target.norm, name).copy_(getattr(source.norm, name)[outputs])
    return outputs


def _identity(block: Any, x: torch.Tensor) -> None:
    """Make conv + norm the identity on x >= 0: a Dirac kernel, and a norm that undoes itself."""
    nn.init.dirac_(block.conv.weight)
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    norm = block.norm
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    norm.weight.copy_((variance + norm.eps).sqrt())
    norm.bias.copy_(mean)


def _disturb(weight: torch.Tensor, noise: float, generator: np.random.Generator) -> None:
    """Add Gaussian noise of `noise` times the tensor's root mean square."""
    scale = noise * weight.square().mean().sqrt()
    values = generator.standard_normal(tuple(weight.shape), dtype=np.float32)
    weight.add_(scale * torch.from_numpy(values).to(weight.device))
