"""What a process needs for training and keeps from message to message: model, device, data."""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from fl_app.assemble import dataset_of, flat_model, pick_device, split_of
from fl_app.config import FILES, RunConfig
from fl_app.data import ImageSet, Preparation, load_shard, spec_of
from fl_app.errors import DataError
from fl_app.memory import keep_freed_memory
from fl_app.models import FlatModel
from strategies.attacks import LABEL_FLIP, flipped_labels


@dataclass(frozen=True)
class Bench:
    """A model to compute with, and how images are prepared for it."""

    model: FlatModel
    device: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool

    def preparation(self, augmented: bool) -> Preparation:
        return Preparation(self.mean, self.std, self.flip, augmented)


@lru_cache(maxsize=1)
def bench_of(config: RunConfig) -> Bench:
    """The participants' model on the configured device. EdgeFlError for what does not fit."""
    # Here and not where the ClientApp is made: Ray's actors get that as a copy, and import nothing.
    keep_freed_memory()
    device = pick_device(config.device)
    spec = spec_of(config.dataset, config.data_path)
    return Bench(flat_model(config, "small", device), device, spec.mean, spec.std, spec.flip)


@lru_cache(maxsize=64)
def shard_of(config: RunConfig, participant: int, own_data: str) -> ImageSet:
    """The participant's images: the device's own, or its part of the run's data set; with wrong
    labels if it is to be an attacker of that kind.

    A number beyond the participants' means all of their data in one place.
    """
    spec = spec_of(config.dataset, config.data_path)
    if own_data:
        shard = load_shard(own_data, spec)
    else:
        train, parts = dataset_of(config).train, split_of(config).participants
        chosen = parts[participant] if participant < len(parts) else np.concatenate(parts)
        shard = ImageSet(train.images[chosen], train.labels[chosen])
    if config.attack_of(participant) == LABEL_FLIP:
        return replace(shard, labels=flipped_labels(shard.labels, spec.classes))
    return shard


def check_data_set(config: RunConfig, own_data: str, digest: str) -> None:
    """Raise DataError if this machine reads the run's data set, and that is another one than the
    server's, of which `digest` is."""
    read = not own_data or config.dataset == FILES
    if read and digest and dataset_of(config).digest != digest:
        raise DataError(
            f"{config.data_path or config.dataset} holds other images, labels or class names here "
            f"than on the server; copy the server's"
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
