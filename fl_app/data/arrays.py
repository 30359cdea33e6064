"""Images and labels of an .npz file, in our layout."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from fl_app.data.archive import Archive
from fl_app.data.images import ImageSet
from fl_app.data.labels import check_names, in_order, to_labels
from fl_app.errors import DataError

Size = tuple[int, int, int]  # channels, height, width


def read_images(archive: Archive, name: str, size: Size | None = None) -> np.ndarray:
    """Read images as (n, c, h, w): of `size`, or of whatever size they have.

    They may be stored as (n, c, h, w), (n, h, w, c), or (n, h, w) where there is one channel.

    Raises:
        DataError: no such array, no uint8, another size, no image.
    """
    images = archive.array(name, partial(_check_images, size))
    c, h, w = size or _size(images.shape, archive.path)
    if images.shape[1:] == (h, w, c) != (c, h, w):
        images = images.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(images.reshape(-1, c, h, w))


def read_numbers(archive: Archive, name: str, images: np.ndarray) -> np.ndarray:
    """Read the numbers that say of what class the `images` are. Raises DataError."""
    numbers = archive.array(name, partial(_check_numbers, len(images)))
    if (lowest := numbers.min()) < 0:
        raise DataError(
            f"{archive.path}, {name}: label {lowest} is negative; leave out images of no class"
        )
    return numbers


def read_whole(archive: Archive) -> tuple[ImageSet, ImageSet, tuple[str, ...]]:
    """Read ``x_train, y_train, x_test, y_test``, and the names of the classes: those of the array
    ``classes``, or the numbers that occur.

    Raises:
        DataError: an array is missing, damaged or does not fit the others.
    """
    train = read_images(archive, "x_train")
    given = read_numbers(archive, "y_train", train)
    test = read_images(archive, "x_test", train.shape[1:])
    given_test = read_numbers(archive, "y_test", test)
    if "classes" in archive.names:
        names = archive.array("classes", _check_words).tolist()
        names = [name.decode("utf-8") if isinstance(name, bytes) else str(name) for name in names]
    else:
        names = in_order(str(n) for n in np.union1d(given, given_test))
    names = check_names(names, archive.path)
    return (
        ImageSet(train, to_labels(given, names, f"{archive.path}, y_train"), archive.unused),
        ImageSet(test, to_labels(given_test, names, f"{archive.path}, y_test")),
        names,
    )


def read_shard(archive: Archive, size: Size, names: Sequence[str]) -> ImageSet:
    """Read ``images`` and ``labels``, or ``x_train`` and ``y_train``, of `size` and of the classes
    called `names`. Raises DataError as `read_whole` does."""
    x, y = ("images", "labels") if "images" in archive.names else ("x_train", "y_train")
    images = read_images(archive, x, size)
    labels = to_labels(read_numbers(archive, y, images), names, f"{archive.path}, {y}")
    return ImageSet(images, labels, archive.unused)


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
