"""Gradients of a host's nodes at their own minibatches."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch.func import functional_call

from client_apps.logit_adjustment import shifted
from strategies.arithmetic import allow_tf32, outputs_of
from strategies.consensus.node import Node, Tensors
from strategies.flat import FlatModel
from strategies.randomness import rng
from strategies.task import Examples, Loss, Prepare


@dataclass
class Minibatches:
    """A node's minibatches, by the number of the step alone: epoch after epoch in a new random
    order. So a node needs no place in its data.

    images uint8 (n, c, h, w), labels int64 (n,), on the device of the model. rest: whether an epoch
    ends with a smaller minibatch of what is left; if not, that is left out.
    """

    images: torch.Tensor
    labels: torch.Tensor
    size: int
    seed: int
    node: int
    rest: bool = False
    _epoch: int = -1
    _order: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    _here: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def __post_init__(self) -> None:
        self.size = min(self.size, len(self.labels))

    def indices(self, step: int) -> torch.Tensor:
        """Which images the minibatch has: (size,) int64, on the CPU."""
        place = self._place(step)
        return self._order[place]

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        place = self._place(step)
        chosen = self._here[place]
        return self.images[chosen], self.labels[chosen]

    def where(self, step: int) -> tuple[int, slice]:
        """The minibatch's epoch and its place in the order of that epoch."""
        examples, size = len(self.labels), self.size
        batches = -(-examples // size) if self.rest else examples // size
        epoch, position = divmod(step, batches)
        return epoch, slice(position * size, min((position + 1) * size, examples))

    def _place(self, step: int) -> slice:
        """Where in the order of its epoch, which is then there, the minibatch is."""
        epoch, place = self.where(step)
        if epoch != self._epoch:
            order = rng(self.seed, "epoch", self.node, epoch).permutation(len(self.labels))
            self._epoch, self._order = epoch, torch.from_numpy(order)
            self._here = self._order.to(self.labels.device)
        return place


def dtype_of(precision: str) -> torch.dtype:
    """The type of the arithmetic of a precision, float32, tf32 or bf16, which is allowed here."""
    allow_tf32(precision)
    return torch.bfloat16 if precision == "bf16" else torch.float32


def parameters_of(model: FlatModel, weights: torch.Tensor, dtype: torch.dtype) -> Tensors:
    """The parameters of k models with `weights` (k, p), each (k, ...), as the type of arithmetic
    wants them: float32 as they are, and others as copies, each at an address that is a multiple
    of 16 bytes, without which convolutions of half the size fail on a GPU."""
    views = model.unflatten(weights)
    if dtype == torch.float32:
        return views
    copies = {}
    for name, view in views.items():
        length = view[0].numel()
        padded = weights.new_empty(len(weights), -(-length // 8) * 8, dtype=dtype)
        copies[name] = padded[:, :length].view(view.shape).copy_(view)
    return copies


def as_type(inputs: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A model's inputs in the type of the arithmetic; numbers of words and the like stay whole."""
    return inputs.to(dtype) if inputs.is_floating_point() else inputs


def loss_of(
    model: FlatModel,
    loss: Loss,
    constants: Tensors,
    state: Tensors,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    shift: torch.Tensor,
) -> torch.Tensor:
    """The minibatch's loss of the model with this state, its parameters and buffers by name;
    constants: see `FlatModel`; shift: see `shifted`."""
    outputs = functional_call(model.module, (constants, state), (inputs,))
    return loss(shifted(outputs.float(), shift), labels)


class Gradients:
    """Gradients of the task's loss, one node after the other.

    prepare: from stored inputs to the model's; what is random in it follows from the seed,
    the node and the step. rest: see `Minibatches`. dtype: of the arithmetic between the float32
    weights and the float32 gradients. shift: from a node's labels to what is added to its outputs
    in the loss, such as `logit_shift`; None for nothing.
    """

    def __init__(
        self,
        model: FlatModel,
        shards: Mapping[int, Examples],
        sizes: Mapping[int, int],
        *,
        seed: int,
        prepare: Prepare,
        loss: Loss,
        rest: bool = False,
        dtype: torch.dtype = torch.float32,
        shift: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self.model, self.prepare, self.loss = model, prepare, loss
        self.dtype, self._seed = dtype, seed
        self._drawn: dict[int, tuple[int, torch.Tensor]] = {}  # by node: epoch, and what is random
        device = model.weights.device
        self.batches = {
            node: Minibatches(
                shard.inputs.to(device),
                shard.targets.to(device),
                sizes[node],
                seed,
                node,
                rest,
            )
            for node, shard in shards.items()
        }
        for shard in shards.values():
            model.look(prepare, shard.inputs)
        self.shifts = {
            node: shift(shard.targets).to(device) if shift else model.weights.new_empty(0)
            for node, shard in shards.items()
        }

    def __call__(self, due: Sequence[tuple[Node, int]]) -> Iterator[torch.Tensor]:
        model = self.model
        model.module.train()
        for node, step in due:
            images, labels = self.minibatches([(node.index, step)])
            model.zero_grad()
            if self.dtype == torch.float32 or images.device.type == "cpu":
                model.weights.copy_(node.weights)
                precision = "float32" if self.dtype == torch.float32 else "bf16"
                with model.drawing(self._seed, node.index, step):
                    outputs = outputs_of(model.module, images, precision)
                    self.loss(shifted(outputs, self.shifts[node.index]), labels).backward()
            else:  # the operations of `row_gradients.on_streams`, for the same bits
                parameters = {
                    name: own[0].requires_grad_()
                    for name, own in parameters_of(model, node.weights[None], self.dtype).items()
                }
                inputs = as_type(images, self.dtype)
                with model.drawing(self._seed, node.index, step):
                    loss = loss_of(
                        model,
                        self.loss,
                        model.constants(self.dtype),
                        parameters,
                        inputs,
                        labels,
                        self.shifts[node.index],
                    )
                gradients = torch.autograd.grad(
                    loss, list(parameters.values()), materialize_grads=True
                )
                model.gradient.copy_(torch.cat([each.flatten() for each in gradients]))
            yield model.gradient

    def size(self, node: int, step: int) -> int:
        """How many images this minibatch has."""
        _, place = self.batches[node].where(step)
        return place.stop - place.start

    def moves(self, due: Sequence[tuple[int, int]]) -> torch.Tensor:
        """What is random about the images of the minibatches (node, step), one behind the other:
        (k, b) int64, on the CPU."""
        return torch.cat([self._moves(node, step) for node, step in due], dim=1)

    def _moves(self, node: int, step: int) -> torch.Tensor:
        """Of one minibatch: drawn for an epoch at once, since a generator takes longer to make than
        its numbers."""
        batches = self.batches[node]
        epoch, place = batches.where(step)
        if self._drawn.get(node, (-1, None))[0] != epoch:
            generator = rng(self._seed, "augment", node, epoch)
            drawn = self.prepare.draw(generator, len(batches.labels))
            self._drawn[node] = epoch, torch.from_numpy(drawn)
        return self._drawn[node][1][:, place]

    def minibatches(self, due: Sequence[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """(model's inputs (b, c, h, w), labels (b,)) of the minibatches (node, step), one behind
        the other."""
        found = [self.batches[node][step] for node, step in due]
        images, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
        return self.prepare(images, self.moves(due).to(images.device)), labels
