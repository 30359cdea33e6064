"""Images and labels of an .npz file, in our layout."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from fl_app.data.archive import Archive
from fl_app.data.foreign import reading
from fl_app.data.images import ImageSet
from fl_app.data.labels import check_names, in_order, to_labels
from strategies.errors import DataError

Size = tuple[int, int, int]  # channels, height, width


def read_whole(archive: Archive) -> tuple[ImageSet, ImageSet, tuple[str, ...]]:
    """Read ``x_train, y_train, x_test, y_test``, and the names of the classes: those of the array
    ``classes``, or the numbers that occur. All headers are looked at before any content is read.

    Raises:
        DataError: an array is missing, damaged or does not fit the others.
    """
    size = _look(archive, "x_train", "y_train")
    _look(archive, "x_test", "y_test", size)
    named = "classes" in archive.names
    if named:
        archive.look("classes", _check_words)
    given, given_test = _read_numbers(archive, "y_train"), _read_numbers(archive, "y_test")
    if named:
        words = archive.array("classes").tolist()
        with reading(f"{archive.path}, classes"):
            names = [
                word.decode("utf-8") if isinstance(word, bytes) else str(word) for word in words
            ]
    else:
        # One by one: NumPy makes floating-point numbers of signed and unsigned ones together.
        names = in_order(str(n) for part in (given, given_test) for n in np.unique(part))
    names = check_names(names, archive.path)
    labels = to_labels(given, names, f"{archive.path}, y_train")
    labels_test = to_labels(given_test, names, f"{archive.path}, y_test")
    train = ImageSet(_read_images(archive, "x_train", size), labels, archive.unused)
    return train, ImageSet(_read_images(archive, "x_test", size), labels_test), names


def read_shard(archive: Archive, size: Size, names: Sequence[str]) -> ImageSet:
    """Read ``images`` and ``labels``, or ``x_train`` and ``y_train``, of `size` and of the classes
    called `names`. Raises DataError as `read_whole` does."""
    x, y = ("images", "labels") if "images" in archive.names else ("x_train", "y_train")
    _look(archive, x, y, size)
    labels = to_labels(_read_numbers(archive, y), names, f"{archive.path}, {y}")
    return ImageSet(_read_images(archive, x, size), labels, archive.unused)


def _look(archive: Archive, x: str, y: str, size: Size | None = None) -> Size:
    """Check the headers of images and of their labels; the size of the images, `size` if given.

    Images may be (n, c, h, w), (n, h, w, c), or (n, h, w) where there is one channel.
    """
    shape = archive.look(x, partial(_check_images, size))
    archive.look(y, partial(_check_numbers, shape[0]))
    return size or _size(shape, archive.path)


def _read_images(archive: Archive, name: str, size: Size) -> np.ndarray:
    """Images that were looked at, as (n, c, h, w)."""
    c, h, w = size
    images = archive.array(name)
    if images.shape[1:] == (h, w, c) != (c, h, w):
        images = images.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(images.reshape(-1, c, h, w))


def _read_numbers(archive: Archive, name: str) -> np.ndarray:
    """The numbers that say of what class each image is; they were looked at."""
    numbers = archive.array(name)
    if (lowest := numbers.min()) < 0:
        raise DataError(
            f"{archive.path}, {name}: label {lowest} is negative; leave out images of no class"
        )
    return numbers


def _check_images(size: Size | None, shape: tuple[int, ...], dtype: np.dtype, where: str) -> None:
    if dtype != np.uint8:
        raise DataError(f"{where}: images are {dtype}; give pixels 0 to 255 as uint8")
    c, h, w = size or _size(shape, where)
    if shape[1:] not in {(c, h, w), (h, w, c)} | ({(h, w)} if c == 1 else set()):
        raise DataError(
            f"{where}: images have shape {shape}; this data set needs "
            f"(n, {c}, {h}, {w}) or (n, {h}, {w}, {c})"
        )
    if not shape[0]:
        raise DataError(f"{where}: there is no image")


def _size(shape: tuple[int, ...], where: str) -> Size:
    """Channels, height and width of images of that shape."""
    match shape[1:]:
        case (h, w) if h and w:
            return 1, h, w
        case (1 | 3 as c, h, w) if h and w and w not in (1, 3):
            return c, h, w
        case (h, w, 1 | 3 as c) if h and w and h not in (1, 3):
            return c, h, w
    raise DataError(
        f"{where} has shape {shape}; give (n, h, w), (n, c, h, w) or (n, h, w, c) with 1 or 3 "
        f"channels c"
    )


def _check_numbers(images: int, shape: tuple[int, ...], dtype: np.dtype, where: str) -> None:
    if dtype.kind not in "iu":
        raise DataError(f"{where}: labels are {dtype}; give class numbers as integers")
    if shape != (images,):
        raise DataError(
            f"{where}: labels have shape {shape} for {images} images; give one label per image"
        )


def _check_words(shape: tuple[int, ...], dtype: np.dtype, where: str) -> None:
    if len(shape) != 1 or dtype.kind not in "USiu":
        raise DataError(
            f"{where} has shape {shape} and type {dtype}; give a list of names, one per class"
        )
