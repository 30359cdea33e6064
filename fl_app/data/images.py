"""What a data set is, wherever it comes from."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Spec:
    """What models and devices must know of a data set; no image is loaded for it.

    Attributes:
        class_names: in the order of the labels 0, 1, ...
        mean, std: per channel, of pixels divided by 255.
        flip: a mirrored image still shows its class (false for digits).
    """

    channels: int
    height: int
    width: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


@dataclass(frozen=True)
class ImageSet:
    """Labelled images.

    Attributes:
        images: uint8, (n, channels, height, width), contiguous.
        labels: int64, (n,).
        unused: what of their source was not read, a sentence each.
    """

    images: np.ndarray
    labels: np.ndarray
    unused: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def counts(self, classes: int) -> np.ndarray:
        """How many images there are of each class."""
        return np.bincount(self.labels, minlength=classes)

    @cached_property
    def digest(self) -> str:
        """The sha256 of all images and labels, 64 hex digits."""
        digest = hashlib.sha256(str(self.images.shape).encode())
        digest.update(self.images.data)
        digest.update(self.labels.data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Dataset:
    """A training and a test set; the attributes mean what they mean in `Spec` and `ImageSet`."""

    name: str
    train: ImageSet
    test: ImageSet
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    unused: tuple[str, ...] = ()

    @cached_property
    def digest(self) -> str:
        """The sha256 of names, images and labels of both sets, 64 hex digits."""
        parts = [json.dumps(self.classes), self.train.digest, self.test.digest]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    @cached_property
    def one_sided(self) -> tuple[str, ...]:
        """The classes of which one set has images and the other has none, a phrase each."""
        train, test = (part.counts(len(self.classes)) for part in (self.train, self.test))
        return tuple(
            f"{name!r} ({train[i]} in train, {test[i]} in test)"
            for i, name in enumerate(self.classes)
            if (train[i] == 0) != (test[i] == 0)
        )

    @property
    def spec(self) -> Spec:
        channels, height, width = self.train.images.shape[1:]
        return Spec(channels, height, width, self.classes, self.mean, self.std, self.flip)
