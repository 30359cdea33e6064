"""What is learnt: all that the two systems know of it.

A task brings the models, the examples, the loss and the metrics. Everything else - who trains when,
what is averaged, distilled or exchanged, evaluated, recorded - is the same for images, tables,
texts, and whatever somebody brings.
"""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from strategies.randomness import rng

NO_CLASS = -100  # what cross entropy leaves out: padding, and examples whose class is not known
# (outputs of a model, targets of the same minibatch) -> the minibatch's mean loss, a scalar.
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Examples:
    """Examples as they are stored: inputs (n, ...) and targets (n, ...), of any type.

    unused: what of their source was not read, a sentence each.
    Raises ValueError when there is no example, or not one target for each.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    unused: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, tensor in (("inputs", self.inputs), ("targets", self.targets)):
            if not isinstance(tensor, torch.Tensor) or tensor.dim() == 0:
                raise ValueError(f"{name} must be a tensor (n, ...), not {type(tensor).__name__}")
        if not len(self.inputs) == len(self.targets) > 0:
            raise ValueError(
                f"there are {len(self.inputs)} inputs and {len(self.targets)} targets; give at "
                f"least one example, and one target for each"
            )

        for name, tensor in (("inputs", self.inputs), ("targets", self.targets)):
            object.__setattr__(self, name, tensor.detach())  # nobody learns examples

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, indices: np.ndarray) -> "Examples":
        """The examples with these numbers (k,)."""
        chosen = torch.from_numpy(indices)
        return Examples(self.inputs[chosen], self.targets[chosen])

    def to(self, device: str | torch.device) -> "Examples":
        return Examples(self.inputs.to(device), self.targets.to(device), self.unused)

    @cached_property
    def digest(self) -> str:
        """The sha256 of all inputs and targets, 64 hex digits."""
        digest = hashlib.sha256(str(tuple(self.inputs.shape)).encode())
        for tensor in (self.inputs, self.targets):
            content = tensor.cpu().contiguous().flatten()
            digest.update(content.view(torch.uint8).numpy().data)  # NumPy knows no bfloat16
        return digest.hexdigest()


class Prepare(Protocol):
    """How a minibatch of stored inputs becomes a model's input.

    What is random is drawn on the CPU; the rest is arithmetic on the device, which can be captured
    and replayed.
    """

    def draw(self, generator: np.random.Generator, count: int, /) -> np.ndarray:
        """What is random about `count` inputs: (k, count) int64, without rows if nothing is."""
        ...

    def __call__(self, inputs: torch.Tensor, drawn: torch.Tensor, /) -> torch.Tensor:
        """Stored inputs (b, ...) and what was drawn for them, (k, b) -> the model's input."""
        ...


def prepared(
    prepare: Prepare, inputs: torch.Tensor, generator: np.random.Generator
) -> torch.Tensor:
    """Stored inputs (b, ...) as the model's, with what is random drawn from `generator`."""
    return prepare(inputs, torch.from_numpy(prepare.draw(generator, len(inputs))).to(inputs.device))


