"""An order at its server, from when it is made until it is answered."""

import time
from dataclasses import dataclass, field

from flwr.app import Message

from strategies.link.orders import announced, encoded, name_of
from strategies.link.records import parts_of

REPEAT_SECONDS = 5.0  # before an order that was lost, or its reply, is sent again; doubles
_MOST_REPEAT_SECONDS = 60.0


@dataclass
class UnderWay:
    """processes: how many of its device have ended over it. told: number of what everybody had been
    told when it was sent last; repeat: from when on it may be sent again, and how long after that.
    content: what its device may ask for, until all of it has come.
    """

    message: Message
    number: int
    made: float = field(default_factory=time.monotonic)
    processes: int = 0
    told: int = 0
    repeat: float = 0.0
    pause: float = field(default_factory=lambda: REPEAT_SECONDS)
    content: bytes = b""

    @property
    def name(self) -> str:
        """What its device calls the content."""
        return name_of(self.number)

    def written(self) -> bytes:
        """What is sent to its device."""
        if not self.content:
            kind = self.message.metadata.message_type
            self.content = encoded(kind, *parts_of(self.message.content))
        # What is computed by the run's clock must know how old the order is.
        return announced(self.number, time.monotonic() - self.made, self.content)

    def sent(self, told: int) -> None:
        """Take note that it has been sent once more."""
        self.told = told
        self.repeat = time.monotonic() + self.pause
        self.pause = min(2 * self.pause, _MOST_REPEAT_SECONDS)
