"""What a data set is, wherever it comes from."""

from dataclasses import dataclass

import numpy as np

from fl_app.errors import DataError


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
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A training and a test set; the attributes mean what they mean in `Spec`."""

    name: str
    train: ImageSet
    test: ImageSet
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool

    @property
    def spec(self) -> Spec:
        channels, height, width = self.train.images.shape[1:]
        return Spec(channels, height, width, self.classes, self.mean, self.std, self.flip)


def image_set(images: np.ndarray, labels: np.ndarray, spec: Spec, where: str) -> ImageSet:
    """Check arrays that come from outside against `spec` and return them in our layout.

    Images may be (n, c, h, w), (n, h, w, c), or (n, h, w) where there is one channel.

    Raises:
        DataError: wrong shape, type, number or range; the message begins with `where`.
    """
    if images.dtype != np.uint8:
        raise DataError(f"{where}: images are {images.dtype}; give pixels 0 to 255 as uint8")
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{where}: labels are {labels.dtype}; give class numbers as integers")
    if labels.ndim != 1 or len(labels) != len(images):
        raise DataError(
            f"{where}: labels have shape {labels.shape} for {len(images)} images; "
            f"give one label per image"
        )
    if not len(labels):
        raise DataError(f"{where}: there is no image")
    c, h, w = spec.channels, spec.height, spec.width
    if images.shape[1:] == (h, w) and c == 1:
        images = images[:, None]
    elif images.shape[1:] == (h, w, c) and images.shape[1:] != (c, h, w):
        images = images.transpose(0, 3, 1, 2)
    elif images.shape[1:] != (c, h, w):
        raise DataError(
            f"{where}: images have shape {images.shape}; this data set needs "
            f"(n, {c}, {h}, {w}) or (n, {h}, {w}, {c})"
        )
    low, high = labels.min(), labels.max()
    if low < 0 or high >= spec.classes:
        raise DataError(
            f"{where}: labels run from {low} to {high}; this data set has {spec.classes} classes, "
            f"numbered from 0 to {spec.classes - 1}"
        )
    return ImageSet(np.ascontiguousarray(images), labels.astype(np.int64))
