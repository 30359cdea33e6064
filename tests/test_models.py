"""The contract of every model, and the sizes the papers give."""

import numpy as np
import pytest
import torch
from torch import nn

from fl_app.models import CNN, MODELS, build_model, model_plan
from fl_app.models.layers import initialise

SHAPES = [(1, 28), (3, 32)]


def parameter_count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def vector(module: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(module.parameters())


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(("channels", "size"), SHAPES)
@pytest.mark.parametrize("name", MODELS)
class TestContract:
    def test_maps_images_to_trainable_logits(
        self, name: str, channels: int, size: int, norm: str
    ) -> None:
        model = build_model(
            name, in_channels=channels, num_classes=7, image_size=size, seed=0, norm=norm
        )
        logits = model(torch.rand(2, channels, size, size))
        assert logits.shape == (2, 7)
        assert logits.dtype == torch.float32
        assert bool(logits.isfinite().all())
        logits.square().sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in model.parameters())

    def test_has_the_declared_number_of_weight_layers(
        self, name: str, channels: int, size: int, norm: str
    ) -> None:
        model = build_model(
            name, in_channels=channels, num_classes=10, image_size=size, seed=0, norm=norm
        )
        layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        assert len(layers) == MODELS[name].layers
        norms = {type(m) for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.GroupNorm)}
        assert norms == {nn.BatchNorm2d if norm == "batch" else nn.GroupNorm}


@pytest.mark.parametrize("name", MODELS)
def test_weights_depend_on_the_seed_alone(name: str) -> None:
    global_state = torch.random.get_rng_state()
    first, again, other = (
        vector(build_model(name, in_channels=1, num_classes=10, image_size=28, seed=seed))
        for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), global_state)


@pytest.mark.parametrize("name", MODELS)
def test_width_scales_the_first_convolution(name: str) -> None:
    model = build_model(name, in_channels=3, num_classes=10, image_size=32, seed=0, width=4)
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    assert first.out_channels == 4


@pytest.mark.parametrize("name", MODELS)
def test_the_declared_smallest_image_fits(name: str) -> None:
    size = MODELS[name].smallest_image
    model = build_model(name, in_channels=1, num_classes=2, image_size=size, seed=0).eval()
    assert model(torch.rand(2, 1, size, size)).shape == (2, 2)


def test_cnn6_parameter_count() -> None:
    """cnn6, width 8, 3 x 32 x 32, 10 classes: 18 034 parameters.

    Convolutions 9 * (3*8 + 8*16 + 16*16 + 16*32 + 32*32) = 9 * 1944 = 17 496;
    scale and shift of 8+16+16+32+32 = 104 channels: 208; head 32*10 + 10 = 330.
    """
    model = build_model("cnn6", in_channels=3, num_classes=10, image_size=32, seed=0)
    assert parameter_count(model) == 17_496 + 208 + 330 == 18_034


def test_cnn12_parameter_count() -> None:
    """cnn12, width 16, 3 x 32 x 32, 10 classes: 133 178 parameters.

    Convolutions 9 * (3*16 + 3*16*16 + 16*32 + 3*32*32 + 32*64 + 2*64*64) = 9 * 14 640 = 131 760;
    scale and shift of 4*16 + 4*32 + 3*64 = 384 channels: 768; head 64*10 + 10 = 650.
    """
    model = build_model("cnn12", in_channels=3, num_classes=10, image_size=32, seed=0)
    assert parameter_count(model) == 131_760 + 768 + 650 == 133_178


def test_lenet_parameter_count() -> None:
    """LeNet-5 has 61 706 parameters on one channel; ours has 61 706 - 22 + 44 = 61 728.

    5*5*1*6+6 + 5*5*6*16+16 + 400*120+120 + 120*84+84 + 84*10+10 = 61 706, less the 6 + 16
    convolution biases, plus scale and shift of 6 + 16 channels. The padding to 32 x 32 makes the
    same 400 features of 28 and of 32 pixels.
    """
    for size in (28, 32):
        model = build_model("lenet", in_channels=1, num_classes=10, image_size=size, seed=0)
        assert parameter_count(model) == 61_706 - 22 + 44


