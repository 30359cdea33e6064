"""A user's own images: a device's shard, or a whole data set for a simulation."""

import zipfile
from pathlib import Path

import numpy as np

from fl_app.data.images import Dataset, ImageSet, Spec, image_set
from fl_app.errors import DataError

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}


def load_shard(data_path: str | Path, spec: Spec) -> ImageSet:
    """Load a device's own training images and check that they fit the run's data set.

    Args:
        data_path: absolute path of an .npz with ``images`` and ``labels`` (or ``x_train`` and
            ``y_train``), or of a folder with one subfolder per class, named by the class's name or
            number.
        spec: what the run expects; nothing is resized or rescaled to fit it.

    Raises:
        DataError: the path, an array or an image is missing, damaged or does not fit.
    """
    path = existing_path(data_path)
    if path.is_dir():
        return _folder(path, spec)
    with _Archive(path) as archive:
        names = ("images", "labels") if "images" in archive.names else ("x_train", "y_train")
        images, labels = (archive.array(name) for name in names)
    return image_set(images, labels, spec, str(path))


def load_files(data_path: str | Path) -> Dataset:
    """Load a whole data set for a simulation; its size, classes, mean and std come from itself.

    Args:
        data_path: absolute path of an .npz with ``x_train, y_train, x_test, y_test`` and optionally
            ``classes`` (names); or of a folder with ``train/<class>/*`` and ``test/<class>/*``.
            Images are not mirrored in training: nobody says that they may be.

    Raises:
        DataError: the path, an array or an image is missing, damaged or does not fit the others.
    """
    path = existing_path(data_path)
    train, test, names = _split_folder(path) if path.is_dir() else _split_archive(path)
    per_channel = np.stack(
        [
            np.bincount(train.images[:, c].ravel(), minlength=256)
            for c in range(train.images.shape[1])
        ]
    )
    # From the histogram of the 256 pixel values: exact, without a float copy of the images.
    weight, value = per_channel / per_channel.sum(1, keepdims=True), np.arange(256) / 255
    mean = weight @ value
    std = np.sqrt((weight * (value - mean[:, None]) ** 2).sum(1))
    if not std.all():
        raise DataError(f"{path}: all training images have one colour in some channel")
    return Dataset(
        "files", train, test, names, tuple(mean.tolist()), tuple(std.tolist()), flip=False
    )


def existing_path(data_path: str | Path) -> Path:
    """Return `data_path` as an absolute path that exists, or raise DataError."""
    path = Path(data_path).expanduser()
    if not path.is_absolute():
        raise DataError(
            f"data-path={str(data_path)!r} is relative, but a run's processes have other working "
            f"directories; give an absolute path"
        )
    if not path.exists():
        raise DataError(f"data-path={str(data_path)!r} does not exist on this machine")
    return path


class _Archive:
    """An .npz file of which nothing is unpickled and every failure is a DataError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = np.load(path, allow_pickle=False)
            self.names: list[str] = list(self._file.files)
        except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} is neither a folder nor a readable .npz file") from error

    def __enter__(self) -> "_Archive":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def array(self, name: str) -> np.ndarray:
        if name not in self.names:
            held = ", ".join(sorted(self.names)) or "nothing"
            raise DataError(f"{self._path} has no array {name!r}; it holds: {held}")
        try:
            return self._file[name]
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{self._path}: array {name!r} cannot be read ({error})") from error


def _split_archive(path: Path) -> tuple[ImageSet, ImageSet, tuple[str, ...]]:
    with _Archive(path) as archive:
        x_train, y_train, x_test, y_test = (
            archive.array(name) for name in ("x_train", "y_train", "x_test", "y_test")
        )
        names = tuple(map(str, archive.array("classes"))) if "classes" in archive.names else None
    if names is None:
        if not np.issubdtype(y_train.dtype, np.integer) or not y_train.size:
            raise DataError(f"{path}: y_train must hold class numbers, at least one")
        names = tuple(map(str, range(int(y_train.max()) + 1)))
    spec = _spec(_channels_and_size(x_train, path), names, path)
    return (
        image_set(x_train, y_train, spec, f"{path}, x_train"),
        image_set(x_test, y_test, spec, f"{path}, x_test"),
        names,
    )


def _channels_and_size(images: np.ndarray, path: Path) -> tuple[int, int, int]:
    shape = images.shape[1:]
    if len(shape) == 2:
        return 1, *shape
    if len(shape) == 3 and shape[0] in (1, 3):
        return shape
    if len(shape) == 3 and shape[2] in (1, 3):
        return shape[2], shape[0], shape[1]
    raise DataError(
        f"{path}: x_train has shape {images.shape}; "
        f"give (n, h, w), (n, c, h, w) or (n, h, w, c) with 1 or 3 channels"
    )


def _split_folder(path: Path) -> tuple[ImageSet, ImageSet, tuple[str, ...]]:
    for part in ("train", "test"):
        if not (path / part).is_dir():
            raise DataError(f"{path} has no folder {part!r}; give train/<class>/ and test/<class>/")
    names = tuple(folder.name for folder in _subfolders(path / "train"))
    first = next((file for name in names for file in _files(path / "train" / name)), None)
    if first is None:
        raise DataError(f"{path / 'train'}: no image in any class folder ({_known_suffixes()})")
    image = _pixels(first, None)
    spec = _spec((image.shape[2], image.shape[0], image.shape[1]), names, path)
    return _folder(path / "train", spec), _folder(path / "test", spec), names


def _spec(shape: tuple[int, int, int], names: tuple[str, ...], where: Path) -> Spec:
    if len(names) < 2:
        raise DataError(f"{where}: there must be at least 2 classes, not {len(names)}")
    c, h, w = shape
    return Spec(c, h, w, names, mean=(0.0,) * c, std=(1.0,) * c, flip=False)


def _folder(path: Path, spec: Spec) -> ImageSet:
    """Read ``<class>/*``; `path` holds only class folders, named by class name or number."""
    numbers = {str(i): i for i in range(spec.classes)}
    numbers |= {name: i for i, name in enumerate(spec.class_names)}
    images, labels = [], []
    for folder in _subfolders(path):
        if folder.name not in numbers:
            raise DataError(
                f"{folder} is not named after a class; choose one of: "
                f"{', '.join(spec.class_names)} (or their numbers from 0)"
            )
        for file in _files(folder):
            pixels = _pixels(file, spec.channels)
            if pixels.shape[:2] != (spec.height, spec.width):
                raise DataError(
                    f"{file} has {pixels.shape[0]} x {pixels.shape[1]} pixels (height x width); "
                    f"this data set has {spec.height} x {spec.width}"
                )
            images.append(pixels)
            labels.append(numbers[folder.name])
    if not images:
        raise DataError(f"{path}: no image in any class folder ({_known_suffixes()})")
    return image_set(np.stack(images), np.array(labels), spec, str(path))


def _pixels(file: Path, channels: int | None) -> np.ndarray:
    """Decode to uint8 (h, w, channels); None = 1 for a grey image, else 3."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):
                raise DataError(f"{file} has pixels of mode {image.mode}; give 8 bits per channel")
            if channels is None:
                channels = 1 if image.mode in ("1", "L", "LA") else 3
            pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{file} is not a readable image ({error})") from error
    return pixels.reshape(*pixels.shape[:2], channels)


def _subfolders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)


def _known_suffixes() -> str:
    return f"files that end in {', '.join(sorted(SUFFIXES))}"
