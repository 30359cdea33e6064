"""The data that travel inside the app: 6,000 + 1,000 images of Fashion-MNIST, which are read here,
and the files of the tasks of tables and of text.

Of the images one JSONL line per class:
``{"label": 0, "name": "T-shirt/top", "count": 600, "png": base64}``. The PNG is a
lossless grey sheet of the class's images, `COLUMNS` in a row. Flower transports only text formats
with an app, hence base64. experiments/embed_fashion_mnist.py writes the files.

A bundle for devices comes without them. Then they are looked for where the app is installed, as on
a server, and where a device keeps what it was sent.
"""

import base64
import contextlib
import hashlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fl_app.data.cache import cache_directory
from fl_app.data.images import ImageSet
from strategies.errors import DataError

# Beside this module: an installed app lives in a directory nobody knows in advance.
DIRECTORY = Path(__file__).parent / "embedded"
IMAGES = ("fashion-mnist-train.jsonl", "fashion-mnist-test.jsonl")
TEXT = "python-topics.jsonl"
# File name -> SHA-256.
FILES = {
    "fashion-mnist-train.jsonl": "a7c667832936d8e0fa264fee8d6e7ee6b43d37804db3e51e068ab755ccf7fd17",
    "fashion-mnist-test.jsonl": "31189b3e7ea1ccc04f324f07c5eaae512a3b8e21c4aa53482387618ddbb0f3c0",
    "breast-cancer.jsonl": "6b32608b7a94ed57eef8a26d0cd9a6600420f1f9da3c4b64e4ca78260440427a",
    "diabetes.jsonl": "7731cd55021dead395309431de9d1aac6752f29d3139dff6ebb53c605234fb70",
    "python-topics.jsonl": "62d9b686f408772db5e1b0e3fcb6d4d06bafc23fc48cc20c6497b9de010aedab",
}
COLUMNS = 25


def to_sheet(images: np.ndarray) -> np.ndarray:
    """Tile images (n, h, w) into one (n / COLUMNS * h, COLUMNS * w)."""
    n, h, w = images.shape
    tiles = images.reshape(n // COLUMNS, COLUMNS, h, w)
    return tiles.transpose(0, 2, 1, 3).reshape(n // COLUMNS * h, COLUMNS * w)


def from_sheet(sheet: np.ndarray, count: int) -> np.ndarray:
    """Cut a sheet into its images (count, h, w): the inverse of `to_sheet`."""
    rows = count // COLUMNS
    h, w = sheet.shape[0] // rows, sheet.shape[1] // COLUMNS
    return sheet.reshape(rows, h, COLUMNS, w).transpose(0, 2, 1, 3).reshape(count, h, w)


def find(name: str) -> Path | None:
    """Where the file of `FILES` called `name` is on this machine; None if it is not."""
    if (DIRECTORY / name).exists():
        return DIRECTORY / name
    for path in _elsewhere(name):
        with contextlib.suppress(OSError):
            if hashlib.sha256(path.read_bytes()).hexdigest() == FILES[name]:
                return path
    return None


def found(name: str) -> Path:
    """The same. Raises DataError if it is not on this machine."""
    path = find(name)
    if path is None:
        raise DataError(
            f"{name} of the embedded data set is not on this machine: it came neither with the app "
            f"nor over the mail router; with sessions=off it comes with the app"
        )
    return path


def kept(name: str) -> Path:
    """Where a device keeps that file, once it has been sent it."""
    return cache_directory() / DIRECTORY.name / name


def _elsewhere(name: str) -> Iterator[Path]:
    yield kept(name)
    yield from (Path(each, "fl_app", "data", DIRECTORY.name, name) for each in sys.path if each)


def read(_data_root: str = "") -> tuple[ImageSet, ImageSet]:
    """Decode the training and the test set, each ordered by class.

    Raises:
        DataError: a file is missing or damaged.
    """
    return _read("train"), _read("test")


def _read(part: str) -> ImageSet:
    from PIL import Image

    name = f"fashion-mnist-{part}.jsonl"
    path = found(name)
    images, labels = [], []
    try:
        for line in path.read_text(encoding="ascii").splitlines():
            record = json.loads(line)
            with Image.open(io.BytesIO(base64.b64decode(record["png"]))) as png:
                images.append(from_sheet(np.asarray(png), record["count"]))
            labels.append(np.full(record["count"], record["label"], np.int64))
    except Exception as error:  # whatever a damaged line makes its decoders raise
        raise DataError(
            f"the embedded data set is damaged ({path}: {error}); install the app again"
        ) from error
    return ImageSet(np.concatenate(images)[:, None], np.concatenate(labels))
