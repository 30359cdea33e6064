"""How versions of the small model reach the distillation server: files that appear all at once.

A version is written aside and renamed into place, so a reader sees it whole or not at all, a writer
never waits for a reader, and a killed process on either side leaves nothing locked.
"""

import os
from pathlib import Path

from strategies.averaging import Vectors
from strategies.checkpoint import atomic_save, load_tensors
from strategies.errors import RunDirectoryError


class LatestSlot:
    """A mailbox of capacity one: `put` overwrites, `take` returns the newest or None, at once."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "latest.safetensors"
        self._seen: tuple[int, int] | None = None

    def put(self, version: int, vectors: Vectors) -> None:
        atomic_save(self._path, vectors, {"version": version}, durable=False)

    def take(self) -> tuple[int, Vectors] | None:
        """What was put since the last call, if anything. Raises RunDirectoryError, once, for a file
        that is damaged."""
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            return None
        signature = (status.st_ino, status.st_mtime_ns)
        if signature == self._seen:
            return None
        self._seen = signature
        vectors, metadata = load_tensors(self._path)
        return metadata["version"], vectors

    def forget(self, after: int) -> None:
        """Drop what was put if it is newer than version `after`, or damaged."""
        try:
            if load_tensors(self._path)[1]["version"] <= after:
                return
        except (RunDirectoryError, KeyError):
            pass
        self._path.unlink(missing_ok=True)


class VersionStore:
    """Every version by its number, for a replay: nothing is overwritten, and what later work has
    no more use for is dropped by `forget`. A run that is resumed does not write them anew, so they
    outlive a power cut."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def file(self, version: int) -> Path:
        """Where version `version` is, or will be."""
        return self._directory / f"version-{version:06d}.safetensors"

    def put(self, version: int, vectors: Vectors) -> None:
        atomic_save(self.file(version), vectors, {"version": version})

    def take(self, version: int) -> Vectors | None:
        """Version `version`, or None when it is not there (yet)."""
        path = self.file(version)
        return load_tensors(path)[0] if path.exists() else None

    def forget(self, before: int) -> None:
        """Drop all versions below `before`."""
        for path in self._directory.glob("version-*.safetensors"):
            if path < self.file(before):
                path.unlink(missing_ok=True)


def published_file(directory: Path, round_: int) -> Path:
    """Where the distillation server leaves its state for round `round_`."""
    return directory / f"published-{round_:06d}.safetensors"


def published_files(directory: Path) -> list[Path]:
    """All that were left, oldest first."""
    return sorted(directory.glob("published-*.safetensors"))


def number_of(path: Path) -> int:
    """The round of a file of `published_files`, the version of one of `forward_files`."""
    return int(path.stem.split("-")[1])


def forward_file(directory: Path, version: int) -> Path:
    """Where the distillation server leaves what forward distillation made of `version`."""
    return directory / f"forward-{version:06d}.safetensors"


def forward_files(directory: Path) -> list[Path]:
    """All that were left, oldest first."""
    return sorted(directory.glob("forward-*.safetensors"))
