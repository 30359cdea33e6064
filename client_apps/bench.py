"""What a process needs for training and keeps from message to message: model, device, data."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fl_app.assemble import dataset_of, flat_model, pick_device, split_of
from fl_app.config import RunConfig
from fl_app.data import ImageSet, Preparation, load_shard, spec_of
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
        return ImageSet(shard.images, flipped_labels(shard.labels, spec.classes))
    return shard
