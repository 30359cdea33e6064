"""Minibatches by number, and the gradients of a host's nodes one by one or side by side."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from client_apps import engines, row_gradients
from client_apps.gradients import Gradients, Minibatches
from client_apps.local_model import local_model_of, shard_of
from client_apps.logit_adjustment import logit_shift, shifted
from client_apps.row_gradients import PASSES, Batch, RowGradients
from fl_app.config import resolve
from fl_app.data import ImageSet, Preparation, normalise
from fl_app.models import build_model
from fl_app.problem import problem_of
from fl_app.settings import nodes_run_of
from fl_app.tasks.images import examples_of
from strategies.consensus.node import Node
from strategies.flat import FlatModel
from strategies.randomness import rng
from strategies.task import Examples, Loss

MEAN, STD = (0.4,), (0.3,)


def images(count: int, seed: int = 0) -> ImageSet:
    generator = rng(seed, "images")
    return ImageSet(
        generator.integers(0, 256, (count, 1, 28, 28), dtype=np.uint8),
        generator.integers(0, 10, count),
    )


def numbered(count: int, size: int, seed: int = 0, node: int = 0) -> Minibatches:
    """Minibatches whose labels are the numbers of the images."""
    return Minibatches(
        torch.zeros(count, 1, 1, 1, dtype=torch.uint8), torch.arange(count), size, seed, node
    )


# ------------------------------------------------------------------------------------ minibatches


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 3))
def test_an_epoch_has_every_image_once_but_for_the_rest(count: int, size: int, epoch: int) -> None:
    batches = numbered(count, size)
    per_epoch = count // min(size, count)
    chosen = [batches[epoch * per_epoch + k][1].tolist() for k in range(per_epoch)]
    seen = [number for batch in chosen for number in batch]
    assert {len(batch) for batch in chosen} == {min(size, count)}
    assert len(set(seen)) == len(seen) == per_epoch * min(size, count)
    assert set(seen) <= set(range(count))


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 3))
def test_an_epoch_with_its_rest_has_every_image_once(count: int, size: int, epoch: int) -> None:
    """In minibatches of one size, and a last one of what is left."""
    batches = Minibatches(
        torch.zeros(count, 1, 1, 1, dtype=torch.uint8), torch.arange(count), size, 0, 0, rest=True
    )
    per_epoch = -(-count // min(size, count))
    chosen = [batches[epoch * per_epoch + k][1].tolist() for k in range(per_epoch)]
    assert sorted(number for batch in chosen for number in batch) == list(range(count))
    assert {len(batch) for batch in chosen[:-1]} <= {min(size, count)}
    assert batches.where(epoch * per_epoch + per_epoch - 1)[0] == epoch


@given(st.lists(st.integers(0, 60), min_size=1, max_size=20))
def test_minibatches_follow_from_their_number_alone(steps: list[int]) -> None:
    """Whatever was asked for before."""
    batches = numbered(25, 4)
    for step in steps:
        assert batches[step][1].tolist() == numbered(25, 4)[step][1].tolist()


def test_epochs_nodes_and_seeds_have_orders_of_their_own() -> None:
    orders = [
        numbered(100, 100)[0],
        numbered(100, 100)[1],
        numbered(100, 100, seed=1)[0],
        numbered(100, 100, node=1)[0],
    ]
    assert len({tuple(labels.tolist()) for _, labels in orders}) == 4


def test_images_and_labels_stay_together() -> None:
    pixels = torch.arange(30, dtype=torch.uint8).view(30, 1, 1, 1)
    batches = Minibatches(pixels, torch.arange(30), 7, 0, 0)
    for step in range(8):
        chosen, labels = batches[step]
        assert chosen.flatten().tolist() == labels.tolist()


# -------------------------------------------------------------------------------------- gradients


def model_of(norm: str = "group") -> FlatModel:
    module = build_model(
        "cnn6", in_channels=1, num_classes=10, image_size=(28, 28), width=2, norm=norm, seed=0
    )
    return FlatModel(module)


def gradients_of(
    model: FlatModel,
    sizes: dict[int, int],
    augmented: bool = False,
    rest: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Gradients:
    shards = {node: examples_of(images(30, seed=node)) for node in sizes}
    erasing = (28, 28) if augmented else None
    prepare = Preparation(MEAN, STD, True, augmented, erasing=erasing)
    how = {"prepare": prepare, "loss": functional.cross_entropy}
    return Gradients(model, shards, sizes, seed=4, **how, rest=rest, dtype=dtype)


def nodes_of(model: FlatModel, count: int) -> list[Node]:
    """Nodes with models of their own."""
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(model.weights.shape, generator=generator) for _ in range(count)]
    return [Node(i, model.weights + 0.05 * noise[i]) for i in range(count)]


def test_gradients_of_the_mean_cross_entropy() -> None:
    """By autograd on the parameters, without flat vectors, from the node's own images."""
    model = model_of()
    nodes = nodes_of(model, 2)
    gradients = gradients_of(model, {0: 8, 1: 8})
    due = [(nodes[1], 5), (nodes[0], 2), (nodes[1], 6)]
    found = [gradient.clone() for gradient in gradients(due)]
    for (node, step), gradient in zip(due, found, strict=True):
        shard = images(30, seed=node.index)
        order = rng(4, "epoch", node.index, step // 3).permutation(30)
        chosen = order[step % 3 * 8 : step % 3 * 8 + 8]
        parameters = {
            name: view.clone().requires_grad_()
            for name, view in model.unflatten(node.weights).items()
        }
        inputs = normalise(torch.from_numpy(shard.images[chosen]), MEAN, STD)
        logits = torch.func.functional_call(model.module, parameters, (inputs,))
        loss = functional.cross_entropy(logits, torch.from_numpy(shard.labels[chosen]))
        expected = torch.autograd.grad(loss, list(parameters.values()))
        assert torch.allclose(gradient, torch.cat([g.flatten() for g in expected]), atol=1e-7)


def test_a_gradient_may_be_overwritten_and_nodes_are_left_alone() -> None:
    model = model_of()
    nodes = nodes_of(model, 2)
    before = [node.weights.clone() for node in nodes]
    gradients = gradients_of(model, {0: 8, 1: 8})
    expected = [gradient.clone() for gradient in gradients([(nodes[0], 0), (nodes[1], 0)])]
    found = []
    for gradient in gradients([(nodes[0], 0), (nodes[1], 0)]):
        found.append(gradient.clone())
        gradient.fill_(torch.nan)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert all(torch.equal(a.weights, b) for a, b in zip(nodes, before, strict=True))


def test_augmentation_follows_from_seed_node_and_step() -> None:
    gradients, plain = (gradients_of(model_of(), {0: 8, 1: 8}, on) for on in (True, False))
    for node, step in [(0, 0), (0, 1), (1, 0), (0, 0)]:
        augmented, labels = gradients.minibatches([(node, step)])
        again, _ = gradients_of(model_of(), {0: 8, 1: 8}, True).minibatches([(node, step)])
        original, same = plain.minibatches([(node, step)])
        assert torch.equal(augmented, again)
        assert torch.equal(labels, same)
        assert not torch.equal(augmented, original)


@pytest.mark.parametrize("augmented", [False, True])
def test_minibatches_of_several_nodes_are_those_of_each(augmented: bool) -> None:
    """To the bit, one behind the other."""
    gradients = gradients_of(model_of(), {0: 8, 1: 8, 2: 40}, augmented)
    assert [gradients.size(node, 3) for node in range(3)] == [8, 8, 30]
    due = [(1, 3), (0, 3), (1, 4), (2, 0)]
    images, labels = gradients.minibatches(due)
    alone = [gradients.minibatches([each]) for each in due]
    assert torch.equal(images, torch.cat([each for each, _ in alone]))
    assert torch.equal(labels, torch.cat([each for _, each in alone]))


@pytest.mark.parametrize("way", ["sequential", *PASSES])
def test_the_rest_of_an_epoch_is_a_minibatch(way: str) -> None:
    """30 images in minibatches of 8: three, one of six, and then the next epoch."""
    model = model_of()
    one_by_one = gradients_of(model, {0: 8, 1: 8}, augmented=True, rest=True)
    assert [one_by_one.size(0, step) for step in range(5)] == [8, 8, 8, 6, 8]
    nodes = nodes_of(model, 2)
    due = [(node, 3) for node in nodes]
    inputs, labels = one_by_one.minibatches([(1, 3)])
    order = rng(4, "epoch", 1, 0).permutation(30)[24:]
    assert labels.tolist() == images(30, seed=1).labels[order].tolist()
    drawn = one_by_one.prepare.draw(rng(4, "augment", 1, 0), 30)[:, 24:]
    pixels = torch.from_numpy(images(30, seed=1).images[order])
    assert torch.equal(inputs, one_by_one.prepare(pixels, torch.from_numpy(drawn)))
    engine = one_by_one if way == "sequential" else RowGradients(one_by_one, PASSES[way])
    found = [gradient.clone() for gradient in engine(due)]
    for (node, _), gradient in zip(due, found, strict=True):
        inputs, labels = one_by_one.minibatches([(node.index, 3)])
        model.weights.copy_(node.weights)
        model.zero_grad()
        functional.cross_entropy(model.module(inputs), labels).backward()
        assert torch.allclose(gradient, model.gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["cnn6", "lenet", "lenet-tracking", "resnet20"])
@pytest.mark.parametrize("way", ["sequential", *PASSES])
def test_no_engine_looks_at_what_it_computes(name: str, way: str) -> None:
    """On PyTorch's "meta" device, which has no values, to read one is an error, and so are tensors
    of two devices in one operation: on a GPU the first would make every step wait for it."""
    module = build_model(
        name, in_channels=1, num_classes=10, image_size=(28, 28), width=None, norm="group", seed=0
    )
    model = FlatModel(module, "meta")
    engine = gradients_of(model, dict.fromkeys(range(3), 8), augmented=True)
    due = [(Node(i, model.weights.clone()), 0) for i in range(3)]
    found = list(engine(due) if way == "sequential" else RowGradients(engine, PASSES[way])(due))
    assert [(g.device.type, g.shape) for g in found] == 3 * [("meta", model.weights.shape)]


# ---------------------------------------------------------------- the node's shares of the classes


def test_a_shift_is_the_logarithm_of_the_shares_of_the_classes() -> None:
    """Each class counted once more than it occurs; a negative label is none. Half as strong it is
    that of the shares' roots."""
    labels, shares = torch.tensor([[0, 0, 2], [-100, 2, 2]]), torch.tensor([3, 1, 4, 1]) / 9
    assert torch.allclose(logit_shift(labels, 4, 1.0).exp(), shares)
    assert torch.allclose(logit_shift(labels, 4, 0.5).exp(), shares.sqrt())


def test_outputs_of_each_position_are_shifted_by_class() -> None:
    shift = torch.tensor([1.0, 2.0])
    assert shifted(torch.zeros(3, 2), shift).tolist() == [[1, 2]] * 3
    assert shifted(torch.zeros(1, 2, 2), shift).tolist() == [[[1, 1], [2, 2]]]
    outputs = torch.zeros(3, 2)
    assert shifted(outputs, torch.empty(0)) is outputs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", ["sequential", *PASSES])
def test_gradients_of_the_loss_with_shifted_outputs(way: str, dtype: torch.dtype) -> None:
    """Of each node with its own shares, by autograd on the parameters."""
    model = model_of()
    nodes = nodes_of(model, 3)
    own = {i: images(30, seed=i) for i in range(3)}
    own = {i: ImageSet(each.images, each.labels % 3 + i) for i, each in own.items()}
    shards = {i: examples_of(each) for i, each in own.items()}
    how: dict[str, Any] = {
        "seed": 4, "prepare": Preparation(MEAN, STD, True, False), "loss": functional.cross_entropy
    }  # fmt: skip
    plain = Gradients(model, shards, dict.fromkeys(shards, 8), **how)
    shift = partial(logit_shift, classes=10, strength=0.5)
    adjusted = Gradients(model, shards, dict.fromkeys(shards, 8), **how, dtype=dtype, shift=shift)
    engine = adjusted if way == "sequential" else RowGradients(adjusted, PASSES[way])
    found = [gradient.clone() for gradient in engine([(node, 2) for node in nodes])]
    for node, gradient in zip(nodes, found, strict=True):
        counts = np.bincount(own[node.index].labels, minlength=10) + 1
        inputs, labels = plain.minibatches([(node.index, 2)])
        model.weights.copy_(node.weights)
        model.zero_grad()
        prior = torch.from_numpy(counts / counts.sum()).float()
        functional.cross_entropy(model.module(inputs) + 0.5 * prior.log(), labels).backward()
        expected = model.gradient.clone()
        [other] = plain([(node, 2)])
        error = (gradient - expected).norm() / (other - expected).norm()
        assert error < (1e-3 if dtype == torch.float32 else 0.3)


def test_with_equal_shares_nothing_changes() -> None:
    """The same number is added to all outputs: the softmax is that without it."""
    model = model_of()
    shards = {0: Examples(torch.zeros(20, 1, 28, 28, dtype=torch.uint8), torch.arange(20) % 10)}
    how: dict[str, Any] = {
        "seed": 4, "prepare": Preparation(MEAN, STD, True, False), "loss": functional.cross_entropy
    }  # fmt: skip
    node = nodes_of(model, 1)[0]
    [plain] = [g.clone() for g in Gradients(model, shards, {0: 8}, **how)([(node, 0)])]
    shift = partial(logit_shift, classes=10, strength=1.0)
    [adjusted] = list(Gradients(model, shards, {0: 8}, **how, shift=shift)([(node, 0)]))
    assert torch.allclose(plain, adjusted, rtol=1e-4, atol=1e-6)


def test_a_run_says_whether_its_nodes_allow_for_their_shares() -> None:
    """A node by its own, a reference by those of all, which are equal here."""
    values = {"mode": "consensus", "participants": 2, "consensus.references": "same-steps"}
    off, on = (
        engines.one_by_one(nodes_run_of(resolve(values | {"adjust-logits": strength})), (0, 2))
        for strength in (0.0, 0.5)
    )
    assert [len(shift) for shift in off.shifts.values()] == [0, 0]
    node, reference = on.shifts[0], on.shifts[2]
    own = on.batches[0].labels.bincount(minlength=10)
    assert torch.equal(node, logit_shift(on.batches[0].labels, 10, 0.5))
    assert node[own == 0].max() < node[own > 0].min() - 2
    assert reference.max() - reference.min() < 0.5


# ------------------------------------------------------------------------------------ side by side


@pytest.mark.parametrize("way", PASSES)
@pytest.mark.parametrize("augmented", [False, True])
def test_side_by_side_equals_one_by_one(augmented: bool, way: str) -> None:
    """To the rounding of float32, on streams to the bit; also where minibatches are of different
    sizes."""
    model = model_of()
    nodes = nodes_of(model, 5)
    one_by_one = gradients_of(model, {0: 8, 1: 5, 2: 8, 3: 8, 4: 5}, augmented)
    due = [(node, 3 + node.index) for node in nodes]
    expected = [gradient.clone() for gradient in one_by_one(due)]
    side_by_side = RowGradients(one_by_one, PASSES[way])
    found = side_by_side(due).clone()
    assert torch.equal(found, torch.stack(expected)) == (way == "streams")
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)
    assert torch.equal(found, side_by_side(due))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_on_streams_a_node_has_the_bits_that_it_has_alone(count: int) -> None:
    """However many step together, and whatever stood in the rows before."""
    model = model_of()
    nodes = nodes_of(model, 8)
    one_by_one = gradients_of(model, dict.fromkeys(range(8), 8), augmented=True)
    engine = RowGradients(one_by_one, PASSES["streams"])
    engine([(node, 7) for node in nodes])
    due = [(node, 2) for node in nodes[:count]]
    found = engine(due).clone()
    for pair, gradient in zip(due, found, strict=True):
        assert torch.equal(engine([pair])[0], gradient)


