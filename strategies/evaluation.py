"""Evaluation beside the run, which waits for it only when it falls far behind."""

import contextlib
import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.func import functional_call, vmap

from strategies.averaging import Vectors
from strategies.flat import FlatModel
from strategies.problem import (
    Problem,
    flat_model,
    pick_device,
    split_of,
    task_of,
    test_set_of,
    train_set_of,
)
from strategies.randomness import rng
from strategies.task import Examples, Metric, Task, prepared

_BATCH = 500
# Models in one pass on a GPU: what they compute between two layers has a bound.
SIDE_BY_SIDE = 16
# What events call the value of a task's main metric, whatever that is: "run_started" says it.
MAIN = "accuracy"
BY_CLASS = "per_class"  # and that of the examples of each class, by its name
# Models that wait to be evaluated; who puts more has to wait for one to be done.
_MOST_WAITING = 8
_LOOK_SECONDS = 0.5
_POLL_SECONDS = 0.01
# Which key says how many examples are evaluated on.
_NUMBER_OF = {"test": "evaluate-examples", "validation": "validation-examples"}


class Measured(NamedTuple):
    """What a model is worth on some examples.

    values: the task's metrics by name, and "loss"; all NaN of a model whose values, or whose loss,
    are not finite: its answers mean nothing. by_class: the main metric of the examples of each
    class that has any, by its name; nothing where the task has no classes, or an example has
    several. A metric that judges no example is NaN.
    """

    values: dict[str, float]
    by_class: dict[str, float]


@torch.no_grad()
def measured(task: Task, model: FlatModel, examples: Examples) -> Measured:
    """What the model is worth on prepared examples."""
    model.module.eval()
    sums = _Sums(task)
    for some in _minibatches(examples):
        sums.add(model.module(some.inputs), some.targets)
    return sums.found(examples, (model.weights, model.buffers))


@torch.no_grad()
def measured_of_each(
    task: Task,
    model: FlatModel,
    weights: Sequence[torch.Tensor],
    examples: Examples,
    most: int = 1,
) -> list[Measured]:
    """What each of some models without buffers, `weights` (p,), is worth.

    most: models in one pass (torch.func's vmap), which agrees with one after the other to the
    rounding of the arithmetic; fewer where there is not enough memory, and one where the model has
    an operation that does not know of that.
    """
    found: list[Measured] = []
    while len(found) < len(weights):
        some = weights[len(found) : len(found) + most]
        if most == 1:
            model.weights.copy_(some[0])
            found.append(measured(task, model, examples))
            continue
        try:
            found += _pass(task, model, some, examples)
        except RuntimeError as error:
            most = most // 2 if isinstance(error, torch.OutOfMemoryError) else 1
    return found


