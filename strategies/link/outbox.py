"""What waits at its sender until the link takes it."""

from collections.abc import Hashable


class Outbox:
    """Messages in the order in which they are sent. limit: of how many wait; None: no limit.

    overtaken: messages that a newer one of the same key and kind replaced before they were sent.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._messages: dict[Hashable, tuple[str, bytes]] = {}  # by what a newer one replaces
        self._put = 0
        self.overtaken = 0

    def __bool__(self) -> bool:
        return bool(self._messages)

    def put(self, key: str, payload: bytes, kind: str | None) -> bool:
        """Add a message, in the place of the one of the same key and kind; with no kind it replaces
        none. False if the outbox is full."""
        self._put += 1
        slot = self._put if kind is None else (key, kind)
        # Taken out first, or a key that is often written would always be first in line.
        if self._messages.pop(slot, None) is not None:
            self.overtaken += 1
        elif self._limit is not None and len(self._messages) >= self._limit:
            return False
        self._messages[slot] = key, payload
        return True

    def take(self) -> tuple[str, bytes] | None:
        """The first message, taken out; None if there is none."""
        return self._messages.pop(next(iter(self._messages))) if self._messages else None
