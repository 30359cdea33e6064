"""The carrier of neighbours' mail in a simulation with several hosts: their broker is a Ray actor.

Ray starts the broker, ends it and tells the hosts where it is. The mail itself goes over sockets,
on one machine or between those of a cluster: carried by Ray's calls and object store, it took about
twice as much of the processor time of Ray's own processes, which they take from training.
"""

import asyncio
import contextlib
import json
import secrets
import socket
import struct
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from fl_app.errors import EdgeFlError
from fl_app.memory import keep_freed_memory
from strategies.consensus.exchange import Broker, Parcel
from strategies.consensus.host import Mail
from strategies.consensus.topology import Edge
from strategies.link.wire import decode, encode, split

_MAIL = "mail"
_SECRET_BYTES = 32
_HELLO_LIMIT = 256  # bytes of what somebody sends who need not be one of the hosts
_HEAD = struct.Struct("!QQ")  # length, number
_CONNECT_SECONDS = _GOODBYE_SECONDS = 20.0
_NO_LIMIT = (1 << 64) - 1


class _Pipe:
    """Numbered byte strings over a TCP connection, each of them whole. Raises OSError when it is
    broken, EOFError when the other side has hung up."""

    def __init__(self, connection: socket.socket) -> None:
        # Else the end of a mail would wait until the receiver has confirmed its beginning.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connection
        self.closed = False

    def send(self, payload: bytes, number: int = 0) -> None:
        # In one call: every piece that comes alone wakes a process that trains.
        head = _HEAD.pack(len(payload), number)
        sent = self._socket.sendmsg([head, payload])
        if sent < len(head):
            self._socket.sendall(head[sent:])
        self._socket.sendall(memoryview(payload)[max(0, sent - len(head)) :])

    def receive(self, limit: int = _NO_LIMIT) -> tuple[int, bytes]:
        """(number, the next byte string). OSError for one of more than `limit` bytes."""
        length, number = _HEAD.unpack(self._exactly(_HEAD.size))
        if length > limit:
            raise OSError(f"{length} bytes, at most {limit} were expected")
        return number, self._exactly(length)

    def _exactly(self, length: int) -> bytes:
        parts: list[bytes] = []
        while length:
            part = self._socket.recv(length, socket.MSG_WAITALL)
            if not part:
                raise EOFError
            parts.append(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def finish(self) -> None:
        """Tell the other side that nothing more will be sent."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """What has not been sent yet, or comes after this, may be lost."""
        self.closed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes who is waiting for it
        self._socket.close()


class _RayBroker:
    """A `Broker` as a Ray actor, behind a door of its own: a port that lets in who knows a secret.

    It keeps the mail of a window in memory, as bytes, of which it reads the header alone.
    """

    def __init__(self, edges: frozenset[Edge], newest: bool) -> None:
        import ray

        keep_freed_memory()
        self._broker = Broker(edges, {}, newest)
        self._changed = threading.Condition()  # the broker, or who is connected
        self._here: set[int] = set()
        self._secret = secrets.token_bytes(_SECRET_BYTES)
        self._server = socket.create_server((ray.util.get_node_ip_address(), 0))
        threading.Thread(target=self._accept, daemon=True).start()

    async def door(self) -> tuple[tuple[str, int], bytes]:
        """(address, secret) for hosts."""
        return self._server.getsockname()[:2], self._secret

    async def place(self, placement: Mapping[int, int]) -> None:
        """Say who hosts whom."""
        with self._changed:
            self._broker.placement = placement

    async def meet(self, host: int, hosts: int, patience: float) -> int:
        """Wait for `hosts` hosts to come; how many have come so far."""
        self._here.add(host)
        deadline = time.monotonic() + patience
        while len(self._here) < hosts and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        return len(self._here)

    async def refused(self) -> int:
        return self._broker.refused

    def _accept(self) -> None:
        while True:
            connection, _ = self._server.accept()
            threading.Thread(target=self._attend, args=(connection,), daemon=True).start()

    def _attend(self, connection: socket.socket) -> None:
        """Take a host's mail until it hangs up."""
        pipe = _Pipe(connection)
        with contextlib.suppress(OSError, EOFError):
            _, hello = pipe.receive(_HELLO_LIMIT)
            if secrets.compare_digest(hello[:_SECRET_BYTES], self._secret):
                host, kept = json.loads(hello[_SECRET_BYTES:])
                with self._changed:
                    self._broker.forget(host, kept)
                delivery = threading.Thread(target=self._deliver, args=(pipe, host, kept))
                delivery.daemon = True
                delivery.start()
                while True:
                    self._take(host, pipe.receive()[1])
        with self._changed:
            pipe.close()
            self._changed.notify_all()

    def _take(self, host: int, payload: bytes) -> None:
        head, _ = split(payload, kind=_MAIL, limit=len(payload))
        with self._changed:
            self._broker.post(host, Parcel(**head["header"], content=payload))
            self._changed.notify_all()

    def _deliver(self, pipe: _Pipe, host: int, have: int) -> None:
        """Give a host its mail as soon as it comes, until it hangs up."""
        with contextlib.suppress(OSError):
            while not pipe.closed:
                with self._changed:
                    new = self._broker.collect(host, have)
                    if not new and not pipe.closed:
                        self._changed.wait()
                for number, parcel in new:
                    pipe.send(parcel.content, number)
                    have = number


def start_ray_broker(name: str, edges: Iterable[Edge], newest: bool) -> Any:
    """Start the broker of a run in the simulation's own Ray; for the ServerApp. It needs no CPU of
    its own, since one that did would keep a client waiting for ever."""
    import ray

    actor: Any = ray.remote(_RayBroker)
    options = actor.options(name=name, num_cpus=0, max_concurrency=1000)
    return options.remote(frozenset(edges), newest)


class RayExchange:
    """Mail through the run's Ray broker.

    kept: the number of the last mail that the nodes' states contain; `collected` is that of the
    last one that has been collected. EdgeFlError when the broker is gone or cannot be reached.
    """

    def __init__(self, name: str, host: int, kept: int = 0) -> None:
        address, secret = _door(name)
        try:
            connection = socket.create_connection(address, _CONNECT_SECONDS)
        except OSError as error:
            raise EdgeFlError(
                f"the broker of the neighbours' mail cannot be reached at {address[0]}: {error}; "
                f'where a firewall is in the way, use consensus.carrier="grid"'
            ) from error
        connection.settimeout(None)
        self._pipe = _Pipe(connection)
        self.collected = kept
        self._came: list[tuple[int, bytes]] = []
        self._arrived = threading.Condition()
        self._pipe.send(secret + json.dumps([host, kept]).encode())
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def post(self, mail: Mail) -> None:
        header = mail._asdict()
        vectors = {name: v.cpu().numpy() for name, v in header.pop("vectors").items()}
        try:
            self._pipe.send(encode(_MAIL, header, vectors))
        except OSError as error:
            raise _gone() from error

    def collect(self, patience: float) -> list[Mail]:
        with self._arrived:
            self._arrived.wait_for(lambda: self._came or self._pipe.closed, patience)
            came, self._came = self._came, []
        if not came and self._pipe.closed:
            raise _gone()
        return [self._open(number, payload) for number, payload in came]

    def close(self) -> None:
        """Hang up, as soon as the broker has all that was posted."""
        self._pipe.finish()
        self._listener.join(_GOODBYE_SECONDS)
        self._pipe.close()

    def _open(self, number: int, payload: bytes) -> Mail:
        self.collected = max(self.collected, number)
        header, arrays = decode(payload, kind=_MAIL, limit=len(payload))
        vectors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return Mail(**header, vectors=vectors)

    def _listen(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                mail = self._pipe.receive()
                with self._arrived:
                    self._came.append(mail)
                    self._arrived.notify()
        with self._arrived:
            self._pipe.close()
            self._arrived.notify()


def _door(name: str) -> tuple[tuple[str, int], bytes]:
    import ray
    from ray.exceptions import RayError

    try:
        broker: Any = ray.get_actor(name)
        return ray.get(broker.door.remote())
    except (ValueError, RayError) as error:
        raise _gone() from error


def _gone() -> EdgeFlError:
    return EdgeFlError("the broker of the neighbours' mail is gone")
