"""What is in a figure, read back from it: axes without any data would have nothing of this."""

import io
from collections import defaultdict
from typing import Any

import numpy as np
from PIL import Image

from fl_app.record.figures import DOTS, to_png


def curves(axes: Any) -> dict[str, np.ndarray]:
    """The lines that have a label, (n, 2) each."""
    return {
        line.get_label(): np.asarray(line.get_xydata(), float)
        for line in axes.lines
        if not str(line.get_label()).startswith("_")
    }


def marks(axes: Any) -> dict[str, int]:
    """By label, how many points are scattered."""
    return {c.get_label(): len(c.get_offsets()) for c in axes.collections if is_scattered(c)}


def is_scattered(collection: Any) -> bool:
    """Whether it is of `scatter`."""
    return type(collection).__name__ == "PathCollection"


def bars(axes: Any) -> dict[tuple[str, int], float]:
    """By label and lane, how long all bars of `broken_barh` are together."""
    found: dict[tuple[str, int], float] = defaultdict(float)
    for collection in axes.collections:
        for path in collection.get_paths() if not is_scattered(collection) else ():
            box = path.get_extents()
            found[str(collection.get_label()), round((box.y0 + box.y1) / 2)] += box.width
    return dict(found)


def pixels(figure: Any) -> tuple[int, int]:
    """(width, height) of the picture as it is saved."""
    return Image.open(io.BytesIO(to_png(figure, DOTS))).size
