"""Growing: the same function at first, close with noise, and refused where plans do not nest."""

from typing import Any

import numpy as np
import pytest
import torch

from client_apps.training import train_locally
from fl_app.assemble import dataset_of
from fl_app.config import resolve
from fl_app.data import normalise
from fl_app.models import CNN, build_model, model_plan
from fl_app.problem import problem_of
from fl_app.settings import training_of
from strategies.distillation.growth import grow, obstacle, stages
from strategies.flat import FlatModel
from strategies.problem import flat_model, split_of, task_of, train_set_of
from strategies.randomness import rng

SMALL, LARGE = model_plan("cnn6"), model_plan("cnn12")


def network(name: str, width: int, channels: int = 3, norm: str = "batch", seed: int = 0) -> Any:
    module = build_model(
        name, in_channels=channels, num_classes=10, image_size=32, width=width, norm=norm, seed=seed
    )
    return module.eval()


def as_if_trained(module: Any, seed: int = 1) -> Any:
    """With running statistics, scales and shifts that are anything but 0 and 1."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: torch.Tensor, low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(like.shape, generator=generator)

    with torch.no_grad():
        for block in module.blocks:
            norm = block.norm
            norm.running_mean.copy_(uniform(norm.running_mean, -1, 1))
            norm.running_var.copy_(uniform(norm.running_var, 0.05, 3))
            norm.weight.copy_(uniform(norm.weight, 0.3, 2))
            norm.bias.copy_(uniform(norm.bias, -0.5, 1))
    return module


def images(number: int = 16, channels: int = 3, seed: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, channels, 32, 32, generator=generator)


@pytest.mark.parametrize(
    ("width", "large_width"), [(2, 4), (4, 8), (8, 16), (4, 9), (4, 20), (3, 7)]
)
def test_without_noise_the_function_is_the_same(width: int, large_width: int) -> None:
    """On images that calibration has not seen, too, and also where widths are no multiples."""
    small = as_if_trained(network("cnn6", width))
    large = as_if_trained(network("cnn12", large_width), seed=9)
    grow(small, large, images(seed=3), rng(0, "growth"), noise=0.0)
    with torch.no_grad():
        expected, answers = small(images()), large(images())
    assert expected.std() > 0.1  # the comparison is not of constants
    assert (answers - expected).abs().max() < 1e-4 * max(1.0, expected.abs().max().item())


def test_one_channel() -> None:
    small, large = as_if_trained(network("cnn6", 2, 1)), network("cnn12", 4, 1)
    grow(small, large, images(channels=1), rng(0, "growth"), noise=0.0)
    with torch.no_grad():
        torch.testing.assert_close(
            large(images(channels=1)), small(images(channels=1)), rtol=1e-4, atol=1e-4
        )


def test_the_small_model_is_only_read_and_views_survive() -> None:
    small = FlatModel(as_if_trained(network("cnn6", 2)))
    large = FlatModel(network("cnn12", 4))
    before, old = small.checksum(), large.checksum()
    grow(small.module, large.module, images(), rng(0, "growth"))
    assert small.checksum() == before
    assert large.checksum() != old  # the flat vectors are still the module's memory
    parameters = torch.cat([p.detach().reshape(-1) for p in large.module.parameters()])
    assert torch.equal(parameters, large.weights)


def test_growth_follows_from_its_generator() -> None:
    def grown(seed: int) -> str:
        large = FlatModel(network("cnn12", 4))
        grow(as_if_trained(network("cnn6", 2)), large.module, images(), rng(seed, "growth"))
        return large.checksum()

    assert grown(0) == grown(0) != grown(1)


def test_identity_layers_are_the_identity_in_train_mode_too() -> None:
    """On the images of calibration, whose statistics are those of the batch: blocks 2 and 3 of the
    large plan are the ones without a counterpart in the first stage."""
    large = network("cnn12", 4)
    grow(as_if_trained(network("cnn6", 2)), large, images(), rng(0, "growth"), noise=0.0)
    x = images()
    with torch.no_grad():
        for block in large.blocks[:2]:
            x = torch.relu(block(x))
        for block in large.blocks[2:4]:
            torch.testing.assert_close(block.train()(x), x, rtol=1e-4, atol=1e-5)
            # Statistics that the batch itself has are not moved by it (unbiased: n / (n - 1)).
            variance = x.var((0, 2, 3), unbiased=False)
            torch.testing.assert_close(block.norm.running_var, variance, rtol=1e-3, atol=1e-6)


def test_noise_tells_duplicated_channels_apart() -> None:
    """Without it both copies of a channel would get equal gradients for ever."""
    small = network("cnn6", 4)
    for noise, equal in ((0.0, True), (0.05, False)):
        large = network("cnn12", 8)
        grow(small, large, images(), rng(0, "growth"), noise)
        first = large.blocks[0].conv.weight.detach()
        assert torch.equal(first[:4], first[4:]) is equal
        # Of the root mean square, within 20 % for these 216 numbers.
        copied = small.blocks[0].conv.weight.detach().repeat(2, 1, 1, 1)
        difference, size = (first - copied).square().mean().sqrt(), copied.square().mean().sqrt()
        assert float(difference / size) == pytest.approx(noise, rel=0.2)


@pytest.fixture(scope="module")
def trained() -> tuple[FlatModel, torch.Tensor, torch.Tensor]:
    """A small model after 120 steps on the embedded data; test images and labels."""
    config = resolve({"small-width": 4, "large-width": 8, "local-steps": 120})
    dataset, model = dataset_of(config), flat_model(problem_of(config), "small")
    own = split_of(problem_of(config)).participants[0]
    train_locally(
        model,
        train_set_of(problem_of(config)).take(own),
        training_of(config),
        rng(0, "batches"),
        learning_rate=config.learning_rate,
        prepare=task_of(problem_of(config)).prepare(augmented=True),
        loss=task_of(problem_of(config)).loss,
    )
    # At random: a batch of one class only would have misleading statistics.
    chosen = rng(0, "test").permutation(len(dataset.test.labels))[:500]
    test = normalise(torch.from_numpy(dataset.test.images[chosen]), dataset.mean, dataset.std)
    return model, test, torch.from_numpy(dataset.test.labels[chosen])


@pytest.mark.parametrize(("noise", "tolerance"), [(0.0, 0.002), (0.05, 0.04)])
def test_a_trained_models_accuracy_is_inherited(
    trained: Any, noise: float, tolerance: float
) -> None:
    model, test, labels = trained
    config = resolve({"small-width": 4, "large-width": 8})
    large = flat_model(problem_of(config), "large")

    def accuracy(module: torch.nn.Module) -> float:
        with torch.no_grad():
            return (module.eval()(test).argmax(1) == labels).float().mean().item()

    before, fresh = accuracy(model.module), accuracy(large.module)
    grow(model.module, large.module, test[:256], rng(0, "growth"), noise)
    assert before > 0.5 > fresh + 0.2  # there is something to inherit
    assert accuracy(large.module) >= before - tolerance


def test_the_grown_model_can_be_trained(trained: Any) -> None:
    """In train mode, with batch statistics, its answers are sensible and its gradients finite: the
    identity layers' normalisation is calibrated, not a fixed point of running statistics only."""
    model, test, labels = trained
    large = flat_model(problem_of(resolve({"small-width": 4, "large-width": 8})), "large")
    grow(model.module, large.module, test[:256], rng(0, "growth"))
    answers = large.module.train()(test[256:384])
    assert (answers.argmax(1) == labels[256:384]).float().mean() > 0.4
    torch.nn.functional.cross_entropy(answers, labels[256:384]).backward()
    assert torch.isfinite(large.gradient).all()
    assert large.gradient.abs().max() > 0


