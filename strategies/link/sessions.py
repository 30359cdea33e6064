"""The server's end of the devices' sessions: a Flower grid whose messages go through the router."""

import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid

from strategies.checks import last_line
from strategies.errors import EdgeFlError
from strategies.fingerprint import fingerprint
from strategies.link import keys
from strategies.link.connection import Connection
from strategies.link.device_session import BEAT_SECONDS
from strategies.link.files import Files
from strategies.link.flood import Flood
from strategies.link.invitations import FAILED, Invitations
from strategies.link.pieces import PieceServer
from strategies.link.records import content_of
from strategies.link.refusals import LATE, Refusals
from strategies.link.router import Router, access_control
from strategies.link.transport import MESSAGE_LIMIT
from strategies.link.under_way import REPEAT_SECONDS, UnderWay
from strategies.link.wire import WireError, decode, encode, split
from strategies.site import Site

_TICK_SECONDS = 0.2
_ONLINE_SECONDS = 1.0  # between two questions to Flower which nodes are online
_LINGER_SECONDS = 2.0  # at the end, for a question to Flower that is under way
# An order that has ended so many processes of its device will end the next one too.
_MOST_PROCESSES = 3
_BEAT_LIMIT = 1 << 16
_MOST_BEATS = 20  # of a device in a second; the others of a flood are not looked at
_TOLD_PROCESSES = 100  # of a device; whatever goes on there, the record must not fill up with it
_AWAY = 5  # Flower's error code of a node that is not there


@dataclass
class _Device:
    """What the server knows of a device.

    session: the process that serves it, sessions: how many have; heard: when it last told of
    itself. numbers: how many orders it has been given. beats: those of the last second.
    """

    name: str
    session: str = ""
    heard: float = -1e9
    order: UnderWay | None = None
    sessions: int = 0
    numbers: int = 0
    beats: Flood = field(default_factory=Flood)


