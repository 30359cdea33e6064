"""What is long goes to a device in pieces, each of which the device asks for.

A router that sends one device a long message reads nothing from the server meanwhile: everybody
waits for the slowest link. So the server sends nothing long. It tells a device what there is, and
the device asks for piece after piece, a few at a time, as fast as its own link carries them. What a
cut link loses is these few.
"""

import contextlib
import queue
import time
from collections.abc import Callable

from strategies.link import keys
from strategies.link.carrier import Carrier
from strategies.link.flood import Flood
from strategies.link.wire import WireError, decode, encode, frame, unframe

PIECE = 1 << 17  # bytes
# Pieces that a device has asked for at a time. Half a megabyte fits into the buffers on the way,
# and keeps a link of 20 Mbit/s busy whose messages take 200 ms there and back.
AT_A_TIME = 4
_LIMIT = PIECE + (1 << 16)
_LONGEST = 1 << 30  # bytes of a whole
_ASK_SECONDS = 20.0  # without a piece, until those that have not come are asked for again
_LOOK_SECONDS = 0.5  # between two looks whether to go on
_MOST_A_SECOND = 2000  # pieces to a device; whoever asks for more is not answered
_PAUSE_SECONDS = 1 / 1000  # between two questions, so that no fast link is taken for a flood


class PieceServer:
    """Answers the devices of `run`, for as long as it lives.

    find: (device, name) -> the whole that is called so, b"" for one that the device is not to have.
    sent: bytes by device.
    """

    def __init__(self, connection: Carrier, run: str, find: Callable[[str, str], bytes]) -> None:
        self._connection, self._run, self._find = connection, run, find
        self._floods: dict[str, Flood] = {}  # by device
        self.sent: dict[str, int] = {}
        connection.subscribe(keys.want(run, "*"), self._answer)

    def _answer(self, key: str, payload: bytes) -> None:
        device = key.rsplit("/", 1)[1]
        if self._floods.setdefault(device, Flood()).exceeds(_MOST_A_SECOND):
            return
        with contextlib.suppress(WireError):
            header, _ = decode(payload, kind="want", limit=_LIMIT)
            name, begin = header.get("name"), header.get("begin")
            if type(name) is not str or type(begin) is not int or not 0 <= begin < _LONGEST:
                return
            whole = self._find(device, name[:100])
            told = {"name": name, "begin": begin, "size": len(whole)}
            answer = frame({"kind": "piece", "header": told}, whole[begin : begin + PIECE])
            # As many wait to be sent as may be asked for, whoever asks for more.
            slot = str(begin // PIECE % AT_A_TIME)
            if self._connection.publish(keys.piece(self._run, device), answer, kind=slot):
                self.sent[device] = self.sent.get(device, 0) + len(answer)


class Pieces:
    """The device's end: gets wholes from the server."""

    def __init__(self, connection: Carrier, run: str, device: str) -> None:
        self._connection, self._want = connection, keys.want(run, device)
        self._come: queue.SimpleQueue[tuple[str, int, int, bytes]] = queue.SimpleQueue()
        self.close = connection.subscribe(keys.piece(run, device), self._take)

    def get(self, name: str, going_on: Callable[[float], bool]) -> bytes | None:
        """The whole that is called so; b"" if the server has none. going_on: told the seconds
        without a piece, whether to go on waiting; if not, None is returned."""
        found: dict[int, bytes] = {}
        asked: dict[int, float] = {}
        size, heard = None, time.monotonic()
        while size is None or len(found) < len(range(0, size, PIECE)):
            begins = [0] if size is None else [b for b in range(0, size, PIECE) if b not in found]
            for begin in begins[:AT_A_TIME]:
                now = time.monotonic()
                if begin not in asked or now - max(heard, asked[begin]) > _ASK_SECONDS:
                    self._ask(name, begin)
                    asked[begin] = now
            if (piece := self._next(name)) is not None:
                begin, size, found[begin] = piece
                heard = time.monotonic()
            elif not going_on(time.monotonic() - heard):
                return None
        return b"".join(found[begin] for begin in sorted(found))

    def _ask(self, name: str, begin: int) -> None:
        time.sleep(_PAUSE_SECONDS)
        # Before all else, for the device waits for what it asks for. A newer question must not take
        # the place of an older one.
        question = encode("want", {"name": name, "begin": begin}, {})
        self._connection.publish(self._want, question, urgent=True, kind=str(begin))

    def _next(self, name: str) -> tuple[int, int, bytes] | None:
        """(where it begins, length of the whole, the piece) of the next one of that whole."""
        with contextlib.suppress(queue.Empty):
            while True:
                of, begin, size, piece = self._come.get(timeout=_LOOK_SECONDS)
                if of == name:
                    return begin, size, piece
        return None

    def _take(self, _key: str, payload: bytes) -> None:
        with contextlib.suppress(WireError, KeyError):
            head, piece = unframe(payload, kind="piece", limit=_LIMIT)
            told = head["header"]
            self._come.put((str(told["name"]), int(told["begin"]), int(told["size"]), piece))