class AsStored:
    """The stored inputs are the model's."""

    def draw(self, _: np.random.Generator, count: int) -> np.ndarray:
        return np.empty((0, count), dtype=np.int64)

    def __call__(self, inputs: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return inputs


@dataclass(frozen=True)
class Metric:
    """A number by which models are judged: finish(the mean of `each` over the examples).

    name: a word, as records and figures have it. each: (outputs, targets) -> a number per example,
    (b,), or NaN of an example in which there is nothing to judge: it is left out of the mean.
    finish: what makes the number of that mean, such as its root. higher_is_better: which models are
    the good ones. percent: shown times 100, with a %.
    """

    name: str
    each: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    finish: Callable[[float], float] = float
    higher_is_better: bool = False
    percent: bool = False


class Task(ABC):
    """Models, examples, loss and metrics; a subclass is named by reference in the key `task`.

    Several processes make one each: what it returns must follow from `seed` and `data_path` alone.
    PyTorch's generator is seeded when `model` is called.

    Attributes:
        metrics: the first is the main one, which targets, figures and comparisons are of.
        classes: names of the classes, where targets are numbers of classes; else ().
        own_by_training: whether `own` reads the training examples, too, say for how they are
            scaled: then a device must have the server's.
    """

    metrics: tuple[Metric, ...] = ()
    classes: tuple[str, ...] = ()
    own_by_training: bool = False

    def __init__(self, seed: int = 0, data_path: str = "") -> None:
        self.seed, self.data_path = seed, data_path

    @abstractmethod
    def model(self, role: str) -> nn.Module:
        """The "small" model, which participants train, or the "large" one of the distillation
        server, with its initial values. Parameters that require gradients are float32."""

    @abstractmethod
    def training(self) -> Examples:
        """All training examples in one place, which a simulation divides among participants."""

    @abstractmethod
    def test(self) -> Examples:
        """What models are evaluated on."""

    @abstractmethod
    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The mean loss of a minibatch. It changes nothing and draws nothing: it is vectorised over
        models (torch.func) and captured in CUDA graphs."""

    def prepare(self, augmented: bool) -> Prepare:
        """How stored inputs become a model's; `augmented`, as in training, may change them at
        random."""
        return AsStored()

    def distillation(
        self, student: torch.Tensor, teacher: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        """The mean loss of a student's outputs towards a teacher's on the same minibatch."""
        return mean_squared_error(student, teacher.detach())

    @property
    def softens(self) -> bool:
        """Whether the temperature changes anything in `distillation`: not where outputs are
        numbers."""
        return type(self).distillation is not Task.distillation

    def own(self, path: str) -> Examples:
        """A device's own training examples at `path`. ValueError where a task has no such thing."""
        raise ValueError(
            f"data-path={path!r}: {type(self).__name__} does not read a device's own data; give it "
            f"a method own(path)"
        )

    def about(self, role: str) -> dict[str, Any]:
        """What somebody must know to use a model of this role besides its names of classes and the
        shape of its inputs: JSON values, which are exported with it."""
        return {}

    def sample(self, count: int) -> torch.Tensor:
        """At most so many inputs of a model, (b, ...), by which it is traced for its export."""
        stored = self.test_set.inputs[:count]
        return prepared(self.prepare(False), stored, rng(self.seed, "sample"))

    def groups(self, examples: Examples) -> np.ndarray | None:
        """The group of each example, int64 (n,) from 0, by which participants can be given unequal
        data, or -100 of one without; None where there are none. Classes, where nothing else is said
        and every example has one."""
        one_each = self.classes and examples.targets.dim() == 1
        return examples.targets.cpu().numpy() if one_each else None

    @cached_property
    def train_set(self) -> Examples:
        """`training`, read once."""
        return self.training()

    @cached_property
    def test_set(self) -> Examples:
        """`test`, read once."""
        return self.test()

    @cached_property
    def digest(self) -> str:
        """The sha256 of all examples and names of classes, 64 hex digits."""
        parts = [repr(self.classes), self.train_set.digest, self.test_set.digest]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    @property
    def unused(self) -> tuple[str, ...]:
        """What of the examples' source was not read, a sentence each."""
        return self.train_set.unused + self.test_set.unused

    @property
    def metric(self) -> Metric:
        """The main one."""
        return self.metrics[0]


def _check_one_shape(outputs: torch.Tensor, targets: torch.Tensor) -> None:
    """Of (b, 1) and (b,) PyTorch would take each output from each target, and say nothing of it."""
    if outputs.shape != targets.shape:
        raise ValueError(
            f"outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)} must be of one "
            f"shape"
        )


def mean_squared_error(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The loss of numbers. ValueError where outputs and targets are not of one shape."""
    _check_one_shape(outputs, targets)
    return functional.mse_loss(outputs, targets)


def _per_example(values: torch.Tensor) -> torch.Tensor:
    """Means over all but the first dimension."""
    return values.flatten(1).mean(1) if values.dim() > 1 else values


def _over_classes(values: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Means of an example's values where it has a class, (b,); NaN of one without any. A negative
    number is no class: cross entropy, too, leaves padding of -100 out."""
    known = (targets >= 0).reshape(len(targets), -1)
    values = values.double().reshape(len(targets), -1)
    return values.where(known, 0.0).sum(1) / known.sum(1)


def _right(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return _over_classes(outputs.argmax(1) == targets, targets)


def _cross_entropy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    values = functional.cross_entropy(outputs, targets, reduction="none")
    return _over_classes(values, targets)


def _squared_error(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    _check_one_shape(outputs, targets)
    return _per_example((outputs - targets).double().square())


def _absolute_error(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    _check_one_shape(outputs, targets)
    return _per_example((outputs - targets).double().abs())


def _exponential(mean: float) -> float:
    """e to the mean; infinite where that is too large for a float."""
    return math.exp(mean) if mean < 700 else math.inf


ACCURACY = Metric("accuracy", _right, higher_is_better=True, percent=True)
PERPLEXITY = Metric("perplexity", _cross_entropy, _exponential)
RMSE = Metric("rmse", _squared_error, math.sqrt)
MAE = Metric("mae", _absolute_error)


def softened_divergence(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float
) -> torch.Tensor:
    """T^2 KL(softmax(t / T) || softmax(g / T)), the mean over the batch and, where logits have
    them, positions.

    student, teacher: logits (batch, classes, ...); no gradient flows into the teacher's. T^2 keeps
    the gradient's scale independent of the temperature T.
    """
    target = functional.log_softmax(teacher.detach() / temperature, dim=1)
    prediction = functional.log_softmax(student / temperature, dim=1)
    total = functional.kl_div(prediction, target, reduction="sum", log_target=True)
    return temperature**2 * (total / (student.numel() // student.shape[1]))


class Classification(Task):
    """Outputs (b, classes, ...) are logits, targets (b, ...) int64 numbers of classes: one of an
    example or, for segmentation and language models, one of each of its positions; or -100 where
    there is none, which neither loss nor metrics count."""

    metrics = (ACCURACY,)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(outputs, targets)

    def distillation(
        self, student: torch.Tensor, teacher: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        return softened_divergence(student, teacher, temperature)


class Regression(Task):
    """Outputs and targets of one shape, float32; the loss is the mean squared error."""

    metrics = (RMSE, MAE)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return mean_squared_error(outputs, targets)
