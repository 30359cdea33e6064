"""Where a host keeps what its nodes are, from one message to the next.

One file per node and window: <root>/<window>/node-0003.safetensors is node 3 at the end of that
window. <root>/parked-0 and parked-1 have, in turn, those of a host that had to stop in the middle.
On a device the <root> of every run is beside those of others.
"""

import contextlib
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from strategies.checkpoint import atomic_save, load_tensors
from strategies.errors import RunDirectoryError

NODES = "nodes"  # the directory of a run that is the <root>
PARKED = "parked"


class NodeStore:
    """The files of the nodes of one run under `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def save(
        self,
        place: int | str,
        node: int,
        arrays: dict[str, np.ndarray],
        metadata: dict[str, Any],
        *,
        durable: bool,
    ) -> None:
        """Keep a node as it is at the end of window `place`, or as it is parked. RunDirectoryError
        when the disk refuses."""
        path = self.path(place, node)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_save(path, arrays, metadata, durable=durable)

    def load(self, place: int | str, node: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """What was saved. RunDirectoryError if it is missing or damaged."""
        return load_tensors(self.path(place, node))

    def newest(
        self, most: int, node: int, *, least: int = 0
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """What was saved last of a node, at the end of one of the windows `least` to `most`, and
        can be read."""
        found = self.root.iterdir() if self.root.is_dir() else ()
        windows = [int(place.name) for place in found if place.name.isdigit()]
        for window in sorted((w for w in windows if least <= w <= most), reverse=True):
            with contextlib.suppress(RunDirectoryError):
                return self.load(window, node)
        return None

    def path(self, place: int | str, node: int) -> Path:
        name = place if isinstance(place, str) else f"{place:06d}"
        return self.root / name / f"node-{node:04d}.safetensors"

    def forget_other_runs(self, seconds: float) -> None:
        """Remove what is beside `root` of runs of which nothing was kept for so long."""
        for run in self.root.parent.iterdir() if self.root.parent.is_dir() else ():
            with contextlib.suppress(OSError):
                if run != self.root and time.time() - run.stat().st_mtime > seconds:
                    shutil.rmtree(run, ignore_errors=True)

    def prune(self, before: int) -> None:
        """Forget the nodes as they were at the end of windows before that one."""
        for directory in self.root.iterdir() if self.root.is_dir() else ():
            if directory.name.isdigit() and int(directory.name) < before:
                shutil.rmtree(directory, ignore_errors=True)
