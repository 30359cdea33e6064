"""Evaluation beside the run, which waits for it only when it falls far behind."""

import contextlib
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

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
from strategies.task import Examples, Task, prepared

_BATCH = 500
# What events call the value of a task's main metric, whatever that is: "run_started" says it.
MAIN = "accuracy"
BY_CLASS = "per_class"  # and that of the examples of each class, by its name
# Models that wait to be evaluated; who puts more has to wait for one to be done.
_MOST_WAITING = 8
_LOOK_SECONDS = 0.5
_POLL_SECONDS = 0.01
# Which key says how many examples are evaluated on.
_NUMBER_OF = {"test": "evaluate-examples", "validation": "validation-examples"}


@torch.no_grad()
def measured(task: Task, model: FlatModel, examples: Examples) -> dict[str, float]:
    """The task's metrics by name, and "loss", of the model on prepared examples; all NaN of a model
    whose values, or whose loss, are not finite: its answers mean nothing."""
    return measured_by_class(task, model, examples)[0]


@torch.no_grad()
def measured_by_class(
    task: Task, model: FlatModel, examples: Examples
) -> tuple[dict[str, float], dict[str, float]]:
    """`measured`; and the main metric of the examples of each class that has any, by its name:
    nothing where the task has no classes, or an example has several."""
    model.module.eval()
    sums, loss, each_main = dict.fromkeys(task.metrics, 0.0), 0.0, []
    for start in range(0, len(examples), _BATCH):
        targets = examples.targets[start : start + _BATCH]
        outputs = model.module(examples.inputs[start : start + _BATCH])
        for metric in task.metrics:
            each = metric.each(outputs, targets)
            sums[metric] += float(each.sum(dtype=torch.float64))
            if metric is task.metric:
                each_main.append(each.double().cpu())
        loss += float(task.loss(outputs, targets)) * len(targets)
    vectors = (model.weights, model.buffers)
    if not (math.isfinite(loss) and all(bool(vector.isfinite().all()) for vector in vectors)):
        return dict.fromkeys([metric.name for metric in task.metrics] + ["loss"], math.nan), {}
    count = len(examples)
    values = {m.name: m.finish(total / count) for m, total in sums.items()} | {"loss": loss / count}
    return values, _by_class(task, torch.cat(each_main), examples.targets)


def _by_class(task: Task, each: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    if not task.classes or targets.dim() != 1:
        return {}
    groups = targets.cpu().long()
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
        self._pending: dict[tuple[str, int], Candidate] = {}
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="evaluator", daemon=True)
        self._thread.start()

    def put(self, candidate: Candidate) -> None:
        """Have `candidate` evaluated. Raises what went wrong with an earlier one, if it did."""
        self._pending[_key(candidate)] = candidate
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
        forget them."""
        return {round_: one for (m, round_), one in self._pending.copy().items() if m == model}

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
                if self._pending[_key(candidate)] is candidate:  # a round can be published again
                    del self._pending[_key(candidate)]
        except BaseException as error:  # for `put` and `close`: a thread's error would be lost
            self._error = error

    def _evaluate(self, role: str, vectors: Vectors) -> dict[str, Any]:
        model = self._models[role]
        model.load(vectors["weights"], vectors["buffers"])
        values, by_class = measured_by_class(self._task, model, self._examples)
        return {**values, **({BY_CLASS: by_class} if by_class else {})}


def _key(candidate: Candidate) -> tuple[str, int]:
    return candidate.fields["model"], candidate.fields["round"]
