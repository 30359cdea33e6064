"""What carries messages between parties."""

from collections.abc import Callable
from typing import Protocol


class Carrier(Protocol):
    """What is needed of a `strategies.link.connection.Connection`."""

    def publish(
        self, key: str, payload: bytes, *, urgent: bool = False, kind: str = ""
    ) -> bool: ...

    def subscribe(
        self, expression: str, callback: Callable[[str, bytes], object]
    ) -> Callable[[], None]: ...
