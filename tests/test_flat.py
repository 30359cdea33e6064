"""FlatModel: the vectors and the module are one memory, before and after training."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fl_app.models import MODELS, build_model
from strategies.flat import FlatModel


def make(name: str = "cnn6", norm: str = "batch", seed: int = 0) -> FlatModel:
    return FlatModel(
        build_model(name, in_channels=1, num_classes=10, image_size=28, seed=seed, norm=norm)
    )


def backward(model: FlatModel, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(8, 1, 28, 28, generator=generator)
    images = images.contiguous(memory_format=torch.channels_last)
    loss = F.cross_entropy(model.module(images), torch.arange(8))
    loss.backward()
    return loss.detach()


def assert_views(model: FlatModel) -> None:
    """Every tensor of the module lies inside its vector, in order and without gaps."""
    float_buffers = [b for b in model.module.buffers() if b.is_floating_point()]
    gradients = [p.grad for p in model.module.parameters()]
    for vector, tensors in (
        (model.weights, [p.data for p in model.module.parameters()]),
        (model.gradient, gradients),
        (model.buffers, float_buffers),
    ):
        address = vector.data_ptr()
        for tensor in tensors:
            assert tensor is not None
            assert tensor.data_ptr() == address
            address += 4 * tensor.numel()
        assert address == vector.data_ptr() + 4 * vector.numel()


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("name", MODELS)
def test_views_survive_training_steps(name: str, norm: str) -> None:
    model = make(name, norm)
    assert_views(model)
    for step in range(2):
        model.zero_grad()
        backward(model, step)
        model.weights.sub_(model.gradient, alpha=0.01)
        assert_views(model)
    assert bool(model.gradient.any())


def test_flat_sgd_equals_torch_sgd() -> None:
    """``w -= lr * g`` on the vectors is torch.optim.SGD on the tensors, bit for bit."""
    model, reference = make(), make()
    optimiser = torch.optim.SGD(reference.module.parameters(), lr=0.1)
    for step in range(3):
        model.zero_grad()
        assert torch.equal(backward(model, step), backward(reference, step))
        model.weights.sub_(model.gradient, alpha=0.1)
        optimiser.step()
        optimiser.zero_grad(set_to_none=False)
    assert model.checksum() == reference.checksum()


def test_the_vectors_hold_parameters_and_float_buffers_only() -> None:
    model = make()
    assert model.weights.numel() == sum(p.numel() for p in model.module.parameters())
    # Mean and variance of 8 + 16 + 16 + 32 + 32 channels; num_batches_tracked is an integer.
    assert model.buffers.numel() == 2 * 104
    assert make(norm="group").buffers.numel() == 0


def test_load_copies_state_into_another_model() -> None:
    source, target = make(seed=1), make(seed=2)
    backward(source)
    assert source.checksum() != target.checksum()
    target.load(**source.state())
    assert source.checksum() == target.checksum()
    assert_views(target)
    source.module.eval()
    target.module.eval()
    images = torch.ones(2, 1, 28, 28)
    assert torch.equal(source.module(images), target.module(images))


def test_state_is_a_copy() -> None:
    model = make()
    before = model.checksum()
    state = model.state()
    state["weights"].fill(0)
    state["buffers"].fill(0)
    assert model.checksum() == before


@pytest.mark.parametrize("wrong", ["weights", "buffers"])
def test_load_names_both_sizes_and_changes_nothing(wrong: str) -> None:
    model = make()
    before = model.checksum()
    state = {name: vector + 1 for name, vector in model.state().items()}
    right = state[wrong].size
    state[wrong] = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match=rf"{wrong} have shape \(3,\).*\({right},\)"):
        model.load(**state)
    assert model.checksum() == before


def test_schema_tells_exchangeable_models_apart() -> None:
    assert make(seed=1).schema() == make(seed=2).schema()
    schemas = {make(name, norm).schema() for name in MODELS for norm in ("batch", "group")}
    assert len(schemas) == 2 * len(MODELS)


def test_double_precision_is_refused() -> None:
    with pytest.raises(ValueError, match=r"weight is torch\.float64"):
        FlatModel(nn.Linear(2, 2, dtype=torch.float64))
