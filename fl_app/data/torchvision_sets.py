"""Public data sets by way of torchvision, downloaded once."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fl_app.data.cache import cache_directory
from fl_app.data.images import ImageSet
from strategies.errors import DataError
from strategies.pyproject import install


def torchvision_reader(class_name: str) -> Callable[[str], tuple[ImageSet, ImageSet]]:
    """Return the reader of ``torchvision.datasets.<class_name>``.

    It takes `data_root`, a directory in torchvision's layout, or "" for the cache directory, into
    which it downloads what is not there; and returns the training and the test set.

    It raises DataError, with the ways out, when the data are neither there nor to be had.
    """

    def read(data_root: str) -> tuple[ImageSet, ImageSet]:
        if not data_root:
            return _read_or_download(class_name)
        try:
            return _read(class_name, Path(data_root))
        except DataError:
            raise
        except Exception as error:  # torchvision raises what its files make it raise
            raise DataError(
                f"data-root={data_root!r} does not hold torchvision's {class_name} ({error}); "
                f"give the directory that does, or leave data-root empty to download it, "
                f"or use dataset=embedded"
            ) from error

    return read


def _read_or_download(class_name: str) -> tuple[ImageSet, ImageSet]:
    directory = cache_directory() / class_name
    try:
        if not directory.is_dir():
            _download(class_name, directory)
        return _read(class_name, directory)
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{class_name} is not in {directory} and could not be downloaded ({error}); "
            f"run once with a network, or give data-root=DIRECTORY that holds it, "
            f"or use dataset=embedded (if that directory is damaged, delete it)"
        ) from error


def _download(class_name: str, directory: Path) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    # Into a directory of this process's own, then renamed: whoever sees the final name sees all of
    # it, however many processes download at once or die while they do.
    with tempfile.TemporaryDirectory(prefix=f".{class_name}-", dir=directory.parent) as temporary:
        content = Path(temporary) / "content"
        content.mkdir()
        _read(class_name, content, download=True)
        for archive in [*content.rglob("*.gz"), *content.rglob("*.tgz")]:
            archive.unlink()
        try:
            content.rename(directory)
        except OSError:
            if not directory.is_dir():  # else another process was faster, with the same content
                raise


def _read(class_name: str, root: Path, *, download: bool = False) -> tuple[ImageSet, ImageSet]:
    try:
        from torchvision import datasets

        reader = getattr(datasets, class_name)
        splits = (
            [{"split": "train"}, {"split": "test"}]
            if class_name == "SVHN"
            else [{"train": True}, {"train": False}]
        )
        train, test = (reader(str(root), download=download, **split) for split in splits)
    except ImportError as error:  # torchvision reads SVHN's MATLAB files with SciPy
        raise DataError(
            f"{class_name} needs a package that is missing ({error}): {install('svhn')}"
        ) from error
    return _image_set(train), _image_set(test)


def _image_set(dataset) -> ImageSet:
    images = np.asarray(dataset.data)
    # SVHN alone says "labels".
    labels = dataset.labels if hasattr(dataset, "labels") else dataset.targets
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[-1] == 3:
        images = images.transpose(0, 3, 1, 2)
    return ImageSet(np.ascontiguousarray(images), np.asarray(labels, np.int64))
