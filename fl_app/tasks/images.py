"""Images and classes: the data sets and models that a run can name, and a user's own files."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fl_app.data import Dataset, ImageSet, Preparation, Spec, load_dataset, load_shard, spec_of
from fl_app.data.sets import FILES
from fl_app.models import build_model
from strategies.errors import ConfigError, DataError
from strategies.randomness import rng
from strategies.task import Classification, Examples


def examples_of(images: ImageSet) -> Examples:
    """Images and labels as a task's examples; nothing is copied."""
    return Examples(torch.from_numpy(images.images), torch.from_numpy(images.labels), images.unused)


class Images(Classification):
    """The task `images`: cross entropy and accuracy on the run's data set."""

    def __init__(
        self,
        seed: int = 0,
        data_path: str = "",
        *,
        dataset: str,
        data_root: str,
        allow_missing_classes: bool,
        small_model: str,
        small_width: int,
        large_model: str,
        large_width: int,
        normalisation: str,
    ) -> None:
        super().__init__(seed, data_path)
        self._source, self._data_root = dataset, data_root
        self._missing_allowed = allow_missing_classes
        self._models = {"small": (small_model, small_width), "large": (large_model, large_width)}
        self._normalisation = normalisation
        self.own_by_training = dataset == FILES  # they say which classes there are
        self.spec: Spec = spec_of(dataset, data_path)
        self.classes = self.spec.class_names

    @property
    def dataset(self) -> Dataset:
        """The run's data set, read once a process. Raises DataError, also for a class of somebody's
        own of which the training set or the test set has nothing, unless that is allowed."""
        dataset = load_dataset(self._source, self._data_root, self.data_path)
        if self._source == FILES and dataset.one_sided and not self._missing_allowed:
            raise DataError(
                f"{self.data_path}: only one of the two sets has images of class "
                f"{', '.join(dataset.one_sided[:5])}; give some to the other, or say "
                f"allow-missing-classes=true{''.join(f' ({line})' for line in dataset.unused)}"
            )
        return dataset

    def model(self, role: str) -> nn.Module:
        try:
            return build_model(**self._build(role))
        except ValueError as error:
            raise ConfigError(f"{role}-model: {error}") from error

    def _build(self, role: str) -> dict[str, Any]:
        """The arguments of `build_model`."""
        spec, (name, width) = self.spec, self._models[role]
        return {
            "name": name,
            "in_channels": spec.channels,
            "num_classes": spec.classes,
            "image_size": (spec.height, spec.width),
            "width": width or None,
            "norm": self._normalisation,
            "seed": self.seed,
        }

    def about(self, role: str) -> dict[str, Any]:
        """build: the arguments of `fl_app.models.build_model`. input: mean and std per channel, by
        which the model's input is normalised: (pixel / 255 - mean) / std."""
        normalisation = {"mean": list(self.spec.mean), "std": list(self.spec.std)}
        return {"build": self._build(role), "input": normalisation}

    def sample(self, count: int) -> torch.Tensor:
        """Noise: the images need not be there."""
        shape = (count, self.spec.channels, self.spec.height, self.spec.width)
        noise = rng(self.seed, "sample").standard_normal(shape, dtype="float32")
        return torch.from_numpy(noise)

    def training(self) -> Examples:
        return examples_of(self.dataset.train)

    def test(self) -> Examples:
        return examples_of(self.dataset.test)

    def prepare(self, augmented: bool) -> Preparation:
        spec = self.spec
        return Preparation(spec.mean, spec.std, spec.flip, augmented)

    def own(self, path: str | Path) -> Examples:
        return examples_of(load_shard(path, self.spec))

    def groups(self, examples: Examples) -> np.ndarray:
        return examples.targets.numpy()

    @property
    def digest(self) -> str:
        return self.dataset.digest

    @property
    def unused(self) -> tuple[str, ...]:
        """What of the data set's source was not read, a sentence each."""
        return self.dataset.unused
