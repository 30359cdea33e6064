"""The data sets a run can name."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fl_app.data import embedded
from fl_app.data.class_names import CIFAR10, CIFAR100, FASHION
from fl_app.data.foreign import reading
from fl_app.data.images import Dataset, ImageSet, Spec
from fl_app.data.own import existing_path, load_files
from fl_app.data.torchvision_sets import torchvision_reader
from strategies.errors import DataError

FILES = "files"  # the name of a user's own data set, of which nothing is known in advance


@dataclass(frozen=True)
class NamedSpec(Spec):
    """A `Spec` with the function that reads the data: data_root -> training set, test set."""

    read: Callable[[str], tuple[ImageSet, ImageSet]]


_DIGITS = tuple("0123456789")
_CIFAR10_SCALE = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
_CIFAR100_SCALE = (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)
_SVHN_SCALE = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)

# Channels, height, width, class names; mean and std of the training set; may be mirrored.
_FASHION = (1, 28, 28, tuple(FASHION.split(", ")), (0.2860,), (0.3530,), True)
_MNIST = (1, 28, 28, _DIGITS, (0.1307,), (0.3081,), False)
_CIFAR10 = (3, 32, 32, tuple(CIFAR10.split()), *_CIFAR10_SCALE, True)
_CIFAR100 = (3, 32, 32, tuple(CIFAR100.split()), *_CIFAR100_SCALE, True)
_SVHN = (3, 32, 32, _DIGITS, *_SVHN_SCALE, False)

DATASETS: dict[str, NamedSpec] = {
    "embedded": NamedSpec(*_FASHION, embedded.read),
    "fashion-mnist": NamedSpec(*_FASHION, torchvision_reader("FashionMNIST")),
    "mnist": NamedSpec(*_MNIST, torchvision_reader("MNIST")),
    "cifar10": NamedSpec(*_CIFAR10, torchvision_reader("CIFAR10")),
    "cifar100": NamedSpec(*_CIFAR100, torchvision_reader("CIFAR100")),
    "svhn": NamedSpec(*_SVHN, torchvision_reader("SVHN")),
}


def load_dataset(name: str, data_root: str = "", data_path: str = "") -> Dataset:
    """Load a data set; a second call in the same process returns the same object.

    Args:
        name: a key of `DATASETS`, or "files" for the user's own data at `data_path`.
        data_root: absolute directory in torchvision's layout; "" = the cache directory
            ($EDGE_FL_HOME/data or ~/.edge-fl/data), into which what is missing is downloaded.
        data_path: for "files", absolute path of an .npz or an image folder (see `load_files`).

    Raises:
        DataError: unknown name, or data that are missing or damaged, with the ways out.
    """
    if name == FILES:
        if not data_path:
            raise DataError("dataset='files' needs data-path=PATH: an .npz file or an image folder")
        return _load_files(str(existing_path(data_path)))
    _check_name(name)
    if data_root:
        with reading(f"data-root={data_root!r}"):
            data_root = str(Path(data_root).expanduser())
        if not Path(data_root).is_absolute():
            raise DataError(
                f"data-root={data_root!r} is relative, but a run's processes have other working "
                f"directories; give an absolute path"
            )
    return _load_named(name, data_root)


def spec_of(name: str, data_path: str = "") -> Spec:
    """Return the data set's `Spec`; only "files" is loaded for it. Raises DataError."""
    if name == FILES:
        return load_dataset(name, data_path=data_path).spec
    _check_name(name)
    return DATASETS[name]


def _check_name(name: str) -> None:
    if name not in DATASETS:
        choices = ", ".join(sorted([*DATASETS, FILES]))
        raise DataError(f"dataset={name!r} is unknown; choose one of: {choices}")


# A host trains several participants on the same data set; two fit run and comparison.
@lru_cache(maxsize=2)
def _load_named(name: str, data_root: str) -> Dataset:
    spec = DATASETS[name]
    train, test = spec.read(data_root)
    return Dataset(name, train, test, spec.class_names, spec.mean, spec.std, spec.flip)


@lru_cache(maxsize=2)
def _load_files(data_path: str) -> Dataset:
    return load_files(data_path)