@pytest.mark.parametrize("way", PASSES)
def test_more_models_than_fit_into_one_program(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    one_by_one = gradients_of(model, dict.fromkeys(range(5), 8))
    due = [(node, 0) for node in nodes_of(model, 5)]
    expected = RowGradients(one_by_one, PASSES[way])(due).clone()
    monkeypatch.setattr(row_gradients, "MOST", 2)
    found = RowGradients(one_by_one, PASSES[way])(due)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_as_many_models_at_a_time_as_fit_into_the_memory(caplog: pytest.LogCaptureFixture) -> None:
    model = model_of()
    one_by_one = gradients_of(model, dict.fromkeys(range(8), 8))
    due = [(node, 0) for node in nodes_of(model, 8)]
    expected = RowGradients(one_by_one, PASSES["streams"])(due).clone()

    def small(model: FlatModel, loss: Loss, dtype: torch.dtype, batch: Batch) -> None:
        if len(batch.weights) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        PASSES["streams"](model, loss, dtype, batch)

    most = 2
    engine = RowGradients(one_by_one, small)
    assert torch.equal(engine(due), expected)
    assert caplog.messages[-1] == "the device has not enough memory: 2 models at a time now"
    said = len(caplog.messages)
    assert torch.equal(engine(due), expected)
    assert len(caplog.messages) == said
    most = 0
    with pytest.raises(torch.OutOfMemoryError):
        RowGradients(one_by_one, small)(due)


@pytest.mark.parametrize("way", ["sequential", *PASSES])
def test_less_precise_arithmetic_is_near_and_not_equal(way: str) -> None:
    model = model_of()
    due = [(node, 0) for node in nodes_of(model, 3)]

    def found(dtype: torch.dtype) -> torch.Tensor:
        engine = gradients_of(model, dict.fromkeys(range(3), 8), dtype=dtype)
        if way == "sequential":
            return torch.stack([gradient.clone() for gradient in engine(due)])
        return RowGradients(engine, PASSES[way])(due).clone()

    exact, rough = found(torch.float32), found(torch.bfloat16)
    assert rough.dtype == torch.float32
    assert torch.equal(rough, found(torch.bfloat16))
    assert 1e-4 < (rough - exact).norm() / exact.norm() < 0.1


class Adapted(nn.Module):
    """A trained layer behind a frozen one, a table of constants, and between them a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(28 * 28, 8).requires_grad_(False)
        self.register_buffer("places", torch.linspace(0, 1, 8), persistent=False)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.frozen(x.flatten(1)) + self.places))


@pytest.mark.parametrize("way", PASSES)
def test_what_is_not_trained_has_the_type_of_the_arithmetic_too(way: str) -> None:
    model = FlatModel(Adapted())
    due = [(node, 0) for node in nodes_of(model, 3)]
    exact, rough = (
        RowGradients(gradients_of(model, dict.fromkeys(range(3), 8), dtype=dtype), PASSES[way])(due)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert 1e-4 < (rough - exact).norm() / exact.norm() < 0.1
    assert model.constants(torch.float32) == {}
    cast = model.constants(torch.bfloat16)
    assert cast.keys() == {"frozen.weight", "frozen.bias", "places"}
    assert cast is model.constants(torch.bfloat16)
    assert model.module.frozen.weight.dtype == torch.float32  # type: ignore[union-attr]


class Operations(TorchDispatchMode):
    """Counts what PyTorch is given to do, without views."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        self.count += not (function.is_view or function is torch.ops.aten._unsafe_view.default)
        return function(*args, **(kwargs or {}))


def test_side_by_side_there_are_fewer_operations_to_start() -> None:
    """Less than half as many for eight nodes: a GPU waits for small ones to be started."""
    model = model_of()
    one_by_one = gradients_of(model, dict.fromkeys(range(8), 8), augmented=True)
    due = [(node, 0) for node in nodes_of(model, 8)]
    counts = []
    for engine in (one_by_one, RowGradients(one_by_one, PASSES["stacked"])):
        with Operations() as operations:
            assert len(list(engine(due))) == 8
        counts.append(operations.count)
    sequential, side_by_side = counts
    assert 0 < side_by_side < 0.5 * sequential


def test_models_with_buffers_cannot_be_stacked() -> None:
    model = model_of("batch")
    with pytest.raises(ValueError, match="models with buffers, such as BatchNorm's"):
        RowGradients(gradients_of(model, {0: 8}), PASSES["streams"])


# ---------------------------------------------------------------------------------- a host's model


def test_a_reference_has_the_images_of_all_participants() -> None:
    config = resolve({"mode": "consensus", "participants": 3, "small-width": 2})
    parts = [shard_of(problem_of(config), i, "") for i in range(3)]
    everything = shard_of(problem_of(config), 3, "")
    assert np.array_equal(everything.targets, np.concatenate([p.targets for p in parts]))
    assert np.array_equal(everything.inputs, np.concatenate([p.inputs for p in parts]))


def test_a_local_model_is_made_once_a_process() -> None:
    config = resolve({"mode": "consensus", "small-width": 2})
    assert local_model_of(problem_of(config)) is local_model_of(problem_of(config))
    assert len(local_model_of(problem_of(config)).model.buffers) == 0
