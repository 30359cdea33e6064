"""The models a run can name, built deterministically."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from fl_app.models.cnn import CNN, CNN6, CNN12, scale_plan, smallest_image
from fl_app.models.layers import NORMS, initialise
from fl_app.models.lenet import LeNet, TrackingLeNet
from fl_app.models.resnet import ResNet
from fl_app.models.vgg import VGG11
from strategies.randomness import rng

__all__ = ["CNN", "MODELS", "ModelSpec", "build_model", "model_plan"]

ImageSize = tuple[int, int]
Builder = Callable[[int, int, int, str, ImageSize], nn.Module]


@dataclass(frozen=True)
class ModelSpec:
    """What is known of a model before it is built.

    Attributes:
        width: default width (channels of the first convolution).
        layers: weight layers (convolutions and linear layers).
        smallest_image: least height and width in pixels.
        plan: of a `CNN` in units of its width; empty for the other models.
        build: (in_channels, num_classes, width, norm, (height, width of the image)) -> module.
    """

    width: int
    layers: int
    smallest_image: int
    build: Builder
    plan: tuple[str, ...] = ()


def _cnn(width: int, plan: tuple[str, ...]) -> ModelSpec:
    def build(channels: int, classes: int, width: int, norm: str, _: ImageSize) -> nn.Module:
        return CNN(scale_plan(plan, width), channels, classes, norm)

    layers = 1 + sum(item != "P" for item in plan)
    return ModelSpec(width, layers, smallest_image(plan), build, plan)


def _resnet(depth: int) -> Builder:
    return lambda c, classes, width, norm, _: ResNet(depth, c, classes, width, norm)


MODELS: dict[str, ModelSpec] = {
    "cnn6": _cnn(8, CNN6),
    "cnn12": _cnn(16, CNN12),
    "lenet": ModelSpec(6, 5, 1, LeNet),
    "lenet-tracking": ModelSpec(6, 5, 1, TrackingLeNet),
    "resnet20": ModelSpec(16, 20, 1, _resnet(3)),
    "resnet32": ModelSpec(16, 32, 1, _resnet(5)),
    "vgg11": ModelSpec(64, 9, 1, VGG11),
}


def model_plan(name: str, width: int | None = None) -> tuple[str, ...]:
    """Return the plan that `name` has at `width` (None = its default); () if it has none."""
    return scale_plan(MODELS[name].plan, width or MODELS[name].width)


def build_model(
    name: str,
    *,
    in_channels: int,
    num_classes: int,
    image_size: int | ImageSize,
    seed: int,
    width: int | None = None,
    norm: str = "batch",
) -> nn.Module:
    """Build the model `name` with initial weights that depend on `seed` and the arguments alone.

    Args:
        image_size: pixels, one number for square images or (height, width).
        width: channels of the first convolution; None = the model's default.
        norm: "batch", or "group" (whose behaviour does not depend on the other images of a batch,
            which suits participants with different class mixtures).

    Raises:
        ValueError: unknown name or norm, or a model, width, group count and image that do not fit.
    """
    if name not in MODELS:
        raise ValueError(f"model={name!r} is unknown; choose one of: {', '.join(sorted(MODELS))}")
    if norm not in NORMS:
        raise ValueError(f"norm={norm!r} is unknown; choose one of: {', '.join(sorted(NORMS))}")
    spec = MODELS[name]
    width = spec.width if width is None else width
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    for label, value in {"width": width, "in_channels": in_channels}.items():
        if value < 1:
            raise ValueError(f"{label}={value} of model {name!r} must be at least 1")
    if num_classes < 2:
        raise ValueError(f"num_classes={num_classes} of model {name!r} must be at least 2")
    if min(size) < spec.smallest_image:
        raise ValueError(
            f"model {name!r} needs images of at least {spec.smallest_image} x "
            f"{spec.smallest_image} pixels, these are {size[0]} x {size[1]}"
        )
    # PyTorch's own initialisation consumes the global generator, whose state is put back. (The meta
    # device would avoid it, but imports sympy: 2 s of processor time in every process.)
    with torch.random.fork_rng(devices=[]):
        module = spec.build(in_channels, num_classes, width, norm, size)
    initialise(module, rng(seed, "init", name))
    return module
