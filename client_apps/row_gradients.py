"""Gradients of many models in one call, as programs that a GPU replays.

A small model keeps a GPU busy for microseconds and PyTorch for a millisecond: what is paid for is
the starting of some hundred operations. So what k models need for one step - gather their
minibatches, augment and normalise them, loss, gradient - is recorded once as a CUDA graph and then
replayed; what differs from step to step lies in tensors that the graph reads. On a CPU, and on
other devices, the same program runs without a graph.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch.func import grad_and_value, vmap

from client_apps.gradients import Gradients, as_type, loss_of, parameters_of
from strategies.consensus.node import Node
from strategies.cuda_graph import record, send
from strategies.flat import FlatModel
from strategies.task import Loss, Prepare

_LOG = logging.getLogger(__name__)

MOST = 64  # models in one program, so that its memory has a bound
_STREAMS = 16


@dataclass(frozen=True)
class Batch:
    """What k models compute with in one step, and where the results go.

    weights, gradients (k, p); buffers (k, q), which change as BatchNorm's statistics do; inputs
    (k b, ...), those of one model behind those of another; labels (k, b, ...); shifts (k, c) of
    their outputs, c = 0 for none; losses (k,).
    """

    weights: torch.Tensor
    buffers: torch.Tensor
    inputs: torch.Tensor
    labels: torch.Tensor
    shifts: torch.Tensor
    gradients: torch.Tensor
    losses: torch.Tensor


class Computed(NamedTuple):
    """Of k models: gradients (k, p), buffers (k, q) after the step, losses (k,)."""

    gradients: torch.Tensor
    buffers: torch.Tensor
    losses: torch.Tensor


# Fills gradients and losses of a batch; the arithmetic in between is of the given type.
Pass = Callable[[FlatModel, Loss, torch.dtype, Batch], None]


def stacked(model: FlatModel, loss: Loss, dtype: torch.dtype, batch: Batch) -> None:
    """All models in one pass: their layers side by side (torch.func's vmap), convolutions as groups
    of one convolution. ValueError for a model with buffers, which vmap cannot change."""
    if len(model.buffers):
        raise ValueError("models with buffers, such as BatchNorm's, cannot be stacked")
    gradient = vmap(grad_and_value(partial(loss_of, model, loss, model.constants(dtype))))
    parameters = model.unflatten(batch.weights.to(dtype))
    inputs = as_type(batch.inputs, dtype).unflatten(0, batch.labels.shape[:2])
    gradients, losses = gradient(parameters, inputs, batch.labels, batch.shifts)
    for name, place in model.unflatten(batch.gradients).items():
        place.copy_(gradients[name])
    batch.losses.copy_(losses)


def on_streams(model: FlatModel, loss: Loss, dtype: torch.dtype, batch: Batch) -> None:
    """Each model by itself, at the same time on streams of the GPU: the operations are those of one
    model after the other, in a graph with a branch for each stream."""
    everybody, constants = parameters_of(model, batch.weights, dtype), model.constants(dtype)
    # Cut, and not reshaped: that would lose the layout of the images, which decides the kernels.
    inputs = as_type(batch.inputs, dtype).split(batch.labels.shape[1])
    found = torch.empty_like(batch.gradients, dtype=dtype)

    def one(row: int) -> None:
        parameters = {name: each[row].detach().requires_grad_() for name, each in everybody.items()}
        state = {**parameters, **model.unflatten_buffers(batch.buffers[row])}
        shift = batch.shifts[row]
        value = loss_of(model, loss, constants, state, inputs[row], batch.labels[row], shift)
        gradients = torch.autograd.grad(value, list(parameters.values()), materialize_grads=True)
        torch.cat([gradient.flatten() for gradient in gradients], out=found[row])
        batch.losses[row].copy_(value.detach())

    device, rows = batch.weights.device, range(len(batch.weights))
    if device.type == "cuda":
        here = torch.cuda.current_stream()
        streams = _streams(device)[: len(rows)]
        for stream in streams:
            stream.wait_stream(here)
        for row in rows:
            with torch.cuda.stream(streams[row % len(streams)]):
                one(row)
        for stream in streams:
            here.wait_stream(stream)
    else:
        for row in rows:
            one(row)
    batch.gradients.copy_(found)


_made: dict[torch.device, list[torch.cuda.Stream]] = {}


def _streams(device: torch.device) -> list[torch.cuda.Stream]:
    if device not in _made:
        _made[device] = [torch.cuda.Stream(device) for _ in range(_STREAMS)]
    return _made[device]


PASSES: dict[str, Pass] = {"stacked": stacked, "streams": on_streams}


class Programs:
    """Gradients of k models of one shape at minibatches of data that are on the device.

    images, labels (n, ...): inputs and targets of everybody, as stored. prepare: to the model's
    inputs. loss: the task's. way: one of PASSES. dtype: of the arithmetic
    between float32 weights and float32 gradients.

    "streams" starts the operations that one model after the other starts, and a model's do not
    depend on how many there are; "stacked" sums in another order, and agrees to the rounding of
    the arithmetic. Each is deterministic.
    """

    def __init__(
        self,
        model: FlatModel,
        images: torch.Tensor,
        labels: torch.Tensor,
        prepare: Prepare,
        loss: Loss,
        way: Pass,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._model, self._images, self._labels = model, images, labels
        self.prepare, self._pass = prepare, partial(way, model, loss, dtype)
        self._programs: dict[tuple[int, int, int, int], _Program] = {}
        self._pool = None
        self.most = MOST  # models in one call; fewer where the device has not enough memory

    @property
    def device(self) -> torch.device:
        return self._model.weights.device

    def split(self, count: int) -> list[slice]:
        """`count` models in parts of as many as one call takes."""
        return [slice(begin, begin + self.most) for begin in range(0, count, self.most)]

    def halve(self, error: torch.OutOfMemoryError) -> None:
        """Take half as many models in a call from now on. Raises `error` where that is none."""
        if self.most == 1:
            raise error
        self._programs.clear()
        self._pool = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.most //= 2
        _LOG.warning("the device has not enough memory: %d models at a time now", self.most)

    def __call__(
        self,
        weights: Sequence[torch.Tensor],
        buffers: Sequence[torch.Tensor],
        chosen: torch.Tensor,
        moves: torch.Tensor,
        shifts: Sequence[torch.Tensor] = (),
    ) -> Computed:
        """weights (p,) and buffers (q,) of each of at most MOST models; chosen (k, b) images for
        each, and what was drawn for them (m, k b), both on the CPU; what is added to the outputs
        of each, (c,) or nothing. What is returned is good until the next call."""
        count, size = chosen.shape
        classes = len(shifts[0]) if shifts else 0
        # A few programs serve any number: rows that nobody needs do some work for nothing.
        key = (1 << (count - 1).bit_length(), size, len(moves), classes)
        if key not in self._programs:
            program = _Program(*key, self._model, self._inputs)
            program.record(self._pass, self._pool)
            # Only now: one that cannot be recorded would do nothing, and say nothing of it.
            self._programs[key], self._pool = program, program.pool
        return self._programs[key].run(weights, buffers, chosen, moves, shifts)

    def _inputs(
        self, chosen: torch.Tensor, moves: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.prepare(self._images[chosen.flatten()], moves), self._labels[chosen]


class _Program:
    """What is done for so many rows with minibatches of one size: tensors that it reads and fills,
    and on a GPU the graph."""

    def __init__(
        self,
        rows: int,
        size: int,
        moves: int,
        classes: int,
        model: FlatModel,
        inputs: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    ) -> None:
        weights, self._device = model.weights, model.weights.device
        self._inputs = inputs
        # Rows begin where a model of its own would, so that the same kernels can be chosen.
        self._weights = weights.new_zeros(rows, _padded(len(weights)))[:, : len(weights)]
        self._buffers = weights.new_zeros(rows, _padded(len(model.buffers)))
        self._buffers = self._buffers[:, : len(model.buffers)]
        self._gradients = weights.new_zeros(rows, len(weights))
        self._losses = weights.new_zeros(rows)
        self._shifts = weights.new_zeros(rows, classes)
        self._chosen = torch.zeros(rows, size, dtype=torch.int64, device=self._device)
        self._moves = torch.zeros(moves, rows * size, dtype=torch.int64, device=self._device)
        self.pool = None
        self._replay: Callable[[], None] = lambda: None

    def record(self, fill: Callable[[Batch], None], pool: object) -> None:
        def compute() -> None:
            inputs, labels = self._inputs(self._chosen, self._moves)
            state = (self._weights, self._buffers)
            fill(Batch(*state, inputs, labels, self._shifts, self._gradients, self._losses))

        self._replay, self.pool = record(compute, self._device, pool=pool)

    def run(
        self,
        weights: Sequence[torch.Tensor],
        buffers: Sequence[torch.Tensor],
        chosen: torch.Tensor,
        moves: torch.Tensor,
        shifts: Sequence[torch.Tensor],
    ) -> Computed:
        count = len(chosen)
        self._weights[:count] = torch.stack(list(weights))
        if self._buffers.shape[1]:
            self._buffers[:count] = torch.stack(list(buffers))
        if self._shifts.shape[1]:
            self._shifts[:count] = torch.stack(list(shifts))
        send(chosen, self._chosen[:count])
        if len(moves):
            send(moves, self._moves[:, : moves.shape[1]])
        self._replay()
        return Computed(self._gradients[:count], self._buffers[:count], self._losses[:count])


def _padded(length: int) -> int:
    """The next multiple of 256 bytes, of float32."""
    return -(-length // 64) * 64


def everything(
    parts: Iterable[tuple[int, torch.Tensor, torch.Tensor]],
) -> tuple[torch.Tensor, torch.Tensor, dict[int, int]]:
    """Images and labels of everybody, (whose, images, labels) one behind the other, and where those
    of each begin."""
    images, labels, begins, end = [], [], {}, 0
    for whose, some, their in parts:
        images.append(some)
        labels.append(their)
        begins[whose] = end
        end += len(their)
    return torch.cat(images), torch.cat(labels), begins


class RowGradients:
    """What `Gradients` computes, for all nodes that step together; see `Programs`.

    one_by_one: whose minibatches they are. Raises ValueError for a model with buffers: a node's
    statistics would be everybody's.
    """

    def __init__(self, one_by_one: Gradients, way: Pass) -> None:
        model, dtype = one_by_one.model, one_by_one.dtype
        if len(model.buffers) or model.draws:
            buffers = "with buffers, such as BatchNorm's,"
            what = buffers if len(model.buffers) else "with dropout or other random numbers"
            raise ValueError(f"models {what} cannot be computed side by side")
        model.module.train()
        self._one_by_one, self._batches = one_by_one, one_by_one.batches
        images, labels, self._begins = everything(
            (node, each.images, each.labels) for node, each in self._batches.items()
        )
        self._programs = Programs(
            model, images, labels, one_by_one.prepare, one_by_one.loss, way, dtype
        )
        self._found = model.weights.new_empty(0, len(model.weights))

    def __call__(self, due: Sequence[tuple[Node, int]]) -> torch.Tensor:
        """Gradients (k, p), good until the next ones are asked for."""
        if len(self._found) < len(due):
            self._found = self._found.new_empty(len(due), self._found.shape[1])
        while True:
            try:
                return self._fill(due)
            except torch.OutOfMemoryError as error:
                self._programs.halve(error)

    def _fill(self, due: Sequence[tuple[Node, int]]) -> torch.Tensor:
        found = self._found[: len(due)]
        # Only minibatches of one size are of one program.
        sizes: dict[int, list[int]] = defaultdict(list)
        for place, (node, step) in enumerate(due):
            sizes[self._one_by_one.size(node.index, step)].append(place)
        for places in sizes.values():
            for some in self._programs.split(len(places)):
                part = places[some]
                gradients = self._compute([due[place] for place in part])
                if part == list(range(part[0], part[0] + len(part))):
                    found[part[0] : part[0] + len(part)] = gradients
                else:
                    for place, gradient in zip(part, gradients, strict=True):
                        found[place] = gradient
        return found

    def _compute(self, due: Sequence[tuple[Node, int]]) -> torch.Tensor:
        numbers = [(node.index, step) for node, step in due]
        chosen = [self._begins[node] + self._batches[node].indices(s) for node, s in numbers]
        moves = self._one_by_one.moves(numbers)
        shifts = [self._one_by_one.shifts[node] for node, _ in numbers]
        weights = [node.weights for node, _ in due]
        return self._programs(weights, [], torch.stack(chosen), moves, shifts).gradients
