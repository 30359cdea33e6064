"""A link with little room, a delay that varies, and connections that break, on one machine.

A network namespace is the device's place, another one the far end of its link, where the server's
address is. The link between them lets through RATE (a token bucket); from its far end a proxy takes
every connection to the server, late, and breaks some.
"""

import asyncio
import contextlib
import ctypes
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

from tests.edge.machines import SERVER_ADDRESS, attempt, run

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
LINK = "slow0"  # the name of both of its ends
_PIECE = 16384
_BREAK = struct.pack("ii", 1, 0)  # SO_LINGER: a reset instead of an end


@dataclass
class Traffic:
    """Of one port so far, in bytes as the device sees them."""

    up: int = 0
    down: int = 0
    connections: int = 0
    resets: int = 0


@dataclass(frozen=True)
class Weather:
    """delay and jitter: seconds one way; resets: the probability that a piece of up to 16 KiB is
    the last of its connection."""

    delay: float
    jitter: float
    resets: float


@contextlib.contextmanager
def slow_link(
    ports: Sequence[int], rate: str, weather: Weather
) -> Iterator[tuple[str, dict[int, Traffic]]]:
    """(the namespace of the device, traffic by port) while the link lasts."""
    near, far = "edge-fl-near", "edge-fl-far"
    with contextlib.ExitStack() as stack:
        for name in (near, far):
            run("ip", "netns", "add", name)
            stack.callback(run, "ip", "netns", "delete", name)
        # Made where it is to be: a name of this machine's own could be taken.
        peer = ["peer", "name", LINK, "netns", far]
        run("ip", "-n", near, "link", "add", LINK, "type", "veth", *peer)
        for name, address in ((near, "10.99.0.9"), (far, SERVER_ADDRESS)):
            run("ip", "-n", name, "address", "add", f"{address}/24", "dev", LINK)
            for device in (LINK, "lo"):
                run("ip", "-n", name, "link", "set", device, "up")
            bucket = ["tbf", "rate", rate, "burst", "16kb", "latency", "400ms"]
            attempt("tc", "-n", name, "qdisc", "add", "dev", LINK, "root", *bucket)
        traffic = {port: Traffic() for port in ports}
        proxy = _Proxy(far, traffic, weather)
        stack.callback(proxy.close)
        yield near, traffic


class _Proxy:
    """Listens in a namespace, and connects to the server outside of it."""

    def __init__(self, name: str, traffic: dict[int, Traffic], weather: Weather) -> None:
        self._weather = weather
        self._traffic = traffic
        self._servers: list[asyncio.Server] = []
        self._loop = asyncio.new_event_loop()
        listening = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(name, listening), daemon=True)
        self._thread.start()
        assert listening.wait(10), "the proxy does not listen"

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _serve(self, name: str, listening: threading.Event) -> None:
        with _within(name):
            sockets = {port: socket.create_server(("", port)) for port in self._traffic}
        for port, each in sockets.items():
            server = asyncio.start_server(self._handler(port), sock=each)
            self._servers.append(self._loop.run_until_complete(server))
        listening.set()
        self._loop.run_forever()
        self._loop.run_until_complete(self._end())
        self._loop.close()

    async def _end(self) -> None:
        """Nothing is left to the garbage collector, which tells of what it finds at any time."""
        for each in self._servers:
            each.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _handler(self, port: int) -> Handler:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            traffic = self._traffic[port]
            traffic.connections += 1
            await asyncio.sleep(2 * self._weather.delay)  # the handshake's way there and back
            try:
                far_reader, far_writer = await asyncio.open_connection(SERVER_ADDRESS, port)
            except OSError:
                writer.close()
                return
            broken = asyncio.Event()
            ways = (
                asyncio.create_task(self._carry(reader, far_writer, traffic, "up", broken)),
                asyncio.create_task(self._carry(far_reader, writer, traffic, "down", broken)),
            )
            both = asyncio.gather(*ways, return_exceptions=True)
            breaking = asyncio.create_task(broken.wait())
            await asyncio.wait([both, breaking], return_when=asyncio.FIRST_COMPLETED)
            for end in (writer, far_writer):
                if broken.is_set():
                    end.get_extra_info("socket").setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, _BREAK
                    )
                end.close()
            for task in (*ways, breaking):
                task.cancel()

        return handle

    async def _carry(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        traffic: Traffic,
        way: str,
        broken: asyncio.Event,
    ) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(400)

        async def deliver() -> None:
            last = 0.0
            while True:
                due, piece = await queue.get()
                last = max(last, due)  # nothing overtakes
                await asyncio.sleep(last - time.monotonic())
                if not piece:
                    writer.write_eof()
                    return
                writer.write(piece)
                await writer.drain()

        delivery = asyncio.create_task(deliver())
        w = self._weather
        try:
            while True:
                piece = await reader.read(_PIECE)
                setattr(traffic, way, getattr(traffic, way) + len(piece))
                due = time.monotonic() + w.delay + random.uniform(-w.jitter, w.jitter)
                await queue.put((due, piece))
                if not piece:
                    break
                if random.random() < w.resets:
                    traffic.resets += 1
                    broken.set()
            await delivery
        finally:
            delivery.cancel()


@contextlib.contextmanager
def _within(name: str) -> Iterator[None]:
    """This thread, and no other, in a network namespace."""
    enter = ctypes.CDLL(None, use_errno=True).setns
    with open("/proc/thread-self/ns/net") as here, open(f"/run/netns/{name}") as there:
        assert enter(there.fileno(), 0) == 0, os.strerror(ctypes.get_errno())
        try:
            yield
        finally:
            assert enter(here.fileno(), 0) == 0, os.strerror(ctypes.get_errno())
