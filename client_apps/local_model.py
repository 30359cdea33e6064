"""What a process needs for training and keeps from message to message: model, device, data."""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

from strategies.allocator import keep_freed_memory
from strategies.attacks import LABEL_FLIP, flipped_labels
from strategies.errors import DataError, EdgeFlError
from strategies.flat import FlatModel
from strategies.problem import (
    Problem,
    check_arithmetic,
    flat_model,
    pick_device,
    split_of,
    task_of,
    train_set_of,
)
from strategies.task import Examples, Task


@dataclass(frozen=True)
class LocalModel:
    """A model to compute with, and the task that it is of."""

    model: FlatModel
    task: Task
    device: str


@lru_cache(maxsize=1)
def local_model_of(problem: Problem) -> LocalModel:
    """The participants' model on the configured device. EdgeFlError for what does not fit."""
    # Here and not where the ClientApp is made: Ray's actors get that as a copy, and import nothing.
    keep_freed_memory()
    device = pick_device(problem.device)
    check_arithmetic(problem, device)
    return LocalModel(flat_model(problem, "small", device), task_of(problem), device)


@lru_cache(maxsize=64)
def shard_of(problem: Problem, participant: int, own_data: str, attack: str = "") -> Examples:
    """The participant's examples: the device's own, or its part of the run's data set; with wrong
    labels if `attack` says so.

    A number beyond the participants' means all of their data in one place.
    """
    task = task_of(problem)
    if own_data:
        shard = _own(task, own_data)
    else:
        parts = split_of(problem).participants
        chosen = parts[participant] if participant < len(parts) else np.concatenate(parts)
        shard = train_set_of(problem).take(chosen)
    if attack == LABEL_FLIP:
        flipped = flipped_labels(shard.targets.numpy(), len(task.classes))
        return replace(shard, targets=torch.from_numpy(flipped))
    return shard


def _own(task: Task, path: str) -> Examples:
    try:
        return task.own(path)
    except EdgeFlError:
        raise
    except Exception as error:  # whatever somebody's task raises
        raise DataError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def check_own_code(here: str, server: str) -> None:
    """Raise DataError where code of somebody's own is another here than on the server; both as in
    `PrepareOrder.code`."""
    if differ := [word.partition("=")[0] for word in server.split() if word not in here.split()]:
        raise DataError(
            f"{', '.join(differ)} names code that is another here than on the server; copy the "
            f"server's file, or install the version of the package that it has"
        )


def check_data_set(problem: Problem, own_data: str, digest: str) -> None:
    """Raise DataError if this machine reads the run's data set, and that is another one than the
    server's, of which `digest` is."""
    task = task_of(problem)
    read = not own_data or task.own_by_training
    if read and digest and task.digest != digest:
        raise DataError(
            f"{problem.source} holds other examples or class names here than on the server; "
            f"copy the server's"
        )


def check_own_data(problem: Problem, participant: int, own_data: str, digest: str | None) -> None:
    """Raise DataError if a device's own images are others than those of which `digest` is."""
    if digest not in (None, own_digest(problem, participant, own_data)):
        raise DataError(
            f"{own_data} holds other images or labels than those with which this node has trained "
            f"so far in this run; put them back, or start a new run"
        )


def own_digest(problem: Problem, participant: int, own_data: str) -> str | None:
    """Of a device's own images; None if it has none."""
    return shard_of(problem, participant, own_data).digest if own_data else None
