"""A link with little room."""

import contextlib
import socket
import time

from tests.deployed import Cable


class Narrow(Cable):
    """Lets so many bytes a second through, to the device alone."""

    def __init__(self, target: int, rate: float) -> None:
        self._rate = rate
        super().__init__(target)

    def _carry(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        free = time.monotonic()
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 13):
                if way == "down":
                    free = max(free, time.monotonic()) + len(data) / self._rate
                    time.sleep(max(0.0, free - time.monotonic()))
                self.sent[way] += len(data)
                sink.sendall(data)