def test_lenet_of_the_tracking_protocol() -> None:
    """By its own words: two normalisations of 2 and 4 groups after the poolings, biases everywhere,
    400-120-84-10: 62 006 parameters (5*5*3*6+6 + 5*5*6*16+16 + 48120 + 10164 + 850 + 2*(6+16)).
    PyTorch's initial weights and biases are uniform below 1 / sqrt(fan in)."""
    flat = {"in_channels": 3, "num_classes": 10, "image_size": 32, "norm": "group", "seed": 0}
    model = build_model("lenet-tracking", **flat)
    assert parameter_count(model) == 62_006 + 44
    theirs = nn.Sequential(
        nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.GroupNorm(2, 6),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.GroupNorm(4, 16), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip
    theirs.load_state_dict(dict(zip(theirs.state_dict(), model.state_dict().values(), strict=True)))
    images = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(model(images), theirs(images))
    bound = 1 / 75**0.5
    assert 0.9 * bound < model.get_parameter("conv1.weight").abs().max() < bound
    assert 0.5 * bound < model.get_parameter("conv1.bias").abs().max() < bound


@pytest.mark.parametrize(("name", "expected"), [("resnet20", 269_722), ("resnet32", 464_154)])
def test_resnet_parameter_counts(name: str, expected: int) -> None:
    """Option A shortcuts have no parameters: He et al. give 0.27 M and 0.46 M (table 6).

    Stem 432 + 32; stage of channels c with n blocks 2n * (9*c*c + 2*c), except its first
    convolution 9*c*c/2 from the second stage on; head 650. n = 3: 464 + 14 016 + 51 072 + 203 520
    + 650 = 269 722.
    """
    model = build_model(name, in_channels=3, num_classes=10, image_size=32, seed=0)
    assert parameter_count(model) == expected


def test_vgg11_is_configuration_a() -> None:
    """Eight convolutions of 3 x 3, five poolings, normalisation in 8 groups, whose 2752 channels
    have a scale and a shift each, and a head of 5130 parameters."""
    flat = {"in_channels": 3, "num_classes": 10, "image_size": 32, "norm": "group", "seed": 0}
    model = build_model("vgg11", **flat)
    convolutions = 9 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 256 + 256 * 512 + 3 * 512 * 512)
    assert parameter_count(model) == convolutions + 2 * 2752 + 5130
    theirs = nn.Sequential()
    channels = 3
    for item in (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"):
        if item == "M":
            theirs.append(nn.MaxPool2d(2))
            continue
        convolution = nn.Conv2d(channels, int(item), 3, padding=1, bias=False)
        theirs.extend([convolution, nn.GroupNorm(8, int(item)), nn.ReLU()])
        channels = int(item)
    theirs.extend([nn.Flatten(), nn.Linear(512, 10)])
    theirs.load_state_dict(dict(zip(theirs.state_dict(), model.state_dict().values(), strict=True)))
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(model(images), theirs(images))
    smaller = build_model("vgg11", **{**flat, "image_size": 28})
    padded = torch.nn.functional.pad(images[..., :28, :28], (2, 2, 2, 2))
    torch.testing.assert_close(smaller(images[..., :28, :28]), theirs(padded))
    with pytest.raises(
        ValueError, match="8 groups, but a layer has 12; choose a width divisible by 8"
    ):
        build_model("vgg11", **flat, width=12)


def test_cnn6_is_a_sub_plan_of_cnn12() -> None:
    """Stage by stage, the small plan has no more convolutions and no wider ones."""
    small, large = (
        build_model(name, in_channels=1, num_classes=10, image_size=28, seed=0)
        for name in ("cnn6", "cnn12")
    )
    assert isinstance(small, CNN)
    assert isinstance(large, CNN)
    assert small.plan == ("s8", "16", "P", "16", "32", "P", "32")
    assert large.plan == ("s16", *("16",) * 3, "P", *("32",) * 4, "P", *("64",) * 3)
    assert [len(m.blocks) for m in (small, large)] == [5, 11]
    small_stages, large_stages = (
        [[int(c.strip("s")) for c in stage.split()] for stage in " ".join(m.plan).split("P")]
        for m in (small, large)
    )
    for few, many in zip(small_stages, large_stages, strict=True):
        assert len(few) <= len(many)
        assert all(a <= b for a, b in zip(few, many[: len(few)], strict=True))


@pytest.mark.parametrize("width", [None, 4])
@pytest.mark.parametrize("name", MODELS)
def test_model_plan_is_the_plan_of_the_built_model(name: str, width: int | None) -> None:
    model = build_model(name, in_channels=1, num_classes=2, image_size=28, seed=0, width=width)
    assert model_plan(name, width) == getattr(model, "plan", ())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "cnn7"}, "model='cnn7' is unknown; choose one of: cnn12, cnn6, lenet"),
        ({"norm": "layer"}, "norm='layer' is unknown; choose one of: batch, group"),
        ({"width": 0}, "width=0 of model 'cnn6' must be at least 1"),
        ({"in_channels": 0}, "in_channels=0"),
        ({"num_classes": 1}, "num_classes=1"),
        ({"image_size": 6}, "at least 7 x 7 pixels, these are 6 x 6"),
        ({"image_size": (28, 6)}, "at least 7 x 7 pixels, these are 28 x 6"),
        ({"norm": "group", "width": 5}, "2 groups, but a layer has 5; choose a width divisible"),
    ],
)
def test_what_does_not_fit_is_named(change: dict, message: str) -> None:
    arguments = {"name": "cnn6", "in_channels": 1, "num_classes": 10, "image_size": 28, "seed": 0}
    with pytest.raises(ValueError, match=message):
        build_model(**(arguments | change))


def test_a_layer_without_an_initialisation_is_refused() -> None:
    with pytest.raises(TypeError, match="PReLU"):
        initialise(nn.PReLU(), np.random.default_rng(0))
