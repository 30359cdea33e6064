"""Where a run's events and checkpoints go: a strategy knows no more of it than this."""

import contextlib
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np


class Recorder(Protocol):
    """What a run says of itself, and what it goes on from when it is resumed.

    path: a folder of the run's own, in which the processes beside it have their files. identity:
    no other run has it, not even one of the same name.
    """

    @property
    def path(self) -> Path: ...

    @property
    def identity(self) -> str: ...

    def emit(self, event: str, **fields: Any) -> None:
        """Record that something has happened."""

    def events(self) -> list[dict[str, Any]]:
        """What has been recorded, in order."""
        ...

    def save_checkpoint(
        self,
        name: str,
        tensors: Mapping[str, np.ndarray],
        metadata: Mapping[str, Any] | None = None,
    ) -> object:
        """Keep arrays, and what is told of them, in place of what has that name."""
        ...

    def has_checkpoint(self, name: str) -> bool: ...

    def load_checkpoint(self, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """What was saved: arrays and metadata."""
        ...


class Memory:
    """Records nothing that outlives it: events and checkpoints are kept in memory."""

    def __init__(self, path: Path) -> None:
        self.path, self.identity = path, secrets.token_hex(8)
        self._events: list[dict[str, Any]] = []
        self._checkpoints: dict[str, tuple[dict[str, np.ndarray], dict[str, Any]]] = {}

    def emit(self, event: str, **fields: Any) -> None:
        self._events.append({"event": event, **fields})

    def events(self) -> list[dict[str, Any]]:
        return list(self._events)

    def save_checkpoint(
        self,
        name: str,
        tensors: Mapping[str, np.ndarray],
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        copies = {key: np.array(value) for key, value in tensors.items()}
        self._checkpoints[name] = copies, dict(metadata or {})

    def has_checkpoint(self, name: str) -> bool:
        return name in self._checkpoints

    def load_checkpoint(self, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        tensors, metadata = self._checkpoints[name]
        return dict(tensors), dict(metadata)


@contextlib.contextmanager
def unrecorded() -> Iterator[Memory]:
    """A recorder for a run of which nothing is to be kept; its folder goes with the context."""
    with tempfile.TemporaryDirectory(prefix="edge-fl-") as place:
        yield Memory(Path(place).resolve())