class SessionGrid(Grid):
    """Messages to devices as orders over the mail router, one at a time to each.

    Every device is a node: number i + 1 is the i-th of `names`, whether or not it is there. To one
    that is not there a message fails at once.

    grid: Flower's own, over which devices are invited. patience: seconds without a sign of life
    after which a device is not there. limit: bytes of the largest reply. say: is told what happens
    to devices and the router. served: where the file of a name is that devices may ask for.
    """

    def __init__(
        self,
        grid: Grid,
        site: Site,
        names: Sequence[str],
        neighbours: Mapping[str, Collection[str]],
        *,
        patience: float,
        limit: int,
        log: Path,
        say: Callable[[str], None],
        served: Callable[[str], Path | None] = lambda _: None,
    ) -> None:
        self._grid, self.names = grid, tuple(names)
        self.token = secrets.token_hex(8)
        self._patience, self._limit, self._say = patience, limit, say
        self._devices = {name: _Device(name) for name in names}
        self._done: dict[str, Message] = {}
        self._refusals = Refusals(say)
        self._lock = threading.RLock()
        self._window, self._over, self._told = 0, False, 0
        others = frozenset(site.devices) - set(names)
        self._invitations = Invitations(grid, self.token, names, others, patience=patience, say=say)
        self._router = Router(site, access_control(self.token, names, neighbours), log, patience)
        try:
            self._connection = Connection(site)
            self._connection.subscribe(keys.beat(self.token, "*"), self._on_beat)
            self._connection.subscribe(keys.reply(self.token, "*"), self._on_reply)
            self._files = Files(served)
            self.pieces = PieceServer(self._connection, self.token, self._asked)
        except BaseException:
            self._router.stop()
            raise
        self._closing = threading.Event()
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._tend, name="sessions", daemon=True)
        self._inviting = threading.Thread(target=self._invite, name="invitations", daemon=True)
        self._thread.start()
        self._inviting.start()

    # -- Flower's interface -------------------------------------------------------------------

    def set_run(self, run: Any) -> None:
        """Flower's hook; the run is that of its own grid."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """Flower's run."""
        return self._grid.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Flower's deprecated way to make a message."""
        return self._grid.create_message(*args, **kwargs)

    def get_node_ids(self) -> Iterable[int]:
        """The devices that are there."""
        self._check()
        return [i + 1 for i, name in enumerate(self.names) if self._is_here(name)]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send; the ids. Whoever is not there or has an order already fails at once."""
        self._check()
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that have come."""
        self._check()
        with self._lock:
            return [self._done.pop(i) for i in list(message_ids) if i in self._done]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send, and wait for the replies."""
        ids = set(self.push_messages(messages))
        deadline = time.monotonic() + timeout if timeout is not None else float("inf")
        replies: list[Message] = []
        while ids and time.monotonic() < deadline:
            replies += self.pull_messages(ids)
            ids -= {reply.metadata.reply_to_message_id for reply in replies}
            time.sleep(0.01)
        return replies

    # -- what Flower's grid has not -----------------------------------------------------------

    def announce(self, window: int) -> None:
        """Tell all devices that no window before this one is to be worked on any more."""
        if window > self._window:
            self._window = window
            self._publish_now()

    def is_here(self, node_id: int) -> bool:
        """Whether that device is there."""
        return self._is_here(self.names[node_id - 1])

    def here(self) -> list[str]:
        """The names of the devices that are there."""
        return [name for name in self.names if self._is_here(name)]

    @property
    def restarts(self) -> int:
        """How often the router has been started again."""
        return self._router.restarts

    @property
    def started(self) -> dict[str, int]:
        """By device, how many processes have served it."""
        return {device.name: device.sessions for device in self._devices.values()}

    @property
    def refused(self) -> dict[str, int]:
        """How many beats and replies were none, or too late, by "kind: reason"."""
        return self._refusals.by_reason()

    def unreachable(self) -> dict[str, str]:
        """Devices that cannot have a session, and why."""
        return dict(self._invitations.unable)

    def close(self) -> None:
        """End the sessions and the router."""
        self._closing.set()
        self._thread.join()
        self._inviting.join(_LINGER_SECONDS)  # it may wait for a SuperLink that is away
        self._over = True
        for _ in range(3):  # whoever misses it is patient for a while, and then goes too
            self._publish_now()
            time.sleep(_TICK_SECONDS)
        self._connection.close()
        self._router.stop()

    # -- to the devices -----------------------------------------------------------------------

    def _push(self, message: Message) -> str:
        name = self.names[message.metadata.dst_node_id - 1]
        with self._lock:
            device = self._devices[name]
            device.numbers += 1
            # As Flower's own grids do it: a reply names what it answers by this.
            message_id = f"{self.token}.{name}.{device.numbers}"
            message.metadata.__dict__["_message_id"] = message_id
            if not self._is_here(name):
                self._finish(message, Error(_AWAY, self._absence(device)))
            elif device.order is not None:
                self._finish(message, Error(_AWAY, f"{name} is still busy with an earlier order"))
            else:
                device.order = UnderWay(message, device.numbers)
                self._send(device)
        return message_id

    def _send(self, device: _Device) -> None:
        order = device.order
        assert order is not None
        payload = order.written()
        if len(order.content) > MESSAGE_LIMIT:
            device.order = None
            reason = f"{len(order.content)} bytes are too many for an order; use sessions=off"
            self._finish(order.message, Error(FAILED, reason))
            return
        key = keys.order(self.token, device.name)
        self._connection.publish(key, payload, urgent=True, kind="order")
        order.sent(self._told)

    def _asked(self, name: str, whole: str) -> bytes:
        """What a device asks for in pieces: its order, or a file."""
        order = self._devices[name].order if name in self._devices else None
        if order is not None and whole == order.name:
            return order.content
        return self._files.content(whole)

    def _publish_now(self) -> None:
        with self._lock:
            self._told += 1
            now = {"run": self.token, "window": self._window, "over": self._over}
            now["told"] = self._told
            self._connection.publish(keys.NOW, encode("now", now, {}), urgent=True, kind="now")

    def _finish(self, message: Message, result: RecordDict | Error) -> None:
        reply = Message(result, reply_to=message)  # type: ignore[call-overload]
        self._done[message.metadata.message_id] = reply

    # -- from the devices ---------------------------------------------------------------------

    def _on_beat(self, key: str, payload: bytes) -> None:
        device, now = self._devices.get(key.rsplit("/", 1)[1]), time.monotonic()
        if device is None or device.beats.exceeds(_MOST_BEATS):
            reason = "unknown" if device is None else "flood"
            self._refusals.add(device.name if device else "", "beat", reason)
            return
        try:
            header, _ = decode(payload, kind="beat", limit=_BEAT_LIMIT)
            session, newest, answered, told = _state_of(header)
        except WireError as error:
            self._refusals.add(device.name, "beat", error.reason)
            return
        if self._over:
            return  # where one process has ended, another that waited for its turn has just begun
        if header.get("fingerprint") != fingerprint():
            self._invitations.unable[device.name] = "it runs other code than the server"
            return
        with self._lock:
            device.heard = now
            self._invitations.unable.pop(device.name, None)
            if device.session != session:
                device.session = session
                device.sessions += 1
                if 1 < device.sessions <= _TOLD_PROCESSES:
                    self._say(f"{device.name} is back with a new process")
                self._begin_again(device)
            order = device.order
            if order is not None and newest >= order.number:
                order.content = b""  # it has come
            # On the way nothing overtakes an order but what is lost, nor what follows a reply:
            # a device that was told more since has both, or has lost one.
            if order is None or told <= order.told or now <= order.repeat:
                return
            if newest < order.number or answered == order.number:
                self._send(device)

    def _begin_again(self, device: _Device) -> None:
        """The process that had the device's order is gone: give it to the new one."""
        if (order := device.order) is None:
            return
        order.processes += 1
        if order.processes > _MOST_PROCESSES:
            device.order = None
            reason = f"{device.name} has lost {_MOST_PROCESSES} processes over one order"
            self._finish(order.message, Error(FAILED, reason))
        else:
            order.pause = REPEAT_SECONDS
            self._send(device)

    def _on_reply(self, key: str, payload: bytes) -> None:
        device = self._devices.get(key.rsplit("/", 1)[1])
        if device is None:
            self._refusals.add("", "reply", "unknown")
            return
        order, number = device.order, _number_of(payload, self._limit)
        if order is None or number not in (None, order.number):
            given = number is not None and 0 < number <= device.numbers
            self._refusals.add(device.name, "reply", LATE if given else "unasked")
            return
        result: RecordDict | Error
        try:
            header, arrays = decode(payload, kind="reply", limit=self._limit)
            if "error" in header:
                result = Error(FAILED, last_line(str(header["error"])))
            else:
                result = content_of(header, arrays)
        except ValueError as error:
            self._refusals.add(device.name, "reply", getattr(error, "reason", "no records"))
            # If its number cannot be known, it is that of the only order there is.
            result = Error(FAILED, f"a reply that is none: {last_line(str(error))}")
        with self._lock:
            if device.order is order:
                device.order = None
                self._finish(order.message, result)

    # -- beside the run -----------------------------------------------------------------------

    def _tend(self) -> None:
        """Keep the router alive, and notice devices that went."""
        beat = 0.0
        while not self._closing.wait(_TICK_SECONDS):
            try:
                if self._router.tend():
                    self._say("the mail router died and has been started again")
                if time.monotonic() > beat:
                    self._publish_now()
                    beat = time.monotonic() + BEAT_SECONDS
                self._give_up_silent()
            except BaseException as error:
                self._fault = error  # told to whoever uses the grid next
                return

    def _invite(self) -> None:
        """Invite devices. Beside the rest: Flower's calls last as long as the SuperLink is away,
        and the sessions do without it."""
        while not self._closing.is_set():
            try:
                self._invitations.tend(self.here())
            except httpx.HTTPError:
                pass
            except BaseException as error:
                self._fault = error
                return
            self._closing.wait(_ONLINE_SECONDS)

    def _give_up_silent(self) -> None:
        with self._lock:
            for device in self._devices.values():
                if device.order is not None and not self._is_here(device.name):
                    order, device.order = device.order, None
                    self._finish(order.message, Error(_AWAY, self._absence(device)))

    def _is_here(self, name: str) -> bool:
        return time.monotonic() - self._devices[name].heard < self._patience

    def _absence(self, device: _Device) -> str:
        if not device.session:
            return f"{device.name} has not come yet"
        return f"{device.name} has been silent for {self._patience:g} s"

    def _check(self) -> None:
        if self._fault is not None:
            raise EdgeFlError(f"the devices' sessions cannot go on: {self._fault}") from self._fault


def _number_of(payload: bytes, limit: int) -> int | None:
    """The number of the order that a reply is to; None if that cannot be known."""
    try:
        number = split(payload, kind="reply", limit=limit)[0]["header"].get("number")
    except WireError:
        return None
    return number if type(number) is int else None


def _state_of(header: Mapping[str, Any]) -> tuple[str, int, int, int]:
    """(session, newest order, answered order, what it was told) of a beat. Raises WireError."""
    session = header.get("session")
    numbers: list[Any] = [header.get(name) for name in ("newest", "answered", "told")]
    if not isinstance(session, str) or len(session) > 64:
        raise WireError("bad header", "session is none")
    if not all(isinstance(number, int) for number in numbers):
        raise WireError("bad header", "newest, answered or told are no numbers")
    return session, numbers[0], numbers[1], numbers[2]
