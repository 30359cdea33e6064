"""The trained references: the large model without federation and without a teacher, beside a run.

    python -m strategies.distillation.reference_worker DIRECTORY

DIRECTORY holds ``run.json``. The order ``show`` (round, step) comes in on stdin: every reference
is trained until it has taken `step` steps, and ``published`` (round, step) goes out when their
states are there as a file. What is done follows from the configuration and the orders alone, so a
successor goes on with the same bits.
"""

import contextlib
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from strategies.arithmetic import allow_tf32, outputs_of
from strategies.averaging import Vectors
from strategies.checkpoint import atomic_save, load_tensors
from strategies.distillation.child import Parent, RunIsOver, do
from strategies.distillation.mailbox import published_file, published_files
from strategies.distillation.settings import DistillationRun
from strategies.distillation.student import Student
from strategies.problem import flat_model, pick_device, proxy_data, split_of, task_of, train_set_of
from strategies.randomness import rng
from strategies.task import Examples, prepared

_POLL_SECONDS = 0.02
States = dict[str, tuple[Vectors, dict[str, Any]]]  # by reference: arrays, metadata
# Below everything that belongs to the run: nobody waits for a reference before the end.
_NICENESS = 10


def examples_of(run: DistillationRun, reference: str) -> Examples:
    """The examples that a reference learns from.

    server-alone: those of the distillation server that have targets. centralized-large: all
    training examples of participants and server in one place.
    """
    if reference == "server-alone":
        proxy = proxy_data(run.problem)
        assert proxy.targets is not None  # the configuration has been checked
        return Examples(proxy.inputs[: len(proxy.targets)], proxy.targets)
    split = split_of(run.problem)
    return train_set_of(run.problem).take(np.concatenate([*split.participants, split.proxy]))


class Alone:
    """The large model from G's initial weights, with G's optimiser, minibatches and augmentation,
    and the task's loss."""

    def __init__(self, run: DistillationRun, reference: str, device: str) -> None:
        self._run, self._reference = run, reference
        self._examples = examples_of(run, reference).to(device)
        self._task = task_of(run.problem)
        self._prepare = self._task.prepare(augmented=True)
        self._model = flat_model(run.problem, "large", device)
        self._model.look(self._prepare, self._examples.inputs)
        self._student = Student(run, self._model)
        self.step = 0

    def learn(self) -> None:
        """One minibatch."""
        generator = rng(self._run.seed, self._reference, self.step)
        drawn = generator.integers(0, len(self._examples), self._run.distill.batch_size)
        chosen = torch.from_numpy(drawn).to(self._examples.targets.device)
        inputs = prepared(self._prepare, self._examples.inputs[chosen], generator)
        targets = self._examples.targets[chosen]
        module, precision = self._model.module, self._run.precision
        self._student.step(lambda: self._task.loss(outputs_of(module, inputs, precision), targets))
        self.step += 1

    def state(self) -> tuple[Vectors, dict[str, Any]]:
        """As `Student.state`."""
        arrays, metadata = self._student.state()
        return arrays, {**metadata, "step": self.step}

    def load_state(self, arrays: Vectors, metadata: dict[str, Any]) -> None:
        self._student.load_state(arrays, metadata)
        self.step = metadata["step"]


def save_states(path: Path, states: States, round_: int) -> None:
    """Leave the states of all references as one file."""
    tensors = {
        f"{n}.{key}": array for n, (part, _) in states.items() for key, array in part.items()
    }
    told = {name: metadata for name, (_, metadata) in states.items()}
    atomic_save(path, tensors, {"round": round_, "references": told})


def load_states(path: Path) -> States:
    """What `save_states` left."""
    tensors, metadata = load_tensors(path)
    states: States = {}
    for name, told in metadata["references"].items():
        start = f"{name}."
        part = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
        states[name] = part, told
    return states


class ReferenceWorker:
    """Trains the references of a run, all as far as it is told."""

    def __init__(self, directory: Path, run: DistillationRun) -> None:
        self._directory, self._parent = directory, Parent()
        device = pick_device(run.problem.device)
        allow_tf32(run.precision)
        if device == "cuda":
            torch.cuda.set_per_process_memory_fraction(run.distill.gpu_fraction)
        self._alone = {name: Alone(run, name, device) for name in run.trained_references}
        published = published_files(directory)
        if published:
            for name, state in load_states(published[-1]).items():
                self._alone[name].load_state(*state)

    def run(self) -> None:
        self._parent.listen()
        self._parent.say("ready", step=max(one.step for one in self._alone.values()))
        with contextlib.suppress(RunIsOver):
            while True:
                for order in self._parent.orders():
                    self._show(order["round"], order["step"])
                time.sleep(_POLL_SECONDS)

    def _show(self, round_: int, step: int) -> None:
        for alone in self._alone.values():
            while alone.step < step:
                self._parent.check()
                alone.learn()
                self._parent.say_step(alone.step)
        states = {name: alone.state() for name, alone in self._alone.items()}
        save_states(published_file(self._directory, round_), states, round_)
        self._parent.say("published", round=round_, step=step)


def main() -> None:
    if hasattr(os, "nice"):
        os.nice(_NICENESS)
    do(ReferenceWorker)


if __name__ == "__main__":
    main()
