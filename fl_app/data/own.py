"""A user's own images: a device's shard, or a whole data set for a simulation."""

from pathlib import Path

import numpy as np

from fl_app.data import arrays, folder
from fl_app.data.archive import Archive
from fl_app.data.foreign import is_litter, printable, reading
from fl_app.data.images import Dataset, ImageSet, Spec
from strategies.errors import DataError

_PARTS = ("train", "test")


def load_shard(data_path: str | Path, spec: Spec) -> ImageSet:
    """Load a device's own training images and check that they fit the run's data set.

    Args:
        data_path: absolute path of an .npz with ``images`` and ``labels`` (or ``x_train`` and
            ``y_train``), or of a folder with one subfolder per class, named by the class's name or,
            where no class is called a number, by its number from 0. Labels of an .npz are the
            names of classes that are called numbers, or else their numbers from 0.
        spec: what the run expects; nothing is resized, rescaled or made grey to fit it.

    Raises:
        DataError: the path, an array or an image is missing, damaged or does not fit.
    """
    path = existing_path(data_path)
    if path.is_dir():
        return folder.read_shard(path, spec)
    size = (spec.channels, spec.height, spec.width)
    with Archive(path) as archive:
        return arrays.read_shard(archive, size, spec.class_names)


def load_files(data_path: str | Path) -> Dataset:
    """Load a whole data set for a simulation; its size, classes, mean and std come from itself.

    Args:
        data_path: absolute path of an .npz with ``x_train, y_train, x_test, y_test`` and optionally
            ``classes`` (names); or of a folder with ``train/<class>/**`` and ``test/<class>/**``.
            Images are not mirrored in training: nobody says that they may be.

    Raises:
        DataError: the path, an array or an image is missing, damaged or does not fit the others.
    """
    path = existing_path(data_path)
    if path.is_dir():
        there = _names_in(path)
        if lacking := [part for part in _PARTS if part not in there]:
            raise DataError(
                f"{printable(path)} has no folder {lacking[0]!r}; give train/<class>/ and "
                f"test/<class>/"
            )
        others = _beside(path, there)
        train, test, names = folder.read_whole(path / "train", path / "test")
    else:
        with Archive(path) as archive:
            train, test, names = arrays.read_whole(archive)
        others = ()
    mean, std = _scale(train.images)
    if not all(std):
        raise DataError(f"{printable(path)}: all training images have one colour in some channel")
    unused = others + train.unused + test.unused
    return Dataset("files", train, test, names, mean, std, flip=False, unused=unused)


def is_whole(data_path: str | Path) -> bool:
    """Whether there is a training and a test set, and not one device's images. DataError."""
    path = existing_path(data_path)
    if path.is_dir():
        return set(_PARTS) <= set(_names_in(path))
    with Archive(path) as archive:
        return "x_test" in archive.names


def existing_path(data_path: str | Path) -> Path:
    """Return `data_path` as an absolute path that exists, or raise DataError."""
    told = f"data-path='{printable(data_path)}'"
    try:
        path = Path(data_path).expanduser()
        if not path.is_absolute():
            raise DataError(
                f"{told} is relative, but a run's processes have other working directories; give "
                f"an absolute path"
            )
        path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{told} does not exist on this machine") from error
    except (OSError, RuntimeError, ValueError) as error:  # no such home, a name too long, a loop
        raise DataError(f"{told} cannot be found: {error}") from error
    if not path.is_dir() and not path.is_file():
        raise DataError(f"{told} is neither a folder nor a file")
    return path


def _names_in(path: Path) -> list[str]:
    with reading(printable(path)):
        return sorted(entry.name for entry in path.iterdir())


def _beside(path: Path, names: list[str]) -> tuple[str, ...]:
    """What is beside the folders of the two sets, in words."""
    others = [printable(name) for name in names if name not in _PARTS and not is_litter(name)]
    shown = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
    return (f"{printable(path)}: not used: {len(others)} beside them: {shown}",) if others else ()


def _scale(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of pixels divided by 255."""
    # From the histogram of the 256 pixel values: exact, without a float copy of the images. And
    # image by image, for NumPy makes eight bytes of each that it counts.
    per_channel = np.zeros((images.shape[1], 256), np.int64)
    for image in images:
        per_channel += [np.bincount(channel.ravel(), minlength=256) for channel in image]
    weight, value = per_channel / per_channel.sum(1, keepdims=True), np.arange(256) / 255
    mean = weight @ value
    std = np.sqrt((weight * (value - mean[:, None]) ** 2).sum(1))
    return tuple(mean.tolist()), tuple(std.tolist())
