"""The carrier of a simulation with several hosts: a socket from each of them to a broker.

The broker lives in the ServerApp's process, and hosts reach it on one machine or from the others of
a cluster. They are Ray's actors, but Ray's calls and object store took more of the processor time
that training needs, and so does a broker that is an actor, even when it is idle.
"""

import contextlib
import json
import secrets
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterable, Mapping

import torch

from strategies.carriers.broker import Broker, Packet
from strategies.carriers.exchange import Report
from strategies.consensus.participant import Mail
from strategies.consensus.topology import Edge
from strategies.errors import EdgeFlError
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


class SocketBroker:
    """A `Broker` behind a port at `address`, for those who know a secret.

    It keeps the mail of a window in memory, as bytes, of which it reads the header alone. As
    a context manager it serves until it is left.
    """

    def __init__(self, edges: Iterable[Edge], *, newest: bool, address: str) -> None:
        self._broker = Broker(frozenset(edges), {}, newest)
        self._changed = threading.Condition()  # the broker, who is here, or who is connected
        self._here: set[int] = set()
        self._pipes: set[_Pipe] = set()
        self._secret = secrets.token_bytes(_SECRET_BYTES)
        self._server = socket.create_server((address, 0))
        # What hosts must know: address, port and secret.
        self.access = f"{address} {self._server.getsockname()[1]} {self._secret.hex()}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "SocketBroker":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # wakes who accepts
        self._server.close()
        with self._changed:
            for pipe in self._pipes:
                pipe.close()
            self._changed.notify_all()

    def take_forged(self) -> Counter[tuple[int, int, int]]:
        """As a `Broker`'s."""
        with self._changed:
            return self._broker.take_forged()

    def place(self, placement: Mapping[int, int]) -> None:
        """Say who hosts whom."""
        with self._changed:
            self._broker.placement = placement

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                connection, _ = self._server.accept()
                threading.Thread(target=self._attend, args=(connection,), daemon=True).start()

    def _attend(self, connection: socket.socket) -> None:
        """Do what a host wants until it hangs up."""
        pipe = _Pipe(connection)
        with self._changed:
            self._pipes.add(pipe)
        try:
            with contextlib.suppress(OSError, EOFError):
                _, hello = pipe.receive(_HELLO_LIMIT)
                if secrets.compare_digest(hello[:_SECRET_BYTES], self._secret):
                    wish = json.loads(hello[_SECRET_BYTES:])
                    if "hosts" in wish:
                        pipe.send(b"", self._meet(**wish))
                    else:
                        self._exchange(pipe, **wish)
        finally:
            with self._changed:
                pipe.close()
                self._pipes.discard(pipe)
                self._changed.notify_all()

    def _meet(self, host: int, hosts: int, patience: float) -> int:
        """Wait for `hosts` hosts to come; how many have come so far."""
        with self._changed:
            self._here.add(host)
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(self._here) >= hosts, patience)
            return len(self._here)

    def _exchange(self, pipe: _Pipe, host: int, kept: int) -> None:
        """Take a host's mail and give it that of others. EOFError when it hangs up."""
        with self._changed:
            self._broker.forget(host, kept)
        threading.Thread(target=self._deliver, args=(pipe, host, kept), daemon=True).start()
        while True:
            self._take(host, pipe.receive()[1])

    def _take(self, host: int, payload: bytes) -> None:
        head, _ = split(payload, kind=_MAIL, limit=len(payload))
        with self._changed:
            self._broker.post(host, Packet(**head["header"], content=payload))
            self._changed.notify_all()

    def _deliver(self, pipe: _Pipe, host: int, have: int) -> None:
        """Give a host its mail as soon as it comes, until it hangs up."""
        with contextlib.suppress(OSError):
            while not pipe.closed:
                with self._changed:
                    new = self._broker.collect(host, have)
                    if not new and not pipe.closed:
                        self._changed.wait()
                for number, packet in new:
                    pipe.send(packet.content, number)
                    have = number


def meet(access: str, host: int, hosts: int, patience: float) -> int:
    """How many of `hosts` hosts are here at one time within `patience` seconds, as the broker sees
    it. EdgeFlError when it is gone or cannot be reached."""
    pipe = _connect(access, {"host": host, "hosts": hosts, "patience": patience})
    try:
        return pipe.receive()[0]
    except (OSError, EOFError) as error:
        raise _gone() from error
    finally:
        pipe.close()


class SocketExchange:
    """Mail through the broker with this `access`.

    kept: the number of the last mail that the nodes' states contain. EdgeFlError when the broker is
    gone or cannot be reached.
    """

    def __init__(self, access: str, host: int, kept: int = 0) -> None:
        self._pipe = _connect(access, {"host": host, "kept": kept})
        self._collected = kept
        self._came: list[tuple[int, bytes]] = []
        self._arrived = threading.Condition()
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

    def report(self) -> Report:
        return Report(collected=self._collected)

    def close(self) -> None:
        """Hang up, as soon as the broker has all that was posted."""
        self._pipe.finish()
        self._listener.join(_GOODBYE_SECONDS)
        self._pipe.close()

    def _open(self, number: int, payload: bytes) -> Mail:
        self._collected = max(self._collected, number)
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


def _connect(access: str, wish: Mapping[str, float]) -> _Pipe:
    """A way to the broker, which has been told who comes and what for."""
    address, port, secret = access.split()
    try:
        connection = socket.create_connection((address, int(port)), _CONNECT_SECONDS)
        connection.settimeout(None)
        pipe = _Pipe(connection)
        pipe.send(bytes.fromhex(secret) + json.dumps(wish).encode())
    except OSError as error:
        raise EdgeFlError(
            f"the broker of the neighbours' mail is gone, or cannot be reached at {address}: "
            f'{error}; where a firewall is in the way, use consensus.carrier="grid"'
        ) from error
    return pipe


def _gone() -> EdgeFlError:
    return EdgeFlError("the broker of the neighbours' mail is gone")
