"""Evaluation beside the run, which waits for it only when it falls far behind."""

import contextlib
import math
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from fl_app.assemble import dataset_of, flat_model, pick_device, split_of
from fl_app.config import RunConfig
from fl_app.data import normalise
from fl_app.models import FlatModel
from strategies.averaging import Vectors
from strategies.randomness import rng

_BATCH = 500
# Tasks, each with a model, that wait to be evaluated; who puts more has to wait for one to be done.
_MOST_WAITING = 8
_LOOK_SECONDS = 0.5
_POLL_SECONDS = 0.01
# Which key says how many images are evaluated on.
_NUMBER_OF = {"test": "evaluate-examples", "validation": "validation-examples"}


@torch.no_grad()
def accuracy_and_loss(
    model: FlatModel, images: torch.Tensor, labels: torch.Tensor
) -> tuple[float, float]:
    """Share of right answers and mean cross entropy on normalised images (n, c, h, w); both NaN of
    a model whose values, or whose loss, are not finite: its answers mean nothing."""
    model.module.eval()
    right, loss = 0, 0.0
    for start in range(0, len(labels), _BATCH):
        logits = model.module(images[start : start + _BATCH])
        target = labels[start : start + _BATCH]
        right += int((logits.argmax(1) == target).sum())
        loss += float(functional.cross_entropy(logits, target, reduction="sum"))
    vectors = (model.weights, model.buffers)
    finite = math.isfinite(loss) and all(bool(vector.isfinite().all()) for vector in vectors)
    return (right / len(labels), loss / len(labels)) if finite else (math.nan, math.nan)


@dataclass(frozen=True)
class EvaluationSet:
    """Normalised images (n, c, h, w) and their labels (n,)."""

    images: torch.Tensor
    labels: torch.Tensor


def evaluation_set(config: RunConfig, device: str) -> EvaluationSet:
    """What is evaluated on: evaluate-examples of the test images, or all; or training images that
    are held out from everybody."""
    dataset = dataset_of(config)
    if config.evaluate_on == "validation":
        source, chosen = dataset.train, split_of(config).validation
    else:
        source, available = dataset.test, len(dataset.test.labels)
        # At random, because many test sets are sorted by class, but the same for every seed.
        order = rng(0, "evaluation").permutation(available)
        chosen = order[: config.evaluate_examples or available]
    images = torch.from_numpy(source.images[chosen]).to(device)
    labels = torch.from_numpy(source.labels[chosen]).to(device)
    return EvaluationSet(normalise(images, dataset.mean, dataset.std), labels)


@dataclass(frozen=True)
class Task:
    """Vectors to evaluate, of the architecture `role` ("small" or "large"); `ema` is evaluated
    beside them. fields: of the event, among them model and round."""

    role: str
    vectors: Vectors
    ema: Vectors | None
    fields: dict[str, Any]


class Evaluator:
    """A thread that evaluates what it is given, in order, and reports by `report(**fields)`.

    warn: is told, once, that those who put tasks have to wait, because they come too fast.
    """

    def __init__(
        self,
        config: RunConfig,
        report: Callable[..., None],
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._report, self._warn, self._warned = report, warn, False
        self._number = _NUMBER_OF[config.evaluate_on]
        device = pick_device(config.device)
        self._data = evaluation_set(config, device)
        roles = ("small", "large") if config.distils else ("small",)
        self._models = {role: flat_model(config, role, device) for role in roles}
        self._tasks: queue.Queue[Task | None] = queue.Queue(_MOST_WAITING)
        self._pending: dict[tuple[str, int], Task] = {}
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="evaluator", daemon=True)
        self._thread.start()

    def put(self, task: Task) -> None:
        """Have `task` evaluated. Raises what went wrong with an earlier one, if anything did."""
        self._pending[_key(task)] = task
        if self._tasks.full() and not self._warned:
            self._warned = True
            self._warn(
                "the evaluation is slower than the training, which has to wait for it now and "
                f"then: use a smaller {self._number}"
            )
        self._enqueue(task)

    def _enqueue(self, task: Task | None) -> None:
        while self._error is None:
            with contextlib.suppress(queue.Full):
                self._tasks.put(task, timeout=_LOOK_SECONDS)
                return
        raise self._error

    def pending(self, model: str) -> dict[int, Task]:
        """The tasks of `model` that have not been reported yet, by round: a checkpoint must not
        forget them."""
        return {round_: task for (m, round_), task in self._pending.copy().items() if m == model}

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
            while (task := self._tasks.get()) is not None:
                accuracy, loss = self._evaluate(task.role, task.vectors)
                fields = {**task.fields, "accuracy": accuracy, "loss": loss, "accuracy_ema": None}
                if task.ema is not None:
                    fields["accuracy_ema"], _ = self._evaluate(task.role, task.ema)
                self._report(**fields)
                if self._pending[_key(task)] is task:  # a round can be published again
                    del self._pending[_key(task)]
        except BaseException as error:  # for `put` and `close`: a thread's error would be lost
            self._error = error

    def _evaluate(self, role: str, vectors: Vectors) -> tuple[float, float]:
        model = self._models[role]
        model.load(vectors["weights"], vectors["buffers"])
        return accuracy_and_loss(model, self._data.images, self._data.labels)


def _key(task: Task) -> tuple[str, int]:
    return task.fields["model"], task.fields["round"]
