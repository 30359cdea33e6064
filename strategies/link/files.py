"""Files of a run that a device may lack, sent over the mail router to who asks for them.

They go in pieces (`pieces`). A device takes what has the hash that its code names, keeps it, and
never asks again.
"""

import hashlib
import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

from strategies.errors import EdgeFlError
from strategies.link.carrier import Carrier
from strategies.link.pieces import Pieces

_PATIENCE_SECONDS = 300.0  # without any piece


class Files:
    """What devices may ask for. find: where the file of a name is, None for one that nobody is to
    have."""

    def __init__(self, find: Callable[[str], Path | None]) -> None:
        self._find = find
        self._compressed = lru_cache(maxsize=None)(_compressed)  # of files that there are: a few

    def content(self, name: str) -> bytes:
        """The file of that name, compressed; b"" where there is none."""
        path = self._find(name)
        return self._compressed(path) if path is not None else b""


def _compressed(path: Path) -> bytes:
    return zlib.compress(path.read_bytes())


def fetch(
    connection: Carrier,
    run: str,
    device: str,
    lacking: Mapping[str, tuple[Path, str]],
) -> None:
    """Get files from the server. lacking: by name, where a file is to be kept, and its SHA-256.

    Raises EdgeFlError when they do not come, and for what is not what was asked for.
    """
    pieces = Pieces(connection, run, device)
    try:
        for name, (path, digest) in lacking.items():
            content = _received(pieces, name)
            if hashlib.sha256(content).hexdigest() != digest:
                raise EdgeFlError(f"the server has sent another {name} than the one of this code")
            _keep(path, content)
    finally:
        pieces.close()


def _received(pieces: Pieces, name: str) -> bytes:
    found = pieces.get(name, lambda silent: silent < _PATIENCE_SECONDS)
    if found is None:
        raise EdgeFlError(
            f"{name} does not come from the server: nothing for {_PATIENCE_SECONDS:g} s"
        )
    if not found:
        raise EdgeFlError(f"the server has no {name}")
    try:
        return zlib.decompress(found)
    except zlib.error as error:
        raise EdgeFlError(f"what came of {name} is damaged: {error}") from error


def _keep(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(path.name + ".draft")
        draft.write_bytes(content)
        draft.replace(path)
    except OSError as error:
        raise EdgeFlError(f"{path} cannot be written: {error.strerror}") from error
