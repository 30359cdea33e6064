"""What a process needs for training and keeps from message to message: model, device, data."""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

from fl_app.assemble import check_arithmetic, flat_model, pick_device, split_of, train_set_of
from fl_app.config import RunConfig
from fl_app.tasks import task_of
from strategies.attacks import LABEL_FLIP, flipped_labels
from strategies.errors import DataError, EdgeFlError
from strategies.flat import FlatModel
from strategies.memory import keep_freed_memory
from strategies.task import Examples, Task


@dataclass(frozen=True)
class Bench:
    """A model to compute with, and the task that it is of."""

    model: FlatModel
    task: Task
    device: str


@lru_cache(maxsize=1)
def bench_of(config: RunConfig) -> Bench:
    """The participants' model on the configured device. EdgeFlError for what does not fit."""
    # Here and not where the ClientApp is made: Ray's actors get that as a copy, and import nothing.
    keep_freed_memory()
    device = pick_device(config.device)
    check_arithmetic(config, device)
    return Bench(flat_model(config, "small", device), task_of(config), device)


@lru_cache(maxsize=64)
def shard_of(config: RunConfig, participant: int, own_data: str) -> Examples:
    """The participant's examples: the device's own, or its part of the run's data set; with wrong
    labels if it is to be an attacker of that kind.

    A number beyond the participants' means all of their data in one place.
    """
    task = task_of(config)
    if own_data:
        shard = _own(task, own_data)
    else:
        parts = split_of(config).participants
        chosen = parts[participant] if participant < len(parts) else np.concatenate(parts)
        shard = train_set_of(config).take(chosen)
    if config.attack_of(participant) == LABEL_FLIP:
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


def check_data_set(config: RunConfig, own_data: str, digest: str) -> None:
    """Raise DataError if this machine reads the run's data set, and that is another one than the
    server's, of which `digest` is."""
    task = task_of(config)
    read = not own_data or task.own_by_training
    if read and digest and task.digest != digest:
        raise DataError(
            f"{config.data_source} holds other examples or class names here than on the server; "
            f"copy the server's"
        )


def check_own_data(config: RunConfig, participant: int, own_data: str, digest: str | None) -> None:
    """Raise DataError if a device's own images are others than those of which `digest` is."""
    if digest not in (None, own_digest(config, participant, own_data)):
        raise DataError(
            f"{own_data} holds other images or labels than those with which this node has trained "
            f"so far in this run; put them back, or start a new run"
        )


def own_digest(config: RunConfig, participant: int, own_data: str) -> str | None:
    """Of a device's own images; None if it has none."""
    return shard_of(config, participant, own_data).digest if own_data else None
