"""Mail at the pace of its link: one at a time is under way to each receiver.

What is published into a slow link waits in buffers, of sockets and of the router, and is older than
the link would make it when it comes. So a mail waits at its sender, where a newer one takes its
place, until the receiver has acknowledged the one before. How long that may take follows from how
long it has taken (Jacobson and Karels 1988, as in RFC 6298); a mail that is lost is not sent again.
"""

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

SHORTEST = 1.0  # seconds that an acknowledgement is waited for, at least; at first, too
LONGEST = 10.0  # and of a receiver who does not answer; the seconds double until then

_REMEMBERED = 8  # of mails that were given up, whose receipts may still tell how slow the link is

# Sends a mail, whatever that is, and says whether the link has taken it.
Send = Callable[[Any], bool]


@dataclass
class _Lane:
    """To one receiver. under_way: by their numbers, when mails were sent that are not acknowledged
    yet: one, and those that were given up. mean, spread: seconds until acknowledgements have come.
    silent: how many of the last mails were given up. waiting: the newest mail that was not sent."""

    under_way: dict[int, float] = field(default_factory=dict)
    mean: float = 0.0
    spread: float = 0.0
    silent: int = 0
    waiting: tuple[int, Any] | None = None

    @property
    def patience(self) -> float:
        """Seconds until the mail under way counts as lost."""
        doubled = min(SHORTEST * 2.0**self.silent, LONGEST)
        # Half as long again, or a steady link's own jitter would make a mail seem lost.
        return max(doubled, 1.5 * self.mean + 4 * self.spread)

    def measure(self, seconds: float) -> None:
        if self.mean:
            self.spread += (abs(seconds - self.mean) - self.spread) / 4
            self.mean += (seconds - self.mean) / 8
        else:
            self.mean, self.spread = seconds, seconds / 2


class PacedMail:
    """Sends by `send`, in each lane (to a receiver) one mail at a time. now: seconds on any clock.

    overtaken: mails that a newer one replaced before they were sent. lost: mails that have not been
    acknowledged in time.
    """

    def __init__(self, send: Send, now: Callable[[], float] = time.monotonic) -> None:
        self._send, self._now = send, now
        self._lanes: dict[Hashable, _Lane] = {}
        self._lock = threading.RLock()
        self.overtaken = self.lost = 0

    def post(self, name: Hashable, number: int, mail: Any) -> None:
        """Send mail `number` in the lane `name`, now or as soon as the one before has come."""
        with self._lock:
            lane = self._lanes.setdefault(name, _Lane())
            self.overtaken += lane.waiting is not None
            if lane.waiting is None or number >= lane.waiting[0]:
                lane.waiting = number, mail
            self._go_on(lane)

    def acknowledge(self, name: Hashable, number: int) -> None:
        """The receiver has mail `number` of the lane `name`."""
        with self._lock:
            lane = self._lanes.get(name)
            if lane is None or number not in lane.under_way:
                return
            lane.measure(self._now() - lane.under_way[number])
            lane.silent = 0
            for each in list(lane.under_way):  # they were sent before, and are lost or overtaken
                del lane.under_way[each]
                if each == number:
                    break
            self._go_on(lane)

    def tend(self) -> None:
        """Send what waits for an acknowledgement that does not come; to be called now and then."""
        with self._lock:
            for lane in self._lanes.values():
                self._go_on(lane)

    def hear(self, name: Hashable) -> None:
        """The receiver of the lane `name` is there, which may have seemed gone."""
        with self._lock:
            lane = self._lanes.get(name)
            if lane is not None and lane.silent:
                lane.silent = 0
                self._go_on(lane)

    def _go_on(self, lane: _Lane) -> None:
        now = self._now()
        if lane.waiting is None:
            return
        if lane.under_way:
            if now < max(lane.under_way.values()) + lane.patience:
                return
            self.lost += 1
            lane.silent += 1
        (number, mail), lane.waiting = lane.waiting, None
        lane.under_way.pop(number, None)
        lane.under_way[number] = now  # before: the receipt may come at once
        while len(lane.under_way) > _REMEMBERED:
            del lane.under_way[next(iter(lane.under_way))]
        if not self._send(mail):
            lane.under_way.pop(number, None)
