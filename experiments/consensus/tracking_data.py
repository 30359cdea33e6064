"""CIFAR-10 as the momentum tracking protocol cuts it up; no package is needed for it but NumPy.

    python -m experiments.consensus.tracking_data SOURCE TARGET

writes the original files of SOURCE (data_batch_1 ... and test_batch, the python version) into two
files of some 52 MB each, for a machine to which no large file can be brought.
"""

import argparse
import json
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from fl_app.data import ImageSet
from strategies.randomness import rng

TRAIN = 50_000
VALIDATION = 5_000
MEAN = STD = (0.5, 0.5, 0.5)
_BATCHES = (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch")
_PARTS = 2


@dataclass(frozen=True)
class Data:
    """Who has which images. nodes: all of one size."""

    nodes: tuple[ImageSet, ...]
    validation: ImageSet
    test: ImageSet


@cache
def classes_of(each: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """The classes of nodes 0 to 7, `each` of ten. Raises ValueError for what is not published."""
    known = json.loads(Path(__file__).with_name("tracking_classes.json").read_text())["classes"]
    try:
        return tuple(tuple(own) for own in known[str(each)][str(seed)])
    except KeyError:
        raise ValueError(
            f"there is no published split of {each} classes a node for seed {seed}; there are "
            f"{', '.join(known)} classes, each for seeds {', '.join(known[min(known)])}"
        ) from None


def split(train: ImageSet, test: ImageSet, each: int, seed: int) -> Data:
    """VALIDATION random images are put aside; of each class the rest is shuffled and dealt out
    evenly to the nodes that have it; then every node gives up random images until all have as many
    as the smallest."""
    order = rng(seed, "validation").permutation(len(train))
    held, rest = np.sort(order[:VALIDATION]), np.sort(order[VALIDATION:])
    owners = classes_of(each, seed)
    shares: list[list[np.ndarray]] = [[] for _ in owners]
    for number in range(10):
        images = rest[train.labels[rest] == number]
        nodes = [node for node, own in enumerate(owners) if number in own]
        shuffled = rng(seed, "class", number).permutation(images)
        for node, share in zip(nodes, np.array_split(shuffled, len(nodes)), strict=True):
            shares[node].append(share)
    parts = [np.concatenate(own) for own in shares]
    smallest = min(map(len, parts))
    parts = [rng(seed, "cut", node).permutation(part)[:smallest] for node, part in enumerate(parts)]
    return Data(tuple(_chosen(train, np.sort(part)) for part in parts), _chosen(train, held), test)


def _chosen(images: ImageSet, indices: np.ndarray) -> ImageSet:
    return ImageSet(images.images[indices], images.labels[indices])


def read(folder: Path) -> tuple[ImageSet, ImageSet]:
    """Training and test images of a folder with the original files, or with those of `write`.

    Raises FileNotFoundError if there are neither.
    """
    for place in (folder, folder / "cifar-10-batches-py"):
        if (place / _BATCHES[0]).exists():
            parts = [_original(place / name) for name in _BATCHES]
            break
    else:
        paths = [folder / _part(number) for number in range(_PARTS)]
        if missing := [path.name for path in paths if not path.exists()]:
            raise FileNotFoundError(
                f"{folder} has neither {_BATCHES[0]} ... nor {', '.join(missing)}"
            )
        parts = [_unpacked(path) for path in paths]
    images, labels = (np.concatenate(each) for each in zip(*parts, strict=True))
    return ImageSet(images[:TRAIN], labels[:TRAIN]), ImageSet(images[TRAIN:], labels[TRAIN:])


def _original(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with path.open("rb") as file:
        batch = pickle.load(file, encoding="bytes")
    return batch[b"data"].reshape(-1, 3, 32, 32), np.asarray(batch[b"labels"], dtype=np.int64)


def _part(number: int) -> str:
    return f"cifar10-{number}.npz"


def write(source: Path, target: Path) -> Iterator[Path]:
    """Write the images of `source` as differences, which take little more than half of the space:
    to green, and then to the pixels above and to the left, modulo 256."""
    train, test = read(source)
    images, labels = (
        np.concatenate(each) for each in ((train.images, test.images), (train.labels, test.labels))
    )
    images[:, 0] -= images[:, 1]
    images[:, 2] -= images[:, 1]
    for axis in (2, 3):
        images = np.diff(images, axis=axis, prepend=np.uint8(0))
    target.mkdir(parents=True, exist_ok=True)
    shares = zip(np.array_split(images, _PARTS), np.array_split(labels, _PARTS), strict=True)
    for number, (some, their) in enumerate(shares):
        path = target / _part(number)
        np.savez_compressed(path, differences=some, labels=their.astype(np.uint8))
        yield path


def _unpacked(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path, allow_pickle=False) as part:
        images, labels = part["differences"], part["labels"].astype(np.int64)
    for axis in (2, 3):
        images = np.cumsum(images, axis=axis, dtype=np.uint8)
    images[:, 0] += images[:, 1]
    images[:, 2] += images[:, 1]
    return images, labels


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m experiments.consensus.tracking_data")
    parser.add_argument("source", type=Path, help="CIFAR-10's original files")
    parser.add_argument("target", type=Path, help="a folder for the small ones")
    given = parser.parse_args()
    for written in write(given.source, given.target):
        print(written, f"{written.stat().st_size / 1e6:.1f} MB")
