"""Write the app's embedded data set from the original Fashion-MNIST files.

    python -m experiments.embed_fashion_mnist /usr/share/datasets/fashion-mnist

The directory holds the four ``*-ubyte.gz`` files as published (Xiao et al. 2017; on Debian and
Ubuntu the package dataset-fashion-mnist). Taken are the first 600 training and the first 100 test
images of every class, passing over any image that was taken before. The same Pillow writes the same
bytes; every Pillow writes the same pixels.
"""

import argparse
import base64
import gzip
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from fl_app.data import DATASETS
from fl_app.data.embedded import DIRECTORY, to_sheet

PER_CLASS = {"train": 600, "test": 100}
FILES = {"train": "train", "test": "t10k"}


def read_originals(directory: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the images (n, 28, 28) and labels (n,) of "train" or "test", uint8."""
    images = gzip.decompress((directory / f"{FILES[part]}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((directory / f"{FILES[part]}-labels-idx1-ubyte.gz").read_bytes())
    return (
        np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28),
        np.frombuffer(labels, np.uint8, offset=8),
    )


def select(
    images: np.ndarray, labels: np.ndarray, per_class: int, seen: set[bytes]
) -> dict[int, np.ndarray]:
    """Return the first `per_class` images of each class that are not in `seen`; add them to it."""
    chosen: dict[int, list[np.ndarray]] = {int(label): [] for label in np.unique(labels)}
    for image, label in zip(images, labels, strict=True):
        taken = chosen[int(label)]
        if len(taken) < per_class and image.tobytes() not in seen:
            seen.add(image.tobytes())
            taken.append(image)
    return {label: np.stack(taken) for label, taken in chosen.items()}


def encode(label: int, name: str, images: np.ndarray) -> str:
    """Return the JSON line of one class."""
    png = io.BytesIO()
    Image.fromarray(to_sheet(images)).save(png, "PNG", optimize=True)
    text = base64.b64encode(png.getvalue()).decode()
    return json.dumps({"label": label, "name": name, "count": len(images), "png": text})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("originals", type=Path, help="directory of the four *-ubyte.gz files")
    parser.add_argument("--output", type=Path, default=DIRECTORY)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    names = DATASETS["embedded"].class_names
    seen: set[bytes] = set()
    for part, per_class in PER_CLASS.items():
        chosen = select(*read_originals(arguments.originals, part), per_class, seen)
        lines = [encode(label, names[label], chosen[label]) for label in sorted(chosen)]
        path = arguments.output / f"fashion-mnist-{part}.jsonl"
        path.write_text("".join(f"{line}\n" for line in lines), encoding="ascii")
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
