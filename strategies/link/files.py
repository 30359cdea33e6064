"""Files of a run that a device may lack, sent over the mail router to who asks for them.

A device asks for a file piece by piece, so what a cut link loses is one piece. It takes what has
the hash that its code names, keeps it, and never asks again.
"""

import contextlib
import hashlib
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from strategies.errors import EdgeFlError
from strategies.link import keys
from strategies.link.wire import WireError, decode, encode

PIECE = 1 << 17  # bytes, compressed
_LIMIT = PIECE + (1 << 16)
_ASK_SECONDS = 20.0  # until a piece that has not come is asked for again
_PATIENCE_SECONDS = 300.0  # without any
_MOST_A_SECOND = 20  # pieces to a device; whoever asks for more is not answered


class Carrier(Protocol):
    """What is needed of a `strategies.link.connection.Connection`."""

    def publish(self, key: str, payload: bytes, *, urgent: bool = False) -> bool: ...

    def subscribe(
        self, expression: str, callback: Callable[[str, bytes], object]
    ) -> Callable[[], None]: ...


class FileServer:
    """Answers the devices of `run`, for as long as it lives. find: where the file of a name is,
    None for one that nobody is to have. sent: bytes by device."""

    def __init__(self, connection: Carrier, run: str, find: Callable[[str], Path | None]) -> None:
        self._connection, self._run, self._find = connection, run, find
        self._content = lru_cache(maxsize=None)(_compressed)  # of files that there are: a few
        self._answered: dict[str, list[float]] = {}
        self.sent: dict[str, int] = {}
        connection.subscribe(keys.want(run, "*"), self._answer)

    def _answer(self, key: str, payload: bytes) -> None:
        device, now = key.rsplit("/", 1)[1], time.monotonic()
        recent = [t for t in self._answered.get(device, ()) if now - t < 1.0]
        if len(recent) >= _MOST_A_SECOND:
            return
        self._answered[device] = [*recent, now]
        with contextlib.suppress(WireError):
            header, _ = decode(payload, kind="want", limit=_LIMIT)
            name, begin = header.get("file"), header.get("begin")
            if type(name) is not str or type(begin) is not int or not 0 <= begin < 1 << 40:
                return
            path = self._find(name[:100])
            content = self._content(path) if path is not None else b""
            piece = np.frombuffer(content[begin : begin + PIECE], np.uint8)
            told = {"file": name, "begin": begin, "size": len(content)}
            answer = encode("piece", told, {"piece": piece})
            if self._connection.publish(keys.piece(self._run, device), answer):
                self.sent[device] = self.sent.get(device, 0) + len(answer)


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
    inbox = _Inbox()
    end = connection.subscribe(keys.piece(run, device), inbox.take)
    try:
        for name, (path, digest) in lacking.items():
            content = _received(connection, keys.want(run, device), inbox, name)
            if hashlib.sha256(content).hexdigest() != digest:
                raise EdgeFlError(f"the server has sent another {name} than the one of this code")
            _keep(path, content)
    finally:
        end()


class _Inbox:
    """The newest piece that has come."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._piece: tuple[dict[str, Any], bytes] | None = None

    def take(self, _key: str, payload: bytes) -> None:
        with contextlib.suppress(WireError, KeyError):
            header, arrays = decode(payload, kind="piece", limit=_LIMIT)
            with self._changed:
                self._piece = header, arrays["piece"].tobytes()
                self._changed.notify()

    def wait(self, name: str, begin: int, seconds: float) -> tuple[int, bytes] | None:
        """(length of the whole, the piece of file `name` from `begin` on); None if it does not come
        in so many seconds."""

        def there() -> bool:
            head = self._piece[0] if self._piece else {}
            return (head.get("file"), head.get("begin")) == (name, begin)

        with self._changed:
            if not self._changed.wait_for(there, seconds) or self._piece is None:
                return None
            (head, piece), self._piece = self._piece, None
        return int(head["size"]), piece


def _received(connection: Carrier, key: str, inbox: _Inbox, name: str) -> bytes:
    found, size, heard = b"", None, time.monotonic()
    while size is None or len(found) < size:
        if time.monotonic() - heard > _PATIENCE_SECONDS:
            raise EdgeFlError(f"{name} does not come from the server: {len(found)} bytes until now")
        connection.publish(key, encode("want", {"file": name, "begin": len(found)}, {}))
        answer = inbox.wait(name, len(found), _ASK_SECONDS)
        if answer is None:
            continue
        size, piece = answer
        if not piece:
            raise EdgeFlError(f"the server has no {name}")
        found, heard = found + piece, time.monotonic()
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
