"""Archives and folders of images as a user would give them, small."""

from pathlib import Path

import numpy as np
from PIL import Image

from fl_app.assemble import dataset_of
from fl_app.config import resolve
from fl_app.data import Dataset, Spec

RNG = np.random.default_rng(5)
GREY = Spec(1, 4, 6, ("cat", "dog", "emu"), (0.5,), (0.25,), flip=False)
COLOUR = Spec(3, 4, 6, ("cat", "dog", "emu"), (0.5,) * 3, (0.25,) * 3, flip=False)


def pixels(spec: Spec, n: int) -> np.ndarray:
    return RNG.integers(0, 256, (n, spec.channels, spec.height, spec.width), np.uint8)


def whole(**arrays: np.ndarray) -> dict[str, np.ndarray]:
    """Two grey images of two classes in each set, and other arrays."""
    two = np.array([0, 1])
    x = {"x_train": pixels(GREY, 2), "x_test": pixels(GREY, 2)}
    return {**x, "y_train": two, "y_test": two, **arrays}


def write_folder(folder: Path, images: np.ndarray, names: list[str]) -> None:
    for i, (image, name) in enumerate(zip(images, names, strict=True)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        array = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        Image.fromarray(array).save(folder / name / f"{i:03}.png")


def both_sets(folder: Path, names: list[str], spec: Spec = GREY) -> np.ndarray:
    """A training and a test set with the same images, one of each class."""
    images = pixels(spec, len(names))
    for part in ("train", "test"):
        write_folder(folder / part, images, names)
    return images


def use(path: Path, **values: str | bool) -> Dataset:
    """The data set as a run has it."""
    keys = {key.replace("_", "-"): value for key, value in values.items()}
    return dataset_of(resolve({"dataset": "files", "data-path": str(path), **keys}))