def _pass(
    task: Task, model: FlatModel, weights: Sequence[torch.Tensor], examples: Examples
) -> list[Measured]:
    model.module.eval()
    parameters = model.unflatten(torch.stack(list(weights)))

    def one(state: dict[str, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
        return functional_call(model.module, state, (inputs,))

    sums = [_Sums(task) for _ in weights]
    for some in _minibatches(examples):
        everybodys = vmap(one, in_dims=(0, None))(parameters, some.inputs)
        for each, outputs in zip(sums, everybodys, strict=True):
            each.add(outputs, some.targets)
    return [each.found(examples, (own,)) for each, own in zip(sums, weights, strict=True)]


def _minibatches(examples: Examples) -> Iterator[Examples]:
    for start in range(0, len(examples), _BATCH):
        end = start + _BATCH
        yield Examples(examples.inputs[start:end], examples.targets[start:end])


class _Sums:
    """A model's loss and metrics, minibatch by minibatch. They stay on the device, for which nobody
    waits before the end."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._metrics: dict[Metric, torch.Tensor | float] = dict.fromkeys(task.metrics, 0.0)
        self._judged: dict[Metric, torch.Tensor | int] = dict.fromkeys(task.metrics, 0)
        self._loss: torch.Tensor | float = 0.0
        self._each: list[torch.Tensor] = []  # the main metric of each example

    def add(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
        for metric in self._task.metrics:
            each = _of_each(metric, outputs, targets)
            judged = ~each.isnan()
            self._metrics[metric] += each.where(judged, 0.0).sum(dtype=torch.float64)
            self._judged[metric] += judged.sum()
            if metric is self._task.metric:
                self._each.append(each.double())
        self._loss += self._task.loss(outputs, targets).double() * len(targets)

    def found(self, examples: Examples, vectors: Iterable[torch.Tensor]) -> Measured:
        """What the model is worth whose `vectors` these are."""
        loss, count = float(self._loss), len(examples)
        if not (math.isfinite(loss) and all(bool(each.isfinite().all()) for each in vectors)):
            nothing = dict.fromkeys([each.name for each in self._metrics] + ["loss"], math.nan)
            return Measured(nothing, {})
        values = {
            m.name: m.finish(float(total) / int(self._judged[m])) if self._judged[m] else math.nan
            for m, total in self._metrics.items()
        }
        by_class = _by_class(self._task, torch.cat(self._each).cpu(), examples.targets)
        return Measured(values | {"loss": loss / count}, by_class)


def _of_each(metric: Metric, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The metric of each example, (b,). ValueError where it is not one number for each."""
    each, expected = metric.each(outputs, targets), (len(targets),)
    found = tuple(each.shape) if isinstance(each, torch.Tensor) else type(each).__name__
    if found != expected:
        raise ValueError(
            f"the metric {metric.name!r}: each() returned {found} for {len(targets)} examples; "
            f"return a number for each, a tensor {expected}"
        )
    return each


def _by_class(task: Task, each: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    if not task.classes or targets.dim() != 1:
        return {}
    groups = targets.cpu().long()
    judged = (groups >= 0) & ~each.isnan()
    groups, each = groups[judged], each[judged]
    counts = torch.bincount(groups, minlength=len(task.classes))
    sums = torch.bincount(groups, each, minlength=len(task.classes))
    return {
        name: round(task.metric.finish(float(total) / int(count)), 4)
        for name, total, count in zip(task.classes, sums, counts, strict=False)
        if count
    }


def evaluation_set(problem: Problem, device: str) -> Examples:
    """What is evaluated on, prepared for the model: evaluate-examples of the test examples, or all;
    or training examples that are held out from everybody."""
    if problem.evaluate_on == "validation":
        source, chosen = train_set_of(problem), split_of(problem).validation
    else:
        source = test_set_of(problem)
        # At random, because many test sets are sorted by class, but the same for every seed.
        order = rng(0, "evaluation").permutation(len(source))
        chosen = order[: problem.evaluate_examples or len(source)]
    examples = source.take(chosen).to(device)
    prepare = task_of(problem).prepare(augmented=False)
    return Examples(prepared(prepare, examples.inputs, rng(0, "prepare")), examples.targets)


@dataclass(frozen=True)
class Candidate:
    """Vectors to evaluate, of the architecture `role` ("small" or "large"); `ema` is evaluated
    beside them. fields: of the event, among them model and round."""

    role: str
    vectors: Vectors
    ema: Vectors | None
    fields: dict[str, Any]


class Evaluator:
    """A thread that evaluates what it is given, in order, and reports by `report(**fields)`.

    roles: of the models that there will be. warn: is told, once, that those who put models have to
    wait, because they come too fast.
    """

    def __init__(
        self,
        problem: Problem,
        roles: Sequence[str],
        report: Callable[..., None],
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._report, self._warn, self._warned = report, warn, False
        self._number = _NUMBER_OF[problem.evaluate_on]
        device = pick_device(problem.device)
        self._task = task_of(problem)
        self._examples = evaluation_set(problem, device)
        self._models = {role: flat_model(problem, role, device) for role in roles}
        self._queue: queue.Queue[Candidate | None] = queue.Queue(_MOST_WAITING)
        self._pending: list[Candidate] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="evaluator", daemon=True)
        self._thread.start()

    def put(self, candidate: Candidate) -> None:
        """Have `candidate` evaluated. Raises what went wrong with an earlier one, if it did."""
        self._pending.append(candidate)
        if self._queue.full() and not self._warned:
            self._warned = True
            self._warn(
                "the evaluation is slower than the training, which has to wait for it now and "
                f"then: use a smaller {self._number}"
            )
        self._enqueue(candidate)

    def _enqueue(self, candidate: Candidate | None) -> None:
        while self._error is None:
            with contextlib.suppress(queue.Full):
                self._queue.put(candidate, timeout=_LOOK_SECONDS)
                return
        raise self._error

    def pending(self, model: str) -> dict[int, Candidate]:
        """What of `model` has not been reported yet, by round: a checkpoint must not
        forget them. Of a round that was published again, the first: it is reported first."""
        found: dict[int, Candidate] = {}
        for one in self._pending.copy():
            if one.fields["model"] == model:
                found.setdefault(one.fields["round"], one)
        return found

    def drain(self) -> None:
        """Wait until everything that was put has been reported; raises what went wrong."""
        while self._pending and self._error is None:
            time.sleep(_POLL_SECONDS)
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Finish everything that was put; raises what went wrong there, if anything did."""
        self._enqueue(None)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            main = self._task.metric.name
            while (candidate := self._queue.get()) is not None:
                found = self._evaluate(candidate.role, candidate.vectors)
                fields = {**candidate.fields, **found, MAIN: found[main], f"{MAIN}_ema": None}
                if candidate.ema is not None:
                    ema = self._evaluate(candidate.role, candidate.ema)
                    fields |= {f"{name}_ema": value for name, value in ema.items()}
                    fields[f"{MAIN}_ema"] = ema[main]  # last: another metric may be called so
                self._report(**fields)
                self._pending.pop(0)
        except BaseException as error:  # for `put` and `close`: a thread's error would be lost
            self._error = error

    def _evaluate(self, role: str, vectors: Vectors) -> dict[str, Any]:
        model = self._models[role]
        model.load(vectors["weights"], vectors["buffers"])
        values, by_class = measured(self._task, model, self._examples)
        return {**values, **({BY_CLASS: by_class} if by_class else {})}
