"""The device's end of its session with the server: as long as one of its processes serves a run.

Orders come and replies go through the mail router, so that a job costs no new process. Whatever
gets lost on the way is sent again: the server repeats an order until it is answered, and an order
that has been answered is answered again, never done twice.

Nobody guesses how long a message may be on its way. The server counts what it tells everybody
(`keys.NOW`), and a beat says up to which of them its device has heard: what the server sent before
that one has come, or is lost. Beats overtake a reply; one that follows it says that it was sent.
"""

import queue
import secrets
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from strategies.carriers.exchange import Exchange
from strategies.link import keys
from strategies.link.connection import Connection
from strategies.link.orders import Announced, Order
from strategies.link.pieces import Pieces
from strategies.link.transport import MESSAGE_LIMIT
from strategies.link.wire import decode, encode
from strategies.site import Site

BEAT_SECONDS = 2.0
_LOOK_SECONDS = 0.5  # between two looks whether the session is over


class DeviceSession:
    """Gets orders and sends their replies.

    facts: what every beat tells besides, such as the fingerprint of the code. patience: seconds
    without a word from the server after which an idle device gives it up.
    """

    def __init__(
        self,
        connection: Connection,
        site: Site,
        run: str,
        facts: Mapping[str, Any],
        patience: float,
    ) -> None:
        self.connection, self.site, self.run = connection, site, run
        self._facts = {**facts, "session": secrets.token_hex(8)}
        self._patience = patience
        self._orders: queue.SimpleQueue[Announced] = queue.SimpleQueue()
        self._announced = 0  # number of the newest order of which it has heard
        self._newest = 0  # number of the newest order that has come, all of it
        self._answered, self._payload = 0, b""  # number of the newest order, and its reply
        self._told = 0  # number of what the server told everybody last
        self._heard = time.monotonic()
        self.window = 0  # the newest that the server wants to be worked on
        self.waited = 0.0  # by the order in hand, until it was sent
        self.over = ""  # why there is nothing more to do
        self._key: Hashable = None
        self._exchange: Exchange | None = None
        self._beating = threading.Event()
        self._pieces = Pieces(connection, run, site.name)
        connection.subscribe(keys.order(run, site.name), self._take)
        connection.subscribe(keys.NOW, self._note)
        self._thread = threading.Thread(target=self._beat, name="beat", daemon=True)
        self._thread.start()

    def next(self) -> Order | None:
        """The next order, as soon as there is one; None when there will be no more."""
        while not self.over:
            try:
                announced = self._orders.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                self._goes_on()
                continue
            content: bytes | None = announced.content
            if announced.lacking:
                content = self._pieces.get(announced.lacking, self._goes_on)
            order = announced.order(content or b"")
            if order is None:
                self._announced = self._newest  # it may be sent again
            else:
                self._newest, self.waited = order.number, order.waited
                return order
        return None

    def _goes_on(self, _silent: float = 0.0) -> bool:
        """Whether the server is to be waited for."""
        if not self.over and time.monotonic() - self._heard > self._patience:
            self.over = f"nothing heard from the server for {self._patience:g} s"
        return not self.over

    def answer(self, order: Order, header: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
        """Send the reply to an order; it is kept, in case it gets lost."""
        payload = encode("reply", {**header, "number": order.number}, arrays)
        if len(payload) > MESSAGE_LIMIT:
            error = f"a reply of {len(payload)} bytes is too long; use sessions=off"
            payload = encode("reply", {"error": error, "number": order.number}, {})
        self._payload = payload
        self._reply()
        self._answered = order.number  # now, for beats that say so must follow the reply
        self._heard = time.monotonic()  # of the time that the order took, silence is no sign

    def close(self) -> None:
        """Stop beating."""
        self._beating.set()
        self._thread.join()
        self._keep(None, None)

    def kept(self, key: Hashable, make: Callable[[], Exchange]) -> Exchange:
        """The exchange that goes on between orders, so that mail can come there: the one that was
        made under the same key, or a new one in its place. It is closed with the session."""
        if self._exchange is None or self._key != key:
            self._keep(None, None)
            self._keep(key, make())
        assert self._exchange is not None
        return self._exchange

    def _keep(self, key: Hashable, exchange: Exchange | None) -> None:
        if self._exchange is not None:
            self._exchange.close()
        self._key, self._exchange = key, exchange

    def _reply(self) -> None:
        key = keys.reply(self.run, self.site.name)
        self.connection.publish(key, self._payload, sure=True)

    def _beat(self) -> None:
        key = keys.beat(self.run, self.site.name)
        while True:
            told = self._told  # read first: what had come by then is in the rest
            state = {**self._facts, "told": told, "newest": self._newest, "answered": 0}
            self.connection.publish(key, encode("beat", state, {}), urgent=True, kind="beat")
            if self._answered:  # on the reply's own way, behind it
                state["answered"] = self._answered
                self.connection.publish(key, encode("beat", state, {}), sure=True)
            if self._beating.wait(BEAT_SECONDS):
                return

    def _take(self, _key: str, payload: bytes) -> None:
        announced = Announced.read(payload)
        self._heard = announced.came
        if announced.number == self._answered:
            self._reply()
        elif announced.number > self._announced:
            self._announced = announced.number
            self._orders.put(announced)

    def _note(self, _key: str, payload: bytes) -> None:
        header, _ = decode(payload, kind="now", limit=1 << 16)
        if header["run"] != self.run:
            self.over = "the server serves another run now"
        elif header["over"]:
            self.over = "the run is over"
        else:
            self.window = int(header["window"])
            self._heard = time.monotonic()
            self._told = int(header["told"])