# ------------------------------------------------------------------------------------- refusals


def test_stages() -> None:
    assert stages(("s8", "16", "P", "16", "P", "P", "4")) == [["s8", "16"], ["16"], [], ["4"]]


def test_the_default_plans_nest() -> None:
    assert obstacle(SMALL, LARGE) is None
    assert obstacle(SMALL, SMALL) is None


@pytest.mark.parametrize(
    ("small", "large", "reason"),
    [
        (("8", "P", "8"), ("8",), "2 stages cannot become 1"),
        (("8",), ("8", "P", "8"), "1 stages cannot become 2"),
        (("8", "8"), ("8",), "stage 1 has 2 convolutions and would need 1 to 1"),
        (("P", "8"), ("8", "P", "8"), "stage 1 has 0 convolutions"),
        (("s8",), ("8",), "stage 1: layers 's8' and '8' have different strides"),
        (("8", "P", "8"), ("8", "P", "s8"), "stage 2: layers '8' and 's8' have different strides"),
        (("16",), ("8",), "stage 1: layer '16' is wider than '8'"),
        (("8",), ("8", "16"), "stage 1: '16' cannot start as the identity"),
        (("8",), ("8", "s8"), "stage 1: 's8' cannot start as the identity"),
        (("8", "P", "8"), ("8", "P", "8", "8", "4"), "stage 2: '4' cannot start as the identity"),
    ],
)
def test_what_does_not_nest_is_refused_with_the_reason(
    small: tuple[str, ...], large: tuple[str, ...], reason: str
) -> None:
    found = obstacle(small, large)
    assert found is not None
    assert found.startswith(reason)
    source, target = CNN(small, 3, 10, "batch"), FlatModel(CNN(large, 3, 10, "batch"))
    before = target.checksum()
    with pytest.raises(ValueError, match=f"cannot grow into the large one: {reason}"):
        grow(source, target.module, images(), rng(0, "growth"))
    assert target.checksum() == before


def test_group_normalisation_is_refused() -> None:
    small, large = network("cnn6", 4, norm="group"), network("cnn12", 8, norm="group")
    with pytest.raises(ValueError, match="growing needs normalisation 'batch'"):
        grow(small, large, images(), np.random.default_rng(0))
